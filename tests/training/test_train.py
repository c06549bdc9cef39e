"""Test the program from config to exported files, at toy size with real model classes."""

import dataclasses
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import trimesh
from PIL import Image
from reduced_work import shorten_fit
from toy_config import TINY
from toy_run import FIT, appearance, geometry, refused

import train
from configs.cli import load_configs
from configs.schema import Config
from sd.guidance import Guidance
from training import prefetch, signals, tasks
from training.checkpoint import load_latest
from training.distributed import SINGLE_PROCESS
from training.priors import load_priors, make_guidance
from training.step_guard import MAX_BAD_STEPS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def short_fit():
    with pytest.MonkeyPatch.context() as patch:
        shorten_fit(FIT, patch.setattr)
        yield


def log_without_times(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def pair(model_folder, tmp_path_factory):
    """Run both stages in one command, and return the folder that contains the results."""
    folder = tmp_path_factory.mktemp("pair")
    shape = geometry(folder, model_folder, validate=True)
    mesh, panels = folder / "shape/dmtet_mesh/mesh.obj", [{"bsdf": "kd"}, {"latlong": True}]
    paint = appearance(folder, model_folder, mesh, validate=True, display=panels)
    assert train.main(["--config", shape, paint]) == 0
    return folder


def test_geometry_writes_a_closed_mesh_and_pictures(pair):
    out = pair / "shape"
    mesh = trimesh.load(out / "dmtet_mesh/mesh.obj", force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight and 0.1 < mesh.volume < 1.5
    for name in ("dmtet_mesh/mesh.glb", "dmtet_mesh/mesh.mtl", "video_log.mp4", "turntable.mp4", "log.jsonl"):
        assert (out / name).stat().st_size > 0, name
    assert (out / f"stills/{FIT + 2:06d}.png").exists()
    assert len(list((out / "validate/normal").glob("*.png"))) == 100
    assert (out / "validate/normal.gif").exists()


def test_appearance_writes_every_file_of_the_contract(pair):
    out = pair / "paint"
    for name in ("mesh.obj", "mesh.mtl", "texture_kd.png", "texture_ks.png", "texture_n.png", "mesh.glb"):
        assert (out / "dmtet_mesh" / name).stat().st_size > 0, name
    assert (out / "dmtet_mesh/probe.hdr").exists()
    assert {path.stem for path in (out / "validate").glob("*.gif")} == {
        "shaded",
        "kd",
        "ks",
        "normal",
        "mask",
    }


def test_stills_show_all_layers_or_those_of_display(pair):
    side = TINY["preview_res"][0]
    for name, rows in ((f"shape/stills/{FIT + 2:06d}.png", 3), ("paint/stills/000002.png", 3)):
        with Image.open(pair / name) as still:
            assert still.size == (4 * side, rows * side), name


def test_log_has_a_line_for_every_step_with_its_phase(pair):
    lines = [json.loads(line) for line in (pair / "shape/log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "phase" in line]
    assert [line["step"] for line in steps] == list(range(1, FIT + 5))
    assert [line["phase"] for line in steps[FIT - 1 :]] == ["fit", "coarse", "coarse", "fine", "fine"]
    assert steps[FIT - 1]["loss"] < 0.5 * steps[0]["loss"]  # the fit learns the start shape


def test_the_report_shows_both_stages(pair):
    for name, steps, phases in (
        ("shape", FIT + 4, ["fit", "coarse", "fine"]),
        ("paint", 4, ["early", "late"]),
    ):
        page = (pair / name / "report.html").read_text(encoding="utf-8")
        assert f"step {steps} of {steps}" in page and '<span class="state done">' in page
        for text in (*phases, "set-up", "export", "videos"):
            assert f'<th scope="row">{text}</th>' in page
        assert 'id="model"' in page and "data:video/mp4" in page and page.count('class="curve"') >= 2
        assert '"rows": 3' in page and "<code>guidance_weight</code>" in page
        assert shlex.quote(str(pair / name / "config.json")) in page


# GUIDED enables all guidance options that may keep state between steps.
GUIDED = {
    "score": "vsd",
    "perp_neg": True,
    "add_directional_text": True,
    "noise": "surface",
    "time_step_schedule": "annealed",
    "early_time_step_range": [0.5, 0.98],
    "normal_consistency": [0.0, 0.1],
    "laplacian": 1.0,
}


@pytest.mark.parametrize("mode", ["geometry", "appearance", "guided"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    pair, model_folder, tmp_path, mode, monkeypatch
):
    def make(name):
        if mode == "geometry":
            return geometry(tmp_path, model_folder, name, checkpoint_interval=1), FIT + 3
        if mode == "guided":
            return geometry(tmp_path, model_folder, name, checkpoint_interval=1, **GUIDED), FIT + 3
        mesh = pair / "shape/dmtet_mesh/mesh.obj"
        return appearance(tmp_path, model_folder, mesh, name, checkpoint_interval=1), 2

    whole, stop_at = make("whole")
    parts, _ = make("parts")
    assert train.main(["--config", whole]) == 0

    def stop(self, step):
        if step == stop_at:
            raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(signals.StopRequest, "exit_if_requested", stop)
        with pytest.raises(SystemExit):
            train.main(["--config", parts])
    assert load_latest(tmp_path / "parts/checkpoints").step == stop_at
    assert train.main(["--config", parts]) == 0
    first, second = (load_latest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert first.step == second.step > stop_at
    assert first.tensors.keys() == second.tensors.keys() and len(first.tensors) > 6
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    mesh_files = [(tmp_path / name / "dmtet_mesh/mesh.obj").read_bytes() for name in ("whole", "parts")]
    assert mesh_files[0] == mesh_files[1]
    log = log_without_times(tmp_path / "parts")
    assert log == log_without_times(tmp_path / "whole")
    if mode == "guided":
        assert {"lora_loss", "normal_consistency", "laplacian"} <= log[-1].keys()
        assert any(name.startswith("lora.") for name in first.tensors)
        page = (tmp_path / "whole/report.html").read_text(encoding="utf-8")
        assert all(f"{title}, coarse" in page for title in ("Normal consistency", "Laplacian", "LoRA loss"))


def test_gradients_of_shared_values_repeat_bit_for_bit_on_several_threads():
    # If several threads share the work, the gradient of indexing uses atomic additions, whose order varies.
    # Several threads are used for meshes of about 12,000 or more faces.
    values, rows = torch.randn(3, 3), torch.randint(3, (200_000,))
    weight, threads = torch.randn(200_000, 3), torch.get_num_threads()
    tasks.set_deterministic(torch.device("cpu"))
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(60):
            leaf = values.clone().requires_grad_()
            (leaf[rows] * weight).sum().backward()
            gradients.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], other) for other in gradients)


def test_a_finished_pair_runs_again_and_bakes_at_another_size(pair, monkeypatch):
    # A prior is not needed, so its packages, whose import takes a second, are not imported.
    monkeypatch.setattr(train, "import_prior_packages", lambda: pytest.fail("imported"))
    command = ["--config", str(pair / "shape.json"), str(pair / "paint.json"), "--validate", "false"]
    before = (pair / "shape/dmtet_mesh/mesh.obj").read_bytes()
    assert train.main([*command, "--texture_res", "32", "48"]) == 0
    assert (pair / "shape/dmtet_mesh/mesh.obj").read_bytes() == before
    assert Image.open(pair / "paint/dmtet_mesh/texture_kd.png").size == (48, 32)
    (pair / "shape/dmtet_mesh/mesh.glb").unlink()
    assert train.main(command) == 0
    assert (pair / "shape/dmtet_mesh/mesh.glb").exists()


def test_a_run_stopped_after_its_last_step_gets_its_video(model_folder, tmp_path, monkeypatch, pair):
    config = appearance(tmp_path, model_folder, pair / "shape/dmtet_mesh/mesh.obj", iter=2)

    def stop(self, step):
        if step == 2:
            raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(signals.StopRequest, "exit_if_requested", stop)
        with pytest.raises(SystemExit):
            train.main(["--config", config])
    assert not (tmp_path / "paint/video_log.mp4").exists()
    assert train.main(["--config", config]) == 0
    assert (tmp_path / "paint/video_log.mp4").exists()


def test_another_seed_gives_another_surface(pair, model_folder, tmp_path):
    assert train.main(["--config", geometry(tmp_path, model_folder, seed=7)]) == 0
    mine = (tmp_path / "shape/dmtet_mesh/mesh.obj").read_bytes()
    assert mine != (pair / "shape/dmtet_mesh/mesh.obj").read_bytes()


def test_a_folder_with_another_run_is_rejected_and_unchanged(pair, model_folder, capsys, caplog):
    before = {path: path.read_bytes() for path in (pair / "shape").rglob("*") if path.is_file()}
    config = str(pair / "shape.json")
    message = refused(
        ["--config", config, "--text", "a cat", "--out_dir", str(pair / "shape")], capsys, caplog
    )
    assert "text" in message and "a car" in message and "out_dir" in message
    assert all(path.read_bytes() == content for path, content in before.items())


def test_repeated_infinite_losses_end_the_run(pair, model_folder, tmp_path, capsys, caplog, monkeypatch):
    mesh = pair / "shape/dmtet_mesh/mesh.obj"
    config = appearance(
        tmp_path, model_folder, mesh, iter=40, checkpoint_interval=1, save_interval=0, video_interval=0
    )
    calls, real = [], Guidance.forward

    def overflow(*arguments):
        calls.append(1)
        loss, stats = real(*arguments)
        return (loss * float("inf") if len(calls) >= 3 else loss), stats

    monkeypatch.setattr(Guidance, "forward", overflow)
    message = refused(["--config", config], capsys, caplog)
    # The host reads the result of a step during the next step, so the error is raised one step later.
    assert f"step {3 + MAX_BAD_STEPS}" in message and "images is not finite" in message
    saved = load_latest(tmp_path / "paint/checkpoints")
    assert saved.step == 2 + MAX_BAD_STEPS
    assert all(tensor.isfinite().all() for tensor in saved.tensors.values())


@pytest.mark.parametrize("mode", ["geometry", "appearance"])
def test_a_section_that_a_mode_does_not_read_may_change(pair, model_folder, tmp_path, mode):
    """A run resumes after a change in a section that is not read when the run is built.

    Such a section cannot affect the weights.
    """
    read = set()

    class RecordedConfig(Config):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    make = {"geometry": geometry, "appearance": partial(appearance, mesh=pair / "shape/dmtet_mesh/mesh.obj")}
    (plain,) = load_configs(["--config", make[mode](tmp_path, model_folder)])
    sections = {field.name for field in dataclasses.fields(plain)}
    config = RecordedConfig(**{name: getattr(plain, name) for name in sections})
    task, _, device = tasks.build_task(config)
    guidance = make_guidance(config, load_priors(config, device, task.inputs), device)
    prefetch.make_prefetcher(config, guidance, task.schedule, SINGLE_PROCESS)
    # The sections camera and export are read during or after training, and this test only builds the run.
    unread = sections - read - {"camera", "export"}
    assert unread and unread <= set(config.run.traits.unused_sections)


def test_geometry_learns_no_light(pair, model_folder, tmp_path):
    config = geometry(tmp_path, model_folder, iter=FIT, coarse_iter=0, learn_light=True)
    assert train.main(["--config", config]) == 0
    names = load_latest(tmp_path / "shape/checkpoints").tensors
    assert names and not [name for name in names if "light" in name]


def test_tensorboard_gets_the_numbers_and_the_stills(pair, model_folder, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    mesh = pair / "shape/dmtet_mesh/mesh.obj"
    config = appearance(tmp_path, model_folder, mesh, log="tensorboard", save_interval=3)
    assert train.main(["--config", config]) == 0
    events = accumulator.EventAccumulator(str(tmp_path / "paint"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "paint/log.jsonl").read_text().splitlines()]
    for name in ("loss", "gradient_norm"):
        logged = [(event.step, event.value) for event in events.Scalars(f"distillation/{name}")]
        assert logged == [(line["step"], pytest.approx(line[name])) for line in lines]
    # Stills are saved at every third step and at the last step.
    assert [picture.step for picture in events.Images("stills")] == [3, 4]


def test_tensorboard_without_its_package_is_rejected_at_startup(
    model_folder, tmp_path, monkeypatch, capsys, caplog
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else real(name, *rest)
    )
    message = refused(["--config", geometry(tmp_path, model_folder), "--log", "tensorboard"], capsys, caplog)
    assert "pip install tensorboard" in message and not (tmp_path / "shape").exists()


def test_an_interrupt_outside_the_loop_is_one_line(model_folder, tmp_path, monkeypatch, caplog):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_config", interrupted)
    assert train.main(["--config", geometry(tmp_path, model_folder)]) == 130
    assert "resume" in caplog.records[-1].getMessage()


BAD_MESHES = {
    "empty": "",
    "nan": "v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
    "no_faces": "v 0 0 0\nv 1 0 0\nv 0 1 0\n",
    "out_of_range": "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n",
}


@pytest.mark.parametrize("fault", [*BAD_MESHES, "missing"])
def test_bad_meshes_are_one_line(fault, model_folder, tmp_path, capsys, caplog):
    mesh = tmp_path / f"{fault}.obj"
    if fault in BAD_MESHES:
        mesh.write_text(BAD_MESHES[fault])
    message = refused(["--config", appearance(tmp_path, model_folder, mesh)], capsys, caplog)
    assert mesh.name in message


def test_quads_without_uv_are_painted_in_place(model_folder, tmp_path):
    mesh = tmp_path / "box.obj"
    box = trimesh.creation.box()
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    lines = [f"v {x} {y} {z}" for x, y, z in box.vertices]
    mesh.write_text("\n".join(lines + ["f " + " ".join(str(i + 1) for i in quad) for quad in quads]) + "\n")
    assert train.main(["--config", appearance(tmp_path, model_folder, mesh)]) == 0
    painted = trimesh.load(tmp_path / "paint/dmtet_mesh/mesh.glb", force="mesh")
    assert len(painted.faces) == 12
    assert painted.bounds.tolist() == box.bounds.tolist()
    assert painted.visual.uv.min() >= 0 and painted.visual.uv.max() <= 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["--sd_model", "nowhere/at all/here"], ["sd_model", "no such folder", "mirror", "HF_HUB_OFFLINE"]),
        (["--device", "cuda:7"], ["cuda:7", "--device cpu"]),
        (["--envmap", "nowhere.hdr"], ["envmap", "nowhere.hdr"]),
        (["--rasteriser", "nvdiffrast"], ["nvdiffrast"]),
        (["--itr", "3"], ["itr", "iter"]),
    ],
)
def test_bad_settings_are_one_line(override, words, model_folder, tmp_path, capsys, caplog):
    message = refused(["--config", geometry(tmp_path, model_folder), *override], capsys, caplog)
    for word in words:
        assert word in message


def test_unreadable_envmap_is_one_line(model_folder, tmp_path, capsys, caplog):
    light = tmp_path / "light.hdr"
    light.write_bytes(b"not a picture")
    config = geometry(tmp_path, model_folder, envmap=str(light))
    assert "light.hdr" in refused(["--config", config], capsys, caplog)


def test_an_out_dir_that_cannot_be_written_is_one_line(model_folder, tmp_path, capsys, caplog):
    (tmp_path / "file").write_text("in the way")
    config = geometry(tmp_path, model_folder, out_dir=str(tmp_path / "file/inside"))
    assert "out_dir" in refused(["--config", config], capsys, caplog)
    assert (tmp_path / "file").read_text() == "in the way"


FRESH = """
import os, sys, torch, train
from training import tasks
assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
for device, deterministic in (("cpu", True), ("cuda", False)):
    tasks.set_deterministic(torch.device(device))
    assert torch.are_deterministic_algorithms_enabled() is deterministic
assert "torch._inductor" not in sys.modules
"""


def test_settings_import_no_compiler_and_keep_user_settings():
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
    del environment["PYTORCH_CUDA_ALLOC_CONF"]
    done = subprocess.run([sys.executable, "-c", FRESH], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_bad_input_ends_the_process_with_2_and_no_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "absent.json")]
    environment = {**os.environ, "PYTHONPATH": ""}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert (
        result.stderr.startswith("error: ")
        and result.stderr.count("\n") == 1
        and "absent.json" in result.stderr
    )


def test_a_set_up_that_fails_leaves_the_page_and_config_of_an_earlier_run(
    pair, model_folder, tmp_path, capsys, caplog, monkeypatch
):
    config = appearance(tmp_path, model_folder, pair / "shape/dmtet_mesh/mesh.obj")
    assert train.main(["--config", config]) == 0
    files = [tmp_path / "paint/report.html", tmp_path / "paint/config.json"]
    before = [file.read_bytes() for file in files]

    def fail(*_):
        raise ValueError("the mesh has gone bad")

    monkeypatch.setattr(train, "build_task", fail)
    assert "gone bad" in refused(["--config", config, "--preview_res", "20", "20"], capsys, caplog)
    assert [file.read_bytes() for file in files] == before
    assert "gone bad" in refused(["--config", config, "--out_dir", str(tmp_path / "new")], capsys, caplog)
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {"report.html", ".lock"}
    assert "ValueError: the mesh has gone bad" in (tmp_path / "new/report.html").read_text(encoding="utf-8")


def test_maps_of_all_configs_are_read_before_the_first_one_starts(
    pair, model_folder, tmp_path, capsys, caplog
):
    first = geometry(tmp_path, model_folder)
    second = appearance(tmp_path, model_folder, tmp_path / "shape/dmtet_mesh/mesh.obj")
    broken = tmp_path / "broken.hdr"
    broken.write_bytes(b"\x00\xff\x13 no map")
    for key in ("envmap", "relight"):
        settings = json.loads(Path(second).read_text()) | {key: str(broken)}
        Path(second).write_text(json.dumps(settings))
        assert "broken.hdr" in refused(["--config", first, second], capsys, caplog)
        assert not (tmp_path / "shape").exists() or not list((tmp_path / "shape").iterdir())
