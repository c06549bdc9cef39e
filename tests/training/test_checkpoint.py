"""Test that checkpoints are complete or absent, and that optimizers are restored bit for bit."""

import errno
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from training import checkpoint as checkpoint_module
from training.checkpoint import (
    UnreadableCheckpoint,
    flatten_optimizer,
    load_latest,
    restore_optimizer,
    save_checkpoint,
)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(40, 3, generator=generator)
    # The test covers two names for one storage, a strided view, an integer and a scalar.
    counter = torch.tensor(7, dtype=torch.int64)
    return {"table": table, "alias": table, "turned": table.T, "counter": counter, "half": table[0].half()}


def test_only_tensors_that_share_memory_or_are_not_contiguous_are_copied():
    """The state is already a copy, so a second copy of all tensors would only need memory."""
    state = tensors(0)
    result = checkpoint_module._unshared(state)
    same = {name for name in state if result[name].data_ptr() == state[name].data_ptr()}
    assert same == {"table", "counter", "half"}
    assert len({value.data_ptr() for value in result.values()}) == len(result)
    assert all(torch.equal(result[name], value) for name, value in state.items())


def test_saved_state_is_restored_bit_for_bit(tmp_path):
    meta = {"loss": 0.1 + 0.2, "phase": "coarse", "list": [1, None, True]}
    path = save_checkpoint(tmp_path, 123, tensors(0), meta)
    assert path == tmp_path / "step_000123"
    assert sorted(entry.name for entry in path.iterdir()) == ["state.json", "tensors.safetensors"]
    back = load_latest(tmp_path)
    assert back.step == 123 and back.meta == meta
    for name, value in tensors(0).items():
        assert back.tensors[name].dtype == value.dtype and torch.equal(back.tensors[name], value), name


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path / "absent") is None
    (tmp_path / "step_1x").mkdir()
    (tmp_path / "step_000007.txt").write_text("")
    assert load_latest(tmp_path) is None


def test_the_newest_are_kept_and_later_ones_removed(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, tensors(step), {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000020", "step_000030"]
    save_checkpoint(tmp_path, 25, tensors(25), {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000020", "step_000025"]
    save_checkpoint(tmp_path, 25, tensors(26), {"again": True}, keep=2)
    assert load_latest(tmp_path).meta == {"again": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000020", "step_000025"]
    save_checkpoint(tmp_path, 1_234_567, tensors(1), {}, keep=2)
    assert load_latest(tmp_path).step == 1_234_567


def truncate(folder):
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(folder):
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edit_state(**changes):
    def edit(folder):
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**state, **changes}))

    return edit


DAMAGE = {
    "bytes instead of": truncate,
    "damaged": flip_a_bit,
    "tensors.safetensors is missing": lambda folder: (folder / "tensors.safetensors").unlink(),
    "state.json is missing": lambda folder: (folder / "state.json").unlink(),
    "not valid JSON": lambda folder: (folder / "state.json").write_text('{"format": '),
    "not a checkpoint of this program": lambda folder: (folder / "state.json").write_text('{"step": 20}'),
    "not a checkpoint": lambda folder: (folder / "state.json").write_text("[1, 2]"),
    "version '2'": edit_state(version="2"),
    "step 10": edit_state(step=10),
}


@pytest.mark.parametrize("complaint", DAMAGE)
def test_damaged_checkpoint_is_named_and_the_previous_one_is_used(complaint, tmp_path, caplog):
    save_checkpoint(tmp_path, 10, tensors(10), {})
    save_checkpoint(tmp_path, 20, tensors(20), {})
    DAMAGE[complaint](tmp_path / "step_000020")
    back = load_latest(tmp_path)
    assert back.step == 10 and torch.equal(back.tensors["table"], tensors(10)["table"])
    assert (
        len(caplog.messages) == 1 and complaint in caplog.messages[0] and "step_000020" in caplog.messages[0]
    )
    assert load_latest(tmp_path / "step_000020") is None


@pytest.mark.parametrize("complaint", DAMAGE)
def test_only_damaged_checkpoints_raise_and_are_kept(complaint, tmp_path):
    save_checkpoint(tmp_path, 20, tensors(20), {})
    DAMAGE[complaint](tmp_path / "step_000020")
    with pytest.raises(UnreadableCheckpoint, match="none of the 1 checkpoints .* is intact") as error:
        load_latest(tmp_path)
    assert complaint in str(error.value) and "nothing was deleted" in str(error.value)
    assert (tmp_path / "step_000020").is_dir()


def test_another_format_version_is_an_error_even_if_an_older_checkpoint_is_intact(tmp_path):
    save_checkpoint(tmp_path, 10, tensors(10), {})
    save_checkpoint(tmp_path, 20, tensors(20), {})
    edit_state(version=2)(tmp_path / "step_000020")
    with pytest.raises(UnreadableCheckpoint, match="step_000020/state.json has format version 2"):
        load_latest(tmp_path)


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_file_that_cannot_be_read_is_an_error(file, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 10, tensors(10), {})
    save_checkpoint(tmp_path, 20, tensors(20), {})
    original = Path.open

    def deny(path, *arguments, **options):
        if path == tmp_path / "step_000020" / file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)
    monkeypatch.setattr(Path, "read_text", lambda path, **options: path.open(**options).read())
    with pytest.raises(UnreadableCheckpoint, match="step_000020 cannot be read: Permission denied"):
        load_latest(tmp_path)


@pytest.mark.parametrize("interrupted", ["fsync", "rename"])
def test_kill_during_a_save_loses_no_checkpoint(interrupted, tmp_path, monkeypatch):
    """The save is stopped at each call of fsync or rename. A checkpoint can always be loaded afterwards."""
    save_checkpoint(tmp_path, 10, tensors(10), {})

    class KilledError(BaseException):
        pass

    original = getattr(os, interrupted)
    for call in range(3):
        countdown = iter(range(call, -1, -1))

        def stop(*arguments, countdown=countdown):
            if next(countdown, 0) == 0:
                raise KilledError
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, interrupted, stop)
            try:
                save_checkpoint(tmp_path, 20, tensors(20), {})
            except KilledError:
                pass
        back = load_latest(tmp_path)
        assert torch.equal(back.tensors["table"], tensors(back.step)["table"])
        assert back.step in (10, 20)
    save_checkpoint(tmp_path, 30, tensors(30), {})
    assert load_latest(tmp_path).step == 30
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_state_file_without_its_digest_value_is_damaged(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors(step), {"step": step})
    path = tmp_path / "step_000002" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": None, "meta": {"step": 3}}))
    assert load_latest(tmp_path).meta == {"step": 1}


def test_random_kills_lose_no_saved_checkpoint(tmp_path):
    chance, saved = random.Random(0), 0
    for _ in range(20):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for step in range(saved + 1, saved + 10_000):
                    save_checkpoint(tmp_path, step, tensors(step), {"step": step})
                    os.write(writing, b"%d\n" % step)
            finally:
                os._exit(1)
        os.close(writing)
        output = os.read(reading, 100)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while piece := os.read(reading, 4096):
            output += piece
        os.close(reading)
        back = load_latest(tmp_path)
        assert back.step in (int(output.split()[-1]), int(output.split()[-1]) + 1) and back.step > saved
        assert back.meta == {"step": back.step}
        assert torch.equal(back.tensors["table"], tensors(back.step)["table"])
        saved = back.step


def test_full_disk_gives_one_line_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 10, tensors(10), {})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.os, "fsync", full)
        with pytest.raises(
            OSError, match="^cannot write the checkpoint of step 20 .*disk is full.*step_000010"
        ):
            save_checkpoint(tmp_path, 20, tensors(20), {})
    assert load_latest(tmp_path).step == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step_000010"]


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7, bias=False), torch.nn.ReLU(), torch.nn.Linear(7, 2))


def optimizer_of(network: torch.nn.Module) -> torch.optim.AdamW:
    groups = [
        {"params": list(network[0].parameters()), "lr": 1e-2},
        {"params": list(network[2].parameters()), "lr": 3e-3, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-15)


def train(network: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        batch = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(batch).square().sum().backward()
        optimizer.step()


def test_an_optimizer_resumes_bit_for_bit(tmp_path):
    whole, through = model(), model()
    train(whole, optimizer_of(whole), 0, 9)

    first = optimizer_of(through)
    train(through, first, 0, 5)
    first.param_groups[0]["lr"] = 1e-2
    state, meta = flatten_optimizer(first)
    parameters = {f"model.{name}": value for name, value in through.state_dict().items()}
    prefixed = {f"optimizer.{name}": value for name, value in state.items()}
    save_checkpoint(tmp_path, 5, {**parameters, **prefixed}, {"optimizer": meta})

    back, resumed = load_latest(tmp_path), model()
    resumed.load_state_dict({n[6:]: v for n, v in back.tensors.items() if n.startswith("model.")})
    second = optimizer_of(resumed)
    second.param_groups[0]["lr"] = 0.5
    restored = {
        n.removeprefix("optimizer."): v for n, v in back.tensors.items() if n.startswith("optimizer.")
    }
    restore_optimizer(second, restored, back.meta["optimizer"])
    assert second.param_groups[0]["lr"] == 1e-2 and second.param_groups[0]["betas"] == (0.9, 0.99)
    assert all(entry["step"] == 5 for entry in second.state.values())
    train(resumed, second, 5, 9)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_optimizer_of_another_model_is_rejected():
    network = model()
    optimizer = optimizer_of(network)
    train(network, optimizer, 0, 1)
    state, meta = flatten_optimizer(optimizer)
    other = torch.nn.Sequential(torch.nn.Linear(5, 8, bias=False), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    with pytest.raises(ValueError, match="does not fit the model"):
        restore_optimizer(optimizer_of(other), state, meta)
    with pytest.raises(ValueError, match="parameter groups"):
        restore_optimizer(torch.optim.AdamW(network.parameters()), state, meta)


def test_a_digest_that_fails_is_one_line(tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint_module, "sha256_of_file", broken)
    with pytest.raises(OSError, match="^cannot write the checkpoint of step 20 .*Input/output error"):
        save_checkpoint(tmp_path, 20, tensors(20), {})
    assert not list(tmp_path.iterdir())


def test_a_disk_full_of_tensors_is_one_line(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 10, {"a": torch.zeros(3)}, {})

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(OSError, match="^cannot write the checkpoint of step 20 .*disk is full.*step_000010"):
        save_checkpoint(tmp_path, 20, {"a": torch.zeros(3)}, {})
    assert [folder.name for folder in tmp_path.iterdir()] == ["step_000010"]
