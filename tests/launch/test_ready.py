"""What a job asks of the machine that it is started on: of its own GPU only what computes there."""

import os

import pytest

from draco.errors import MissingError
from draco.job import parse
from draco.launch import ready
from draco.launch.joining import joined
from draco.launch.roster import Host, Roster

JOB = "{name: a, workers: 4, model: fc, data: synthetic, batch_size: 8, steps: 2, scheme: uncoded}"
HEAD, WORKER = Host("head", "10.0.0.10", 64, 0), Host("worker-01", "10.0.0.11", 64, 4)
ALONE = Roster("dev", "10.0.0.0/24", "/p", "/c", (HEAD,))
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "5", "MASTER_ADDR": "n1", "MASTER_PORT": "1"}
STEP = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NODELIST": "n1", "SLURM_JOB_ID": "7"}
STEP |= {"SLURM_STEP_ID": "1", "MASTER_ADDR": "n1", "SLURM_LOCALID": "0"}
GPUS, SERVER = "device=cuda", "server_device=cuda"
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Have no GPU here; return what torch was told, at each question, of how to look."""
    found: list[str | None] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(found.append(os.environ.get(NVML))))
    return found


@pytest.mark.parametrize(
    ("words", "nodes", "started", "missing"),
    [
        ([], None, None, ""),
        ([GPUS], None, None, "device"),
        ([GPUS, "launcher=simulate"], None, None, "device"),
        ([GPUS, "launcher=torchrun"], None, None, "device"),
        ([GPUS, "launcher=slurm"], None, None, ""),  # a login node: the ranks are elsewhere
        ([GPUS, SERVER, "launcher=slurm"], None, None, ""),
        ([GPUS], ALONE, None, "device"),
        ([GPUS], ALONE._replace(nodes=(HEAD, WORKER)), None, ""),
        ([GPUS, "server_device=cpu"], ALONE._replace(nodes=(HEAD, WORKER)), None, ""),
        ([GPUS, SERVER], ALONE._replace(nodes=(HEAD, WORKER)), None, "server_device"),
        ([SERVER], None, None, "server_device"),
        ([GPUS], None, {**TORCHRUN, "LOCAL_WORLD_SIZE": "5"}, "device"),
        ([GPUS], None, {**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, ""),
        ([GPUS, SERVER], None, {**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, "server_device"),
        ([GPUS, "launcher=slurm"], None, STEP, ""),
        ([GPUS, SERVER, "launcher=slurm"], None, STEP, "server_device"),
    ],
)  # fmt: skip
def test_a_gpu_is_missed_where_it_would_be_used(
    asked: list[str | None],
    words: list[str],
    nodes: Roster | None,
    started: dict[str, str] | None,
    missing: str,
) -> None:
    job, place = parse(JOB, "test", words), joined(started) if started else None
    if not missing:
        ready.require("a.yaml", job, nodes, place)
        assert asked == []
        return
    with pytest.raises(MissingError) as raised:
        ready.require("a.yaml", job, nodes, place)
    assert str(raised.value) == (
        f"a.yaml: {missing}: cuda, but torch sees no GPU on this machine; {missing}=cpu, or make setup TORCH=cuda"
    )


@pytest.mark.parametrize("own", [None, "0"])
def test_torch_is_asked_without_beginning_cuda_and_the_environment_stays(
    asked: list[str | None], own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NVML, raising=False) if own is None else monkeypatch.setenv(NVML, own)
    with pytest.raises(MissingError):
        ready.require_device("a.yaml", "cuda")
    assert (asked, os.environ.get(NVML)) == (["1"], own)
