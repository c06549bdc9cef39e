"""Test the prior benchmark at toy size: every variant has a row."""

import torch

from benchmarks import prior_changes
from benchmarks.prior import Bench, denoiser, encoder, norms, others, whole
from benchmarks.prior_changes import denoiser_changes, encoder_changes
from sd.kernels.reference import REFERENCE
from sd.loading.weights import load_parts


def test_every_way_is_measured(model_folder, capsys):
    cpu = torch.device("cpu")
    bench = Bench(cpu, 1)
    for act, sizes in ((denoiser, (REFERENCE, [2])), (encoder, (REFERENCE, [1])), (whole, ([1],))):
        parts = load_parts(str(model_folder), cpu)
        for part in (parts.unet, parts.vae):
            part.requires_grad_(False).eval()
        act(bench, parts, *sizes)
    norms(bench, REFERENCE, [(1, 8, 4, 4)], 2, torch.float32)
    others(bench, REFERENCE, 1, 16, 8, 8)
    found = {(row["what"], row["way"]) for row in bench.rows}
    for way in ("diffusers", "+ channels last", "+ our blocks on torch's kernels", "+ reference kernels"):
        assert {("UNet 2B=2", way), ("VAE B=1 forward", way), ("VAE B=1 forward + backward", way)} <= found
    assert ("UNet 2B=2", "+ graph") in found and (
        "prior.encode B=1 forward + backward",
        "as in a run",
    ) in found
    assert all(row["ms"] > 0 for row in bench.rows)
    assert len(capsys.readouterr().out.splitlines()) == len(bench.rows)


def test_every_change_is_measured_with_its_error(model_folder, monkeypatch):
    # `separate_norm` is replaced by the reference, because Triton's interpreter is slow.
    monkeypatch.setattr(prior_changes, "separate_norm", REFERENCE.group_norm_and_skip)
    cpu = torch.device("cpu")
    bench, parts = Bench(cpu, 1), load_parts(str(model_folder), cpu)
    for part in (parts.unet, parts.vae):
        part.requires_grad_(False).eval()
    denoiser_changes(bench, parts, REFERENCE, 1)
    encoder_changes(bench, parts, REFERENCE, 1)
    found = [row for row in bench.rows if "error" in row or "value_error" in row]
    assert len(found) > 12 and len({row["way"] for row in found if "error" in row}) > 7
    for row in found:
        assert all(value < 1e-5 for name, value in row.items() if name.endswith("error"))
