"""The one kind of error that a config can cause, and how it words things on one line."""

import difflib
import json
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config that cannot be used; the message is one line naming file, key, value and what is allowed."""


def shown(value: object, limit: int = 200) -> str:
    """`value` as JSON on one line, without its middle beyond `limit` characters: a path's end tells most."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to show"
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]}…{text[head + 1 - limit :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`, whatever the case and with - for _; one that begins it goes first."""
    folded = word.lower().lstrip("-").replace("-", "_")

    def likeness(candidate: str) -> tuple[bool, float]:
        other = candidate.lower()
        begins = folded.startswith(other) or other.startswith(folded)
        return begins, difflib.SequenceMatcher(None, folded, other).ratio()

    return max(sorted(known), key=likeness)
