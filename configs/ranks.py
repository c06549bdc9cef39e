"""Several processes of one run, started by torchrun: who is which, and all that they tell each other.

    torchrun --nproc_per_node=4 train.py --config configs/pineapple_geometry_single_gpu.json

Small numbers go by Gloo, gradients on GPUs by NCCL. Gloo notices at once when a process is gone, NCCL only
after its time is up; so all meet on Gloo (`totals`, `wait`) before each exchange between GPUs.
Without a launcher there is one rank and nothing is sent.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.launcher import launched
from configs.meeting import agree_on_round

logger = logging.getLogger(__name__)

# For a process that lives: rank 0 alone exports, unwraps and films, and all others wait meanwhile.
PATIENCE = timedelta(hours=2)
# Nobody works between a meeting and the exchange on GPUs that follows it.
GPU_PATIENCE = timedelta(minutes=10)
# Between the start of the first process and that of the last.
MEETING = timedelta(minutes=15)
SILENCE = logging.CRITICAL + 1


class PeerLost(RuntimeError):
    """Another process of the run is gone, or has not answered in time."""


class ReplicasDiffer(RuntimeError):
    """Ranks that must hold the same weights do not."""


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them; local: its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0
    gpu_group: dist.ProcessGroup | None = None
    store: dist.Store | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[nn.Parameter], parts: int = 1) -> None:
        """Every gradient becomes its mean over ranks and their `parts`; they travel as one buffer.

        parts: how many gradients this rank has added up already. The ranks must have met just before.
        """
        gradients = [_flat(parameter.grad) for parameter in parameters if parameter.grad is not None]
        if self.world * parts == 1 or not gradients:
            return
        buffer = torch.cat(gradients)
        self._sum(buffer)
        buffer /= self.world * parts
        torch._foreach_copy_(gradients, buffer.split([len(gradient) for gradient in gradients]))

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """The sums over the ranks, on all of them; none goes on before all have come here.

        Raises PeerLost.
        """
        if self.world == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        self._sum(sums)
        return sums.tolist()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, on all of them."""
        if self.world == 1:
            return value
        total = value.clone()
        self._sum(total)
        return total / self.world

    def agree(self, value: float) -> float:
        """The first rank's value, on all ranks."""
        return self.totals([value if self.first else 0.0])[0]

    def wait(self) -> None:
        """None goes on before all have come here. Raises PeerLost."""
        self.totals([0.0])

    def check_alike(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raises ReplicasDiffer, on all ranks, unless all hold the same bits (by two sums of them)."""
        if self.world == 1:
            return
        sums = torch.zeros(self.world, 2, dtype=torch.int64)
        for parameter in parameters:
            bits = _flat(parameter.detach()).view(torch.int32).long()
            sums[self.rank] += torch.stack([bits.sum(), (bits * bits).sum()]).cpu()
        self._sum(sums)
        different = [rank for rank in range(self.world) if not torch.equal(sums[rank], sums[0])]
        if different:
            named = ", ".join(map(str, different))
            raise ReplicasDiffer(f"the weights of rank {named} of {self.world} differ from those of rank 0")

    def share_state(self, module: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0) -> int:
        """The first rank's weights, optimiser state and step, on all ranks; returns the step."""
        if self.world == 1:
            return step
        self.wait()
        for tensor in module.state_dict().values():
            self._from_first(tensor)
        parameters = weights_of(optimizer)
        layout = [
            (number, name, tuple(value.shape), value.dtype, value.device.type)
            for number, parameter in enumerate(parameters)
            for name, value in optimizer.state[parameter].items()
        ]
        box = [(step, layout)]
        with _peers_needed():
            dist.broadcast_object_list(box, 0)
        step, layout = box[0]
        for number, name, shape, dtype, device in layout:
            state = optimizer.state[parameters[number]]
            if name not in state:
                on = parameters[number].device if device != "cpu" else torch.device("cpu")
                state[name] = torch.zeros(shape, dtype=dtype, device=on)
            self._from_first(state[name])
        return step

    def speaks(self) -> bool:
        """Whether this rank is the first of all to say why the run ends."""
        if self.world == 1:
            return True
        try:
            return self.store.add("told", 1) == 1
        except RuntimeError:
            # The one that kept the store is gone, and has told or cannot.
            return True

    def leave(self) -> None:
        """To be called at the end: a process that just ends takes the others' connections with it."""
        if self.world > 1:
            self.wait()
            dist.destroy_process_group()

    def _sum(self, tensor: Tensor) -> None:
        if self.world == 1:
            return
        with _peers_needed():
            dist.all_reduce(tensor, group=self.gpu_group if tensor.is_cuda else None)

    def _from_first(self, tensor: Tensor) -> None:
        whole = tensor.contiguous()
        with _peers_needed():
            dist.broadcast(whole, 0, group=self.gpu_group if tensor.is_cuda else None)
        if whole is not tensor:
            tensor.copy_(whole)


def weights_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that it moves."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _flat(tensor: Tensor) -> Tensor:
    """A view of all numbers in the order of memory: channels-last gradients need not be rearranged."""
    assert torch.ops.aten.is_non_overlapping_and_dense(tensor), "a tensor with gaps"
    return tensor.as_strided((tensor.numel(),), (1,))


@contextmanager
def _peers_needed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another process of this run has ended, or does not answer") from error


ALONE = Ranks()


@contextmanager
def joined(on_gpus: bool) -> Iterator[Ranks]:
    """This process among those of its launcher; what ends one of them ends all, and one of them tells why.

    on_gpus: gradients will be exchanged between GPUs. Every rank must say the same.
    """
    ranks = meet(on_gpus)
    if not ranks.first:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        yield ranks
        ranks.leave()
    except SystemExit:
        # All have agreed on it. Who leaves early has the launcher end the others.
        with suppress(PeerLost):
            ranks.leave()
        raise
    except PeerLost as error:
        if ranks.speaks():
            logger.error("error: %s; run the same command again to go on from the last checkpoint", error)
        raise SystemExit(1) from None
    except BaseException as error:
        if ranks.speaks():
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


def meet(on_gpus: bool) -> Ranks:
    """This process among those of its launcher, with connections to them; see `joined`.

    Raises:
        ConnectionError: they cannot reach each other.
    """
    place = launched(os.environ)
    if place.world == 1:
        return ALONE
    try:
        store, rank, world = next(dist.rendezvous("env://", place.number, place.world))
        name = agree_on_round(store, rank, world, MEETING.total_seconds())
        store = dist.PrefixStore(name, store)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
        group = None
        if on_gpus and torch.cuda.is_available():
            torch.cuda.set_device(place.local % torch.cuda.device_count())
            group = dist.new_group(backend="nccl", timeout=GPU_PATIENCE)
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise ConnectionError(
            f"the {place.world} processes of this run cannot reach each other: {error}; start all by torchrun"
        ) from error
    return Ranks(rank, world, place.local, group, store)


def only_first_is_heard(errors: str = "%(message)s (rank {rank})") -> None:
    """Progress and warnings come from rank 0 alone, errors from any rank with its number.

    Until the ranks have met, and see to it that only one speaks, errors come from one of each machine.
    """
    place = launched(os.environ)
    if place.number:
        logging.getLogger().setLevel(logging.ERROR if place.local == 0 else SILENCE)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(errors.format(rank=place.number)))


def leave(main: Callable[[], int]) -> NoReturn:
    """Runs `main` and ends the process with its exit code.

    One of several ends without Python's farewell, in which it could wait for the others for ever, or be ended
    by a thread of torch's that is still about, after all of its work is done.
    """
    if launched(os.environ).world == 1:
        sys.exit(main())
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
