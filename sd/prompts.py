"""View-dependent prompts (DreamFusion, arXiv 2209.14988; Fantasia3D, arXiv 2303.13873, section 4)."""

import re
from collections.abc import Iterable

VIEW_SUFFIXES = (", front view", ", side view", ", back view")


def directional_prompts(text: str, directional: bool) -> list[str]:
    """Return the prompts for front, side and back. The three prompts are equal if `directional` is False."""
    return [text + suffix if directional else text for suffix in VIEW_SUFFIXES]


def find_category(text: str, categories: Iterable[str]) -> str | None:
    """Return the category whose words occur in `text` as whole words, in the singular or plural. Return None
    if no category occurs.

    If several categories occur, the first one in the text is returned. If several categories start at the
    same word, the longest one is returned.
    """
    found = []
    for category in categories:
        words = r"[\s_-]+".join(map(re.escape, category.split()))
        if match := re.search(rf"(?<!\w){words}(?:e?s)?(?!\w)", text, re.IGNORECASE):
            found.append((match.start(), -len(category), category))
    return min(found)[2] if found else None
