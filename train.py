"""Text to 3D by score distillation.

    python3 train.py --config configs/pineapple_demo_geometry.json configs/pineapple_demo_appearance.json

The JSON configs are run in order. Each run optimizes a shape or the material of a mesh. A step depends only
on the state in the checkpoint, the seed, the rank and the step number, so running the same command again
continues a stopped run. Under torchrun, all processes perform every step together, and only rank 0 writes
files.
"""

import gc
import os
import sys

from training import check_environment, signals

# The imports take seconds. Until they have finished, Ctrl-C ends the process without a traceback, and the
# garbage collector is off, because imported modules are never freed.
if __name__ == "__main__":
    signals.die_on_interrupt()
    gc.disable()
# --check runs before the other modules are imported, so that a missing package is reported without a
# traceback.
if __name__ == "__main__" and check_environment.OPTION in sys.argv[1:]:
    sys.exit(check_environment.main(sys.argv[1:]))

# Must be set before torch is imported. By default, idle OpenMP threads wait in a busy loop, which makes a
# step eight times slower if another process is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The sizes of the surface's tensors change in every step, which would fragment GPU memory without this
# setting. torch prefers PYTORCH_CUDA_ALLOC_CONF to the newer PYTORCH_ALLOC_CONF, so the older variable is not
# set if the user has set the newer one.
if "PYTORCH_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import logging
import signal
import time
from collections.abc import Sequence
from functools import partial

import torch

from configs.cli import load_configs
from configs.schema import Config
from render.kernels.available import triton_started
from sd.loading.lean_imports import import_prior_packages
from training.collector import collector_paused
from training.console import describe_error, setup_logging
from training.distributed import Distributed
from training.export import OPTION as EXPORT_ONLY
from training.export import configs_to_export, export_again, export_run
from training.last_outputs import LastOutputs
from training.launch import distributed_session, run_and_exit, setup_rank_logging
from training.lock import lock_out_dirs
from training.loop import TrainState, train_loop
from training.out_of_memory import explain_out_of_memory, peak_memory
from training.prefetch import make_prefetcher
from training.preflight import check_config
from training.priors import build_guidance
from training.report.report_writer import open_report
from training.resume import has_steps_left, restore_lora, restore_state
from training.run_log import log_end, log_start
from training.sweep.run import run_sweep
from training.sweep.trials import load_sweep
from training.tasks import build_task, select_device
from training.time_estimate import CommandProgress, command_progress
from training.ui.options import ui_options

logger = logging.getLogger("train")


def run_config(
    config: Config, argv: Sequence[str], distributed: Distributed, progress: CommandProgress
) -> None:
    """Run one config: build the model, restore the last checkpoint, train and export."""
    started = time.monotonic()
    gc.unfreeze()
    if torch.cuda.is_initialized():
        # Free the memory of an earlier config of this command.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with open_report(config, argv, distributed, progress) as report, LastOutputs() as last_outputs:
        log_start(config, progress, report.path)
        with report.timed("set-up"), collector_paused():
            if has_steps_left(config):
                # The packages are imported now and not when the prior is loaded, because the GPU starts at
                # the same time.
                with triton_started(select_device(config.run.device, distributed)):
                    import_prior_packages()
            task, optimizer, device = build_task(config, distributed)
            step = restore_state(config, task.scene, optimizer, distributed, inputs=task.inputs)
        report.begin(step)
        if step < task.schedule.last_step:
            if distributed.is_main and task.schedule.phase(step + 1).fit:
                task.prepare_fit()
            guidance = build_guidance(config, device, report, task.inputs)
            restore_lora(config, guidance, step, distributed)
            prefetcher = make_prefetcher(config, guidance, task.schedule, distributed)
            state = TrainState(step, task.schedule, optimizer, prefetcher, last_outputs=last_outputs)
            train_loop(state, config, task, guidance, report, distributed)
        if distributed.is_main:
            export_run(config, task, report, last_outputs)
    # Wait until rank 0 has exported the mesh, because the next config may read it.
    distributed.barrier()
    cost = f"{time.monotonic() - started:.0f} s, {peak_memory()}"
    log_end(config, progress.label, cost, report.path)


def run_all(configs: Sequence[Config], argv: Sequence[str], distributed: Distributed) -> None:
    """Run all configs of a command on all ranks. With `--export-only`, only rank 0 works."""
    if EXPORT_ONLY in argv:
        for config in configs_to_export(configs) if distributed.is_main else []:
            with explain_out_of_memory(config):
                export_again(config, open_report(config, argv))
        return
    # The check may download models. One process of each machine checks first, so that the others find the
    # downloaded files in the cache.
    for first in (True, False):
        if (distributed.local_rank == 0) is first:
            for config in configs:
                check_config(config, distributed, written=[other.run.mesh_path for other in configs])
        distributed.barrier()
    progress = command_progress(configs, distributed)
    for number, config in enumerate(configs):
        progress.begin_config(number)
        with explain_out_of_memory(config):
            run_config(config, argv, distributed, progress)


def main(argv: list[str]) -> int:
    """Run the command and return the exit code.

    0: success. 1: some trials of a sweep failed. 2: an error that the user can fix. 128 + n: ended by signal
    n.
    """
    setup_logging()
    try:
        signals.raise_on_interrupt()
        if page := ui_options(argv):
            from training.ui.server import serve

            serve(page)
            return 0
        if sweep := load_sweep(argv):
            return run_sweep(sweep, check_config)
        setup_rank_logging()
        configs = load_configs(argv)
        on_gpus = any(config.run.device != "cpu" for config in configs)
        with distributed_session(on_gpus) as distributed:
            with lock_out_dirs(configs if distributed.is_main else []):
                run_all(configs, argv, distributed)
    except KeyboardInterrupt:
        logger.error("interrupted; run the same command again to resume")
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        logger.debug("traceback", exc_info=True)
        logger.error("error: %s", describe_error(error))
        return 2
    return 0


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    run_and_exit(partial(main, sys.argv[1:]))
