"""Test GLB files with trimesh and the Khronos validator."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from export_shapes import bumpy_ball, smooth_field
from PIL import Image

from render.mesh import Mesh
from render.mesh_io.write_glb import write_glb
from render.raster.reference import ReferenceRasteriser
from render.texturing.bake import bake
from render.texturing.uv import unwrap

TOOLS = Path(__file__).parents[2] / "helpers"


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return unwrap(bumpy_ball(2), "xatlas", (64, 64), 2)


@pytest.fixture(scope="module")
def textures(mesh) -> dict[str, torch.Tensor]:
    return bake(mesh, smooth_field, (64, 64), ReferenceRasteriser())


@pytest.fixture(scope="module")
def validator(pytestconfig) -> Path:
    """Install the validator in a folder of pytest's cache if it is missing. Return the folder."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("the Khronos validator needs node and npm")
    folder = pytestconfig.cache.mkdir("gltf_validator")
    if not (folder / "node_modules" / "gltf-validator" / "package.json").is_file():
        shutil.copy(TOOLS / "package.json", folder)
        command = ["npm", "install", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip("npm install of the Khronos validator took longer than two minutes")
        if done.returncode != 0:
            pytest.skip(
                f"npm install of the Khronos validator failed: {done.stderr.strip().splitlines()[-1:]}"
            )
    return folder


def validate(validator: Path, *files: Path) -> list[dict]:
    command = ["node", TOOLS / "validate_glb.mjs", validator, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read_glb(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON"
    return json.loads(content[20 : 20 + size]), content[28 + size :]


def accessor(document: dict, binary: bytes, index: int) -> np.ndarray:
    entry = document["accessors"][index]
    view = document["bufferViews"][entry["bufferView"]]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[entry["type"]]
    kind = {5126: "<f4", 5125: "<u4"}[entry["componentType"]]
    return np.frombuffer(binary, kind, entry["count"] * width, view["byteOffset"]).reshape(-1, width)


def test_khronos_validator_reports_no_error(mesh, textures, validator, tmp_path):
    cases = {
        "plain.glb": (bumpy_ball(1), {}),
        "unwrapped.glb": (mesh, {}),
        "painted.glb": (mesh, {"kd": textures["kd"], "ks": textures["ks"]}),
        "bumped.glb": (mesh, textures),
    }
    for name, (surface, given) in cases.items():
        write_glb(tmp_path / name, surface, given)
    for report in validate(validator, *(tmp_path / name for name in cases)):
        found = {key: report[key] for key in ("numErrors", "numWarnings", "numInfos", "numHints")}
        # The validator reports an unused TEXCOORD_0 (severity "info") for an unwrapped mesh without textures.
        allowed = 1 if report["file"].endswith("unwrapped.glb") else 0
        assert sum(found.values()) == found["numInfos"] == allowed, report


def test_validator_reports_a_fault(mesh, validator, tmp_path):
    write_glb(tmp_path / "mesh.glb", mesh)
    content = bytearray((tmp_path / "mesh.glb").read_bytes())
    content[-4:] = struct.pack("<I", 10**9)
    (tmp_path / "mesh.glb").write_bytes(content)
    assert validate(validator, tmp_path / "mesh.glb")[0]["numErrors"] > 0


def test_trimesh_reads_the_same_surface_and_pictures(mesh, textures, tmp_path):
    write_glb(tmp_path / "mesh.glb", mesh, textures)
    scene = trimesh.load(tmp_path / "mesh.glb", process=False)
    assert len(scene.geometry) == 1
    loaded = next(iter(scene.geometry.values()))
    assert np.array_equal(np.float32(loaded.triangles), mesh.v_pos[mesh.faces].numpy())
    # trimesh flips v when it reads a file, so v is flipped back.
    theirs = loaded.visual.uv[loaded.faces] * [1, -1] + [0, 1]
    assert np.abs(theirs - mesh.uv[mesh.uv_faces].numpy()).max() < 1e-6
    material = loaded.visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (1, 1)
    packed = np.asarray(material.metallicRoughnessTexture, dtype=float) / 255
    ks = textures["ks"].numpy()
    assert np.abs(packed - np.stack([1 - ks[..., 0], ks[..., 1], ks[..., 2]], -1)).max() <= 0.5001 / 255
    assert material.occlusionTexture.size == material.baseColorTexture.size == (64, 64)
    normal = np.asarray(material.normalTexture, dtype=float) / 255 * 2 - 1
    assert np.abs(normal - textures["normal"].numpy()).max() <= 1.001 / 255


def test_base_colour_is_the_one_in_the_obj(mesh, textures, tmp_path):
    from render.mesh_io.write_obj import write_obj

    write_obj(tmp_path, mesh, textures)
    write_glb(tmp_path / "mesh.glb", mesh, textures)
    loaded = next(iter(trimesh.load(tmp_path / "mesh.glb").geometry.values()))
    picture = np.asarray(loaded.visual.material.baseColorTexture.convert("RGB"))
    assert np.array_equal(picture, np.asarray(Image.open(tmp_path / "texture_kd.png")))


def test_no_vertex_or_face_is_doubled(mesh, tmp_path):
    write_glb(tmp_path / "mesh.glb", mesh)
    document, binary = read_glb(tmp_path / "mesh.glb")
    primitive = document["meshes"][0]["primitives"][0]
    arrays = [accessor(document, binary, primitive["attributes"][n]) for n in ("POSITION", "TEXCOORD_0")]
    corners = np.concatenate(arrays, -1)
    assert len(np.unique(corners, axis=0)) == len(corners) == len(mesh.uv)
    faces = accessor(document, binary, primitive["indices"]).reshape(-1, 3)
    assert len(np.unique(np.sort(faces, 1), axis=0)) == len(mesh.faces)


def test_tangents_are_the_frame_that_the_normal_map_is_read_in(mesh, textures, tmp_path):
    """u increases along TANGENT. v decreases along cross(NORMAL, TANGENT) · w, which is up in the image."""
    write_glb(tmp_path / "mesh.glb", mesh, textures)
    document, binary = read_glb(tmp_path / "mesh.glb")
    primitive = document["meshes"][0]["primitives"][0]
    read = {name: accessor(document, binary, k) for name, k in primitive["attributes"].items()}
    faces = accessor(document, binary, primitive["indices"]).reshape(-1, 3)
    tangent, normal = read["TANGENT"][:, :3], read["NORMAL"]
    up = np.cross(normal, tangent) * read["TANGENT"][:, 3:]
    assert np.abs(np.linalg.norm(tangent, axis=-1) - 1).max() < 1e-5
    assert np.abs((tangent * normal).sum(-1)).max() < 1e-5
    corner = read["POSITION"][faces].astype(float)
    coordinate = read["TEXCOORD_0"][faces].astype(float)
    # The rows are ∂p/∂u and ∂p/∂v of each face.
    jacobian = np.linalg.solve(coordinate[:, 1:] - coordinate[:, :1], corner[:, 1:] - corner[:, :1])
    unit = jacobian / np.linalg.norm(jacobian, axis=-1, keepdims=True)
    assert (unit[:, :1] * tangent[faces]).sum(-1).min() > 0.5
    assert (unit[:, 1:] * up[faces]).sum(-1).max() < -0.5


def test_without_textures_the_surface_is_grey_rough_and_not_metallic(tmp_path):
    write_glb(tmp_path / "mesh.glb", bumpy_ball(1))
    document, _ = read_glb(tmp_path / "mesh.glb")
    surface = document["materials"][0]["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0, 0.9)
    assert "textures" not in document and "images" not in document
