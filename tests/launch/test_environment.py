"""A launch's own environment: what of the user's shell is passed on, and that no shell keeps a launch from training."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draco.job import parse
from draco.launch.environment import ALWAYS, KINDS, LIBRARIES, launch_environment, passes
from draco.launch.plan import plan

NAMES = (
    st.sampled_from([name.replace("*", tail) for kind in KINDS for name in kind.names for tail in ("", "X")])
    | st.text()
)
SHELLS = st.dictionaries(NAMES, st.text() | st.lists(st.sampled_from(["/a", "/b", "", *LIBRARIES])).map(":".join))

DROPPED = """
SLURM_JOBID SLURM_NODELIST SLURMD_NODENAME PBS_JOBID PBS_NODEFILE LSB_JOBID SGE_ROOT PE_HOSTFILE FLUX_URI
COBALT_JOBID LOADL_STEP_ID PMI_RANK PMIX_RANK PMIX_NAMESPACE PMIX_MCA_gds PRTE_MCA_plm PRTE_LAUNCHED OMPI_MCA_btl
OMPI_COMM_WORLD_RANK OPAL_PREFIX MPI4PY_RC_INITIALIZE I_MPI_FABRICS HYDRA_LAUNCHER HWLOC_XMLFILE UCX_TLS PYTHONPATH
PYTHONHOME PYTHONSTARTUP PYTHONWARNINGS PYTHONOPTIMIZE PYTHONHASHSEED PYTHONINSPECT LD_PRELOAD LD_AUDIT OMP_DYNAMIC
OMP_PROC_BIND GOMP_CPU_AFFINITY KMP_AFFINITY MKL_CBWR OPENBLAS_CORETYPE ATEN_CPU_CAPABILITY MPLBACKEND ANSIBLE_CONFIG
ANSIBLE_ROLES_PATH TF_VAR_region TF_CLI_ARGS TF_CLI_ARGS_apply TF_WORKSPACE TF_DATA_DIR BASH_ENV MAKEFLAGS COLUMNS
RANK WORLD_SIZE MASTER_ADDR LOCAL_RANK TORCHELASTIC_USE_AGENT_STORE DRACO_SPARES_OTHERS
"""
PASSED = """
HOME PATH USER TMPDIR LANG LC_ALL TZ TERM CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES CUBLAS_WORKSPACE_CONFIG
https_proxy HTTPS_PROXY NO_PROXY SSL_CERT_FILE REQUESTS_CA_BUNDLE AWS_PROFILE AWS_REGION SSH_AUTH_SOCK DISPLAY
XDG_CACHE_HOME HF_HOME TORCH_HOME PYTORCH_ALLOC_CONF MALLOC_ARENA_MAX DOCKER_HOST TF_CLI_CONFIG_FILE
TF_PLUGIN_CACHE_DIR TF_CPP_MIN_LOG_LEVEL ANSIBLE_VAULT_PASSWORD_FILE PYTHONDONTWRITEBYTECODE MY_DATA SLURP MPIX
"""


def test_what_would_change_a_launch_is_left_out() -> None:
    names = DROPPED.split()
    assert [name for name in names if launch_environment({name: "x"}, {}) != ALWAYS] == []
    assert [name for name in names if launch_environment({name: "x"}, {name: "ours"})[name] != "ours"] == []


def test_what_the_users_code_may_need_is_passed_on() -> None:
    names = PASSED.split()
    assert [name for name in names if launch_environment({name: "x"}, {}) != {name: "x", **ALWAYS}] == []


def test_our_libraries_come_before_those_that_the_user_names() -> None:
    made = launch_environment({"LD_LIBRARY_PATH": f"/usr/local/cuda/lib64::{LIBRARIES[1]}:/opt/mpi/lib"}, {})
    assert made["LD_LIBRARY_PATH"].split(":") == [*LIBRARIES, "/usr/local/cuda/lib64", "/opt/mpi/lib"]
    assert "LD_LIBRARY_PATH" not in launch_environment({"LD_LIBRARY_PATH": ""}, {})


@given(SHELLS, SHELLS)
def test_it_is_what_was_needed_and_what_passes_and_nothing_else(
    user: Mapping[str, str], needed: Mapping[str, str]
) -> None:
    made = launch_environment(user, needed)
    assert {name: made[name] for name in needed} == needed
    assert {name for name in made if name not in needed and name not in ALWAYS} <= {
        name for name in user if passes(name)
    }
    again = launch_environment(made, needed)
    assert launch_environment(again, needed) == again
    assert launch_environment(launch_environment(user, {}), {}) == launch_environment(user, {})


def test_every_kind_says_why_and_none_is_hidden_by_one_before_it() -> None:
    for index, kind in enumerate(KINDS):
        assert re.match(r"[a-z].{20,}[^.]$", kind.why)
        for name in kind.names:
            example = name.replace("*", "_x")
            first = next(i for i, each in enumerate(KINDS) if any(_matches(example, n) for n in each.names))
            assert first == index, example


def _matches(name: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) is not None


def test_this_process_is_not_changed() -> None:
    before = dict(os.environ)
    launch_environment(os.environ, {"A": "b"})
    assert dict(os.environ) == before


# Launches. A program of two ranks takes half a second where training takes seven; the plan is that of a job.

JOB = "{name: a, workers: 1, model: fc, data: synthetic, batch_size: 8, steps: 1, scheme: uncoded, eval_every: 0}"
ROUND = ("-m", "mpi4py", "-m", "draco.launch.round_trip")
HOME = "import os; from mpi4py import MPI; print(os.environ['HOME'])"


def bad_library(folder: Path) -> dict[str, str]:
    """A library of PMIx's name that has nothing in it."""
    made = subprocess.run(
        ["cc", "-shared", "-x", "c", "-o", str(folder / "libpmix.so.2"), os.devnull], capture_output=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return {"LD_LIBRARY_PATH": str(folder)}


def bad_module(folder: Path) -> dict[str, str]:
    (folder / "numpy.py").write_text("raise SystemExit('not numpy')")
    return {"PYTHONPATH": str(folder)}


def bad_parameters(folder: Path) -> dict[str, str]:
    """A home with parameters for each of Open MPI's three parts."""
    for part, text in ((".openmpi", "coll = none"), (".pmix", "gds = none"), (".prte", "rmaps = none")):
        (folder / part).mkdir()
        (folder / part / "mca-params.conf").write_text(f"{text}\n")
    return {"HOME": str(folder)}


SHELLS_THAT_BREAK_MPIRUN = {
    "a shell inside a Slurm allocation": lambda _: {"SLURM_JOBID": "1"},
    "of PBS": lambda _: {"PBS_JOBID": "1", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_NODEFILE": "/nonexistent"},
    "of Cobalt": lambda _: {"COBALT_JOBID": "1"},
    "parameters of PMIx": lambda _: {"PMIX_MCA_gds": "none"},
    "parameters of PRRTE": lambda _: {"PRTE_MCA_rmaps": "none"},
    "parameters of Open MPI": lambda _: {"OMPI_MCA_coll": "none"},
    "settings of mpi4py": lambda _: {"MPI4PY_RC_INITIALIZE": "false"},
    "another Python": lambda _: {"PYTHONHOME": "/nonexistent"},
    "another PMIx": bad_library,
    "another Python's packages": bad_module,
    "parameters in the home folder": bad_parameters,
    "no home": lambda _: {"HOME": ""},
}


def launched(
    environment: Mapping[str, str], *rank: str, home: str | None = "/home/me"
) -> subprocess.CompletedProcess[str]:
    """Run a program as the ranks of a job, in that environment; without `home` it is not told to them."""
    made = plan(parse(JOB, "test"), Path("runs/a-1"), home=home)
    argv = [*made.argv[: made.argv.index("-m")], *rank]
    if home is None:
        del argv[argv.index("-x") : argv.index("-x") + 2]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("shell", SHELLS_THAT_BREAK_MPIRUN)
def test_no_shell_keeps_ranks_from_starting(shell: str, tmp_path: Path) -> None:
    user = {**os.environ, **SHELLS_THAT_BREAK_MPIRUN[shell](tmp_path)}
    if not user["HOME"]:
        del user["HOME"]
    needed = dict(plan(parse(JOB, "test"), Path("runs/a-1")).environment)
    with_it = launched(launch_environment(user, needed), *ROUND)
    assert (with_it.returncode, with_it.stdout[:5]) == (0, '{"1":'), with_it.stderr
    del needed["HOME"]
    without = launched({**needed, **user}, *ROUND, home=user.get("HOME"))
    assert without.returncode != 0  # or the case is none


def test_ranks_have_the_users_home_and_mpirun_has_none() -> None:
    needed = dict(plan(parse(JOB, "test"), Path("runs/a-1")).environment)
    made = launched(launch_environment(os.environ, needed), "-c", HOME)
    assert (made.returncode, made.stdout) == (0, "/home/me\n" * 2), made.stderr
    assert needed["HOME"] == "/nonexistent"


def test_a_launch_inside_an_mpirun_is_one_of_its_own() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; from test_environment import nested; nested()"
    outer = plan(parse(JOB, "test", ["workers=1"]), Path("runs/a-1"))
    argv = [*outer.argv[: outer.argv.index("-m")], "-c", code]
    made = subprocess.run(
        argv, env=launch_environment(os.environ, dict(outer.environment)), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.count('{"1":') == 2  # each of the outer two ranks has started two


def nested() -> None:
    needed = dict(plan(parse(JOB, "test"), Path("runs/a-1")).environment)
    assert "PMIX_RANK" in os.environ
    inner = launched(launch_environment(os.environ, needed), *ROUND)
    sys.stdout.write(inner.stdout)
    sys.exit(inner.returncode)


def test_a_job_trains_in_a_folder_full_of_modules_from_a_shell_full_of_variables(
    tmp_path: Path, data_root: Path
) -> None:
    """The whole command, with what cannot be told apart by a small program: torch, the supervisor, closed files."""
    for name in ("random", "queue", "torch", "numpy", "select"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hidden by the working folder')")
    (tmp_path / "job.yaml").write_text(JOB.replace("data: synthetic", f"data: {{name: synthetic, root: {data_root}}}"))
    shell = {
        "SLURM_JOBID": "1", "PBS_JOBID": "1", "PBS_ENVIRONMENT": "x", "PRTE_MCA_rmaps": "none", "OMPI_MCA_coll": "none",
        "PMIX_MCA_gds": "none", "MPI4PY_RC_INITIALIZE": "false", "MPLBACKEND": "module://no_such_module",
        "TMPDIR": "/nonexistent", "LC_ALL": "xx_YY", "TERM": "nothing", "OMP_PROC_BIND": "true",
        "OMP_PLACES": "{0}", "KMP_AFFINITY": "compact", "OMP_DYNAMIC": "true", "PYTHONWARNINGS": "error",
        "PYTHONSTARTUP": "/nonexistent", "ANSIBLE_CONFIG": "/nonexistent", **bad_parameters(tmp_path),
    }  # fmt: skip
    command = f"umask 077; ulimit -S -n 32; exec {sys.executable} -m draco train job.yaml --here <&-"
    made = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={**os.environ, **shell}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert "succeeded" in made.stdout


def test_figures_are_drawn_whatever_a_notebook_or_a_file_of_the_folder_says_of_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.facecolor: red\n")
    code = "from draco.report import figures; f = figures.quality([], 'top1')"
    code += "; print(len(figures.encoded(f, 'png')) > 1000)"
    code += "; print({k: v for k, v in figures.mpl.rcParams.items() if v != figures.mpl.rcParamsDefault[k]}.keys())"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.x"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.stdout == "True\ndict_keys([])\n", made.stdout + made.stderr


# These start ssh, docker, ip and ssh-keygen only, which are as they are in the user's shell.
IN_THE_SHELL = {
    "cluster/engine.py", "cluster/interrupt.py", "cluster/lifecycle.py", "cluster/remote.py", "cluster/ssh.py",
    "cluster/ssh_key.py", "cluster/configure.py", "cluster/gpus.py", "cluster/aws/registry.py", "launch/every_node.py",
    "launch/notices.py",
}  # fmt: skip
PACKAGE = Path(__file__).parents[2] / "draco"


def starts(node: ast.AST) -> bool:
    """Say whether a node is a call of subprocess.run or subprocess.Popen."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="subprocess"), attr="run" | "Popen")):
            return True
    return False


def test_every_process_is_started_in_an_environment_of_ours() -> None:
    without = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        started = [node for node in ast.walk(ast.parse(text)) if starts(node)] if "subprocess" in text else []
        lines = [call.lineno for call in started if "env" not in [keyword.arg for keyword in call.keywords]]
        without |= {str(path.relative_to(PACKAGE)): lines} if lines else {}
    assert without.keys() == IN_THE_SHELL, without
