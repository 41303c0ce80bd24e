"""What several tests share: data made once, jobs in few words, and training inside this process."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before numpy is there: test processes on few cores make each other's BLAS threads wait, a hundred times as long.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Before a test uses a GPU: cuBLAS reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import posing
import pytest
import torch
from hypothesis import settings

from draco import data, files
from draco.job import Job, parse, to_yaml
from draco.launch import fork_client
from draco.launch.environment import launch_environment, process_environment
from draco.runs import directory as run_directory
from draco.tasks.building import build_task
from draco.training import build, checkpoint, device, greeting, process, repeatable, server, transport, worker
from draco.training.simulated_byzantine import ByzantineWorker

# Timings on a shared machine say nothing about correctness; in CI the same examples every time.
settings.register_profile("draco", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "draco")

ROOT = Path(__file__).parents[1]
JOB = """
name: test
workers: 5
launcher: simulate
model: lenet
data: synthetic
batch_size: 15
steps: 3
scheme: uncoded
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
checkpoint_every: 100
eval_every: 0
"""


# Files that take minutes, begun first where several processes share the work a file at a time.
LONG = ("test_aws.py", "test_cluster.py", "test_aws_start.py", "test_mpi.py", "test_infra.py", "test_hostile.py")
LONG += ("test_soak.py", "test_training.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = "" if torch.cuda.is_available() else "needs a GPU"
    if not why and os.environ.get("PYTEST_XDIST_WORKER"):
        why = "needs the GPU for itself: make test-gpu"
    for item in items:
        if why and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=why))
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the posing device there before any backward pass, in a process that runs nothing else.

    With a second device torch's autograd has threads, with which processes cannot be forked; some tests fork. Triton's
    kernels run in its interpreter there, which Triton reads when it is asked for the first of them.
    """
    if session.items and all(item.get_closest_marker("posing") for item in session.items) and shutil.which("g++"):
        os.environ["TRITON_INTERPRET"] = "1"
        posing.device()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bits depend on the number of threads; jobs use one by default."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _fork_server() -> Iterator[str]:
    environment = launch_environment(os.environ, process_environment(threads=1))
    with fork_client.ForkServer(environment) as name:
        yield name


@pytest.fixture
def forks(_fork_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands that a test starts have their ranks from one fork server, as torch's import is half their time.

    Not for tests of how a run gets a fork server of its own, or of another checkout's code.
    """
    monkeypatch.setenv(fork_client.NAME, _fork_server)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds `synthetic`."""
    root = tmp_path_factory.mktemp("data")
    data.prepare("synthetic", root)
    return root


@pytest.fixture
def make_job(data_root: Path) -> Callable[..., Job]:
    """Return `make(*overrides) -> Job`: the test job with `key=value` overrides."""
    return lambda *overrides: parse(JOB, "test", [f"data.root={data_root}", *overrides])


@pytest.fixture(params=[pytest.param("posing", marks=pytest.mark.posing), pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device that `device: cuda` means here: one that poses as a GPU, and a GPU where there is one.

    Equal work has equal bits there.
    """
    if request.param == "posing":
        if shutil.which("g++") is None:
            pytest.skip("needs g++")
        if not posing.device.cache_info().currsize:
            pytest.skip("needs a process without other tests: -m posing")
        monkeypatch.setattr(device, "GPU", posing.NAME)
        # To this device `module.to` moves no parameter in place as to a GPU, which would part tied ones.
        monkeypatch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)
        yield posing.device()
        return
    torch.cuda.init()
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield torch.device("cuda", 0)
    torch.use_deterministic_algorithms(before)


class Trained:
    """A finished (or stopped, or failed) run."""

    def __init__(self, run: Path) -> None:
        self.run = run

    @property
    def status(self) -> run_directory.Status:
        return run_directory.read_status(self.run)

    @property
    def model(self) -> torch.Tensor:
        """Every value of the model's state, flat."""
        path = checkpoint.newest(self.run / "checkpoints")
        assert path is not None
        state = checkpoint.load(path)["model"]
        return torch.cat([value.flatten().double() for value in state.values()])


Reply = Callable[[transport.Task, torch.Tensor, torch.Tensor], int | None]
Replace = Callable[[worker.Worker | ByzantineWorker], Reply]


@pytest.fixture
def train(tmp_path: Path, data_root: Path) -> Callable[..., Trained]:
    """Return `train(job, run=None, replace={rank: ...})`: run a job in this process, some workers replaced."""

    def built_of(job: Job) -> build.Built:
        here = job.data.model_copy(update={"root": str(data_root)})
        return build.Built(job, build_task(job.model_copy(update={"data": here})))

    def run_it(job: Job, run: Path | None = None, replace: dict[int, Replace] | None = None) -> Trained:
        if run is None:
            run = run_directory.create(tmp_path / "runs", job.name, to_yaml(job))
            files.replace(run / "secret", b"11" * 32)
        (run / "stop").unlink(missing_ok=True)
        if not replace:
            process.serve_all(built_of(job), run)
            return Trained(run)
        built = built_of(job)
        workers = process.simulated_workers(built.again())
        calls = [replace[w.rank](w) if w.rank in replace else w.reply for w in workers]
        greetings = [greeting.write(greeting.Greeting(greeting.platform_of(job)))] * job.workers
        momenta = [w.momenta for w in workers]
        with repeatable.settled(job, *process.used_here(job)):
            server.train(built, run, transport.Simulated(calls, greetings, momenta))
        return Trained(run)

    return run_it


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the working tree that shares its virtual environment and prepared data."""
    return copied(tmp_path)


def copied(folder: Path) -> Path:
    """Copy what the make targets need into a folder."""
    folders = ("ansible", "draco", "images", "infra", "jobs")
    for name in (*folders, "Makefile", "bootstrap.py", "pyproject.toml", "constraints.txt"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    _link_environment(Path(sys.executable).parents[1], folder / ".venv", folder)
    return folder


def _link_environment(whole: Path, here: Path, checkout: Path) -> None:
    """Make a virtual environment that is `whole` by links, but has the draco of another checkout."""
    here.mkdir()
    for entry in whole.iterdir():
        if entry.name != "lib":
            (here / entry.name).symlink_to(entry)
    (libraries,) = (whole / "lib").glob("python*")
    packages = here / "lib" / libraries.name / "site-packages"
    packages.mkdir(parents=True)
    for entry in (whole / "lib").iterdir():
        if entry != libraries:
            (here / "lib" / entry.name).symlink_to(entry)
    for entry in (libraries / "site-packages").iterdir():
        if not entry.name.startswith("__editable__"):
            (packages / entry.name).symlink_to(entry)
    (packages / "draco.pth").write_text(f"{checkout.resolve()}\n")
