"""The part of a run's report that depends on its config: all keys with their defaults, and commands."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from configs.schema import Config, known_keys
from training.report.run_page import CONFIG_FILE, RunInfo, Setting


def settings_of(config: Config) -> list[Setting]:
    """Return all keys of the config, in the order of the sections."""
    values, keys = config.to_json(), known_keys()
    return [
        Setting(
            key=name,
            value=json.dumps(values[name], ensure_ascii=False),
            default="required" if key.required else json.dumps(key.default, ensure_ascii=False),
            meaning=key.description,
            changed=key.required or values[name] != key.default,
        )
        for name, key in keys.items()
    ]


def config_file(config: Config) -> Path:
    """Return the path of the resolved config of a run."""
    return config.run.output_folder / CONFIG_FILE


def commands_of(config: Config, argv: Sequence[str]) -> dict[str, str]:
    """Return a dict from label to shell command for the current directory. argv: this run's arguments."""

    def line(*arguments: str) -> str:
        return shlex.join(["python3", "train.py", *arguments])

    own, again = str(config_file(config)), f"{config.run.output_folder}_again"
    commands = {
        f"In {Path.cwd()}, resume after a stop; after the end, export again": line("--config", own),
        "The same from step 0, in another folder": line("--config", own, "--out_dir", again),
        "The command as it was given": line(*argv),
    }
    if config.run.traits.paints_base_mesh:
        larger = [str(2 * side) for side in config.export.texture_res]
        commands["Export again with larger textures"] = line(
            "--config", own, "--export-only", "--texture_res", *larger
        )
    return commands


def run_info(config: Config, argv: Sequence[str], machine: dict[str, str]) -> RunInfo:
    """Return the part of the report that is constant during a run."""
    return RunInfo(
        out_dir=config.run.output_folder,
        title=config.guidance.text or config.run.out_dir,
        kind=config.run.traits.label,
        last_step=config.schedule.iter,
        orbit=config.run.validate,
        settings=settings_of(config),
        commands=commands_of(config, argv),
        machine=machine,
        envmap=config.light.envmap,
        env_scale=config.light.env_scale,
        resolved_config=json.dumps(config.to_json(), indent=2, ensure_ascii=False) + "\n",
    )
