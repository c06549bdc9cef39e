"""Test non-finite numbers: skipped steps, the end after too many bad steps, checkpoints and resuming."""

import json
import logging

import pytest
import torch
import trimesh
from safetensors.torch import load_file, save_file
from toy_config import TINY

import train
from sd.stable_diffusion import StableDiffusion
from training import checkpoint, loop
from training.checkpoint import DamagedCheckpoint, load_latest, save_checkpoint
from training.file_hash import sha256_of_file
from training.step_guard import MAX_BAD_STEPS, StepGuard

BAD = (float("nan"), float("inf"), -float("inf"))


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_changes_neither_weights_nor_optimizer_state(fused, bad):
    """The result is bit-identical to a run without the steps that have non-finite gradients."""
    ends = []
    for steps in ([1.0, bad, 2.0, 0.5], [1.0, 2.0, 0.5]):
        weights, guard = parameters(), StepGuard()
        optimizer = torch.optim.AdamW(weights, lr=0.1, eps=1e-15, fused=fused)
        for step, size in enumerate(steps, 1):
            for weight in weights:
                weight.grad = torch.linspace(-1, 1, 12).view(4, 3)
            weights[1].grad[2, 1] *= size
            guard.step(optimizer)
            guard.decide(step + 1, guard.flags())
        assert guard.skipped == len(steps) - 3
        state = [value for weight in weights for value in optimizer.state[weight].values()]
        ends.append([*weights, *state])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


def test_large_finite_gradients_are_no_reason_to_skip():
    weights, guard = parameters(), StepGuard()
    for weight in weights:
        weight.grad = torch.full_like(weight, 3e38)
    guard.step(torch.optim.AdamW(weights))
    assert guard.flags() == [0, 0]


def test_the_run_ends_after_too_many_bad_steps_in_a_row_and_names_the_cause(caplog):
    guard = StepGuard()
    with caplog.at_level(logging.WARNING):
        for step in range(1, MAX_BAD_STEPS):
            guard.decide(step, [1, 1])
        guard.decide(MAX_BAD_STEPS, [0, 0])  # Finite gradients reset the count.
        for step in range(MAX_BAD_STEPS - 1):
            guard.decide(step, [2, 0])
        with pytest.raises(ValueError, match=f"gradient of the weights .* in {MAX_BAD_STEPS} steps in a row"):
            guard.decide(50, [2, 0])
    assert len(caplog.records) == 2 and guard.skipped == 2 * MAX_BAD_STEPS - 1
    prior = StepGuard()
    for step in range(1, MAX_BAD_STEPS):
        prior.decide(step, [0, 0], replaced=64, values=64)
    with pytest.raises(ValueError, match="the prior's noise prediction is not finite"):
        prior.decide(MAX_BAD_STEPS, [0, 0], replaced=64, values=64)
    partly = StepGuard()
    for step in range(3 * MAX_BAD_STEPS):
        partly.decide(step, [0, 0], replaced=63, values=64)


def test_non_finite_weights_are_not_saved_and_not_loaded(tmp_path, caplog):
    for step in (1, 2):
        save_checkpoint(
            tmp_path, step, {"a": torch.ones(3) * step, "n": torch.ones(2, dtype=torch.int64)}, {}
        )
    for bad in BAD:
        with pytest.raises(ValueError, match="step 3: b contains NaN or infinity"):
            save_checkpoint(tmp_path, 3, {"a": torch.ones(3), "b": torch.tensor([1.0, bad])}, {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_000001", "step_000002"]
    # Write the checkpoint as an older version of this program would have written it, with NaN in a tensor.
    path = tmp_path / "step_000002/tensors.safetensors"
    tensors = load_file(path) | {"a": torch.tensor([1.0, float("nan"), 1.0])}
    save_file(tensors, path)
    state = json.loads((tmp_path / "step_000002/state.json").read_text())
    state.pop("sha256")
    state["tensors"] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (tmp_path / "step_000002/state.json").write_text(json.dumps(state))
    with pytest.raises(DamagedCheckpoint, match="a contains NaN or infinity"):
        checkpoint._read(tmp_path / "step_000002", 2)
    assert load_latest(tmp_path).step == 1
    assert "a contains NaN" in caplog.text


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    path = tmp_path_factory.mktemp("ball") / "ball.ply"
    trimesh.creation.icosphere(2, radius=0.7).export(path)
    return path


def paint(folder, model, ball, name, **values):
    path = folder / f"{name}.json"
    settings = {"mode": "appearance_modeling", "base_mesh": str(ball), "iter": 8, "coarse_iter": 2, **values}
    settings |= {"sd_model": str(model), "out_dir": str(folder / name), "video_interval": 0}
    path.write_text(json.dumps({**TINY, **settings, "checkpoint_interval": 4}))
    return ["--config", str(path)]


def inject(monkeypatch, plan):
    """Put non-finite numbers into the denoiser's output and two gradients at the steps of `plan`."""
    current = {"step": 0}
    real_step, real_noise, real_encode = (
        loop.train_step,
        StableDiffusion.predict_noise,
        StableDiffusion.encode,
    )

    def spoil(site, tensor, index):
        if (current["step"], site) in plan:
            tensor = tensor.clone()
            tensor.view(-1)[index] = plan[current["step"], site]
        return tensor

    def train_step(state, config, task, guidance, distributed):
        current["step"] = state.step
        weight = next(p for p in task.scene.parameters() if p.requires_grad)
        handle = weight.register_hook(lambda gradient: spoil("weight", gradient, 5))
        try:
            return real_step(state, config, task, guidance, distributed)
        finally:
            handle.remove()

    def predict_noise(self, *inputs):
        return spoil("denoiser", real_noise(self, *inputs), 7)

    def encode(self, images, noise):
        # `middle` is the central pixel of the image, where the object is visible in every view.
        middle = images.shape[-1] * (images.shape[-2] // 2) + images.shape[-1] // 2
        images.register_hook(lambda gradient: spoil("vae", gradient, middle))
        return real_encode(self, images, noise)

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(StableDiffusion, "predict_noise", predict_noise)
    monkeypatch.setattr(StableDiffusion, "encode", encode)


def test_run_with_injected_nan_continues_and_resumes_bit_for_bit(model_folder, ball, tmp_path, monkeypatch):
    nan, inf = float("nan"), float("inf")
    plan = {
        (2, "denoiser"): nan,
        (3, "denoiser"): inf,
        (4, "vae"): nan,
        (5, "vae"): inf,
        (6, "weight"): nan,
        (7, "weight"): -inf,
    }
    inject(monkeypatch, plan)
    assert train.main(paint(tmp_path, model_folder, ball, "whole")) == 0
    assert train.main(paint(tmp_path, model_folder, ball, "parts", iter=4)) == 0
    assert train.main(paint(tmp_path, model_folder, ball, "parts")) == 0
    whole, parts = (load_latest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert whole.step == parts.step == 8 and whole.tensors.keys() == parts.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, parts.tensors[name]) and tensor.isfinite().all(), name
    # Four of the eight steps were skipped, so the optimizer counted four steps.
    steps = [tensor for name, tensor in whole.tensors.items() if name.endswith(".step")]
    assert steps and all(tensor == 4 for tensor in steps)
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [line.get("replaced_values") for line in lines] == [None, 1, 1, *[None] * 5]
    assert [line.get("skipped_steps") for line in lines] == [*[None] * 4, 1, 2, 3, 4]


def test_without_non_finite_numbers_nothing_is_skipped_or_counted(model_folder, ball, tmp_path):
    assert train.main(paint(tmp_path, model_folder, ball, "plain", iter=2)) == 0
    lines = [json.loads(line) for line in (tmp_path / "plain/log.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line.keys() == lines[0].keys() for line in lines)
    assert not {"replaced_values", "skipped_steps"} & lines[0].keys()
