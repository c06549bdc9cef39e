"""Test the material field: outputs are within the bounds, and initial outputs are near their middle."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from render.shade.material import MaterialConfig, MaterialField


def field(**keys):
    torch.manual_seed(0)
    config = MaterialConfig(**keys)
    return MaterialField(
        config,
        -torch.ones(3),
        torch.ones(3),
        hash_n_levels=4,
        hash_log2_hashmap_size=10,
        hash_max_resolution=64,
    )


def positions(count=500):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


def randomise(module, size=30.0):
    """Set random weights that are large enough to saturate the sigmoid at both ends."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-size, size)


def test_values_reach_their_bounds_but_not_beyond():
    material = field(
        kd_min=(0.03, 0.1, 0.2, 0.0), kd_max=(0.97, 0.5, 0.9, 1.0), ks_min=(0, 0.25, 0), ks_max=(0, 0.9, 0.5)
    )
    randomise(material)
    values = material(positions())
    for found, least, most in (
        (values.kd, [0.03, 0.1, 0.2], [0.97, 0.5, 0.9]),
        (values.ks, [0, 0.25, 0], [0, 0.9, 0.5]),
    ):
        low, high = found.amin(0), found.amax(0)
        assert (low - torch.tensor(least)).abs().max() < 1e-3 and (low >= torch.tensor(least) - 1e-6).all()
        assert (high - torch.tensor(most)).abs().max() < 1e-3 and (high <= torch.tensor(most) + 1e-6).all()
    assert (values.normal[:, 2] >= 0).all()
    length = values.normal.norm(dim=-1)
    assert torch.allclose(length[length > 1e-3], torch.ones(()), atol=1e-5)


def test_starts_in_the_middle_with_a_flat_normal():
    values = field()(positions())
    assert (values.kd - 0.5).abs().max() < 0.01
    assert (values.ks - torch.tensor([0.5, 0.54, 0.5])).abs().max() < 0.01
    assert (values.normal - torch.tensor([0.0, 0, 1])).abs().max() < 0.02


def test_without_bump_the_normal_is_flat_and_has_no_gradient():
    material = field(if_use_bump=False)
    randomise(material)
    values = material(positions())
    assert not material.bumpy and torch.equal(values.normal, torch.tensor([0.0, 0, 1]).expand(500, 3))


def test_every_parameter_is_trained():
    material = field()
    values = material(positions(3000))
    (values.kd.sum() + values.ks.square().sum() + values.normal[:, 0].sum()).backward()
    for name, parameter in material.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_box_on_another_device_than_the_weights():
    # The bounds of a mesh on a GPU are GPU tensors. This test uses the meta device instead of a GPU.
    corner = torch.ones(3, device="meta")
    MaterialField(
        MaterialConfig(), -corner, corner, hash_n_levels=4, hash_log2_hashmap_size=10, hash_max_resolution=64
    )


def test_field_learns_a_colour_that_varies_over_space():
    material, points = field(), positions(2000)
    target = (points * 0.5 + 0.5).clamp(0.05, 0.95)
    optimiser = torch.optim.Adam(material.parameters(), lr=1e-2)
    for _ in range(150):
        loss = (material(points).kd - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.002


@pytest.mark.parametrize(
    "text",
    [
        '{"kd_max": [1, 1]}',
        '{"kd_max": [1, 1, 1, 1, 1]}',
        '{"ks_min": [0, -0.1, 0]}',
        '{"ks_max": [0, 1.1, 0]}',
        '{"nrm_min": [-1, -1, -0.5]}',
        '{"kd_min": "black"}',
        '{"if_use_bumps": true}',
    ],
)
def test_bad_config_values(text):
    with pytest.raises(ValidationError):
        TypeAdapter(MaterialConfig).validate_json(text, strict=True)


def test_config_keys_and_defaults():
    config = TypeAdapter(MaterialConfig).validate_json(
        '{"if_use_bump": false, "kd_min": [0, 0, 0, 0], "kd_max": [1, 1, 1]}', strict=True
    )
    assert config.bump is False and config.ks_min == (0.0, 0.08, 0.0) and config.nrm_max == (1.0, 1.0, 1.0)
