"""Steps in several rounds between real processes: the bits of the simulation, also where one is frozen or killed."""

import os
import signal
from pathlib import Path

import pytest
import test_mpi
import torch
from test_mpi import await_, ended, model, newest, rank_process, run, simulated, started, write_job

from draco.runs import directory as run_directory
from draco.runs import events

folder = test_mpi.folder
pytestmark = pytest.mark.usefixtures("forks")


def of(run: Path, kind: str) -> list[dict]:
    return [event for event in events.read(run / "events.jsonl") if event["event"] == kind]


@pytest.mark.parametrize(
    ("scheme", "transport"),
    [
        ("reactive", "mpi"),
        ("reactive", "torch"),
        ("verified", "torch"),
        ("checked", "mpi"),
        ("checked, verifiers: 1", "mpi"),
        ("checked, verifiers: 1", "torch"),
    ],
)
def test_in_processes_and_simulated_the_model_has_the_same_bits_and_the_same_worker_is_out(
    folder: Path, scheme: str, transport: str, train
) -> None:
    attack = "{name: reverse_gradient, ranks: [2]}"  # from the first step, as of checked it has no pair in some
    write_job(folder, scheme=scheme, attack=attack, steps=5, workers=4, transport=transport)
    processes = run(folder)
    assert processes.returncode == 0, processes.stderr
    first, second = newest(folder), simulated(folder, train)
    assert torch.equal(model(first), model(second))
    for found in (first, second):
        assert [event["rank"] for event in of(found, "expelled")] == [2]
        assert of(found, "end")[-1]["falsely_accused"] == of(found, "end")[-1]["missed"] == 0
    losses = [[(event["step"], event["loss"]) for event in of(each, "step")] for each in (first, second)]
    assert losses[0] == losses[1]
    assert "worker 2 is proven to lie and expelled" in processes.stderr


@pytest.mark.long
def test_workers_that_hang_or_are_killed_are_done_without_and_never_expelled(folder: Path, train) -> None:
    """Of the protocol with a pipeline; all have one driver, and test_rounds.py has their silent workers simulated."""
    write_job(folder, steps=150, scheme="verified", attack="none", patience=0.5, workers=5)
    process = started(folder)
    frozen = rank_process(folder, 2)
    os.kill(frozen, signal.SIGSTOP)
    await_(lambda: 2 in of(newest(folder), "step")[-1]["straggling"])
    os.kill(frozen, signal.SIGCONT)
    await_(lambda: not of(newest(folder), "step")[-1]["straggling"])
    os.kill(rank_process(folder, 3), signal.SIGKILL)
    code, errors = ended(process)
    assert code == 0, errors
    steps = of(newest(folder), "step")
    assert [step["step"] for step in steps] == list(range(1, 151))
    assert (steps[-1]["lost"], steps[-1]["standing"]) == ([3], 5)
    assert of(newest(folder), "expelled") == []
    assert run_directory.read_status(newest(folder)).state == "succeeded"
    assert torch.equal(model(newest(folder)), model(simulated(folder, train)))
