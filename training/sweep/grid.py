"""Parse --grid and --prompts into all combinations of their values, each with a folder name.

This module only determines values and names. training/sweep/trials.py determines the output folders.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError, nearest, shown
from configs.overrides import slug
from configs.schema import known_keys

NAME_LENGTH = 150
# out_dir is not allowed in a grid, because the name of a trial determines its out_dir.
NOT_IN_GRIDS = {"out_dir"}
OPENING, CLOSING = "[{", "]}"


@dataclass(frozen=True)
class Choice:
    """One combination of values: its folder name and the values of its config keys."""

    name: str
    overrides: Mapping[str, object]


def choices(grid: Sequence[str], prompts: Sequence[str]) -> list[Choice]:
    """Return all combinations of the prompts and of the axes KEY=VALUE,VALUE …; the last axis varies fastest.

    The name of a combination consists of the slug of its prompt and the KEY=VALUE parts, joined by "_":
    a-mug_seed=2. The name and the folder of a combination do not change when prompts or values are added to
    the command.

    Raises:
        ConfigError: if an axis cannot be parsed, or if two combinations have the same name.
    """
    axes = dict(read_axis(argument) for argument in _unique_keys(grid))
    if prompts:
        if "text" in axes:
            raise ConfigError('command line: --grid: --prompts already sets the key "text"; use one of them')
        axes = {"text": list(prompts), **axes}
    found: dict[str, Choice] = {}
    for values in itertools.product(*axes.values()):
        overrides = dict(zip(axes, values, strict=True))
        choice = Choice(_name(overrides), overrides)
        other = found.setdefault(choice.name, choice)
        if other is not choice:
            raise ConfigError(
                f"command line: {_difference(other, choice)} would share the folder {shown(choice.name)}; "
                "keep one of them"
            )
    return list(found.values())


def read_axis(argument: str) -> tuple[str, list[object]]:
    """Parse an axis: 'seed=1,2,3' → ("seed", [1, 2, 3]).

    Commas inside brackets, braces or double quotes do not separate values. The values are parsed like those
    of --KEY. `parse_config` checks their ranges.

    Raises:
        ConfigError: if the key is unknown or not allowed in a grid, or if a value is missing.
    """
    name, sign, text = argument.partition("=")
    keys = {key: value for key, value in known_keys().items() if key not in NOT_IN_GRIDS}
    if name in NOT_IN_GRIDS:
        raise ConfigError(
            f"command line: --grid: key {shown(name)} cannot vary: it contains the folders of all trials"
        )
    if name not in keys:
        raise ConfigError(
            f"command line: --grid: unknown key {shown(name)}; the nearest known key is "
            f"{shown(nearest(name, keys))}"
        )
    pieces = [piece.strip() for piece in split_values(text)]
    if not sign or not all(pieces):
        raise ConfigError(
            f"command line: --grid: {shown(argument)} has no value or an empty one; write KEY=VALUE,VALUE"
        )
    return name, [keys[name].from_words([_unquoted(piece)]) for piece in pieces]


def split_values(text: str) -> Iterator[str]:
    """Split at the commas outside brackets, braces and double quotes."""
    depth, quoted, start = 0, False, 0
    for position, character in enumerate(text):
        quoted ^= character == '"'
        if not quoted:
            depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0 and not quoted:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def read_prompts(path: str) -> list[str]:
    """Return the prompts in a file: its lines except blank lines and lines that begin with #.

    Raises:
        ConfigError: if the file cannot be read as UTF-8 text, contains no prompt, or contains a prompt twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
        raise ConfigError(f"command line: --prompts: {path} cannot be read: {reason}") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        prompt = " ".join(line.split())
        if not prompt or prompt.startswith("#"):
            continue
        if prompt in seen:
            raise ConfigError(f"{path}, line {number}: {shown(prompt)} is already in line {seen[prompt]}")
        seen[prompt] = number
    if not seen:
        raise ConfigError(f"command line: --prompts: {path} contains no prompt; write one prompt per line")
    return list(seen)


def value_name(value: object) -> str:
    """Convert a value to a part of a folder name: 1e-3 → 0.001, [0.5, 1] → 0.5,1, "a b.hdr" → a-b-hdr-…"""
    if isinstance(value, str):
        return value if re.fullmatch(r"\w[\w.-]{0,39}", value, re.ASCII) else slug(value)
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return ",".join(value_name(part) for part in value)
    text = json.dumps(value)
    return text if re.fullmatch(r"[\w.+-]+", text, re.ASCII) else slug(text)


def _name(overrides: Mapping[str, object]) -> str:
    parts = [
        slug(str(value)) if key == "text" else f"{key}={value_name(value)}"
        for key, value in overrides.items()
    ]
    name = "_".join(parts)
    if len(name) <= NAME_LENGTH:
        return name
    return f"{name[:NAME_LENGTH]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _unquoted(piece: str) -> str:
    """Return a value without the double quotes around it."""
    if len(piece) < 2 or piece[0] != '"' or piece[-1] != '"':
        return piece
    try:
        return json.loads(piece)
    except ValueError:
        return piece


def _unique_keys(grid: Sequence[str]) -> Sequence[str]:
    names = [argument.partition("=")[0] for argument in grid]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"command line: --grid: key {shown(twice)} is given twice; join its values with commas"
        )
    return grid


def _difference(first: Choice, second: Choice) -> str:
    one, other = first.overrides, second.overrides
    key = next((key for key in one if one[key] != other[key]), next(iter(one)))
    return f"{key} = {shown(one[key])} and {key} = {shown(other[key])}"
