"""Prompts: the text in its view-dependent forms (Fantasia3D, arXiv 2303.13873, section 4; DreamFusion)."""

import re
from collections.abc import Iterable

VIEW_SUFFIXES = (", front view", ", side view", ", back view")


def directional_prompts(text: str, directional: bool) -> list[str]:
    """Three prompts in the order of `Cameras.view_index`: front, side, back; equal if not directional."""
    return [text + suffix if directional else text for suffix in VIEW_SUFFIXES]


def find_category(text: str, categories: Iterable[str]) -> str | None:
    """The category that `text` names as whole words, singular or plural; None if it names none.

    Of several, the one that comes first in the text; of those that start at the same place, the longest.
    """
    found = []
    for category in categories:
        words = r"[\s_-]+".join(map(re.escape, category.split()))
        if match := re.search(rf"(?<!\w){words}(?:e?s)?(?!\w)", text, re.IGNORECASE):
            found.append((match.start(), -len(category), category))
    return min(found)[2] if found else None
