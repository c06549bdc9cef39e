"""Parse the command line: config files that run in order, and options that set a key in all of them.

python3 train.py --text "A red mug"
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

from configs.demo import demo_files, demo_paths
from configs.errors import ConfigError, nearest, shown
from configs.json_file import read_object
from configs.overrides import (
    STAGE_MARK,
    STAGES,
    expand_home,
    mesh_written,
    mode_of,
    options_for,
    resolve_chain,
    slug,
    stage_option_names,
)
from configs.parser import build_parser
from configs.published_forms import RENAMED_KEYS, standard_keys, standard_words
from configs.schema import NO_EFFECT, Config, known_keys, parse_config
from configs.validation import check_files, check_inputs, warn_without_effect

logger = logging.getLogger(__name__)

# Matches a value that argparse would read as an option: a negative number or a negative axis such as -y.
NEGATIVE_VALUE = re.compile(r"-(\d|\.\d|inf|nan|Infinity|NaN|[xyz]$)", re.ASCII)

SWITCHES = ("dry-run", "check", "export-only", "quick", "help", "ui")
OTHER_OPTIONS = ("config", "grid", "prompts", "jobs", "executor", "ui_host", "ui_port")


@dataclass(frozen=True)
class Command:
    """A parsed command line.

    paths: the config files; empty for the demo pair. files: the flat values of each config file, in order.
    options: dict from option name to value. An option applies to all configs ("iter") or to one stage
    ("geometry.iter"). quick: whether the demo pair runs with fewer steps. Every other field has the value of
    the option that has the field's name.
    """

    paths: tuple[str, ...]
    files: tuple[dict[str, object], ...]
    options: dict[str, object]
    dry_run: bool
    quick: bool
    grid: tuple[str, ...]
    prompts: str | None
    jobs: int | None
    executor: str

    @property
    def many(self) -> bool:
        """Whether the command produces several results, because it has --grid or --prompts."""
        return bool(self.grid) or self.prompts is not None

    @property
    def source_words(self) -> tuple[str, ...]:
        """The arguments that select the configs: --config with its files, --quick, or no arguments."""
        return ("--config", *self.paths) if self.paths else ("--quick",) * self.quick

    @property
    def shared_out_dir(self) -> object:
        """The out_dir that contains all results of the command. The value is not checked yet."""
        if "out_dir" in self.options:
            return self.options["out_dir"]
        if self.paths:
            return self.files[0].get("out_dir")
        if "text" in self.options:
            name = slug(str(self.options["text"]))
        else:
            name = slug(Path(self.prompts).stem) if self.prompts else "demo"
        return f"{name}-quick" if self.quick else name

    def configs(
        self, options: Mapping[str, object], say: Callable[..., None], warn: Callable[..., None]
    ) -> list[Config]:
        """Apply `options` to the config files and return the checked configs.

        say: function that logs each value that differs from both the file and the options. warn: function
        that logs keys without effect.

        Raises:
            ConfigError: if a value is not allowed. The message is one line with the file or option, the key,
            the value and the allowed values.
        """
        paths, files, names = self.paths, self.files, options
        if not paths:
            folder = str(options.get("out_dir", self.shared_out_dir))
            paths, files = demo_paths(), demo_files(folder, options.get("text"), self.quick)
            options = {key: value for key, value in options.items() if key != "out_dir"}
        _refuse_idle_stages(files, options)
        resolved = resolve_chain(files, options, say)
        found: list[Config] = []
        for path, file, values in zip(paths, files, resolved, strict=True):
            given = _given_names(file, names)
            config = _checked(path, values, given, found)
            found.append(config)
            # With several configs, an option also applies to configs that do not use it. This is not a
            # mistake of the user, so only the keys in the files can cause a warning.
            used = {*file, *given} if len(files) == 1 else set(file)
            keys, flat = known_keys(), config.to_json()
            changed = [key for key in keys if key in used and flat[key] != keys[key].default]
            warn_without_effect(config, changed, warn)
        return found

    def warn_of_keys_without_effect(self) -> None:
        """Log one line with the keys in files and options that are accepted but have no effect."""
        ignored = sorted({key for values in (*self.files, self.options) for key in values} & NO_EFFECT)
        if ignored:
            logger.warning("these keys are accepted and have no effect: %s", ", ".join(ignored))


def load_configs(argv: Sequence[str]) -> list[Config]:
    """Return the checked configs of the command line `argv` (without the program's name) in run order.

    --help prints the help text, and --dry-run reads the input files and prints the configs. Both raise
    SystemExit(0).

    Raises:
        ConfigError: if a value is not allowed. The message is one line with the file or option, the key, the
        value and the allowed values.
        ValueError, OSError: if --dry-run is given and an input file cannot be read.
    """
    command = read_command(argv)
    configs = command.configs(command.options, logger.info, logger.warning)
    command.warn_of_keys_without_effect()
    if command.dry_run:
        check_chain_inputs(configs)
        printed = [config.to_json() for config in configs]
        print_and_leave(printed[0] if len(printed) == 1 else printed)
    return configs


def check_chain_inputs(configs: Sequence[Config]) -> None:
    """Call `check_inputs` for each config of a command.

    A config may read meshes that earlier configs write.
    """
    for number, config in enumerate(configs):
        check_inputs(config, [earlier.run.mesh_path for earlier in configs[:number]])


def print_and_leave(printed: object) -> NoReturn:
    """Print `printed` as JSON on standard output and exit with code 0."""
    sys.stdout.write(json.dumps(printed, indent=2) + "\n")
    raise SystemExit(0)


def _given_names(file: Mapping[str, object], options: Mapping[str, object]) -> dict[str, str]:
    """Return a dict from each key that an option sets for this file to the option ("--geometry.iter")."""
    mode = mode_of(file, options)
    prefix = next((stage + STAGE_MARK for stage in STAGES if STAGES[stage] == mode), "")
    own = options_for(file, options)
    return {key: f"--{prefix}{key}" if prefix + key in options else f"--{key}" for key in own}


def _refuse_idle_stages(files: Sequence[Mapping[str, object]], options: Mapping[str, object]) -> None:
    # Use a list and not a set, because an invalid mode may be unhashable. `parse_config` rejects such a mode
    # later.
    modes = [mode_of(file, options) for file in files]
    for name in options:
        stage, mark, _ = name.partition(STAGE_MARK)
        if mark and STAGES[stage] not in modes:
            raise ConfigError(
                f"command line: --{name} applies to {STAGES[stage]}, and no config has this mode"
            )


def _checked(
    path: str, values: dict[str, object], names: Mapping[str, str], earlier: Sequence[Config]
) -> Config:
    """Return the checked config of a file.

    names: dict from a key to the option that replaced its value. earlier: the previous configs of the
    command.
    """
    config = parse_config(values, path, overridden=names)
    written = [previous.run.mesh_path for previous in earlier]
    if mesh_written(values) in {os.path.abspath(mesh) for mesh in written}:
        raise ConfigError(
            f'{path}: key "out_dir" has the value {shown(config.run.out_dir)}; allowed is a folder that no '
            "earlier config of the same command writes to"
        )

    def place(key: str) -> str:
        return f"{path}, {names[key]} on the command line" if key in names else path

    check_files(config, place, written)
    return config


def read_command(argv: Sequence[str]) -> Command:
    """Parse the command line and read its config files. The values in the files are not checked yet.

    --help prints the help text and raises SystemExit(0).

    Raises:
        ConfigError: if an argument cannot be parsed. The message is one line and contains the argument.
    """
    keys, names = known_keys(), [*known_keys(), *NO_EFFECT, *stage_option_names()]
    argv = standard_words(argv, names)
    # A leading space prevents argparse from interpreting -1e-3 or -y as an option.
    argv = [f" {word}" if NEGATIVE_VALUE.match(word) else word for word in argv]
    found, rest = build_parser().parse_known_args(argv)
    assert not (found.check or found.ui), "train.py handles --check and --ui before it reads a command"
    if rest:
        raise _unknown_option(rest[0].partition("=")[0], names)
    given = {name: _unspaced(words) for name, words in vars(found).items() if isinstance(words, list)}
    options = {name: given[name] for name in given if name in NO_EFFECT and name != "local_rank"}
    for name, words in given.items():
        if key := keys.get(name.rpartition(STAGE_MARK)[2]):
            # Without a value, the option means true. The parser allows this only for true-or-false keys.
            options[name] = key.from_words(words) if words else True
    _refuse_combinations(found, options)
    paths = tuple(found.config or ())
    files = tuple(standard_keys(read_object(os.path.expanduser(path)), path) for path in paths)
    return Command(
        paths=paths,
        files=tuple(expand_home(values) for values in files),
        options=expand_home(options),
        dry_run=found.dry_run,
        quick=found.quick,
        grid=tuple(found.grid or ()),
        prompts=None if found.prompts is None else os.path.expanduser(found.prompts),
        jobs=found.jobs,
        executor=found.executor,
    )


def _unknown_option(option: str, names: Sequence[str]) -> ConfigError:
    known = [name for name in names if (STAGE_MARK in name) == (STAGE_MARK in option)]
    known = [name for name in known if name not in NO_EFFECT]
    known += [*OTHER_OPTIONS, *RENAMED_KEYS, *(name.replace("-", "_") for name in SWITCHES)]
    best = nearest(option, known)
    best = next((name for name in SWITCHES if name.replace("-", "_") == best), best)
    return ConfigError(f"command line: unknown option {shown(option)}; the nearest known one is --{best}")


def _refuse_combinations(found: argparse.Namespace, options: Mapping[str, object]) -> None:
    """Raise ConfigError if two options cannot be combined or if the command specifies nothing to run."""
    many = bool(found.grid) or found.prompts is not None
    if not (found.config or found.quick or found.prompts is not None or "text" in options):
        raise ConfigError(
            'command line: nothing to make; add --text "A red mug" for the demo pair, or --config FILE '
            "(--help lists the rest)"
        )
    if found.config and found.quick:
        raise ConfigError("command line: --quick is for the demo pair; leave --config out, or use --iter")
    if many and found.export_only:
        raise ConfigError("command line: --export-only is for one result; name its configs and --out_dir")
    if not many and (found.jobs is not None or found.executor != "local"):
        option = "--jobs" if found.jobs is not None else "--executor"
        raise ConfigError(f"command line: {option} is for several results; add --grid or --prompts")


def _unspaced(words: Sequence[str]) -> list[str]:
    return [word[1:] if word[:1] == " " and NEGATIVE_VALUE.match(word[1:]) else word for word in words]
