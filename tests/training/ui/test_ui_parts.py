"""Test the parts of the web page that do not need gradio: options, commands, jobs, results and settings."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from configs.cli import load_configs
from configs.errors import ConfigError
from training.ui import job as job_module
from training.ui import server
from training.ui.commands import (
    FROM_TEXT,
    PAINT,
    REFINE,
    START,
    Request,
    command_line,
    mesh_among,
    result_folder,
    shell_line,
)
from training.ui.job import BusyError, JobRunner
from training.ui.live import fingerprint, job_html, pictures_html
from training.ui.options import UIOptions, ui_options
from training.ui.results import find_results, result_file
from training.ui.settings import main_settings


def test_options_of_the_page_and_of_its_runs():
    assert ui_options(["--text", "a mug"]) is None
    assert ui_options(["--ui"]) == UIOptions("127.0.0.1", 7860)
    given = ["--ui", "--ui_host", "0.0.0.0", "--ui_port", "0", "--batch", "2", "--geometry.iter", "9"]
    found = ui_options(given)
    assert found == UIOptions("0.0.0.0", 0, ("--batch", "2", "--geometry.iter", "9"))
    assert not found.local and UIOptions("::1", 1).local and UIOptions("localhost", 1).local


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "x"], "--text does not go with --ui"),
        (["--config", "a.json"], "a.json"),
        (["--quick"], "--quick does not go with --ui"),
        (["--grid", "seed=1,2"], "--grid or --prompts does not go with --ui"),
        (["--out_dir", "x"], "--out_dir does not go with --ui"),
        (["--ui_port", "70000"], "allowed is 0 to 65535"),
        (["--bach", "2"], "the nearest known one is --batch"),
    ],
)
def test_options_that_do_not_go_with_the_page(words, message, caplog):
    assert train.main(["--ui", *words]) == 2
    assert message in caplog.records[-1].getMessage() and "\n" not in caplog.text.strip()


@pytest.mark.parametrize("version", [None, "5.9.1"])
def test_without_gradio_the_error_names_the_command(version, monkeypatch, caplog):
    def found(name):
        if version is None:
            raise server.importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(server.importlib.metadata, "version", found)
    assert train.main(["--ui"]) == 2
    assert caplog.records[-1].getMessage().endswith('pip install "gradio>=6,<7"')


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my mesh.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    return tmp_path


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("task", [FROM_TEXT, PAINT, REFINE, START])
def test_every_task_is_a_valid_command(task, quick, in_folder):
    settings = {"seed": "7", "geometry.iter": "450", "appearance.iter": "30", "score": None}
    request = Request(task, " A golden mug ", quick, settings=settings)
    folder = result_folder(request)
    assert folder == Path("out/a-golden-mug-1")
    argv = command_line(request, folder, Path("my mesh.obj"), ["--batch", "2"])
    configs = load_configs(argv)
    folders = {FROM_TEXT: ["geometry", "appearance"], PAINT: ["appearance"]}
    names = folders.get(task, ["geometry", "appearance"])
    assert [config.run.output_folder for config in configs] == [folder / name for name in names]
    assert all((c.run.seed, c.run.batch, c.guidance.text) == (7, 2, "A golden mug") for c in configs)
    assert configs[-1].schedule.iter == 30 and configs[-1].run.preview_res == (
        (256,) * 2 if quick else (384,) * 2
    )
    own = "my mesh.obj"
    if task == PAINT:
        assert configs[0].run.base_mesh == own and configs[0].run.normalise_mesh
    else:
        assert configs[0].schedule.iter == 450
        assert configs[1].run.base_mesh == str(folder / "geometry/dmtet_mesh/mesh.obj")
        assert configs[0].run.base_mesh == (None if task == FROM_TEXT else own)
    assert configs[0].surface.keeps_faces is (task == REFINE)
    assert configs[1:] == [] or configs[1].run.normalise_mesh is (task == REFINE)
    assert (configs[0].start_shape.sdf_init_shape == "custom_mesh") is (task == START)
    line = shell_line(argv)
    assert line.startswith("python3 ") and "train.py" in line and "'A golden mug'" in line


def test_names_of_results(in_folder):
    Path("out/a-mug-1").mkdir(parents=True)
    assert result_folder(Request(FROM_TEXT, "A mug")) == Path("out/a-mug-2")
    assert result_folder(Request(FROM_TEXT, "A mug", name="my mug.v2")) == Path("out/my mug.v2")
    for name in ("../up", "/etc", "a/b", ".hidden", "..", "a\nb", "-x"):
        with pytest.raises(ConfigError, match="use letters"):
            result_folder(Request(FROM_TEXT, "A mug", name=name))
    with pytest.raises(ConfigError, match="the text is empty"):
        command_line(Request(FROM_TEXT, "  "), Path("out/x"), None, ())


def test_one_mesh_among_the_uploads():
    files = [Path("a/mug.OBJ"), Path("a/mug.mtl"), Path("a/wood.png")]
    assert mesh_among(files) == files[0]
    for wrong in (files[1:], [*files, Path("b.glb")], []):
        with pytest.raises(ConfigError, match="upload one mesh"):
            mesh_among(wrong)


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("started", flush=True)
if "fail" in sys.argv:
    print("error: no such mug", flush=True)
    sys.exit(2)
try:
    time.sleep(0 if "short" in sys.argv else 600)
except KeyboardInterrupt:
    print("saved", flush=True)
    if "stubborn" in sys.argv:
        time.sleep(600)
    sys.exit(130)
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """Return a JobRunner that starts a stub program."""
    (tmp_path / "stub.py").write_text(PROGRAM)
    monkeypatch.setattr(job_module, "PROGRAM", tmp_path / "stub.py")
    runner = JobRunner()
    yield runner
    runner.close(0.0)


def start(runner, folder, *words):
    job = runner.start(words, "A <mug>", [folder / "out"], folder / "out/console.log")
    wait_for(lambda: "started" in job.output())
    return job


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_job_ends_fails_and_is_stopped(runner, tmp_path):
    before = fingerprint(runner.job)
    job = start(runner, tmp_path, "short")
    wait_for(lambda: job.state == "done")
    failed = start(runner, tmp_path, "fail")
    wait_for(lambda: failed.state == "failed")
    # console.log also contains the output of the earlier job, which is not part of the output of this job.
    assert failed.reason == "no such mug" and failed.output().count("started") == 1
    page = job_html(failed)
    assert 'data-state="failed"' in page and "no such mug" in page and "A &lt;mug&gt;" in page
    assert pictures_html(failed).count("<figure") == 0
    job = start(runner, tmp_path)
    with pytest.raises(BusyError, match="a run is in progress: A <mug>"):
        start(runner, tmp_path)
    assert job.state == "running" and fingerprint(job) != before
    runner.stop()
    wait_for(lambda: job.state == "stopped")
    assert "saved" in job.output() and job.process.returncode == 130


def test_the_second_stop_kills(runner, tmp_path):
    job = start(runner, tmp_path, "stubborn")
    runner.stop()
    wait_for(lambda: "saved" in job.output())
    assert job.state == "stopping"
    runner.stop()
    wait_for(lambda: job.state == "stopped")
    assert job.process.returncode == -9


def test_a_job_outlasts_the_thread_that_asks_for_it(runner, tmp_path):
    threading.Thread(target=start, args=(runner, tmp_path)).start()
    wait_for(lambda: runner.job is not None and "started" in runner.job.output())
    # Linux sends the parent-death signal to a process when the thread that started the process ends. The
    # runner therefore starts processes from a thread of its own. The calling thread ends during this sleep.
    time.sleep(0.3)
    assert runner.job.state == "running"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_job_ends_with_its_parent(tmp_path, monkeypatch):
    (tmp_path / "stub.py").write_text(PROGRAM)
    monkeypatch.setattr(job_module, "PROGRAM", tmp_path / "stub.py")
    if not (parent := os.fork()):
        try:
            job = start(JobRunner(), tmp_path)
            (tmp_path / "pid").write_text(str(job.process.pid))
        finally:
            os._exit(0)
    os.waitpid(parent, 0)
    pid = int((tmp_path / "pid").read_text())

    def gone():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_for(gone)


def test_ctrl_c_closes_the_page_without_an_error(caplog):
    caplog.set_level("INFO")

    def interrupted(sockets):
        raise KeyboardInterrupt

    page = object.__new__(server.UIServer)
    page._server, page._socket = SimpleNamespace(run=interrupted), None
    page.run()
    assert caplog.messages == ["the page is closed"]


def test_results_and_their_files(tmp_path):
    for depth, name in ((1, "old"), (2, "mug/geometry"), (4, "a/b/c/d")):
        (tmp_path / name / "dmtet_mesh").mkdir(parents=True)
        (tmp_path / name / "report.html").write_text(f"<head><title>A &lt;{name}&gt; – done</title>")
        (tmp_path / name / "secret.txt").write_text("x")
        os.utime(tmp_path / name / "report.html", (depth, depth))
    (tmp_path / "old/dmtet_mesh/mesh.glb").write_text("glb")
    assert [(r.folder, r.title) for r in find_results(tmp_path)] == [
        ("mug/geometry", "A <mug/geometry> – done"),
        ("old", "A <old> – done"),
    ]
    assert result_file(tmp_path, "old/report.html") == (tmp_path / "old/report.html").resolve()
    assert result_file(tmp_path, "old/dmtet_mesh/mesh.glb").read_text() == "glb"
    (tmp_path / "mug/geometry/config.json").symlink_to("/etc/hostname")
    refused = ("old/secret.txt", "old/../mug/geometry/report.html", "report.html", "a/b/c/d/report.html")
    for name in (*refused, "/etc/passwd", "old//report.html", "mug/geometry/config.json"):
        assert result_file(tmp_path, name) is None, name


def test_a_text_that_looks_like_an_option_stays_a_text(in_folder):
    texts = {"negative_text": "--out_dir=/tmp/x"}
    argv = command_line(Request(FROM_TEXT, "--quick", settings=texts), Path("out/x"), None, ())
    for config in load_configs(argv):
        assert config.guidance.text == "--quick" and config.guidance.negative_text == "--out_dir=/tmp/x"
        assert config.run.output_folder.parent == Path("out/x")
        assert config.schedule.iter not in (700, 120)


def test_settings_have_the_limits_and_help_of_the_schema():
    found = {setting.option: setting for setting in main_settings()}
    assert "views per step" in found["batch"].help and "an integer >= 1 and <= 1024" in found["batch"].help
    assert "number of steps" in found["geometry.iter"].help and not found["geometry.iter"].choices
    assert found["score"].choices[:2] == ("sds", "csd") and len(found["score"].choices) > 3
    assert found["add_directional_text"].choices == ("true", "false")
    assert not found["negative_text"].choices
