"""CUDA graphs: results equal the eager function, on CUDA and on the CPU."""

import pytest
import torch

from sd.kernels.cuda_graphs import MOST_SHAPES, WARM_UP_TURNS, DifferentiableCUDAGraph, Graphed, Recorder
from sd.stable_diffusion import StableDiffusion


def test_on_the_cpu_the_function_itself_is_called():
    calls = []

    def double(x):
        calls.append(x)
        assert not torch.is_grad_enabled()
        return 2 * x

    x = torch.arange(3.0, requires_grad=True)
    assert torch.equal(Graphed(double)(x), 2 * x.detach())
    assert calls[0] is x


def test_recordings_are_made_once_and_up_to_a_number(caplog):
    made = []

    def record(inputs, earlier):
        made.append(earlier)
        return len(made)

    recorder = Recorder(record)
    sizes = [*range(MOST_SHAPES + 1), 0, MOST_SHAPES]
    assert [recorder(torch.ones(size)) for size in sizes] == [1, 2, 3, 4, None, 1, None]
    assert made == [None, 1, 1, 1] and not caplog.records


def test_a_recording_that_fails_is_told_once_and_not_tried_again(caplog):
    tried = []

    def record(inputs, earlier):
        tried.append(inputs)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    recorder = Recorder(record)
    assert recorder(torch.ones(2)) is None and recorder(torch.ones(3)) is None
    assert len(tried) == 1 and len(caplog.records) == 1
    assert caplog.messages[0].endswith("Tried to allocate 2.00 GiB.")


@pytest.mark.gpu
def test_replays_follow_their_inputs_for_every_shape():
    calls = []

    def mixed(x, y):
        calls.append(len(x))
        return (x @ y).relu() + x.mean()

    graphed = Graphed(mixed)
    for size in range(2, 2 + MOST_SHAPES + 1):
        for _ in range(3):
            x, y = torch.randn(size, 8, device="cuda"), torch.randn(8, 8, device="cuda")
            assert torch.allclose(graphed(x, y), (x @ y).relu() + x.mean(), atol=1e-5)
    # The first MOST_SHAPES shapes ran only during their captures. The last shape ran eagerly each time.
    assert calls.count(2) == calls.count(3) > 0
    assert calls[-3:] == [2 + MOST_SHAPES] * 3


@pytest.mark.gpu
def test_what_cannot_be_captured_still_answers(caplog):
    def reads_back(x):
        return x * x.sum().item()

    graphed = Graphed(reads_back)
    for _ in range(2):
        assert torch.equal(graphed(torch.ones(4, device="cuda")), torch.full((4,), 4.0, device="cuda"))
    assert len([record for record in caplog.records if "no CUDA graph" in record.message]) == 1


@pytest.mark.gpu
def test_memory_that_runs_out_in_a_capture_is_an_error_of_the_call_itself(caplog):
    """The error type is unchanged, and the memory of the failed capture is freed before the eager call."""
    calls = []

    def hungry(x):
        calls.append(torch.cuda.is_current_stream_capturing())
        return x + torch.ones(2**50 if len(calls) > WARM_UP_TURNS else 1, device="cuda").sum()

    graphed = Graphed(hungry)
    with pytest.raises(torch.OutOfMemoryError):
        graphed(torch.ones(4, device="cuda"))
    assert calls == [False] * WARM_UP_TURNS + [True, False]
    assert "going on without" in caplog.text


@pytest.mark.gpu
def test_an_answer_stays_and_the_layout_of_an_input_makes_no_second_recording():
    graphed = Graphed(lambda x: x * 2)
    x = torch.randn(2, 3, 4, 4, device="cuda")
    first = graphed(x)
    second = graphed((x + 1).contiguous(memory_format=torch.channels_last))
    assert torch.equal(first, x * 2) and torch.equal(second, (x + 1) * 2)
    assert len(graphed.recordings.made) == 1


@pytest.mark.gpu
def test_every_device_records_on_its_own():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    for device in ("cuda:1", "cuda:0"):
        graphed = Graphed(lambda x: x * 2)
        for _ in range(2):
            x = torch.randn(5, device=device)
            assert torch.equal(graphed(x), x * 2)
        assert len(graphed.recordings.made) == 1


def test_on_the_cpu_gradients_are_those_of_the_function_itself():
    x = torch.arange(3.0, requires_grad=True)
    y = DifferentiableCUDAGraph(lambda x: x**2, 100)(x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], 2 * x.detach())


@pytest.mark.gpu
def test_gradients_are_replayed_and_follow_their_inputs():
    calls = []

    def cubic(x):
        calls.append(len(x))
        return x**3 + x.sum()

    graphed = DifferentiableCUDAGraph(cubic, 10)
    for size in (3, 4, 11):
        for _ in range(3):
            x = torch.randn(size, device="cuda", requires_grad=True)
            pull = torch.randn(size, device="cuda")
            y = graphed(2 * x)
            assert torch.allclose(y, 8 * x**3 + 2 * x.sum(), rtol=1e-4, atol=1e-5)
            (slope,) = torch.autograd.grad(y, x, pull)
            assert torch.allclose(slope, 24 * x**2 * pull + 2 * pull.sum(), rtol=1e-4, atol=1e-4)
    # Sizes 3 and 4 ran only during their captures. Size 11 exceeds the limit and ran eagerly each time.
    assert calls == [3] * (WARM_UP_TURNS + 1) + [4] * (WARM_UP_TURNS + 1) + [11] * 3


@pytest.mark.gpu
def test_an_answer_that_waits_for_its_gradient_is_not_overwritten():
    calls = []

    def square(x):
        calls.append(None)
        return x**2

    graphed = DifferentiableCUDAGraph(square, 10)
    first, second, third = (torch.randn(5, device="cuda", requires_grad=True) for _ in range(3))
    graphed(first)  # the output is freed at once
    recorded = len(calls)
    one, other = graphed(first), graphed(second)
    with torch.no_grad():
        assert torch.allclose(graphed(third), third**2)
    assert len(calls) == recorded + 2
    for y, x in ((one, first), (other, second)):
        assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], 2 * x)
    y = graphed(third)
    assert torch.allclose(torch.autograd.grad(y.sum(), third)[0], 2 * third)
    assert len(calls) == recorded + 2


@pytest.mark.gpu
def test_the_encoder_replays_as_it_computes(model_folder, monkeypatch):
    found = []
    for share in (0.0, 0.1):
        monkeypatch.setattr("sd.stable_diffusion.GRAPH_SHARE", share)
        prior = StableDiffusion.from_pretrained(str(model_folder), torch.device("cuda"))
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            images = torch.rand(2, 3, 32, 32, generator=generator).cuda().requires_grad_()
            latents = prior.encode(images, torch.randn(2, 4, 8, 8, generator=generator).cuda())
            found.append((latents.detach(), *torch.autograd.grad(latents.square().sum(), images)))
        assert bool(prior._moments.recordings.made) == (share > 0)
    for one, other in zip(found[:3], found[3:], strict=True):
        for usual, replayed in zip(one, other, strict=True):
            assert torch.allclose(usual, replayed, rtol=1e-2, atol=1e-3 * usual.abs().max())


@pytest.mark.gpu
def test_the_denoiser_answers_alike_on_both_devices(model_folder):
    shape = (
        4,
        4,
        *2 * (StableDiffusion.from_pretrained(str(model_folder), torch.device("cpu")).latent_size,),
    )
    answers = {}
    for device in ("cpu", "cuda"):
        prior = StableDiffusion.from_pretrained(str(model_folder), torch.device(device))
        text = prior.embed(["a mug", "a car", "", "a mug, back view"])
        generator = torch.Generator().manual_seed(0)
        for turn in range(3):
            noisy = torch.randn(shape, generator=generator)
            timesteps = torch.tensor([20, 300, 500, 980])
            found = prior.predict_noise(noisy.to(device), timesteps.to(device), text)
            answers[device, turn] = found.cpu()
    for turn in range(3):
        difference = (answers["cuda", turn] - answers["cpu", turn]).norm() / answers["cpu", turn].norm()
        assert difference < 0.02  # half precision compared with single precision
    assert not torch.allclose(answers["cuda", 0], answers["cuda", 1])
