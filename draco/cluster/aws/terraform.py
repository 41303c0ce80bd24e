"""Terraform on a copy of one of the roots in infra/: its progress in words, and its failures as sentences.

The copy is in the cluster's own folder and holds the state, unless that is kept in a bucket. Terraform writes to a
file and has its own session: if Draco is killed, Terraform finishes and saves its state. At the deadline or for Ctrl-C
it gets one SIGINT and is then waited for. A second one would lose the state.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from draco import files
from draco.cluster.aws import account
from draco.cluster.aws.settings import Bucket
from draco.errors import DracoError, MissingError, NoCapacityError, NotConfiguredError, RefusedError
from draco.launch.environment import launch_environment

Say = Callable[[str], None]

ROOTS = Path(__file__).parents[3] / "infra"
LOCK_TIMEOUT_S = 20
_LOOK_S = 0.1
_NO_CAPACITY = {
    "InsufficientInstanceCapacity", "InsufficientCapacity", "InsufficientHostCapacity", "UnfulfillableCapacity",
    "ReservationCapacityExceeded",
    "SpotMaxPriceTooLow", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "InstanceLimitExceeded", "Unsupported",
}  # fmt: skip
_CODE = re.compile(r"api error (\w+): (.*?)(?:\n|$)")


class _Fault(NamedTuple):
    address: str  # of the resource; may be empty
    summary: str
    detail: str


def require() -> None:
    """Raise a MissingError unless Terraform is there."""
    if not shutil.which("terraform"):
        raise MissingError("terraform is not on PATH: install 1.10 or newer (make doctor says what else is missing)")


def prepare(root: str, folder: Path, variables: Mapping[str, Any], bucket: Bucket | None = None) -> None:
    """Make `folder` a copy of infra/<root> with these variables; state and plugins in it stay."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for stale in [*folder.glob("*.tf"), *folder.glob("*.tftpl")]:
        stale.unlink()
    for source in (ROOTS / root).iterdir():
        if source.name == "files":
            shutil.copytree(source, folder / "files", dirs_exist_ok=True)
        elif source.suffix in (".tf", ".tftpl", ".hcl"):
            shutil.copy2(source, folder)
    place: dict[str, Any] = {"local": {"path": "terraform.tfstate"}}
    if bucket:
        place = {"s3": {"bucket": bucket.name, "key": bucket.key, "region": bucket.region,
                        "encrypt": True, "use_lockfile": True}}  # fmt: skip
    _write(folder / "backend.tf.json", {"terraform": {"backend": place}})
    _write(folder / "terraform.tfvars.json", variables)


def known(folder: Path) -> bool:
    """Say whether a root was ever prepared there."""
    return (folder / "backend.tf.json").exists()


def bucket(folder: Path) -> Bucket | None:
    """Return where the state of a root that was prepared is kept, if not in the copy."""
    place = json.loads((folder / "backend.tf.json").read_text())["terraform"]["backend"].get("s3")
    return Bucket(place["bucket"], place["key"], place["region"]) if place else None


def variables(folder: Path) -> dict[str, Any]:
    """Return the variables that a root was prepared with."""
    found: dict[str, Any] = json.loads((folder / "terraform.tfvars.json").read_text())
    return found


def apply(folder: Path, say: Say, limit_s: float = 1200) -> None:
    """Create what the copy in `folder` describes.

    Raises:
        NoCapacityError: AWS has no such instances now; what was created stays and is in the state.
        MissingError: credentials, permissions or a tool are missing.
        RefusedError: somebody else holds the lock of the state.
        NotConfiguredError: anything else; the same command goes on from there.
        KeyboardInterrupt: after Terraform has stopped and saved its state.
    """
    _init(folder, say)
    _run(folder, ["apply", "-auto-approve", *_OPTIONS], say, limit_s)


def destroy(folder: Path, say: Say, limit_s: float = 1200) -> None:
    """Remove everything that the state in `folder` names; raises as `apply` does."""
    _init(folder, say)
    _run(folder, ["destroy", "-auto-approve", *_OPTIONS], say, limit_s)


def outputs(folder: Path) -> dict[str, Any]:
    """Return the values of the root's outputs; empty where nothing was made yet."""
    made = subprocess.run(
        ["terraform", "output", "-json"], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise NotConfiguredError(f"terraform output in {folder}: {made.stderr.strip()}")
    return {name: value["value"] for name, value in json.loads(made.stdout).items()}


def values(folder: Path) -> set[str]:
    """Return every string that the state holds, ids among them."""
    made = subprocess.run(
        ["terraform", "show", "-json"], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise NotConfiguredError(f"terraform show in {folder}: {made.stderr.strip()}")
    return set(_strings(json.loads(made.stdout)))


def _strings(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    for inner in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _strings(inner)


_OPTIONS = ("-input=false", f"-lock-timeout={LOCK_TIMEOUT_S}s")


def _write(path: Path, values: Mapping[str, Any]) -> None:
    files.replace(path, json.dumps(dict(values), indent=1).encode())


def _environment() -> dict[str, str]:
    return launch_environment(os.environ, {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"})


def _init(folder: Path, say: Say) -> None:
    """Set provider and backend up, unless neither changed."""
    require()
    done, now = folder / "initialised", (folder / "backend.tf.json").read_text() + _lock(folder)
    if done.exists() and done.read_text() == now and (folder / ".terraform").exists():
        return
    say("setting Terraform up")
    made = subprocess.run(
        ["terraform", "init", "-input=false", "-no-color", "-reconfigure"],
        cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise _sentence([_Fault("", "terraform init", made.stderr.strip())], folder)
    done.write_text((folder / "backend.tf.json").read_text() + _lock(folder))


def _lock(folder: Path) -> str:
    path = folder / ".terraform.lock.hcl"
    return path.read_text() if path.exists() else ""


def _run(folder: Path, arguments: Sequence[str], say: Say, limit_s: float) -> None:
    log = folder / "terraform.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            ["terraform", arguments[0], "-json", *arguments[1:]],
            cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    faults: list[_Fault] = []
    deadline = time.monotonic() + limit_s
    with _asking(process, say) as stop:
        for event in _events(log, process):
            if event is not None and (fault := _shown(event, say)):
                faults.append(fault)
            if time.monotonic() > deadline:
                stop("time")
    if stop.why == "user":
        raise KeyboardInterrupt
    if process.returncode and stop.why == "time":
        raise _late(faults, limit_s, folder)
    if process.returncode:
        raise _sentence(faults or [_Fault("", f"exit code {process.returncode}", "")], folder)


class _Stop:
    """The request to Terraform to stop, sent once only; `why` says who asked, and "user" outranks "time"."""

    def __init__(self, process: "subprocess.Popen[bytes]", say: Say) -> None:
        self._process, self._say = process, say
        self.why = ""

    def __call__(self, why: str) -> None:
        if not self.why:
            self._process.send_signal(signal.SIGINT)
        if self.why in ("", "time") and why != self.why:
            late = "taking too long: " if why == "time" else ""
            self._say(f"{late}stopping: Terraform finishes what is under way and saves its state; please wait")
            self.why = why


@contextmanager
def _asking(process: "subprocess.Popen[bytes]", say: Say) -> Iterator[_Stop]:
    """Let signals to this process stop Terraform."""
    stop = _Stop(process, say)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, lambda *_: stop("user")) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _events(log: Path, process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any] | None]:
    """Yield Terraform's messages as they are written, None now and then, until it has ended."""
    rest = b""
    with open(log, "rb") as file:
        while True:
            ended = process.poll() is not None  # before reading: what it wrote last is still read
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                yield _event(line)
            if ended:
                return
            yield None
            time.sleep(_LOOK_S)


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:  # a panic, or the provider's own words
        event = None
    return event if isinstance(event, dict) else {"type": "other", "@message": line.decode(errors="replace")}


def _shown(event: Mapping[str, Any], say: Say) -> _Fault | None:
    """Report the progress in an event; return the event if it is a fault."""
    if event["type"] in ("apply_start", "refresh_start"):
        hook = event["hook"]
        say(f"{hook.get('action', 'read')} {hook['resource']['addr']}")
    if event["type"] != "diagnostic" or event["diagnostic"]["severity"] != "error":
        return None
    told = event["diagnostic"]
    return _Fault(told.get("address", ""), told["summary"], told.get("detail", ""))


def _late(faults: Sequence[_Fault], limit_s: float, folder: Path) -> DracoError:
    """Return the error of a run that was stopped: no capacity, if it was waiting for instances."""
    told = {fault.address: fault for fault in faults}
    waiting = [address for address in told if address.startswith("aws_instance.")]
    if waiting:
        return NoCapacityError(f"{', '.join(sorted(waiting))}: no capacity within {limit_s:.0f} s")
    return NotConfiguredError(f"Terraform took more than {limit_s:.0f} s and was stopped; all of it: {folder}")


def _sentence(faults: Sequence[_Fault], folder: Path) -> DracoError:
    """Return one error for all faults; the most telling fault decides its kind."""
    lines: list[str] = []
    errors: list[DracoError] = []
    for fault in faults:
        text = f"{fault.summary}: {fault.detail}"
        where = f"{fault.address}: " if fault.address else ""
        if "state lock" in fault.summary:
            who = re.search(r"Who:\s+(\S+)", fault.detail)
            return RefusedError(
                f"somebody else{f' ({who[1]})' if who else ''} is changing this cluster just now; wait, or, if that "
                f"process is dead, terraform -chdir={folder} force-unlock (its ID is in {folder}/terraform.log)"
            )
        if found := _CODE.search(text):
            if found[1] in _NO_CAPACITY:
                errors.append(NoCapacityError(f"{where}{found[1]}: {found[2]}"))
                continue
            errors.append(account.refusal(fault.address or fault.summary, found[1], found[2]))
            continue
        if "xpired" in text and "oken" in text:
            errors.append(account.refusal(fault.address or fault.summary, "ExpiredToken", ""))
        elif "No valid credential sources found" in text:
            errors.append(MissingError(f"{fault.summary}: no AWS credentials; make doctor"))
        lines.append(f"{where}{' '.join(text.split())[:500]}")
    for kind in (MissingError, NoCapacityError):  # without credentials nothing else matters
        telling = [error for error in errors if isinstance(error, kind)]
        if telling and (kind is MissingError or len(telling) == len(faults)):
            return kind("\n".join(dict.fromkeys(map(str, telling))))
    said = [*dict.fromkeys([*map(str, errors), *lines])]
    return NotConfiguredError("\n".join([*said, f"all of it: {folder / 'terraform.log'}; the same command goes on"]))
