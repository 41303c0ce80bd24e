"""The soak in short; make soak does it at length, and on clusters."""

import random
from pathlib import Path

import pytest
import soak


class Small(soak.Site):
    workers = 3


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_that_is_disturbed_ends_with_the_bits_of_one_that_is_not(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "data").symlink_to(data_root)
    kinds = ((soak.kill_worker, 1), (soak.freeze_worker, 1), (soak.kill_server, 1), (soak.kill_everything, 1))
    found = soak.soak(Small(tmp_path, random.Random(6)), kinds, faults=4, limit_s=150)
    assert found.faults == 4
    assert found.launches > 1
