"""The settings on the page, with the limits and descriptions of the schema."""

from collections.abc import Mapping
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
TEXT, NUMBER, INTEGER, CHOICE, SWITCH = "text", "number", "integer", "choice", "switch"


@dataclass(frozen=True)
class Setting:
    """A setting on the page.

    option: its name on the command line. kind: TEXT, NUMBER, INTEGER, CHOICE or SWITCH. help: the description
    and what is allowed. low, high: limits, None without one. choices: of CHOICE.
    """

    option: str
    kind: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[object, ...] = ()


def main_settings() -> list[Setting]:
    """The settings of the page."""
    return [_setting(option, known_keys()[option.rpartition(STAGE_MARK)[2]]) for option in MAIN_SETTINGS]


def _setting(option: str, key: Key) -> Setting:
    text = f"{key.description}; {key.allowed}"
    if choices := _choices(key.schema):
        return Setting(option, CHOICE, text, choices=choices)
    if key.admits("boolean"):
        return Setting(option, SWITCH, text)
    for kind, name in ((INTEGER, "integer"), (NUMBER, "number")):
        for schema in key.schema.get("anyOf", (key.schema,)):
            if schema.get("type") == name:
                # A limit that is excluded is checked when the run starts.
                low = schema.get("minimum", schema.get("exclusiveMinimum"))
                high = schema.get("maximum", schema.get("exclusiveMaximum"))
                return Setting(option, kind, text, low, high)
    return Setting(option, TEXT, text)


def _choices(schema: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(schema.get("enum", ()))
