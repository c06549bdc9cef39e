"""Run train.py in several processes.

The processes are forked from a process that has already imported the packages. As in torchrun, the parent
process hosts the rendezvous store. `launch` runs torch.distributed.launch. ForkedTrial is a trial of a sweep.
"""

import contextlib
import logging
import multiprocessing
import os
import sys
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import train
from training import loop
from training.launch import run_and_exit

HERE = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["multiprocess_harness", "warm_process"])
FIT = 30


def warm_context(_method=None):
    """Return the multiprocessing context of the fork server.

    This function can replace multiprocessing.get_context.
    """
    with pytest.MonkeyPatch.context() as patch:
        # In Python 3.11 the server does not use its parent's sys.path.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parents[1]), str(HERE)]))
        forkserver.ensure_running()
    return CONTEXT


def start(target, *arguments):
    """Start a process that calls target(*arguments)."""
    process = warm_context().Process(target=target, args=arguments)
    process.start()
    return process


def fail(rank, step):
    """Return a fault that raises a user error at `step` on one rank."""
    return _at_step(rank, step, _raise)


def drift(rank, step):
    """Return a fault that changes a weight at `step` on one rank."""
    return _at_step(rank, step, _drift)


def hold(rank, step):
    """Return a fault that blocks one rank at `step`."""
    return _at_step(rank, step, _hold)


def spoil(rank, step):
    """Return a fault that makes one gradient of one rank NaN at `step`."""
    return _at_step(rank, step, _spoil)


def _raise(scene):
    raise ValueError("this rank fails")


def _drift(scene):
    with torch.no_grad():
        next(scene.parameters()).view(-1)[0] += 1e-6


def _spoil(scene):
    parameter = next(scene.parameters())

    def spoil_once(gradient):
        hook.remove()
        return gradient * float("nan")

    hook = parameter.register_hook(spoil_once)


def _hold(scene):
    import time

    time.sleep(600)


def _at_step(rank, step, act):
    return rank, step, act


def launch(argv):
    """Run `python -m torch.distributed.launch` with the arguments `argv`. The workers are forked."""
    # A later version of torch removes this module, so it is imported only where it is needed.
    from torch.distributed import launch as launcher
    from torch.distributed import run

    real = run.elastic_launch
    run.elastic_launch = lambda config, entrypoint: lambda *words: real(config, _worker)(*words)
    launcher.main(["--start_method=fork", *argv])


def _worker(*words):
    """Run train.py as a worker of the launcher. words: the command after "python"."""
    argv = words[words.index("train.py") + 1 :]
    run_and_exit(partial(train.main, list(argv)))


class ForkedTrial:
    """A trial of a sweep. It has the part of the interface of subprocess.Popen that sweeps use."""

    def __init__(self, command, *, env, stdout, **_):
        self._process = start(_member, train.main, command[2:], env, stdout.name, None, os.getcwd())

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)


def _member(main, argv, variables, output, fault, folder=None):
    if folder is not None:
        os.chdir(folder)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    logging.root.handlers.clear()
    os.environ.update(variables)
    # The fork server preloads warm_process but hides an error of this import. The import here raises the
    # error.
    import warm_process  # noqa: F401

    if fault and fault[0] == int(variables.get("RANK", 0)):
        _plant(*fault[1:])
    run_and_exit(partial(main, argv))


def _plant(step, act):
    real = loop.train_step

    def train_step(state, config, task, *rest):
        if state.step == step:
            act(task.scene)
        return real(state, config, task, *rest)

    loop.train_step = train_step


class ProcessGroup:
    """A context manager that runs the processes of one command and kills them at the end.

    main: the program, which takes the arguments `argv`.
    """

    def __init__(self, world, argv, folder, fault=None, main=train.main):
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
        self.outputs = [folder / f"stderr_{rank}_of_{world}" for rank in range(world)]
        self.members = []
        for rank, output in enumerate(self.outputs):
            output.unlink(missing_ok=True)
            variables = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
            self.members.append(start(_member, main, argv, variables, output, fault))

    def wait(self, seconds=120):
        """Return the exit code of each rank. Fail if a process still runs after `seconds`."""
        for member in self.members:
            member.join(seconds)
        assert all(member.exitcode is not None for member in self.members), f"it hangs: {self.text()}"
        return [member.exitcode for member in self.members]

    def text(self):
        return "".join(output.read_text() for output in self.outputs if output.exists())

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for member in self.members:
            with contextlib.suppress(ValueError):
                member.kill()
                member.join()


def run(world, argv, folder, fault=None, main=train.main):
    """Run a command. Return the exit code of each rank and the output of all ranks."""
    with ProcessGroup(world, argv, folder, fault, main) as processes:
        return processes.wait(), processes.text()
