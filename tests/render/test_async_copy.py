"""Test asynchronous copies of small tensors: values are unchanged, and the host does not wait for a GPU."""

import pytest
import torch

from render.async_copy import AsyncScalars, to_device_async
from render.camera import orbit


def mixed_tensors():
    return [
        torch.arange(5),
        torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor(0.5, dtype=torch.float64),
        torch.rand(4, 2).T,
        torch.zeros(0, 3),
        torch.tensor([True, False, True]),
    ]


@pytest.fixture
def forbid_synchronisation():
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_copies_equal_the_originals(device):
    tensors = mixed_tensors()
    for there, here in zip(to_device_async(tensors, device), tensors, strict=True):
        assert there.device.type == device and there.dtype == here.dtype
        assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_scalars_are_read_by_name_without_graph(device):
    weight = torch.tensor(3.0, device=device, requires_grad=True)
    numbers = AsyncScalars({"loss": weight.square(), "other": weight.detach() / 2})
    with torch.no_grad():
        weight.zero_()
    assert numbers.read() == {"loss": 9.0, "other": 1.5}


@pytest.mark.gpu
def test_host_does_not_block(forbid_synchronisation):
    views = orbit(3, (8, 8)).to("cuda")
    image = views.position.sum()
    numbers = AsyncScalars({"sum": image})
    torch.cuda.set_sync_debug_mode("default")
    assert numbers.read()["sum"] == pytest.approx(float(orbit(3, (8, 8)).position.sum()), abs=1e-5)
