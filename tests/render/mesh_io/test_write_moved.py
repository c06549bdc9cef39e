"""Test that a mesh file can be written again with moved vertices: only positions and normals change."""

import json
import struct

import numpy as np
import pytest
import torch
from gltf_files import CUBE, CUBE_FACES, Gltf
from PIL import Image

from render.mesh_io.load import load_mesh
from render.mesh_io.moved_normals import corner_normals
from render.mesh_io.write_moved import write_moved

RED = "red picture.png"


def move(folder, source):
    """Write `source` with a different shift of every vertex. Return the loaded source and the shifts."""
    file = load_mesh(source)
    mixed = file.v_pos @ torch.tensor([[3.0, 1.0, -2.0], [1.0, 2.0, 5.0], [-1.0, 4.0, 2.0]])
    shift = 0.1 * torch.sin(mixed + 1)
    (folder / "out").mkdir()
    write_moved(folder / "out", source, shift)
    return file, shift


def nearest(points, others):
    """Return the distance from each point to the nearest of `others`, and the index of the nearest one."""
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist").min(1)


def read_glb(path):
    content = path.read_bytes()
    size = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[20 : 20 + size]), content[28 + size :]


def accessor(tree, binary, number, kind):
    entry = tree["accessors"][number]
    view = tree["bufferViews"][entry["bufferView"]]
    columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[entry["type"]]
    start = view["byteOffset"] + entry.get("byteOffset", 0)
    return np.frombuffer(binary, kind, entry["count"] * columns, start).reshape(-1, columns)


def cube_with_normals(gltf, material, **primitive):
    """Return a cube of 24 vertices with hard edges and uv."""
    corners = CUBE[CUBE_FACES.reshape(-1).astype(int)].reshape(-1, 3, 3)
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    keys, rows = np.unique(
        np.concatenate([corners.reshape(-1, 3), np.repeat(faces / 4, 3, axis=0)], 1).astype(np.float32),
        axis=0,
        return_inverse=True,
    )
    assert len(keys) == 24
    uv = np.random.default_rng(0).random((24, 2), dtype=np.float32)
    attributes = {"POSITION": keys[:, :3], "NORMAL": keys[:, 3:], "TEXCOORD_0": uv}
    attributes = {name: gltf.accessor(values) for name, values in attributes.items()}
    attributes["TANGENT"] = gltf.accessor(np.tile(np.array([1, 0, 0, 1], np.float32), (24, 1)))
    indices = gltf.accessor(rows.astype(np.uint16))
    return {"attributes": attributes, "indices": indices, "material": material, **primitive}


@pytest.fixture
def scene(tmp_path):
    """Write a .gltf with a picture and a mesh of two materials. Two nodes use the mesh.

    One node is rotated, the other is mirrored, scaled and sheared.
    """
    Image.new("RGB", (2, 2), (200, 0, 0)).save(tmp_path / RED)
    texture = {"images": [{"uri": "red%20picture.png", "name": "red"}], "textures": [{"source": 0}]}
    surface = {"baseColorTexture": {"index": 0}}
    materials = [{"name": "wood", "pbrMetallicRoughness": surface}, {"name": "iron"}]
    gltf = Gltf(**texture, materials=materials, extras={"author": "me"})
    parts = [cube_with_normals(gltf, 0), {**gltf.cube(), "material": 1}]
    parts[1]["attributes"]["POSITION"] = gltf.accessor(CUBE * 0.5 + 3)
    mesh = gltf.mesh(*parts, name="box")
    gltf.node(mesh=mesh, name="left", translation=[-4, 0, 0], rotation=[0, 0.6, 0, 0.8])
    gltf.node(mesh=mesh, name="right", matrix=[-2, 0, 0, 0, 0, 1, 0.5, 0, 0, 0, 1, 0, 5, 1, 0, 1])
    return gltf.write(tmp_path / "scene.gltf")


def test_a_gltf_scene_keeps_everything_but_positions_and_normals(scene, tmp_path):
    before, shift = move(tmp_path, scene)
    after = load_mesh(tmp_path / "out/mesh.glb")
    # The reader sorts vertices by position, so each moved vertex is compared with the nearest one.
    distance, number = nearest(before.v_pos + shift, after.v_pos)
    assert distance.max() < 1e-5 and len(set(number.tolist())) == len(before.v_pos) == 32
    assert sorted(map(sorted, number[before.faces].tolist())) == sorted(map(sorted, after.faces.tolist()))
    tree, binary = read_glb(tmp_path / "out/mesh.glb")
    old = json.loads(scene.read_text())
    assert [node["name"] for node in tree["nodes"]] == ["left", "right"]
    assert tree["materials"] == old["materials"] and tree["extras"] == old["extras"]
    assert [mesh["name"] for mesh in tree["meshes"]] == ["box", "box"]
    assert tree["nodes"][1]["mesh"] == 1
    old_binary = (tmp_path / "a.bin").read_bytes()
    first = old["meshes"][0]["primitives"][0]
    for mesh in tree["meshes"]:
        part = mesh["primitives"][0]
        assert "TANGENT" not in part["attributes"]
        for name, kind in (("TEXCOORD_0", "<f4"), (None, "<u2")):
            new, was = (p["attributes"][name] if name else p["indices"] for p in (part, first))
            values = accessor(tree, binary, new, kind), accessor(old, old_binary, was, kind)
            assert values[0].tobytes() == values[1].tobytes()
    picture = tree["bufferViews"][tree["images"][0]["bufferView"]]
    start = picture["byteOffset"]
    assert binary[start : start + picture["byteLength"]] == (tmp_path / RED).read_bytes()
    assert "uri" not in tree["images"][0] and tree["images"][0]["mimeType"] == "image/png"


def test_normals_of_a_gltf_stay_hard_and_follow_the_surface(scene, tmp_path):
    move(tmp_path, scene)
    tree, binary = read_glb(tmp_path / "out/mesh.glb")
    for mesh in tree["meshes"]:
        part = mesh["primitives"][0]
        v_pos, normal = (accessor(tree, binary, part["attributes"][n], "<f4") for n in ("POSITION", "NORMAL"))
        faces = accessor(tree, binary, part["indices"], "<u2").reshape(-1, 3)
        a, b, c = (v_pos[faces[:, k]] for k in range(3))
        cross = np.cross(b - a, c - a)
        cross /= np.linalg.norm(cross, axis=1, keepdims=True)
        assert np.allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-5)
        # Edges are hard: only the one or two triangles at a vertex on one side of the cube contribute to its
        # normal, so the normal is close to those of the triangles.
        assert (np.einsum("fkx,fx->fk", normal[faces], cross) > 0.9).all()
        assert len(np.unique(normal.round(4), axis=0)) >= 12


def test_files_of_unmoved_vertices_are_equal_bit_for_bit(scene, tmp_path):
    file = load_mesh(scene)
    (tmp_path / "out").mkdir()
    write_moved(tmp_path / "out", scene, torch.zeros_like(file.v_pos))
    tree, binary = read_glb(tmp_path / "out/mesh.glb")
    old, old_binary = json.loads(scene.read_text()), (tmp_path / "a.bin").read_bytes()
    for mesh in tree["meshes"]:
        for part, was in zip(mesh["primitives"], old["meshes"][0]["primitives"], strict=True):
            new = accessor(tree, binary, part["attributes"]["POSITION"], "<f4")
            assert np.array_equal(new, accessor(old, old_binary, was["attributes"]["POSITION"], "<f4"))
    written = load_mesh(tmp_path / "out/mesh.glb")
    assert torch.equal(written.v_pos, file.v_pos) and torch.equal(written.faces, file.faces)


def test_instances_of_one_node_are_written_as_one_mesh(tmp_path, caplog):
    gltf = Gltf()
    moves = np.array([[0, 0, 0], [5, 0, 0]], dtype=np.float32)
    instancing = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": gltf.accessor(moves)}}}
    gltf.node(mesh=gltf.mesh(gltf.cube()), extensions=instancing)
    before, shift = move(tmp_path, gltf.write(tmp_path / "two.glb"))
    assert "cannot move separately" in caplog.text
    after = load_mesh(tmp_path / "out/mesh.glb")
    assert len(before.v_pos) == 16
    assert torch.allclose(after.v_pos.sum(0), (before.v_pos + shift).sum(0), atol=1e-4)


OBJ = """# a box without a lid, and a quad
mtllib {name}.mtl
o box
v 0 0 0 1 0 0
v 1 0 0 1 0 0
v 1 1 0 \\
  1 0 0
v 0 1 0 1 0 0
v 0 0 1
v 1 0 1
v 9 9 9
vt 0 0
vt 1 0
vt 1 1
vt 1.5 -0.25
vn 0 0 -1
vn 0 -1 0
usemtl wood
s 1
f 4/1/1 3/2/1 2/3/1 1/4/1
usemtl iron
f 1/1/-1 2/2/-1 -2/3/-1
f 1/1/2 6/3/2 5/4/2
"""


@pytest.fixture
def box(tmp_path):
    (tmp_path / "box.obj").write_text(OBJ.format(name="my box"))
    (tmp_path / "my box.mtl").write_text("newmtl wood\nmap_Kd -s 1 1 1 maps/red picture.png\nnewmtl iron\n")
    (tmp_path / "maps").mkdir()
    Image.new("RGB", (2, 2), (200, 0, 0)).save(tmp_path / "maps" / RED)
    return tmp_path / "box.obj"


def test_an_obj_keeps_every_other_statement_and_its_materials(box, tmp_path):
    before, shift = move(tmp_path, box)
    text = (tmp_path / "out/mesh.obj").read_text()

    def others(text):
        lines = (line for line in text.replace("\\\n", " ").splitlines() if line[:2] not in ("v ", "vn"))
        # The indices of normals may change, but the indices of positions and uv must not change.
        return [
            " ".join(word.rpartition("/")[0] for word in line.split()) if line[:2] == "f " else line
            for line in lines
        ]

    assert others(text) == others(OBJ.format(name="my box"))
    positions = [line.split() for line in text.splitlines() if line.startswith("v ")]
    assert [words[4:] for words in positions[:4]] == [["1", "0", "0"]] * 4
    assert positions[6] == ["v", "9", "9", "9"]
    rows = torch.tensor([[float(word) for word in words[1:4]] for words in positions[:6]])
    distance, number = nearest(rows, before.v_pos + shift)
    assert distance.max() < 1e-6 and len(set(number.tolist())) == 6
    for name in ("my box.mtl", f"maps/{RED}"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    # The bottom and the front have four normals each: the edge between the bottom and the front is hard, but
    # the edge between the two front triangles is smooth.
    assert text.count("\nvn ") == 4 + 4


def test_the_other_format_has_the_same_faces_and_uv(box, tmp_path):
    before, shift = move(tmp_path, box)
    after = load_mesh(tmp_path / "out/mesh.glb")
    _, moved = nearest(before.v_pos + shift, after.v_pos)

    def corners(mesh, number):
        rows = [(number[f], mesh.uv[u]) for f, u in zip(mesh.faces, mesh.uv_faces, strict=True)]
        return sorted(sorted((int(v), *xy.tolist()) for v, xy in zip(f, u, strict=True)) for f, u in rows)

    assert corners(before, moved) == corners(after, torch.arange(len(after.v_pos)))


def test_a_library_outside_of_the_folder_is_not_copied(tmp_path, caplog):
    (tmp_path / "secret.mtl").write_text("newmtl x\n")
    (tmp_path / "in").mkdir()
    source = tmp_path / "in/a.obj"
    source.write_text("mtllib ../secret.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    move(tmp_path, source)
    assert "is not copied" in caplog.text
    assert not [path for path in tmp_path.rglob("secret.mtl") if path.parent != tmp_path]


def test_a_ply_is_written_in_both_formats(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 12\nproperty list uchar int vertex_indices\nend_header\n"
    rows = [" ".join(map(str, row)) for row in CUBE.tolist()]
    rows += [" ".join(map(str, [3, *row])) for row in CUBE_FACES.tolist()]
    (tmp_path / "cube.ply").write_text(header + "\n".join(rows) + "\n")
    before, shift = move(tmp_path, tmp_path / "cube.ply")
    for name in ("mesh.obj", "mesh.glb"):
        after = load_mesh(tmp_path / "out" / name)
        distance, number = nearest(before.v_pos + shift, after.v_pos)
        assert distance.max() < 1e-6
        moved_faces = sorted(map(sorted, number[before.faces].tolist()))
        assert moved_faces == sorted(map(sorted, after.faces.tolist()))


def test_corner_normals_of_a_smooth_and_a_hard_edge():
    v_pos = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    faces = np.array([[0, 1, 2], [0, 3, 1]])
    up, front = np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    smooth, number = corner_normals(v_pos, faces, np.broadcast_to(up, (2, 3, 3)))
    middle = (up + front) / np.sqrt(2)
    assert np.allclose(smooth[number], [[middle, middle, up], [middle, front, middle]])
    hard, number = corner_normals(v_pos, faces, np.stack([np.tile(up, (3, 1)), np.tile(front, (3, 1))]))
    assert np.allclose(hard[number], [[up] * 3, [front] * 3])
