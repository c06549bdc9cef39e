"""Test grids and prompt lists: the combinations, the names of the trials, and rejected input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from training.sweep.grid import choices, read_axis, read_prompts, split_values


def names(grid=(), prompts=()):
    return [choice.name for choice in choices(grid, prompts)]


def test_the_product_in_order_the_last_axis_fastest():
    found = choices(["seed=1,2", "batch=3,4"], [])
    assert [dict(choice.overrides) for choice in found] == [
        {"seed": 1, "batch": 3},
        {"seed": 1, "batch": 4},
        {"seed": 2, "batch": 3},
        {"seed": 2, "batch": 4},
    ]
    assert [choice.name for choice in found] == [
        "seed=1_batch=3",
        "seed=1_batch=4",
        "seed=2_batch=3",
        "seed=2_batch=4",
    ]


def test_trials_are_named_by_prompt_first():
    assert names(["seed=1,2"], ["A mug", "A car"]) == [
        "a-mug_seed=1",
        "a-mug_seed=2",
        "a-car_seed=1",
        "a-car_seed=2",
    ]
    assert choices([], ["A mug"])[0].overrides == {"text": "A mug"}


def test_a_cell_keeps_its_name_when_values_and_prompts_are_added():
    assert set(names(["seed=1,2"], ["A mug"])) < set(
        names(["seed=0,1,2,3"], ["A car", "A mug, red", "A mug"])
    )


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=1,2,3", [1, 2, 3]),
        ("guidance_weight=7.5,1e1,.5", [7.5, 10.0, 0.5]),
        ("sdf_init_shape_scale=[.56,.74,.56],[.7,.7,.7]", [[0.56, 0.74, 0.56], [0.7, 0.7, 0.7]]),
        ("sdf_init_shape_scale=[1, 2e-1, -3.]", [[1, 0.2, -3.0]]),
        ("sdf_init_shape=ellipsoid, cylinder", ["ellipsoid", "cylinder"]),
        ("validate=true,False", [True, False]),
        ("envmap=null,sky.hdr", [None, "sky.hdr"]),
        ('text=A mug,"a car, red"', ["A mug", "a car, red"]),
        ('display=[{"bsdf":"kd"},{"latlong":true}],[]', [[{"bsdf": "kd"}, {"latlong": True}], []]),
        ("learning_rate=1e-3,null", [1e-3, None]),
    ],
)
def test_values_are_read_as_those_of_the_options(word, values):
    key, found = read_axis(word)
    assert key == word.partition("=")[0]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@given(st.lists(st.text("ab1.[]{}\"',", max_size=6), min_size=1, max_size=5))
def test_split_values_removes_only_commas(parts):
    text = ",".join(parts)
    assert ",".join(split_values(text)) == text


@pytest.mark.parametrize(
    ("grid", "prompts", "expected"),
    [
        (["sed=1"], [], ['"sed"', '"seed"']),
        (["seed"], [], ['"seed"', "KEY=VALUE"]),
        (["seed=1,,2"], [], ["empty", "KEY=VALUE"]),
        (["seed=1", "seed=2"], [], ['"seed"', "twice"]),
        (["out_dir=a,b"], [], ['"out_dir"']),
        (["text=a"], ["A mug"], ['"text"', "--prompts"]),
        (["seed=1,2,1"], [], ["seed = 1", "seed=1"]),
        ([], ["A mug", "a mug"], ["A mug", "a mug", '"a-mug"']),
    ],
)
def test_impossible_values_give_a_one_line_error(grid, prompts, expected):
    with pytest.raises(ConfigError) as error:
        choices(grid, prompts)
    message = str(error.value)
    assert "\n" not in message
    assert [part for part in expected if part not in message] == []


NASTY = st.text(min_size=1, max_size=300).filter(str.strip)


@given(st.lists(NASTY, min_size=1, max_size=4, unique_by=str.lower))
def test_any_prompt_gives_one_folder_name(prompts):
    for name in names(["seed=1"], prompts):
        assert "/" not in name and "\0" not in name and name.isprintable()
        assert name not in (".", "..") and len(name.encode()) + len("_appearance") < 255
    assert len(set(names(["seed=1"], prompts))) == len(prompts)


def test_prompts_are_the_lines_without_comments(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# of today\nA mug\n\n   a car,  red \n  # no\r\nApfelmännchen\n", encoding="utf-8")
    assert read_prompts(str(file)) == ["A mug", "a car, red", "Apfelmännchen"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "UTF-8"),
        (b"# only\n\n", "no prompt"),
        (b"A mug\n#\nA  mug\n", "line 3"),
    ],
)
def test_invalid_prompt_file_is_rejected(tmp_path, content, expected):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as error:
        read_prompts(str(file))
    assert str(file) in str(error.value)
