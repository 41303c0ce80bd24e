"""The verdict on a launch whose processes have ended, as a table from what was observed to what is recorded."""

import pytest

from draco.launch.judge import Observed, judge, killed_ranks
from draco.runs.directory import State, Status

KILLED = [
    "--------------------------------------------------------------------------",
    "prterun noticed that process rank 3 with PID 4711 on node worker-01 exited on",
    "signal 9 (Killed).",
    "--------------------------------------------------------------------------",
]
RANK_3 = "rank 3 on worker-01 was killed by signal 9"
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "x.py", line 1, in <module>',
    "draco.errors.MissingError: data/mnist: is not there",
    "prterun detected that one or more processes exited with non-zero status, thus causing",
]
CUT = [
    "PRTE has lost communication with a remote daemon.", "", "  HNP daemon   : [prterun-head-427@0,0] on node head",
    "  Remote daemon: [prterun-head-427@0,3] on node worker-03", "",
]  # fmt: skip
MISSING = "draco.errors.MissingError: data/mnist: is not there"
GONE = {"worker-02": "no route to host"}
RANKS = {"worker-01": [1, 3], "worker-02": [2, 4]}
GONE_SAID = "worker-02 (ranks 2, 4) is lost: no route to host"


def status(state: State, message: str = "") -> Status:
    return Status(state, 5, message, 1, "head", 0.0)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        # a run that says that it succeeded did
        (Observed(status("succeeded")), ("succeeded", "")),
        (Observed(status("succeeded"), 1, "quiet", GONE, RANKS, KILLED, True), ("succeeded", "")),
        # a node that is gone explains whatever the run says besides
        (Observed(status("failed", "ranks 2 did not answer"), 1, "", GONE, RANKS), ("lost", GONE_SAID)),
        (Observed(status("running"), 0, "quiet", GONE, RANKS, KILLED), ("lost", GONE_SAID)),
        (Observed(status("interrupted", "asked to stop"), 1, "", GONE, RANKS), ("lost", GONE_SAID)),
        (Observed(status("pending"), None, "", GONE, {}), ("lost", "worker-02 is lost: no route to host")),
        (
            Observed(status("running"), 1, "", {**GONE, "worker-01": "frozen"}, RANKS),
            ("lost", f"{GONE_SAID}; worker-01 (ranks 1, 3) is lost: frozen"),
        ),
        # an end that the user asked for
        (
            Observed(status("interrupted", "asked to stop"), 1, "", {}, RANKS, KILLED, stop_asked=True),
            ("interrupted", "asked to stop"),
        ),
        (Observed(status("interrupted", "asked to stop"), 0), ("interrupted", "asked to stop")),  # by hand
        (
            Observed(status("running"), 137, "quiet", {}, RANKS, KILLED, True, True),
            ("interrupted", "killed as asked; what came after the last checkpoint is lost"),
        ),
        # and one that nobody asked for: mpirun ended the server with the others
        (Observed(status("interrupted", "asked to stop"), 137, "", {}, RANKS, KILLED), ("lost", RANK_3)),
        (
            Observed(status("interrupted", "asked to stop"), 1, printed=TRACEBACK),
            ("lost", "its processes ended (exit code 1) without a word of the server"),
        ),
        (
            Observed(status("interrupted", "asked to stop"), 143),
            ("lost", "its processes ended (exit code 143) without a word of the server"),
        ),
        (
            Observed(status("interrupted", "asked to stop"), 0, printed=CUT),
            ("lost", "mpirun lost its connection to worker-03"),
        ),
        # the server's own word, whatever followed from it
        (Observed(status("failed", "step 4: diverged"), 1, "quiet", {}, RANKS, KILLED), ("failed", "step 4: diverged")),
        (Observed(status("lost", "ranks 2 are gone"), 1, "", {}, RANKS, TRACEBACK), ("lost", "ranks 2 are gone")),
        (Observed(status("lost", "ranks 3 are gone"), 1, "", {}, RANKS, KILLED), ("lost", RANK_3)),
        # what is known of a run that went without a word
        (Observed(status("running"), 137, "quiet", {}, RANKS, KILLED), ("lost", RANK_3)),
        (Observed(status("running"), 1, "", {}, RANKS, [*TRACEBACK, *KILLED]), ("lost", RANK_3)),
        (Observed(status("running"), 15, "no step for 41 s", {}, {}, TRACEBACK), ("lost", "no step for 41 s")),
        (
            Observed(status("pending"), 1, printed=TRACEBACK),
            ("failed", f"its processes ended (exit code 1): {MISSING}"),
        ),
        (
            Observed(status("running"), 1, printed=TRACEBACK),  # a worker's
            ("lost", "its processes ended (exit code 1) without a word of the server"),
        ),
        (
            Observed(status("running"), 0),
            ("lost", "its processes ended (exit code 0) without a word of the server"),
        ),
        (Observed(status("pending"), None), ("lost", "its processes ended without a word of the server")),
    ],
)
def test_a_verdict_follows_the_order_of_causes(seen: Observed, verdict: tuple[str, str]) -> None:
    assert judge(seen) == verdict


def test_every_killed_rank_is_found_across_line_breaks() -> None:
    other = (
        "prterun noticed that process rank 12 with PID 0 on node 10.0.0.12 exited on signal 11 (Segmentation fault)."
    )
    found = {3: RANK_3, 12: "rank 12 on 10.0.0.12 was killed by signal 11"}
    assert killed_ranks([*KILLED, other]) == found
    assert killed_ranks(["rank 3 was not killed"]) == killed_ranks([]) == {}


@pytest.mark.parametrize(
    "line",
    ["ValueError: no", "draco.errors.JobError: a: b", "pickle.PickleException: it", "  OSError: [2]: x"],
)
def test_the_last_line_of_a_traceback_is_an_error(line: str) -> None:
    found = judge(Observed(status("pending"), 1, printed=["KeyError: 'first'", line, "later words"]))
    assert found == ("failed", f"its processes ended (exit code 1): {line.strip()}")


@pytest.mark.parametrize(
    "line",
    [
        "no Error here", "Errors: 3", "PRTE ERROR: it", "loss: 3",
        "mpi4py.MPI.Exception: MPI_ERR_PROC_FAILED: process failure",  # of those who lost the one they spoke to
        "draco.errors.WorkerError: ranks 3 are gone",
    ],
)  # fmt: skip
def test_other_lines_are_no_errors_of_the_job(line: str) -> None:
    state, message = judge(Observed(status("pending"), 1, printed=[line]))
    assert state == "lost"
    assert message.endswith("without a word of the server")
