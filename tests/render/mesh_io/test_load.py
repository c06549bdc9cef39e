"""Compare mesh files of every format with the stored shape, and test damaged files."""

import json
import logging

import numpy as np
import pytest
import torch
import trimesh
from closed_surface import is_closed

from geometry.fixed_mesh import load_fixed_mesh
from geometry.orientation import signed_volume
from render.mesh import make_mesh
from render.mesh_io.load import load_mesh
from render.mesh_io.read_obj import _in_bulk, _line_by_line
from render.mesh_io.write_obj import write_obj
from render.texturing.uv import unwrap

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def write(folder, text: str, name: str = "mesh.obj"):
    path = folder / name
    path.write_text(text)
    return path


def corners(values: torch.Tensor, faces: torch.Tensor) -> set:
    """Return the faces as a set that depends neither on vertex numbers nor on the first corner of a face."""
    rows = values[faces.long()].numpy().round(5) + 0.0
    return {frozenset(tuple(map(tuple, np.roll(row, k, 0))) for k in range(3)) for row in rows}


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl", "glb", "gltf", "off"])
def test_every_format_gives_the_same_box(tmp_path, suffix):
    box = trimesh.creation.box((1, 2, 3))
    box.apply_translation([5, 0, 0])
    if suffix == "gltf":
        for name, content in trimesh.Scene(box).export(file_type="gltf").items():
            (tmp_path / name).write_bytes(content)
        path = tmp_path / "model.gltf"
    else:
        path = tmp_path / f"box.{suffix}"
        box.export(path)
    mesh = load_mesh(path)
    assert mesh.v_pos.shape == (8, 3) and mesh.v_pos.dtype == torch.float32
    assert mesh.faces.shape == (12, 3) and mesh.faces.dtype == torch.int64
    assert is_closed(mesh.faces) and signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(6)
    expected = torch.from_numpy(box.vertices.astype(np.float32))
    assert corners(mesh.v_pos, mesh.faces) == corners(expected, torch.from_numpy(np.array(box.faces)))


def test_glb_scene_places_its_parts(tmp_path):
    scene = trimesh.Scene()
    for x in (0.0, 10.0):
        place = trimesh.transformations.translation_matrix([x, 0, 0])
        scene.add_geometry(trimesh.creation.box((1, 1, 1)), transform=place)
    mirrored = np.diag([-1.0, 1, 1, 1])
    mirrored[0, 3] = 20
    scene.add_geometry(trimesh.creation.box((1, 1, 1)), transform=mirrored)
    scene.export(tmp_path / "scene.glb")
    mesh = load_mesh(tmp_path / "scene.glb")
    assert len(mesh.v_pos) == 24 and is_closed(mesh.faces)
    assert signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(3, rel=1e-5)
    assert mesh.v_pos[:, 0].max() == 20.5


def test_obj_polygons_negative_indices_comments_and_continuations(tmp_path):
    text = (
        "# a comment\nmtllib none.mtl\no first\nv 0 0 0\nv 1 0 0 # trailing\nv 1 1 0 0.5 0.5 0.5\nv 0 1 0\n"
        "vn 0 0 1\nusemtl one\nf 1//1 2//1 3//1 4//1\no second\nv 0 0 1\nv 1 0 1\nv 0 1 1\n"
        "usemtl two\ns off\nf -3 \\\n -2 -1\n"
    )
    mesh = load_mesh(write(tmp_path, text))
    expected = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]])
    assert corners(mesh.v_pos, mesh.faces) == corners(
        expected, torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    )
    assert mesh.uv is None and mesh.uv_faces is None


def test_obj_uv_is_flipped_and_kept_apart_from_positions(tmp_path):
    # Two triangles share an edge in space but not in the texture. uv 1 belongs to two positions.
    text = SQUARE + "vt 0 0.25\nvt 0.5 0\nvt 0.5 1\nvt 0.75 0.5\nf 1/1 2/2 3/3\nf 1/4 3/3 4/1\n"
    mesh = load_mesh(write(tmp_path, text))
    assert len(mesh.v_pos) == 4
    together = torch.cat([mesh.v_pos[mesh.faces], mesh.uv[mesh.uv_faces]], -1).reshape(-1, 5)
    expected = torch.tensor(
        [
            [0, 0, 0, 0, 0.75],
            [1, 0, 0, 0.5, 1],
            [1, 1, 0, 0.5, 0],
            [0, 0, 0, 0.75, 0.5],
            [1, 1, 0, 0.5, 0],
            [0, 1, 0, 0, 0.75],
        ]
    )
    assert torch.equal(together, expected)
    owner = dict.fromkeys(range(len(mesh.uv)))
    for position, uv in zip(mesh.faces.reshape(-1).tolist(), mesh.uv_faces.reshape(-1).tolist(), strict=True):
        assert owner[uv] in (None, position)
        owner[uv] = position
    assert len(mesh.uv) == 5


def test_uv_on_some_faces_only_is_no_uv(tmp_path):
    mesh = load_mesh(write(tmp_path, SQUARE + "vt 0 0\nf 1/1 2/1 3/1\nf 1 3 4\n"))
    assert mesh.uv is None and len(mesh.faces) == 2


def test_glb_uv_points_down_like_ours(tmp_path):
    plane = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    plane.visual = trimesh.visual.TextureVisuals(uv=[[0.0, 0.1], [1.0, 0.1], [0.0, 0.9]])
    plane.export(tmp_path / "plane.glb")
    mesh = load_mesh(tmp_path / "plane.glb")
    # In trimesh, v points up, and after loading it points down, so v of the top corner changes from 0.9 to
    # 0.1.
    top = mesh.uv[mesh.uv_faces[mesh.v_pos[mesh.faces][..., 1] == 1]]
    assert top.reshape(-1).tolist() == pytest.approx([0.0, 0.1])


def test_degenerate_faces_and_unused_vertices_are_dropped_and_equal_positions_welded(tmp_path):
    # Vertex 5 equals vertex 2, but has −0 instead of 0. Vertex 6 is unused. The second face contains one
    # position twice.
    text = SQUARE + "v 1 -0 0\nv 9 9 9\nf 1 2 3\nf 2 5 3\nf 1 3 4\n"
    mesh = load_mesh(write(tmp_path, text))
    assert len(mesh.v_pos) == 4 and len(mesh.faces) == 2 and mesh.v_pos.max() == 1


FAULTS = {
    "the file is empty": "",
    "it holds no vertices": "# nothing\n",
    "it holds 4 points and no faces; make a surface": SQUARE,
    "line 5: vertex index 7 is out of range": SQUARE + "f 1 2 7\n",
    "line 5: vertex index -5 is out of range": SQUARE + "f 1 2 -5\n",
    "line 5: vertex index 0 is out of range": SQUARE + "f 0 1 2\n",
    "line 6: uv index 2 is out of range": SQUARE + "vt 0 0\nf 1/1 2/2 3/1\n",
    "line 5: 'x' is not a vertex index": SQUARE + "f 1 2 x\n",
    "line 5: a face needs 3 corners": SQUARE + "f 1 2\n",
    "line 2: 'v' needs 3 numbers": "v 0 0 0\nv 1 2\n",
    "line 1: 'v 0 0 zero' holds something that is not a number": "v 0 0 zero\n",
    "vertex 2 has a position that is NaN": "v 0 0 0\nv nan 0 0\nv 1 1 0\nf 1 2 3\n",
    "vertex 3 has a position that is NaN, infinite": "v 0 0 0\nv 1 0 0\nv 1 inf 0\nf 1 2 3\n",
    "or beyond 1e+09": "v 1e39 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n",
    "faces are degenerate": "v 0 0 0\nv 1 0 0\nv 3 0 0\nf 1 2 3\n",
    "all its faces are degenerate": SQUARE + "f 1 1 2\n",
    "binary data": "v 0 0 0\n\0\1\2",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_obj(tmp_path, fault):
    path = write(tmp_path, FAULTS[fault])
    with pytest.raises(ValueError) as caught:
        load_mesh(path)
    message = str(caught.value)
    assert str(path) in message and fault in message and "\n" not in message


PLY = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
PLY_FACES = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
OTHER_FAULTS = {
    "nan.ply": (PLY + PLY_FACES + "0 0 0\n1 0 0\nnan 1 0\n3 0 1 2\n", "NaN"),
    "range.ply": (PLY + PLY_FACES + "0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n", ""),
    "cloud.ply": (PLY + "end_header\n0 0 0\n1 0 0\n0 1 0\n", "3 points and no faces"),
    "cut.ply": (PLY + PLY_FACES + "0 0 0\n", ""),
    "text.glb": ("this is no mesh", "cannot be read as glb"),
    "text.stl": ("this is no mesh", ""),
    "text.gltf": ("{", "cannot be read as gltf"),
    "text.off": ("this is no mesh", ""),
    "empty.ply": ("", "the file is empty"),
    "mesh.fbx": ("Kaydara", "unknown format '.fbx', use one of .obj, .ply"),
    "mesh": (SQUARE, "unknown format ''"),
}


@pytest.mark.parametrize("name", OTHER_FAULTS)
def test_broken_files_of_other_formats(tmp_path, name):
    text, fault = OTHER_FAULTS[name]
    path = write(tmp_path, text, name)
    with pytest.raises(ValueError) as caught:
        load_mesh(path)
    message = str(caught.value)
    assert str(path) in message and fault in message and "\n" not in message


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nowhere.obj", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            load_mesh(path)


def test_fixed_mesh_keeps_place_size_and_uv(tmp_path):
    mesh = load_fixed_mesh(write(tmp_path, SQUARE + "vt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 3/3\n"))
    assert mesh.v_pos.amax(0).tolist() == [1, 1, 0] and mesh.uv.shape == (3, 2)
    assert torch.equal(mesh.v_nrm, torch.tensor([[0.0, 0, 1]]).expand(3, 3))


def test_fixed_mesh_that_is_inside_out_is_turned_and_reported(tmp_path, caplog):
    box = trimesh.creation.box((1, 1, 1))
    box.invert()
    box.export(tmp_path / "inverted.ply")
    with caplog.at_level(logging.WARNING):
        mesh = load_fixed_mesh(tmp_path / "inverted.ply")
    assert signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(1)
    assert (mesh.v_nrm * mesh.v_pos).sum(-1).min() > 0
    assert "inverted.ply" in caplog.text and "inwards" in caplog.text


def test_turning_a_mesh_turns_its_uv_along(tmp_path):
    # The mesh is a tetrahedron with inward faces. The uv equal x and y.
    points = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    text = "".join(f"v {x} {y} {z}\nvt {x} {y}\n" for x, y, z in points)
    faces = [(1, 2, 3), (1, 4, 2), (1, 3, 4), (2, 4, 3)]
    path = write(tmp_path, text + "".join("f " + " ".join(f"{v}/{v}" for v in face) + "\n" for face in faces))
    assert signed_volume(load_mesh(path).v_pos, load_mesh(path).faces) < 0
    mesh = load_fixed_mesh(path)
    assert signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(1 / 6)
    x, y, _ = mesh.v_pos[mesh.faces].unbind(-1)
    assert torch.equal(mesh.uv[mesh.uv_faces], torch.stack([x, 1 - y], -1))


def test_open_mesh_is_unchanged(tmp_path):
    mesh = load_fixed_mesh(write(tmp_path, SQUARE + "f 3 2 1\n"))
    assert mesh.v_nrm[0].tolist() == [0, 0, -1]


@pytest.mark.parametrize(
    ("faces", "closed"),
    [
        ([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], True),
        ([[0, 2, 1], [0, 1, 3], [1, 2, 3]], False),
        ([[0, 1, 2], [0, 1, 3], [1, 2, 3], [0, 3, 2]], False),
    ],
)
def test_is_closed(faces, closed):
    assert is_closed(torch.tensor(faces)) == closed


PLAIN = (
    "# made by hand\nmtllib none.mtl\nv 0 0 0 1 0.5 0\nv 1.5e0 0 -0\nv 0 1 0\nv 0 0 1\n"
    "vt 0 0.25\nvt 1 0\nvt 0 1\nvn 0 0 1\n"
)


@pytest.mark.parametrize(
    "faces",
    [
        "f 1 2 3\nf  3 2 4 \n",
        "f 1 2 3 4\nv 9 9 9\nf 3 2 5",
        "f 1/1 2/2 3/3 4/1\nf 3/3 2/2 4/1",
        "f 1/1 2/2 3/3\nusemtl other\ng part\nf 3/3 2/2 4/1",
        "f 1//1 2//1 3//1\nf 3//1 2//1 4//1\n",
        "f 1/1/1 2/2/1 3/3/1\r\ns off\r\nf 3/3/1 2/2/1 4/1/1\r\n",
    ],
)
def test_plain_obj_files_read_in_bulk_are_as_read_line_by_line(tmp_path, faces):
    text = (PLAIN + faces).encode()
    bulk, lines = _in_bulk(text.replace(b"\r\n", b"\n")), _line_by_line(text)
    assert bulk is not None and len(bulk.sizes) == 2
    for name in ("v_pos", "corners", "sizes", "uv", "uv_corners"):
        one, other = getattr(bulk, name), getattr(lines, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


@pytest.mark.parametrize(
    "text",
    [
        PLAIN + "f 1 2 3\nf 1/1 2/2 3/3\n",
        PLAIN + "f -4 -3 -2\n",
        PLAIN + "f 1 2 3\n f 2 3 4\n",
        PLAIN + "f 1 2 3\nf\t2 3 4\n",
        PLAIN + "f 1 2 3 # one\n",
        PLAIN + "f 1 2 \\\n3\n",
        PLAIN + "f 1 2 3\rf 2 3 4\n",
        PLAIN + "f 1 2 3\n\tv 9 9 9\n",
        PLAIN + "f 1 2 5\n",
        PLAIN + "f 0 2 3\n",
        PLAIN + "f 1/4 2/1 3/1\n",
        PLAIN + "f 1/1 2/1 3\n",
        PLAIN + "f 1//1/ 2//1/ 3//1/\n",
        PLAIN + "f 1/ 2/ 3/\n",
        PLAIN + "f 1 2\n",
        PLAIN.replace("vt 1 0", "vt 1 zero") + "f 1 2 3\n",
        PLAIN.replace("v 0 1 0", "v 0 1") + "f 1 2 3\n",
        PLAIN + "f 1 2 3\x0bf 2 3 4\n",
        PLAIN + "f 1 2 3\u2028f 2 3 4\n",
        PLAIN + "f 1 2 3\x85f 2 3 4\n",
    ],
)
def test_other_files_are_read_line_by_line(text):
    assert _in_bulk(text.encode()) is None


def test_exported_files_are_read_in_bulk(tmp_path):
    ball = trimesh.creation.icosphere(2)
    mesh = make_mesh(torch.tensor(ball.vertices.copy()).float(), torch.tensor(ball.faces.copy()).long())
    folder = write_obj(tmp_path, unwrap(mesh, "projection", (64, 64), 0))
    assert _in_bulk(folder.read_bytes()) is not None


def test_an_error_quotes_a_long_value_in_part(tmp_path):
    tree = {"asset": {"version": "2.0"}, "extensionsRequired": ["long" * 5000]}
    path = write(tmp_path, json.dumps(tree), "mesh.gltf")
    with pytest.raises(ValueError, match="long…|lon…|lo…|l…") as caught:
        load_mesh(path)
    assert len(str(caught.value)) < 700 and "export it without that extension" in str(caught.value)
