"""Captions: how the training images of a category are described, view by view and material by material.

The wording is the method's own (METHOD sections 1 and 5): "{text}, front view" and so on, and the negative
prompts stand for no caption at all, so that they embed as unconditional.
"""

import torch

from configs.modes import MODES
from dataset.procedural.materials import MATERIALS, Material
from sd.prompts import VIEW_SUFFIXES

# Part of the captions that end in the view's name, and that say nothing about the image.
VIEW_SHARE = 0.6
DROPPED_SHARE = 0.12

# The plain form is the one that people type; it stands twice so that it is drawn more often.
TEMPLATES = (
    "{article} {name}",
    "{article} {name}",
    "a photo of {article} {name}",
    "a DSLR photo of {article} {name}",
    "a 3D model of {article} {name}",
    "{name}",
)
# What a material adds: one wording in so many says it behind the name, where it has a word for that.
SUBSTANCE_TEMPLATES = (
    "{article} {name} made of {substance}",
    "a DSLR photo of {article} {name} made of {substance}",
)
# Unconditional captions: nothing (twice, it is the usual one), or the method's negative prompts.
EMPTY_CAPTIONS = ("", "", *sorted(mode.negative_prompt for mode in MODES.values()))


def readable_name(category: str) -> str:
    """ "ice_cream" -> "ice cream"."""
    return category.replace("_", " ").strip().lower()


def article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def descriptions(category: str, material: Material | None = None) -> list[str]:
    """Every wording for a category, without the view; wordings that are drawn more often are repeated.

    There are as many for every material as for none.
    """
    plain = readable_name(category)
    name = f"{material.adjective} {plain}" if material else plain
    found = [template.format(article=article(name), name=name) for template in TEMPLATES]
    if material and material.substance:
        found += [
            template.format(article=article(plain), name=plain, substance=material.substance)
            for template in SUBSTANCE_TEMPLATES
        ]
    else:
        found += found[: len(SUBSTANCE_TEMPLATES)]
    return found


def plain_caption(category: str) -> str:
    """ "a pineapple"."""
    return descriptions(category)[0]


class CaptionTable:
    """All captions of some categories in one list, and draws of rows of that list.

    Row layout: per category, per look (its own colours, then every material), per wording, four rows: without a
    view, then front, side and back as in `Cameras.view_index`; at the end EMPTY_CAPTIONS.
    """

    def __init__(self, categories: tuple[str, ...]):
        self.categories = categories
        self.wordings = len(TEMPLATES) + len(SUBSTANCE_TEMPLATES)
        self.looks = (None, *MATERIALS.values())
        self._endings = ("", *VIEW_SUFFIXES)
        described = [
            text + ending
            for category in categories
            for look in self.looks
            for text in descriptions(category, look)
            for ending in self._endings
        ]
        self.captions = [*described, *EMPTY_CAPTIONS]
        self._first_empty = len(described)

    def draw(
        self,
        category_index: torch.Tensor,
        view_index: torch.Tensor,
        material: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Rows [B] of `captions` for images of these categories, views and materials [B], on their device."""
        device, count = category_index.device, len(category_index)

        def uniform() -> torch.Tensor:
            return torch.rand(count, generator=generator, device=device)

        wording = (uniform() * self.wordings).long().clamp(max=self.wordings - 1)
        ending = torch.where(uniform() < VIEW_SHARE, view_index + 1, 0)
        look = category_index * len(self.looks) + material
        row = (look * self.wordings + wording) * len(self._endings) + ending
        empty = self._first_empty + (uniform() * len(EMPTY_CAPTIONS)).long().clamp(
            max=len(EMPTY_CAPTIONS) - 1
        )
        return torch.where(uniform() < DROPPED_SHARE, empty, row)
