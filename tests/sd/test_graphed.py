"""The denoiser as a CUDA graph against the denoiser, and the same class on the CPU."""

import pytest
import torch

from sd.graphed import MOST_SHAPES, Graphed
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
    # Each of the first shapes ran for the capture only; the one too many ran every time.
    assert calls.count(2) == calls.count(3) > 0
    assert calls[-3:] == [2 + MOST_SHAPES] * 3


@pytest.mark.gpu
def test_what_cannot_be_captured_still_answers(caplog):
    def reads_back(x):
        return x * x.sum().item()

    graphed = Graphed(reads_back)
    for _ in range(2):
        assert torch.equal(graphed(torch.ones(4, device="cuda")), torch.full((4,), 4.0, device="cuda"))
    assert [record.message for record in caplog.records if "no CUDA graph" in record.message]


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
        assert difference < 0.02  # half precision against single
    assert not torch.allclose(answers["cuda", 0], answers["cuda", 1])
