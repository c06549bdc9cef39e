"""The trials of a sweep and their records on disk.

A trial is one call of train.py: the command's configs with the command's options and the values of the trial.
The trial's folder is in the out_dir of the first config and has the name of the trial:
out/pineapple_demo/seed=1. For a second config, the suffix of its out_dir is appended:
out/pineapple_demo/seed=1_appearance. The state of a trial is stored in its folder, so several processes can
work on the same sweep, and each of them can write the overview page.
"""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.cli import Command, check_chain_inputs, print_and_leave, read_command
from configs.errors import ConfigError, shown
from configs.overrides import expand_home
from configs.run import output_folder
from configs.schema import NO_EFFECT, Config, known_keys
from render.image_io.atomic import write_text
from training.input_files import fingerprint_inputs
from training.sweep.grid import choices, read_prompts

logger = logging.getLogger(__name__)

RECORD_FILE, CONSOLE_FILE, PAGE_FILE = "trial.json", "console.log", "index.html"
STATES = QUEUED, RUNNING, DONE, FAILED, STOPPED = "queued", "running", "done", "failed", "stopped"


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    overrides: the config keys and values that differ between trials. argv: the arguments of train.py that run
    only this trial.
    """

    name: str
    overrides: Mapping[str, object]
    configs: tuple[Config, ...]
    argv: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The output folder of the first config. It also contains trial.json and console.log."""
        return self.configs[0].run.output_folder


@dataclass(frozen=True)
class Sweep:
    """The trials of a command.

    folder: the common parent of the trials' folders. jobs: number of concurrent runs; None selects the
    default.
    """

    command: str
    folder: Path
    trials: tuple[Trial, ...]
    jobs: int | None
    executor: str


@dataclass(frozen=True)
class Record:
    """The state of a trial, the reason of its failure in one line, and its duration in seconds."""

    state: str = QUEUED
    error: str | None = None
    seconds: float = 0.0


def load_sweep(argv: Sequence[str]) -> Sweep | None:
    """Return the trials of a command line, or None if the command is not a sweep. All configs are checked.

    --help and --dry-run print and raise SystemExit(0).

    Raises:
        ConfigError: if a config is not valid. The message is one line with file, option or trial, key, value
            and the allowed values.
    """
    command = read_command(argv)
    if not command.many:
        return None
    prompts = read_prompts(command.prompts) if command.prompts is not None else []
    if prompts and "text" in command.options:
        raise ConfigError("command line: --text and --prompts set the text; keep one of them")
    twice = sorted(set(choices(command.grid, ())[0].overrides) & command.options.keys())
    if twice:
        raise ConfigError(
            f"command line: --{twice[0]} and --grid {twice[0]}=… set the same key; keep one of them"
        )
    trials = tuple(
        _trial(command, choice.name, choice.overrides) for choice in choices(command.grid, prompts)
    )
    _refuse_shared_folders(trials)
    command.warn_of_keys_without_effect()
    if command.dry_run:
        for trial in trials:
            check_chain_inputs(trial.configs)
        print_and_leave(
            [
                {"trial": trial.name, "configs": [config.to_json() for config in trial.configs]}
                for trial in trials
            ]
        )
    folder = output_folder(str(command.shared_out_dir))
    return Sweep(shlex.join(("train.py", *argv)), folder, trials, command.jobs, command.executor)


def is_done(trial: Trial) -> bool:
    """Return whether the trial has finished with the same settings and its meshes exist."""
    record = _read(trial)
    return (
        record.get("state") == DONE
        and all(config.run.mesh_path.is_file() for config in trial.configs)
        and _agree(record.get("settings"), _settings(trial))
    )


def _agree(then: object, now: Sequence[Mapping[str, object]]) -> bool:
    """Return whether the settings are equal. A missing key counts as its default value."""
    if not (isinstance(then, list) and all(isinstance(values, dict) for values in then)):
        return False
    defaults = {name: key.default for name, key in known_keys().items()}
    return [{**defaults, **values} for values in then] == [{**defaults, **values} for values in now]


def read_record(trial: Trial) -> Record:
    """Return the record in the trial's folder, or the default record if it does not exist or is damaged."""
    record = _read(trial)
    state, error, seconds = record.get("state"), record.get("error"), record.get("seconds")
    if state not in STATES:
        return Record()
    known_seconds = float(seconds) if isinstance(seconds, int | float) else 0.0
    return Record(state, error if isinstance(error, str) else None, known_seconds)


def write_record(trial: Trial, record: Record) -> None:
    """Write the record to the trial's folder. If the trial is done, add the settings for `is_done`."""
    done = {"settings": _settings(trial)} if record.state == DONE else {}
    write_text(trial.folder / RECORD_FILE, json.dumps({**asdict(record), **done}, indent=1) + "\n")


def _read(trial: Trial) -> dict[str, object]:
    try:
        known = json.loads((trial.folder / RECORD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        logger.warning(
            "warning: %s is damaged and is ignored; the trial runs again", trial.folder / RECORD_FILE
        )
        return {}
    return known


def _settings(trial: Trial) -> list[dict[str, object]]:
    """Return all keys of each config and the fingerprints of its input files."""
    return [{**config.to_json(), **fingerprint_inputs(config)} for config in trial.configs]


def _trial(command: Command, name: str, overrides: Mapping[str, object]) -> Trial:
    options = expand_home({**command.options, **overrides})
    shared = command.shared_out_dir
    if isinstance(shared, str) and shared:
        options["out_dir"] = f"{shared.rstrip('/')}/{name}"
    try:
        configs = tuple(command.configs(options, logger.debug, logger.debug))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    options = {key: value for key, value in options.items() if key not in NO_EFFECT}
    return Trial(name, overrides, configs, (*command.source_words, *map(_argument, options.items())))


def _argument(option: tuple[str, object]) -> str:
    """Return an option as one command-line argument that is parsed to the same value."""
    key, value = option
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def _refuse_shared_folders(trials: Sequence[Trial]) -> None:
    owners: dict[Path, str] = {}
    for trial in trials:
        for config in trial.configs:
            other = owners.setdefault(config.run.output_folder.absolute(), trial.name)
            if other != trial.name:
                raise ConfigError(
                    f"command line: {shown(other)} and {shown(trial.name)} would both write to "
                    f"{config.run.output_folder}; rename one of the configs' out_dir"
                )
