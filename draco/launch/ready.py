"""What a run on this machine, which may be a cluster's head, needs before its processes start.

`draco train` and `draco.run` both come through here: the machine is looked at, the nodes and the data are seen to, and
a run directory is taken. What is said goes to the console of whoever asks.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from draco import files
from draco.code.gather import Gathered
from draco.errors import MissingError
from draco.files import expanded
from draco.job import Job
from draco.launch import not_started, plan, preflight, rank_placement, space, worker_code, worker_data
from draco.launch.environment import ASK_NVML
from draco.launch.joining import Joined
from draco.launch.resume import Taken, code_of, new_run, unfinished
from draco.launch.roster import Roster
from draco.runs import directory as run_directory


def here(job: Job) -> Job:
    """Return a job that is to train on this machine, with `~` and variables in its paths replaced.

    Raises:
        MissingError: a variable is not set.
    """
    paths = {key: str(expanded(path)) for key in ("root", "source") if (path := getattr(job.data, key)) is not None}
    file = job.weights.file
    weights = job.weights.model_copy(update={"file": file and str(expanded(file))})
    return job.model_copy(update={"data": job.data.model_copy(update=paths), "weights": weights})


def require(what: str, job: Job, nodes: Roster | None = None, place: Joined | None = None) -> None:
    """Make sure that this machine has what a job asks of it.

    Args:
        what: the job, by its file as a rule.
        job: what is to be run.
        nodes: the cluster's whose head this machine is, or None.
        place: of this process among those that somebody else has started, or None.

    Raises:
        MissingError: a package, a device or shared memory is missing.
    """
    if any(logger.name == "tensorboard" for logger in job.loggers) and find_spec("tensorboard") is None:
        raise MissingError(f"{what}: tensorboard: the package is missing; make setup EXTRAS=tensorboard")
    here = plan.of(job).here
    if place or here:
        require_device(what, job.server_device, "server_device")
    if place.alone if place else here and (nodes is None or len(nodes.nodes) == 1):
        require_device(what, job.device)
    if fault := not_started.shared_memory_fault(job):
        raise MissingError(fault)


def require_device(what: str, device: str, key: str = "device") -> None:
    """Make sure that the device is on this machine that a job asks for by `key`.

    Raises:
        MissingError: it is not.
    """
    if device == "cuda" and not _sees_gpu():
        raise MissingError(
            f"{what}: {key}: cuda, but torch sees no GPU on this machine; {key}=cpu, or make setup TORCH=cuda"
        )


def _sees_gpu() -> bool:
    """Say whether torch sees a GPU. CUDA is not begun for that: it would be of no use in what forks from here later."""
    import torch

    before = {name: os.environ[name] for name in ASK_NVML if name in os.environ}
    os.environ.update(ASK_NVML)
    try:
        return torch.cuda.is_available()
    finally:
        for name in ASK_NVML:
            del os.environ[name]
        os.environ.update(before)


def require_allocation(job: Job, runs: Path, said: Console) -> None:
    """Make sure that a scheduler on whose nodes a job is to train has given them, and that they see its runs.

    Raises:
        MissingError: there is no allocation here, or it is too small.
        NotConfiguredError: a node does not see the runs, or is not as this one.
    """
    launcher = plan.of(job)
    if launcher.allocation and launcher.meet:
        launcher.allocation(job)
        runs.mkdir(parents=True, exist_ok=True)
        with said.status("asking the nodes of the allocation"):
            launcher.meet(job, runs)


def warn_of_nodes(job: Job, nodes: Roster, said: Console) -> None:
    """Say which promises of the job do not hold on these nodes.

    Raises:
        MissingError: the job asks for GPUs that the head, or all nodes of workers, lack.
    """
    rank_placement.require_gpus(job, nodes)
    for warning in rank_placement.warnings(job, nodes, rank_placement.place(nodes, job.workers, job.device)):
        said.print(f"warning: {warning}", style="yellow", highlight=False)


def prepare_data(job: Job, said: Console) -> None:
    """Download or convert a job's data set, unless it is there; a job's own task has no data of Draco's."""
    from draco import data

    if job.data.name is None:
        return
    source = Path(job.data.source) if job.data.source else None
    with said.status(f"preparing {job.data.name}"):
        data.prepare(job.data.name, Path(job.data.root), source, own=job.data.own)


def _see_to(job: Job, own: Gathered, nodes: Roster | None, said: Console, checked: bool) -> None:
    """Check the nodes, and prepare data and code here and there."""
    if nodes:
        with said.status(f"checking {len(nodes.nodes)} nodes"):
            preflight.check(nodes, own.found.needs)
        with said.status("sending the job's own code"):
            worker_code.provide(nodes, own.pack)
    if job.data.name is None:
        return
    if not (checked and Path(job.data.root, job.data.name).exists()):  # else the ranks look whether it is whole
        prepare_data(job, said)
    if nodes:
        with said.status(f"preparing {job.data.name} on the workers"):
            worker_data.provide(nodes, job)


def take(
    runs: Path,
    job: Job,
    own: Gathered,
    nodes: Roster | None,
    said: Console,
    *,
    resume: bool,
    new: bool,
    as_recorded: bool = False,
    secret: Path | None = None,
    checked: bool = False,
) -> Taken:
    """See to nodes, data and code, and return the run directory, taken: a new one, or the unfinished one to go on with.

    Args:
        runs: where runs are kept.
        job: what is to be run.
        own: its own code, as it is now.
        nodes: the cluster's, or None for this machine alone.
        said: where is said what it takes and what is waited for.
        resume: go on with the newest unfinished run of this job.
        new: start anew beside it.
        as_recorded: go on with the code that the run has recorded, whatever the job's files are now.
        secret: a file with the secret of a new run, to replay another.
        checked: somebody has looked at the job before, and prepared its data.

    Raises:
        RefusedError: there is an unfinished run and neither word was given, or its own code was another.
        MissingError: nodes, data or space on the disk are missing.
    """
    given = _secret(secret) if secret else b""
    taken = unfinished(runs, job, resume=resume, new=new)
    try:
        said.print(space.require(runs, [(job, taken and taken.run)]), highlight=False)
        own = own if taken is None else code_of(taken.run, job, own, as_recorded=as_recorded)
        _see_to(job, own, nodes, said, checked)
        if taken is None:
            taken = new_run(runs, job, own.pack)
            if given:
                files.replace(taken.run / "secret", given, mode=0o600)
        run_directory.forget_stop(taken.run)
    except BaseException:
        if taken:
            taken.hold.release()
        raise
    return taken


def _secret(path: Path) -> bytes:
    """Return a run's secret from a file.

    Raises:
        MissingError: it holds something else.
    """
    content = path.read_bytes()
    try:
        whole = len(bytes.fromhex(content.decode())) > 0
    except ValueError:
        whole = False
    if not whole:
        raise MissingError(f"{path}: is no run's secret, which is a line of hexadecimal digits as in runs/*/secret")
    return content
