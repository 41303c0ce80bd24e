"""The machine images of nodes: which of Amazon's public parameters names that of a type, and the disk that it takes.

Plain nodes start from Amazon Linux 2023. Nodes with GPUs start from AWS's Deep Learning Base AMI on Amazon Linux 2023,
which has NVIDIA's open driver, the NVIDIA Container Toolkit and Docker. Its parameter is that of AWS's developer guide
of the Deep Learning AMIs, https://docs.aws.amazon.com/dlami/latest/devguide/find-dlami-id.html.
"""

from draco.cluster.aws import account

PLAIN = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64"
WITH_DRIVER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
# The x86_64 families of that image's release notes that have whole GPUs, up to Hopper. Older GPUs have no open driver,
# g5g is arm64, g4ad AMD's, and g6f has parts of a GPU.
GPU_FAMILIES = ("g4dn", "g5", "g6", "gr6", "g6e", "p4d", "p4de", "p5", "p5e", "p5en")
PLAIN_DISK_GB = 30
GPU_DISK_GB = 120  # 75 are the machine image's own; the trainer's takes 5, and 3 more while it is pulled


def has_gpus(instance_type: str) -> bool:
    """Say whether nodes of a type start from the machine image with the driver.

    >>> has_gpus("g5.xlarge"), has_gpus("g5g.xlarge"), has_gpus("m6i.large")
    (True, False, False)
    """
    return instance_type.split(".")[0] in GPU_FAMILIES


def newest(region: str, instance_type: str) -> str:
    """Return the id of the newest machine image for a type.

    Raises:
        DracoError: AWS did not answer.
    """
    driven = has_gpus(instance_type)
    name, what = (WITH_DRIVER, "the Deep Learning Base AMI") if driven else (PLAIN, "Amazon Linux 2023")
    with account.speaking(f"looking for {what}"):
        found: str = account.client("ssm", region).get_parameter(Name=name)["Parameter"]["Value"]
    return found
