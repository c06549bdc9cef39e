"""Test that the command line accepts the same keys as a config file and applies the same checks."""

import json
from pathlib import Path

import pytest

from configs.cli import load_configs
from configs.errors import ConfigError
from configs.schema import NO_EFFECT, known_keys, parse_config

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.json"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make the empty folder tmp_path the current directory, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, **values) -> str:
    Path(name).write_text(json.dumps({"out_dir": "thing", **values}))
    return name


def make_files(values: dict) -> None:
    for key in ("base_mesh", "envmap", "relight"):
        if values.get(key):
            Path(values[key]).parent.mkdir(parents=True, exist_ok=True)
            Path(values[key]).touch()


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_configs(argv)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def words(value, split: bool) -> list[str]:
    """Return the command-line arguments that a user would type for a value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and split and value:
        return [json.dumps(item) for item in value]
    return [json.dumps(value)]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_option_equals_the_key_in_a_file(folder, path, split):
    """Check every key of every shipped config, including the keys with default values."""
    values = parse_config(json.loads(path.read_text()), path.name).to_json()
    make_files(values)
    argv = [word for key, value in values.items() for word in (f"--{key}", *words(value, split))]
    (from_file,) = load_configs(["--config", write("file.json", **values)])
    (from_options,) = load_configs(["--config", write("empty.json"), *argv])
    assert from_options == from_file == parse_config(values, "x")


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--if_use_bump", "False"], "if_use_bump", False),
        (["--if_use_bump", "false"], "if_use_bump", False),
        (["--if_use_bump=TRUE"], "if_use_bump", True),
        (["--text", "A", "mug"], "text", "A mug"),
        (["--text", "A mug"], "text", "A mug"),
        (["--text", "null"], "text", "null"),
        (["--text", "12"], "text", "12"),
        (["--text=-5 degrees"], "text", "-5 degrees"),
        (["--text", "-5 degrees"], "text", "-5 degrees"),
        (["--translation_y", "-0.3"], "translation_y", -0.3),
        (["--translation_y", "-3e-1"], "translation_y", -0.3),
        (["--translation_y=-.3e0"], "translation_y", -0.3),
        (["--translation_y", "-.3"], "translation_y", -0.3),
        (["--translation_y", "2."], "translation_y", 2.0),
        (["--elevation_range", "-10", "45"], "elevation_range", [-10, 45]),
        (["--elevation_range", "[-10, 45]"], "elevation_range", [-10, 45]),
        (["--learning_rate", "null"], "learning_rate", None),
        (
            ["--display", '{"bsdf": "kd"}', '{"latlong": true}'],
            "display",
            [{"bsdf": "kd"}, {"latlong": True}],
        ),
        (["--iter", "1000", "--iter", "2000"], "iter", 2000),
        (["--device", "cuda:1"], "device", "cuda:1"),
    ],
)
def test_how_values_are_written(folder, argv, key, value):
    (config,) = load_configs(["--config", write("a.json"), *argv])
    assert config.to_json()[key] == value


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--batch", "0"], '"batch" has the value 0; allowed is an integer >= 1'),
        (["--batch", "two"], '"batch" has the value "two"'),
        (["--translation_y", "-.3."], '"translation_y" has the value "-.3."'),
        (["--batch", "1", "2"], '"batch" has the value ["1", "2"]'),
        (["--if_use_bump", "no"], '"if_use_bump" has the value "no"; allowed is true or false'),
        (["--mesh_scale", "NaN"], '"mesh_scale" has the value NaN'),
        (["--translation_y", "-Infinity"], '"translation_y" has the value -Infinity'),
        (["--train_res", "512"], '"train_res" has the value [512]'),
        (["--fovy_range", "45", "25"], "lower end first"),
        (["--bach", "4"], "--bach"),
        (["--batc=4"], "the nearest known one is --batch"),
        (["--dry_run"], "the nearest known one is --dry-run"),
        (["--batch"], "--batch"),
    ],
)
def test_bad_options(folder, argv, says):
    assert says in refusal("--config", write("a.json"), *argv)


def test_options_are_not_abbreviated(folder):
    assert "--guidance" in refusal("--config", write("a.json"), "--guidance", "4")


def test_a_config_is_needed(folder):
    assert "--config" in refusal()
    assert "no such config file" in refusal("--config", "nothing.json")


def test_error_in_a_file_names_the_file(folder):
    Path("broken.json").write_text('{"iter": 1')
    assert "broken.json, line 1, column 11" in refusal("--config", "broken.json")
    assert refusal("--config", write("a.json", bach=1)).startswith('a.json: unknown key "bach"')
    message = refusal("--config", write("a.json"), write("b.json", out_dir="b", iter="many"))
    assert message.startswith('b.json: key "iter" has the value "many"')


@pytest.mark.parametrize("key", ["base_mesh", "envmap", "relight", "tet_grid_file"])
def test_missing_file_error_names_its_key(folder, key):
    message = refusal("--config", write("a.json", **{key: "data/none.bin"}))
    assert f'key "{key}" has the value "data/none.bin"' in message and str(folder) in message
    assert f"--{key} on the command line" in refusal("--config", write("a.json"), f"--{key}", "data/none.bin")
    assert "is a folder" in refusal("--config", write("a.json", **{key: "."}))
    refusal("--config", write("a.json", **{key: "x" * 5000}))


@pytest.mark.parametrize("key", ["envmap", "relight"])
def test_published_maps_that_are_not_shipped_are_accepted(folder, key, caplog):
    load_configs(["--config", write("a.json", **{key: f"data/irrmaps/{key}_4k.hdr"})])
    assert f"{key}_4k.hdr is not shipped" in caplog.text
    load_configs(["--config", write("a.json", **{key: "data/irrmaps/overcast_city.hdr"})])
    for absent in ("data/none.hdr", "data/irrmaps/mine/none.hdr", "a\0/none.hdr"):
        message = refusal("--config", write("a.json", **{key: absent}))
        assert message.startswith(f'a.json: key "{key}" has the value')
    load_configs(["--config", write("a.json", **{key: "data/irrmaps/" + "x" * 5000})])
    assert "does not exist" in refusal("--config", write("a.json", base_mesh="data/irrmaps/mesh.obj"))


def test_an_out_dir_that_cannot_be_made(folder, monkeypatch):
    Path("out").write_text("a file in the way")
    assert 'key "out_dir" has the value "thing"' in refusal("--config", write("a.json"))
    Path("out").unlink()
    load_configs(["--config", "a.json"])
    assert not Path("out").exists()
    monkeypatch.setattr("configs.validation.os.access", lambda path, mode: False)
    assert "cannot be written to" in refusal("--config", "a.json")


def pair() -> list[str]:
    return [
        write("geometry.json", text="A pineapple"),
        write(
            "appearance.json",
            out_dir="thing_appearance",
            mode="appearance_modeling",
            base_mesh="out/thing/dmtet_mesh/mesh.obj",
            text="A pineapple",
        ),
    ]


@pytest.mark.parametrize("options", [[], ["--out_dir", "X"], ["--text", "A mug", "--iter", "200"]])
def test_second_config_reads_the_mesh_of_the_first_in_any_folder(folder, options):
    geometry, appearance = load_configs(["--config", *pair(), *options])
    assert Path(appearance.run.base_mesh) == geometry.run.mesh_path
    assert appearance.run.output_folder != geometry.run.output_folder


def test_base_mesh_must_exist_or_be_written_by_an_earlier_config(folder):
    first, second = pair()
    assert "earlier in the same command" in refusal("--config", second)
    refusal("--config", second, first)
    make_files(json.loads(Path(second).read_text()))
    load_configs(["--config", second])


def test_two_configs_do_not_share_a_folder(folder):
    message = refusal("--config", write("a.json"), write("b.json", out_dir="out/thing"))
    assert message.startswith('b.json: key "out_dir" has the value "out/thing"')


def test_keys_without_effect_are_reported_in_one_line(folder, caplog):
    load_configs(["--config", write("a.json", spp=1, layers=2), "--pre_load", "x", "--local-rank=3"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "these keys are accepted and have no effect: layers, pre_load, spp"


@pytest.mark.parametrize("argument", ["--local-rank=3", "--local_rank=3"])
def test_the_launchers_argument_is_ignored(folder, caplog, argument):
    assert load_configs([argument, "--config", write("a.json")]) == load_configs(["--config", "a.json"])
    assert not caplog.records


def test_dry_run_prints_an_equivalent_config(folder, capsys):
    argv = ["--config", *pair(), "--text", "A mug", "--kd_min", "0.1", "0.1", "0.1"]
    configs = load_configs(argv)
    with pytest.raises(SystemExit) as left:
        load_configs([*argv, "--dry-run"])
    assert left.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert [parse_config(values, "printed") for values in printed] == configs
    with pytest.raises(SystemExit):
        load_configs(["--config", "geometry.json", "--dry-run"])
    assert set(json.loads(capsys.readouterr().out)) == set(known_keys())
    assert not Path("out").exists()


def test_a_dry_run_of_a_bad_config_is_an_error(folder):
    refusal("--config", write("a.json", batch=0), "--dry-run")


def test_help_documents_every_key_with_its_default(folder, capsys):
    with pytest.raises(SystemExit) as left:
        load_configs(["--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for key in known_keys().values():
        assert f"--{key.name} " in text
        assert " ".join(key.description.split()[:4]) in text
        assert key.required or f"(default {json.dumps(key.default)})" in text, key.name
    assert all(key in text for key in NO_EFFECT)


@pytest.mark.parametrize("mode", [[], {}, 3, None])
def test_a_mode_of_another_type_is_one_line(mode, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"mode": mode, "out_dir": "x"}))
    with pytest.raises(ConfigError, match="config.json.*mode") as caught:
        load_configs(["--config", str(path)])
    assert "\n" not in str(caught.value)
