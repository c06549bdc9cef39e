"""Test the surface regularisers (values, schedule, gradients) with closed forms and plain loops."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from geometry.regularisers import RegulariserConfig, laplacian, normal_consistency, surface_loss
from render.mesh import make_mesh


def roof(angle, dtype=torch.float64):
    """Return two triangles with a common edge of length 2 on the z axis and `angle` between their normals."""
    v_pos = torch.tensor(
        [[0, 0, 0], [0, 0, 2], [1, 0, 1], [-math.cos(angle), -math.sin(angle), 1]], dtype=dtype
    )
    return make_mesh(v_pos, torch.tensor([[0, 1, 2], [1, 0, 3]], dtype=torch.int32))


def cube():
    v_pos = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=torch.float64)
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)]
    return make_mesh(v_pos, torch.tensor(faces, dtype=torch.int32))


def ragged():
    """Return a tetrahedron with random corners, and an unused vertex."""
    generator = torch.Generator().manual_seed(0)
    v_pos = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return make_mesh(v_pos, torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], dtype=torch.int32))


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2, 3.0])
def test_normal_consistency_of_one_edge_is_one_minus_the_cosine(angle):
    assert normal_consistency(roof(angle)).item() == pytest.approx(1 - math.cos(angle), abs=1e-12)


def test_normal_consistency_of_a_cube_counts_its_twelve_edges():
    assert normal_consistency(cube()).item() == pytest.approx(12, abs=1e-12)


def test_an_edge_of_three_faces_counts_two_pairs_and_a_boundary_none():
    single = make_mesh(torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]]))
    assert normal_consistency(single).item() == 0
    mesh = roof(0.0)
    fin = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    faces = torch.cat([mesh.faces, torch.tensor([[0, 1, 4]], dtype=torch.int32)])
    # The fin is a third face at the common edge. It is perpendicular to the other two faces and is compared
    # with one of them, so the value is 1 − cos 90°.
    assert normal_consistency(make_mesh(torch.cat([mesh.v_pos, fin]), faces)).item() == pytest.approx(1)


def test_degenerate_face_has_no_loss_and_a_finite_gradient():
    mesh = roof(0.4)
    v_pos = torch.cat([mesh.v_pos, mesh.v_pos[2:3]]).requires_grad_()
    # The two additional faces at the open sides of the roof have zero area.
    faces = torch.cat([mesh.faces, torch.tensor([[2, 1, 4], [0, 2, 4]], dtype=torch.int32)])
    value = normal_consistency(make_mesh(v_pos, faces))
    assert value.item() == pytest.approx(1 - math.cos(0.4), abs=1e-12)
    value.backward()
    assert v_pos.grad.isfinite().all() and v_pos.grad.abs().max() > 0


def test_laplacian_is_the_distance_to_the_mean_of_the_neighbours():
    for mesh in (cube(), ragged(), roof(0.7)):
        neighbours = {vertex: set() for vertex in range(len(mesh.v_pos))}
        for face in mesh.faces.tolist():
            for vertex in face:
                neighbours[vertex] |= set(face) - {vertex}
        expected = sum(
            (mesh.v_pos[vertex] - mesh.v_pos[sorted(others)].mean(0)).square().sum().item()
            for vertex, others in neighbours.items()
            if others
        )
        assert expected > 0.1
        assert laplacian(mesh).item() == pytest.approx(expected, rel=1e-12)


def test_a_small_face_weighs_less_in_proportion_to_its_area():
    mesh, angle = roof(0.4), 1 - math.cos(0.4)
    v_pos = mesh.v_pos.clone()
    # The height of the second face decreases from 1 to 1/10, so the areas are 1 and 1/10. The mean area is
    # 0.55.
    v_pos[3, :2] *= 0.1
    assert normal_consistency(make_mesh(v_pos, mesh.faces)).item() == pytest.approx(angle * 0.1 / 0.275)


@pytest.mark.parametrize("term", [normal_consistency, laplacian])
def test_gradients_are_those_of_finite_differences(term):
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    corners += 0.1 * ragged().v_pos[:4]
    mesh = make_mesh(corners, torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]))
    assert torch.autograd.gradcheck(
        lambda v: term(make_mesh(v, mesh.faces)), mesh.v_pos.clone().requires_grad_()
    )


def test_surface_loss_is_the_weighted_sum_and_reports_each_value():
    mesh = cube()
    total, values = surface_loss(mesh, {"normal_consistency": 0.5, "laplacian": 2.0})
    assert values.keys() == {"normal_consistency", "laplacian"}
    expected = 0.5 * values["normal_consistency"] + 2 * values["laplacian"]
    assert total.item() == pytest.approx(expected.item()) and values["normal_consistency"].item() == 12


def test_weights_are_constant_or_change_linearly_and_zero_is_inactive():
    config = RegulariserConfig(normal_consistency=0.3, laplacian=(0.0, 2.0))
    assert config.weights(0.0) == {"normal_consistency": 0.3, "laplacian": 0.0}
    assert config.weights(0.25) == {"normal_consistency": 0.3, "laplacian": 0.5}
    assert config.weights(1.0) == {"normal_consistency": 0.3, "laplacian": 2.0}
    assert config.active and not RegulariserConfig().active
    assert not RegulariserConfig(laplacian=(0.0, 0.0)).active


@pytest.mark.parametrize("value", ["-1", "[0]", "[0, -1]", "[0, 1, 2]", '"a"', "null"])
def test_bad_weights_are_rejected(value):
    with pytest.raises(ValidationError):
        TypeAdapter(RegulariserConfig).validate_json(f'{{"laplacian": {value}}}', strict=True)
