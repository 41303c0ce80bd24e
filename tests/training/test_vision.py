"""The torchvision shim, in fresh processes: with packages that stand in for each case, and with the installed one.

`torch.library.register_fake` on an operator that does not exist is what fails inside the real torchvision.
"""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
NEEDS_OPERATORS = """
import torch, torchvision.early
for op in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{op}")(lambda *_: None)
whole = True
"""


def run(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(map(str, [path, REPOSITORY] if path else [REPOSITORY]))
    code = "import sys, torch\nfrom draco.models.vision import torchvision\n" + code
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": search},
    )


def fake(folder: Path, code: str) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    (package / "early.py").write_text("import sys\nsys.imports = getattr(sys, 'imports', 0) + 1\n")
    return folder


def test_only_missing_operators_make_a_difference(tmp_path: Path) -> None:
    packages = {
        "whole": "import torchvision.early",
        "other": "raise RuntimeError('compiled with different CUDA major versions')",
        "inner": "import no_such_package_anywhere",
        "lacking": NEEDS_OPERATORS,  # last: what it defines stays
    }
    for name, code in packages.items():
        (tmp_path / name).mkdir()
        fake(tmp_path / name, code)
    done = run(
        f"""
for name in {list(packages)}:
    sys.path.insert(0, {str(tmp_path)!r} + "/" + name)
    try:
        print(name, torchvision() is sys.modules["torchvision"], sys.imports)
    except Exception as error:
        print(name, type(error).__name__, error)
    torchvision.cache_clear()
    sys.imports = 0
    print([op for op in ("nms", "qnms") if hasattr(torch.ops.torchvision, op)])
    for module in [module for module in sys.modules if module.startswith("torchvision")]:
        del sys.modules[module]
    del sys.path[0]
sys.path = [path for path in sys.path if "site-packages" not in path]
try:
    torchvision()
except Exception as error:
    print(type(error).__name__, error)
"""
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["whole True 1", "[]"]
    assert lines[2:4] == ["other RuntimeError compiled with different CUDA major versions", "[]"]
    assert lines[4:6] == ["inner ModuleNotFoundError No module named 'no_such_package_anywhere'", "[]"]
    assert lines[6:8] == ["lacking True 2", "['nms', 'qnms']"]  # imported twice, each time from its first line
    assert lines[8].startswith("MissingError torchvision is not installed here")
    assert "make setup" in lines[8]


def test_an_operator_that_exists_is_not_defined_again(tmp_path: Path) -> None:
    code = (
        "torch.library.define('torchvision::nms', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "print(torchvision().whole, torchvision() is torchvision())\n"
        "print([op for op in ('nms', 'qnms') if hasattr(torch.ops.torchvision, op)])"
    )
    done = run(code, fake(tmp_path, NEEDS_OPERATORS))
    assert done.stdout.splitlines() == ["True True", "['nms', 'qnms']"], done.stderr


def test_the_installed_torchvision_gives_models_and_data_sets() -> None:
    done = run("t = torchvision()\nprint(t.models.resnet18.__name__, t.datasets.CIFAR10.__name__)")
    assert done.stdout.splitlines() == ["resnet18 CIFAR10"], done.stderr
    assert done.stderr == ""
