"""Another program that checks a chain, written from docs/verify.md alone, with the standard library and numpy."""

import hashlib
import json
from pathlib import Path

import numpy as np


def check(path: Path) -> tuple[str, int]:
    """Return the head of a chain and the number of its first wrong line, 0 where none is."""
    head, last, model, b = "0" * 64, -1, "", 0
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
            assert line["prev"] == head
            step, kind = line["step"], line["line"]
            if kind == "launch":
                assert line["chain"] == 1
                assert step > last or (step == last and line["model"] == model)
                model, b = line["model"], line["statistics"]
            elif kind == "step":
                assert step == last + 1 > 0
                assert b or line["before"] == model
                model = line["after"]
            else:
                assert (kind, step) == ("checkpoint", last)
                assert len(line["sha256"]) == 64
            assert len(bytes.fromhex(model)) == 32
        except (AssertionError, KeyError, TypeError, ValueError):
            return head, number
        head, last = hashlib.sha256(text).hexdigest(), step
    return head, 0


def model_digest(parameters: np.ndarray, statistics: np.ndarray) -> str:
    """Return the digest of a model's numbers, in the order of the document."""
    numbers = np.concatenate([parameters.ravel(), statistics.ravel()]).astype("<f4")
    return hashlib.sha256(numbers.tobytes()).hexdigest()
