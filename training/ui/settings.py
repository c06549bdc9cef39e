"""The settings on the page, with the limits and descriptions of the schema."""

from dataclasses import dataclass

from configs.keys import Key
from configs.overrides import STAGE_MARK
from configs.schema import known_keys

# The options on the page, in order. A key with a stage applies to that stage only.
MAIN_SETTINGS = (
    "seed",
    "guidance_weight",
    "geometry.iter",
    "appearance.iter",
    "batch",
    "negative_text",
    "score",
    "time_step_schedule",
    "add_directional_text",
    "geometry.normal_consistency",
    "geometry.large_steps_lambda",
    "export_faces",
)


@dataclass(frozen=True)
class Setting:
    """A setting on the page.

    option: its name on the command line. help: the description and what is allowed. choices: the values of a
    setting that has only a few, as words.
    """

    option: str
    help: str
    choices: tuple[str, ...] = ()


def main_settings() -> list[Setting]:
    """The settings of the page."""
    return [_setting(option, known_keys()[option.rpartition(STAGE_MARK)[2]]) for option in MAIN_SETTINGS]


def _setting(option: str, key: Key) -> Setting:
    choices = ("true", "false") if key.admits("boolean") else tuple(map(str, key.schema.get("enum", ())))
    return Setting(option, f"{key.description}; {key.allowed}", choices)
