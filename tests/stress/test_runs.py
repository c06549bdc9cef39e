"""Test whole runs with random kills, double starts and full disks. The following command takes hours:

    STRESS_KILLS=100 STRESS_FILES=2000 python -m pytest -n 0 -m slow tests/stress

Each test prints its results: the number of tracebacks and of lost steps.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import trimesh
from multiprocess_harness import FIT, ProcessGroup, run
from toy_config import TINY

from training.checkpoint import newest_step

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# KILLS is the number of kills for each kind of command: a run, a chain of two configs, a grid, two processes.
KILLS = max(1, int(os.environ.get("STRESS_KILLS", "100")) // 4)
DOUBLE_STARTS = max(2, KILLS // 5)
INTERVAL = 3
FAST = {**TINY, "batch": 1, "save_interval": 5, "video_interval": 2, "checkpoint_interval": INTERVAL}
# These are the size of the small file system in bytes and its number of inodes. A complete run has about 50
# files.
SMALL_BYTES, SMALL_INODES = 6 << 20, 100


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "ball.obj"
    trimesh.creation.icosphere(subdivisions=1, radius=0.7).export(path)
    return path


def write_config(folder, name, model, **values):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**FAST, "sd_model": str(model), "out_dir": str(folder / name), **values}))
    return str(path)


def painting(folder, name, model, mesh, **values):
    settings = {"mode": "appearance_modeling", "base_mesh": str(mesh), "iter": 40, "coarse_iter": 20}
    return write_config(folder, name, model, **{**settings, **values})


def commands(kind, folder, model, mesh):
    """Return the arguments of train.py, its out_dirs and the number of processes."""
    if kind == "chain":
        shape = write_config(
            folder, "shape", model, iter=FIT + 9, coarse_iter=FIT + 5, dmtet_grid=16, mesh_scale=2.0,
            sdf_init_shape_scale=[0.6] * 3, learning_rate=5e-3,
        )  # fmt: skip
        paint = painting(folder, "paint", model, folder / "shape/dmtet_mesh/mesh.obj", iter=20)
        return ["--config", shape, paint], [folder / "shape", folder / "paint"], 1
    config = painting(folder, "paint", model, mesh)
    if kind == "grid":
        trials = [folder / "paint" / f"seed={seed}" for seed in (1, 2)]
        return ["--config", config, "--grid", "seed=1,2", "--jobs", "2"], trials, 1
    return ["--config", config], [folder / "paint"], 2 if kind == "two processes" else 1


def log_length(folder):
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def lost_steps(folders):
    """Return the number of logged steps after the newest checkpoint, as the maximum over the folders."""
    return max(log_length(folder) - (newest_step(folder / "checkpoints") or 0) for folder in folders)


def wait_until_unlocked(folders):
    """Wait until the trials of a killed sweep have saved a checkpoint and exited."""
    from training.lock import is_locked

    deadline = time.monotonic() + 120
    while is_locked(folders):
        assert time.monotonic() < deadline, "a process outlives the killed command"
        time.sleep(0.1)


@pytest.mark.parametrize("kind", ["run", "chain", "grid", "two processes"])
def test_random_kills(kind, model_folder, mesh, tmp_path):
    argv, folders, world = commands(kind, tmp_path, model_folder, mesh)
    chance, worst, tracebacks, ends = random.Random(kind), 0, 0, 0
    for _ in range(KILLS):
        before = [log_length(folder) for folder in folders]
        patience = chance.choice([None, chance.uniform(0, 2)])
        with ProcessGroup(world, argv, tmp_path) as processes:
            start = time.monotonic()
            # The processes are killed at a random time, either during startup or after the first new steps.
            while any(member.is_alive() for member in processes.members):
                grown = [log_length(folder) for folder in folders] != before
                if time.monotonic() - start > (patience or 120) or (patience is None and grown):
                    break
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            for member in chance.sample(processes.members, len(processes.members)):
                member.kill()
            processes.wait()
            tracebacks += processes.text().count("Traceback")
        if kind == "grid":
            wait_until_unlocked(folders)
            tracebacks += sum(f.read_text().count("Traceback") for f in tmp_path.rglob("console.log"))
        worst = max(worst, lost_steps(folders))
        if all((folder / "dmtet_mesh/mesh.glb").exists() for folder in folders):
            ends += 1
            for folder in folders:
                subprocess.run(["rm", "-rf", str(folder)], check=True)
    codes, text = run(world, argv, tmp_path)
    left = [path for path in tmp_path.rglob(".writing_*")]
    print(f"{kind}: {KILLS} kills, {ends} finished runs, {tracebacks} tracebacks, {worst} steps lost at most")
    assert codes == [0] * world, text
    assert tracebacks == 0 and worst <= INTERVAL and not left
    assert all((folder / "dmtet_mesh/mesh.glb").exists() for folder in folders)


def test_double_starts(model_folder, mesh, tmp_path):
    """Two identical commands start at nearly the same time.

    One command is rejected with a one-line error. The other command completes without any loss.
    """
    chance = random.Random(1)
    for number in range(DOUBLE_STARTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        argv, folders, _ = commands("run", folder, model_folder, mesh)
        (folder / "second").mkdir()
        with ProcessGroup(1, argv, folder) as first:
            time.sleep(chance.uniform(0, 1))
            with ProcessGroup(1, argv, folder / "second") as second:
                codes, texts = first.wait() + second.wait(), [first.text(), second.text()]
        assert sorted(codes) == [0, 2], texts
        rejected = texts[codes.index(2)].splitlines()
        assert len([line for line in rejected if line.startswith("error: out_dir = ")]) == 1, rejected
        assert "Traceback" not in "".join(texts)
        assert log_length(folders[0]) == 40 and newest_step(folders[0] / "checkpoints") == 40
    print(f"double starts: {DOUBLE_STARTS}, each with one rejection")


@contextmanager
def small_disk(folder, options):
    """Mount a tmpfs on `folder`. If it cannot be mounted, the test is skipped with a reason."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_a_full_disk(kind, model_folder, mesh, tmp_path):
    """The disk fills up at a random step. No traceback is printed and no checkpoint is lost.

    The run completes when space is available again.
    """
    chance = random.Random(kind)
    options = f"size={SMALL_BYTES}" if kind == "bytes" else f"size={8 * SMALL_BYTES},nr_inodes={SMALL_INODES}"
    with small_disk(tmp_path / "disk", options) as disk:
        argv = ["--config", painting(tmp_path, "paint", model_folder, mesh, out_dir=str(disk / "out"))]
        figures = []
        for _ in range(DOUBLE_STARTS):
            after, ballast = chance.randrange(1, 30), disk / "ballast"
            ballast.mkdir()
            with ProcessGroup(1, argv, tmp_path) as processes:
                while processes.members[0].is_alive() and log_length(disk / "out") < after:
                    time.sleep(0.01)
                _fill(ballast, kind)
                (code,) = processes.wait()
                text = processes.text()
            figures.append((after, code))
            assert code in (0, 2) and "Traceback" not in text, text
            if code == 2:
                assert [line for line in text.splitlines() if line.startswith("error: ")], text
                assert str(disk) in text.splitlines()[-1], text
            assert lost_steps([disk / "out"]) <= INTERVAL
            subprocess.run(["rm", "-rf", str(ballast)], check=True)
        codes, text = run(1, argv, tmp_path)
        assert codes == [0], text
    print(f"full disk ({kind}): (steps before, exit code) {figures}")


def _fill(folder, kind):
    try:
        if kind == "inodes":
            for number in range(10 * SMALL_INODES):
                (folder / str(number)).touch()
        else:
            with (folder / "zeros").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
    except OSError:
        pass


def test_interrupts_at_any_moment(model_folder, mesh, tmp_path):
    """SIGINT, SIGTERM and SIGHUP at random times cause no traceback in a real process."""
    config = painting(tmp_path, "paint", model_folder, mesh, iter=2000)
    chance, codes = random.Random(2), []
    for _ in range(max(3, KILLS // 3)):
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        process = subprocess.Popen(
            [sys.executable, "train.py", "--config", config], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        # The signal is sent after at least 0.3 s, when the Python interpreter has started.
        time.sleep(chance.uniform(0.3, 25))
        process.send_signal(number)
        _, text = process.communicate(timeout=120)
        codes.append((number.name, process.returncode))
        assert "Traceback" not in text, text
        assert process.returncode in (-number, 128 + number), (number, process.returncode, text)
    print(f"interrupts: {codes}")


def test_torchrun_paints_and_exports(model_folder, mesh, tmp_path):
    """The default tests run torch's launcher with forked workers. This test runs the command itself."""
    config = painting(tmp_path, "paint", model_folder, mesh, iter=4, coarse_iter=2)
    words = ["-m", "torch.distributed.run", "--nproc_per_node=2", "train.py", "--config", config]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert log_length(tmp_path / "paint") == 4 and (tmp_path / "paint/dmtet_mesh/mesh.glb").is_file()
    assert "Traceback" not in done.stderr
