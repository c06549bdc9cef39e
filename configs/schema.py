"""Convert flat JSON values to a `Config`. Every key is checked here.

The section of each component is declared in the component's module. Only train.py and training/ use the whole
`Config`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from pydantic import ValidationError

from configs.errors import ConfigError, nearest, shown
from configs.keys import Key, adapter, keys_of
from configs.run import RunConfig
from configs.validation import check_together
from dataset.cameras import CameraConfig
from geometry.dmtet import GeometryConfig
from geometry.regularisers import RegulariserConfig
from geometry.start_shape import StartShapeConfig
from geometry.vertex_surface import SurfaceConfig
from render.shade.light import LightConfig
from render.shade.material import MaterialConfig
from render.texturing.given_config import GivenConfig
from render.texturing.uv import ExportConfig
from sd.guidance_config import GuidanceConfig
from sd.schedule import Schedule, ScheduleConfig

# Keys of the published configs that this program accepts and ignores.
NO_EFFECT = frozenset(
    {
        "custom_mip",
        "gpu_number",
        "layers",
        "local_rank",
        "lock_light",
        "lock_pos",
        "min_roughness",
        "mtl_override",
        "multi_gpu",
        "pre_load",
        "random_textures",
        "ref_mesh",
        "spp",
    }
)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of one run, with one section for each component."""

    run: RunConfig
    guidance: GuidanceConfig
    schedule: ScheduleConfig
    camera: CameraConfig
    surface: SurfaceConfig
    geometry: GeometryConfig
    regularisers: RegulariserConfig
    start_shape: StartShapeConfig
    material: MaterialConfig
    light: LightConfig
    textures: GivenConfig
    export: ExportConfig

    @property
    def phases(self) -> Schedule:
        """The phases of the run."""
        return self.run.traits.schedule(self)

    @property
    def reads_base_mesh(self) -> bool:
        """Whether the run uses base_mesh."""
        custom = self.start_shape.sdf_init_shape == "custom_mesh"
        return self.run.traits.paints_base_mesh or custom or self.surface.keeps_faces

    def to_json(self) -> dict[str, object]:
        """Return a dict from each key to its value. `parse_config` converts the dict to an equal Config."""
        values: dict[str, object] = {}
        for name, kind in section_types().items():
            values.update(adapter(kind).dump_python(getattr(self, name), mode="json", by_alias=True))
        return values


def section_types() -> dict[str, type]:
    """Return a dict from the name of each section of `Config` to its class."""
    return {field.name: field.type for field in dataclasses.fields(Config)}


@cache
def known_keys() -> dict[str, Key]:
    """Return a dict from name to key for all keys that have an effect."""
    return keys_of(section_types())


def section_keys(name: str) -> set[str]:
    """Return the names of the keys of a section."""
    return {key.name for key in known_keys().values() if name in key.sections}


def parse_config(
    values: Mapping[str, object], source: str, overridden: Mapping[str, str] = MappingProxyType({})
) -> Config:
    """Check `values` and assign them to the sections of a `Config`.

    source: name of the file, for error messages. overridden: dict from each key that was set on the command
    line to the option as given ("--geometry.iter").

    Raises:
        ConfigError: if a value is not allowed. The message is one line with the source, the key, the value
        and the allowed values.
    """

    def place(key: str) -> str:
        return f"{source}, {overridden[key]} on the command line" if key in overridden else source

    keys = known_keys()
    for key, value in values.items():
        if key not in keys and key not in NO_EFFECT:
            raise ConfigError(
                f"{place(key)}: unknown key {shown(key)} (value {shown(value)}); "
                f"the nearest known key is {shown(nearest(key, keys))}"
            )
        if key in keys:
            _check_plain(value, keys[key], place(key))
    for key in keys.values():
        if key.required and key.name not in values:
            raise ConfigError(f"{source}: key {shown(key.name)} is missing; give it {key.allowed}")
    sections = {name: _section(name, kind, values, place) for name, kind in section_types().items()}
    config = Config(**sections)
    check_together(config, place)
    return config


def _section(name: str, kind: type, values: Mapping[str, object], place) -> object:
    """Build one section from its keys. Types are checked strictly: "1" is not a number, and 1 is not true."""
    keys = known_keys()
    own = {key: value for key, value in values.items() if key in keys and name in keys[key].sections}
    try:
        return adapter(kind).validate_json(json.dumps(own), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    reason = " ".join(first["msg"].removeprefix("Value error, ").split())
    if not first["loc"]:
        # The validator of the whole section failed, so its error message is searched for the name of a key.
        named = max(
            (key for key in own if key in reason), key=lambda key: place(key) != place(""), default=""
        )
        raise ConfigError(f"{place(named)}: {reason}")
    key = keys[str(first["loc"][0])]
    detail = f" ({reason})" if first["type"] == "value_error" else ""
    raise _refusal(key, own.get(key.name), place(key.name), detail)


def _refusal(key: Key, value: object, place: str, detail: str = "") -> ConfigError:
    return ConfigError(
        f"{place}: key {shown(key.name)} has the value {shown(value)}; allowed is {key.allowed}{detail}"
    )


def _check_plain(value: object, key: Key, place: str) -> None:
    """Reject values that JSON or file names cannot contain: NaN, infinities, lone surrogates and NUL."""
    if isinstance(value, bool) and not key.admits("boolean"):
        raise _refusal(key, value, place)
    for part in _leaves(value):
        if isinstance(part, float) and not math.isfinite(part):
            raise _refusal(key, value, place, " (NaN and infinity are not numbers here)")
        if isinstance(part, int) and not isinstance(part, bool) and abs(part) >= 2**63:
            raise _refusal(key, value, place, " (the number is too large)")
        if isinstance(part, str) and ("\0" in part or not _encodable(part)):
            raise _refusal(key, value, place, " (the text contains NUL or half of a surrogate pair)")
        if not isinstance(part, bool | int | float | str | None):
            raise _refusal(key, value, place)


def _leaves(value: object):
    """Yield the values in nested lists and objects, and the keys of the objects."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            pending += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            pending += part
        else:
            yield part


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
