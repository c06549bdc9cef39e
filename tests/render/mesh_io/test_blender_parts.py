"""Test that Blender finds the nodes and materials of an exported mesh with parts.

The test is skipped if Blender is not installed.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from textured_parts import textured_asset

from render.mesh_io.write_glb_parts import write_glb_parts

TOOL = Path(__file__).parents[2] / "helpers" / "structure_in_blender.py"


@pytest.mark.slow
def test_blender_reads_nodes_and_materials(tmp_path):
    if shutil.which("blender") is None:
        pytest.skip("needs Blender on the path")
    write_glb_parts(tmp_path / "mesh.glb", textured_asset())
    command = ["blender", "--background", "--factory-startup", "--python-exit-code", "1", "--python", TOOL]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*command, "--", tmp_path / "mesh.glb"], capture_output=True, text=True, env=environment, timeout=300
    )
    if "No module named 'numpy'" in done.stdout + done.stderr:
        pytest.skip("Blender's own Python needs numpy")
    line = next(line for line in done.stdout.splitlines() if line.startswith("STRUCTURE"))
    found = json.loads(line.partition(" ")[2])
    assert {name: entry["parent"] for name, entry in found.items()} == {
        "root": None,
        "body": "root",
        "wings": "root",
    }
    assert found["body"]["materials"] == ["red side", "plain"] and found["body"]["mesh"] == "body mesh"
    assert found["wings"]["materials"] == ["shared"] and found["wings"]["faces"] == 4
    # Blender changes the up axis from +y to +z, so (x, y, z) becomes (x, −z, y).
    assert found["root"]["location"] == [0.1, 0.05, 0.2]
