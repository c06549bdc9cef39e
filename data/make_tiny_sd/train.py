"""Train the embedded prior, data/tiny-sd, from scratch.

    python3 -m data.make_tiny_sd.train --out data/tiny-sd --minutes 8

The command has four stages: it renders views of procedural objects, trains the VAE, encodes all views, and
trains the denoiser with its text encoder. Each stage saves its result in the work folder, and the denoiser
saves a checkpoint every minute. The same command resumes an interrupted run. The command is meant for one
large GPU. `--toy` runs the same code with tiny networks on a CPU in seconds.

Under torchrun the data and each batch are divided among the GPUs (training/distributed.py).

--minutes is the total time from start to export. --stop-after ends this call earlier, so that the next call
resumes the training. --init starts from the weights of an exported folder and keeps the VAE of this folder
unchanged. --export-only exports the last checkpoint.

--views-together 4 trains a prior that denoises four views together (sd/multi_view.py). It should be combined
with --init data/tiny-sd. For comparison, --camera-group trains a prior of single views on the same pictures
as --views-together, --front-share trains a prior on more front views, and --no-view-words trains a prior
whose captions do not contain the view.
"""

import argparse
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

# This variable must be set before torch is imported. Without it, idle OpenMP threads wait in a busy loop,
# which slows down the program if other processes are busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from data.make_tiny_sd import networks
from data.make_tiny_sd.captions import CaptionTable
from data.make_tiny_sd.compile import compile_unet, start_warm_up
from data.make_tiny_sd.export import export, start_from
from data.make_tiny_sd.lr_schedule import StageSchedule
from data.make_tiny_sd.renders import CATEGORIES, DataConfig, Views, load_views, render_shards
from data.make_tiny_sd.run import Run
from data.make_tiny_sd.samples import plot_curves
from data.make_tiny_sd.tokenizer import write_tokenizer
from data.make_tiny_sd.train_unet import DOMAINS, Denoiser, TrainingData, make_denoiser, train_denoiser
from data.make_tiny_sd.train_vae import Latents, encode_views, train_vae
from render.shade.light import LightConfig
from training.console import run_tool
from training.launch import init_distributed, run_and_exit

logger = logging.getLogger(__name__)

STARTED = time.monotonic()
# Maximum shares of the total time for rendering and the VAE. The denoiser gets the rest.
RENDERING_SHARE, VAE_SHARE = 0.15, 0.2
EXPORT_SECONDS = 20.0
MAX_DIVERGENCES = 4
VAE_STREAM, DENOISER_STREAM = 10, 11


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="data.make_tiny_sd.train", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/tiny-sd"), help="the folder to write")
    add("--work", type=Path, default=Path("out/tiny-sd-work"), help="views, checkpoints, curves, samples")
    add("--minutes", type=float, default=8.0, help="total time")
    add("--stop-after", type=float, default=float("inf"), help="end this call after this many minutes")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--categories",
        nargs="+",
        choices=CATEGORIES,
        default=list(CATEGORIES),
        metavar="CATEGORY",
        help=f"any of {', '.join(CATEGORIES)}",
    )
    add("--instances", type=int, default=250, help="maximum number of objects per category")
    add("--views", type=int, help="views per object; default 18, or the next multiple of --camera-group")
    add("--batch", type=int, default=512, help="batch size of the denoiser")
    add("--vae-batch", type=int, default=128)
    add("--workers", type=int, help="rendering processes; default 6 on CUDA, else 0 (this one)")
    add("--env-scale", type=float, default=1.0, help="scale of the default environment")
    add("--seed", type=int, default=1)
    add("--init", type=Path, help="folder of a trained prior to initialise from")
    add("--views-together", type=int, default=1, metavar="V", help="train a denoiser of V views of an object")
    add("--camera-group", type=int, metavar="V", help="cameras in groups of V; default --views-together")
    add("--front-share", type=float, default=0.0, help="share of the views that are drawn from front views")
    add("--no-view-words", action="store_true", help="no captions with the view")
    add("--no-compile", action="store_true", help="do not use torch.compile")
    add("--keep-data", action="store_true", help="keep the rendered views in the work folder")
    add("--toy", action="store_true", help="tiny networks and few steps, for a test")
    add("--export-only", action="store_true", help="write the folder from the last checkpoint")
    options = parser.parse_args(arguments)
    options.camera_group = options.camera_group or options.views_together
    if options.views_together not in (1, options.camera_group):
        parser.error("--camera-group must equal --views-together")
    if options.views is None:
        options.views = -(-18 // options.camera_group) * options.camera_group
    for name in ("views", "batch"):
        if getattr(options, name) % options.camera_group:
            parser.error(f"--{name} must be a multiple of {options.camera_group}, the views of a group")
    if options.views_together > 1 and options.front_share > 0:
        parser.error("--front-share has no effect with --views-together: a group shows all sides")
    if options.workers is None:
        options.workers = 6 if options.device.startswith("cuda") else 0
    return options


def make_run(options: argparse.Namespace) -> Run:
    data = DataConfig(
        categories=tuple(options.categories),
        instances=options.instances,
        views=options.views,
        group=options.camera_group,
        seed=options.seed,
        environment=LightConfig(env_scale=options.env_scale),
    )
    shape = networks.Shape()
    if options.toy:
        shape = networks.TOY_SHAPE
        light = LightConfig(env_scale=options.env_scale, env_resolution=64)
        data = replace(data, instances=2, views=4, grid=32, environment=light)
        options.batch, options.vae_batch, options.no_compile = max(6, 3 * options.camera_group), 4, True
    shape = replace(shape, views=options.views_together)
    device = torch.device(options.device)
    distributed = init_distributed(on_gpus=device.type == "cuda")
    if distributed.world_size > 1 and device.type == "cuda":
        device = torch.device("cuda", distributed.local_rank)
    return Run(options, device, shape, replace(data, image_size=shape.image_size), distributed)


def claim_work_folder(run: Run) -> None:
    """Write the settings on which the files in the work folder depend.

    Raises:
        ValueError: if the folder was created with other settings.
    """
    run.work.mkdir(parents=True, exist_ok=True)
    path = run.work / "settings.json"
    settings = json.loads(json.dumps({"shape": asdict(run.shape), "data": _plain(run.data)}))
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ValueError(
            f"--work {run.work}was created with other settings ({path}); use those or an empty --work"
        )
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _plain(data: DataConfig) -> dict:
    # Sort sets, because their order is not reproducible.
    listed = {name: sorted(v) if isinstance(v, frozenset) else v for name, v in vars(data).items()}
    return {name: str(value) for name, value in listed.items()}


def rendered_views(run: Run) -> Views:
    folder = run.work / f"views_{run.distributed.rank}_of_{run.distributed.world_size}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        share = RENDERING_SHARE * run.seconds
        render_shards(run.data, folder, run.device, share, run.options.workers, distributed=run.distributed)
        (folder / "complete").touch()
    views = load_views(folder, run.device)
    logger.info("%.0f s: %d views of %d categories", _elapsed(), len(views), len(run.data.categories))
    return views


def trained_vae(run: Run, vae: torch.nn.Module, views: Views) -> torch.nn.Module:
    """Return the trained VAE on the device. Rank 0 trains it unless its file exists or --init is given."""
    path = run.work / "vae.pt"
    vae = vae.to(run.device, memory_format=torch.channels_last)
    if run.distributed.is_main and not path.exists():
        if run.options.init is None:
            history: list[dict] = []
            schedule = StageSchedule(VAE_SHARE * run.seconds, steps=20 if run.options.toy else None)
            train_vae(vae, views, schedule, run.options.vae_batch, run.generator(VAE_STREAM), history)
            plot_curves(history, ("l1",), run.work / "vae_curve.png")
        state = {"weights": vae.state_dict(), "scaling_factor": vae.config.scaling_factor}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    run.distributed.barrier()
    state = torch.load(path, map_location=run.device, weights_only=True)
    vae.load_state_dict(state["weights"])
    vae.register_to_config(scaling_factor=state["scaling_factor"])
    logger.info("%.0f s: VAE ready", _elapsed())
    return vae.eval().requires_grad_(False)


def unet_selector(run: Run) -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Return a function that selects the denoiser to run.

    A child process compiles the denoiser. The function returns the uncompiled denoiser until this process has
    finished, and the compiled denoiser afterwards.
    """
    if run.options.no_compile or run.device.type != "cuda" or run.shape.views > 1:
        return lambda unet: unet
    warm_up = start_warm_up(run.shape, run.options.batch)
    chosen: list[torch.nn.Module] = []

    def pick(unet: torch.nn.Module) -> torch.nn.Module:
        if not chosen and warm_up.poll() is not None:
            if warm_up.returncode == 0:
                chosen.append(compile_unet(unet, run.shape, run.options.batch, run.device))
            else:
                logger.warning("torch.compile failed, using eager execution")
                chosen.append(unet)
            logger.info("%.0f s: denoiser selected", _elapsed())
        return chosen[0] if chosen else unet

    return pick


def checkpoint(run: Run, denoiser: Denoiser, previous_seconds: float) -> None:
    if not run.distributed.is_main:
        return
    denoiser.spent_seconds = previous_seconds + _elapsed()
    denoiser.save(run.work / "denoiser.pt")
    (run.work / "denoiser_history.json").write_text(json.dumps(denoiser.history))
    plot_curves(denoiser.history, DOMAINS, run.work / "denoiser_curve.png")


def fit(run: Run, denoiser: Denoiser, data: TrainingData, select_unet: Callable) -> None:
    """Train the denoiser until the time is up.

    If the loss diverges, training continues from the last checkpoint with half the learning rate.
    """
    left = run.distributed.broadcast_value(max(run.seconds - _elapsed() - EXPORT_SECONDS, 1.0))
    if denoiser.planned_seconds == 0:
        denoiser.planned_seconds = left
    previous_seconds = denoiser.spent_seconds

    def save(current: Denoiser) -> None:
        checkpoint(run, current, previous_seconds)

    save(denoiser)
    run.distributed.barrier()
    for attempt in range(MAX_DIVERGENCES):
        left = max(run.seconds - _elapsed() - EXPORT_SECONDS, 1.0)
        seconds = min(left, (1 - denoiser.progress) * denoiser.planned_seconds)
        steps = 30 if run.options.toy else None
        try:
            train_denoiser(
                denoiser,
                data,
                StageSchedule(seconds, steps, denoiser.progress),
                batch=run.options.batch,
                generator=run.generator(DENOISER_STREAM + attempt, denoiser.step),
                autocast=run.autocast,
                select_unet=select_unet,
                checkpoint=save,
                stop_at=STARTED + run.options.stop_after * 60 - EXPORT_SECONDS,
                distributed=run.distributed,
            )
            return
        except FloatingPointError as error:
            logger.warning("%s; returning to the last checkpoint with half the learning rate", error)
            factor = denoiser.rate_factor / 2
            denoiser.load(run.work / "denoiser.pt", run.device)
            denoiser.rate_factor = factor
    raise FloatingPointError(f"the denoiser diverged {MAX_DIVERGENCES} times")


def train(run: Run) -> None:
    options, checkpoint_file = run.options, run.work / "denoiser.pt"
    captions = CaptionTable(run.data.categories)
    if run.distributed.is_main:
        claim_work_folder(run)
        write_tokenizer(run.work / "tokenizer", captions.captions)
    run.distributed.barrier()
    tokenizer = networks.load_tokenizer(run.work / "tokenizer")
    torch.manual_seed(options.seed)
    unet, vae, text_encoder = trained = (
        networks.build_unet(run.shape),
        networks.build_vae(run.shape),
        networks.build_text_encoder(run.shape, tokenizer),
    )
    if options.export_only and not checkpoint_file.exists():
        raise FileNotFoundError(f"--export-only: checkpoint {checkpoint_file} does not exist; train first")
    if options.init:
        start_from(options.init, trained, tokenizer)
    select_unet = (lambda unet: unet) if options.export_only else unet_selector(run)
    views = rendered_views(run)
    vae = trained_vae(run, vae, views)
    latents: Latents = encode_views(vae, views)
    logger.info("%.0f s: views encoded", _elapsed())
    denoiser = make_denoiser(unet, text_encoder, run.device)
    if checkpoint_file.exists():
        denoiser.load(checkpoint_file, run.device)
        logger.info("resuming at step %d (%.0f %%)", denoiser.step, 100 * denoiser.progress)
    if not options.export_only:
        tokens = networks.tokenize(tokenizer, captions.captions).to(run.device)
        shares = {"front_share": options.front_share, "view_share": run.view_share}
        data = TrainingData(
            latents, vae.config.scaling_factor, captions, tokens, views=run.shape.views, **shares
        )
        fit(run, denoiser, data, select_unet)
        logger.info("%.0f s: denoiser at step %d", _elapsed(), denoiser.step)
    if run.distributed.is_main:
        export(run, denoiser, vae, tokenizer, latents, views)
    if denoiser.progress >= 1 and not options.keep_data:
        shutil.rmtree(run.work / f"views_{run.distributed.rank}_of_{run.distributed.world_size}")
    run.distributed.shut_down()
    if run.distributed.is_main:
        logger.info("%.0f s: %s written", _elapsed(), options.out)


def _elapsed() -> float:
    return time.monotonic() - STARTED


def main(arguments: list[str] | None = None) -> int:
    return run_tool(lambda: train(make_run(parse(arguments))))


if __name__ == "__main__":
    run_and_exit(main)
