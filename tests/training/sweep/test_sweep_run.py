"""Test running trials: GPUs and threads of a trial, skipped, repeated and stopped trials, and log lines."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from configs.errors import ConfigError
from training.sweep import local_executor
from training.sweep import run as sweep_run
from training.sweep.local_executor import child_environment, failure_reason
from training.sweep.run import gpu_slots_for, usable_cores, visible_gpus

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("named", "count", "gpus"),
    [
        (None, 0, []),
        (None, 3, ["0", "1", "2"]),
        ("2,5", 2, ["2", "5"]),
        ("GPU-1a, GPU-2b", 2, ["GPU-1a", "GPU-2b"]),
        ("0,1,-1,2", 2, ["0", "1"]),
        ("", 0, []),
    ],
)
def test_the_gpus_are_those_of_the_environment_variable(named, count, gpus):
    environment = {} if named is None else {"CUDA_VISIBLE_DEVICES": named}
    assert visible_gpus(environment, count) == gpus


@pytest.mark.parametrize(
    ("jobs", "gpus", "trials", "gpu_slots"),
    [
        (None, [], 9, [None]),
        (3, [], 9, [None, None, None]),
        (None, ["0", "1"], 9, ["0", "1"]),
        (16, ["4", "7"], 99, ["4", "7"] * 8),
        (3, ["0", "1"], 9, ["0", "1", "0"]),
        (16, ["0", "1"], 3, ["0", "1", "0"]),
        (1, ["0", "1"], 9, ["0"]),
        (4, ["0"], 0, ["0"]),
    ],
)
def test_runs_are_assigned_to_gpus_in_turn(jobs, gpus, trials, gpu_slots):
    assert gpu_slots_for(jobs, gpus, trials) == gpu_slots


def test_the_environment_of_a_trial_has_its_gpu_and_threads_and_no_launcher():
    launcher = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    launcher |= {
        "TORCHELASTIC_RUN_ID": "x",
        "GROUP_RANK": "0",
        "ROLE_WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    found = child_environment({"HOME": "/h", "CUDA_VISIBLE_DEVICES": "4,7", **launcher}, "7", 3)
    assert found == {
        "HOME": "/h",
        "CUDA_VISIBLE_DEVICES": "7",
        "OMP_NUM_THREADS": "3",
        "NUMBA_NUM_THREADS": "3",
    }
    assert child_environment({"OMP_NUM_THREADS": "5"}, None, 3) == {
        "OMP_NUM_THREADS": "5",
        "NUMBA_NUM_THREADS": "5",
    }


def test_cores_are_at_most_those_of_the_machine():
    assert 1 <= usable_cores() <= os.cpu_count()


@pytest.mark.parametrize(
    ("code", "printed", "line"),
    [
        (2, "a\nerror: batch is bad\nnote\n", "batch is bad"),
        (1, "Traceback\n  File\nRuntimeError: no memory\n", "RuntimeError: no memory"),
        (-9, "step 3\n", "ended by SIGKILL from outside (too little memory is one reason)"),
        (143, "", "ended by SIGTERM from outside (too little memory is one reason)"),
        (3, " \n", "exit code 3"),
    ],
)
def test_failure_reason(code, printed, line):
    assert failure_reason(code, printed) == line


def test_gpus_are_shared_in_turn_and_threads_divided(stub, monkeypatch):
    for name in ("geometry", "appearance"):
        config = json.loads(Path(f"{name}.json").read_text())
        Path(f"{name}.json").write_text(json.dumps({**config, "device": "auto"}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,6")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sweep_run.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sweep_run, "usable_cores", lambda: 9)
    monkeypatch.setenv("STUB_SECONDS", "1")
    assert stub.run("--grid", "seed=1,2,3,4", "--jobs", "4") == 0
    assert sorted(run["CUDA_VISIBLE_DEVICES"] for run in stub.runs()) == ["3", "3", "6", "6"]
    assert {(run["OMP_NUM_THREADS"], run["NUMBA_NUM_THREADS"]) for run in stub.runs()} == {("2", "2")}


def test_no_more_than_the_jobs_run_at_a_time(stub, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "0.6")
    assert stub.run("--grid", "seed=1,2,3,4", "--jobs", "2") == 0
    starts = [run["at"] for run in stub.runs()]
    assert len(starts) == 4
    assert starts[2] - starts[0] >= 0.6 and starts[3] - starts[1] >= 0.6


def test_the_same_command_skips_done_trials_and_repeats_failed_ones(stub, caplog):
    Path("p.txt").write_text("done\nbroken\ncrash\nkilled\n")
    caplog.set_level("INFO")
    assert stub.run("--prompts", "p.txt") == 1
    states = {"done": "done", "broken": "failed", "crash": "failed", "killed": "failed"}
    assert stub.states() == states
    assert "failed: broken: the surface vanished" in caplog.text
    assert "failed: crash: RuntimeError: no memory left on the GPU" in caplog.text
    assert "failed: killed: ended by SIGKILL" in caplog.text
    assert "1 done, 3 failed" in caplog.text
    assert len(stub.runs()) == 4
    assert stub.run("--prompts", "p.txt") == 1
    again = [run["out_dir"] for run in stub.runs()][4:]
    assert again == ["toy/broken", "toy/crash", "toy/killed"]
    assert "a line of no interest" in Path("out/toy/done/console.log").read_text()
    assert stub.run("--grid", "seed=1,2") == 0
    assert stub.run("--grid", "seed=1,2,3") == 0
    assert [run["out_dir"] for run in stub.runs()][7:] == ["toy/seed=1", "toy/seed=2", "toy/seed=3"]


def test_a_trial_is_recorded_as_running_before_its_process_starts(stub, monkeypatch):
    """The process removes the temporary files in its folder, so the sweep must not write there then."""
    states, start = [], local_executor.start

    def note_state(trial, environment):
        states.append(json.loads((trial.folder / "trial.json").read_text())["state"])
        return start(trial, environment)

    monkeypatch.setattr(local_executor, "start", note_state)
    assert stub.run("--grid", "seed=1") == 0
    assert states == ["running"]


def test_all_are_checked_before_the_first_one_runs(stub):
    def check(config):
        if config.run.seed == 2 and config.run.mode == "appearance_modeling":
            raise ValueError("out_dir: it holds a run with another text")

    with pytest.raises(ConfigError, match="^seed=2: out_dir: it holds"):
        stub.run("--grid", "seed=1,2", check=check)
    assert stub.runs() == []


def test_device_with_a_number_is_rejected(stub):
    with pytest.raises(ConfigError, match=r"seed=1: device = 'cuda:1'.*CUDA_VISIBLE_DEVICES"):
        stub.run("--grid", "seed=1", "--device", "cuda:1")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_is_forwarded_and_the_same_command_resumes(stub, number, code):
    Path("p.txt").write_text("done\nwait\nbroken\n")

    def stop():
        while not Path("out/toy/wait/begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert stub.run("--prompts", "p.txt") == code
    thread.join()
    assert stub.states() == {"done": "done", "wait": "stopped", "broken": "queued"}
    assert Path("out/toy/wait/saved").exists()
    assert stub.run("--prompts", "p.txt") == 1
    assert stub.states() == {"done": "done", "wait": "done", "broken": "failed"}


def test_runs_save_and_end_when_their_parent_is_killed(stub):
    Path("p.txt").write_text("wait\n")
    code = (
        "import sys; from pathlib import Path; from training.sweep import local_executor, run, trials\n"
        f"local_executor.PROGRAM = Path({str(Path(__file__).parents[2] / 'helpers' / 'sweep_stub.py')!r})\n"
        "make = lambda config: config.run.output_folder.mkdir(parents=True, exist_ok=True)\n"
        "run.run_sweep(trials.load_sweep(sys.argv[1:]), make)"
    )
    command = [sys.executable, "-c", code, *stub.words, "--prompts", "p.txt"]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    begun = Path("out/toy/wait/begun")
    wait_for(begun.exists)
    parent.kill()
    parent.wait()
    wait_for(Path("out/toy/wait/saved").exists)
    assert stub.states() == {"wait": "running"}


def wait_for(happened, seconds=60):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_the_page_shows_states_errors_and_links(stub):
    Path("p.txt").write_text("done\nbroken\n")
    assert stub.run("--prompts", "p.txt") == 1
    page = Path("out/toy/index.html").read_text()
    assert "2 results: 1 done, 1 failed" in page and 'http-equiv="refresh"' not in page
    assert "the surface vanished" in page
    assert 'href="done/"' in page and 'href="done_appearance/"' in page


def test_each_rank_runs_only_its_own_trials(stub, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for rank, seeds in (("1", ["2", "4"]), ("0", ["1", "3", "5"])):
        monkeypatch.setenv("RANK", rank)
        before = len(stub.runs())
        assert stub.run("--grid", "seed=1,2,3,4,5") == 0
        assert [run["out_dir"][-1] for run in stub.runs()[before:]] == seeds
        assert {run["RANK"] for run in stub.runs()} == {None}
    assert "5 results: 5 done" in Path("out/toy/index.html").read_text()
