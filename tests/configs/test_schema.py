"""Test the validation of configs: any input gives a Config or a ConfigError with a one-line message."""

import dataclasses
import json
import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.keys import adapter
from configs.schema import NO_EFFECT, Config, known_keys, parse_config, section_types

LEAST = {"out_dir": "thing"}

# These are the defaults of the published program. The list does not depend on the schema.
PUBLISHED_DEFAULTS = {
    "mode": "geometry_modeling",
    "text": "",
    "negative_text": "",
    "add_directional_text": False,
    "seed": 42,
    "iter": 5000,
    "batch": 1,
    "coarse_iter": 1000,
    "train_res": [512, 512],
    "texture_res": [1024, 1024],
    "save_interval": 1000,
    "video_interval": 10,
    "validate": True,
    "display": [],
    "train_background": "black",
    "sdf_init_shape": "ellipsoid",
    "sdf_init_shape_scale": [1, 1, 1],
    "sdf_init_shape_rotate_x": 0,
    "translation_y": 0,
    "translation_z": 0,
    "base_mesh": None,
    "dmtet_grid": 64,
    "mesh_scale": 2.1,
    "camera_random_jitter": 0.4,
    "fovy_range": [25.71, 45],
    "elevation_range": [-10, 45],
    "front_threshold": 45,
    "cam_near_far": [1, 50],
    "guidance_weight": 100,
    "sds_weight_strategy": 0,
    "early_time_step_range": [0.02, 0.5],
    "late_time_step_range": [0.02, 0.5],
    "if_flip_the_normal": False,
    "if_use_bump": True,
    "kd_min": [0, 0, 0],
    "kd_max": [1, 1, 1],
    "ks_min": [0, 0.08, 0],
    "ks_max": [1, 1, 1],
    "nrm_min": [-1, -1, 0],
    "nrm_max": [1, 1, 1],
    "envmap": None,
    "env_scale": 1.0,
    "relight": None,
    "learn_light": False,
    "camera_space_light": False,
    "uv_padding_block": 4,
}
WITHOUT_EFFECT = (
    "random_textures layers spp custom_mip pre_load lock_pos lock_light multi_gpu local_rank min_roughness "
    "ref_mesh mtl_override"
).split()


def refusal(**values) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({**LEAST, **values}, "some.json")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("some.json: ")
    return message


def test_published_keys_have_their_published_defaults():
    values = parse_config(LEAST, "x").to_json()
    assert {key: values[key] for key in PUBLISHED_DEFAULTS} == PUBLISHED_DEFAULTS


@pytest.mark.parametrize("key", PUBLISHED_DEFAULTS)
def test_published_defaults_may_be_written_out(key):
    parse_config({**LEAST, key: PUBLISHED_DEFAULTS[key]}, "x")


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_keys_without_effect_are_accepted(key):
    assert parse_config({**LEAST, key: [1, {"a": "b"}]}, "x") == parse_config(LEAST, "x")


def test_every_key_is_described_and_its_default_is_the_same_in_every_section():
    defaults: dict[str, object] = {}
    for kind in section_types().values():
        for name, field in adapter(kind).json_schema(by_alias=True)["properties"].items():
            assert field.get("description"), name
            assert defaults.setdefault(name, field.get("default")) == field.get("default"), name


def test_flat_form_round_trips():
    values = {
        **LEAST,
        "if_use_bump": False,
        "if_flip_the_normal": True,
        "kd_min": [0.1, 0.1, 0.1, 0.0],
        "display": [{"latlong": True}, {"bsdf": "kd"}],
        "base_mesh": "a.obj",
        "learning_rate": 0.5,
    }
    config = parse_config(values, "x")
    assert config.material.bump is False and config.run.flip_normal is True
    assert config.run.base_mesh == config.start_shape.base_mesh == "a.obj"
    flat = json.loads(json.dumps(config.to_json()))
    assert values.items() <= flat.items()
    assert parse_config(flat, "y") == config


def test_a_config_cannot_be_changed():
    config = parse_config(LEAST, "x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.schedule.iter = 3


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("batchh", "batch"),
        ("BATCH", "batch"),
        ("coarse-iter", "coarse_iter"),
        ("use_bump", "if_use_bump"),
        ("dmtet_gird", "dmtet_grid"),
        ("guidence_weight", "guidance_weight"),
        ("flip_normal", "if_flip_the_normal"),
        ("iterations", "iter"),
        ("texture", "texture_res"),
    ],
)
def test_unknown_key_error_suggests_the_nearest(key, nearest):
    message = refusal(**{key: 1})
    assert f'unknown key "{key}"' in message and message.endswith(f'"{nearest}"')


def test_out_dir_of_an_evaluated_run_must_exist():
    with pytest.raises(ConfigError, match='some.json: key "out_dir" is missing'):
        parse_config({}, "some.json")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("iter", 0, ">= 1"),
        ("iter", 10**400, "an integer"),
        ("iter", 2.5, "an integer"),
        ("iter", "200", "an integer"),
        ("batch", 0, ">= 1"),
        ("batch", -3, ">= 1"),
        ("batch", True, "an integer"),
        ("batch", None, "an integer"),
        ("seed", -1, ">= 0"),
        ("seed", 2**63, "< 9223372036854775808"),
        ("if_use_bump", "False", "true or false"),
        ("if_use_bump", 0, "true or false"),
        ("validate", "true", "true or false"),
        ("mode", "texture", "geometry_modeling, appearance_modeling"),
        ("text", 7, "text"),
        ("text", "\ud800", "text"),
        ("out_dir", "", "a folder name"),
        ("out_dir", ".", "a folder name"),
        ("out_dir", "../elsewhere", "without .."),
        ("out_dir", "a\nb", "a folder name"),
        ("out_dir", 3, "text"),
        ("train_res", 512, "2 integers"),
        ("train_res", [512], "2 integers"),
        ("train_res", [512, 512, 3], "2 integers"),
        ("train_res", [0, 512], ">= 8"),
        ("train_res", [512, 256], "a square"),
        ("fovy_range", [0, 45], "> 0 and < 180"),
        ("fovy_range", [25, 180], "> 0 and < 180"),
        ("fovy_range", [45, 25], "lower end first"),
        ("elevation_range", [-91, 45], ">= -90"),
        ("elevation_range", [45, -10], "lower end first"),
        ("early_time_step_range", [0.5, 0.02], "lower end first"),
        ("late_time_step_range", [0.02, 1.5], "<= 1"),
        ("cam_near_far", [50, 1], "near distance smaller"),
        ("cam_near_far", [0, 1], "> 0"),
        ("coarse_iter", 5001, "at most iter, 5000"),
        ("sds_weight_strategy", 9, "one of 0, 1"),
        ("sds_weight_strategy", True, "one of 0, 1"),
        ("sdf_init_shape", "cube", "one of ellipsoid, cylinder"),
        ("sdf_init_shape_scale", [1, 0, 1], "> 0"),
        ("mesh_scale", math.nan, "not numbers"),
        ("mesh_scale", math.inf, "not numbers"),
        ("translation_y", -math.inf, "not numbers"),
        ("kd_min", [0, 0], "3 numbers"),
        ("guidance_weight", -1, ">= 0"),
        ("display", [{"bsdf": "colour"}], '"bsdf": "kd"'),
        ("display", {"bsdf": "kd"}, "a list"),
        ("device", "gpu", "auto, cpu, cuda or cuda:N"),
        ("rasteriser", "opengl", "one of auto, nvdiffrast"),
        ("train_background", "checker", "black, white"),
        ("env_resolution", 100, "512"),
    ],
)
def test_bad_value_error_names_key_value_and_range(key, value, allowed):
    message = refusal(**{key: value})
    assert f'key "{key}" has the value ' in message and allowed in message
    assert json.dumps(value)[:70] in message or isinstance(value, list)


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"kd_min": [0.5, 0.5, 0.9], "kd_max": [0.6, 0.6, 0.6]}, ("kd_min", "kd_max")),
        ({"ks_max": [0, 0.05, 0]}, ("ks_min", "ks_max")),
        ({"nrm_min": [0, 0, 1], "nrm_max": [1, 1, 0.5]}, ("nrm_min", "nrm_max")),
        ({"kd_max": [1, 1, 2]}, ("kd_max",)),
        ({"mode": "appearance_modeling"}, ("base_mesh", "mode")),
        ({"sdf_init_shape": "custom_mesh"}, ("base_mesh", "sdf_init_shape")),
        ({"iter": 10}, ("coarse_iter", "iter")),
        ({"train_background": "white"}, ("train_background", "geometry_modeling")),
    ],
)
def test_values_that_do_not_fit_together(values, keys):
    message = refusal(**values)
    assert all(key in message for key in keys), message


def test_error_in_a_command_line_value_names_the_command_line():
    with pytest.raises(ConfigError, match="x.json, --batch on the command line"):
        parse_config({**LEAST, "batch": 0}, "x.json", overridden={"batch": "--batch"})
    with pytest.raises(ConfigError, match="x.json, --kd_max on the command line"):
        parse_config({**LEAST, "kd_max": [2, 2, 2]}, "x.json", overridden={"kd_max": "--kd_max"})


@pytest.mark.parametrize(
    ("out_dir", "folder"),
    [
        ("pineapple1", "out/pineapple1"),
        ("out/pineapple1", "out/pineapple1"),
        ("./a/b/", "out/a/b"),
        ("outer", "out/outer"),
        ("/tmp/x", "/tmp/x"),
    ],
)
def test_output_folders(out_dir, folder):
    run = parse_config({"out_dir": out_dir}, "x").run
    assert str(run.output_folder) == folder and str(run.mesh_path) == f"{folder}/dmtet_mesh/mesh.obj"


def test_the_learning_rate_follows_the_mode():
    assert parse_config(LEAST, "x").run.effective_learning_rate == 1e-3
    paint = {**LEAST, "mode": "appearance_modeling", "base_mesh": "a.obj"}
    assert parse_config(paint, "x").run.effective_learning_rate == 1e-2
    assert parse_config({**paint, "learning_rate": 0.5}, "x").run.effective_learning_rate == 0.5


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "\0", "\n", "null", "True", 10**400, -(2**63), 1e308, -0.0, "x" * 5000])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)
# Lists of numbers with the correct length pass the type checks, so the later checks are tested too.
NUMBERS = st.lists(st.integers(-2, 100) | st.floats(-2, 100), min_size=2, max_size=4)
NAMES = st.sampled_from([*known_keys(), *sorted(NO_EFFECT)])


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(NAMES | st.text(max_size=5), VALUES | NUMBERS, max_size=4), st.booleans())
@example({"display": [[]], "kd_min": [1.0, 1.0]}, True)
@example({"base_mesh": "", "sdf_init_shape": "custom_mesh"}, True)
def test_any_input_gives_a_config_or_a_one_line_error(values, complete):
    try:
        config = parse_config({**LEAST, **values} if complete else values, "some.json")
    except ConfigError as error:
        message = str(error)
        assert message.startswith("some.json: ") and len(message.splitlines()) == 1
    else:
        assert isinstance(config, Config)
        assert parse_config(json.loads(json.dumps(config.to_json())), "again") == config
