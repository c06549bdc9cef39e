"""Settings on the page, with the limits and descriptions from the schema."""

from dataclasses import dataclass

from configs.keys import Key
from configs.overrides import STAGE_MARK
from configs.schema import known_keys

# Options on the page, in order. An option that begins with a stage ("geometry.iter") applies only to this
# stage.
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

    option: name on the command line. help: description and allowed values. choices: the allowed values as
    text, if there are only a few.
    """

    option: str
    help: str
    choices: tuple[str, ...] = ()


def main_settings() -> list[Setting]:
    """Return the settings of the page."""
    return [_setting(option, known_keys()[option.rpartition(STAGE_MARK)[2]]) for option in MAIN_SETTINGS]


def _setting(option: str, key: Key) -> Setting:
    choices = ("true", "false") if key.admits("boolean") else tuple(map(str, key.schema.get("enum", ())))
    return Setting(option, f"{key.description}; {key.allowed}", choices)
