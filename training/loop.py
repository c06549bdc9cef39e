"""The training loop: phases, steps, checkpoints and previews."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.schema import Config
from dataset.cameras import step_generator
from geometry.marching_tets import EmptySurfaceError
from render.async_copy import AsyncScalars
from render.camera import Cameras
from sd.guidance import Guidance, SDSSample
from sd.schedule import Phase, Schedule
from training.background_writer import BackgroundWriter
from training.checkpoint import newest_step
from training.distributed import Distributed, optimized_parameters
from training.last_outputs import LastOutputs
from training.prefetch import MicroBatch, Prefetcher
from training.previews import AsyncImageWriter, save_previews, training_video
from training.report.report_writer import RunReport
from training.resume import checkpoint_folder, prepare_checkpoint
from training.run_log import open_run_log
from training.signals import StopRequest
from training.step_guard import StepGuard
from training.tasks import Task

Stats = dict[str, float]


@dataclass(frozen=True)
class PendingStats:
    """The statistics of a step that a GPU may still be computing.

    scalars: those of the micro-batches of this rank. flags: the result of `exchange_flags` in this step.
    micro_batches: their number on all ranks. latent_values: the number of latent values of a micro-batch.
    """

    step: int
    phase: Phase
    scalars: Sequence[AsyncScalars]
    flags: Sequence[float]
    micro_batches: int
    latent_values: int = 1


@dataclass
class TrainState:
    """The state that changes in each step.

    step: the current step; between steps, the last finished step. checkpoints: writer of the checkpoints that
    are followed by other steps. last_outputs: writer of the checkpoint of the last step. If it is None, the
    loop writes this checkpoint itself. on_stats: function that receives step, phase and statistics of each
    step. pending: the statistics that it has not received yet.
    """

    step: int
    schedule: Schedule
    optimizer: torch.optim.Optimizer
    prefetcher: Prefetcher[MicroBatch]
    stop: StopRequest = field(default_factory=StopRequest)
    guard: StepGuard = field(default_factory=StepGuard)
    checkpoints: BackgroundWriter = field(default_factory=BackgroundWriter)
    last_outputs: LastOutputs | None = None
    on_stats: Callable[[int, Phase, Stats], None] = lambda *_: None
    pending: PendingStats | None = None

    @property
    def phase(self) -> Phase:
        """The phase of the current step."""
        return self.schedule.phase(self.step)


def train_step(
    state: TrainState, config: Config, task: Task, guidance: Guidance, distributed: Distributed
) -> None:
    """Perform one step of score distillation on all ranks.

    A micro-batch depends only on the seed, its index and the step. Therefore the result depends on the number
    of micro-batches, but not on which rank computes which of them. Reading the statistics of a step waits for
    the GPU, so they are reported when the kernels of the next step have been started.
    """
    optimizers = [state.optimizer, *guidance.optimizers]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    micro_batches, scalars = distributed.micro_batches(config.run.grad_accum), []
    for micro_batch in micro_batches:
        cameras, sample = state.prefetcher.next(state.step, micro_batch)
        image, loss, stats = distillation_loss(config, task, guidance, cameras, sample, state.phase)
        report_stats(state, distributed)
        while not task.scene.is_complete():
            image, loss, stats = distillation_loss(config, task, guidance, cameras, sample, state.phase)
        state.guard.watch(image)
        if micro_batch == micro_batches[-1]:
            # While the GPU computes the noise predictions, the CPU draws the random numbers of the next step,
            # which takes a few milliseconds.
            prefetch_next(state, task, micro_batches)
        if task.regularise is not None:
            regulariser, values = task.regularise(state.phase)
            loss, stats = loss + regulariser, {**stats, **values}
        scalars.append(AsyncScalars({**stats, "loss": loss}))
        loss.backward()
    flags = exchange_flags(state, distributed)
    # Averaging propagates NaN and infinity to all ranks, so all ranks skip the same steps.
    parameters = [parameter for optimizer in optimizers for parameter in optimized_parameters(optimizer)]
    distributed.average_gradients(parameters, config.run.grad_accum)
    state.guard.step(*optimizers)
    values = guidance.latent_values(config.run.batch)
    count = distributed.world_size * config.run.grad_accum
    state.pending = PendingStats(state.step, state.phase, scalars, flags, count, values)


def distillation_loss(
    config: Config, task: Task, guidance: Guidance, cameras: Cameras, sample: SDSSample, phase: Phase
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Render the views. Return the image [B,H,W,C], and the loss and the statistics of the guidance.

    The result is valid only if the scene's `is_complete` returns True. The host does not wait for the size of
    the mesh, unless the guidance trains a network. Such a guidance must be called only once.
    """
    image = task.scene(cameras, wait=bool(guidance.optimizers))
    sample = complete_sample(config, task, guidance, sample, cameras)
    return image, *guidance(image, sample, phase)


def complete_sample(
    config: Config, task: Task, guidance: Guidance, sample: SDSSample, cameras: Cameras
) -> SDSSample:
    """Add surface noise and the control image, which depend on the scene's last rendering, to the sample."""
    if config.guidance.noise == "surface":
        matrices, size = cameras.world_to_clip.to(guidance.device), cameras.resolution
        sample = guidance.with_surface_noise(sample, task.scene.visible, matrices, size, config.run.seed)
    if guidance.control is not None:
        sample = guidance.with_control(sample, task.scene.control_image(guidance.control, cameras))
    return sample


def fit_step(state: TrainState, config: Config, task: Task, distributed: Distributed) -> None:
    """Perform one step of the start-shape regression on rank 0.

    The other ranks receive the weights before the first step of score distillation.
    """
    state.optimizer.zero_grad(set_to_none=True)
    scalars = []
    if distributed.is_main:
        loss, stats = task.fit(step_generator(config.run.seed, 0, state.step))
        scalars.append(AsyncScalars({**stats, "loss": loss}))
        loss.backward()
    report_stats(state, distributed)
    prefetch_next(state, task, distributed.micro_batches(config.run.grad_accum))
    flags = exchange_flags(state, distributed)
    state.guard.step(state.optimizer)
    state.pending = PendingStats(state.step, state.phase, scalars, flags, 1)


def train_loop(
    state: TrainState,
    config: Config,
    task: Task,
    guidance: Guidance,
    report: RunReport,
    distributed: Distributed,
) -> None:
    """Train from step `state.step` + 1 to the schedule's last step."""
    # A signal must not end the process while a checkpoint is being written, so `stop` is left last.
    video = training_video(config, state.step)
    with ExitStack() as stack, state.stop as stop, state.checkpoints, video:
        log = image_writer = None
        if distributed.is_main:
            log = stack.enter_context(
                open_run_log(config, state.schedule.last_step, state.step, report.progress)
            )
            image_writer = stack.enter_context(AsyncImageWriter(log.still))
            state.on_stats = log.record
        while state.step < state.schedule.last_step:
            state.step += 1
            phase, new_still = state.phase, False
            last = state.step == state.schedule.last_step
            if last and distributed.is_main:
                task.before_last_step()
            with vanishing_explained(state, config, distributed):
                if phase.fit:
                    fit_step(state, config, task, distributed)
                else:
                    if state.step > 1 and state.schedule.phase(state.step - 1).fit:
                        # The first step of score distillation is slow, so the fit's time is measured before.
                        report_stats(state, distributed)
                        distributed.broadcast_state(task.scene, state.optimizer)
                    train_step(state, config, task, guidance, distributed)
                if distributed.is_main:
                    state.checkpoints.check()
                    new_still = image_writer.collect()
                    if not phase.fit:
                        save_previews(config, task.scene, video, image_writer, state.step)
            interval = config.run.checkpoint_interval
            due = bool(interval) and state.step % interval == 0
            if due or last or stop.requested:
                report_stats(state, distributed)
                # A resumed run does not record the frames up to its checkpoint again.
                video.finish()
                save_checkpoint(state, config, task, guidance, distributed)
            report.step = state.step
            if (due or new_still) and not last:
                report.update(state.step)
            stop.exit_if_requested(state.step)
        if log is not None and state.last_outputs is not None:
            log.close_bar()
            state.last_outputs.close_later(stack.pop_all())
    if state.last_outputs is not None:
        state.last_outputs.hold_signals(state.stop.number)


def prefetch_next(state: TrainState, task: Task, micro_batches: range) -> None:
    """Draw the micro-batches of the next step, and prepare the scene for the first of them.

    Nothing is drawn if there is no next step, or if the next step belongs to the start-shape regression.
    """
    step = state.step + 1
    if step <= state.schedule.last_step and not state.schedule.phase(step).fit:
        (cameras, _), *_ = state.prefetcher.prepare(step, micro_batches)
        task.scene.prepare(cameras)


def exchange_flags(state: TrainState, distributed: Distributed) -> list[float]:
    """Sum the flags of `StopRequest` and `StepGuard` over the ranks, and return those of `StepGuard`.

    The flags belong to the previous step, so the host does not wait for the GPU. The exchange precedes the
    exchange of the gradients (see training/distributed.py).
    """
    stop, guard = state.stop.flags(), state.guard.flags()
    totals = distributed.all_reduce_sum([*stop, *guard])
    state.stop.decide(totals[: len(stop)])
    return totals[len(stop) :]


def report_stats(state: TrainState, distributed: Distributed) -> None:
    """Read the pending statistics on all ranks, and pass their means over the micro-batches to `on_stats`.

    The number of replaced values and the number of skipped steps are sums instead of means, and are omitted
    if they are 0.

    Raises:
        ValueError: after too many consecutive bad steps (see `StepGuard`).
    """
    pending, state.pending = state.pending, None
    if pending is None:
        return
    sums = {"loss": 0.0}
    for values in (scalars.read() for scalars in pending.scalars):
        sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
    totals = distributed.all_reduce_sum(list(sums.values()))
    count = pending.micro_batches
    stats = {name: total / count for name, total in zip(sums, totals, strict=True)}
    replaced = stats.pop("replaced_values", 0.0) * count
    state.guard.decide(pending.step, pending.flags, replaced, pending.latent_values * count)
    counts = {"replaced_values": replaced, "skipped_steps": float(state.guard.skipped)}
    stats |= {name: number for name, number in counts.items() if number}
    state.on_stats(pending.step, pending.phase, stats)


def save_checkpoint(
    state: TrainState, config: Config, task: Task, guidance: Guidance, distributed: Distributed
) -> None:
    """Check that the weights are equal on all ranks, then write a checkpoint on rank 0.

    The checkpoint is written in a thread, unless the run stops or has no `last_outputs`.
    """
    phase, last = state.phase, state.step == state.schedule.last_step
    if not phase.fit:
        for optimizer in (state.optimizer, *guidance.optimizers):
            distributed.assert_replicas_equal(optimized_parameters(optimizer))
    if not distributed.is_main:
        return
    if not phase.fit or last:
        # Raise an error if the surface has vanished, so that the previous checkpoint is kept.
        with vanishing_explained(state, config, distributed):
            task.verify()
    # There is at most one copy of the state.
    state.checkpoints.finish()
    write = prepare_checkpoint(
        config,
        task.scene,
        state.optimizer,
        state.step,
        distributed,
        inputs=task.inputs,
        guidance=guidance,
    )
    if state.stop.requested or (last and state.last_outputs is None):
        write()
    elif last:
        state.last_outputs.start_checkpoint(write)
    else:
        state.checkpoints.start(write)


@contextmanager
def vanishing_explained(state: TrainState, config: Config, distributed: Distributed) -> Iterator[None]:
    """Add the step and the last checkpoint to the message of EmptySurfaceError, and log the previous step."""
    try:
        yield
    except EmptySurfaceError as error:
        state.checkpoints.finish()
        report_stats(state, distributed)
        kept, folder = newest_step(checkpoint_folder(config)), checkpoint_folder(config)
        left = "" if kept is None else f"the checkpoint of step {kept} is kept in {folder}"
        advice = left or "no checkpoint was due yet"
        raise EmptySurfaceError(f"step {state.step}: {error}; {advice}") from error
