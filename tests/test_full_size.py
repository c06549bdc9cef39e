"""The published pineapple configs at the full size of Stable Diffusion 2.1-base, on a GPU.

Weights are random: what is tested is that every part fits, runs and exports, not what it makes.
"""

import json

import pytest
import torch
from toy_model import write_tokenizer

import train

pytestmark = pytest.mark.gpu


def write_full_size_model(folder):
    """Stable Diffusion 2.1-base's exact shape, random weights, half precision; returns the folder."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer")
    with torch.device("cuda"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=[5, 10, 20, 20],
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=768,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
                projection_dim=512,
            )
        )
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == 866
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        part.half().save_pretrained(folder / name)
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(folder / "scheduler")
    return folder


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
