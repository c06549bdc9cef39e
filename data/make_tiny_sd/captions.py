"""Captions of the training images. They depend on category, view and material.

The view suffixes ("{text}, front view" and so on) and the negative prompts are those that Fantasia3D (Chen et
al. 2023) uses in score distillation. The negative prompts are used like empty captions, so the prior learns
to treat them as unconditional.
"""

import torch

from configs.modes import MODES
from dataset.procedural.materials import MATERIALS, Material
from sd.prompts import VIEW_SUFFIXES

# Share of captions that end with the view, and share of captions from EMPTY_CAPTIONS.
VIEW_SHARE = 0.6
DROPPED_SHARE = 0.12

# The first template is listed twice, which doubles its probability, because most prompts have this form.
TEMPLATES = (
    "{article} {name}",
    "{article} {name}",
    "a photo of {article} {name}",
    "a DSLR photo of {article} {name}",
    "a 3D model of {article} {name}",
    "{name}",
)
# Additional templates for a material that has a noun, such as "wood".
SUBSTANCE_TEMPLATES = (
    "{article} {name} made of {substance}",
    "a DSLR photo of {article} {name} made of {substance}",
)
# Unconditional captions: the empty string (with double probability) and the negative prompts.
EMPTY_CAPTIONS = ("", "", *sorted(mode.negative_prompt for mode in MODES.values()))


def readable_name(category: str) -> str:
    """Return the name of a category in captions, for example "ice cream" for "ice_cream"."""
    return category.replace("_", " ").strip().lower()


def article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def descriptions(category: str, material: Material | None = None) -> list[str]:
    """Return all wordings for a category without the view. A wording that is repeated is drawn more often.

    The number of wordings is the same for all materials, and also without a material, so that CaptionTable
    can compute the row of a caption.
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
    """Return the first wording for a category, for example "a pineapple"."""
    return descriptions(category)[0]


class CaptionTable:
    """A list of all captions of some categories, from which random rows can be drawn.

    Rows are ordered by category, by material (original colours first), by wording, and by view: none, front,
    side and back as in `Cameras.view_index`. EMPTY_CAPTIONS are at the end.
    """

    def __init__(self, categories: tuple[str, ...]):
        self.categories = categories
        self.wordings = len(TEMPLATES) + len(SUBSTANCE_TEMPLATES)
        self.materials = (None, *MATERIALS.values())
        self._endings = ("", *VIEW_SUFFIXES)
        described = [
            text + ending
            for category in categories
            for category_material in self.materials
            for text in descriptions(category, category_material)
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
        view_share: float = VIEW_SHARE,
    ) -> torch.Tensor:
        """Draw the indices [B] of captions for images of these categories, views and materials [B].

        The result is on the device of the arguments. view_share: share of the captions that end with the
        view.
        """
        device, count = category_index.device, len(category_index)

        def uniform() -> torch.Tensor:
            return torch.rand(count, generator=generator, device=device)

        wording = (uniform() * self.wordings).long().clamp(max=self.wordings - 1)
        ending = torch.where(uniform() < view_share, view_index + 1, 0)
        category_material = category_index * len(self.materials) + material
        row = (category_material * self.wordings + wording) * len(self._endings) + ending
        empty = self._first_empty + (uniform() * len(EMPTY_CAPTIONS)).long().clamp(
            max=len(EMPTY_CAPTIONS) - 1
        )
        return torch.where(uniform() < DROPPED_SHARE, empty, row)
