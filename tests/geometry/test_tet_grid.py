"""Compare the counts of the generated lattice with formulas, and test grids from files."""

import io
import zipfile

import numpy as np
import pytest
import torch

from geometry.tet_grid import (
    TET_EDGES,
    cells_per_axis,
    edge_table,
    load_tet_grid,
    make_tet_grid,
    tet_volumes,
)


def sorted_faces(tets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unique triangles of the tets, and the number of tets that contain each triangle."""
    corners = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    return torch.unique(tets.long()[:, corners].reshape(-1, 3).sort(1).values, dim=0, return_counts=True)


def test_cells_of_the_published_resolutions():
    assert [cells_per_axis(name) for name in (64, 128, 256)] == [26, 51, 102]
    assert cells_per_axis(1) == 2


@pytest.mark.parametrize(("resolution", "scale"), [(5, 1.0), (8, 2.5), (32, 2.1)])
def test_counts_and_volumes(resolution, scale):
    n, grid = cells_per_axis(resolution), make_tet_grid(resolution, scale)
    assert len(grid.v_pos) == (n + 1) ** 3 + n**3
    assert len(grid.tets) == 12 * n**3
    assert len(grid.edges) == 3 * n * (n + 1) ** 2 + 3 * n**2 * (n - 1) + 8 * n**3 + 6 * n**2
    volumes = tet_volumes(grid.v_pos.double(), grid.tets)
    assert torch.allclose(volumes, volumes.new_full((), (scale / n) ** 3 / 12), rtol=1e-4)
    assert volumes.sum().item() == pytest.approx(scale**3, rel=1e-6)
    assert grid.v_pos.amin(0).tolist() == pytest.approx([-scale / 2] * 3)
    assert grid.v_pos.amax(0).tolist() == pytest.approx([scale / 2] * 3)
    assert grid.resolution == resolution


@pytest.mark.parametrize("resolution", [5, 20])
def test_inner_faces_have_two_tets_and_outer_faces_lie_on_the_boundary(resolution):
    n, grid = cells_per_axis(resolution), make_tet_grid(resolution, 2.0)
    faces, counts = sorted_faces(grid.tets)
    assert counts.max() == 2
    wall = faces[counts == 1]
    assert len(wall) == 12 * n * n
    on_wall = grid.v_pos[wall].abs() > 1 - 1e-6  # [F, corner, axis]
    assert on_wall.all(1).any(1).all()


def test_lattice_edges_equal_sorted_unique_edges():
    grid = make_tet_grid(12, 1.0)
    edges, tet_edges = edge_table(grid.tets)
    assert len(edges) == len(grid.edges)
    assert set(map(tuple, edges.tolist())) == set(map(tuple, grid.edges.tolist()))
    expected = grid.tets.long()[:, torch.tensor(TET_EDGES)].sort(-1).values
    assert torch.equal(grid.edges[grid.tet_edges.long()].long(), expected)
    assert torch.equal(edges[tet_edges.long()].long(), expected)


def test_lattice_edges_are_ordered_by_their_midpoints():
    """The hash encoding is faster if consecutive edges are neighbours along x."""
    grid = make_tet_grid(8, 1.0)
    x, y, z = grid.v_pos[grid.edges.long()].double().mean(1).mul(4 * cells_per_axis(8)).round().long().T
    key = (z * 100 + y) * 100 + x
    assert (key.diff() > 0).all()


def test_loaded_grid_is_scaled_and_negative_tets_are_reoriented(tmp_path):
    grid = make_tet_grid(5, 1.0)
    tets = grid.tets.numpy().copy()
    tets[::2] = tets[::2][:, [1, 0, 2, 3]]
    np.savez(tmp_path / "grid.npz", vertices=grid.v_pos.numpy(), indices=tets)
    loaded = load_tet_grid(tmp_path / "grid.npz", scale=2.0, resolution=64)
    volumes = tet_volumes(loaded.v_pos.double(), loaded.tets)
    assert volumes.min() > 0 and volumes.sum().item() == pytest.approx(8, rel=1e-6)
    assert loaded.resolution == 64
    assert torch.equal(loaded.tets.sort(1).values, grid.tets.sort(1).values)


def test_loaded_grid_is_in_c_order(tmp_path):
    """Kernels need arrays in C order. numpy keeps the memory order of the file, so the loader converts it."""
    grid = make_tet_grid(5, 1.0)
    np.savez(tmp_path / "grid.npz", vertices=np.asfortranarray(grid.v_pos.numpy()), indices=grid.tets.numpy())
    loaded = load_tet_grid(tmp_path / "grid.npz", scale=1.0, resolution=64)
    assert loaded.v_pos.is_contiguous() and torch.equal(loaded.v_pos, grid.v_pos)


def test_vertices_are_numbered_along_x_first():
    """Consecutive vertices use neighbouring rows of the hash tables, which makes the encoding faster."""
    n = cells_per_axis(16)
    v_pos = make_tet_grid(16, 1.0).v_pos
    for first, row in ((0, n + 1), ((n + 1) ** 3, n)):
        assert (v_pos[first : first + row].diff(dim=0) - torch.tensor([1 / n, 0, 0])).abs().max() < 1e-6
        assert v_pos[first + row, 1] > v_pos[first, 1] and v_pos[first + row, 0] == v_pos[first, 0]


FAULTS = {
    "indices.*0 … 2": {"indices": [[0, 1, 2, 3]]},
    "NaN": {"vertices": [[0.0, 0, 0], [1, 0, 0], [float("nan"), 0, 0]]},
    "shape .V, 3.": {"vertices": [[0.0, 0.0]]},
    "integers of shape": {"indices": [[0.5, 1, 2, 2]]},
    "no tetrahedra": {"indices": np.zeros((0, 4), dtype=int)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_grid_files(tmp_path, fault):
    arrays = {"vertices": [[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], "indices": [[0, 1, 2, 2]]} | FAULTS[fault]
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"bad.npz.*{fault}"):
        load_tet_grid(path, 1.0, 64)


def test_missing_and_unreadable_grid_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        load_tet_grid(tmp_path / "nowhere.npz", 1.0, 64)
    for name, content in (("text.npz", b"no grid"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_tet_grid(tmp_path / name, 1.0, 64)
    np.savez(tmp_path / "keys.npz", points=np.zeros(3))
    with pytest.raises(ValueError, match="vertices"):
        load_tet_grid(tmp_path / "keys.npz", 1.0, 64)


def archive_with_declared_rows(rows: int) -> bytes:
    """Return an archive whose `vertices` array declares `rows` rows in its header but contains none."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, 3), }}".ljust(117) + "\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("vertices.npy", b"\x93NUMPY\1\0v\0" + header.encode())
    return content.getvalue()


def damaged_npz(whole: bytes) -> dict[str, bytes]:
    """Return copies of the file in which the ZIP container or an array is damaged."""
    named = whole.index(b"vertices.npy")
    encrypted = bytearray(whole)
    for at in (whole.index(b"PK\3\4") + 6, whole.index(b"PK\1\2") + 8):
        encrypted[at] |= 1
    method = bytearray(whole)
    for at in (whole.index(b"PK\3\4") + 8, whole.index(b"PK\1\2") + 10):
        method[at] = 97
    crc = bytearray(whole)
    crc[named + 150] ^= 1
    return {
        "shape_1e12": archive_with_declared_rows(10**12),
        "shape_1e30": archive_with_declared_rows(10**30),
        "cut": whole[:300],
        "cut10": whole[:-10],
        "pkonly": b"PK\3\4",
        "crc": bytes(crc),
        "encrypted": bytes(encrypted),
        "method97": bytes(method),
        "npy_named": b"\x93NUMPY\1\0v\0" + b"{'descr': '<f4'}".ljust(118),
    }


@pytest.mark.parametrize(
    "kind",
    ["shape_1e12", "shape_1e30", "cut", "cut10", "pkonly", "crc", "encrypted", "method97", "npy_named"],
)
def test_damaged_npz(tmp_path, kind):
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.savez(tmp_path / "whole.npz", vertices=vertices, indices=[[0, 1, 2, 3]])
    assert len(load_tet_grid(tmp_path / "whole.npz", 1.0, 64).tets) == 1
    path = tmp_path / "bad.npz"
    path.write_bytes(damaged_npz((tmp_path / "whole.npz").read_bytes())[kind])
    with pytest.raises(ValueError, match=r"bad\.npz") as caught:
        load_tet_grid(path, 1.0, 64)
    assert str(caught.value).isprintable()
    if kind.startswith("shape"):
        assert "holds less" in str(caught.value)
