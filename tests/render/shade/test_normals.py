"""Compare shading normals and bump mapping with values calculated by hand."""

import math

import pytest
import torch

from render.shade.normals import bump, shading_normal

VIEW = torch.tensor([[0.0, 0.0, 1.0]])


def tilted(cosine, sign=1.0):
    """Return a unit vector with z = cosine and y = 0. `sign` is the sign of x."""
    return torch.tensor([[sign * math.sqrt(1 - cosine**2), 0.0, cosine]])


@pytest.mark.parametrize("cosine", [0.1, 0.3, 1.0])
def test_smooth_normal_facing_the_viewer_is_unchanged(cosine):
    assert torch.allclose(shading_normal(tilted(cosine), tilted(0.5), VIEW), tilted(cosine), atol=1e-6)


@pytest.mark.parametrize("cosine", [0.0, -0.05, -0.9])
def test_face_normal_replaces_a_smooth_normal_facing_away(cosine):
    assert torch.allclose(shading_normal(tilted(cosine), tilted(0.5), VIEW), tilted(0.5), atol=1e-6)


def test_blend_is_linear_between_both_normals():
    found = shading_normal(tilted(0.05), tilted(0.6, -1.0), VIEW)
    expected = torch.nn.functional.normalize(0.5 * tilted(0.05) + 0.5 * tilted(0.6, -1.0), dim=-1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_both_normals_are_negated_for_back_faces():
    front = shading_normal(tilted(0.8), tilted(0.5), VIEW)
    behind = shading_normal(-tilted(0.8), -tilted(0.5), VIEW)
    assert torch.equal(front, behind)


def test_result_is_unit_and_faces_the_viewer():
    generator = torch.Generator().manual_seed(0)
    smooth, face, view = (
        torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=-1) for _ in range(3)
    )
    found = shading_normal(smooth, face, view)
    assert torch.allclose(found.norm(dim=-1), torch.ones(4000), atol=1e-5)
    assert ((found * view).sum(-1) > -1e-6).all()


def test_flat_bump_is_the_identity_and_x_points_along_the_tangent():
    normal, tangent = VIEW, torch.tensor([[1.0, 0.0, 0.5]])
    assert torch.allclose(bump(normal, tangent, torch.tensor([[0.0, 0, 1]])), normal)
    leaning = torch.tensor([[0.6, 0.0, 0.8]])
    assert torch.allclose(bump(normal, tangent, leaning), torch.tensor([[0.6, 0, 0.8]]), atol=1e-6)


def test_y_points_up_in_the_texture_image():
    """In glTF, +y of the normal map points up in the image.

    For normal +z and tangent +x, this direction is +y in space.
    """
    up = torch.tensor([[0.0, 0.6, 0.8]])
    assert torch.allclose(bump(VIEW, torch.tensor([[2.0, 0, 0]]), up), up, atol=1e-6)


def test_gradients():
    generator = torch.Generator().manual_seed(1)
    smooth, view, tangent, local = (
        torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    smooth, view = (torch.nn.functional.normalize(v, dim=-1) for v in (smooth, view))
    face = torch.nn.functional.normalize(smooth + 0.3 * tangent, dim=-1)
    inputs = [v.requires_grad_() for v in (smooth, face, view)]
    assert torch.autograd.gradcheck(shading_normal, inputs, eps=1e-7, atol=1e-5)
    inputs = [v.detach().requires_grad_() for v in (smooth, tangent, local)]
    assert torch.autograd.gradcheck(bump, inputs, eps=1e-7, atol=1e-5)


def test_tangent_parallel_to_the_normal_has_finite_gradients():
    normal, tangent = VIEW.clone().requires_grad_(), VIEW.clone().requires_grad_()
    found = bump(normal, tangent, torch.tensor([[0.3, 0.2, 0.9]]))
    found.sum().backward()
    assert normal.grad.isfinite().all() and tangent.grad.isfinite().all() and found.isfinite().all()
