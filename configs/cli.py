"""The command line: config files to run in order, and any key as an option that overrides all of them.

python3 train.py --config geometry.json appearance.json --seed 7 --train_res 256 256
"""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from configs.errors import ConfigError, nearest, shown
from configs.json_file import read_object
from configs.overrides import expand_home, mesh_written, resolve_chain
from configs.schema import NO_EFFECT, Config, known_keys, parse_config, section_types
from configs.validation import check_files, check_inputs, warn_without_effect

logger = logging.getLogger(__name__)

NEGATIVE_NUMBER = re.compile(r"-(\d|\.\d|inf|nan|Infinity|NaN)", re.ASCII)

OPTIONS = ("config", "grid", "prompts", "jobs", "executor")

RULES = """\
files:
  A config is one JSON object of the keys above; keys that are left out have their defaults. Paths in it are
  relative to the current directory; ~ is the home folder.

options:
  --KEY VALUE is laid over every config of the command and checked as in a file. Lists are JSON or several
  words (--train_res 256 256), no value is null, text may be several words. What has to follow does:
  --text without --out_dir adds the text to each out_dir (pineapple_demo-a-mug): nothing is overwritten;
  --out_dir X for several configs is where the first one writes; the others write to X and the rest of their
  own name (X_appearance);
  a base_mesh that an earlier config of the same command writes is read from its new place;
  --iter smaller than coarse_iter ends the run within its coarse phase.

many results:
  --grid seed=1,2 sdf_init_shape_scale="[.56,.74,.56],[.7,.7,.7]" runs every combination of the values, each
  in a folder of its own in the first config's out_dir (seed=1_sdf_init_shape_scale=0.56,0.74,0.56);
  --prompts FILE runs every line of FILE as the text. Both together make the product.
  All configs are checked before the first run starts. The same command again skips what is done, goes on
  with what was interrupted and tries again what failed. An overview is in index.html of that out_dir.
  Runs are spread over all visible GPUs; under torchrun each rank takes its part.

accepted without effect, for configs that other programs have used:
  {no_effect}
"""


@dataclass(frozen=True)
class Command:
    """A parsed command line: config files, the options that override them, and how to run the results."""

    paths: tuple[str, ...]
    files: tuple[dict[str, object], ...]
    options: dict[str, object]
    dry_run: bool
    grid: tuple[str, ...]
    prompts: str | None
    jobs: int | None
    executor: str

    @property
    def many(self) -> bool:
        """Whether it asks for several results (--grid, --prompts)."""
        return bool(self.grid) or self.prompts is not None

    def configs(self, options: Mapping[str, object], say: Callable[..., None]) -> list[Config]:
        """The files with `options` applied, checked. `say` logs the changes that follow from the options.

        Raises:
            ConfigError: one line naming file or option, key, value and what is allowed.
        """
        resolved = resolve_chain(self.files, options, say)
        found: list[Config] = []
        for path, file, values in zip(self.paths, self.files, resolved, strict=True):
            config = _checked(path, values, options, found)
            found.append(config)
            # An option applies to every config of the command; some of them may not use it.
            given = {*file, *options} if len(self.files) == 1 else set(file)
            keys, flat = known_keys(), config.to_json()
            changed = [key for key in keys if key in given and flat[key] != keys[key].default]
            warn_without_effect(config, changed, say)
        return found

    def warn_of_keys_without_effect(self) -> None:
        """Log the keys of `NO_EFFECT` that the command uses, in one line."""
        ignored = sorted({key for values in (*self.files, self.options) for key in values} & NO_EFFECT)
        if ignored:
            logger.warning("these keys are accepted and have no effect: %s", ", ".join(ignored))


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `ConfigError`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")


def load_configs(argv: Sequence[str]) -> list[Config]:
    """The checked configs that the command line `argv` (without the program's name) asks for, in order.

    --help and --dry-run print and exit with SystemExit(0). --dry-run reads the input files, too.

    Raises:
        ConfigError: one line naming file or option, key, value and what is allowed.
        ValueError, OSError: with --dry-run, an input file cannot be read.
    """
    command = read_command(argv)
    configs = command.configs(command.options, logger.warning)
    command.warn_of_keys_without_effect()
    if command.dry_run:
        check_chain_inputs(configs)
        printed = [config.to_json() for config in configs]
        print_and_leave(printed[0] if len(printed) == 1 else printed)
    return configs


def check_chain_inputs(configs: Sequence[Config]) -> None:
    """`check_inputs` for the configs of a command, in order."""
    for number, config in enumerate(configs):
        check_inputs(config, [earlier.run.mesh_path for earlier in configs[:number]])


def print_and_leave(printed: object) -> NoReturn:
    """Print the resolved configs of --dry-run and exit."""
    sys.stdout.write(json.dumps(printed, indent=2) + "\n")
    raise SystemExit(0)


def _checked(
    path: str, values: dict[str, object], options: Mapping[str, object], earlier: Sequence[Config]
) -> Config:
    config = parse_config(values, path, overridden=options)
    written = [previous.run.mesh_path for previous in earlier]
    if mesh_written(values) in {os.path.abspath(mesh) for mesh in written}:
        raise ConfigError(
            f'{path}: key "out_dir" has the value {shown(config.run.out_dir)}; allowed is a folder that no '
            "earlier config of the same command writes to"
        )

    def place(key: str) -> str:
        return f"{path}, --{key} on the command line" if key in options else path

    check_files(config, place, written)
    return config


def read_command(argv: Sequence[str]) -> Command:
    """The command line and the files that it names, read and not yet checked; --help prints and exits.

    Raises:
        ConfigError: one line naming what cannot be understood.
    """
    keys = known_keys()
    # argparse would take -1e-3 for an option; a leading space prevents it.
    argv = [f" {word}" if NEGATIVE_NUMBER.match(word) else word for word in argv]
    parser = build_parser()
    found, rest = parser.parse_known_args(argv)
    assert not found.check, "train.py handles --check before this"
    if rest:
        option = rest[0].partition("=")[0]
        known = [*keys, *OPTIONS, "dry_run", "check", "export_only", "help"]
        best = nearest(option, known).replace("dry_run", "dry-run").replace("export_only", "export-only")
        raise ConfigError(f"command line: unknown option {shown(option)}; the nearest known one is --{best}")
    if not found.config:
        raise ConfigError(
            "command line: --config is missing; name at least one config file (--help lists the rest)"
        )
    given = {key: words for key, words in vars(found).items() if words is not None}
    options = {key: keys[key].from_words(_unspaced(words)) for key, words in given.items() if key in keys}
    ignored = {key: words for key, words in given.items() if key in NO_EFFECT and key != "local_rank"}
    command = Command(
        paths=tuple(found.config),
        files=tuple(expand_home(read_object(os.path.expanduser(path))) for path in found.config),
        options=expand_home({**options, **ignored}),
        dry_run=found.dry_run,
        grid=tuple(found.grid or ()),
        prompts=None if found.prompts is None else os.path.expanduser(found.prompts),
        jobs=found.jobs,
        executor=found.executor,
    )
    if command.many and found.export_only:
        raise ConfigError("command line: --export-only is for one result; name its configs and --out_dir")
    if not command.many and (command.jobs is not None or command.executor != "local"):
        option = "--jobs" if command.jobs is not None else "--executor"
        raise ConfigError(f"command line: {option} is for several results; add --grid or --prompts")
    return command


def _unspaced(words: Sequence[str]) -> list[str]:
    return [word[1:] if word[:1] == " " and NEGATIVE_NUMBER.match(word[1:]) else word for word in words]


def build_parser() -> argparse.ArgumentParser:
    """The parser, with every key of the sections as an option."""
    parser = _Parser(
        prog=Path(sys.argv[0]).name or "train.py",
        usage="%(prog)s --config FILE [FILE …] [--KEY VALUE …] [--grid KEY=VALUE,VALUE …] [--prompts FILE] "
        "[--jobs N] [--executor ENGINE] [--export-only] [--dry-run] [--check]",
        description="From text to a textured mesh: runs the given configs in order.",
        epilog=RULES.format(no_effect=", ".join(sorted(NO_EFFECT))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", nargs="+", action="extend", metavar="FILE", help="JSON files, run in order"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="read all input files, print the resolved configs and exit"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="print what this machine has, what is missing and how to install it; checks the configs too",
    )
    parser.add_argument(
        "--export-only",
        action="store_true",
        help="write mesh and textures again from the last checkpoint, at another texture_res or export_faces",
    )
    _add_many(parser)
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


def _add_many(parser: argparse.ArgumentParser) -> None:
    many = parser.add_argument_group("many results: a folder each, and a page that shows them all")
    many.add_argument(
        "--grid", nargs="+", action="extend", metavar="KEY=VALUE,VALUE", help="run every combination"
    )
    many.add_argument("--prompts", metavar="FILE", help="run every line as the text; # begins a comment")
    many.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="runs at a time, spread over the visible GPUs, several on each if there are more (default one "
        "for each GPU, one on a CPU)",
    )
    many.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="local is this machine; ray runs them with Ray (optional package), on several machines",
    )


def _positive(word: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,5}", word, re.ASCII):
        raise argparse.ArgumentTypeError(f"{shown(word)} is not allowed; allowed is an integer >= 1")
    return int(word)


def _title(name: str, kind: type) -> str:
    summary = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return f"{name.replace('_', ' ')}: {summary}"
