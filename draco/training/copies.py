"""A worker's copies between host and GPU: batches and the model go there, the encoded reply comes back.

Numbers change their format on the GPU, never on the way. A `copy_` of torch between devices and formats converts on the
CPU. To fewer bits that moves twice the bytes, and with `non_blocking` it reads what has not come yet. So vectors go in
chunks: a chunk is converted, then copied, and its buffer is used again by the next one, in the order of the stream.

On the CPU all of this is a plain copy. Whether host memory is page-locked decides only how fast copies are.
"""

from typing import Any

import torch
from torch import Tensor

from draco.tasks.batch import mapped
from draco.training import device

CHUNK = 1 << 22  # numbers that are converted at once: 8 or 16 MiB


def to_host(vector: Tensor, out: Tensor) -> None:
    """Write a vector (e,) into host memory `out` (e,), in its format; it is there when this returns."""
    if vector.is_cpu:
        out.copy_(vector)
        return
    for source, target in zip(torch.split(vector, CHUNK), torch.split(out, CHUNK), strict=True):
        target.copy_(source.to(out.dtype).resolve_conj(), non_blocking=True)
    event = device.of_gpus().Event()
    event.record(device.of_gpus().current_stream(vector.device))
    event.synchronize()


def on_host(vector: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a vector (e,) in host memory of its own, in the format `dtype`; None: in that which it has."""
    out = torch.empty(vector.shape, dtype=dtype or vector.dtype)
    to_host(vector, out)
    return out


def to_device(vector: Tensor, out: Tensor) -> None:
    """Write a vector (p,) into `out` (p,) on a device, in its format.

    Host memory must stay as it is until the device has done something that was waited for.
    """
    if out.is_cpu or not vector.is_cpu:
        out.copy_(vector)
        return
    for source, target in zip(torch.split(vector, CHUNK), torch.split(out, CHUNK), strict=True):
        if source.dtype == target.dtype:
            target.copy_(source, non_blocking=True)
        else:
            target.copy_(source.to(out.device, non_blocking=True))


def moved(batch: Any, where: torch.device) -> Any:
    """Return a batch of host memory on a device, not waited for; what is no tensor stays as it is.

    It goes by page-locked memory of torch's, which keeps it until it is copied: so the CPU makes the next batch while
    the device computes. A copy from other memory waits for all that the device has to do before.
    """
    return batch if where.type == "cpu" else mapped(batch, lambda rows: _sent(rows, where))


def wait(where: torch.device) -> None:
    """Wait until a device has done all that it was told by this thread; a time that is taken then is true."""
    if where.type != "cpu":
        device.of_gpus().current_stream(where).synchronize()


def _sent(rows: Tensor, where: torch.device) -> Tensor:
    return rows.pin_memory().to(where, non_blocking=True) if rows.is_cpu else rows.to(where)
