"""Communication between the processes of one run.

    torchrun --nproc_per_node=4 train.py --config configs/pineapple_geometry_single_gpu.json

Scalars are reduced with Gloo, and gradients on GPUs with NCCL. Gloo detects a lost process immediately, but
NCCL only detects it after its timeout. Therefore a Gloo exchange (`all_reduce_sum`, `barrier`) precedes each
NCCL exchange. A run with one process sends nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Number of values from which on a gradient is exchanged without a copy.
LARGE_GRADIENT = 1 << 20


class PeerLost(RuntimeError):
    """Raised if another process of the run has ended or did not respond in time."""


class ReplicasDiffer(RuntimeError):
    """Raised if the weights differ between ranks. A difference is a fault."""


@dataclass(frozen=True)
class Distributed:
    """The process group of a run, as used by one rank.

    rank: 0 … world_size − 1. local_rank: the index of this process on its machine. gpu_group: the NCCL
    group, None without GPUs. store: the key-value store of the rendezvous.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    gpu_group: dist.ProcessGroup | None = None
    store: dist.Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0. Only rank 0 writes files."""
        return self.rank == 0

    def micro_batches(self, grad_accum: int) -> range:
        """Return the micro-batch indices of this rank. A step has world_size · grad_accum micro-batches."""
        return range(self.rank * grad_accum, (self.rank + 1) * grad_accum)

    def average_gradients(self, parameters: Sequence[nn.Parameter], grad_accum: int = 1) -> None:
        """Replace each gradient by its mean over ranks and micro-batches.

        All small gradients are exchanged in one all-reduce, and each large gradient in its own, without a
        copy. grad_accum: number of micro-batches whose gradients each rank has summed. Call this right after
        a Gloo exchange, which detects lost processes.
        """
        gradients = [_flat(parameter.grad) for parameter in parameters if parameter.grad is not None]
        if self.world_size * grad_accum == 1 or not gradients:
            return
        buffers = [gradient for gradient in gradients if len(gradient) >= LARGE_GRADIENT]
        small = [gradient for gradient in gradients if len(gradient) < LARGE_GRADIENT]
        if small:
            buffers.append(torch.cat(small))
        for buffer in buffers:
            self._all_reduce(buffer)
        torch._foreach_div_(buffers, self.world_size * grad_accum)
        if small:
            torch._foreach_copy_(small, buffers[-1].split([len(gradient) for gradient in small]))

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over the ranks on every rank. This synchronises the ranks.

        Raises:
            PeerLost: if another process has ended or does not respond in time.
        """
        if self.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        self._all_reduce(sums)
        return sums.tolist()

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Return the mean over the ranks on every rank."""
        if self.world_size == 1:
            return value
        total = value.clone()
        self._all_reduce(total)
        return total / self.world_size

    def broadcast_value(self, value: float) -> float:
        """Return the value of rank 0 on every rank."""
        return self.all_reduce_sum([value if self.is_main else 0.0])[0]

    def barrier(self) -> None:
        """Wait for all ranks.

        Raises:
            PeerLost: if another process has ended or does not respond in time.
        """
        self.all_reduce_sum([0.0])

    def assert_replicas_equal(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raise ReplicasDiffer on every rank if the weights differ between ranks.

        Only two sums over the bits of the weights are exchanged and compared.
        """
        if self.world_size == 1:
            return
        sums = torch.zeros(self.world_size, 2, dtype=torch.int64)
        for parameter in parameters:
            bits = _flat(parameter.detach()).view(torch.int32).long()
            sums[self.rank] += torch.stack([bits.sum(), (bits * bits).sum()]).cpu()
        self._all_reduce(sums)
        different = [rank for rank in range(self.world_size) if not torch.equal(sums[rank], sums[0])]
        if different:
            listed = ", ".join(map(str, different))
            raise ReplicasDiffer(
                f"the weights of rank {listed} of {self.world_size} differ from those of rank 0"
            )

    def broadcast_state(self, module: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0) -> int:
        """Copy the weights, optimizer state and step of rank 0 to every rank. Return the step."""
        if self.world_size == 1:
            return step
        self.barrier()
        for tensor in module.state_dict().values():
            self._broadcast(tensor)
        parameters = optimized_parameters(optimizer)
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
            self._broadcast(state[name])
        return step

    def claim_error_report(self) -> bool:
        """Return whether this rank is the first to report the error that ends the run."""
        if self.world_size == 1:
            return True
        try:
            return self.store.add("error reports", 1) == 1
        except RuntimeError:
            # The process that hosts the store has ended, so this rank cannot find out whether another rank
            # has reported the error. It reports the error itself.
            return True

    def shut_down(self) -> None:
        """Wait for all ranks, then leave the group.

        The wait is necessary because the connections of the other ranks would break if a rank left earlier.
        """
        if self.world_size > 1:
            self.barrier()
            dist.destroy_process_group()

    def _all_reduce(self, tensor: Tensor) -> None:
        if self.world_size == 1:
            return
        with _peers_needed():
            dist.all_reduce(tensor, group=self.gpu_group if tensor.is_cuda else None)

    def _broadcast(self, tensor: Tensor) -> None:
        contiguous = tensor.contiguous()
        with _peers_needed():
            dist.broadcast(contiguous, 0, group=self.gpu_group if tensor.is_cuda else None)
        if contiguous is not tensor:
            tensor.copy_(contiguous)


SINGLE_PROCESS = Distributed()


def optimized_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return all parameters of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _flat(tensor: Tensor) -> Tensor:
    """Return a 1-D view in memory order, so that channels-last gradients need no copy."""
    assert torch.ops.aten.is_non_overlapping_and_dense(tensor), "the tensor has gaps"
    return tensor.as_strided((tensor.numel(),), (1,))


@contextmanager
def _peers_needed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another process of this run has ended, or does not answer") from error
