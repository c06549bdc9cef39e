"""Small numbers between host and device such that neither waits for the other."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

# Where a tensor may begin in a buffer that holds several, in bytes; enough for any type and any kernel.
ALIGNMENT = 16


def to_device_async(
    tensors: Sequence[Shaped[Tensor, "..."]], device: torch.device | str
) -> list[Shaped[Tensor, "..."]]:
    """The tensors on a device: from the host to a GPU they travel as one, and nobody waits for them.

    Those on the device share one buffer. Tensors that are not on the host go one by one.
    """
    if torch.device(device).type != "cuda" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    starts = list(accumulate((-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors), initial=0))
    # Only a copy from pinned memory goes on by itself; torch keeps that memory until it has ended.
    here = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for part, tensor in zip(_parts(here, starts, tensors), tensors, strict=True):
        part.copy_(tensor)
    return _parts(here.to(device, non_blocking=True), starts, tensors)


def _parts(buffer: Tensor, starts: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a buffer of bytes, with the types and shapes of `like`."""
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, like, strict=False)
    ]


class AsyncScalars:
    """Named scalars on their way to the host.

    What is launched after this was made does not delay `read`, so a step can go on meanwhile.
    """

    def __init__(self, values: Mapping[str, Float[Tensor, ""]]) -> None:
        self._names = list(values)
        there = torch.stack([value.detach() for value in values.values()])
        self._here = there.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(there.device).record_event() if there.is_cuda else None

    def read(self) -> dict[str, float]:
        """The numbers; waits for them alone."""
        if self._arrived:
            self._arrived.synchronize()
        return dict(zip(self._names, self._here.tolist(), strict=True))
