"""docs/aws.md says what is so: its tables, commands, messages and files exist, and its policy allows what is needed."""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import policy
import pytest
from botocore import xform_name
from moto.ec2.models.instance_types import INSTANCE_TYPES
from rich.console import Console

from draco.cluster.aws import agreement, extend, machine_images, start
from draco.cluster.aws.cost import prices, quotas, quote
from draco.cluster.aws.cost.prices import Candidate, Prices
from draco.cluster.aws.cost.quotas import Quota
from draco.cluster.aws.settings import Settings
from draco.job import parse, sizes

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/aws.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
POLICY = json.loads((ROOT / "docs/aws-policy.json").read_text())
COMMANDS = re.findall(r"^    (\S.*(?:\\\n.*)*)", TEXT, re.MULTILINE)
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", TEXT.replace("```", ""))]

# Services as boto3 and as IAM call them.
SERVICES = {
    "ec2": "ec2", "ecr": "ecr", "efs": "elasticfilesystem", "fis": "fis", "iam": "iam", "logs": "logs",
    "pricing": "pricing", "s3": "s3", "service-quotas": "servicequotas", "ssm": "ssm", "sts": "sts",
}  # fmt: skip
NO_OPERATION = {"iam:PassRole", "s3:ListBucket"}  # rights that are not called as an operation is

EC2_TOOL = (
    "launch clean_launch_and_run shutdown run_mxnet_grid_search run_mxnet_loss_curve get_hosts kill_all_python "
    "list_idle_instances list_running_instances kill_python run_command setup_nfs"
)
EC2_TOOLS_CONFIGURATION = (
    "name key_name n_masters n_workers method region availability_zone master_type worker_type image_id spot_price "
    "ssh_username path_to_keyfile nfs_ip_address nfs_mount_point"
)
SCRIPTS = (
    "pre_run.sh local_script.sh remote_script.sh install.sh update_git_dir.sh data_prepare.sh run_pytorch.sh "
    "evaluate_pytorch.sh"
)


def section(number: int) -> str:
    (found,) = re.findall(rf"^## {number}\. .*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return found


def rows(number: int) -> list[list[str]]:
    """Return the cells of a section's tables, without heads and rules."""
    lines = section(number).splitlines()
    tables = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if not after.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in tables if line.startswith("| ")]


@cache
def operations(service: str) -> frozenset[str]:
    """Return the operations of a service, by boto3's name for it."""
    return frozenset(botocore.session.get_session().get_service_model(service).operation_names)


def test_the_first_words_say_that_no_real_account_was_seen() -> None:
    first = TEXT.split("\n\n")[1]
    assert "never against a real account" in first
    assert "Section 11" in first
    assert "## 11. Checklist for the first run on a real account" in TEXT


def test_every_setting_is_in_the_table_with_its_default() -> None:
    told = {row[0].strip("`"): row[1] for row in rows(4)}

    def shown(value: Any) -> str:
        return ",".join(value) if isinstance(value, tuple) else json.dumps(value).strip('"')

    assert told == {name: shown(field.default) for name, field in Settings.model_fields.items()}


def test_every_make_target_and_variable_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = re.findall(r"\bmake ([a-z][a-z-]*)((?: [A-Z_]+=\S*)*)", "\n".join([*COMMANDS, *SPANS]))
    assert len(named) > 40
    assert {target for target, _ in named} - targets == set()
    variables = {name for _, given in named for name in re.findall(r"([A-Z_]+)=", given)}
    used = set(re.findall(r"[( ,]([A-Z_]+)\)", MAKEFILE))  # $(NAME), $(value NAME), $(call option,name,NAME)
    assert variables - used == set()
    rows_of_targets = {name for row in rows(5) for name in re.findall(r"`(?:make )?([a-z-]+)(?: REMOVE=1)?`", row[0])}
    assert rows_of_targets <= targets


def test_every_target_for_clusters_is_described() -> None:
    described = {name for row in rows(5) for name in re.findall(r"`(?:make )?([a-z-]+)", row[0])}
    assert described >= {"doctor", "plan", "image", "cluster-up", "train", "eval", "data", "report", "logs", "stop",
                         "status", "ssh", "extend", "interrupt", "leftovers", "cluster-down",
                         "cluster-purge"}  # fmt: skip


def test_the_example_of_make_plan_is_what_it_prints() -> None:
    (example,) = re.findall(r"```text\n(dev  .*?)```", TEXT, re.DOTALL)
    on_demand = {"m6i.large": 0.096, "m6a.xlarge": 0.1728, "m6i.xlarge": 0.192}
    found = (
        Candidate("m6a.xlarge", "us-east-1c", "spot", 0.056438, 0.059254, 0.1728, 9),
        Candidate("m6a.xlarge", "us-east-1b", "spot", 0.060341, 0.07, 0.1728, 8),
        *[Candidate("m6i.xlarge", "us-east-1a", "spot", 0.07, 0.08, 0.192, 8)] * 18,
    )
    made = quote.Quote(
        "dev", Settings.model_validate({"region": "us-east-1"}), 3,
        Prices("us-east-1", ("us-east-1c",), frozenset(), {}, on_demand), found,
        (Quota("spot vCPU", 256, 0, 12), Quota("on-demand vCPU", 256, 0, 2)),
    )  # fmt: skip
    console = Console(soft_wrap=True, width=160)
    with console.capture() as printed:
        console.print(quote.table(made), highlight=False)
    assert [line.rstrip() for line in printed.get().splitlines()] == example.splitlines()


def test_the_types_with_gpus_are_as_aws_describes_them() -> None:
    named = [row for row in rows(13) if row[0].split(".")[0] in machine_images.GPU_FAMILIES]
    assert len(named) >= 6
    for row in named:
        types, vcpus, gpus, memory = (cell.split("; ") for cell in row[:4])
        for name, cores, (count, model) in zip(types, vcpus, gpu_cells(gpus), strict=True):
            (told,) = INSTANCE_TYPES[name]["GpuInfo"]["Gpus"]
            assert (told["Count"], told["Name"], round(told["MemoryInfo"]["SizeInMiB"] / 1024)) == (
                count, model, int(memory[0]),
            )  # fmt: skip
            assert INSTANCE_TYPES[name]["VCpuInfo"]["DefaultVCpus"] == int(cores)
            assert quotas.pool(name, "on-demand").name.endswith(f"({row[5].split(';')[0]})")
    assert machine_images.WITH_DRIVER in section(13)
    assert f"disks are of {machine_images.GPU_DISK_GB}" in section(13)


def gpu_cells(cells: list[str]) -> list[tuple[int, str]]:
    """Return (count, model) of `1 T4`, or of several counts of the last one's model."""
    model = cells[-1].split()[1]
    return [(int(cell.split()[0]), model) for cell in cells]


def test_what_jobs_on_gpus_cost_follows_from_their_files_and_the_prices() -> None:
    price = {row[0]: float(row[4]) for row in rows(13) if row[0] in ("g4dn.xlarge", "g5.xlarge")}
    price["p5.4xlarge"] = next(float(row[4].split(";")[0]) for row in rows(13) if row[0].startswith("p5"))
    parts = 9 * machine_images.GPU_DISK_GB * prices.GP3_GB_MONTH / prices.HOURS_A_MONTH + 9 * prices.ADDRESS_HOUR
    hourly = {"one-gpu": price["p5.4xlarge"], "8-gpus": 8 * price["g5.xlarge"] + price["g4dn.xlarge"] + parts}
    peak = {"cifar10": {"one-gpu": 67, "8-gpus": 8 * 35}, "gpt": {"one-gpu": 989, "8-gpus": 8 * 70}}
    each = {"cifar10": (3.329, 11_173_962), "gpt": (38.856, 25_482_240)}  # GFLOP a sample there and back, parameters
    told = {row[0].strip("`"): [float(cell) for cell in row[2:]] for row in rows(13) if len(row) == 8}
    assert set(told) == {path.stem for path in (ROOT / "jobs/gpu").glob("*.yaml")}
    for name, (pflop, computing, sending, hours, an_hour, dollars) in told.items():
        job = parse((ROOT / f"jobs/gpu/{name}.yaml").read_text(), name)
        assert job.steps
        model, where = name.split("-")[0], "-".join(name.split("-")[-2:])
        flop, parameters = each[model]
        copies = job.workers / sizes(job).partitions
        sent = job.steps * (job.workers + sizes(job).partitions) * 4 * parameters / 1e9  # GB
        assert pflop == pytest.approx(job.steps * job.batch_size * copies * flop / 1e6, rel=0.01)
        assert computing == pytest.approx(pflop * 1e3 / (peak[model][where] / 4), rel=0.01)
        assert sending == pytest.approx(sent / (4 if where == "one-gpu" else 0.625), rel=0.01)
        assert hours == pytest.approx((computing + sending) / 3600, abs=0.006)
        assert an_hour == pytest.approx(hourly[where], abs=0.006)
        assert dollars == pytest.approx((computing + sending) / 3600 * hourly[where], abs=0.02)


def test_numbers_that_the_text_repeats_are_those_of_the_code() -> None:
    assert f"after {start.START_LIMIT_S} s at the latest" in TEXT
    assert f"at most {extend.MOST_HOURS} hours ahead" in TEXT
    assert f"{agreement.MOST_WORKERS} at most" in TEXT
    assert set(re.findall(r"`(L-[0-9A-F]{8})`", TEXT)) == set(quotas._CODES.values())


def literals() -> list[str]:
    """Return every string of the sources; what an f-string fills in is a zero character. Other files: their lines."""
    found = []
    for path in (ROOT / "draco").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
    for folder in ("ansible", "infra"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".yml", ".sh", ".tf"):
                found += path.read_text().splitlines()
    return found


LITERALS = literals()
MESSAGES = [row[0].strip("`") for row in rows(9)]


def is_said(message: str) -> bool:
    """Return whether one string of the sources has the message's fixed parts in this order."""
    parts = re.split(r"<[^>]*>", message)
    pattern = re.compile(".*".join(re.escape(part.strip(" :(")) for part in parts if part), re.DOTALL)
    return any(pattern.search(literal) for literal in LITERALS)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_in_the_table_of_failures_is_one_of_the_sources(message: str) -> None:
    assert max(map(len, re.split(r"<[^>]*>", message))) > 6
    assert is_said(message)


def test_a_message_that_nobody_says_is_told_apart() -> None:
    assert len(MESSAGES) >= 15
    assert not is_said("<name>: costs <$> per minute, above max_price=<$>")
    assert not is_said("<name>: above max_price=<$>: costs <$> per hour")


@pytest.mark.parametrize(
    "words",
    ["nothing of Draco", "pushing the image", "starting instances", "waiting for host keys", "notice: <node>: <code>"],
)
def test_words_that_are_printed_on_the_way_are_those_of_the_sources(words: str) -> None:
    assert words.partition("<")[0] in TEXT
    assert is_said(words)


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:draco|tests|jobs|docs|infra|ansible|images)/[\w./-]+)`", TEXT))
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([\w./-]+)\)", TEXT)}
    assert len(named) + len(linked) > 6
    assert [path for path in {*(ROOT / name for name in named), *linked} if not path.exists()] == []


def test_every_aws_command_is_one_of_awss() -> None:
    """Service, operation and options; the words of the aws command itself are left out."""
    found = [re.search(r"\baws ([a-z0-9-]+) ([a-z-]+)(.*)", command, re.DOTALL) for command in COMMANDS]
    commands = [match.groups() for match in found if match]
    assert len(commands) > 8
    for service, operation, rest in commands:
        model = botocore.session.get_session().get_service_model({"s3api": "s3"}.get(service, service))
        known = {xform_name(name, "-"): name for name in model.operation_names}
        assert operation in known, (service, operation)
        shape = model.operation_model(known[operation]).input_shape
        members = {xform_name(name, "-") for name in (shape.members if shape else ())}
        options = set(re.findall(r"(?<=\s)--([a-z-]+)", rest))
        assert options - {"region", "query", "output"} <= members, (service, operation)


def test_everything_of_the_originals_tool_and_scripts_has_a_successor() -> None:
    first = " ".join(row[0] for row in rows(12))
    names = set(re.findall(r"[\w.]+", first))
    wanted = {*EC2_TOOL.split(), *EC2_TOOLS_CONFIGURATION.split(), *SCRIPTS.split()}
    assert wanted - names == set()
    assert all(len(row) == 2 and row[1] for row in rows(12))


def test_the_policy_covers_an_action_by_name_or_wildcard_whatever_its_case() -> None:
    allowed = {
        "Statement": [
            {"Effect": "Allow", "Action": ["ec2:Describe*", "iam:?etRole"], "Resource": "*"},
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"},
            {"Effect": "Deny", "Action": "ec2:DescribeTags", "Resource": "*"},
            {"Effect": "Deny", "Action": "s3:*", "Resource": "*", "Condition": {"Bool": {"a": "b"}}},
        ]
    }
    assert policy.covers(allowed, "ec2:DescribeVpcs")
    assert policy.covers(allowed, "EC2:describevpcs")
    assert policy.covers(allowed, "iam:GetRole")
    assert policy.covers(allowed, "s3:GetObject")
    assert not policy.covers(allowed, "ec2:RunInstances")
    assert not policy.covers(allowed, "ec2:DescribeTags")  # denied
    assert not policy.covers(allowed, "iam:GetRolePolicy")
    assert not policy.covers(allowed, "s3:GetObjectAcl")
    assert policy.covers({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}, "a:B")


def test_the_policy_is_one_that_aws_takes() -> None:
    assert POLICY["Version"] == "2012-10-17"
    assert len(json.dumps(POLICY, separators=(",", ":"))) <= 6144  # the most that a managed policy may be
    sids = [statement["Sid"] for statement in POLICY["Statement"]]
    assert len(set(sids)) == len(sids)
    assert all(re.fullmatch("[0-9A-Za-z]+", sid) for sid in sids)
    assert all({"Sid", "Effect", "Action", "Resource"} <= set(each) for each in POLICY["Statement"])


@pytest.mark.parametrize("name", [machine_images.PLAIN, machine_images.WITH_DRIVER])
def test_the_policy_lets_every_machine_image_be_looked_up(name: str) -> None:
    (statement,) = (each for each in POLICY["Statement"] if each["Action"] == "ssm:GetParameter")
    asked = f"arn:aws:ssm:us-east-1::parameter{name}"
    assert any(policy.matches(pattern, asked) for pattern in policy.listed(statement["Resource"]))


def test_the_policy_lets_instances_start_in_a_block_which_has_no_tag() -> None:
    asked = "arn:aws:ec2:us-east-1:123456789012:capacity-reservation/cr-0123456789abcdef0"
    free = [each for each in POLICY["Statement"] if "Condition" not in each]
    starting = [each for each in free if "ec2:RunInstances" in policy.listed(each["Action"])]
    assert any(policy.matches(pattern, asked) for each in starting for pattern in policy.listed(each["Resource"]))


def test_the_policy_has_no_wildcard_but_for_looking() -> None:
    for statement in POLICY["Statement"]:
        assert statement["Effect"] == "Allow"
        assert "NotAction" not in statement
        for action in policy.listed(statement["Action"]):
            service, _, name = action.partition(":")
            assert service in SERVICES.values(), action
            assert re.fullmatch(r"(Describe|List|Get)\*|[A-Za-z]+", name), action


def test_what_the_policy_allows_everywhere_looks_or_needs_a_tag_or_makes_interfaces() -> None:
    for statement in POLICY["Statement"]:
        if "*" not in policy.listed(statement["Resource"]) or "Condition" in statement:
            continue
        for action in policy.listed(statement["Action"]):
            name = action.partition(":")[2]
            assert name.startswith(("Describe", "Get", "List")) or name.endswith("NetworkInterface"), action


def test_what_ends_or_changes_things_needs_the_tag_of_draco() -> None:
    ends = ("ec2:TerminateInstances", "ec2:StopInstances", "ec2:DeleteVolume", "ec2:DeleteVpc", "ec2:DeleteSubnet",
            "ec2:DeleteSecurityGroup", "elasticfilesystem:DeleteFileSystem", "ec2:ModifyInstanceAttribute")  # fmt: skip
    for action in ends:
        (statement,) = [each for each in POLICY["Statement"] if action in policy.listed(each["Action"])]
        assert statement["Condition"] == {"StringEquals": {"aws:ResourceTag/Project": "draco"}}


def test_rights_over_roles_are_for_dracos_roles_and_instances_alone() -> None:
    for statement in POLICY["Statement"]:
        actions = policy.listed(statement["Action"])
        if any(action.startswith("iam:") and not action.startswith("iam:List") for action in actions):
            names = [resource.rpartition(":")[2] for resource in policy.listed(statement["Resource"])]
            assert all(name.startswith(("role/draco-", "instance-profile/draco-", "role/aws-service-role/"))
                       for name in names)  # fmt: skip
    passing = [each for each in POLICY["Statement"] if "iam:PassRole" in policy.listed(each["Action"])]
    given = {each["Condition"]["StringEquals"]["iam:PassedToService"]: policy.listed(each["Resource"])
             for each in passing}  # fmt: skip
    assert given == {
        "ec2.amazonaws.com": ["arn:aws:iam::*:role/draco-*-head", "arn:aws:iam::*:role/draco-*-worker"],
        "fis.amazonaws.com": ["arn:aws:iam::*:role/draco-*-interrupt"],
    }
    assert [list(each["Condition"]) for each in passing] == [["StringEquals"]] * 2
    (attaching,) = [each for each in POLICY["Statement"] if "iam:AttachRolePolicy" in policy.listed(each["Action"])]
    assert attaching["Condition"]["ArnEquals"]["iam:PolicyARN"].endswith("/AmazonSSMManagedInstanceCore")


def test_every_action_of_the_policy_is_an_operation_of_awss() -> None:
    known = {f"{prefix}:{name}" for service, prefix in SERVICES.items() for name in operations(service)}
    actions = {action for statement in POLICY["Statement"] for action in policy.listed(statement["Action"])}
    plain = {action for action in actions if not action.endswith("*")}
    assert plain - known == NO_OPERATION


def test_the_policy_covers_every_operation_that_dracos_own_sources_name() -> None:
    """Found as words: the name of an operation that several services have needs to be allowed for one of them."""
    names: dict[str, set[str]] = {}
    for service, prefix in SERVICES.items():
        for operation in operations(service):
            names.setdefault(xform_name(operation), set()).add(f"{prefix}:{operation}")
    names["list_objects_v2"] = {"s3:ListBucket"}  # the right has another name than the operation
    words = {
        word
        for path in (ROOT / "draco/cluster/aws").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for word in [getattr(node, "attr", None), getattr(node, "value", None)]
        if isinstance(word, str) and "_" in word and word in names
    }
    assert len(words) > 40
    assert {word for word in words if not any(policy.covers(POLICY, action) for action in names[word])} == set()


def test_the_policy_allows_a_push_of_an_image_and_a_state_in_a_bucket() -> None:
    """The docker command and Terraform's backend ask for these, not boto3 or the provider."""
    push = ("GetAuthorizationToken", "BatchCheckLayerAvailability", "InitiateLayerUpload", "UploadLayerPart",
            "CompleteLayerUpload", "PutImage", "BatchGetImage", "GetDownloadUrlForLayer")  # fmt: skip
    state = ("ListBucket", "GetObject", "PutObject", "DeleteObject")
    wanted = [*(f"ecr:{name}" for name in push), *(f"s3:{name}" for name in state), "iam:CreateServiceLinkedRole"]
    assert [action for action in wanted if not policy.covers(POLICY, action)] == []
