"""What a run writes after its last step: mesh and textures, the training video, the turntable."""

import logging
import os
from collections.abc import Sequence

from configs.schema import Config
from training.distributed import SINGLE_PROCESS
from training.previews import training_video, write_orbit
from training.report.report_writer import RunReport
from training.resume import checkpoint_folder, is_exported, latest_checkpoint, restore_state
from training.tasks import Task, build_task

logger = logging.getLogger(__name__)

OPTION = "--export-only"


def export_run(config: Config, task: Task, report: RunReport) -> None:
    """Mesh, textures and videos of a trained task."""
    with report.timed("export"):
        if task.export_once and is_exported(config):
            logger.info("kept as it is: %s (%s writes it anew)", config.run.mesh_path, OPTION)
        else:
            logger.info("exporting to %s", config.run.mesh_path.parent)
            task.export()
    with report.timed("videos"):
        # Here and not in the loop, so that a run that was stopped after its last step gets its video too.
        training_video(config, task.schedule.last_step).assemble()
        if config.run.validate:
            write_orbit(task.scene.layers, config.run.output_folder, config.run.preview_res)


def export_again(config: Config, report: RunReport) -> None:
    """Export mesh and textures from the last checkpoint; the checkpoint and the pictures stay as they are."""
    with report:
        task, optimizer, _ = build_task(config)
        report.begin(restore_state(config, task.scene, optimizer, SINGLE_PROCESS))
        folder = config.run.mesh_path.parent
        logger.info("exporting step %d of %d to %s", report.step, task.schedule.last_step, folder)
        with report.timed("export"):
            task.export()
    if task.export_once:
        logger.warning("runs that paint another export of this mesh do not go on with this one")


def configs_to_export(configs: Sequence[Config]) -> list[Config]:
    """The configs that `--export-only` exports, each with a checkpoint.

    A mesh that another config of the command paints is skipped: its paint depends on the exact bytes of the
    mesh, and export_faces applies to the painted one.

    Raises:
        ValueError: there is no checkpoint, or it is of a run with other settings.
    """
    painted = {
        os.path.abspath(config.run.base_mesh): config.run.out_dir
        for config in configs
        if config.run.traits.paints_base_mesh
    }
    chosen = []
    for config in configs:
        painter = painted.get(os.path.abspath(config.run.mesh_path))
        if painter is not None:
            logger.info("kept as it is: %s, which %s paints", config.run.mesh_path, painter)
            continue
        if latest_checkpoint(config) is None:
            raise ValueError(
                f"{OPTION}: no checkpoint in {checkpoint_folder(config)}; run the same command without "
                f"{OPTION} first"
            )
        chosen.append(config)
    return chosen
