"""Test CUDA graphs: the results equal those of the eager function, on CUDA and on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sd.kernels.cuda_graphs import (
    MAX_SHAPES,
    WARM_UP_CALLS,
    DifferentiableCUDAGraph,
    GivenGradient,
    GraphCache,
    InferenceCUDAGraph,
)
from sd.stable_diffusion import StableDiffusion

ROOT = Path(__file__).resolve().parents[3]


def test_function_is_called_directly_on_the_cpu():
    calls = []

    def double(x):
        calls.append(x)
        assert not torch.is_grad_enabled()
        return 2 * x

    x = torch.arange(3.0, requires_grad=True)
    assert torch.equal(InferenceCUDAGraph(double)(x), 2 * x.detach())
    assert calls[0] is x


def test_each_shape_is_captured_once_up_to_the_maximum(caplog):
    made = []

    def record(inputs, earlier):
        made.append(earlier)
        return len(made)

    cache = GraphCache(record)
    sizes = [*range(MAX_SHAPES + 1), 0, MAX_SHAPES]
    assert [cache(torch.ones(size)) for size in sizes] == [1, 2, 3, 4, None, 1, None]
    assert made == [None, 1, 1, 1] and not caplog.records


def test_failed_capture_is_logged_once_and_not_repeated(caplog):
    tried = []

    def record(inputs, earlier):
        tried.append(inputs)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    cache = GraphCache(record)
    assert cache(torch.ones(2)) is None and cache(torch.ones(3)) is None
    assert len(tried) == 1 and len(caplog.records) == 1
    assert caplog.messages[0].endswith("Tried to allocate 2.00 GiB.")


@pytest.mark.gpu
def test_replay_uses_the_new_inputs():
    calls = []

    def function(x, y):
        calls.append(len(x))
        return (x @ y).relu() + x.mean()

    replayed = InferenceCUDAGraph(function)
    for size in range(2, 2 + MAX_SHAPES + 1):
        for _ in range(3):
            x, y = torch.randn(size, 8, device="cuda"), torch.randn(8, 8, device="cuda")
            assert torch.allclose(replayed(x, y), (x @ y).relu() + x.mean(), atol=1e-5)
    # For each of the first MAX_SHAPES shapes, the function was called only during warm-up and capture. For
    # the last shape, it was called eagerly each time.
    assert calls.count(2) == calls.count(3) > 0
    assert calls[-3:] == [2 + MAX_SHAPES] * 3


@pytest.mark.gpu
def test_function_that_cannot_be_captured_runs_eagerly(caplog):
    def reads_back(x):
        return x * x.sum().item()

    replayed = InferenceCUDAGraph(reads_back)
    for _ in range(2):
        assert torch.equal(replayed(torch.ones(4, device="cuda")), torch.full((4,), 4.0, device="cuda"))
    assert len([record for record in caplog.records if "CUDA graphs are disabled" in record.message]) == 1


@pytest.mark.gpu
def test_out_of_memory_in_a_capture_is_raised_by_the_eager_call(caplog):
    """If memory runs out in a capture, the memory is freed and the function is called eagerly.

    In this test, the eager call also runs out of memory, so the error of this call is raised.
    """
    calls = []

    def allocates_too_much(x):
        calls.append(torch.cuda.is_current_stream_capturing())
        return x + torch.ones(2**50 if len(calls) > WARM_UP_CALLS else 1, device="cuda").sum()

    replayed = InferenceCUDAGraph(allocates_too_much)
    with pytest.raises(torch.OutOfMemoryError):
        replayed(torch.ones(4, device="cuda"))
    assert calls == [False] * WARM_UP_CALLS + [True, False]
    assert "CUDA graphs are disabled" in caplog.text


@pytest.mark.gpu
def test_outputs_are_copies_and_memory_layout_needs_no_new_capture():
    replayed = InferenceCUDAGraph(lambda x: x * 2)
    x = torch.randn(2, 3, 4, 4, device="cuda")
    first = replayed(x)
    second = replayed((x + 1).contiguous(memory_format=torch.channels_last))
    assert torch.equal(first, x * 2) and torch.equal(second, (x + 1) * 2)
    assert len(replayed.cache.recordings) == 1


@pytest.mark.gpu
def test_graphs_on_two_devices():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    for device in ("cuda:1", "cuda:0"):
        replayed = InferenceCUDAGraph(lambda x: x * 2)
        for _ in range(2):
            x = torch.randn(5, device=device)
            assert torch.equal(replayed(x), x * 2)
        assert len(replayed.cache.recordings) == 1


def test_gradient_on_the_cpu_is_that_of_the_function():
    x = torch.arange(3.0, requires_grad=True)
    y = DifferentiableCUDAGraph(lambda x: x**2, 100)(x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], 2 * x.detach())


def test_given_gradient_is_that_of_a_call_with_the_gradient_of_the_output():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=generator, requires_grad=True)
    gradient = torch.randn(3, 5, generator=generator)
    y = x @ torch.randn(4, 5, generator=generator)
    expected = torch.autograd.grad(y, x, gradient, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(GivenGradient.apply(y, gradient), x)[0], expected)


def test_the_gradients_of_the_set_up_do_not_import_sympy(kernel_device):
    program = f"""
import sys
import torch
from sd.kernels.cuda_graphs import GivenGradient
from sd.kernels.select import self_test, triton_kernels

self_test(triton_kernels(), torch.device({str(kernel_device)!r}))
x = torch.ones(2, requires_grad=True)
torch.autograd.grad(GivenGradient.apply(2 * x, torch.ones(2)), x)
sys.exit("sympy" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.gpu
def test_gradient_replay_uses_the_new_inputs():
    calls = []

    def cubic(x):
        calls.append(len(x))
        return x**3 + x.sum()

    replayed = DifferentiableCUDAGraph(cubic, 10)
    for size in (3, 4, 11):
        for _ in range(3):
            x = torch.randn(size, device="cuda", requires_grad=True)
            grad_output = torch.randn(size, device="cuda")
            y = replayed(2 * x)
            assert torch.allclose(y, 8 * x**3 + 2 * x.sum(), rtol=1e-4, atol=1e-5)
            (grad_x,) = torch.autograd.grad(y, x, grad_output)
            assert torch.allclose(
                grad_x, 24 * x**2 * grad_output + 2 * grad_output.sum(), rtol=1e-4, atol=1e-4
            )
    # For sizes 3 and 4, the function was called only during warm-up and capture. Size 11 exceeds the limit,
    # so the function was called eagerly each time.
    assert calls == [3] * (WARM_UP_CALLS + 1) + [4] * (WARM_UP_CALLS + 1) + [11] * 3


@pytest.mark.gpu
def test_output_with_pending_backward_pass_is_not_overwritten():
    calls = []

    def square(x):
        calls.append(None)
        return x**2

    replayed = DifferentiableCUDAGraph(square, 10)
    first, second, third = (torch.randn(5, device="cuda", requires_grad=True) for _ in range(3))
    replayed(first)  # the output is freed immediately
    recorded = len(calls)
    one, other = replayed(first), replayed(second)
    with torch.no_grad():
        assert torch.allclose(replayed(third), third**2)
    assert len(calls) == recorded + 2
    for y, x in ((one, first), (other, second)):
        assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], 2 * x)
    y = replayed(third)
    assert torch.allclose(torch.autograd.grad(y.sum(), third)[0], 2 * third)
    assert len(calls) == recorded + 2


@pytest.mark.gpu
def test_encoder_graph_equals_the_eager_encoder(model_folder, monkeypatch):
    found = []
    for share in (0.0, 0.1):
        monkeypatch.setattr("sd.stable_diffusion.GRAPH_SHARE", share)
        prior = StableDiffusion.from_pretrained(str(model_folder), torch.device("cuda"))
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            images = torch.rand(2, 3, 32, 32, generator=generator).cuda().requires_grad_()
            latents = prior.encode(images, torch.randn(2, 4, 8, 8, generator=generator).cuda())
            found.append((latents.detach(), *torch.autograd.grad(latents.square().sum(), images)))
        assert bool(prior._moments.cache.recordings) == (share > 0)
    for one, other in zip(found[:3], found[3:], strict=True):
        for usual, replayed in zip(one, other, strict=True):
            assert torch.allclose(usual, replayed, rtol=1e-2, atol=1e-3 * usual.abs().max())


@pytest.mark.gpu
def test_denoiser_on_cuda_equals_the_cpu(model_folder):
    shape = (
        4,
        4,
        *2 * (StableDiffusion.from_pretrained(str(model_folder), torch.device("cpu")).latent_size,),
    )
    predictions = {}
    for device in ("cpu", "cuda"):
        prior = StableDiffusion.from_pretrained(str(model_folder), torch.device(device))
        text = prior.embed(["a mug", "a car", "", "a mug, back view"])
        generator = torch.Generator().manual_seed(0)
        for step in range(3):
            noisy = torch.randn(shape, generator=generator)
            timesteps = torch.tensor([20, 300, 500, 980])
            found = prior.predict_noise(noisy.to(device), timesteps.to(device), text)
            predictions[device, step] = found.cpu()
    for step in range(3):
        difference = (predictions["cuda", step] - predictions["cpu", step]).norm() / predictions[
            "cpu", step
        ].norm()
        assert difference < 0.02  # the CPU uses float32, and CUDA uses half precision
    assert not torch.allclose(predictions["cuda", 0], predictions["cuda", 1])
