"""Estimate the remaining time of a command from reference times and measured times.

The work of a command is a list of parts: the set-up, the phases, the export and the videos of each config. A
part has a kind and a number of units. When the command has finished enough units of a kind, their measured
time is used. Before that, the estimate is the reference time, scaled by the ratio of measured to reference
time of the finished parts.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.schema import Config
from sd.loading.hub import local_model
from training.checkpoint import newest_step
from training.distributed import SINGLE_PROCESS, Distributed
from training.resume import checkpoint_folder
from training.tasks import select_device

# Reference times in seconds per unit. A kind is the label of the config's mode and the name of the part. The
# unit of a phase is one view, the unit of the fit is one step, and the unit of every other part is the whole
# part at the sizes of the demo. cpu: the prior data/tiny-sd on two cores of an AMD EPYC, torch 2.13. cuda:
# Stable Diffusion 2.1-base on an NVIDIA H200, torch 2.11. The times were measured in November 2026, except
# that "material fit" on cuda is an estimate.
REFERENCE: Mapping[str, Mapping[str, float]] = {
    "cpu": {
        "shape set-up": 3.0,
        "shape the prior's set-up": 5.0,
        "shape fit": 0.025,
        "shape image": 0.066,
        "shape vae": 0.083,
        "shape export": 3.0,
        "shape videos": 9.0,
        "material set-up": 3.0,
        "material the prior's set-up": 2.0,
        "material fit": 0.25,
        "material vae": 0.085,
        "material export": 5.0,
        "material videos": 9.0,
    },
    "cuda": {
        "shape set-up": 5.0,
        "shape the prior's set-up": 15.0,
        "shape fit": 0.007,
        "shape image": 0.0065,
        "shape vae": 0.0125,
        "shape export": 1.5,
        "shape videos": 2.5,
        "material set-up": 6.0,
        "material the prior's set-up": 6.0,
        "material fit": 0.01,
        "material vae": 0.0145,
        "material export": 3.5,
        "material videos": 3.5,
    },
}
# Work per step of the reference priors: bytes of the denoiser's weights times the area of its latents.
REFERENCE_WORK = {"cpu": 14.8e6 * 32**2, "cuda": 1.73e9 * 64**2}
STEP_PARTS = ("fit", "image", "vae")
SET_UP_PARTS = ("set-up", "the prior's set-up")
# The time per unit of a phase is averaged over its latest WINDOW_STEPS steps, if more than FEWEST_STEPS steps
# were measured. The first WARM_UP_STEPS steps of a phase are excluded, because they also compile kernels.
WINDOW_STEPS, WARM_UP_STEPS, FEWEST_STEPS = 200, 2, 5
# Sizes of the demo in pixels: the turntable has 100 frames of 384 x 384, and a texture has 1024 x 1024.
DEMO_FRAME, DEMO_TEXTURE = 384 * 384, 1024 * 1024


@dataclass
class Part:
    """A part of the work.

    config: index of the config, from 0. name: name of the part in the report. kind: a key of REFERENCE.
    first_step, step_units: for a phase, its first step and the number of units per step. done: number of
    finished units.
    """

    config: int
    name: str
    kind: str
    units: float
    first_step: int = 0
    step_units: float = 0.0
    done: float = 0.0

    @property
    def left(self) -> float:
        """The number of units that are not finished."""
        return max(self.units - self.done, 0.0)


def parts_of(number: int, config: Config) -> list[Part]:
    """Return the parts of config `number` of a command, in order."""
    run = config.run
    views = float(run.batch * run.grad_accum)
    label = run.traits.label
    parts = [Part(number, name, f"{label} {name}", 1.0) for name in SET_UP_PARTS]
    before = 0
    for last, phase in config.phases.phases:
        kind, step_units = ("fit", 1.0) if phase.fit else (phase.latents_from, views)
        units = (last - before) * step_units
        parts.append(Part(number, phase.name, f"{label} {kind}", units, before + 1, step_units))
        before = last
    texture = config.export.texture_res[0] * config.export.texture_res[1] / DEMO_TEXTURE
    # The export of a shape unwraps the faces, whose number grows with the square of the grid. The export of a
    # material also bakes textures. At the demo's texture size, the baking is assumed to take half of the
    # export time.
    export = 0.5 + 0.5 * texture if run.traits.paints_base_mesh else (config.geometry.dmtet_grid / 64) ** 2
    frames = run.preview_res[0] * run.preview_res[1] / DEMO_FRAME if run.validate else 0.1
    parts.append(Part(number, "export", f"{label} export", export))
    parts.append(Part(number, "videos", f"{label} videos", 0.2 + 0.8 * frames))
    return parts


class CommandProgress:
    """Progress of a command and estimate of its remaining time.

    device: "cpu" or "cuda". factor: the expected time of a step relative to the reference. When a part
    begins, all earlier parts are counted as done.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        device: str = "cpu",
        factor: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._labels = [config.run.traits.label for config in configs]
        self._parts = [part for number, config in enumerate(configs) for part in parts_of(number, config)]
        self._reference, self._factor, self._clock = REFERENCE[device], factor, clock
        self._scales_with_steps = device == "cpu"
        self._config = 0
        self._begun: tuple[Part, float] | None = None
        self._steps: deque[tuple[float, float]] = deque(maxlen=WINDOW_STEPS)
        self._warm_up = 0
        self._step_kind = ""
        # _measured: dict from kind to measured seconds per unit. _latest_kind: the kind of the steps that
        # were measured last.
        self._measured: dict[str, float] = {}
        self._latest_kind = ""

    @property
    def label(self) -> str:
        """The kind of the current config's result and its position in the command: "shape, 1 of 2"."""
        place = f", {self._config + 1} of {len(self._labels)}" if len(self._labels) > 1 else ""
        return self._labels[self._config] + place

    @property
    def scope(self) -> str:
        """The text that follows the remaining time in a message: "" for one config, " for all 2" for two."""
        return f" for all {len(self._labels)}" if len(self._labels) > 1 else ""

    def begin_config(self, number: int) -> None:
        """Record that config `number`, counted from 0, starts."""
        self._config = number
        for part in self._parts:
            if part.config < number:
                part.done = part.units

    def skip(self, number: int, step: int) -> None:
        """Record that config `number` has `step` finished steps from an earlier command."""
        for part in self._parts:
            if part.config == number and part.step_units:
                done = (step - part.first_step + 1) * part.step_units
                part.done = min(max(done, 0.0), part.units)

    def begin(self, name: str) -> None:
        """Record that the part `name` of the current config starts. Unknown parts are ignored."""
        part = self._find(name)
        if part is None:
            return
        for earlier in self._parts[: self._parts.index(part)]:
            earlier.done = earlier.units
        self._begun = part, self._clock()

    def end(self, name: str) -> None:
        """Record that the part `name` of the current config has ended."""
        part = self._find(name)
        if part is None or self._begun is None:
            return
        self._measured[part.kind] = (self._clock() - self._begun[1]) / part.units
        part.done, self._begun = part.units, None

    def step(self, step: int) -> None:
        """Record that `step` steps of the current config are finished."""
        current = self._part_of_step(step)
        for part in self._parts[: self._parts.index(current)]:
            part.done = part.units
        self.skip(self._config, step)
        if current.kind != self._step_kind:
            self._step_kind, self._warm_up = current.kind, WARM_UP_STEPS
            self._steps.clear()
        if self._warm_up:
            self._warm_up -= 1
        else:
            self._steps.append((self._clock(), current.step_units))
            self._measure_steps(current.kind)

    def remaining(self) -> float:
        """Return the estimated seconds until the command ends."""
        total = sum(part.left * self._cost(part.kind) for part in self._parts)
        if self._begun is not None:
            part, start = self._begun
            spent = self._clock() - start
            total -= min(spent, 0.9 * part.left * self._cost(part.kind))
        return total

    def _measure_steps(self, kind: str) -> None:
        if len(self._steps) > FEWEST_STEPS:
            units = sum(units for _, units in self._steps) - self._steps[0][1]
            self._measured[kind] = (self._steps[-1][0] - self._steps[0][0]) / units
            self._latest_kind = kind

    def _cost(self, kind: str) -> float:
        """Return the seconds per unit of a kind: the measured value, or the scaled reference."""
        if kind in self._measured:
            return self._measured[kind]
        return self._reference[kind] * self._scale(kind)

    def _scale(self, kind: str) -> float:
        """Return the measured time divided by the reference time, for parts like `kind`.

        For a phase, this is the quotient of the phase that was measured last, or `factor` before any phase
        was measured. For other parts, it is the sum of the measured times of exports and videos divided by
        the sum of their reference times. Before an export or video was measured, it is the quotient of the
        last phase on a CPU (1 if no phase was measured), and 1 on a GPU.
        """
        speed = self._factor
        if self._latest_kind:
            speed = self._measured[self._latest_kind] / self._reference[self._latest_kind]
        if kind.endswith(STEP_PARTS):
            return speed
        seen = [name for name in self._measured if not name.endswith((*STEP_PARTS, *SET_UP_PARTS))]
        if seen:
            return sum(self._measured[name] for name in seen) / sum(self._reference[name] for name in seen)
        return speed if self._scales_with_steps and self._latest_kind else 1.0

    def _find(self, name: str) -> Part | None:
        own = (part for part in self._parts if part.config == self._config)
        return next((part for part in own if part.name == name), None)

    def _part_of_step(self, step: int) -> Part:
        own = [part for part in self._parts if part.config == self._config and part.step_units]
        return [part for part in own if part.first_step <= step][-1]


def command_progress(configs: Sequence[Config], distributed: Distributed = SINGLE_PROCESS) -> CommandProgress:
    """Return the progress of a command at its start. Finished steps of earlier commands count as done."""
    first = configs[0]
    device = select_device(first.run.device, distributed).type
    priors = filter(None, (first.guidance.sd_model, first.guidance.second_sd_model))
    factor = sum(step_factor(name, device, torch.get_num_threads()) for name in priors)
    progress = CommandProgress(configs, device, factor)
    for number, config in enumerate(configs):
        progress.skip(number, newest_step(checkpoint_folder(config)) or 0)
    return progress


def step_factor(sd_model: str, device: str, threads: int) -> float:
    """Return the expected time of a step relative to the reference, or 1.0 without a local prior.

    The work of a denoiser is assumed to be proportional to the size of its weights times the area of its
    latents. device: "cpu" or "cuda". threads: number of CPU threads of torch.
    """
    model = local_model(sd_model)
    try:
        ratio = _denoiser_work(Path(model)) / REFERENCE_WORK[device] if model else 1.0
    except (OSError, ValueError, KeyError):
        return 1.0
    # On a GPU, the ratio has a lower limit, because kernel launches dominate the time of a small denoiser.
    return max(ratio, 0.3) if device == "cuda" else ratio * (2 / threads) ** 0.7


def _denoiser_work(path: Path) -> float:
    """Return the bytes of the denoiser's weights times the area of its latents.

    For a prior in a single file, the size of the whole file is used.
    """
    if path.is_file():
        return path.stat().st_size * 64.0**2
    settings = json.loads((path / "unet/config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in (path / "unet").glob("*.safetensors"))
    return size * float(settings["sample_size"]) ** 2


def in_words(seconds: float) -> str:
    """Return a duration as text: "40 s", "5 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{max(round(seconds / 5) * 5, 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
