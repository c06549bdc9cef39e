"""Many results from one command: the product of the values of a grid and of a list of prompts, with names.

Pure functions of words; which folders are written and what runs where is for training/sweep/trials.py to say.
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
# The trial's own slot is told from its name.
NOT_IN_GRIDS = {"out_dir"}
OPENING, CLOSING = "[{", "]}"


@dataclass(frozen=True)
class Choice:
    """One trial of the grid: the name of its folder, and the keys that it lays over the configs."""

    name: str
    changed: Mapping[str, object]


def choices(grid: Sequence[str], prompts: Sequence[str]) -> list[Choice]:
    """The product of the prompts and of the axes KEY=VALUE,VALUE …; the last axis changes fastest.

    Names are made of a slug of the prompt and of KEY=VALUE, joined by "_": a-mug_seed=2. A trial keeps its
    name, and so its folder, when prompts or values are added.

    Raises:
        ConfigError: an axis that cannot be read, or two trials that would share a name.
    """
    axes = dict(read_axis(word) for word in _once_each(grid))
    if prompts:
        if "text" in axes:
            raise ConfigError('command line: --grid: key "text" is given by --prompts already; name one')
        axes = {"text": list(prompts), **axes}
    found: dict[str, Choice] = {}
    for values in itertools.product(*axes.values()):
        changed = dict(zip(axes, values, strict=True))
        trial = Choice(_name(changed), changed)
        twin = found.setdefault(trial.name, trial)
        if twin is not trial:
            raise ConfigError(
                f"command line: {_differing(twin, trial)} would share the folder {shown(trial.name)}; "
                "keep one of them"
            )
    return list(found.values())


def read_axis(word: str) -> tuple[str, list[object]]:
    """'seed=1,2,3' → ("seed", [1, 2, 3]); lists in brackets and quoted text keep their commas.

    The values are read as those of --KEY; whether the key allows them is for `parse_config` to say.

    Raises:
        ConfigError: no such key, one that no grid can have, or no value.
    """
    name, sign, text = word.partition("=")
    keys = {key: value for key, value in known_keys().items() if key not in NOT_IN_GRIDS}
    if name in NOT_IN_GRIDS:
        raise ConfigError(
            f"command line: --grid: key {shown(name)} cannot vary: every trial has a folder of its own in it"
        )
    if name not in keys:
        raise ConfigError(
            f"command line: --grid: unknown key {shown(name)}; the nearest known key is "
            f"{shown(nearest(name, keys))}"
        )
    pieces = [piece.strip() for piece in split_values(text)]
    if not sign or not all(pieces):
        raise ConfigError(
            f"command line: --grid: {shown(word)} has no value or an empty one; write KEY=VALUE,VALUE"
        )
    return name, [keys[name].from_words([_unquoted(piece)]) for piece in pieces]


def split_values(text: str) -> Iterator[str]:
    """The parts between commas that stand outside brackets, braces and double quotes."""
    depth, quoted, start = 0, False, 0
    for slot, character in enumerate(text):
        quoted ^= character == '"'
        if not quoted:
            depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0 and not quoted:
            yield text[start:slot]
            start = slot + 1
    yield text[start:]


def read_prompts(path: str) -> list[str]:
    """The lines of a file, without blank ones and those that begin with #.

    Raises:
        ConfigError: the file is missing, no text, empty, or has a line twice.
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
            raise ConfigError(f"{path}, line {number}: {shown(prompt)} is in line {seen[prompt]} already")
        seen[prompt] = number
    if not seen:
        raise ConfigError(f"command line: --prompts: {path} holds no prompt; write one a line")
    return list(seen)


def value_name(value: object) -> str:
    """A value as part of a folder name: 1e-3 → 0.001, [0.5, 1] → 0.5,1, "a b.hdr" → a-b-hdr-…"""
    if isinstance(value, str):
        return value if re.fullmatch(r"\w[\w.-]{0,39}", value, re.ASCII) else slug(value)
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return ",".join(value_name(part) for part in value)
    text = json.dumps(value)
    return text if re.fullmatch(r"[\w.+-]+", text, re.ASCII) else slug(text)


def _name(changed: Mapping[str, object]) -> str:
    parts = [
        slug(str(value)) if key == "text" else f"{key}={value_name(value)}" for key, value in changed.items()
    ]
    name = "_".join(parts)
    if len(name) <= NAME_LENGTH:
        return name
    return f"{name[:NAME_LENGTH]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _unquoted(piece: str) -> str:
    """Text in double quotes without them."""
    if len(piece) < 2 or piece[0] != '"' or piece[-1] != '"':
        return piece
    try:
        return json.loads(piece)
    except ValueError:
        return piece


def _once_each(grid: Sequence[str]) -> Sequence[str]:
    names = [word.partition("=")[0] for word in grid]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"command line: --grid: key {shown(twice)} is given twice; join its values by commas"
        )
    return grid


def _differing(one: Choice, other: Choice) -> str:
    key = next(
        (key for key in one.changed if one.changed[key] != other.changed[key]), next(iter(one.changed))
    )
    return f"{key} = {shown(one.changed[key])} and {key} = {shown(other.changed[key])}"
