"""`--export-only`: which configs of a command are exported again from their checkpoints."""

import logging
import os
from collections.abc import Sequence

from configs.resume import checkpoint_folder, latest_checkpoint
from configs.schema import Config

logger = logging.getLogger(__name__)

OPTION = "--export-only"


def exported_again(configs: Sequence[Config]) -> list[Config]:
    """The configs to export, each with a checkpoint.

    A mesh that another config of the command paints is left as it is: the painting belongs to its very
    bytes, and gets its own number of faces from export_faces.

    Raises:
        ValueError: there is no checkpoint, or it is of a run with other settings.
    """
    painted = {
        os.path.abspath(config.run.base_mesh): config.run.out_dir
        for config in configs
        if config.run.mode == "appearance_modeling"
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
