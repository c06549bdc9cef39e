"""Many results of one command: its trials, and what is known of each on the disk.

A trial is what one run of train.py would do: the command's configs under the options and the trial's own
values. Its folder is named after it in the first config's out_dir: out/pineapple_demo/seed=1, and for a
second config what its own name adds, out/pineapple_demo/seed=1_appearance. All that is known of a trial is in
its folder, so that several processes can share the work and any of them can write the page.
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
from training.resume import settings
from training.sweep.grid import choices, read_prompts

logger = logging.getLogger(__name__)

RECORD_FILE, CONSOLE_FILE, PAGE_FILE = "trial.json", "console.log", "index.html"
QUEUED, RUNNING, DONE, FAILED, STOPPED = "queued", "running", "done", "failed", "stopped"


@dataclass(frozen=True)
class Trial:
    """One result: its name, the keys that make it differ, its configs, and train.py's words for it alone."""

    name: str
    changed: Mapping[str, object]
    configs: tuple[Config, ...]
    words: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The first config's folder, which also holds the record and what the run printed."""
        return self.configs[0].run.output_folder


@dataclass(frozen=True)
class Sweep:
    """The trials of a command, the folder that they share, and how they are to be run."""

    command: str
    folder: Path
    trials: tuple[Trial, ...]
    jobs: int | None
    executor: str


@dataclass(frozen=True)
class Record:
    """What is known of a trial: its state, the line that tells why it failed, the seconds that it took."""

    state: str = QUEUED
    error: str | None = None
    seconds: float = 0.0


def load_sweep(argv: Sequence[str]) -> Sweep | None:
    """The trials that the command line asks for, all configs checked; None where it asks for one result.

    --help and --dry-run print and leave with SystemExit(0).

    Raises:
        ConfigError: one line naming file, option or trial, key, value and what is allowed.
    """
    command = read_command(argv)
    if not command.many:
        return None
    prompts = read_prompts(command.prompts) if command.prompts is not None else []
    if prompts and "text" in command.options:
        raise ConfigError("command line: --text and --prompts both name the text; keep one of them")
    twice = sorted(set(choices(command.grid, ())[0].changed) & command.options.keys())
    if twice:
        raise ConfigError(
            f"command line: --{twice[0]} and --grid {twice[0]}=… both name it; keep one of them"
        )
    trials = tuple(_cell(command, choice.name, choice.changed) for choice in choices(command.grid, prompts))
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
    folder = output_folder(str(_shared_out_dir(command)))
    return Sweep(shlex.join(("train.py", *argv)), folder, trials, command.jobs, command.executor)


def is_done(trial: Trial) -> bool:
    """Whether the trial has been finished with these very settings, and its meshes are still there."""
    known = _read(trial)
    return (
        known.get("state") == DONE
        and all(config.run.mesh_path.is_file() for config in trial.configs)
        and _agree(known.get("settings", []), _settings(trial))
    )


def _agree(then: Sequence[Mapping[str, object]], now: Sequence[Mapping[str, object]]) -> bool:
    """Whether the settings are the same; a key that was not there yet had its default."""
    defaults = {name: key.default for name, key in known_keys().items()}
    return [{**defaults, **values} for values in then] == [{**defaults, **values} for values in now]


def read_record(trial: Trial) -> Record:
    """What the trial's folder tells of it."""
    known = _read(trial)
    return Record(**{key: known[key] for key in asdict(Record()) if key in known})


def write_record(trial: Trial, record: Record) -> None:
    """Put the record into the trial's folder; a finished trial's says with which settings."""
    done = {"settings": _settings(trial)} if record.state == DONE else {}
    write_text(trial.folder / RECORD_FILE, json.dumps({**asdict(record), **done}, indent=1) + "\n")


def _read(trial: Trial) -> dict[str, object]:
    try:
        known = json.loads((trial.folder / RECORD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        logger.warning("%s is damaged and is passed over", trial.folder / RECORD_FILE)
        return {}
    return known if isinstance(known, dict) else {}


def _settings(trial: Trial) -> list[dict[str, object]]:
    """Every key of every config, and the content of the meshes that are read."""
    return [{**config.to_json(), **settings(config)} for config in trial.configs]


def _cell(command: Command, name: str, changed: Mapping[str, object]) -> Trial:
    options = expand_home({**command.options, **changed})
    shared = _shared_out_dir(command)
    if isinstance(shared, str) and shared:
        options["out_dir"] = f"{shared.rstrip('/')}/{name}"
    try:
        configs = tuple(command.configs(options, logger.debug))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    options = {key: value for key, value in options.items() if key not in NO_EFFECT}
    return Trial(name, changed, configs, ("--config", *command.paths, *map(_word, options.items())))


def _word(option: tuple[str, object]) -> str:
    """An option as one word that the command line reads back as the same value."""
    key, value = option
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def _shared_out_dir(command: Command) -> object:
    return command.options.get("out_dir", command.files[0].get("out_dir"))


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
