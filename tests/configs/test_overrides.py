"""Test the output folders of several configs in one command, and the mesh that each later config reads."""

import pytest

from configs.overrides import resolve_chain, slug

GEOMETRY = {"out_dir": "fruit", "text": "A pineapple", "iter": 1300, "coarse_iter": 900}
APPEARANCE = {
    "out_dir": "fruit_appearance",
    "mode": "appearance_modeling",
    "text": "A pineapple",
    "base_mesh": "out/fruit/dmtet_mesh/mesh.obj",
    "iter": 600,
    "coarse_iter": 100,
}


def folders(files, **options):
    """Return the out_dir of each config and the base_mesh of the last config."""
    resolved = resolve_chain(files, options)
    return [values["out_dir"] for values in resolved], resolved[-1].get("base_mesh")


def test_paths_are_unchanged_without_options(caplog):
    assert resolve_chain([GEOMETRY, APPEARANCE], {}) == [GEOMETRY, APPEARANCE]
    assert not caplog.records


def test_out_dir_applies_to_the_pair():
    moved = ["X", "X_appearance"], "out/X/dmtet_mesh/mesh.obj"
    assert folders([GEOMETRY, APPEARANCE], out_dir="X") == moved
    assert folders([GEOMETRY, APPEARANCE], out_dir="/tmp/x/") == (
        ["/tmp/x/", "/tmp/x_appearance"],
        "/tmp/x/dmtet_mesh/mesh.obj",
    )


def test_out_dir_for_configs_without_a_common_name():
    other = {**APPEARANCE, "out_dir": "out/painted"}
    assert folders([GEOMETRY, other], out_dir="X") == (["X", "X_painted"], "out/X/dmtet_mesh/mesh.obj")


def test_one_config_alone_keeps_the_mesh_that_it_names():
    assert folders([APPEARANCE], out_dir="X") == (["X"], APPEARANCE["base_mesh"])


def test_another_text_changes_both_folders_of_the_pair():
    assert folders([GEOMETRY, APPEARANCE], text="A mug") == (
        ["fruit-a-mug", "fruit_appearance-a-mug"],
        "out/fruit-a-mug/dmtet_mesh/mesh.obj",
    )


def test_same_text_keeps_its_folder():
    assert folders([GEOMETRY, APPEARANCE], text="A pineapple")[0] == ["fruit", "fruit_appearance"]


def test_text_and_out_dir_together_take_the_out_dir():
    assert folders([GEOMETRY, APPEARANCE], text="A mug", out_dir="X")[0] == ["X", "X_appearance"]


def test_mesh_under_another_path_is_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absolute = {**APPEARANCE, "base_mesh": str(tmp_path / APPEARANCE["base_mesh"])}
    assert folders([GEOMETRY, absolute], out_dir="X")[1] == "out/X/dmtet_mesh/mesh.obj"
    dotted = {**APPEARANCE, "base_mesh": "./out/fruit/../fruit/dmtet_mesh/mesh.obj"}
    assert folders([GEOMETRY, dotted], out_dir="X")[1] == "out/X/dmtet_mesh/mesh.obj"


def test_explicit_base_mesh_is_unchanged():
    assert folders([GEOMETRY, APPEARANCE], out_dir="X", base_mesh="mine.obj")[1] == "mine.obj"
    named = APPEARANCE["base_mesh"]
    assert folders([GEOMETRY, APPEARANCE], out_dir="X", base_mesh=named)[1] == named
    foreign = {**APPEARANCE, "base_mesh": "data/person.obj"}
    assert folders([GEOMETRY, foreign], out_dir="X")[1] == "data/person.obj"


def test_only_earlier_configs_are_followed():
    assert resolve_chain([APPEARANCE, GEOMETRY], {"text": "A mug"})[0]["base_mesh"] == APPEARANCE["base_mesh"]


def test_two_pairs_in_one_command():
    second = [{**GEOMETRY, "out_dir": "tree"}, {**APPEARANCE, "out_dir": "tree_appearance"}]
    second[1]["base_mesh"] = "out/tree/dmtet_mesh/mesh.obj"
    resolved = resolve_chain([GEOMETRY, APPEARANCE, *second], {"text": "A mug"})
    assert resolved[1]["base_mesh"] == "out/fruit-a-mug/dmtet_mesh/mesh.obj"
    assert resolved[3]["base_mesh"] == "out/tree-a-mug/dmtet_mesh/mesh.obj"


@pytest.mark.parametrize(
    ("options", "coarse_iter"),
    [({"iter": 200}, 200), ({"iter": 1000}, 900), ({"iter": 200, "coarse_iter": 900}, 900), ({}, 900)],
)
def test_a_shorter_run_ends_within_its_coarse_phase(options, coarse_iter):
    assert resolve_chain([GEOMETRY], options)[0]["coarse_iter"] == coarse_iter


def test_change_of_micro_batches_is_logged(caplog):
    caplog.set_level("INFO")
    resolve_chain([GEOMETRY, APPEARANCE], {"text": "A mug", "iter": 200})
    for line in (
        "out_dir: fruit-a-mug",
        "base_mesh: out/fruit-a-mug/dmtet_mesh/mesh.obj",
        "coarse_iter: 200",
    ):
        assert sum(record.getMessage().startswith(line) for record in caplog.records) == 1, line


@pytest.mark.parametrize("out_dir", [None, 3, "", "\0", ["x"]])
@pytest.mark.parametrize("option", [{"out_dir": "X"}, {"text": "A mug"}, {"out_dir": None}])
def test_unusable_folders_are_reported_by_the_checks(out_dir, option):
    resolve_chain([{**GEOMETRY, "out_dir": out_dir}, APPEARANCE, {"base_mesh": 3}], option)


def test_slugs_are_short_and_unique():
    assert slug("A mug") == slug("a MUG") == "a-mug"
    texts = [
        "A mug",
        "A mug!",
        "A müg",
        "杯子",
        "",
        "../mug",
        "A car made out of cheese " * 9,
        "x" * 41,
        "x" * 42,
    ]
    names = [slug(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)
    assert max(map(len, names)) < 50
