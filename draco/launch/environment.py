"""The environment of every process that Draco starts: what it needs, and of the user's what no launch can suffer from.

A shell holds much that is meant for other programs: a scheduler's allocation, another MPI, another project's Ansible.
What is known to change a launch is left out, kind by kind. The rest is passed on, as code of the user's may need it. So
what a job computes depends on its file and on the machine, not on the shell that it was started from.
"""

import sys
import sysconfig
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from draco.determinism import REPEATABLE, WORKSPACE

if TYPE_CHECKING:
    from draco.job import Job


class Kind(NamedTuple):
    """Variables of one kind, by the patterns of their names."""

    names: tuple[str, ...]
    passed: bool
    why: str


KINDS = (  # the first that a name matches counts; a name that none matches is passed on
    Kind(
        ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"), True,
        "where Python may write bytecode, and what it prints: no result depends on it",
    ),
    Kind(
        ("PYTHON*", "__PYVENV_LAUNCHER__"), False,
        "another Python's packages, start-up files and warnings would take the place of ours, or end us",
    ),
    Kind(
        ("OMPI_*", "OPAL_*", "ORTE_*", "PRTE_*", "PMIX_*", "PMI_*", "MPI4PY_*", "MPIR_*", "HWLOC_*"), False,
        "parameters of another Open MPI, or of the mpirun in which this was started: ours would join it, or take them",
    ),
    Kind(
        ("MPI_*", "MPICH_*", "MPIEXEC_*", "HYDRA_*", "HYDI_*", "I_MPI_*", "MV2_*", "MVP_*", "PALS_*", "ALPS_*",
         "UCX_*", "FI_*", "PSM2_*", "PSM3_*"), False,
        "another MPI's, and what it is told of its network",
    ),
    Kind(
        ("SLURM*", "SBATCH_*", "SRUN_*", "SALLOC_*", "PBS_*", "COBALT_*", "LSB_*", "LSF_*", "LS_JOBPID", "SGE_*",
         "PE_HOSTFILE", "LOADL*", "FLUX_*", "OAR_*"), False,
        "a scheduler's allocation, in which mpirun would look for nodes: a launch names its own",
    ),
    Kind(
        ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
         "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_*"), False,
        "the torchrun in which this was started: ranks of ours would take its numbers for theirs",
    ),
    Kind(
        ("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "GOTO_*", "BLIS_*", "NUMEXPR_*", "VECLIB_*", "DNNL_*",
         "ONEDNN_*", "NPY_*", "ATEN_CPU_CAPABILITY"), False,
        "threads and instructions, on which bits depend, and cores, on one of which all ranks would be bound",
    ),
    Kind(("LD_LIBRARY_PATH",), True, "drivers may be found by it; our own libraries are put before what it names"),
    Kind(("LD_*",), False, "what is loaded into every process, such as another MPI's profiler"),
    Kind(("MPLBACKEND",), False, "a notebook's, which only the notebook has"),
    Kind(
        ("ANSIBLE_VAULT_*", "ANSIBLE_*_PASSWORD_FILE", "ANSIBLE_PRIVATE_KEY_FILE"), True,
        "what opens somebody's own inventory and machines",
    ),
    Kind(("ANSIBLE_*", "DEFAULT_*_PLUGIN_PATH"), False, "another project's Ansible: roles, plug-ins, inventory, form"),
    Kind(
        ("TF_VAR_*", "TF_CLI_ARGS*", "TF_WORKSPACE", "TF_DATA_DIR", "TF_INPUT", "TF_LOG*", "TF_REATTACH_PROVIDERS"),
        False, "another project's Terraform; where providers come from (TF_CLI_CONFIG_FILE) is passed on",
    ),
    Kind(
        ("BASH_ENV", "CDPATH", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GNUMAKEFLAGS"), False,
        "what shells and make on the way would read",
    ),
    Kind(
        ("DRACO_CODE", "DRACO_CODE_DIGEST", "DRACO_TRANSPORT", "DRACO_JOINED", "DRACO_SPARES_OTHERS"), False,
        "another run's transport, what started it, and where its own code is: a launch names its own",
    ),
    Kind(("COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE"), False, "a terminal's, and output goes to files"),
)  # fmt: skip

# What every process gets. The working folder holds jobs and data: a random.py in it is not Python's. Files are UTF-8
# in any locale.
ALWAYS = {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}

ASK_NVML = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

# The folders of Open MPI's libraries and of torch's, which others of the same names in LD_LIBRARY_PATH would hide.
_PREFIX = Path(sys.prefix, "lib")
LIBRARIES = (str(_PREFIX), str(_PREFIX / "openmpi"), str(Path(sysconfig.get_path("platlib"), "torch", "lib")))


def launch_environment(user: Mapping[str, str], needed: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process: of `user` what is passed on, then what all need, then `needed`.

    What a process so started passes on in its turn is the same.
    """
    kept = {name: value for name, value in user.items() if passes(name)}
    if others := kept.pop("LD_LIBRARY_PATH", ""):
        last = [folder for folder in others.split(":") if folder and folder not in LIBRARIES]
        kept["LD_LIBRARY_PATH"] = ":".join([*LIBRARIES, *last])
    return {**kept, **ALWAYS, **needed}


def passes(name: str) -> bool:
    """Say whether the user's variable of that name is passed on."""
    return next((kind.passed for kind in KINDS if any(fnmatchcase(name, each) for each in kind.names)), True)


def process_environment(threads: int) -> dict[str, str]:
    """Torch's threads and those of numpy's matrix products, on which bits depend; and large pages for large tensors.

    With 2 MiB pages the kernel copies replies between processes about a seventh faster (`make bench`: receive). Torch
    asks the driver's library NVML whether there are GPUs: asked itself, CUDA would be of no use in what is forked.
    """
    pools = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**pools, "THP_MEM_ALLOC_ENABLE": "1", **ASK_NVML}


def gpu_environment(job: "Job", user: Mapping[str, str]) -> dict[str, str]:
    """Return what the ranks of a job that computes on GPUs need besides; `user` is the environment of who starts them.

    With a workspace of this size cuBLAS gives the same bits each time (its manual, "Results reproducibility"). What the
    user has set holds for all ranks, wherever they are.
    """
    if job.device == "cpu" and job.server_device != "cuda":
        return {}
    return {WORKSPACE: user.get(WORKSPACE, REPEATABLE[0])}
