"""A fake AWS, its API only, that the code within this process takes for AWS.

A test file takes its fixtures by name: `fake, aws = fake_account.fake, fake_account.aws`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from fake_aws import Fake, running
from fake_aws.world import QUOTAS

from draco.cluster.aws import account


@contextmanager
def taken_for_aws(folder: Path, minute_s: float = 60.0) -> Iterator[Fake]:
    """Run a fake and let the clients of this process talk to it."""
    with running(folder, nodes=False, minute_s=minute_s) as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        patch.setattr(boto3, "DEFAULT_SESSION", None)  # it would remember other credentials
        account.client.cache_clear()
        yield fake
    account.client.cache_clear()


def renew(fake: Fake) -> None:
    """Forget what a test set and asked for."""
    fake.set_faults({})
    fake.set_prices({})
    fake.set_quotas({code: limit for code, (_, limit) in QUOTAS.items()})


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    """The fake that a test file has for itself."""
    with taken_for_aws(tmp_path_factory.mktemp("aws")) as found:
        yield found


@pytest.fixture
def aws(fake: Fake) -> Fake:
    """The test file's fake, as new."""
    renew(fake)
    return fake
