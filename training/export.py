"""The export after the last step: mesh, textures, training video and turntable."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.run import written_mesh
from configs.schema import Config
from render.image_io.atomic import staged_folder
from training.collector import collector_paused
from training.distributed import SINGLE_PROCESS
from training.last_outputs import LastOutputs
from training.numbered_files import warn_on_error
from training.previews import training_video
from training.report.report_writer import RunReport
from training.resume import checkpoint_folder, is_exported, latest_checkpoint, record_export, restore_state
from training.tasks import Task, build_task
from training.turntable import views_per_batch, write_orbit

logger = logging.getLogger(__name__)

OPTION = "--export-only"


def export_run(config: Config, task: Task, report: RunReport, last_outputs: LastOutputs) -> None:
    """Write mesh, textures and videos of a trained task. If a video cannot be written, log a warning.

    The files are prepared in memory while the last checkpoint is written. No file is written before it is on
    disk.
    """
    step = task.schedule.last_step
    with report.timed("export"):
        if task.export_once and not last_outputs.started and is_exported(config, step):
            logger.info("%s is already exported (%s writes it again)", config.run.mesh_path, OPTION)
        else:
            logger.info("exporting to %s", config.run.mesh_path.parent)
            write_files = task.export()
            last_outputs.finish_checkpoint()
            _write(config, write_files, step)
    report.prepare_model()
    with report.timed("videos"):
        # The video is written here, so a run that was stopped after its last step gets its video when it is
        # started again.
        with warn_on_error(config.run.output_folder / "video_log.mp4"):
            training_video(config, step).assemble()
        if config.run.validate:
            with warn_on_error(config.run.output_folder / "validate"):
                batch = views_per_batch(task.scene.light.cube.device, config.run.preview_res)
                render = task.scene.fixed_layers()
                write_orbit(render, config.run.output_folder, config.run.preview_res, batch=batch)


def _write(config: Config, write_files: Callable[[Path], None], step: int) -> None:
    """Write the files of the mesh, and record the step. An error leaves all earlier files unchanged."""
    with staged_folder(config.run.mesh_path.parent) as folder:
        write_files(folder)
    record_export(config, step)


def export_again(config: Config, report: RunReport) -> None:
    """Export mesh and textures from the last checkpoint, without changing checkpoints and pictures."""
    with report:
        with collector_paused():
            task, optimizer, _ = build_task(config)
            step = restore_state(config, task.scene, optimizer, SINGLE_PROCESS, inputs=task.inputs)
        report.begin(step)
        folder = config.run.mesh_path.parent
        logger.info("exporting step %d of %d to %s", report.step, task.schedule.last_step, folder)
        with report.timed("export"):
            _write(config, task.export(), report.step)
    logger.info("report: %s", report.path)
    logger.info("mesh: %s", config.run.mesh_path.with_suffix(".glb"))
    if task.export_once:
        logger.warning(
            "warning: a run that paints an earlier export of this mesh cannot resume with this one"
        )


def configs_to_export(configs: Sequence[Config]) -> list[Config]:
    """Return the configs that `--export-only` exports.

    A config is skipped if another config of the command paints its mesh: the textures depend on the exact
    bytes of the mesh, and export_faces takes effect in the export of the painted mesh.

    Raises:
        ValueError: if a config has no checkpoint, or a checkpoint of a run with other settings.
    """
    painted = {
        written_mesh(config.run.base_mesh): config.run.out_dir
        for config in configs
        if config.run.traits.paints_base_mesh
    }
    chosen = []
    for config in configs:
        painter = painted.get(os.path.abspath(config.run.mesh_path))
        if painter is not None:
            logger.info("%s is not exported again: %s paints it", config.run.mesh_path, painter)
            continue
        if latest_checkpoint(config) is None:
            raise ValueError(
                f"{OPTION}: no checkpoint in {checkpoint_folder(config)}; run the same command without "
                f"{OPTION} first"
            )
        chosen.append(config)
    return chosen
