"""Run the published pineapple configs at the full size of Stable Diffusion 2.1-base on a GPU.

The weights are random. The tests check that every part fits into memory, runs and exports, but they do not
check the quality.
"""

import json

import pytest
import torch
from full_size_model import write_full_size_control_net, write_full_size_model

import train

pytestmark = pytest.mark.gpu


def test_published_pineapple_runs_sixty_iterations_of_each_phase(tmp_path):
    model = str(write_full_size_model(tmp_path / "model"))
    geometry = [
        "--config",
        "configs/pineapple_geometry_single_gpu.json",
        "--iter",
        "520",
        "--coarse_iter",
        "460",
    ]
    paint = ["--config", "configs/pineapple_appearance_strategy0_single_gpu.json"]
    shape_out, paint_out = tmp_path / "shape", tmp_path / "paint"
    torch.cuda.reset_peak_memory_stats()
    assert train.main([*geometry, "--sd_model", model, "--out_dir", str(shape_out)]) == 0
    mesh = shape_out / "dmtet_mesh/mesh.obj"
    options = ["--iter", "120", "--coarse_iter", "60", "--base_mesh", str(mesh), "--out_dir", str(paint_out)]
    assert train.main([*paint, "--sd_model", model, *options]) == 0
    for out, phases in ((shape_out, {"fit", "coarse", "fine"}), (paint_out, {"early", "late"})):
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert {line["phase"] for line in lines if "phase" in line} == phases
        assert all(isinstance(line["loss"], float) for line in lines if "loss" in line)
        assert (out / "dmtet_mesh/mesh.glb").stat().st_size > 0
    assert torch.cuda.max_memory_allocated() < 40e9


def test_four_views_and_a_control_net_run_a_few_iterations(tmp_path):
    views = str(write_full_size_model(tmp_path / "views", views=4))
    plain = write_full_size_model(tmp_path / "plain")
    control_net = str(write_full_size_control_net(tmp_path / "control", plain / "unet"))
    shape_out, paint_out = tmp_path / "shape", tmp_path / "paint"
    geometry = ["--config", "configs/pineapple_geometry_single_gpu.json", "--iter", "412"]
    geometry += ["--coarse_iter", "406", "--batch", "4", "--train_res", "256", "256", "--score", "x0"]
    assert train.main([*geometry, "--sd_model", views, "--out_dir", str(shape_out)]) == 0
    paint = ["--config", "configs/pineapple_appearance_strategy0_single_gpu.json", "--iter", "8"]
    paint += ["--coarse_iter", "4", "--base_mesh", str(shape_out / "dmtet_mesh/mesh.obj")]
    paint += ["--control_model", control_net, "--second_sd_model", views, "--batch", "4"]
    assert train.main([*paint, "--sd_model", str(plain), "--out_dir", str(paint_out)]) == 0
    for out in (shape_out, paint_out):
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert all(isinstance(line["loss"], float) for line in lines)
        assert (out / "dmtet_mesh/mesh.glb").stat().st_size > 0
