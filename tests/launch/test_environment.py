"""A launch's own environment: what of the user's shell is passed on, and that no shell keeps a launch from training."""

import os
import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draco.launch.environment import ALWAYS, KINDS, LIBRARIES, launch_environment, passes

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
"""
PASSED = """
HOME PATH USER TMPDIR LANG LC_ALL TZ TERM CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES CUBLAS_WORKSPACE_CONFIG
https_proxy HTTPS_PROXY NO_PROXY SSL_CERT_FILE REQUESTS_CA_BUNDLE AWS_PROFILE AWS_REGION SSH_AUTH_SOCK DISPLAY
XDG_CACHE_HOME HF_HOME TORCH_HOME PYTORCH_ALLOC_CONF MALLOC_ARENA_MAX DOCKER_HOST TF_CLI_CONFIG_FILE
TF_PLUGIN_CACHE_DIR TF_CPP_MIN_LOG_LEVEL ANSIBLE_VAULT_PASSWORD_FILE PYTHONDONTWRITEBYTECODE MY_DATA SLURP MPIX
"""


@pytest.mark.parametrize("name", DROPPED.split())
def test_what_would_change_a_launch_is_left_out(name: str) -> None:
    assert launch_environment({name: "x"}, {}) == ALWAYS
    assert launch_environment({name: "x"}, {name: "ours"})[name] == "ours"


@pytest.mark.parametrize("name", PASSED.split())
def test_what_the_users_code_may_need_is_passed_on(name: str) -> None:
    assert launch_environment({name: "x"}, {}) == {name: "x", **ALWAYS}


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
