"""Start and end of the processes of a run: launcher variables, rendezvous, logging by rank, exit."""

import atexit
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, Protocol, TypeVar

import torch
import torch.distributed as dist

from configs.errors import ConfigError
from training.console import LineFormatter, LossyStream
from training.distributed import SINGLE_PROCESS, Distributed, PeerLost
from training.signals import die_on_interrupt, end_with_parent

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# The Gloo limit is long, because all other ranks wait while rank 0 unwraps, exports and writes videos.
GLOO_TIMEOUT = timedelta(hours=2)
# The NCCL limit can be short: each NCCL exchange directly follows a Gloo exchange, so the ranks are
# synchronised.
NCCL_TIMEOUT = timedelta(minutes=10)
# Maximum time between the start of the first process and the start of the last process.
RENDEZVOUS_TIMEOUT = timedelta(minutes=15)
MUTED = logging.CRITICAL + 1
# torchrun sets this variable for its workers, so its presence means that a launcher started the process.
LAUNCHED = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class LauncherRank:
    """Rank and world size of this process, in the run and on this machine.

    The values come from the launcher (torchrun).
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    def select(self, items: Sequence[Item]) -> list[Item]:
        """Return every world_size-th item, starting with the item at index `rank`."""
        return list(items[self.rank :: self.world_size])

    def gpus(self, visible: Sequence[str]) -> list[str]:
        """Return the GPU of this rank from the GPUs of the machine. Without a launcher, return all GPUs."""
        if self.world_size == 1:
            return list(visible)
        return [visible[self.local_rank % len(visible)]] if visible else []


def read_launcher_rank(environment: Mapping[str, str]) -> LauncherRank:
    """Read rank and world size from the launcher's variables. Without them, return rank 0 of 1.

    Raises:
        ConfigError: if the variables are not numbers, or contradict each other.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return LauncherRank()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    values |= {name: environment[name] for name in names if name in environment}
    try:
        rank, world_size, local_rank, local_world_size = (int(values[name]) for name in names)
    except ValueError:
        rank, world_size, local_rank, local_world_size = -1, 0, 0, 0
    if not (0 <= rank < world_size and local_rank >= 0 and local_world_size > 0):
        variables = ", ".join(f"{name}={text}" for name, text in values.items())
        raise ConfigError(f"the launcher's variables {variables} are not valid; unset them, or use torchrun")
    return LauncherRank(rank, world_size, local_rank, local_world_size)


class Store(Protocol):
    """The methods of torch.distributed's key-value store that `rendezvous` uses."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


def rendezvous(store: Store, rank: int, world_size: int, seconds: float) -> str:
    """Return a new name for this start ("round") of the workers, equal on all `world_size` processes.

    When torchrun restarts its workers, it uses the same store, which still contains the addresses of the
    previous workers. Therefore each process writes a nonce (a random text), and rank 0 publishes all nonces.
    A rank that finds its own nonce among them belongs to this round.

    Raises:
        TimeoutError: if not all processes arrive within `seconds`.
    """
    nonce, deadline = uuid.uuid4().hex, time.monotonic() + seconds
    store.set(f"nonce/{rank}", nonce)
    while time.monotonic() < deadline:
        if rank == 0:
            _publish_nonces(store, nonce, world_size)
            if store.check([f"{nonce}/{other}" for other in range(world_size)]):
                return nonce
        if store.check(["round"]):
            name, nonces = json.loads(store.get("round"))
            if nonces[rank : rank + 1] == [nonce]:
                store.set(f"{name}/{rank}", "")
                if rank:
                    return name
        time.sleep(0.02)
    raise TimeoutError(f"not all of the {world_size} processes have arrived within {seconds:.0f} s")


def _publish_nonces(store: Store, name: str, world_size: int) -> None:
    keys = [f"nonce/{rank}" for rank in range(world_size)]
    if store.check(keys):
        store.set("round", json.dumps([name, [store.get(key).decode() for key in keys]]))


def init_distributed(on_gpus: bool) -> Distributed:
    """Connect this process to the other processes of its launcher.

    on_gpus: whether gradients are exchanged between GPUs. Every rank must pass the same value.

    Raises:
        ConnectionError: if the processes cannot connect to each other.
    """
    launcher = read_launcher_rank(os.environ)
    if launcher.world_size == 1:
        return SINGLE_PROCESS
    try:
        store, rank, world_size = next(dist.rendezvous("env://", launcher.rank, launcher.world_size))
        name = rendezvous(store, rank, world_size, RENDEZVOUS_TIMEOUT.total_seconds())
        store = dist.PrefixStore(name, store)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            timeout=GLOO_TIMEOUT,
        )
        group = None
        if on_gpus and torch.cuda.is_available():
            torch.cuda.set_device(launcher.local_rank % torch.cuda.device_count())
            group = dist.new_group(backend="nccl", timeout=NCCL_TIMEOUT)
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise ConnectionError(
            f"the {launcher.world_size} processes of this run cannot reach each other: {error}; "
            "start all by torchrun"
        ) from error
    return Distributed(rank, world_size, launcher.local_rank, group, store)


@contextmanager
def distributed_session(on_gpus: bool) -> Iterator[Distributed]:
    """Open the process group of a command. An error on one rank ends all ranks. Only one rank reports it."""
    distributed = init_distributed(on_gpus)
    if not distributed.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        yield distributed
        distributed.shut_down()
    except SystemExit:
        # SystemExit is raised on all ranks at the same step. Wait for all ranks here: if one exits early, the
        # launcher ends the others.
        with suppress(PeerLost):
            distributed.shut_down()
        raise
    except PeerLost as error:
        if distributed.claim_error_report():
            logger.error("error: %s; run the same command again to resume from the last checkpoint", error)
        raise SystemExit(1) from None
    except BaseException as error:
        if distributed.claim_error_report():
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


def setup_rank_logging(errors: str = "%(message)s (rank {rank})") -> None:
    """Log progress and warnings on rank 0 only. Errors of other ranks are logged with the rank.

    Until the process group exists, only one rank of each machine logs errors.
    """
    launcher = read_launcher_rank(os.environ)
    if launcher.rank:
        logging.getLogger().setLevel(logging.ERROR if launcher.local_rank == 0 else MUTED)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(LineFormatter(errors.format(rank=launcher.rank)))


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end the process with its exit code.

    A worker of a launcher receives SIGTERM when the launcher ends. The worker then saves a checkpoint and
    exits. The shutdown of the interpreter is skipped, because the destruction of all modules takes 0.3 s, and
    because a thread of torch could block it or abort the process if the run has several processes. A single
    process calls the functions that packages have registered with `atexit`.
    """
    if LAUNCHED in os.environ or "RANK" in os.environ:
        end_with_parent()
    # stderr is None without a terminal, for example under pythonw or after 2>&-.
    if sys.stderr is not None:
        sys.stderr = LossyStream(sys.stderr)
    try:
        alone = read_launcher_rank(os.environ).world_size == 1
    except ConfigError:
        # `main` reads the variables again and reports the error.
        alone = True
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if alone:
        die_on_interrupt()
        atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        # A stream is None without a terminal. The reader of a pipe may have ended.
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)
