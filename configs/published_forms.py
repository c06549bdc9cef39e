"""Convert options and keys of the published Fantasia3D program to those of this program."""

import re
from collections.abc import Collection, Mapping, Sequence

from configs.errors import ConfigError, shown

SHORT_OPTIONS = {
    "-i": "iter",
    "-b": "batch",
    "-s": "spp",
    "-l": "layers",
    "-r": "train_res",
    "-dr": "preview_res",
    "-tr": "texture_res",
    "-si": "save_interval",
    "-vi": "video_interval",
    "-mr": "min_roughness",
    "-mip": "custom_mip",
    "-rt": "random_textures",
    "-bg": "train_background",
    "-o": "out_dir",
    "-rm": "ref_mesh",
    "-bm": "base_mesh",
}
RENAMED_KEYS = {"display_res": "preview_res"}


def standard_words(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """Convert every option that sets a key to the form --key, and return the command line.

    For example, -i, --train-res and --display_res become --iter, --train_res and --preview_res. Other
    arguments are not changed. names: the known option names without dashes.
    """
    return [_standard_word(word, names) for word in argv]


def _standard_word(word: str, names: Collection[str]) -> str:
    option, equals, value = word.partition("=")
    if option in SHORT_OPTIONS:
        return f"--{SHORT_OPTIONS[option]}{equals}{value}"
    if not re.fullmatch(r"--[\w.-]+", option, re.ASCII):
        return word
    name = option[2:].replace("-", "_")
    name = RENAMED_KEYS.get(name, name)
    return f"--{name}{equals}{value}" if name in names else word


def standard_keys(values: Mapping[str, object], source: str) -> dict[str, object]:
    """Return the flat values of a file with published key names replaced by those of this program.

    Raises:
        ConfigError: if a key and its published name have different values.
    """
    found = {key: value for key, value in values.items() if key not in RENAMED_KEYS}
    for old, new in RENAMED_KEYS.items():
        if old in values and found.setdefault(new, values[old]) != values[old]:
            raise ConfigError(
                f"{source}: keys {shown(old)} (value {shown(values[old])}) and {shown(new)} (value "
                f"{shown(values[new])}) mean the same; keep one of them"
            )
    return found
