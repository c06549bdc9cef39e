"""Test runs with a prior of several views, a ControlNet and two priors, at toy size."""

import logging

import pytest
import torch
import trimesh
from gaussian_prior import GaussianPrior
from multiprocess_harness import run
from test_train import appearance, geometry, log_without_times, refused
from toy_model import write_control_net, write_model

import train
from configs.schema import parse_config
from sd import schedule
from sd.guidance import Guidance
from training import signals
from training.checkpoint import load_latest
from training.prefetch import sample_micro_batch

VIEWS = 4
FEW = {"video_interval": 0, "save_interval": 0, "train_res": [16, 16]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with a prior of four views ("views") and a ControlNet for it ("control")."""
    root = tmp_path_factory.mktemp("models")
    views = write_model(root / "views", views=VIEWS)
    write_control_net(root / "control", views / "unet")
    return root


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "ball.obj"
    trimesh.creation.icosphere(subdivisions=1, radius=0.7).export(path)
    return path


def paint(folder, models, mesh, name="paint", **values):
    settings = {"batch": VIEWS, "control_model": str(models / "control"), **FEW, **values}
    return appearance(folder, models / "views", mesh, name, **settings)


def test_painting_with_two_priors_and_a_control_net_resumes_bit_for_bit(
    models, model_folder, ball, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(train, "export_run", lambda *_: None)
    keys = {"second_sd_model": str(model_folder), "second_sd_model_weight": [0.5, 1.0], "control": "normal"}
    keys |= {"control_weight": [1.0, 0.2], "checkpoint_interval": 1, "sd_model_weight": 2, "iter": 3}
    whole, parts = (paint(tmp_path, models, ball, name, **keys) for name in ("whole", "parts"))
    with caplog.at_level(logging.INFO):
        assert train.main(["--config", whole]) == 0
    assert "weights of the priors (the first with its ControlNet): " in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(
            signals.StopRequest, "exit_if_requested", lambda self, step: exit(0) if step == 1 else None
        )
        with pytest.raises(SystemExit):
            train.main(["--config", parts])
    assert train.main(["--config", parts]) == 0
    first, second = (load_latest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert first.step == second.step == 3 and first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    log = log_without_times(tmp_path / "whole")
    assert (
        log == log_without_times(tmp_path / "parts")
        and {"gradient_norm", "gradient_norm_2"} <= log[-1].keys()
    )


def test_sculpting_with_a_prior_of_several_views(models, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "FIT_STEPS", 30)
    monkeypatch.setattr(train, "export_run", lambda *_: None)
    keys = {"batch": VIEWS, "iter": 33, "coarse_iter": 31, "score": "x0", "low_memory": True}
    keys |= {"dmtet_grid": 16, "learning_rate": 5e-3}
    keys |= {"control_model": str(tmp_path / "not used"), **FEW}
    assert train.main(["--config", geometry(tmp_path, models / "views", **keys)]) == 0
    log = log_without_times(tmp_path / "shape")
    assert [line["phase"] for line in log[-3:]] == ["coarse", "fine", "fine"]
    assert all(line["loss"] > 0 for line in log[-3:])


@pytest.mark.slow
def test_two_processes_take_whole_groups(models, ball, tmp_path):
    """Two processes compute the same losses as one process with two micro-batches."""
    for world, parts in ((2, 1), (1, 2)):
        argv = ["--config", paint(tmp_path, models, ball, f"paint{world}", grad_accum=parts)]
        codes, text = run(world, argv, tmp_path)
        assert codes == [0] * world, text
    first, second = (log_without_times(tmp_path / f"paint{world}") for world in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def config_of(models, **values):
    settings = {"sd_model": str(models / "views"), "batch": 2 * VIEWS, "out_dir": "x", "train_res": [8, 8]}
    return parse_config(settings | values, "test")


@pytest.mark.parametrize("count", [1, 2])
def test_every_micro_batch_has_whole_groups_of_views(models, count):
    """The azimuths of a group's four views are 90 degrees apart. Elevation and field of view are equal."""
    config, prior = config_of(models), GaussianPrior()
    prior.views, prior.takes_cameras = VIEWS, True
    guidance = Guidance(prior, config.guidance, "bad", torch.device("cpu"))
    phase = schedule.Phase("p", (0.02, 0.98), schedule.damped, "image", rotate_normals=True)
    bases = []
    for number in range(count):
        cameras, sample = sample_micro_batch(config, guidance, phase, 3, (number, count))
        assert torch.equal(sample.world_to_clip, cameras.world_to_clip)
        for group in range(2):
            rows = slice(group * VIEWS, (group + 1) * VIEWS)
            matrices, position = cameras.world_to_clip[rows], cameras.position[rows]
            azimuth = torch.atan2(matrices[:, 0, 2], matrices[:, 0, 0]).rad2deg()
            assert torch.allclose(
                torch.sort((azimuth - azimuth[0]) % 360)[0], torch.arange(4) * 90.0, atol=1e-3
            )
            focal, up = matrices[:, 1, :3].norm(dim=-1), matrices[:, 3, 1]
            assert torch.allclose(focal, focal[:1]) and torch.allclose(up, up[:1], atol=1e-6)
            assert torch.allclose(position.norm(dim=-1), position[:1].norm(dim=-1))
            assert torch.equal(
                cameras.normal_rotation[rows], cameras.normal_rotation[rows][:1].expand(4, 3, 3)
            )
            assert len(sample.timesteps[rows].unique()) == 1
            bases.append(azimuth[0].item())
    # The first azimuth of a group is within a quarter of the circle, because the other views of the group
    # cover the other quarters. Each group or micro-batch has its own part of this quarter.
    assert all(-22.5 <= base < 67.5 for base in bases) and bases[0] < 22.5 <= bases[-1]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"batch": 6}, ["batch = 6", "groups of 4 views", "multiple of 4"]),
        ({"control_model": "no/such/folder"}, ["control_model = 'no/such/folder'", "is no such folder"]),
        ({"control_model": "models/views"}, ["control_model", "lacks config.json and *.safetensors"]),
        ({"second_sd_model": "./nowhere"}, ["second_sd_model = './nowhere'", "no such folder"]),
        ({"second_sd_model": "models/views", "score": "vsd"}, ["score is vsd and second_sd_model is set"]),
    ],
)
def test_wrong_priors_are_one_line(keys, words, models, ball, tmp_path, capsys, caplog):
    keys = {key: str(models / "views") if value == "models/views" else value for key, value in keys.items()}
    message = refused(["--config", paint(tmp_path, models, ball, **keys)], capsys, caplog)
    assert all(word in message for word in words), message
    assert not (tmp_path / "paint/checkpoints").exists()
