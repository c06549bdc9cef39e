"""Test sculpting with the surface "mesh": the vertices of the user's mesh move, and nothing else changes."""

import json

import pytest
import torch
from reduced_work import shorten_fit
from toy_config import TINY

import train
from configs.errors import ConfigError
from configs.schema import parse_config
from configs.validation import warn_without_effect
from geometry.start_shape import _sphere
from render.mesh_io.load import load_mesh
from training import signals
from training.checkpoint import load_latest
from training.resume import settings

LAST = 4


def write_base(path):
    """Write an OBJ file of an off-centre ellipsoid with uv."""
    v_pos, faces = _sphere(rings=8, segments=16)
    v_pos = v_pos * torch.tensor([3.0, 4.0, 3.0]) + torch.tensor([10.0, 0, 0])
    lines = [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in v_pos.tolist()]
    lines += [f"vt {(x - 7) / 6:.9g} {(y + 4) / 8:.9g}" for x, y, _ in v_pos.tolist()]
    lines += ["f " + " ".join(f"{i}/{i}" for i in face) for face in (faces + 1).tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_config(folder, model, name, base, **values):
    path = folder / f"{name}.json"
    own = {"surface": "mesh", "base_mesh": str(base), "normalise_mesh": True, "learning_rate": 0.01}
    steps = {"iter": LAST, "coarse_iter": 2, "checkpoint_interval": 1, "video_interval": 0}
    settings = {**TINY, **own, **steps, "sd_model": str(model), "out_dir": str(folder / name), **values}
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.fixture(scope="module")
def whole(model_folder, tmp_path_factory):
    """Return a folder that contains the finished run "whole" and its base mesh base.obj."""
    folder = tmp_path_factory.mktemp("sculpt")
    config = write_config(folder, model_folder, "whole", write_base(folder / "base.obj"))
    assert train.main(["--config", config]) == 0
    return folder


def test_vertices_move_and_faces_and_uv_are_kept(whole):
    before, after = load_mesh(whole / "base.obj"), load_mesh(whole / "whole/dmtet_mesh/mesh.glb")
    texts = [path.read_text() for path in (whole / "base.obj", whole / "whole/dmtet_mesh/mesh.obj")]
    kept = [[line for line in text.splitlines() if line[:2] != "v "] for text in texts]
    assert kept[0] == kept[1] and len(kept[0]) > 200
    moved = (before.v_pos.sort(0).values - after.v_pos.sort(0).values).abs().max()
    # Each of the four steps moves a vertex by up to 0.01. The factor 4 / 0.75 converts this length to the
    # units of the file, because the radius 0.75 is 4 units of the file.
    assert 0.005 < moved < 0.04 * 4 / 0.75
    log = [json.loads(line) for line in (whole / "whole/log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in log if "phase" in line][:LAST] == ["coarse", "coarse", "fine", "fine"]


def test_a_resumed_run_is_equal_bit_for_bit(whole, model_folder, monkeypatch):
    config = write_config(whole, model_folder, "parts", whole / "base.obj")

    def stop(self, step):
        if step == 3:
            raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(signals.StopRequest, "exit_if_requested", stop)
        with pytest.raises(SystemExit):
            train.main(["--config", config])
    assert train.main(["--config", config]) == 0
    first, second = (load_latest(whole / name / "checkpoints") for name in ("whole", "parts"))
    assert first.step == second.step == LAST and first.tensors.keys() == second.tensors.keys()
    assert {"scene.surface.change", "optimizer.0.exp_avg_sq"} <= first.tensors.keys()
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    files = [(whole / name / "dmtet_mesh/mesh.glb").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


Z_UP = {"base_mesh_up": "+z", "base_mesh_front": "-y"}


def test_a_z_up_file_moves_like_the_upright_file(whole, model_folder):
    """The file is base.obj in z-up axes, (x, −z, y). The export equals that of base.obj in these axes."""
    lines = (whole / "base.obj").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("v "):
            x, y, z = map(float, line.split()[1:])
            lines[number] = f"v {x:.9g} {-z:.9g} {y:.9g}"
    (whole / "z_up.obj").write_text("\n".join(lines) + "\n")
    config = write_config(whole, model_folder, "z_up", whole / "z_up.obj", **Z_UP)
    assert train.main(["--config", config]) == 0
    upright, lying = (
        torch.tensor([list(map(float, line.split()[1:])) for line in text.splitlines() if line[:2] == "v "])
        for text in ((whole / name / "dmtet_mesh/mesh.obj").read_text() for name in ("whole", "z_up"))
    )
    x, y, z = upright.unbind(-1)
    torch.testing.assert_close(lying, torch.stack([x, -z, y], -1), rtol=0, atol=2e-3)


def test_a_shape_that_starts_from_a_z_up_file_is_exported_in_its_axes(whole, model_folder, monkeypatch):
    """The mesh in the file is twice as long along z as along x and y."""
    shorten_fit(100, monkeypatch.setattr)
    v_pos, faces = _sphere(rings=8, segments=16)
    lines = [f"v {x:.9g} {y:.9g} {2 * z:.9g}" for x, y, z in v_pos.tolist()]
    lines += ["f " + " ".join(map(str, face)) for face in (faces + 1).tolist()]
    (whole / "tall.obj").write_text("\n".join(lines) + "\n")
    values = {"surface": "dmtet", "sdf_init_shape": "custom_mesh", "sdf_init_shape_scale": [0.8] * 3}
    values |= {
        "dmtet_grid": 24,
        "mesh_scale": 2.0,
        "learning_rate": 8e-3,
        "iter": 100,
        "coarse_iter": 0,
        **Z_UP,
    }
    config = write_config(whole, model_folder, "tall", whole / "tall.obj", **values)
    assert train.main(["--config", config]) == 0
    v_pos = load_mesh(whole / "tall/dmtet_mesh/mesh.obj").v_pos
    width, depth, height = (v_pos.max(0).values - v_pos.min(0).values).tolist()
    assert height > 1.5 * max(width, depth)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"surface": "mesh", "dmtet_grid": 32, "normalise_mesh": True}, "surface mesh: dmtet_grid"),
        ({"large_steps_lambda": 5, "dmtet_grid": 32}, "surface dmtet: large_steps_lambda"),
        ({"surface": "mesh", "relight": "a.hdr"}, "mode geometry_modeling: relight"),
        ({"surface": "mesh", "large_steps_lambda": 5}, None),
    ],
)
def test_keys_without_effect_are_reported(values, message):
    config, said = parse_config({"out_dir": "x", "base_mesh": "a.obj", **values}, "a.json"), []
    warn_without_effect(config, values, lambda text, *words: said.append(text % words))
    assert [line.partition("have no effect with ")[2] for line in said if "these keys" in line] == (
        [message] if message else []
    )


def test_keys_of_the_grid_may_change_at_a_resume():
    values = {"out_dir": "x", "base_mesh": "a.obj", "surface": "mesh"}
    assert settings(parse_config(values, "a")) == settings(parse_config({**values, "dmtet_grid": 99}, "a"))
    for key, value in (("large_steps_lambda", 3), ("normalise_mesh", True), ("base_mesh", "b.obj")):
        assert settings(parse_config(values, "a")) != settings(parse_config({**values, key: value}, "a"))


def test_surface_mesh_needs_a_mesh():
    with pytest.raises(
        ConfigError, match='"base_mesh" has the value null; allowed is a mesh file, because surface is mesh'
    ):
        parse_config({"out_dir": "x", "surface": "mesh"}, "a.json")
