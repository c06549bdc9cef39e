"""Compare surface points with a loop over the pixels of the rasteriser."""

import pytest
import torch
import trimesh

from render.camera import orbit
from render.gbuffer import rasterize_gbuffer
from render.mesh import make_mesh
from render.raster.select import choose_rasteriser


def ball(device="cpu"):
    shape = trimesh.creation.icosphere(subdivisions=2, radius=0.7)
    return make_mesh(torch.tensor(shape.vertices).float(), torch.tensor(shape.faces)).to(device)


def rasterized_ball(mesh, rasteriser=None):
    device = mesh.v_pos.device
    views = orbit(2, (24, 32)).to(device)
    return views, rasterize_gbuffer(mesh, views, rasteriser or choose_rasteriser(device))


def test_points_are_the_covered_pixels_in_order():
    mesh = ball()
    views, points = rasterized_ball(mesh)
    covered = [
        (view, row, column)
        for view in range(2)
        for row in range(24)
        for column in range(32)
        if points.rast[view, row, column, 3] > 0
    ]
    assert len(covered) == len(points.pixel) > 100
    assert points.pixel.tolist() == [(view * 24 + row) * 32 + column for view, row, column in covered]
    assert points.view_of_point.tolist() == [view for view, _, _ in covered]
    for (view, row, column), position, to_viewer in list(
        zip(covered, points.position, points.to_viewer, strict=True)
    )[::37]:
        u, v, _, number = points.rast[view, row, column]
        a, b, c = mesh.v_pos[mesh.faces[int(number) - 1]]
        assert torch.allclose(position, u * a + v * b + (1 - u - v) * c, atol=1e-6)
        aim = torch.nn.functional.normalize(views.position[view] - position, dim=0)
        assert torch.allclose(to_viewer, aim, atol=1e-6)


def test_scatter_then_gather_is_the_identity():
    _, points = rasterized_ball(ball())
    values = torch.rand(len(points.pixel), 2, requires_grad=True)
    image = points.scatter(values, background=-1.0)
    assert torch.equal(points.gather(image), values)
    assert torch.equal((image != -1).all(-1, keepdim=True).float(), points.mask())
    weight = torch.rand_like(image)
    (image * weight).sum().backward()
    assert torch.equal(values.grad, points.gather(weight))


@pytest.mark.gpu
def test_single_host_synchronisation(recwarn):
    mesh = ball("cuda")
    # choose_rasteriser renders a test image and synchronises, so it is called before the measurement.
    rasteriser = choose_rasteriser(mesh.v_pos.device)
    rasterized_ball(mesh, rasteriser)
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        _, points = rasterized_ball(mesh, rasteriser)
        points.scatter(points.normal)
        points.mask()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Setting the debug mode can emit another warning, so only warnings of synchronisations are counted.
    assert (
        len([warning for warning in recwarn if "synchronizing CUDA operation" in str(warning.message)]) == 1
    )
