"""Measure the parts of a command outside of its training steps: the start and the export.

    python3 tests/benchmarks/startup.py --config configs/pineapple_demo_geometry.json
    python3 tests/benchmarks/startup.py --config configs/pineapple_demo_appearance.json --base_mesh mesh.obj

Other options are config keys. The run ends after the fit of the start shape and two steps in each phase, and
it writes to a temporary folder. For each part, the table contains wall time and CPU time in seconds. The time
of a nested part is not counted in the outer part. CPU time includes subprocesses that have ended, for example
of xatlas. The distances of the start shape's points are computed by a subprocess during the set-up of the
prior. The first step of the fit waits for them.
Start the command twice, because numba and Triton compile their kernels in the first run.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# PARTS is {part: [module:attribute]} for functions outside of the steps. The imports, the steps of the fit
# and the first step are measured in addition to these parts.
PARTS = {
    "check of the config": ["train:load_configs", "train:check_config"],
    "rasteriser": ["training.tasks:choose_rasteriser"],
    "tetrahedral grid": ["training.tasks:DMTet"],
    "points of the start shape": ["training.tasks:start_fit_pool"],
    "mesh that is painted": ["training.tasks:load_fixed_parts", "training.tasks:prepare_uv"],
    "light": ["training.tasks:load_environment", "render.shade.light:prefilter"],
    "other set-up": ["train:build_task", "train:restore_state"],
    "import the prior's packages": ["train:import_prior_packages", "training.priors:import_prior_packages"],
    "weights of the prior": ["sd.stable_diffusion:load_parts"],
    "kernels of the prior": ["sd.stable_diffusion:choose_kernels"],
    "prompts": ["sd.stable_diffusion:StableDiffusion.embed"],
    "other set-up of the prior": ["train:build_guidance"],
    "previews": ["training.loop:save_previews"],
    "checkpoints": ["training.loop:save_checkpoint", "training.last_outputs:LastOutputs.finish_checkpoint"],
    "unwrapping": ["training.tasks:unwrap", "training.tasks:prepare_export"],
    "baking": ["training.tasks:bake"],
    "files of the mesh": [
        "training.tasks:prepare_asset",
        "training.tasks:write_parts",
        "training.export:_write",
    ],
    "training video": ["training.previews:TrainingVideo.assemble"],
    "turntable": ["training.export:write_orbit"],
    "other export": ["train:export_run"],
}
STEPS = {"training.loop:fit_step": "fit", "training.loop:train_step": "step"}


class Clock:
    """Measure the wall and CPU seconds of each part, without nested parts: {part: [wall, CPU]}."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._nested: list[list[float]] = []
        self._begun = self.now()
        # Wall and CPU seconds from the creation of the clock to the end of the first step.
        self.first_step: list[float] = []

    @staticmethod
    def now() -> tuple[float, float]:
        used = os.times()
        return time.perf_counter(), used.user + used.system + used.children_user + used.children_system

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to a part."""
        begun = self.now()
        self._nested.append([0.0, 0.0])
        try:
            yield
        finally:
            whole = [end - start for end, start in zip(self.now(), begun, strict=True)]
            nested = self._nested.pop()
            if name == "first step":
                self.first_step = [end - start for end, start in zip(self.now(), self._begun, strict=True)]
            total = self.seconds.setdefault(name, [0.0, 0.0])
            for kind in range(2):
                total[kind] += whole[kind] - nested[kind]
                if self._nested:
                    self._nested[-1][kind] += whole[kind]

    def watch(self, place: str, name: Callable[[], str]) -> None:
        """Replace the function at "module:attribute" by one that is timed. name: the part of each call."""
        module, _, path = place.partition(":")
        *owners, attribute = path.split(".")
        owner = sys.modules[module]
        for step in owners:
            owner = getattr(owner, step)
        function = getattr(owner, attribute)

        @wraps(function, updated=())
        def timed(*arguments, **options):
            with self.part(name()):
                return function(*arguments, **options)

        setattr(owner, attribute, timed)


def step_namer(kind: str) -> Callable[[], str]:
    """Return a function that names the calls of a step: the first call and the others are different parts."""
    calls = iter([f"first {kind}"])
    return lambda: next(calls, f"other {kind}s")


def import_packages(clock: Clock) -> None:
    """Import what a run imports. The garbage collector is off during the imports, as in train.py."""
    gc.disable()
    with clock.part("import torch"):
        import torch  # noqa: F401
    with clock.part("import the program"):
        import train  # noqa: F401
    gc.freeze()
    gc.enable()


def write_model(folder: str) -> str:
    """Write the model in another process, so that this process initialises CUDA in the measured parts."""
    code = "import sys; from pathlib import Path; from full_size_model import write_full_size_model as write"
    command = [sys.executable, "-c", f"{code}; write(Path(sys.argv[1]))", folder]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True)
    return folder


def table(seconds: dict[str, list[float]], first_step: list[float]) -> str:
    rows = [f"| {name} | {wall:.2f} | {cpu:.2f} |" for name, (wall, cpu) in seconds.items()]
    total = [sum(values[kind] for values in seconds.values()) for kind in range(2)]
    if first_step:
        rows.append(f"| **command to the first step** | {first_step[0]:.2f} | {first_step[1]:.2f} |")
    rows.append(f"| **whole command** | {total[0]:.2f} | {total[1]:.2f} |")
    return "\n".join(["| part | wall s | CPU s |", "| --- | --- | --- |", *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--full-size", action="store_true", help="use random weights of SD 2.1-base's sizes")
    parser.add_argument("--json", type=Path, help="a file to write")
    options, rest = parser.parse_known_args(arguments)
    clock = Clock()
    import_packages(clock)
    import torch

    import train
    from sd.schedule import FIT_STEPS

    for part, places in PARTS.items():
        for place in places:
            clock.watch(place, lambda part=part: part)
    for place, kind in STEPS.items():
        clock.watch(place, step_namer(kind))
    paints = json.loads(Path(options.config).read_text())["mode"] == "appearance_modeling"
    first = 0 if paints else FIT_STEPS
    with tempfile.TemporaryDirectory() as folder:
        words = ["--out_dir", f"{folder}/out", "--iter", str(first + 4), "--coarse_iter", str(first + 2)]
        if options.full_size:
            words += ["--sd_model", write_model(f"{folder}/model")]
        with clock.part("rest"):
            code = train.main(["--config", options.config, *words, *rest])
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record = {
        "config": options.config,
        "options": rest,
        "hardware": gpu or platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": clock.seconds,
        "first_step": clock.first_step,
    }
    sys.stdout.write(
        f"{options.config} {' '.join(rest)}: {record['hardware']}, torch {record['torch']}, "
        f"{record['date']}\n\n{table(clock.seconds, clock.first_step)}\n"
    )
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return code


if __name__ == "__main__":
    # As in train.py, idle OpenMP threads do not wait in a busy loop.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
