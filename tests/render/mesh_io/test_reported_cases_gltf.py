"""Test glTF files from bug reports. Each test is named after the reported case."""

import json
from functools import partial

import numpy as np
import pytest
import reader_refusal
import torch
from gltf_files import CUBE, CUBE_FACES, Gltf

from geometry.orientation import signed_volume
from render.mesh_io.load import load_mesh


def bounds(mesh):
    return [mesh.v_pos.amin(0).tolist(), mesh.v_pos.amax(0).tolist()]


def is_box(mesh, low, high, boxes=1):
    """Return whether the mesh has the bounds `low` and `high`, and 12 faces per box."""
    expected = torch.tensor([low, high], dtype=torch.float32)
    return torch.allclose(torch.tensor(bounds(mesh)), expected, atol=1e-4) and len(mesh.faces) == 12 * boxes


refusal = partial(reader_refusal.refusal, read=load_mesh)


@pytest.mark.parametrize(
    ("extension", "fix"),
    [
        ("KHR_draco_mesh_compression", "gltf-transform copy"),
        ("EXT_meshopt_compression", "gltfpack without -c"),
        ("KHR_meshopt_compression", "gltfpack without -c"),
        ("VENDOR_unheard_of", "requires the extension VENDOR_unheard_of"),
    ],
)
def test_glb_draco(tmp_path, extension, fix, caplog):
    gltf = Gltf(extensionsRequired=[extension], extensionsUsed=[extension])
    gltf.node(mesh=gltf.mesh(gltf.cube()))
    message = refusal(gltf.write(tmp_path / "a.glb"))
    assert fix in message and not caplog.records


def test_optional_draco_uses_the_fallback_or_is_reported(tmp_path):
    gltf = Gltf(extensionsUsed=["KHR_draco_mesh_compression"])
    draco = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    gltf.node(mesh=gltf.mesh(gltf.cube(extensions=draco)))
    assert is_box(load_mesh(gltf.write(tmp_path / "a.glb")), [-1] * 3, [1] * 3)
    del gltf.tree["accessors"][0]["bufferView"]
    assert "Draco" in refusal(gltf.write(tmp_path / "a.glb"))


def test_meshopt_without_a_fallback_is_named(tmp_path):
    gltf = Gltf(buffers=[{"byteLength": 999, "extensions": {"EXT_meshopt_compression": {"fallback": True}}}])
    gltf.node(mesh=gltf.mesh(gltf.cube()))
    assert "meshopt" in refusal(gltf.write(tmp_path / "a.gltf"))


def test_extensions_of_materials_may_be_required(tmp_path):
    gltf = Gltf(extensionsRequired=["KHR_materials_pbrSpecularGlossiness", "KHR_texture_basisu"])
    gltf.node(mesh=gltf.mesh(gltf.cube()))
    assert len(load_mesh(gltf.write(tmp_path / "a.glb")).faces) == 12


def test_glb_instancing(tmp_path):
    gltf = Gltf(extensionsRequired=["EXT_mesh_gpu_instancing"])
    moves = gltf.accessor(np.array([[-4, 0, 0], [4, 0, 0], [0, 6, 0]], dtype=np.float32))
    half = gltf.accessor(np.array([[0, 0, 0, 127], [0, 0, 127, 0], [0, 0, 0, 127]], np.int8), normalized=True)
    sizes = gltf.accessor(np.array([[1, 2, 1], [1, 1, 1], [1, 1, -1]], dtype=np.float32))
    attributes = {"TRANSLATION": moves, "ROTATION": half, "SCALE": sizes}
    extension = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    gltf.node(mesh=gltf.mesh(gltf.cube()), extensions=extension, scale=[0.5, 0.5, 0.5])
    mesh = load_mesh(gltf.write(tmp_path / "a.glb"))
    assert is_box(mesh, [-2.5, -1, -0.5], [2.5, 3.5, 0.5], boxes=3)
    assert signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(2 + 1 + 1)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2"])
def test_glb_quantised(tmp_path, kind):
    gltf = Gltf(extensionsRequired=["KHR_mesh_quantization"])
    most = np.iinfo(kind).max
    low = -most if kind[0] == "i" else 0
    stored = np.where(CUBE > 0, most, low).astype(kind)
    uv = np.tile(np.array([[0, 0], [most, most]], kind), (4, 1))
    width = stored.itemsize * 3
    attributes = {
        "POSITION": gltf.accessor(stored, stride=-(-width // 4) * 4, normalized=True),
        "TEXCOORD_0": gltf.accessor(uv, stride=4, normalized=True),
    }
    primitive = {"attributes": attributes, "indices": gltf.accessor(CUBE_FACES.reshape(-1))}
    gltf.node(mesh=gltf.mesh(primitive), translation=[5, 0, 0], scale=[0.2, 0.2, 0.2])
    mesh = load_mesh(gltf.write(tmp_path / "a.glb"))
    start = -0.2 if kind[0] == "i" else 0.0
    assert is_box(mesh, [5 + start, start, start], [5.2, 0.2, 0.2])
    assert mesh.uv.amin() == 0 and mesh.uv.amax() == 1


def test_the_lowest_signed_integer_is_minus_one(tmp_path):
    gltf = Gltf()
    stored = np.where(CUBE > 0, 127, -128).astype(np.int8)
    attributes = {"POSITION": gltf.accessor(stored, stride=4, normalized=True)}
    gltf.node(mesh=gltf.mesh({"attributes": attributes, "indices": gltf.accessor(CUBE_FACES.reshape(-1))}))
    assert is_box(load_mesh(gltf.write(tmp_path / "a.glb")), [-1] * 3, [1] * 3)


def skinned(weights, **mesh_node):
    """Return a glTF with a skinned cube, whose two joints are children of an armature node.

    As in files from Mixamo, the armature has scale 0.01 and is rotated by 90 degrees about x.
    """
    gltf = Gltf()
    turn = [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]
    primitive = gltf.cube()
    primitive["attributes"]["JOINTS_0"] = gltf.accessor(np.tile(np.array([[0, 1, 0, 0]], np.uint8), (8, 1)))
    primitive["attributes"]["WEIGHTS_0"] = gltf.accessor(np.tile(np.array([weights], np.float32), (8, 1)))
    # The matrix is the inverse of the armature's transform in column-major order: (x, y, z) -> 100 (x, z,
    # -y).
    inverse = np.array([[100, 0, 0, 0], [0, 0, -100, 0], [0, 100, 0, 0], [0, 0, 0, 1]], np.float32)
    matrices = gltf.accessor(np.stack([inverse.reshape(-1)] * 2))
    gltf.node(name="hip")
    gltf.node(name="arm", translation=[300, 0, 0])
    gltf.node(mesh=gltf.mesh(primitive), skin=0, **mesh_node)
    gltf.node(children=[0, 1, 2], rotation=turn, scale=[0.01] * 3)
    gltf.tree["skins"] = [{"joints": [0, 1], "inverseBindMatrices": matrices}]
    gltf.tree["scenes"] = [{"nodes": [3]}]
    return gltf


@pytest.mark.parametrize(
    ("weights", "move"), [([1, 0, 0, 0], 0), ([0, 1, 0, 0], 3), ([0.5, 0.5, 0, 0], 1.5), ([0, 0, 0, 0], 0)]
)
def test_glb_skinned_character(tmp_path, weights, move):
    # In glTF, the transform of the node that contains a skinned mesh has no effect.
    mesh = load_mesh(skinned(weights, scale=[7, 7, 7]).write(tmp_path / "a.glb"))
    assert is_box(mesh, [move - 1, -1, -1], [move + 1, 1, 1])
    assert signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(8, rel=1e-4)


def test_joints_out_of_range_are_rejected(tmp_path):
    gltf = skinned([0, 1, 0, 0])
    gltf.tree["skins"][0]["joints"] = [0]
    refusal(gltf.write(tmp_path / "a.glb"))


def test_morph_weights_of_mesh_and_node(tmp_path):
    gltf = Gltf()
    move = gltf.accessor(np.tile(np.array([[4, 0, 0]], np.float32), (8, 1)))
    primitive = gltf.cube(targets=[{"POSITION": move}])
    number = gltf.mesh(primitive, weights=[0.5])
    gltf.node(mesh=number)
    assert is_box(load_mesh(gltf.write(tmp_path / "a.glb")), [1, -1, -1], [3, 1, 1])
    gltf.tree["nodes"][0]["weights"] = [1.0]
    assert is_box(load_mesh(gltf.write(tmp_path / "a.glb")), [3, -1, -1], [5, 1, 1])


def test_sparse_accessors(tmp_path):
    gltf = Gltf()
    primitive = gltf.cube()
    # The sparse accessor replaces corners 4 to 7, which have x = 1.
    sparse = {
        "count": 4,
        "indices": {
            "bufferView": gltf.view(np.arange(4, 8, dtype=np.uint8).tobytes()),
            "componentType": 5121,
        },
        "values": {"bufferView": gltf.view((CUBE[4:] * np.float32([3, 1, 1])).tobytes())},
    }
    gltf.tree["accessors"][0]["sparse"] = sparse
    gltf.node(mesh=gltf.mesh(primitive))
    assert is_box(load_mesh(gltf.write(tmp_path / "a.glb")), [-1, -1, -1], [3, 1, 1])


@pytest.mark.parametrize("mode", [5, 6])
def test_strips_and_fans(tmp_path, mode):
    corners = {5: [[0, 0], [1, 0], [0, 1], [1, 1]], 6: [[0, 0], [1, 0], [1, 1], [0, 1]]}[mode]
    gltf = Gltf()
    v_pos = np.c_[np.array(corners, np.float32), np.zeros(4, np.float32)]
    gltf.node(mesh=gltf.mesh({"attributes": {"POSITION": gltf.accessor(v_pos)}, "mode": mode}))
    mesh = load_mesh(gltf.write(tmp_path / "a.glb"))
    a, b, c = mesh.v_pos[mesh.faces].unbind(1)
    cross = torch.linalg.cross(b - a, c - a, dim=-1)
    assert cross.tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("material", [None, {}, {"pbrMetallicRoughness": {}}])
def test_glb_uv_without_material(tmp_path, material):
    gltf = Gltf(materials=[] if material is None else [material])
    primitive = gltf.cube(**({} if material is None else {"material": 0}))
    primitive["attributes"]["TEXCOORD_0"] = gltf.accessor(CUBE[:, :2] * np.float32(0.25) + np.float32(0.5))
    gltf.node(mesh=gltf.mesh(primitive))
    mesh = load_mesh(gltf.write(tmp_path / "a.glb"))
    expected = mesh.v_pos[mesh.faces][..., :2] * 0.25 + 0.5
    assert torch.equal(mesh.uv[mesh.uv_faces], expected)


def test_the_transform_of_texture_coordinates_is_applied(tmp_path):
    change = {"offset": [0.5, 0.25], "scale": [16, 8], "rotation": np.pi / 2}
    texture = {"index": 0, "extensions": {"KHR_texture_transform": change}}
    gltf = Gltf(materials=[{"pbrMetallicRoughness": {"baseColorTexture": texture}}])
    v_pos = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    attributes = {
        "POSITION": gltf.accessor(v_pos),
        "TEXCOORD_0": gltf.accessor(v_pos[:, :2] / np.float32(64)),
    }
    gltf.node(mesh=gltf.mesh({"attributes": attributes, "material": 0}))
    mesh = load_mesh(gltf.write(tmp_path / "a.glb"))
    by_position = dict(
        zip(map(tuple, mesh.v_pos[mesh.faces[0]].tolist()), mesh.uv[mesh.uv_faces[0]].tolist(), strict=True)
    )
    # The transformed uv are offset + rotation · scale · uv. By the specification, a rotation by 90 degrees
    # maps (1, 0) to (0, -1).
    assert by_position[(0, 0, 0)] == pytest.approx([0.5, 0.25])
    assert by_position[(1, 0, 0)] == pytest.approx([0.5, 0.25 - 16 / 64], abs=1e-6)
    assert by_position[(0, 1, 0)] == pytest.approx([0.5 + 8 / 64, 0.25], abs=1e-6)


def test_gltf_bom(tmp_path):
    gltf = Gltf()
    gltf.node(mesh=gltf.mesh(gltf.cube()))
    path = gltf.write(tmp_path / "a.gltf")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert is_box(load_mesh(path), [-1] * 3, [1] * 3)


@pytest.mark.parametrize(
    ("uri", "name"),
    [("My%20Model%20%C3%A9.bin", "My Model é.bin"), ("10%.bin", "10%.bin"), ("a%20b.bin", "a%20b.bin")],
)
def test_gltf_percent_uri(tmp_path, uri, name):
    gltf = Gltf()
    gltf.node(mesh=gltf.mesh(gltf.cube()))
    path = gltf.write(tmp_path / "a.gltf")
    (tmp_path / "a.bin").rename(tmp_path / name)
    path.write_text(path.read_text().replace("a.bin", uri))
    assert is_box(load_mesh(path), [-1] * 3, [1] * 3)


@pytest.mark.parametrize("uri", ["%2e%2e/a.bin", "..%2Fa.bin", "%2Fetc%2Fhostname", "none%1b.bin"])
def test_a_percent_encoded_name_cannot_leave_the_folder(tmp_path, uri):
    (tmp_path / "sub").mkdir()
    gltf = Gltf()
    gltf.node(mesh=gltf.mesh(gltf.cube()))
    path = gltf.write(tmp_path / "sub" / "a.gltf")
    (tmp_path / "sub" / "a.bin").rename(tmp_path / "a.bin")
    path.write_text(path.read_text().replace("a.bin", uri))
    assert "buffer" in refusal(path)


def test_a_glb_of_points(tmp_path):
    gltf = Gltf()
    gltf.node(mesh=gltf.mesh({"attributes": {"POSITION": gltf.accessor(CUBE)}, "mode": 0}))
    assert "it holds 8 points and no faces; make a surface" in refusal(gltf.write(tmp_path / "a.glb"))


def test_mesh_memory(tmp_path):
    """Instances, strides and declared element counts are checked before arrays are allocated."""
    gltf = Gltf()
    number = gltf.mesh(gltf.cube())
    for _ in range(400):
        gltf.node(mesh=number)
    gltf.tree["accessors"][1] = {**gltf.tree["accessors"][1], "count": 36}
    gltf.tree["accessors"].append({"componentType": 5126, "type": "VEC3", "count": 2**33})
    assert len(load_mesh(gltf.write(tmp_path / "many.glb")).faces) == 12
    faces = np.tile(CUBE_FACES.reshape(-1), 2000)
    gltf.tree["meshes"][0]["primitives"][0]["indices"] = gltf.accessor(faces)
    assert "its instances add up to more than" in refusal(gltf.write(tmp_path / "many.glb"))
    one = Gltf()
    one.node(mesh=one.mesh(one.cube()))
    one.tree["bufferViews"][0]["byteStride"] = 1
    assert "has the stride 1" in refusal(one.write(tmp_path / "stride.glb"))
    del one.tree["accessors"][0]["bufferView"]
    one.tree["accessors"][0]["count"] = 2**33
    assert "elements that it does not hold" in refusal(one.write(tmp_path / "zeros.glb"))


def test_textures_are_not_decoded(tmp_path):
    gltf = Gltf(images=[{"uri": "missing.png"}], textures=[{"source": 0}])
    gltf.tree["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    gltf.node(mesh=gltf.mesh(gltf.cube(material=0)))
    assert is_box(load_mesh(gltf.write(tmp_path / "a.gltf")), [-1] * 3, [1] * 3)


@pytest.mark.parametrize("version", ["1.0", "3.0"])
def test_other_versions_are_named(tmp_path, version):
    (tmp_path / "a.gltf").write_text(json.dumps({"asset": {"version": version}}))
    assert f"glTF {version}" in refusal(tmp_path / "a.gltf")
