"""Random draws that are computed before they are needed."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from configs.schema import Config
from dataset.cameras import sample_cameras, step_generator
from render.camera import Cameras
from sd.guidance import Guidance, SDSSample
from sd.schedule import Phase, Schedule
from training.distributed import Distributed

MicroBatch = tuple[Cameras, SDSSample]
Draw = TypeVar("Draw")


class Prefetcher(Generic[Draw]):
    """Computes and stores the random draws of (step, micro-batch) in advance.

    draw: a function that depends only on (step, micro-batch), so it may be called at any time.
    """

    def __init__(self, draw: Callable[[int, int], Draw]):
        self._draw = draw
        self._ready: dict[tuple[int, int], Draw] = {}

    def next(self, step: int, micro_batch: int) -> Draw:
        """Return the draw of a micro-batch and remove it from the prepared draws."""
        if (step, micro_batch) in self._ready:
            return self._ready.pop((step, micro_batch))
        return self._draw(step, micro_batch)

    def prepare(self, step: int, micro_batches: Iterable[int]) -> list[Draw]:
        """Compute and return the draws of these micro-batches. Discard all draws that were prepared
        earlier.
        """
        self._ready = {(step, number): self._draw(step, number) for number in micro_batches}
        return list(self._ready.values())


def make_prefetcher(
    config: Config, guidance: Guidance, schedule: Schedule, distributed: Distributed
) -> Prefetcher[MicroBatch]:
    """Return a prefetcher that draws the cameras and the SDS sample of (step, micro-batch)."""
    count = distributed.world_size * config.run.grad_accum

    def draw(step: int, micro_batch: int) -> MicroBatch:
        return sample_micro_batch(config, guidance, schedule.phase(step), step, (micro_batch, count))

    return Prefetcher(draw)


def sample_micro_batch(
    config: Config, guidance: Guidance, phase: Phase, step: int, micro_batch: tuple[int, int]
) -> MicroBatch:
    """Draw cameras, t and noise of micro-batch (index, count) of a step, on the guidance's device."""
    number, count = micro_batch
    generator = step_generator(config.run.seed, number, step)
    cameras = sample_cameras(
        config.camera,
        config.run.batch,
        config.run.train_res,
        generator,
        rank=number,
        world_size=count,
        rotate_normals=phase.rotate_normals,
        views=guidance.views,
    )
    sample = guidance.sample(cameras.view_index, phase, generator, cameras.world_to_clip)
    return cameras.to(guidance.device), sample
