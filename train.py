"""Text to 3D by score distillation: reads JSON configs and sculpts or paints, one config after the other.

    python3 train.py --config configs/pineapple_demo_geometry.json configs/pineapple_demo_appearance.json

This is the only place where everything meets: it parses, builds, runs the loop and exports. A step is a pure
function of (weights, seed, rank, step), so the same command run again resumes where the last one stopped.
Under torchrun all processes take every step together, and rank 0 alone writes (configs/ranks.py).
"""

import os
import sys

from configs import doctor

# Before anything is imported that may be missing: there, a missing package is a row and not a traceback.
if __name__ == "__main__" and doctor.OPTION in sys.argv[1:]:
    sys.exit(doctor.main(sys.argv[1:]))

# Before torch is imported: spinning OpenMP workers make a step eight times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A surface's tensors have another size in every step and would leave GPU memory in pieces. The variable has a
# newer name; set under the older one, which torch reads first, ours would take a user's place.
if "PYTORCH_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import gc
import logging
import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from configs.command_line import load_configs
from configs.export_only import OPTION as EXPORT_ONLY
from configs.export_only import exported_again
from configs.facts import facts_of, write_config
from configs.fleet.cells import load_fleet
from configs.fleet.run import run_fleet
from configs.memory import peak_memory, shortage_explained
from configs.ranks import ALONE, Ranks, joined, leave, only_first_is_heard, weights_of
from configs.resume import checkpoint_folder, is_exported, latest_checkpoint, restore_state, save_state
from configs.schema import Config
from configs.stop import StopRequest
from dataset.ahead import Ahead
from dataset.cameras import sample_cameras, step_generator
from geometry.dmtet import DMTet, SurfaceVanished, cell_size
from geometry.fixed_mesh import load_fixed_mesh, placement
from geometry.start_shape import FitPool, build_start_shape, make_fit_pool
from render.camera import Cameras
from render.export.asset import write_asset
from render.export.atomic import staged_folder
from render.export.bake import bake
from render.export.checkpoint import load_latest
from render.export.crumbs import without_crumbs
from render.export.decimate import decimate
from render.export.hdr import read_latlong, write_hdr
from render.export.run_log import RunLog
from render.export.tensorboard_log import TensorBoardLog, check_installed
from render.export.transfer import PAINTED_RES, for_export
from render.export.usd import require_usd
from render.export.uv import prepare_uv, unwrap
from render.preview import Darkroom, Film, take_stills, write_orbit
from render.raster.choose import choose_rasteriser
from render.raster.contract import Rasteriser
from render.report.live import RunReport
from render.report.machine import machine
from render.scene import AppearanceScene, GeometryScene
from render.shade.cube import cube_to_latlong
from render.shade.light import EnvironmentLight, load_environment, resolve_map
from render.shade.material import MaterialField
from render.staging import Numbers
from sd.guidance import Guidance, Question
from sd.lora import parse_lora
from sd.places import resolve_model
from sd.schedule import FIT_STEPS, Phase, Schedule, appearance_schedule, geometry_schedule
from sd.stable_diffusion import StableDiffusion

logger = logging.getLogger("train")

# Stream 0 of a step draws its cameras, t and noise; what is drawn once has its own.
SETUP_STREAM, FIT_STREAM = 1, 2
# Where no coarse phase reshapes it, a surface stays this close to its start shape, in cells of the grid.
DETAIL_CELLS = 0.25


@dataclass(frozen=True)
class Task:
    """What a mode contributes to the loop: scene, phases, the fit (where there is one) and the export.

    verify raises SurfaceVanished where nothing is left to go on from. export_once: other runs depend on the
    very bytes of the exported mesh, so the same state is exported only once.
    """

    scene: nn.Module
    schedule: Schedule
    fit: Callable[[torch.Generator], tuple[Tensor, dict[str, Tensor]]] | None
    verify: Callable[[], object]
    export: Callable[[], None]
    export_once: bool


@dataclass(frozen=True)
class Draw:
    """What one share of a step draws at random."""

    views: Cameras
    asked: Question


def build_geometry(config: Config, device: torch.device, rasteriser: Rasteriser) -> Task:
    """A DMTet surface that starts as the config's shape."""
    surface = DMTet(config.geometry, step_generator(config.run.seed, 0, 0, SETUP_STREAM)).to(device)
    shape = build_start_shape(config.start_shape)
    if (band := detail_band(config)) is not None:
        surface.keep_near(shape.signed_distance(surface.v_pos), band)
    # Only pictures for people are lit here, so there is nothing that learn_light could learn.
    light = load_environment(replace(config.light, learn_light=False)).to(device)
    scene = GeometryScene(surface, rasteriser, light, config.run.flip_normal)

    def export() -> None:
        wanted = config.export
        mesh = without_crumbs(surface.mesh().detach(), wanted.drop_crumbs)
        if wanted.export_faces:
            mesh = decimate(mesh, wanted.export_faces)
        mesh = unwrap(mesh, wanted.unwrap, wanted.texture_res, wanted.uv_padding_block)
        with staged_folder(config.run.mesh_path.parent) as folder:
            write_asset(folder, mesh, usd=wanted.export_usd)

    @cache
    def pool() -> FitPool:
        # Only where it is used: a run that resumes after the fit and the ranks that share it do without.
        generator = step_generator(config.run.seed, 0, 0, FIT_STREAM)
        return make_fit_pool(shape, surface.v_pos, generator).to(device)

    def fit(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss = surface.fit_loss(*pool().draw(generator))
        return loss, {"loss": loss.detach()}

    return Task(scene, geometry_schedule(config.schedule), fit, torch.no_grad()(surface.mesh), export, True)


def detail_band(config: Config) -> float | None:
    """How far the sculpted surface may move from its start shape, world units; None is no limit."""
    cells = config.geometry.detail_band
    if cells is None and config.schedule.coarse_iter <= FIT_STEPS < config.schedule.iter:
        cells = DETAIL_CELLS
        logger.info("coarse_iter %d: only detail is added, see detail_band", config.schedule.coarse_iter)
    return None if cells is None else cells * cell_size(config.geometry)


def build_appearance(config: Config, device: torch.device, rasteriser: Rasteriser) -> Task:
    """A material field over the mesh that base_mesh names."""
    own = load_fixed_mesh(config.run.base_mesh).to(device)
    place = placement(own, config.run.normalise_mesh)
    own = place.into_view(own)
    mesh = prepare_uv(own, replace(config.export, texture_res=PAINTED_RES), rasteriser)
    # A flat mesh still needs a box with a volume.
    low, high = mesh.v_pos.amin(0), mesh.v_pos.amax(0)
    margin = 0.01 * (high - low).max()
    torch.manual_seed(config.run.seed)
    material = MaterialField(
        config.material,
        low - margin,
        high + margin,
        config.geometry.hash_levels,
        config.geometry.hash_log2_entries,
        config.geometry.hash_finest,
    ).to(device)
    light = load_environment(config.light).to(device)
    scene = AppearanceScene(
        mesh,
        material,
        light,
        rasteriser,
        background=float(config.run.train_background == "white"),
        light_follows_camera=config.light.camera_space_light,
        relight=_second_light(config, device),
    )

    def field(positions: Tensor) -> dict[str, Tensor]:
        values = material(positions)
        channels = {"kd": values.kd, "ks": values.ks}
        return {**channels, "normal": values.normal} if material.bumpy else channels

    def export() -> None:
        target, painting = for_export(mesh, field, config.export, own_uv=mesh.uv is own.uv)
        textures = bake(target, painting, config.export.texture_res, rasteriser)
        target = place.back(target)
        with staged_folder(config.run.mesh_path.parent) as folder:
            write_hdr(folder / "probe.hdr", cube_to_latlong(light.cube.detach(), light.cube.shape[1]).cpu())
            write_asset(folder, target, textures, config.export.export_usd)

    return Task(scene, appearance_schedule(config.schedule), None, lambda: mesh, export, False)


BUILDERS = {"geometry_modeling": build_geometry, "appearance_modeling": build_appearance}


def _second_light(config: Config, device: torch.device) -> EnvironmentLight | None:
    if config.light.relight is None:
        return None
    second = replace(config.light, envmap=config.light.relight, learn_light=False)
    return load_environment(second).to(device)


def build(config: Config, ranks: Ranks = ALONE) -> tuple[Task, torch.optim.Optimizer, torch.device]:
    """The task of a config and what moves its weights."""
    device = pick_device(config.run.device, ranks)
    repeat_bit_for_bit(device)
    logger.info("%s: %r -> %s", config.run.mode, config.guidance.text, config.run.output_folder)
    rasteriser = choose_rasteriser(device, config.run.rasteriser)
    task = BUILDERS[config.run.mode](config, device, rasteriser)
    parameters = [p for p in task.scene.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.run.step_size,
        betas=(0.9, 0.99),
        eps=1e-15,
        weight_decay=0.01,
        fused=device.type == "cuda",
    )
    return task, optimizer, device


def run(config: Config, words: Sequence[str], ranks: Ranks) -> None:
    """One config from start, or from its last checkpoint, to the exported files; words: the command line."""
    started = time.monotonic()
    if torch.cuda.is_initialized():
        # What an earlier config of the command has left in cycles and in torch's hands is not this run's.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with open_report(config, words, ranks) as report:
        make(config, report, ranks)
    # What comes next may read the mesh that rank 0 has exported.
    ranks.wait()
    out = config.run.output_folder
    logger.info("done: %s in %.0f s, %s", out, time.monotonic() - started, peak_memory())


def open_report(config: Config, words: Sequence[str], ranks: Ranks = ALONE) -> RunReport:
    """The page that tells of a run."""
    facts = facts_of(config, words, machine(pick_device(config.run.device, ranks)))
    return RunReport(facts, quiet=not ranks.first)


def make(config: Config, report: RunReport, ranks: Ranks) -> None:
    """The work of a run: build, train what is left to train, and then rank 0 exports and films."""
    with report.timed("set-up"):
        task, optimizer, device = build(config, ranks)
        step = restore_state(config, task.scene, optimizer, ranks)
    begin(config, report, step, ranks)
    if step < task.schedule.last_step:
        with report.timed("the prior's set-up"):
            asked = config.guidance
            prior = StableDiffusion.from_pretrained(
                asked.sd_model, device, asked.sd_lora, asked.sd_prediction, asked.cpu_bfloat16
            )
            if doubt := prior.doubt(config.guidance.text):
                logger.warning("%s", doubt)
            guidance = Guidance(prior, config.guidance, config.run.mode, device)
        train(config, task, guidance, optimizer, step, report, ranks)
    if ranks.first:
        finish(config, task, report)


def begin(config: Config, report: RunReport, step: int, ranks: Ranks = ALONE) -> None:
    """After the set-up, which may fail and must not spoil what an earlier run has left: the page, and beside
    it the whole config, from which the run can be made again."""
    if ranks.first:
        write_config(config)
    report.begin(step)


def finish(config: Config, task: Task, report: RunReport) -> None:
    """Mesh, textures and films of a trained task."""
    with report.timed("export"):
        if task.export_once and is_exported(config):
            logger.info("kept as it is: %s (%s writes it anew)", config.run.mesh_path, EXPORT_ONLY)
        else:
            logger.info("exporting to %s", config.run.mesh_path.parent)
            task.export()
    with report.timed("films"):
        # Here and not in the loop, so that a run that was stopped after its last step gets its film too.
        make_film(config, task.schedule.last_step).assemble()
        if config.run.validate:
            write_orbit(task.scene.layers, config.run.output_folder, config.run.preview_res)


def export_again(config: Config, words: Sequence[str]) -> None:
    """The export alone, from the last checkpoint, which stays as it is; so do the pictures."""
    with open_report(config, words) as report:
        task, optimizer, _ = build(config)
        begin(config, report, restore_state(config, task.scene, optimizer))
        folder = config.run.mesh_path.parent
        logger.info("exporting step %d of %d to %s", report.step, task.schedule.last_step, folder)
        with report.timed("export"):
            task.export()
    if task.export_once:
        logger.warning("runs that paint another export of this mesh do not go on with this one")


def train(
    config: Config,
    task: Task,
    guidance: Guidance,
    optimizer: torch.optim.Optimizer,
    step: int,
    report: RunReport,
    ranks: Ranks,
) -> None:
    """The loop: from `step` finished steps to the schedule's last."""
    film = make_film(config, step)
    shares = ranks.world * config.run.grad_accum
    draws = Ahead(partial(draw, config, guidance, task.schedule, shares))
    with ExitStack() as stack:
        log = darkroom = None
        if ranks.first:
            log = stack.enter_context(open_log(config, task.schedule.last_step, step))
            darkroom = stack.enter_context(Darkroom(log.still))
        stop = stack.enter_context(StopRequest())
        while step < task.schedule.last_step:
            step += 1
            phase, news = task.schedule.phase(step), False
            if not phase.fit and step > 1 and task.schedule.phase(step - 1).fit:
                ranks.share_state(task.scene, optimizer)
            with vanishing_explained(config, step):
                stats, votes = descend(config, task, guidance, optimizer, draws, step, ranks, stop.votes())
                stop.decide(votes)
                if ranks.first:
                    log.record(step, phase.name, stats)
                    news = darkroom.collect()
                    if not phase.fit:
                        look(config, task.scene, film, darkroom, step)
            due = config.run.checkpoint_interval and step % config.run.checkpoint_interval == 0
            if due or stop.requested or step == task.schedule.last_step:
                keep(config, task, optimizer, step, ranks)
            report.step = step
            if due or news:
                report.update(step)
            stop.leave_if_requested(step)


def descend(
    config: Config,
    task: Task,
    guidance: Guidance,
    optimizer: torch.optim.Optimizer,
    draws: Ahead[Draw],
    step: int,
    ranks: Ranks,
    votes: Sequence[float] = (),
) -> tuple[dict[str, float], list[float]]:
    """One step of the weights, by all ranks; returns for the log the means of the loss and its parts, and
    the ranks' sums of `votes`, which travel with these.

    Every rank takes `grad_accum` shares of the step. A share is a function of (seed, its number, step), so
    what is computed depends on how many there are, and not on who takes them.
    """
    phase, parts = task.schedule.phase(step), config.run.grad_accum
    own, shares = range(ranks.rank * parts, (ranks.rank + 1) * parts), ranks.world * parts
    mine = own
    if phase.fit:
        # Every share would be the same: rank 0 does it, and the others get the fitted shape.
        mine, shares = range(int(ranks.first)), 1
    optimizer.zero_grad(set_to_none=True)
    numbers = []
    for share in mine:
        if phase.fit:
            loss, stats = task.fit(step_generator(config.run.seed, share, step))
        else:
            loss, stats = distil(task.scene, guidance, phase, draws(step, share))
        numbers.append(Numbers({**stats, "loss": loss}))
        loss.backward()
    following = step + 1
    if following <= task.schedule.last_step and not task.schedule.phase(following).fit:
        # While a GPU is at work on this step, as drawing this much takes the host milliseconds.
        draws.prepare(following, own)
    # Read only now: a GPU is still at work on the gradients, and gets its next work before it is done.
    sums = summed(numbers, step)
    totals = ranks.totals([*sums.values(), *votes])
    if not phase.fit:
        ranks.average_gradients(weights_of(optimizer), parts)
    optimizer.step()
    means = {name: total / shares for name, total in zip(sums, totals, strict=False)}
    return means, totals[len(sums) :]


def summed(numbers: Sequence[Numbers], step: int) -> dict[str, float]:
    """The sums over the shares. Raises ValueError where a loss is not finite."""
    sums = {"loss": 0.0}
    for share in numbers:
        found = share.read()
        if not math.isfinite(found["loss"]):
            raise ValueError(
                f"step {step}: the loss is {found['loss']}; the run stops before that spoils every "
                "weight, what was saved is kept: try a lower guidance_weight or learning_rate"
            )
        sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
    return sums


def keep(config: Config, task: Task, optimizer: torch.optim.Optimizer, step: int, ranks: Ranks) -> None:
    """A checkpoint, written by rank 0, of weights that all ranks share."""
    phase, last = task.schedule.phase(step), step == task.schedule.last_step
    if not phase.fit:
        ranks.check_alike(weights_of(optimizer))
    if not ranks.first:
        return
    if not phase.fit or last:
        # A state without a surface must not take the place of a good checkpoint.
        with vanishing_explained(config, step):
            task.verify()
    save_state(config, task.scene, optimizer, step, ranks)


def draw(config: Config, guidance: Guidance, schedule: Schedule, shares: int, step: int, share: int) -> Draw:
    """The views of share number `share` of a step, and what is asked about them, on the guidance's device."""
    generator, phase = step_generator(config.run.seed, share, step), schedule.phase(step)
    views = sample_cameras(
        config.camera,
        config.run.batch,
        config.run.train_res,
        generator,
        rank=share,
        world_size=shares,
        spin_normals=phase.spin_normals,
    )
    asked = guidance.draw(views.view_index, phase, generator)
    return Draw(views.to(guidance.device), asked)


def distil(
    scene: nn.Module, guidance: Guidance, phase: Phase, drawn: Draw
) -> tuple[Tensor, dict[str, Tensor]]:
    """One batch of views, judged by the prior: the loss and, for the log, its parts."""
    return guidance(scene(drawn.views), drawn.asked, phase)


def make_film(config: Config, step: int) -> Film:
    """The film of the run, with the frames up to `step` that are there already."""
    return Film(config.run.output_folder, max(config.run.video_interval, 1), config.run.preview_res, step)


def open_log(config: Config, last_step: int, step: int) -> RunLog:
    """The log of a run of which `step` steps are done."""
    out = config.run.output_folder
    mirror = TensorBoardLog(out, step) if config.run.log == "tensorboard" else None
    return RunLog(out, last_step, step, mirror=mirror)


def look(config: Config, scene: nn.Module, film: Film, darkroom: Darkroom, step: int) -> None:
    """The pictures that are due after `step`."""
    run = config.run
    if run.video_interval:
        film.record(scene.layers, step)
    if run.save_interval and (step % run.save_interval == 0 or step == config.schedule.iter):
        stills = take_stills(scene.layers, run.preview_res, run.panels, scene.light.cube.detach())
        darkroom.develop(step, run.output_folder / "stills" / f"{step:06d}.png", stills)


@contextmanager
def vanishing_explained(config: Config, step: int) -> Iterator[None]:
    """Adds to the message of a vanished surface when it happened and what is left."""
    try:
        yield
    except SurfaceVanished as error:
        kept = load_latest(checkpoint_folder(config))
        left = f"the checkpoint of step {kept.step} is kept in {checkpoint_folder(config)}" if kept else ""
        raise SurfaceVanished(f"step {step}: {error}; {left or 'no checkpoint was due yet'}") from error


def repeat_bit_for_bit(device: torch.device) -> None:
    """On the CPU, have sums over threads come out alike in every run; on a GPU that would cost too much."""
    wanted = device.type == "cpu"
    # Asking for what is so already would import torch's compiler, seconds that a GPU has no need of.
    if torch.are_deterministic_algorithms_enabled() is not wanted:
        torch.use_deterministic_algorithms(wanted)
    # That mode also fills new memory, so that reads of it repeat; nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of this process. Raises ValueError where CUDA or a GPU for it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and ranks.world > 1:
        if device.index is not None:
            raise ValueError(f"device = {name!r}: it names one GPU for {ranks.world} processes; say cuda")
        device = torch.device("cuda", ranks.local)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        few = "start fewer processes on it, " if ranks.world > 1 else ""
        raise ValueError(
            f"device = {str(device)!r}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            f"can use; {few}run with --device cpu, or install a CUDA build of torch and a driver"
        )
    return device


def check(config: Config, ranks: Ranks = ALONE) -> None:
    """What can be known to fail before any work is done, for all configs of the command."""
    pick_device(config.run.device, ranks)
    if config.run.log == "tensorboard":
        check_installed()
    model_found(config.guidance.sd_model)
    for entry in config.guidance.sd_lora:
        parse_lora(entry)
    if config.export.export_usd:
        require_usd()
    if not ranks.first:
        return
    latest_checkpoint(config)
    for path in (config.light.envmap, config.light.relight):
        if path is not None:
            map_readable(path)
    out = config.run.output_folder
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"out_dir = {config.run.out_dir!r}: cannot write to {out}: {reason}") from error


@cache
def model_found(name: str) -> None:
    """Asked once for all of many results: a hub id is looked up over the network."""
    resolve_model(name)


@cache
def map_readable(path: str) -> None:
    """Read once for all of many results: a large map takes a second."""
    read_latlong(resolve_map(path))


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 some of several results failed, 2 something that the user can mend, 128 + n
    stopped by signal n."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if fleet := load_fleet(argv):
            return run_fleet(fleet, check)
        only_first_is_heard()
        configs = load_configs(argv)
        with joined(on_gpus=any(config.run.device != "cpu" for config in configs)) as ranks:
            work(configs, argv, ranks)
    except KeyboardInterrupt:
        logger.error("interrupted; run the same command again to resume")
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        logger.debug("traceback", exc_info=True)
        logger.error("error: %s", " ".join(str(error).split()))
        return 2
    return 0


def work(configs: Sequence[Config], argv: Sequence[str], ranks: Ranks) -> None:
    """All that a command asks for, on all ranks; the export alone is rank 0's."""
    if EXPORT_ONLY in argv:
        for config in exported_again(configs) if ranks.first else []:
            with shortage_explained(config):
                export_again(config, argv)
        return
    # One process of each machine first: the others then find in its cache what was fetched.
    for turn in (True, False):
        if (ranks.local == 0) is turn:
            for config in configs:
                check(config, ranks)
        ranks.wait()
    for config in configs:
        with shortage_explained(config):
            run(config, argv, ranks)


if __name__ == "__main__":
    leave(partial(main, sys.argv[1:]))
