"""What decides the bits of a process's gradients, and what prevents two processes from having the same.

`fingerprint` reads the versions, the device and the settings of one rank, and computes a little on its device. `causes`
compares the fingerprints of ranks whose bits should be equal, and says what to do about each difference. Workers say
theirs in greetings, where they have a GPU, and the ranks of somebody's own loop to `draco.torch`'s guard.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from draco.lazy import Tensor, torch

# How cuBLAS is told its memory, when it is first used, and the values with which it repeats its bits.
WORKSPACE, REPEATABLE = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
# What can be done where an operation has no form that repeats its bits.
UNREPEATABLE = (
    "has no form that repeats its bits on this device: take another operation, or deterministic: false, with which "
    "replies are compared within a tolerance"
)
_SIDE = 65  # odd, so that vectorised loops have remainders

# What may differ between ranks, why it matters, and what to do.
_UNLIKE = {
    "torch": ("kernels change between versions", "install the same torch on all ranks"),
    "device": ("unlike devices add in another order", "give a group ranks of one kind, or set a tolerance"),
    "capability": ("kernels are chosen by it", "give a group ranks of one kind, or set a tolerance"),
    "CUDA": ("its libraries bring the kernels", "install the same build of torch on all ranks"),
    "cuDNN": ("it brings the convolutions", "install the same cuDNN on all ranks"),
    "driver": ("it compiles some kernels", "install the same driver on all nodes"),
    "CPU capability": (
        "vectors of another width add in another order",
        "set ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2 on all ranks, or set a tolerance",
    ),
    "threads": ("sums are split among threads", "set OMP_NUM_THREADS to the same number on all ranks"),
    "oneDNN": ("it brings another matrix product", "set torch.backends.mkldnn.enabled to the same on all ranks"),
    "cuDNN benchmark": ("each rank chooses its own algorithm", "set torch.backends.cudnn.benchmark = False"),
    "cuDNN deterministic": ("it excludes algorithms", "set torch.backends.cudnn.deterministic = True on all ranks"),
    "deterministic algorithms": (
        "it exchanges kernels", "call torch.use_deterministic_algorithms(True) on all ranks",
    ),
    "float32 products": ("TF32 rounds otherwise", "call torch.set_float32_matmul_precision alike on all ranks"),
    "TF32 in cuDNN": ("TF32 rounds otherwise", "set torch.backends.cudnn.allow_tf32 to the same on all ranks"),
    "reduced precision sums": (
        "half precision is added otherwise", "set torch.backends.cuda.matmul.allow_*_reduction alike on all ranks",
    ),
    WORKSPACE: ("cuBLAS chooses by it", f"set it to {REPEATABLE[0]} on all ranks"),
    "results": (
        "a product, a sum or a function of the same numbers has other bits",
        "give a group processors of one kind, or set a tolerance",
    ),
}  # fmt: skip


def fingerprint(device: torch.device | str) -> dict[str, str]:
    """Return what decides the bits of results on a device of this process, each by its name, as text.

    `results` is a digest of a few products, convolutions, sums and functions of fixed numbers, on this device.
    It reads settings and changes none; it draws nothing from global random state.
    """
    device = torch.device(device)
    found = {
        "torch": torch.__version__,
        "device": device.type,
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "oneDNN": str(torch.backends.mkldnn.enabled),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "float32 products": _products(),
    }
    if device.type != "cpu":
        matmul, module = torch.backends.cuda.matmul, torch.get_device_module(device)
        found |= {
            "device": module.get_device_name(device),
            "capability": ".".join(map(str, module.get_device_capability(device))),
            "CUDA": str(torch.version.cuda),
            "driver": _driver(device),
            "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "cuDNN benchmark": str(torch.backends.cudnn.benchmark),
            "cuDNN deterministic": str(torch.backends.cudnn.deterministic),
            "TF32 in cuDNN": _tf32_in_cudnn(),
            "reduced precision sums": f"{matmul.allow_fp16_reduced_precision_reduction}, "
            f"{matmul.allow_bf16_reduced_precision_reduction}",
            WORKSPACE: os.environ.get(WORKSPACE, "unset"),
        }
    return {**found, "results": _results(device)}


def _products() -> str:
    """Return how float32 matrix products are rounded; torch does not say where both of its interfaces were used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        backends: Any = torch.backends
        return f"{backends.cuda.matmul.fp32_precision}, {backends.mkldnn.matmul.fp32_precision}"


def _tf32_in_cudnn() -> str:
    """Return whether cuDNN may round factors to TF32, in the same way."""
    try:
        return str(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        cudnn: Any = torch.backends.cudnn
        return f"{cudnn.conv.fp32_precision}, {cudnn.rnn.fp32_precision}"


def _driver(device: torch.device) -> str:
    """Return the version of CUDA that the driver brings, as 12080; of another kind of device nothing."""
    return str(torch._C._cuda_getDriverVersion()) if device.type == "cuda" else "none"  # type: ignore[attr-defined]


def causes(by_rank: Mapping[int, Mapping[str, str]]) -> list[str]:
    """Return a sentence for everything that may keep ranks, or two runs of one of them, from equal bits.

    Each says what is so, on which ranks, why it matters, and what to do. None is found where the model's own operations
    are the cause: then `torch.use_deterministic_algorithms(True)` raises at the first that has no deterministic kernel.

    Args:
        by_rank: rank -> its `fingerprint`.
    """
    return [*_between(by_rank), *_within(by_rank)]


def _between(by_rank: Mapping[int, Mapping[str, str]]) -> Iterator[str]:
    """Yield what differs between ranks, in the order of the table."""
    for name, told in differences(by_rank).items():
        why, remedy = _UNLIKE[name]
        yield f"{name} differs: {told}; {why}: {remedy}"


def differences(by_rank: Mapping[int, Mapping[str, str]], noun: str = "rank") -> dict[str, str]:
    """Return what differs between ranks, by its name: "NVIDIA A10G on ranks 1, 2, Tesla T4 on rank 3".

    In the order of the table, which says what matters most; names that it does not have come last.
    """
    order = list(_UNLIKE)
    names = dict.fromkeys(name for found in by_rank.values() for name in found)
    told: dict[str, str] = {}
    for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
        ranks: dict[str, list[int]] = {}
        for rank, found in sorted(by_rank.items()):
            ranks.setdefault(found.get(name, "none"), []).append(rank)
        if len(ranks) > 1:
            told[name] = ", ".join(f"{value} on {_named(which, noun)}" for value, which in ranks.items())
    return told


def without_form(error: BaseException) -> str:
    """Return which operation had to repeat its bits and cannot, as torch names it in its error; nothing of others."""
    text = str(error)
    if found := re.search(r"([^\n:]+) does not have a deterministic implementation", text):
        return found[1]
    return "a matrix product of cuBLAS" if WORKSPACE in text else ""


def _within(by_rank: Mapping[int, Mapping[str, str]]) -> Iterator[str]:
    """Yield settings with which one rank may get other bits of the same input the next time."""

    def having(wanted: Callable[[Mapping[str, str]], bool]) -> list[int]:
        return sorted(rank for rank, found in by_rank.items() if wanted(found))

    if ranks := having(lambda found: found.get("cuDNN benchmark") == "True"):
        why = "cuDNN times its algorithms, and takes what was fastest, which is not always the same one"
        yield f"cuDNN benchmark is on, on {_named(ranks)}; {why}: set torch.backends.cudnn.benchmark = False"
    if ranks := having(lambda found: "cuDNN" in found and found["deterministic algorithms"] == "False"):
        why = "some kernels of GPUs add by atomics, in the order in which threads come"
        remedy = "call torch.use_deterministic_algorithms(True)"
        yield f"deterministic algorithms are off, on {_named(ranks)}; {why}: {remedy}"
    if ranks := having(lambda found: found.get(WORKSPACE) not in (None, *REPEATABLE)):
        why = "products in several streams then share cuBLAS's memory, and may be split otherwise"
        yield f"{WORKSPACE} is not set, on {_named(ranks)}; {why}: set it to {REPEATABLE[0]} before torch starts"


def _named(ranks: Sequence[int], noun: str = "rank") -> str:
    """Return "rank 3", or "ranks 0, 1, 4"; of many the first eight."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"{noun}{'s' if len(ranks) > 1 else ''} {shown}"


def _results(device: torch.device) -> str:
    """Return 16 hexadecimal digits: equal where elementary work has the same bits."""
    found = hashlib.sha256()
    with torch.no_grad():
        for result in _work(device):
            found.update(result.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _work(device: torch.device) -> Iterator[Tensor]:
    """Yield float32 results of what most models are made of."""
    functional = torch.nn.functional
    drawn = torch.randn(4, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(1))
    x = drawn.to(device)
    flat = x.flatten(0, 2)
    yield flat @ flat[:_SIDE].T
    yield functional.conv2d(x, x[:, :, :3, :3], padding=1)
    yield flat.softmax(1)
    yield functional.layer_norm(flat, (_SIDE,))
    yield functional.gelu(flat)
    yield flat.exp().log1p().rsqrt()
    yield flat.var(1)
    yield flat.sum(0)
    yield flat.sum()
