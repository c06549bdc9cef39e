"""Test recorded signals, Ctrl-C, and processes that end when their parent ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import multiprocess_harness
import pytest
from test_train import geometry

from training.checkpoint import load_latest
from training.signals import SIGNALS, SignalRecorder, StopRequest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
# WORKER is the program of a worker process. It prints its process id and then waits for 10 minutes.
WORKER = """
import os, sys, time
os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
from training.launch import run_and_exit

def main():
    print(os.getpid(), flush=True)
    time.sleep(600)

run_and_exit(main)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_request_exits_with_the_signal(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert stop.flags() == [float(number == other) for other in SIGNALS]
        stop.decide(stop.flags())
        with pytest.raises(SystemExit) as exit_:
            stop.exit_if_requested(7)
    assert exit_.value.code == 128 + number and signal.getsignal(number) is before


def test_an_ignored_hangup_stays_ignored():
    """A run that was started with nohup ignores SIGHUP, so it continues after its terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalRecorder(SIGNALS) as recorder:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert recorder.number == signal.SIGTERM and recorder.count == 1
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_during_the_imports_has_no_traceback(tmp_path):
    """The imported torch is a stub that waits, so the signal always arrives during the imports."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout.readline() == b"importing\n"
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == -signal.SIGINT and errors == b""


def test_workers_end_with_a_killed_launcher():
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, WORKER], env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    worker = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and " Z " not in Path(f"/proc/{worker}/stat").read_text():
        assert time.monotonic() < deadline, "the worker outlives its launcher"
        time.sleep(0.05)


def test_interrupt_saves_and_the_same_command_resumes(model_folder, tmp_path):
    fit = multiprocess_harness.FIT
    settings = {"iter": fit + 400, "coarse_iter": fit + 200, "learning_rate": 5e-3, "video_interval": 0}
    config = geometry(tmp_path, model_folder, **settings)
    log = tmp_path / "shape/log.jsonl"
    with multiprocess_harness.ProcessGroup(1, ["--config", config], tmp_path) as processes:
        while not log.exists() or log.read_text().count("\n") <= fit + 5:
            assert processes.members[0].is_alive(), processes.text()
            time.sleep(0.02)
        os.kill(processes.members[0].pid, signal.SIGINT)
        assert processes.wait() == [128 + signal.SIGINT], processes.text()
        assert "resume" in processes.text()
    step = load_latest(tmp_path / "shape/checkpoints").step
    assert step == log.read_text().count("\n") > fit
