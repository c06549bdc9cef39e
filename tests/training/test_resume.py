"""Test the rules for resuming from a checkpoint."""

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.cli import load_configs
from training import file_hash, input_files
from training.checkpoint import save_checkpoint
from training.input_files import InputFiles, fingerprint, model_paths
from training.resume import (
    checkpoint_folder,
    has_steps_left,
    is_exported,
    latest_checkpoint,
    prepare_checkpoint,
    record_export,
    restore_state,
    settings,
)

ROOT = Path(__file__).parents[2]
GEOMETRY = ROOT / "configs" / "pineapple_demo_geometry.json"
APPEARANCE = ROOT / "configs" / "pineapple_demo_appearance.json"


def load(path, out, *options):
    return load_configs(["--config", str(path), "--out_dir", str(out), *options])[0]


def save(config, step=1, inputs=None):
    scene = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(scene.parameters())
    prepare_checkpoint(config, scene, optimizer, step, inputs=inputs or InputFiles())()


def restore(config, inputs):
    scene = torch.nn.Linear(2, 2)
    return restore_state(config, scene, torch.optim.AdamW(scene.parameters()), inputs=inputs)


@pytest.mark.parametrize("key", ["base_mesh", "tet_grid_file", "envmap", "sd_model"])
def test_changed_inputs_at_resume(key, tmp_path):
    """A run whose input file has changed is rejected, and the error contains the key of the file."""
    file, config = tmp_path / "input", load(GEOMETRY, tmp_path / "out")
    file.write_bytes(b"one")
    inputs = InputFiles()
    with inputs.reading(key, file):
        pass
    save(config, 7, inputs)

    same = InputFiles()
    with same.reading(key, file):
        pass
    assert restore(config, same) == 7
    file.write_bytes(b"two")
    changed = InputFiles()
    with changed.reading(key, file):
        pass
    with pytest.raises(ValueError, match=f"the run in it has read a different {key}"):
        restore(config, changed)
    # The prior is read only after the checkpoint is restored, so the error is raised when the prior is read.
    late = InputFiles()
    assert restore(config, late) == 7
    with pytest.raises(ValueError, match=f"a different {key}"), late.reading(key, file):
        pass


def test_base_mesh_swapped_in_mid_run(tmp_path):
    """A checkpoint contains the fingerprint of the mesh that was read, not of a later replacement."""
    mesh, config = tmp_path / "mesh.obj", load(GEOMETRY, tmp_path / "out")
    mesh.write_text("v 0 0 1\n")
    inputs = InputFiles()
    with inputs.reading("base_mesh", mesh):
        pass
    mesh.write_text("v 0 0 2\n")
    save(config, 5, inputs)
    again = InputFiles()
    with again.reading("base_mesh", mesh):
        pass
    with pytest.raises(ValueError, match="a different base_mesh"):
        restore(config, again)


def test_a_file_that_changes_while_it_is_read_is_rejected(tmp_path):
    file = tmp_path / "mesh.obj"
    file.write_text("v 0 0 1\n")
    with pytest.raises(ValueError, match="base_mesh = .*mesh.obj: .*changed while it was read"):
        with InputFiles().reading("base_mesh", file):
            file.write_text("v 0 0 1\nv 0 0 2\n")


def test_only_the_process_that_saves_computes_fingerprints(tmp_path, monkeypatch):
    file, calls = tmp_path / "mesh.obj", []
    file.write_text("v 0 0 1\n")
    monkeypatch.setattr(input_files, "fingerprint", lambda paths: calls.append(paths) or "digest")
    for hashes in (True, False):
        inputs = InputFiles(hashes)
        with inputs.reading("base_mesh", file):
            pass
        assert inputs.fingerprints == ({"base_mesh": "digest"} if hashes else {})
    assert len(calls) == 1


def test_a_file_is_hashed_while_it_is_read(tmp_path, monkeypatch):
    file, block_runs = tmp_path / "mesh.obj", threading.Event()
    file.write_text("v 0 0 1\n")
    monkeypatch.setattr(input_files, "fingerprint", lambda paths: str(block_runs.wait(30)))
    inputs = InputFiles()
    with inputs.reading("base_mesh", file):
        block_runs.set()
    assert inputs.fingerprints == {"base_mesh": "True"}


def test_a_file_that_cannot_be_hashed_is_an_error(tmp_path, monkeypatch):
    file = tmp_path / "mesh.obj"
    file.write_text("v 0 0 1\n")

    def fail(paths):
        raise PermissionError("not readable")

    monkeypatch.setattr(input_files, "fingerprint", fail)
    with pytest.raises(PermissionError), InputFiles().reading("base_mesh", file):
        pass
    # The error of the block names the file, so it takes precedence.
    with pytest.raises(ValueError, match="mesh.obj"), InputFiles().reading("base_mesh", file):
        raise ValueError("mesh.obj is damaged")


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 100])
def test_a_fingerprint_is_a_sha256_over_names_sizes_and_digests(size, tmp_path, monkeypatch):
    monkeypatch.setattr(file_hash, "PART_BYTES", 32)
    file, content = tmp_path / "weights", bytes(range(size))
    file.write_bytes(content)
    expected = hashlib.sha256(f"\0{size}\0".encode() + hashlib.sha256(content).digest())
    assert fingerprint([file]) == expected.hexdigest()


def test_a_checkpoint_contains_the_state_at_the_time_of_its_preparation(kernel_device, tmp_path):
    config = load(GEOMETRY, tmp_path / "out")
    scene = torch.nn.Linear(300, 200).to(kernel_device)
    optimizer = torch.optim.AdamW(scene.parameters(), lr=0.1)

    def train() -> None:
        optimizer.zero_grad()
        scene(torch.ones(1, 300, device=kernel_device)).sum().backward()
        optimizer.step()

    train()
    weights = {name: value.clone() for name, value in scene.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    write = prepare_checkpoint(config, scene, optimizer, 1, inputs=InputFiles())
    train()
    write()
    saved = latest_checkpoint(config).tensors
    for name, value in weights.items():
        assert torch.equal(saved[f"scene.{name}"], value.cpu())
        assert not torch.equal(scene.state_dict()[name], value)
    for number, moment in enumerate(moments):
        assert torch.equal(saved[f"optimizer.{number}.exp_avg"], moment.cpu())
        assert saved[f"optimizer.{number}.step"] == 1


def test_a_run_trains_until_its_last_step_has_a_checkpoint(tmp_path):
    config = load(GEOMETRY, tmp_path / "out", "--iter", "1200")
    assert has_steps_left(config)
    save(config, 1199)
    assert has_steps_left(config)
    save(config, 1200)
    assert not has_steps_left(config)


def test_a_fingerprint_covers_every_file_of_a_model(tmp_path):
    files = {"unet/config.json": b"{}", "unet/model.safetensors": b"weights", "categories.json": b"[]"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    first = fingerprint([tmp_path])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content + b" ")
        assert fingerprint([tmp_path]) != first, name
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("not read by the program")
    assert fingerprint([tmp_path]) == first


def test_a_large_file_is_sampled_at_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("training.input_files.FULL_BYTES", 1000)
    monkeypatch.setattr("training.input_files.SAMPLE_BYTES", 10)
    content = bytearray(2000)
    file = tmp_path / "weights"

    def changed(position):
        file.write_bytes(bytes(content[:position]) + b"x" + bytes(content[position + 1 :]))
        return fingerprint([file])

    file.write_bytes(content)
    first = fingerprint([file])
    assert changed(0) != first and changed(1999) != first and changed(5) != first
    file.write_bytes(content + b"\0")
    assert fingerprint([file]) != first


def test_a_model_includes_its_lora_files(tmp_path):
    lora = tmp_path / "style.safetensors"
    lora.write_bytes(b"")
    config = load(GEOMETRY, tmp_path / "out")
    config = replace(config, guidance=replace(config.guidance, lora=(f"{lora}:0.5",)))
    folder, *rest = model_paths(config)
    assert (folder / "unet").is_dir() and rest == [lora]


def test_only_the_keys_of_the_mode_are_compared(tmp_path):
    mesh = tmp_path / "mesh.obj"
    mesh.write_text("v 0 0 0\n")
    save(load(GEOMETRY, tmp_path / "shape"), 3)
    free = ["--kd_min", "0.1", "0.1", "0.1", "--env_resolution", "64", "--base_mesh", str(mesh)]
    assert latest_checkpoint(load(GEOMETRY, tmp_path / "shape", *free)).step == 3
    with pytest.raises(ValueError, match="another dmtet_grid"):
        latest_checkpoint(load(GEOMETRY, tmp_path / "shape", "--dmtet_grid", "20"))

    paint = ["--base_mesh", str(mesh)]
    save(load(APPEARANCE, tmp_path / "paint", *paint), 3)
    free = ["--dmtet_grid", "20", "--translation_y", "0.5"]
    assert latest_checkpoint(load(APPEARANCE, tmp_path / "paint", *paint, *free)).step == 3
    for other in (["--hash_n_levels", "2"], ["--env_resolution", "64"], ["--kd_min", "0.1", "0.1", "0.1"]):
        with pytest.raises(ValueError, match=f"another {other[0][2:]}"):
            latest_checkpoint(load(APPEARANCE, tmp_path / "paint", *paint, *other))


def test_resume_error_names_the_matching_options(tmp_path):
    save(load(GEOMETRY, tmp_path / "out", "--seed", "1", "--text", "a red car"), 3)
    with pytest.raises(ValueError, match="another ") as error:
        latest_checkpoint(load(GEOMETRY, tmp_path / "out", "--seed", "2"))
    message = str(error.value)
    options = message.partition("add ")[2].partition(";")[0]
    assert "--seed 1" in options and "--text 'a red car'" in options
    assert message.index("--seed 1") < message.index("delete")
    save(load(GEOMETRY, tmp_path / "long", "--iter", "900"), 850)
    with pytest.raises(ValueError, match="already reached step 850; add --iter 850"):
        latest_checkpoint(load(GEOMETRY, tmp_path / "long", "--iter", "800"))


def test_an_export_is_recorded_by_step_and_not_by_file_time(tmp_path):
    config = load(GEOMETRY, tmp_path / "out")
    folder = config.run.mesh_path.parent
    folder.mkdir(parents=True)
    save(config, 10)
    assert not is_exported(config, 10)
    for name in ("mesh.obj", "mesh.glb"):
        (folder / name).write_text("")
    assert not is_exported(config, 10)
    record_export(config, 10)
    assert is_exported(config, 10)
    # A checkpoint that was copied or restored from a backup has a newer file time, but its export is up to
    # date.
    for file in checkpoint_folder(config).rglob("*.*"):
        file.touch()
    assert is_exported(config, 10)
    save(config, 20)
    assert not is_exported(config, 20) and not is_exported(config, 10)
    # A new run that reaches the same step has other weights, so the earlier export is out of date.
    record_export(config, 20)
    save_checkpoint(checkpoint_folder(config), 20, {"scene.weight": torch.ones(3)}, {})
    assert not is_exported(config, 20)
    (folder / "export.json").write_text("[" * 100_000)
    assert not is_exported(config, 20)


def test_settings_are_json(tmp_path):
    values = settings(load(GEOMETRY, tmp_path / "out"))
    assert json.loads(json.dumps(values)) == values and values["dmtet_grid"] == 64 and "iter" not in values
