"""The command line: config files to run in order, and any key as an option laid over all of them.

python3 train.py --config geometry.json appearance.json --seed 7 --train_res 256 256
"""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from configs.chain import mesh_written, resolve_chain
from configs.checks import check_files
from configs.errors import ConfigError, nearest, shown
from configs.json_file import read_object
from configs.schema import NO_EFFECT, Config, known_keys, parse_config, section_types

logger = logging.getLogger(__name__)

NEGATIVE_NUMBER = re.compile(r"-(\d|\.\d|inf|nan|Infinity|NaN)", re.ASCII)

RULES = """\
files:
  A config is one JSON object of the keys above; keys that are left out have their defaults. Paths in it are
  relative to the current directory.

options:
  --KEY VALUE is laid over every config of the command and checked as in a file. Lists are JSON or several
  words (--train_res 256 256), no value is null, text may be several words. What has to follow does:
  --text without --out_dir adds the text to each out_dir (pineapple_demo-a-mug): nothing is overwritten;
  --out_dir X for several configs is where the first one writes; the others write to X and the rest of their
  own name (X_appearance);
  a base_mesh that an earlier config of the same command writes is read from its new place;
  --iter smaller than coarse_iter ends the run within its coarse phase.

accepted without effect, for configs that other programs have used:
  {no_effect}
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `ConfigError`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")


def load_configs(argv: Sequence[str]) -> list[Config]:
    """The checked configs that the command line `argv` (without the program's name) asks for, in order.

    --help and --dry-run print and leave with SystemExit(0).

    Raises:
        ConfigError: one line naming file or option, key, value and what is allowed.
    """
    paths, options, dry_run = _read_arguments(argv)
    files = [read_object(path) for path in paths]
    resolved = resolve_chain(files, options)
    configs: list[Config] = []
    for path, file, values in zip(paths, files, resolved, strict=True):
        configs.append(_checked(path, file, values, options, configs))
    ignored = sorted({key for values in resolved for key in values} & NO_EFFECT)
    if ignored:
        logger.warning("these keys are accepted and have no effect: %s", ", ".join(ignored))
    if dry_run:
        printed = [config.to_json() for config in configs]
        sys.stdout.write(json.dumps(printed[0] if len(printed) == 1 else printed, indent=2) + "\n")
        raise SystemExit(0)
    return configs


def _checked(path: str, file: dict, values: dict, options: dict, earlier: Sequence[Config]) -> Config:
    config = parse_config(values, path, overridden=options)
    written = [previous.run.mesh_path for previous in earlier]
    if mesh_written(values) in {os.path.abspath(mesh) for mesh in written}:
        raise ConfigError(
            f'{path}: key "out_dir" has the value {shown(config.run.out_dir)}; allowed is a folder that no '
            "earlier config of the same command writes to"
        )

    def place(key: str) -> str:
        return f"{path}, --{key} on the command line" if key in options else path

    check_files(config.to_json(), place, written)
    return config


def _read_arguments(argv: Sequence[str]) -> tuple[list[str], dict[str, object], bool]:
    """The config files, the values of the keys given as options, and whether it is a dry run."""
    keys = known_keys()
    # A leading space keeps argparse from taking -1e-3 for an option.
    argv = [f" {word}" if NEGATIVE_NUMBER.match(word) else word for word in argv]
    parser = build_parser()
    found, rest = parser.parse_known_args(argv)
    assert not found.check, "train.py answers --check before anything else"
    if rest:
        option = rest[0].partition("=")[0]
        known = [*keys, *NO_EFFECT, "config", "dry_run", "check", "help"]
        best = nearest(option, known).replace("dry_run", "dry-run")
        raise ConfigError(f"command line: unknown option {shown(option)}; the nearest known one is --{best}")
    if not found.config:
        raise ConfigError(
            "command line: --config is missing; name at least one config file (--help lists the rest)"
        )
    given = {key: words for key, words in vars(found).items() if words is not None}
    options = {key: keys[key].from_words(_unspaced(words)) for key, words in given.items() if key in keys}
    ignored = {key: words for key, words in given.items() if key in NO_EFFECT and key != "local_rank"}
    return found.config, {**options, **ignored}, found.dry_run


def _unspaced(words: Sequence[str]) -> list[str]:
    return [word[1:] if word[:1] == " " and NEGATIVE_NUMBER.match(word[1:]) else word for word in words]


def build_parser() -> argparse.ArgumentParser:
    """The parser, with every key of the sections as an option."""
    parser = _Parser(
        prog=Path(sys.argv[0]).name or "train.py",
        usage="%(prog)s --config FILE [FILE …] [--KEY VALUE …] [--dry-run] [--check]",
        description="From text to a textured mesh: runs the given configs in order.",
        epilog=RULES.format(no_effect=", ".join(sorted(NO_EFFECT))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", nargs="+", action="extend", metavar="FILE", help="JSON files, run in order"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configs as JSON and leave")
    parser.add_argument(
        "--check",
        action="store_true",
        help="print what this machine has, what is missing and how to mend it; checks the configs too",
    )
    groups = {name: parser.add_argument_group(_title(name, kind)) for name, kind in section_types().items()}
    for key in known_keys().values():
        default = "required" if key.required else f"default {json.dumps(key.default, ensure_ascii=False)}"
        text = f"{key.description}; {key.allowed} ({default})".replace("%", "%%")
        groups[key.sections[0]].add_argument(f"--{key.name}", nargs="+", metavar="VALUE", help=text)
    for name in sorted(NO_EFFECT):
        # The launcher of torch.distributed passes --local-rank=N.
        names = ("--local-rank", "--local_rank") if name == "local_rank" else (f"--{name}",)
        parser.add_argument(*names, dest=name, nargs="*", help=argparse.SUPPRESS)
    return parser


def _title(name: str, kind: type) -> str:
    summary = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return f"{name.replace('_', ' ')}: {summary}"
