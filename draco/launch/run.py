"""One launch of a plan: its process is started, its progress shown from the run's own record, its end judged.

Whether a run succeeded is read from its state, never from the launcher's exit code, which is known to be 0 after the
loss of a node. What follows from the verdict is not said here: see decide.py and supervise.py.
"""

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from draco.launch import every_node
from draco.launch.environment import launch_environment
from draco.launch.interrupts import Interrupts
from draco.launch.judge import Observed, judge, killed_ranks, lost_daemons
from draco.launch.planned import Plan
from draco.launch.progress import Progress
from draco.launch.starting import printed_since
from draco.launch.sweep import sweep
from draco.runs import directory as run_directory
from draco.runs import stages
from draco.runs.directory import State

_POLL_S = 0.1
_LAST_WORDS_LINES = 25
_GRACE_S = 5.0  # between asking mpirun to end its ranks and killing it
_AFTER_END_S = 10.0  # in which the processes must be gone once the server has recorded its end
_SWEEP_LIMIT_S = 10.0
_HURRIED_LIMIT_S = 5.0  # for a node to which mpirun has lost its connection already: it is likely to be gone


class Ended(NamedTuple):
    """How a launch ended."""

    state: State
    message: str
    lost: Mapping[str, str] = {}  # nodes that went, each with the reason
    killed: Sequence[int] = ()  # ranks that died by a signal
    output: str = ""  # the last lines that its processes printed


Look = Callable[[], str]  # called again and again; says why the launch must be ended, or nothing


class Stops:
    """Who wants a launch to end: the user, or the supervisor, which starts again on other nodes.

    While it is entered a first interrupt asks the run to stop and a second one kills it, between launches too.
    """

    def __init__(self, directory: Path, progress: Progress) -> None:
        self._directory, self._progress = directory, progress
        self._interrupts = Interrupts(self._answer)
        self.process: subprocess.Popen[bytes] | None = None
        self.ours = False  # the supervisor has asked this launch to end
        self.kill = False  # the user would not wait for it, or there is no other way

    def __enter__(self) -> "Stops":
        self._interrupts.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._interrupts.__exit__()

    @property
    def asked(self) -> bool:
        """Whether the user asked for the end of the run."""
        return self._interrupts.count > 0 or (self._directory / "stop-asked").exists()

    def stop(self) -> None:
        """Ask this launch to end at its next step, on the supervisor's behalf."""
        self.ours = True
        (self._directory / "stop").touch()

    def _answer(self, count: int, name: str) -> None:
        if count == 1:
            try:
                run_directory.ask_to_stop(self._directory)
                self._progress.say(f"{name}: stopping after this step; once more kills the run")
                return
            except OSError as error:  # the server cannot be asked to stop
                self._progress.say(f"{name}: {self._directory} cannot be written ({error.strerror}): killing the run")
        self.kill = True
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)  # at once; `run` waits for it and kills it if need be


def run(
    plan: Plan,
    directory: Path,
    progress: Progress,
    stops: Stops,
    look: Look = lambda: "",
    gone: Mapping[str, str] = {},
) -> Ended:
    """Start the plan, wait for its end and leave no process of it behind.

    `gone` are the nodes that `look` has found to be lost, each with the reason, filled by the time it says so.
    """
    for path, text in plan.files:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    before = run_directory.read_status(directory)
    if before.state != "pending":
        run_directory.write_status(directory, "pending", before.step)  # what follows is told of this launch
    run_directory.reserve(directory)
    logs = directory / "logs"
    lengths = {path.name: path.stat().st_size for path in logs.iterdir()}
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # mpirun holds several files for every rank
    with open(logs / "output.log", "ab") as output:
        process = subprocess.Popen(
            plan.argv, env=launch_environment(os.environ, dict(plan.environment)), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    stops.process, stops.ours = process, False
    ended_because, final_polls = "", 0
    try:
        while process.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            progress.update()
            ended_because = ended_because or look()
            final_polls += not run_directory.read_status(directory).goes_on
            if ended_because or stops.kill or final_polls * _POLL_S > _AFTER_END_S:
                _kill(process)
    finally:
        _kill(process)
    progress.update()
    printed = printed_since(logs, lengths)
    silent = _end_leftovers(plan, directory, gone, lost_daemons(printed))
    status = run_directory.read_status(directory)
    # mpirun that has lost a node stops the server politely: nobody asked for such an interruption.
    asked = stops.asked or stops.ours
    settled = status.state == "succeeded" or (status.state == "interrupted" and asked)
    lost = dict(gone) if settled else {**silent, **gone}
    ranks = ranks_by_node(directory)
    seen = Observed(status, process.returncode, ended_because, lost, ranks, printed, asked, stops.kill, plan.starter)
    state, message = judge(seen)
    if plan.starter and status.state == "failed":  # the server has said why, and what starts ranks only that it ended
        printed = printed_since(logs, lengths, starter=False)
    words = "\n".join([line for line in printed if not stages.is_stage(line)][-_LAST_WORDS_LINES:])
    if state != "lost":
        return Ended(state, message, output=words)
    return Ended(state, message, lost, tuple(killed_ranks(printed)), words)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and its ranks: by SIGTERM, upon which mpirun ends them; by SIGKILL if that takes long."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_leftovers(plan: Plan, directory: Path, gone: Mapping[str, str], cut: Sequence[str] = ()) -> dict[str, str]:
    """Kill ranks that outlived mpirun, here and on the nodes that can be reached: they would join no other launch.

    Returns the nodes on which that could not be done, each with the reason. `cut` are those that mpirun has lost.
    """
    sweep(lambda run: run == str(directory))
    if plan.roster is None:
        return {}
    command = every_node.sweeping(plan.roster, str(directory))
    there = [node for node in plan.roster.nodes[1:] if node.name not in gone]
    hurried = [node.name for node in there if {node.name, node.address} & set(cut)]
    patient = [node.name for node in there if node.name not in hurried]
    silent: dict[str, str] = {}
    for names, limit_s in ((patient, _SWEEP_LIMIT_S), (hurried, _HURRIED_LIMIT_S)):
        answers = every_node.ask(plan.roster, command, limit_s=limit_s, only=names) if names else {}
        silent |= {name: answer.fault for name, answer in answers.items() if answer.fault}
    return silent


def ranks_by_node(directory: Path) -> dict[str, list[int]]:
    """Return the ranks of each node, as the run was last launched."""
    held: dict[str, list[int]] = {}
    for rank, node in enumerate(run_directory.nodes(directory) or [], start=1):
        held.setdefault(node, []).append(rank)
    return held
