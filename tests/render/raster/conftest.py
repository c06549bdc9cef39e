"""Provide backends and meshes for the tests of rasterisers."""

import pytest
import torch
import trimesh

from render.raster.reference import ReferenceRasteriser


@pytest.fixture(scope="session")
def numba_rasteriser():
    pytest.importorskip("numba")
    from render.raster.numba.backend import NumbaRasteriser

    return NumbaRasteriser()


class OnDevice:
    """A rasteriser that copies its arguments to another device and the result back."""

    def __init__(self, rasteriser, device):
        self.rasteriser, self.device = rasteriser, device

    def __getattr__(self, name):
        method = getattr(self.rasteriser, name)

        def call(*arguments):
            moved = [a.to(self.device) if isinstance(a, torch.Tensor) else a for a in arguments]
            return method(*moved).to(arguments[0].device)

        return call


@pytest.fixture(scope="session")
def triton_rasteriser(kernel_device):
    """Return a Triton rasteriser for CPU tensors, which uses the interpreter or copies tensors to the GPU."""
    pytest.importorskip("triton")
    from render.raster.triton.backend import TritonRasteriser

    return OnDevice(TritonRasteriser(), kernel_device)


def build_rasteriser(name, request):
    if name == "reference":
        return ReferenceRasteriser()
    return request.getfixturevalue(f"{name}_rasteriser")


@pytest.fixture(params=["reference", "numba", "triton"])
def rasteriser(request):
    """Return each backend that does not need nvdiffrast."""
    return build_rasteriser(request.param, request)


@pytest.fixture(params=["reference", "numba", *(["triton"] if torch.cuda.is_available() else [])])
def fast_rasteriser(request):
    """Return each backend that is fast enough for many calls.

    Without a GPU, Triton is excluded, because its interpreter is too slow.
    """
    return build_rasteriser(request.param, request)


@pytest.fixture(scope="session")
def whole_step():
    """Return draw(rasteriser, (clip, faces, resolution)), which computes values and gradients of one step."""

    def draw(rasteriser, scene):
        clip, faces, resolution = scene
        generator = torch.Generator().manual_seed(1)
        clip = clip.clone().requires_grad_()
        attributes = torch.randn(clip.shape[1], 4, generator=generator).to(clip.device).requires_grad_()
        weight = torch.randn(len(clip), *resolution, 4, generator=generator).to(clip.device)
        rast = rasteriser.rasterize(clip, faces, resolution)
        image = rasteriser.interpolate(attributes, rast, faces)
        smooth = rasteriser.antialias(image, rast, clip, faces)
        through = torch.autograd.grad((smooth * weight).sum(), image, retain_graph=True)[0]
        by_outline = torch.autograd.grad((smooth * weight).sum(), clip, retain_graph=True)[0]
        by_all = torch.autograd.grad((image * weight).sum(), (attributes, clip))
        found = {"rast": rast, "image": image, "smooth": smooth, "through": through, "outline": by_outline}
        return {**found, "attributes": by_all[0], "positions": by_all[1]}

    return draw


@pytest.fixture(scope="session")
def bumpy_sphere():
    """Return build(n), which makes vertices [V,3] and 20·4ⁿ faces [F,3] of a closed smooth surface."""

    def build(subdivisions: int):
        sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
        direction = torch.tensor(sphere.vertices, dtype=torch.float32)
        direction = direction / direction.norm(dim=1, keepdim=True)
        x, y, z = direction.split(1, dim=1)
        radius = 0.7 + 0.08 * torch.sin(7 * x + 1) * torch.sin(6 * y) + 0.05 * torch.sin(11 * z)
        return direction * radius, torch.tensor(sphere.faces)

    return build


@pytest.fixture(scope="session")
def disc():
    """Return build(radius, sectors), which makes clip [1,V,4] (w = 1, z = 0) and faces of a centred disc."""

    def build(radius: float, sectors: int = 96):
        angle = torch.arange(sectors) * (2 * torch.pi / sectors)
        rim = torch.stack([angle.cos() * radius, angle.sin() * radius], -1)
        xy = torch.cat([torch.zeros(1, 2), rim])
        clip = torch.cat([xy, torch.zeros(len(xy), 1), torch.ones(len(xy), 1)], -1)[None]
        first = torch.arange(sectors)
        faces = torch.stack([torch.zeros_like(first), first + 1, (first + 1) % sectors + 1], -1)
        return clip, faces

    return build
