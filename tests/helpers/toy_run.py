"""Configs of small runs of both modes, and the error line of a command that fails."""

import json

from toy_config import TINY

import train

# The number of steps of the start shape's fit. Test modules must call `shorten_fit(FIT)`.
FIT = 40


def write_config(folder, name, **values):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**TINY, "out_dir": str(folder / name), **values}))
    return str(path)


def geometry(folder, model, name="shape", **values):
    start = {
        "dmtet_grid": 24,
        "mesh_scale": 2.0,
        "sdf_init_shape_scale": [0.6, 0.7, 0.6],
        "learning_rate": 8e-3,
    }
    settings = {"iter": FIT + 4, "coarse_iter": FIT + 2, **start, **values}
    return write_config(folder, name, sd_model=str(model), **settings)


def appearance(folder, model, mesh, name="paint", **values):
    settings = {"mode": "appearance_modeling", "base_mesh": str(mesh), "iter": 4, "coarse_iter": 2, **values}
    return write_config(folder, name, sd_model=str(model), **settings)


def refused(argv, capsys, caplog):
    """Run an invalid command, check that it exits with 2, and return the line that it prints."""
    assert train.main(argv) == 2
    message = caplog.records[-1].getMessage()
    assert (
        message.startswith("error: ") and "\n" not in message and "Traceback" not in capsys.readouterr().err
    )
    return message
