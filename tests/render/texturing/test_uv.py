"""Test unwrapping, tangents, and the validation of uv coordinates from the user."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from export_shapes import bumpy_ball, noise_surface
from pydantic import ValidationError

from render.mesh import Mesh, make_mesh
from render.raster.reference import ReferenceRasteriser
from render.raster.select import choose_rasteriser
from render.texturing import uv as uv_module
from render.texturing.projection import folded_edges
from render.texturing.unwrap import UnwrapError
from render.texturing.uv import (
    ExportConfig,
    prepare_uv,
    tangents,
    unwrap,
    uv_areas,
    uv_clip,
    uv_fault,
    uv_normals,
)

METHODS = ["xatlas", "uvunwrap", "projection"]
RASTERISER = ReferenceRasteriser()


@pytest.fixture(scope="module", params=METHODS)
def unwrapped(request) -> Mesh:
    return unwrap(bumpy_ball(), request.param, (512, 512), 4)


def test_faces_have_uv_inside_the_image_and_keep_their_corners(unwrapped):
    plain = bumpy_ball()
    assert torch.equal(unwrapped.v_pos, plain.v_pos) and torch.equal(unwrapped.faces, plain.faces)
    assert unwrapped.uv_faces.shape == plain.faces.shape
    assert unwrapped.uv.min() >= 0 and unwrapped.uv.max() <= 1
    # No uv vertex belongs to two positions.
    pairs = torch.stack([unwrapped.uv_faces.reshape(-1), unwrapped.faces.reshape(-1)], -1)
    assert len(pairs.unique(dim=0)) == len(pairs[:, 0].unique())


def test_no_chart_is_mirrored_or_lost(unwrapped):
    assert (uv_areas(unwrapped) > 0).all()
    # If +u points right, seen from outside, v increases downwards, so cross(∂p/∂u, ∂p/∂v) points inwards.
    corner = unwrapped.v_pos[unwrapped.faces].double()
    coordinate = unwrapped.uv[unwrapped.uv_faces].double()
    edges, steps = corner[:, 1:] - corner[:, :1], coordinate[:, 1:] - coordinate[:, :1]
    jacobian = torch.linalg.solve(steps, edges)
    outward = torch.linalg.cross(edges[:, 0], edges[:, 1])
    inward = torch.linalg.cross(jacobian[:, 0], jacobian[:, 1])
    assert ((inward * outward).sum(-1) < 0).all()


def test_faces_do_not_overlap_in_the_texture(unwrapped):
    """The test counts the faces that cover each of 512² texel centres."""
    side, count = 512, torch.zeros(512, 512, dtype=torch.long)
    corners = unwrapped.uv[unwrapped.uv_faces].double() * side - 0.5
    for triangle in corners:
        low = triangle.amin(0).floor().long().clamp(0, side - 1)
        high = triangle.amax(0).ceil().long().clamp(0, side - 1)
        y, x = torch.meshgrid(
            torch.arange(low[1], high[1] + 1), torch.arange(low[0], high[0] + 1), indexing="ij"
        )
        point = torch.stack([x, y], -1).double()
        turns = []
        for k in range(3):
            along, towards = triangle[(k + 1) % 3] - triangle[k], point - triangle[k]
            turns.append(along[0] * towards[..., 1] - along[1] * towards[..., 0])
        turns = torch.stack(turns)
        count[low[1] : high[1] + 1, low[0] : high[0] + 1] += (turns < 0).all(0).long()
    assert count.max() == 1 and count.sum() > 0.3 * side * side


def test_charts_keep_the_padding(unwrapped):
    """Each chart has a margin of four texels, so two charts are more than seven rows or columns apart."""
    chart = chart_of_face(unwrapped)
    rast = RASTERISER.rasterize(uv_clip(unwrapped)[None], unwrapped.uv_faces, (512, 512))[0]
    label = torch.where(rast[..., 3] > 0, chart[(rast[..., 3].long() - 1).clamp(min=0)], -1)
    for axis in (0, 1):
        for distance in range(1, 8):
            a, b = label.narrow(axis, 0, 512 - distance), label.narrow(axis, distance, 512 - distance)
            assert not ((a >= 0) & (b >= 0) & (a != b)).any(), distance


def chart_of_face(mesh: Mesh) -> torch.Tensor:
    """Return for each face the smallest uv vertex index of its connected component."""
    label = torch.arange(len(mesh.uv))
    while True:
        least = label[mesh.uv_faces].amin(1)
        spread = label.scatter_reduce(0, mesh.uv_faces.reshape(-1), least.repeat_interleave(3), "amin")
        if torch.equal(spread, label):
            return least
        label = spread


def test_tangents_are_unit_and_orthogonal_to_the_normal(unwrapped):
    assert torch.allclose(unwrapped.tangents.norm(dim=-1), torch.ones(len(unwrapped.uv)), atol=1e-5)
    assert (unwrapped.tangents * uv_normals(unwrapped)).sum(-1).abs().max() < 1e-5


def test_tangents_follow_u_and_the_bitangent_goes_up_the_image():
    """The mesh is a cylinder. Seen from outside, u increases to the right and v increases downwards."""
    columns, rows = 64, 8
    u, v = torch.meshgrid(torch.linspace(0, 1, columns + 1), torch.linspace(0, 1, rows + 1), indexing="ij")
    angle = 2 * math.pi * u
    points = torch.stack([torch.sin(angle), 1 - 2 * v, torch.cos(angle)], -1).reshape(-1, 3)
    corner = (torch.arange(columns)[:, None] * (rows + 1) + torch.arange(rows)).reshape(-1)
    top, bottom, right = corner, corner + 1, corner + rows + 1
    faces = torch.cat([torch.stack([top, bottom, right], -1), torch.stack([bottom, right + 1, right], -1)])
    mesh = replace(make_mesh(points, faces), uv=torch.stack([u, v], -1).reshape(-1, 2), uv_faces=faces)
    outward = points * torch.tensor([1.0, 0.0, 1.0])
    assert ((mesh.v_nrm * outward).sum(-1) > 0.99).all() and (uv_areas(mesh) > 0).all()
    tangent = tangents(mesh)
    expected = torch.stack([torch.cos(angle), torch.zeros_like(u), -torch.sin(angle)], -1).reshape(-1, 3)
    inner = slice(rows + 1, -(rows + 1))
    # A vertex on the upper or lower rim has more faces on one side. The direction of each face differs from
    # the expected tangent by half of 360°/64, so the tolerance is 0.02.
    assert (tangent - expected)[inner].abs().max() < 0.02
    up = torch.linalg.cross(mesh.v_nrm, tangent)
    assert (up[:, 1] > 0.999).all()
    # The tangents of mirrored charts also point along +u, so their directions are reversed here.
    mirrored = replace(mesh, uv=torch.stack([1 - u, v], -1).reshape(-1, 2))
    assert (tangents(mirrored) + expected)[inner].abs().max() < 0.02


def test_faces_without_texture_area_still_get_a_tangent():
    mesh = bumpy_ball(1)
    mesh = replace(mesh, uv=torch.zeros(len(mesh.v_pos), 2), uv_faces=mesh.faces)
    tangent = tangents(mesh)
    assert torch.allclose(tangent.norm(dim=-1), torch.ones(len(tangent)), atol=1e-5)
    assert (tangent * mesh.v_nrm).sum(-1).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_any_scale_and_degenerate_faces_are_supported(method, scale):
    ball = bumpy_ball(1)
    faces = torch.cat([ball.faces, torch.tensor([[0, 0, 1], [5, 5, 5]])])
    mesh = unwrap(make_mesh(ball.v_pos * scale, faces), method, (128, 128), 2)
    assert mesh.uv_faces.shape == faces.shape and torch.isfinite(mesh.tangents).all()
    assert (uv_areas(mesh)[: len(ball.faces)] > 0).all() and uv_areas(mesh).sum() > 0.3


def test_auto_selects_the_method_by_face_count_and_folds(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    unwrap(bumpy_ball(1), "auto", (128, 128), 2)
    monkeypatch.setattr(uv_module, "XATLAS_MAX_FACES", 10)
    unwrap(bumpy_ball(1), "auto", (128, 128), 2)
    monkeypatch.setattr(uv_module, "MAX_FOLDED_EDGES", 2000)
    noise = noise_surface(8)
    assert 2000 < folded_edges(noise.v_pos.numpy(), noise.faces.numpy()) < 10_000
    unwrap(noise, "auto", (512, 512), 2)
    messages = [message for message in caplog.messages if message.startswith("unwrapped")]
    assert len(messages) == 3
    assert "xatlas" in messages[0] and "uvunwrap" in messages[1] and "projection" in messages[2]


def test_missing_unwrapper_is_logged_and_replaced(monkeypatch, caplog):
    find = uv_module.importlib.util.find_spec
    monkeypatch.setattr(uv_module.importlib.util, "find_spec", lambda n: None if n == "xatlas" else find(n))
    assert unwrap(bumpy_ball(1), "xatlas", (128, 128), 2).uv is not None
    assert "xatlas is not installed" in caplog.messages[0]
    monkeypatch.setattr(uv_module.importlib.util, "find_spec", lambda n: None)
    with pytest.raises(ValueError, match="pip install"):
        unwrap(bumpy_ball(1), "auto", (128, 128), 2)


def test_failing_library_is_replaced_by_the_projection(monkeypatch, caplog):
    def fail(*args):
        raise UnwrapError("2 pages instead of one")

    monkeypatch.setattr(uv_module, "unwrap_with", fail)
    caplog.set_level(logging.INFO)
    mesh = unwrap(bumpy_ball(), "uvunwrap", (512, 512), 4)
    assert "uvunwrap failed on this mesh: 2 pages instead of one" in caplog.messages[0]
    assert "with projection" in caplog.messages[1]
    assert (uv_areas(mesh) > 0).all() and uv_fault(mesh, RASTERISER) is None


def test_reduced_padding_is_logged(caplog):
    unwrap(noise_surface(8), "projection", (64, 64), 4)
    assert "allow a padding of only 0 texels, not 4" in caplog.messages[0]


def test_without_numba_each_face_is_a_chart(monkeypatch):
    monkeypatch.setattr(uv_module, "compiled_kernels", lambda: None)
    ball = bumpy_ball(2)
    mesh = unwrap(ball, "projection", (1024, 1024), 4)
    assert torch.equal(mesh.faces, ball.faces)
    assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1
    assert (uv_areas(mesh) > 0).all()
    # The area of the union equals the sum of the areas, so faces do not overlap.
    clip = uv_clip(mesh)[None]
    covered = (RASTERISER.rasterize(clip, mesh.uv_faces, (768, 768))[..., 3] > 0).double().mean()
    assert covered == pytest.approx(uv_areas(mesh).sum().item(), rel=0.02)


def test_mesh_without_faces_is_an_error():
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="without faces"):
        unwrap(empty, "auto", (128, 128), 2)


def test_faults_of_user_uv_are_found(unwrapped):
    def fault(uv: torch.Tensor) -> str | None:
        return uv_fault(replace(unwrapped, uv=uv), RASTERISER)

    assert fault(unwrapped.uv) is None
    assert "leave" in fault(unwrapped.uv * 2)
    assert "leave" in fault(unwrapped.uv * math.nan)
    assert "cover" in fault(unwrapped.uv * 0.01)
    assert "mirrored" in fault(torch.stack([1 - unwrapped.uv[:, 0], unwrapped.uv[:, 1]], -1))
    assert "no texture" in uv_fault(bumpy_ball(), RASTERISER)
    twice = replace(
        unwrapped,
        faces=unwrapped.faces.repeat(2, 1),
        uv_faces=unwrapped.uv_faces.repeat(2, 1),
    )
    assert "overlap" in uv_fault(twice, RASTERISER)


def test_aligned_small_charts_are_not_reported_as_overlapping():
    """The squares contain no texel centre of a 512² image, so in such an image they cover an area of 0.

    A check with 512² texels therefore reports an overlap that does not exist.
    """
    place = torch.stack(torch.meshgrid(torch.arange(0, 512, 4), torch.arange(0, 512, 4), indexing="ij"), -1)
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) * 0.8 + 0.6
    uv = ((place.reshape(-1, 1, 2) + square) / 512).reshape(-1, 2)
    corner = 4 * torch.arange(128 * 128)[:, None]
    faces = torch.cat([corner + torch.tensor([0, 2, 1]), corner + torch.tensor([0, 3, 2])])
    flat = make_mesh(torch.cat([uv, torch.zeros(len(uv), 1)], -1), faces)
    mesh = replace(flat, uv=uv, uv_faces=faces)
    assert (uv_areas(mesh) > 0).all()
    rasteriser = choose_rasteriser("cpu")
    assert "overlap" in uv_fault(mesh, rasteriser, side=512)
    assert uv_fault(mesh, rasteriser) is None
    twice = replace(mesh, faces=faces.repeat(2, 1), uv_faces=faces.repeat(2, 1))
    assert "overlap" in uv_fault(twice, rasteriser)


def test_usable_uv_are_kept_and_faulty_uv_replaced(unwrapped, caplog):
    config = ExportConfig(texture_res=(128, 128))
    kept = prepare_uv(replace(unwrapped, tangents=None), config, RASTERISER)
    assert kept.uv is unwrapped.uv and torch.equal(kept.tangents, unwrapped.tangents)
    renewed = prepare_uv(replace(unwrapped, uv=unwrapped.uv * 3), config, RASTERISER)
    assert uv_fault(renewed, RASTERISER) is None and "unwrapped again" in caplog.messages[0]


@pytest.mark.parametrize(
    "wrong", [{"texture_res": (8, 8)}, {"uv_padding_block": -1}, {"unwrap": "blender"}, {"padding": 3}]
)
def test_invalid_values_are_rejected(wrong):
    with pytest.raises(ValidationError):
        ExportConfig(**wrong)
