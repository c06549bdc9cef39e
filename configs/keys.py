"""The flat keys of the JSON files, derived from the config sections.

A section is a pydantic dataclass in the module of the component that uses it. A key is the name of a field,
or the field's alias if it has one. If two sections have the same key, both get the value.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from pydantic import TypeAdapter

NUMBER_LIMITS = (
    ("minimum", ">="),
    ("exclusiveMinimum", ">"),
    ("maximum", "<="),
    ("exclusiveMaximum", "<"),
)


@dataclass(frozen=True)
class Key:
    """A config key: the sections that contain it, the JSON schema of its value, its default and meaning."""

    name: str
    sections: tuple[str, ...]
    schema: Mapping[str, object]
    required: bool
    default: object
    description: str

    @property
    def allowed(self) -> str:
        """The allowed values as text."""
        return allowed(self.schema)

    def admits(self, kind: str) -> bool:
        """Return whether values of this JSON type are allowed ("null", "boolean", "string", "array", …)."""
        return any(option.get("type") == kind for option in self.schema.get("anyOf", (self.schema,)))

    def from_words(self, words: Sequence[str]) -> object:
        """Convert command-line arguments to the value of this key.

        Arguments that cannot be converted to an allowed type are returned as text, which `parse_config`
        rejects.
        """
        if self.admits("null") and list(words) == ["null"]:
            return None
        if self.admits("string"):
            return " ".join(words)
        if self.admits("boolean"):
            word = " ".join(words)
            return {"true": True, "false": False}.get(word.lower(), word)
        one = len(words) == 1 and (self.admits("number") or words[0].lstrip().startswith("["))
        if self.admits("array") and not one:
            return [_from_json(word) for word in words]
        return _from_json(words[0]) if len(words) == 1 else list(words)


def _from_json(word: str) -> object:
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        pass
    # Accept .5 and 2. as numbers, also within lists. They are not valid JSON but common on a command line.
    if re.fullmatch(r"\[[\d\s.,e+-]*\]", word, re.I | re.ASCII):
        return [_from_json(part.strip()) for part in word[1:-1].split(",")]
    return float(word) if re.fullmatch(r"[+-]?(\d+\.|\.\d+)(e[+-]?\d+)?", word, re.I | re.ASCII) else word


@cache
def adapter(section: type) -> TypeAdapter:
    """Return the validator of a section. Validators are cached, because building one is slow."""
    return TypeAdapter(section)


def keys_of(sections: Mapping[str, type]) -> dict[str, Key]:
    """Return a dict from name to key for all sections, in the order of the sections and their fields."""
    keys: dict[str, Key] = {}
    for section, kind in sections.items():
        schema = adapter(kind).json_schema(by_alias=True)
        for name, field in schema["properties"].items():
            if name in keys:
                known = keys[name]
                keys[name] = Key(**{**vars(known), "sections": (*known.sections, section)})
                continue
            keys[name] = Key(
                name,
                (section,),
                field,
                required=name in schema.get("required", ()),
                default=field.get("default"),
                description=field.get("description", ""),
            )
    return keys


def allowed(schema: Mapping[str, object]) -> str:
    """Describe the values that a JSON schema allows.

    Examples: "an integer >= 1", "2 numbers, each > 0 and < 180", "one of 0, 1, 2".
    """
    if "allowed" in schema:
        return str(schema["allowed"])
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        return _allowed_array(schema)
    limits = " and ".join(f"{sign} {_plain(schema[name])}" for name, sign in NUMBER_LIMITS if name in schema)
    noun = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}
    text = noun.get(kind, "text that is not empty" if schema.get("minLength") else "text")
    return f"{text} {limits}".strip()


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _allowed_array(schema: Mapping[str, object]) -> str:
    items = list(schema.get("prefixItems", ())) or [schema.get("items", {})]
    fewest, most = schema.get("minItems"), schema.get("maxItems")
    count = f"{fewest} " if fewest == most and fewest is not None else "a list of "
    each = [allowed(item) for item in items]
    noun = {"an": "integers", "a": "numbers"}
    if len(set(each)) > 1:
        return f"{count}values: " + ", ".join(each)
    article, _, rest = each[0].partition(" ")
    if article not in noun:
        return f"{count}values, each {each[0]}"
    limits = rest.partition(" ")[2]
    return count + noun[article] + (f", each {limits}" if limits else "")
