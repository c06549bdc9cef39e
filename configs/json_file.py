"""Read a config file: strict JSON, one object, no duplicate keys.

The message for a syntax error contains the file, the line and the fix.
"""

import json
import re
from pathlib import Path

from configs.errors import ConfigError, nearest, shown

WORDS = {"true": "true", "false": "false", "none": "null", "null": "null", "undefined": "null"}
QUOTES = "'`‘’“”„«»"
NUMBER_RULE = "write numbers as JSON does: 0.5, not .5; 1.0, not 1.; no + and no leading zeros"


def read_object(path: str | Path) -> dict[str, object]:
    """Return the JSON object in `path`.

    NaN and infinities are accepted here. They are rejected by `parse_config`, whose error message can name
    the key.

    Raises:
        ConfigError: if the file is missing, unreadable, not UTF-8, not exactly one JSON object, or has a
        duplicate key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_suggestion(Path(path))}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read as a config file: {reason}") from None

    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in pairs:
            if key in values:
                raise ConfigError(f"{path}: key {shown(key)} occurs twice; keep one of them")
            values[key] = value
        return values

    try:
        values = json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        at, fix = explain(text, error)
        before = text[:at]
        place = f"line {before.count(chr(10)) + 1}, column {at - before.rfind(chr(10))}"
        raise ConfigError(f"{path}, {place}: not valid JSON: {fix}") from None
    except ConfigError:
        raise
    except (RecursionError, ValueError):
        raise ConfigError(
            f"{path}: not usable as a config: nested too deeply, or a number too long"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f'{path}: must hold one JSON object {{"key": value, …}}, not {shown(values)}')
    return values


def explain(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Return the position of the syntax error in `text` and a message.

    The message is the fix, or the parser's message if no fix is known.
    """
    at = error.pos
    rest = text[at:].lstrip()
    start = len(text) - len(rest)
    before = text[:start].rstrip()
    word = re.match(r"[^\W\d]\w*", rest)
    if not text.strip():
        return at, 'the file is empty; it must hold one object {"key": value, …}'
    if rest.startswith(("#", "//", "/*")):
        return start, "JSON has no comments; remove this one"
    if rest[:1] in ("}", "]") and before.endswith(","):
        return len(before) - 1, "remove the comma after the last entry"
    if rest.startswith(",") and re.match(r",\s*[}\]]", rest):
        return start, "remove the comma after the last entry"
    if word and not re.match(r"\s*:", rest[word.end() :]) and word[0].lower() in WORDS:
        return start, f"write {WORDS[word[0].lower()]}, not {word[0]}"
    if rest[:1] and rest[0] in QUOTES:
        return start, f'put text and keys in double quotes ("), not in {rest[0]}'
    if error.msg.startswith("Expecting ','"):
        return at if rest else len(text), _after_value(text, at, before, rest)
    if error.msg.startswith("Invalid \\"):
        return at, r"a backslash in a text is written \\ ; in paths / works as well"
    if error.msg.startswith("Invalid control character"):
        return at, r"a text cannot contain a line break or tab; close its quotes, or write \n or \t"
    if error.msg.startswith("Unterminated string"):
        return at, "the text that begins here has no closing double quote"
    if error.msg.startswith("Extra data"):
        return at, "text after the end of the object; remove it"
    if word and error.msg.startswith(("Expecting property name", "Expecting value")):
        return start, f'put {shown(word[0])} in double quotes: "{word[0]}"'
    if re.match(r"[+.]\d|-\.\d", rest):
        return start, NUMBER_RULE
    return at, error.msg


def _after_value(text: str, at: int, before: str, rest: str) -> str:
    """Return the fix for a value that is followed by neither a comma nor a bracket."""
    if (
        re.search(r"\d$", text[:at])
        and re.match(r"\.|\d|_|[xX]|[eE]", rest)
        and text[at : at + 1] == rest[:1]
    ):
        return NUMBER_RULE
    if not rest:
        bracket = "}" if text.count("{") > text.count("}") else "]"
        return f"the file ends within the object; add the missing {bracket}"
    if before and rest[0] in '"{[' or rest[0].isalnum():
        return "a comma is missing before this entry"
    return "Expecting ',' delimiter"


def _suggestion(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.glob("*.json")] if folder.is_dir() else []
    return f"; did you mean {folder / nearest(path.name, names)}?" if names else ""
