"""Execute assets/demo.ipynb in a kernel with the embedded prior and few steps."""

import base64
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from training import check_environment

ROOT = Path(__file__).parents[1]
TOY = "--iter 4 --coarse_iter 4 --batch 1 --train_res 32 32 --preview_res 32 32 --texture_res 64 64 "
TOY += "--dmtet_grid 24 --save_interval 4 --video_interval 0 --device cpu --validate false "
TOY += "--env_resolution 64"


def notebook(cells=None, **parameters):
    """Return the first `cells` cells of the notebook, with the given parameters in its first code cell."""
    found = nbformat.read(ROOT / "assets" / "demo.ipynb", as_version=4)
    nbformat.validate(found)
    assert "parameters" in found.cells[1].metadata.tags
    found.cells[1].source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    found.cells = found.cells[:cells]
    return found


def execute(found, folder):
    NotebookClient(
        found, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return found


def run_cells(found, folder, monkeypatch):
    """Run the code cells in this process, which is faster than a kernel."""
    monkeypatch.chdir(folder)
    variables = {}
    for cell in found.cells:
        if cell.cell_type == "code":
            exec(cell.source, variables)


def outputs(found, kind):
    """Return all outputs of a MIME type, or the printed text if `kind` is "text"."""
    every = [output for cell in found.cells if cell.cell_type == "code" for output in cell.outputs]
    if kind == "text":
        return "".join(output.text for output in every if output.output_type == "stream")
    return [output.data[kind] for output in every if kind in output.get("data", {})]


def test_notebook_has_no_outputs_and_names_existing_files():
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    named = re.findall(r"configs/\w+\.json|render/[\w/.-]+\.js|requirements\.txt", str(cells))
    assert len(named) > 4 and all((ROOT / name).is_file() for name in named)


CHECKED = [pytest.param(False, id="without --check"), pytest.param(True, id="whole", marks=pytest.mark.slow)]


@pytest.mark.parametrize("checked", CHECKED)
def test_run_in_a_checkout_shows_images_and_mesh(checked, tmp_path):
    found = notebook(OUT=str(tmp_path / "run"), OPTIONS=TOY.split())
    if not checked:
        found.cells = [cell for cell in found.cells if cell.id != "install"]
    done = execute(found, ROOT / "assets")
    text = outputs(done, "text")
    assert f"working in {ROOT}\n" in text and ("ready: the demo can run" in text) is checked
    mesh = tmp_path / "run_appearance" / "dmtet_mesh" / "mesh.glb"
    assert str(mesh) in text
    assert len(outputs(done, "image/png")) >= 1
    (page,) = (page for page in outputs(done, "text/html") if "model-viewer" in page)
    assert base64.b64encode(mesh.read_bytes()).decode("ascii") in page
    assert "http://" not in page.partition("<model-viewer")[2]


def test_install_cell_prints_the_environment_check(monkeypatch, capsys):
    """The check is called in this process, because a new process would import all packages again."""

    def run_here(command, **options):
        assert command == [sys.executable, "train.py", "--check"] and options["capture_output"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = check_environment.main(command[2:])
        return subprocess.CompletedProcess(command, code, printed.getvalue())

    found = notebook()
    found.cells = [cell for cell in found.cells if cell.id in ("checkout", "install")]
    monkeypatch.setattr(subprocess, "run", run_here)
    run_cells(found, ROOT, monkeypatch)
    assert capsys.readouterr().out.endswith("ready: the demo can run\n\n")


def test_outside_a_checkout_repository_is_required(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="set REPOSITORY in the first cell"):
        run_cells(notebook(cells=3), tmp_path, monkeypatch)


def test_repository_is_cloned(tmp_path, monkeypatch, capsys):
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to clone")
    run_cells(notebook(cells=3, REPOSITORY=f"file://{ROOT}"), tmp_path, monkeypatch)
    assert f"working in {tmp_path / 'checkout'}" in capsys.readouterr().out
    tracked = subprocess.run(["git", "ls-files"], cwd=tmp_path / "checkout", capture_output=True, text=True)
    assert "train.py" in tracked.stdout.splitlines()


def test_failing_program_stops_the_notebook(tmp_path, monkeypatch):
    found = notebook(cells=7, OUT=str(tmp_path / "run"), OPTIONS=["--itr", "3"])
    # Skip the environment check, which takes 15 s and is part of another test.
    found.cells = [cell for cell in found.cells if cell.id != "install"]
    with pytest.raises(RuntimeError, match="exit code 2"):
        run_cells(found, ROOT, monkeypatch)
