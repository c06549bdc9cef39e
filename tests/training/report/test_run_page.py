"""Test the content and the size of the report page of a run."""

import base64
import io
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from report_run import NASTY, Reader, example_info, write_run

from render.mesh import Mesh, make_mesh
from render.mesh_io.write_glb import write_glb
from render.texturing.uv import tangents
from training.report import run_page as run_page_module
from training.report.media import STILLS_BYTES, VIDEO_BYTES, shrunk, slider, spread, stills_up_to
from training.report.model_viewer import LIGHTER, lighter, read_glb, viewer_source
from training.report.run_page import RunState, run_page

MOST_BYTES = 15_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "out")


def embedded(page: str, around: str) -> object:
    return json.loads(
        re.search(rf'class="{around}".*?<script type="application/json">(.*?)</script>', page)[1]
    )


def test_a_prompt_is_text_and_no_markup(folder):
    reader = Reader(run_page(example_info(folder, title=NASTY), RunState("failed", 50, NASTY)))
    assert reader.texts["h1"] == NASTY and NASTY in reader.texts["p"]
    assert reader.texts["title"] == f"{NASTY} – failed"
    assert not [tag for tag, attributes in reader.elements if "onclick" in attributes]


def test_page_of_a_finished_run_has_model_videos_stills_and_curves(folder):
    page = run_page(example_info(folder), RunState("done", 100, seconds={"export": 3.0}))
    model = base64.b64decode(re.search(r'id="model">([^<]+)<', page)[1])
    assert zlib.decompress(model) == (folder / "dmtet_mesh/mesh.glb").read_bytes()
    video = re.search(r'src="data:video/mp4;base64,([^"]+)"', page)[1]
    assert base64.b64decode(video) == (folder / "turntable.mp4").read_bytes()
    stills = embedded(page, "stills")
    assert [(still["step"], still["rows"]) for still in stills] == [(k, 2) for k in (20, 40, 60, 80, 100)]
    assert page.count('type="radio"') == 2 and 'max="4" value="4"' in page
    assert page.count('class="curve"') == 2
    # The phase has 100 steps in 25 s, which is 4 steps per second.
    assert "<td>25.0 s</td><td>4.00</td>" in page and "<td>28.0 s</td>" in page
    assert 'href="dmtet_mesh/mesh.glb"' in page


def test_page_of_a_running_run_shows_existing_results(folder):
    page = run_page(example_info(folder), RunState("running", 60, "export", written=1e9))
    assert [still["step"] for still in embedded(page, "stills")] == [20, 40, 60]
    assert 'class="state running">running' in page and "step 60 of 100, export" in page
    assert '<progress max="100" value="60"' in page and 'data-written="1000000000000"' in page
    # The model and the turntable in the folder were written by an earlier run, so the page does not show
    # them.
    assert 'id="model"' not in page and "data:video" not in page
    assert "model-viewer" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.S)
    assert embedded(page, "curve")[-1][2] == 60


def test_page_before_the_first_result(tmp_path):
    page = run_page(example_info(tmp_path), RunState("running", 0))
    assert "A mug" in page and ">Stills over time<" not in page and ">Curves<" not in page


def test_keys_that_differ_are_marked_and_stand_first(folder):
    page = run_page(example_info(folder), RunState("running", 60))
    first, every = page[page.index(">Config<") :].split("<details>")
    assert "<code>iter</code>" in first and "<code>seed</code>" not in first and "1 of 2 keys" in first
    assert '<span class="changed"><code>100</code></span>' in every
    assert "<td><code>42</code></td><td><code>42</code></td>" in every


def test_report_without_orbit_shows_no_earlier_turntable(folder):
    assert "data:video" not in run_page(replace(example_info(folder), orbit=False), RunState("done", 100))


def test_stills_are_small_pictures_of_this_run(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (750, 1500, 3), dtype=np.uint8)
    paths = [tmp_path / f"{step:06d}.png" for step in (10, 20)]
    for path in paths:
        Image.fromarray(noise).save(path)
    first = shrunk(paths[0], 1280)
    assert (first.width, first.height, first.rows) == (1280, 640, ())
    assert shrunk(paths[0], 1280) is first
    assert stills_up_to(tmp_path, 15) == paths[:1]


def test_stills_that_pack_badly_are_fewer(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (700, 1280, 3), dtype=np.uint8)
    paths = [tmp_path / f"{step:06d}.png" for step in range(8)]
    Image.fromarray(noise).save(paths[0])
    for path in paths[1:]:
        path.hardlink_to(paths[0])
    page = slider(paths)
    steps = [still["step"] for still in embedded(page, "stills")]
    assert len(page) < 1.4 * STILLS_BYTES and 2 <= len(steps) < 8 and (steps[0], steps[-1]) == (0, 7)


def test_stills_are_spread_evenly_with_both_ends():
    assert spread(list(range(100)), 4) == [0, 33, 66, 99] and spread([1, 2], 4) == [1, 2]


def noisy_ball(faces: int, side: int) -> tuple[Mesh, dict]:
    """Return a noisy ball with many UV seams and noise textures, whose data cannot be compressed well."""
    rows = int((faces / 4) ** 0.5)
    theta, phi = torch.meshgrid(
        torch.linspace(0.01, 3.13, rows + 1), torch.linspace(0, 6.283, 2 * rows + 1), indexing="ij"
    )
    directions = torch.stack([theta.sin() * phi.cos(), theta.cos(), theta.sin() * phi.sin()], -1).reshape(
        -1, 3
    )
    position = directions * (1 + 0.01 * torch.rand(len(directions), 1))
    row, column = torch.arange(rows)[:, None], torch.arange(2 * rows)
    corner = (row * (2 * rows + 1) + column).reshape(-1)
    below = corner + 2 * rows + 1
    triangles = torch.cat(
        [torch.stack([corner, corner + 1, below], -1), torch.stack([below, corner + 1, below + 1], -1)]
    )
    patch = (row // 10 * 1000 + column // 10).reshape(-1).repeat(2)
    pairs, uv_faces = torch.unique(triangles + patch[:, None] * len(position), return_inverse=True)
    mesh = replace(make_mesh(position, triangles), uv=torch.rand(len(pairs), 2), uv_faces=uv_faces)
    noise = torch.rand(1, 3, side // 4, side // 4)
    noise = torch.nn.functional.interpolate(noise, (side, side), mode="bilinear")[0].permute(1, 2, 0)
    normal = torch.nn.functional.normalize(noise * 0.3 + torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    return replace(mesh, tangents=tangents(mesh)), {"kd": noise, "ks": 0.5 * noise, "normal": normal}


def test_a_model_of_400_000_faces_fits_into_the_page(tmp_path):
    folder = write_run(tmp_path)
    mesh, textures = noisy_ball(400_000, 1024)
    assert 390_000 < len(mesh.faces) <= 400_000
    path = folder / "dmtet_mesh/mesh.glb"
    write_glb(path, mesh, textures)
    page = run_page(example_info(folder), RunState("done", 100))
    assert path.stat().st_size > 15_000_000
    assert len(page) < MOST_BYTES
    assert "A lighter copy" in page and 'id="model"' in page


def attributes(path) -> dict[str, np.ndarray]:
    """Return the vertex attributes of a GLB file as floats.

    Normalised integers are decoded as defined by glTF.
    """
    document, binary = read_glb(path.read_bytes())
    values = {}
    for name, index in document["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        kind = np.dtype({5126: "<f4", 5120: "<i1", 5122: "<i2", 5123: "<u2"}[accessor["componentType"]])
        columns = {"VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        stride = view.get("byteStride", columns * kind.itemsize)
        assert stride % 4 == 0 and view["byteOffset"] % 4 == 0
        steps = (stride, kind.itemsize)
        raw = np.ndarray((accessor["count"], columns), kind, binary, view["byteOffset"], steps)
        values[name] = raw / (np.iinfo(kind).max if accessor.get("normalized") else 1)
    return values


def images(path) -> list[Image.Image]:
    document, binary = read_glb(path.read_bytes())
    views = [document["bufferViews"][image["bufferView"]] for image in document["images"]]
    parts = [binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]] for view in views]
    return [Image.open(io.BytesIO(part)) for part in parts]


def test_the_limits_together_keep_the_page_small():
    assert len(viewer_source()) + 4 / 3 * (LIGHTER + STILLS_BYTES + 2 * VIDEO_BYTES) < MOST_BYTES


def test_model_above_all_limits_is_linked(folder):
    page = run_page(example_info(folder), RunState("done", 100), model_bytes=1000)
    assert "too large to show inside this page" in page and 'href="dmtet_mesh/mesh.glb"' in page
    assert 'id="model"' not in page and "ModelViewerElement" not in page


def test_the_lighter_copy_is_the_same_surface(folder):
    path = folder / "dmtet_mesh/mesh.glb"
    copy = path.with_name("lighter.glb")
    copy.write_bytes(lighter(path.read_bytes()))
    original, light = (trimesh.load(file, force="mesh", process=False) for file in (path, copy))
    extent = np.ptp(original.vertices, axis=0).max()
    assert np.abs(light.vertices - original.vertices).max() < 1.01 * extent / 65534
    assert (light.faces == original.faces).all()
    before, after = (attributes(file) for file in (path, copy))
    assert np.abs(after["TEXCOORD_0"] - before["TEXCOORD_0"]).max() < 1e-5
    assert np.abs(after["NORMAL"] - before["NORMAL"]).max() < 0.005
    assert before.keys() - after.keys() == {"TANGENT"}
    for exact, packed in zip(images(path), images(copy), strict=True):
        assert (exact.format, packed.format, packed.size) == ("PNG", "JPEG", exact.size)
        assert np.abs(np.asarray(packed, int) - np.asarray(exact.convert("RGB"), int)).mean() < 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.34, "12.3 s"),
        (59.97, "1 min 0 s"),
        (299.6, "5 min 0 s"),
        (3599.7, "1 h 0 min"),
        (7170.0, "2 h 0 min"),
    ],
)
def test_durations_are_rounded_before_they_are_split(seconds, text):
    assert run_page_module._duration(seconds) == text
