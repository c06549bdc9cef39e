"""Copies of tensors between host and device that do not block the host."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

# The alignment of each tensor in a shared buffer, in bytes. It is sufficient for any dtype and kernel.
ALIGNMENT = 16


def to_device_async(
    tensors: Sequence[Shaped[Tensor, "..."]], device: torch.device | str
) -> list[Shaped[Tensor, "..."]]:
    """Copy tensors to a device.

    If all tensors are on the host and the device is a GPU, they are copied in one transfer that does not
    block the host, and the results share one buffer. Otherwise, each tensor is copied separately.
    """
    if torch.device(device).type != "cuda" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    starts = list(accumulate((-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors), initial=0))
    # Pinned memory is used because only copies from it are asynchronous. torch keeps the memory until the
    # copy has finished.
    host_buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for part, tensor in zip(_parts(host_buffer, starts, tensors), tensors, strict=True):
        part.copy_(tensor)
    return _parts(host_buffer.to(device, non_blocking=True), starts, tensors)


def _parts(buffer: Tensor, starts: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of a byte buffer that have the dtypes and shapes of `like`."""
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, like, strict=False)
    ]


class AsyncCopy:
    """A tensor that is copied to the host asynchronously. A tensor on the host is not copied.

    `read` does not wait for kernels that were launched after this object was created.
    """

    def __init__(self, values: Shaped[Tensor, "..."]) -> None:
        self._host = values.detach().to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def read(self) -> Shaped[Tensor, "..."]:
        """Wait until the values have been copied, and return them."""
        if self._copied:
            self._copied.synchronize()
        return self._host


class AsyncScalars:
    """Named scalars that are copied to the host asynchronously (see `AsyncCopy`)."""

    def __init__(self, values: Mapping[str, Float[Tensor, ""]]) -> None:
        self._names = list(values)
        self._copy = AsyncCopy(torch.stack([value.detach() for value in values.values()]))

    def read(self) -> dict[str, float]:
        """Wait until the values have been copied, and return them."""
        return dict(zip(self._names, self._copy.read().tolist(), strict=True))
