"""Test OBJ, OFF, PLY and STL files from bug reports. Each test is named after the reported case."""

import logging
import struct
from functools import partial

import numpy as np
import pytest
import reader_refusal
import torch
from gltf_files import CUBE, CUBE_FACES

from geometry.fixed_mesh import load_fixed_mesh, placement
from geometry.orientation import flipped_faces, signed_volume
from geometry.start_shape import StartShapeConfig, build_start_shape
from render.mesh_io.load import load_mesh
from render.mesh_io.polygons import Polygons, repeated, triangulate
from render.mesh_io.write_obj import write_obj

# The polygon is a unit square with a notch of 0.4 by 0.5, so it is U-shaped and has area 0.8.
U_SHAPE = [(0, 0), (1, 0), (1, 1), (0.7, 1), (0.7, 0.5), (0.3, 0.5), (0.3, 1), (0, 1)]
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


def area(mesh) -> float:
    a, b, c = mesh.v_pos.double()[mesh.faces].unbind(1)
    return float(torch.linalg.cross(b - a, c - a, dim=-1).norm(dim=-1).sum()) / 2


refusal = partial(reader_refusal.refusal, read=load_mesh)


def obj(folder, v_pos, faces, name="a.obj", head=""):
    lines = ["v {!r} {!r} {!r}".format(*map(float, point)) for point in v_pos]
    lines += ["f " + " ".join(str(corner + 1) for corner in face) for face in faces]
    (folder / name).write_text(head + "\n".join(lines) + "\n")
    return folder / name


def prism(outline, height=0.4):
    """Return a prism over an outline: two polygons, and quadrilaterals on the sides."""
    n = len(outline)
    v_pos = [(x, y, z) for z in (0, height) for x, y in outline]
    side = [[k, (k + 1) % n, n + (k + 1) % n, n + k] for k in range(n)]
    return v_pos, [list(range(n))[::-1], list(range(n, 2 * n)), *side]


def test_obj_concave_ngon(tmp_path):
    mesh = load_mesh(obj(tmp_path, *prism(U_SHAPE)))
    assert mesh.v_pos.shape == (16, 3) and len(mesh.faces) == 2 * 6 + 2 * 8
    perimeter = 4 + 2 * 0.5
    assert area(mesh) == pytest.approx(2 * 0.8 + 0.4 * perimeter, rel=1e-6)
    assert signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(0.8 * 0.4, rel=1e-6)
    assert not flipped_faces(mesh.v_pos, mesh.faces).any()


@pytest.mark.parametrize("first", range(4))
def test_concave_quadrilaterals_are_divided_inside(first):
    arrow = np.array([[0, 0, 0], [2, 0, 0], [0.5, 0.5, 0], [0, 2, 0]])
    corners = np.roll(np.arange(4), first)
    triangles = triangulate(Polygons(arrow, corners, np.array([4])))
    a, b, c = (arrow[corners[triangles[:, k]]] for k in range(3))
    assert (np.cross(b - a, c - a)[:, 2] > 0).all()
    assert np.cross(b - a, c - a)[:, 2].sum() / 2 == pytest.approx(1)


def star(n, seed):
    """Return a star-shaped polygon in a random plane, and its area."""
    rng = np.random.default_rng(seed)
    angle = (np.arange(n) + 0.8 * rng.random(n)) * 2 * np.pi / n
    radius = rng.random(n) ** 2 + 0.05
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return np.stack([x, y, 0 * x], -1) @ turn + 5, abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


@pytest.mark.parametrize("n", [5, 7, 12, 60, 400])
def test_ear_clipping_covers_a_polygon_once(n):
    v_pos, expected = star(n, seed=n)
    triangles = triangulate(Polygons(v_pos, np.arange(n), np.array([n])))
    assert len(triangles) == n - 2 and set(triangles.reshape(-1)) == set(range(n))
    a, b, c = (v_pos[triangles[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    assert np.linalg.norm(cross, axis=1).sum() / 2 == pytest.approx(expected, rel=1e-9)
    assert (cross @ cross.sum(0) > 0).all()


def test_a_polygon_with_a_hole_behind_a_bridge():
    ring = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
    v_pos = np.c_[np.array(ring, float), np.zeros(10)]
    triangles = triangulate(Polygons(v_pos, np.arange(10), np.array([10])))
    a, b, c = (v_pos[triangles[:, k]] for k in range(3))
    assert np.abs(np.cross(b - a, c - a)[:, 2]).sum() / 2 == pytest.approx(12)


@pytest.mark.parametrize("kind", ["line", "point", "tangle", "folded", "collinear corners"])
def test_degenerate_polygons_give_n_minus_2_triangles(kind):
    rng = np.random.default_rng(0)
    v_pos = {
        "line": np.arange(9)[:, None] * np.ones(3),
        "point": np.ones((9, 3)),
        "tangle": rng.normal(size=(9, 3)),
        "folded": np.array(
            [(0, 0, 0), (1, 0, 0), (1, 1, 1), (0, 1, 0), (-1, 1, 2), (-1, 0, 0)] + [(0, 0, 0)] * 3
        ),
        "collinear corners": np.array([(x, 0, 0) for x in range(5)] + [(x, 1, 0) for x in (3, 2, 1, 0)]),
    }[kind].astype(float)
    triangles = triangulate(Polygons(v_pos, np.arange(9), np.array([9])))
    assert triangles.shape == (7, 3) and triangles.min() >= 0 and triangles.max() < 9
    if kind == "collinear corners":
        a, b, c = (v_pos[triangles[:, k]] for k in range(3))
        assert (np.cross(b - a, c - a)[:, 2] > 0).all()


def test_polygons_of_mixed_sizes_keep_their_order():
    rng = np.random.default_rng(1)
    sizes = np.array([3, 6, 4, 2, 5, 3, 1, 7])
    v_pos = rng.normal(size=(sizes.sum(), 3))
    triangles = triangulate(Polygons(v_pos, np.arange(sizes.sum()), sizes))
    owner = np.repeat(np.arange(len(sizes)), sizes)[triangles]
    assert (owner == owner[:, :1]).all()
    assert owner[:, 0].tolist() == np.repeat(np.arange(8), np.maximum(sizes - 2, 0)).tolist()


def test_obj_utm_coordinates(tmp_path, caplog):
    place = np.array([500000.0, 4200000.0, 120.0])
    corners = CUBE.astype(np.float64) * 0.5
    corners[0] += 0.0123
    mesh = load_fixed_mesh(obj(tmp_path, corners + place, CUBE_FACES))
    placed = placement(mesh, normalise=True)
    assert "far from the origin" in caplog.text
    seen = placed.into_view(mesh)
    assert seen.v_pos.dtype == torch.float32
    (tmp_path / "out").mkdir()
    write_obj(tmp_path / "out", placed.back(seen))
    lines = (tmp_path / "out/mesh.obj").read_text().splitlines()
    written = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    written = written[np.lexsort(written.round(3).T)]
    expected = (corners + place)[np.lexsort((corners + place).round(3).T)]
    assert np.abs(written - expected).max() < 1e-6
    shape = build_start_shape(
        StartShapeConfig(sdf_init_shape="custom_mesh", base_mesh=str(tmp_path / "a.obj"))
    )
    centred = corners - corners.mean(0)
    volume = signed_volume(torch.from_numpy(corners), torch.from_numpy(CUBE_FACES.astype(np.int64)))
    expected = volume / np.linalg.norm(centred, axis=1).max() ** 3
    assert signed_volume(shape.v_pos, shape.faces) == pytest.approx(expected, rel=1e-5)


def test_a_mesh_near_the_origin_stays_float32(tmp_path):
    mesh = load_mesh(obj(tmp_path, CUBE + 3, CUBE_FACES))
    assert mesh.origin == (0, 0, 0) and mesh.v_pos.amax() == 4


@pytest.mark.parametrize("name", ["triangles", "quads", "quads from another corner"])
def test_mesh_double_sided(tmp_path, caplog, name):
    faces = CUBE_FACES.tolist() if name == "triangles" else QUADS
    back = [face[::-1] for face in faces]
    if name == "quads from another corner":
        back = [face[1:] + face[:1] for face in back]
    with caplog.at_level(logging.INFO):
        mesh = load_mesh(obj(tmp_path, CUBE, faces + back))
    assert len(mesh.faces) == 12 and signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(8)
    assert f"{len(faces)} faces dropped that repeat" in caplog.text
    fixed = load_fixed_mesh(tmp_path / "a.obj")
    assert ((fixed.v_nrm * fixed.v_pos).sum(-1) > 0.5).all()
    shape = build_start_shape(
        StartShapeConfig(sdf_init_shape="custom_mesh", base_mesh=str(tmp_path / "a.obj"))
    )
    assert shape.signed_distance(torch.zeros(1, 3)) < -0.5


def test_repeated_polygons_are_found_by_their_positions():
    corners = np.array([0, 1, 2, 2, 1, 0, 0, 1, 3, 0, 1, 2, 3, 1, 2, 3, 0])
    assert repeated(Polygons(np.zeros((4, 3)), corners, np.array([3, 3, 3, 4, 4]))).tolist() == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_mesh_memory_of_an_edge_with_many_faces(tmp_path):
    """The memory for N triangles with a common edge is proportional to N."""
    import tracemalloc

    n = 4000
    angle = np.arange(n) * 2 * np.pi / n
    v_pos = torch.from_numpy(
        np.r_[[[0, 0, 0], [0, 0, 1]], np.c_[np.cos(angle), np.sin(angle), np.full(n, 0.5)]]
    )
    faces = torch.stack([torch.zeros(n), torch.ones(n), torch.arange(n) + 2], -1).long()
    flipped_faces(v_pos[:5], faces[:3])
    tracemalloc.start()
    flipped_faces(v_pos, faces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * n


def test_obj_bom(tmp_path):
    plain = load_mesh(obj(tmp_path, CUBE, CUBE_FACES))
    text = (tmp_path / "a.obj").read_text()
    for name, content in (("b.obj", b"\xef\xbb\xbf" + text.encode()), ("c.obj", text.encode("utf-16"))):
        (tmp_path / name).write_bytes(content)
        assert torch.equal(load_mesh(tmp_path / name).v_pos[plain.faces], plain.v_pos[plain.faces])


def test_obj_vt_one_number(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0.25\nvt 0.5 0.75\nvt 1 0 0\nf 1/1 2/2 3/3\n"
    for name, changed in (("bulk.obj", text), ("lines.obj", text.replace("f ", "f\t"))):
        (tmp_path / name).write_text(changed)
        mesh = load_mesh(tmp_path / name)
        key = mesh.v_pos[mesh.faces[0]] @ torch.tensor([1.0, 2.0, 0.0])
        by_x = mesh.uv[mesh.uv_faces[0]][key.argsort()]
        assert by_x.tolist() == [[0.25, 1.0], [0.5, 0.25], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("v 0,5 0 0\n", "decimal point"),
        (
            "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\nv 1 1 1\n",
            "line 4: vertex index 9 is out of range, 4 are defined",
        ),
        ("v 0 0 0\nvp 0 0\ncstype bezier\nsurf 0 1 0 1 1 1 1 1\n", "free-form"),
        ("v 0 0 0\nv \x1b[31m 0 0\n", r"\x1b[31m"),
    ],
)
def test_obj_faults_name_the_fix(tmp_path, text, fault):
    (tmp_path / "a.obj").write_text(text)
    assert fault in refusal(tmp_path / "a.obj")


def test_obj_faces_may_precede_their_vertices(tmp_path):
    path = obj(tmp_path, CUBE, CUBE_FACES)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(sorted(lines, key=lambda line: line[0])))
    assert len(load_mesh(path).faces) == 12
    path.write_text("\n".join(sorted(lines, key=lambda line: line[0])).replace("f ", "f\t"))
    assert len(load_mesh(path).faces) == 12


@pytest.mark.parametrize(
    "head", ["OFF\n8 6 0", "off\n8 6 12", "OFF 8 6 0", "# by hand\nOFF\n\n8 6", "8 6 0", "COFF\n8 6 0"]
)
def test_off_ngon(tmp_path, head):
    colour = " 255 0 0 255" if head.startswith("C") else ""
    lines = [head] + ["{} {} {}".format(*point) + colour for point in CUBE]
    lines += [" ".join(map(str, [4, *face])) + (" 1 0 0" if k % 2 else "") for k, face in enumerate(QUADS)]
    (tmp_path / "a.off").write_text("\n".join(lines) + "\n")
    mesh = load_mesh(tmp_path / "a.off")
    assert len(mesh.faces) == 12 and signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(8)


def test_off_with_concave_polygons(tmp_path):
    v_pos, faces = prism(U_SHAPE)
    lines = ["OFF", f"{len(v_pos)} {len(faces)} 0", *(" ".join(map(str, point)) for point in v_pos)]
    (tmp_path / "a.off").write_text("\n".join([*lines, *(" ".join(map(str, [len(f), *f])) for f in faces)]))
    mesh = load_mesh(tmp_path / "a.off")
    assert signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(0.32) and len(mesh.faces) == 28


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("OFF\n8 6 0\n0 0 0\n", "cut short"),
        ("OFF\n99999999999 6 0\n0 0 0\n", "cut short"),
        ("4OFF\n1 0 0\n0 0 0 1\n", "dimensions"),
        ("OFF BINARY\n", "text form"),
        ("OFF\n3 1 0\n0 0 0\n1 0\n0 1 0\n3 0 1 2\n", "line 4: a vertex needs 3 numbers"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n4 0 1 2\n", "line 6"),
        ("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "3 points and no faces"),
    ],
)
def test_off_faults(tmp_path, text, fault):
    (tmp_path / "a.off").write_text(text)
    assert fault in refusal(tmp_path / "a.off")


def ply(kind, count="uchar", uv=None, extra=b"", head=""):
    """Return the content of a PLY file of a cube that has four quadrilaterals and four triangles.

    Each face has one property before and one property after its vertex indices.
    """
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(kind)
    faces = [*QUADS[:4], *CUBE_FACES[8:].tolist()]
    header = f"ply\nformat {kind} 1.0\ncomment TextureFile a.png\n{head}element vertex 8\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += "property float s\nproperty float t\n" if uv is not None else ""
    header += f"element face {len(faces)}\nproperty uchar flags\nproperty list {count} uint vertex_indices\n"
    header += "property float quality\nend_header\n"
    vertices = np.c_[CUBE, uv] if uv is not None else CUBE
    if order is None:
        rows = [" ".join(map(str, row)) for row in vertices]
        rows += [" ".join(map(str, [9, len(face), *face, 0.5])) for face in faces]
        return header.encode() + "\n".join(rows).encode() + b"\n" + extra
    letter = {"uchar": "B", "char": "b", "int": "i", "ushort": "H"}[count]
    body = vertices.astype(order + "f4").tobytes()
    for face in faces:
        body += struct.pack(f"{order}B{letter}{len(face)}If", 9, len(face), *face, 0.5)
    return header.encode() + body + extra


@pytest.mark.parametrize("count", ["uchar", "char", "int", "ushort"])
@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_blender_binary(tmp_path, kind, count):
    uv = CUBE[:, :2] * 0.25 + 0.5
    (tmp_path / "a.ply").write_bytes(ply(kind, count, uv))
    mesh = load_mesh(tmp_path / "a.ply")
    assert mesh.v_pos.shape == (8, 3) and len(mesh.faces) == 12
    assert signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(8)
    x, y = (mesh.v_pos[mesh.faces][..., k] * 0.25 + 0.5 for k in range(2))
    # In PLY files, v points up, so the reader replaces v by 1 − v.
    assert torch.equal(mesh.uv[mesh.uv_faces], torch.stack([x, 1 - y], -1))


def test_ply_missing_texture(tmp_path, caplog):
    (tmp_path / "a.ply").write_bytes(ply("binary_little_endian"))
    with caplog.at_level(logging.DEBUG):
        assert len(load_mesh(tmp_path / "a.ply").faces) == 12
    assert not caplog.records


def test_ply_texture_coordinates_of_corners(tmp_path):
    head = (
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty double x\nproperty double y\nproperty double z\n"
    )
    head += "element face 1\nproperty list uchar int vertex_index\nproperty list uchar float texcoord\n"
    head += "end_header\n"
    (tmp_path / "a.ply").write_text(head + "0 0 0\n1 0 0\n0 1 0\n3 0 1 2 6 0 0 1 0 0 0.75\n")
    mesh = load_mesh(tmp_path / "a.ply")
    assert sorted(mesh.uv.tolist()) == [[0, 0.25], [0, 1], [1, 1]]


def test_ply_triangle_strips(tmp_path):
    head = "ply\nformat ascii 1.0\nelement vertex 6\nproperty float x\nproperty float y\nproperty float z\n"
    head += "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    points = "0 0 0\n1 0 0\n0 1 0\n1 1 0\n0 2 0\n1 2 0\n"
    (tmp_path / "a.ply").write_text(head + points + "9 0 1 2 3 -1 2 3 4 5\n")
    mesh = load_mesh(tmp_path / "a.ply")
    a, b, c = mesh.v_pos[mesh.faces].unbind(1)
    assert torch.linalg.cross(b - a, c - a, dim=-1).tolist() == [[0, 0, 1]] * 4


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
def test_ply_faults(tmp_path, kind):
    whole, path = ply(kind), tmp_path / "a.ply"
    path.write_bytes(whole + b"\n\n")
    assert len(load_mesh(path).faces) == 12
    path.write_bytes(whole[:-9])
    assert "cut short" in refusal(path)
    path.write_bytes(whole.replace(b"vertex 8", b"vertex 888888888888"))
    assert "cut short" in refusal(path)
    path.write_bytes(whole.replace(b"list uchar uint", b"list float uint"))
    assert "must be an integer" in refusal(path)


@pytest.mark.parametrize("names", ["", "opacity scale_0 rot_0"])
def test_point_cloud(tmp_path, names):
    head = "ply\nformat ascii 1.0\nelement vertex 2\n"
    head += "".join(f"property float {name}\n" for name in ["x", "y", "z", *names.split()])
    (tmp_path / "a.ply").write_text(head + "end_header\n" + ("0 " * (3 + len(names.split())) + "\n") * 2)
    what = "Gaussian splats" if names else "points"
    assert f"it holds 2 {what} and no faces; make a surface of it first" in refusal(tmp_path / "a.ply")


def stl(triangles, head=b"made by hand", count=None):
    body = b"".join(bytes(12) + triangle.astype("<f4").tobytes() + b"\0\0" for triangle in triangles)
    return head.ljust(80) + struct.pack("<I", len(triangles) if count is None else count) + body


@pytest.mark.parametrize("head", [b"made by hand", b"solid made by hand"])
def test_stl_trailing_bytes(tmp_path, head, caplog):
    triangles, path = CUBE[CUBE_FACES], tmp_path / "a.stl"
    for content in (stl(triangles, head), stl(triangles, head) + b"\0\0", stl(triangles, head, count=0)):
        if head.startswith(b"solid") and len(content) % 50 == 36:
            content = content.replace(b"solid", b"SOLID\0")[:80] + content[80:]
        path.write_bytes(content)
        with caplog.at_level(logging.INFO):
            mesh = load_mesh(path)
        assert len(mesh.faces) == 12 and signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(8)
    assert "2 bytes after the last triangle are ignored" in caplog.text
    path.write_bytes(stl(triangles, b"made by hand")[:-60])
    assert "counts 12 triangles, and the file holds 10; it is cut short" in refusal(path)


def test_ascii_stl(tmp_path, caplog):
    text = "solid a\n"
    for triangle in CUBE[CUBE_FACES]:
        corners = "".join("   VERTEX {:e} {} {}\r\n".format(*point) for point in triangle)
        text += f" facet normal 0 0 0\n  outer loop\r\n{corners}  endloop\n endfacet\n"
    (tmp_path / "a.stl").write_text(text + "endsolid a\n", newline="")
    mesh = load_mesh(tmp_path / "a.stl")
    assert len(mesh.faces) == 12 and signed_volume(mesh.v_pos, mesh.faces) == pytest.approx(8)
    assert not caplog.records
    (tmp_path / "a.stl").write_text(text)
    load_mesh(tmp_path / "a.stl")
    assert "may be cut short" in caplog.text
    (tmp_path / "a.stl").write_text(text[: len(text) // 2 - 60])
    assert "cut short" in refusal(tmp_path / "a.stl")
