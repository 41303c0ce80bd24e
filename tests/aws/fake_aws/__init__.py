"""A fake AWS for tests: moto's API with its gaps filled and, as root on Linux, instances that are real nodes."""

from fake_aws.nodes.tools import why_not
from fake_aws.running import Fake, running

__all__ = ["Fake", "running", "why_not"]
