"""Test the export benchmark: properties of its two surfaces, and a table row for each part."""

import json

import numpy as np
import pytest

from benchmarks.export import main, surface
from render.texturing.projection import face_neighbours, folded_edges


def pieces(mesh) -> int:
    """Return the number of connected components. Faces with a common vertex are connected."""
    label = np.arange(len(mesh.v_pos))
    faces = mesh.faces.numpy()
    while True:
        least = label[faces].min(1)
        spread = label.copy()
        np.minimum.at(spread, faces.reshape(-1), least.repeat(3))
        if np.array_equal(spread, label):
            return len(np.unique(label[faces]))
        label = spread


@pytest.mark.parametrize("kind, torn", [("smooth", False), ("noisy", True)])
def test_surfaces_have_the_requested_face_count(kind, torn):
    mesh = surface(kind, 30_000)
    assert 0.6 < len(mesh.faces) / 30_000 < 1.3
    faces = mesh.faces.numpy()
    assert (face_neighbours(faces, len(mesh.v_pos)) >= 0).all()  # The surface is closed.
    folds = folded_edges(mesh.v_pos.numpy(), faces) / (1.5 * len(faces))
    assert folds > 0.1 if torn else folds < 0.01
    assert (pieces(mesh) > 50) == torn


def test_table_has_every_part(tmp_path, capsys):
    words = [
        "--faces",
        "3000",
        "--texture_res",
        "64",
        "--device",
        "cpu",
        "--json",
        str(tmp_path / "record.json"),
    ]
    assert main(words) == 0
    table = capsys.readouterr().out
    for part in ("unwrap", "bake", "OBJ and PNG", "GLB", "**export**"):
        assert f"| {part} |" in table
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["surfaces"].keys() == {"smooth", "noisy"}
    for found in record["surfaces"].values():
        assert found["total"] > 0 and found["megabytes"]["mesh.glb"] > 0
