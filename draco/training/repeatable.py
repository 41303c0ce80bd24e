"""What makes a GPU repeat its bits: torch's settings, which are a process's own, and what it says where it cannot.

On a CPU nothing is set. docs/numerics.md says which settings, and what they cannot bring about.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from draco import own
from draco.determinism import REPEATABLE, UNREPEATABLE, WORKSPACE, without_form
from draco.errors import MissingError, OwnCodeError
from draco.job import Job
from draco.training import device

_FILLING: Any = torch.utils.deterministic
_COMPILER = "TORCHINDUCTOR_DETERMINISTIC"  # read when torch.compile is first used


def settle(job: Job, where: torch.device) -> None:
    """Let this process compute on its device as the job says, from now on; to be called before any work.

    Raises:
        MissingError: cuBLAS has begun in this process, and not so that it repeats its bits.
    """
    if where.type == "cpu":
        return
    if job.deterministic:
        if not device.of_gpus().is_initialized():
            os.environ.setdefault(WORKSPACE, REPEATABLE[0])
            os.environ.setdefault(_COMPILER, "1")
        if (said := os.environ.get(WORKSPACE)) not in REPEATABLE:
            raise MissingError(
                f"device: cuda: {WORKSPACE} is {said or 'not set'}, and cuBLAS repeats its bits with {REPEATABLE[0]} "
                "only, set before this process uses a GPU: set it in the environment, or deterministic=false"
            )
    device.of_gpus().set_device(where)
    # Not `torch.use_deterministic_algorithms`, which imports torch's compiler: seconds in each process.
    torch._C._set_deterministic_algorithms(job.deterministic, warn_only=False)
    _FILLING.fill_uninitialized_memory = False  # nothing here reads what was not written
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = job.deterministic
    _round_to_tf32(job.tf32)
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_accumulation = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False


@contextmanager
def settled(job: Job, *where: torch.device) -> Iterator[None]:
    """Do what `settle` does for those of the devices that are GPUs; afterwards all settings are as they were.

    The environment keeps what cuBLAS has read there, as it goes on with it.
    """
    if all(each.type == "cpu" for each in where):
        yield
        return
    before = _settings()
    try:
        for each in where:
            settle(job, each)
        yield
    finally:
        _put_back(before)


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Say of an operation that cannot repeat its bits which it is, and what to do; `what` is whose it is.

    Raises:
        OwnCodeError: there is one.
    """
    try:
        yield
    except RuntimeError as error:
        if operation := without_form(error):
            raise OwnCodeError(f"{what}{own.place(error)}: {operation} {UNREPEATABLE}") from error
        raise


def _round_to_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions round their factors to TF32, or not, by both of torch's interfaces.

    The older one sets the newer one too, but leaves cuDNN to follow `torch.backends.fp32_precision`.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    for each in _precisions():
        each.fp32_precision = "tf32" if allowed else "ieee"


def _precisions() -> tuple[Any, ...]:
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn  # type: ignore[attr-defined]


def _settings() -> dict[str, Any]:
    gpus = device.of_gpus()
    return {
        "device": gpus.current_device() if gpus.is_initialized() else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": _FILLING.fill_uninitialized_memory,
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.deterministic,
        "precisions": [each.fp32_precision for each in _precisions()],
        "accumulation": torch.backends.cuda.matmul.allow_fp16_accumulation,
        "float16": torch._C._get_cublas_allow_fp16_reduced_precision_reduction(),
        "bfloat16": torch._C._get_cublas_allow_bf16_reduced_precision_reduction(),
    }


def _put_back(before: dict[str, Any]) -> None:
    if before["device"] is not None:
        device.of_gpus().set_device(before["device"])
    torch._C._set_deterministic_algorithms(before["deterministic"], warn_only=before["warns"])
    _FILLING.fill_uninitialized_memory = before["fills"]
    torch.backends.cudnn.benchmark = before["benchmark"]
    torch.backends.cudnn.deterministic = before["cudnn"]
    products, convolutions, _ = before["precisions"]
    torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
    torch.backends.cudnn.allow_tf32 = convolutions == "tf32"
    for each, precision in zip(_precisions(), before["precisions"], strict=True):
        each.fp32_precision = precision
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_accumulation = before["accumulation"]
    matmul.allow_fp16_reduced_precision_reduction = before["float16"]
    matmul.allow_bf16_reduced_precision_reduction = before["bfloat16"]
