"""How a cluster comes up on AWS, step by step; each may fail, and the next `cluster-up` goes on from there.

settings -> quote -> base (network, storage, registry) -> image -> instances -> host keys -> a way in by ssh
"""

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from draco.cluster import docker, ssh
from draco.cluster.aws import account, home, host_keys, instances, registry, terraform
from draco.cluster.aws import settings as settings_module
from draco.cluster.aws.cost import quote
from draco.cluster.aws.cost.quote import Quote
from draco.cluster.aws.home import Choice, Home
from draco.cluster.aws.leftovers import cleanup
from draco.cluster.aws.settings import Settings
from draco.cluster.backend import HEAD, Cluster, Node, Request, Say, names
from draco.errors import MissingError, NoCapacityError, NotConfiguredError, RefusedError

LOGIN = "ec2-user"  # of Amazon Linux
MOST_WORKERS = 200
START_LIMIT_S = 300  # for the instances of one candidate
SSH_LIMIT_S = 240
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # what an image repository may be called
_TAKEN = re.compile(r"Already ?Exists|Duplicate", re.IGNORECASE)
# Settings that Terraform would meet by making nodes anew, or not at all.
FIXED = (
    "zone", "head_type", "worker_types", "hours", "max_spot_price", "volume_gb", "placement_group", "efa", "ami",
)  # fmt: skip
_AMI = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64"


def wanted(request: Request, folder: Path) -> Settings:
    """Return the settings that a request amounts to, those of earlier requests included; nothing is recorded.

    Raises:
        JobError: lists every fault of SET=.
        MissingError: no region.
        RefusedError: the cluster lies in another region, or its state elsewhere.
    """
    there = home.of(folder)
    before = settings_module.load(there.settings)
    made = settings_module.updated(before, request.settings)
    region = made.region or account.default_region()
    if region is None:
        raise MissingError("no region: AWS_REGION=us-east-1, or SET=region=us-east-1")
    if before.region not in (None, region):
        raise RefusedError(
            f"{request.name}: lies in {before.region}, not {region}; another NAME=, or make cluster-down and "
            "make cluster-purge first, which removes its runs"
        )
    if terraform.known(there.base) and made.state_bucket != before.state_bucket:
        raise RefusedError(
            f"{request.name}: its state is {_place(before)}, not {_place(made)}: "
            f"SET=state_bucket={before.state_bucket or ''}"
        )
    if not _NAME.fullmatch(request.name):
        raise RefusedError(f"NAME={request.name}: at AWS no dash may end it, nor follow another")
    if request.workers > MOST_WORKERS:
        raise RefusedError(f"WORKERS={request.workers}: AWS takes at most {MOST_WORKERS} worker nodes")
    return made.model_copy(update={"region": region})


def _place(settings: Settings) -> str:
    return f"in the bucket {settings.state_bucket}" if settings.state_bucket else "here"


def refuse_changes(request: Request, settings: Settings, folder: Path) -> None:
    """Refuse settings that nodes which are there do not have, and would not survive."""
    there = home.of(folder)
    before = settings_module.load(there.settings)
    changed = [key for key in FIXED if getattr(settings, key) != getattr(before, key)]
    if changed and there.choice() and instances.alive(_region(settings), request.name):
        words = ", ".join(f"{key} from {getattr(before, key)} to {getattr(settings, key)}" for key in changed)
        longer = "; make extend puts the end off" if "hours" in changed else ""
        raise RefusedError(
            f"{request.name}: is up: {words} would take new nodes: make cluster-down first; runs and data stay{longer}"
        )


def missing(request: Request, settings: Settings) -> list[str]:
    """Return the nodes that would have to be started."""
    assert settings.region
    there = instances.alive(settings.region, request.name)
    return [node for node in names(request.workers) if node not in there]


def quoted(request: Request, settings: Settings, folder: Path) -> Quote:
    """Return what the cluster costs: where it is already, as long as any of it is there."""
    assert settings.region
    choice = home.of(folder).choice()
    if choice and instances.alive(settings.region, request.name):
        settings = settings.model_copy(update={"worker_types": (choice.type,), "zone": choice.zone})
        found = quote.quote(request.name, settings, request.workers)
        same = tuple(each for each in found.candidates if each.market == choice.market)
        return found._replace(candidates=same) if same else found
    return quote.quote(request.name, settings, request.workers)


def up(request: Request, folder: Path, say: Say) -> Cluster:
    """Bring the cluster up, or start what is missing of it. See Backend."""
    terraform.require()
    identity = docker.image_id(request.image)
    settings = wanted(request, folder)
    region, there = _region(settings), home.of(folder)
    say("asking AWS who is calling")
    caller = account.caller(region)
    _refuse_others(request.name, settings, there)
    refuse_changes(request, settings, folder)
    owner = settings.owner or re.sub(r"[^\w+=,.@-]", "-", caller.name, flags=re.ASCII)[:64]
    ssh_cidr = settings.ssh_cidr or account.own_cidr()
    choice = there.choice() if instances.alive(region, request.name) else None
    _refuse_fewer(request, region)
    choices = [] if choice else _choices(request, settings, folder, say)
    there.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings_module.save(settings, there.settings)
    base = _base(request.name, settings, owner, there, say)
    image = registry.push(region, base["repository_url"], request.image, say)
    key = _operator_key(request.name, folder)
    values = {
        "name": request.name, "owner": owner, "region": region, "workers": request.workers, "image": image,
        "ssh_cidr": ssh_cidr, "ssh_public_key": key, "head_type": settings.head_type,
        "idle_minutes": settings.idle_minutes, "volume_gb": settings.volume_gb, "efa": settings.efa,
        "placement_group": settings.placement_group,
        "max_spot_price": None if settings.max_spot_price is None else f"{settings.max_spot_price:g}",
        **{key: base[key] for key in (
            "vpc_id", "head_security_group_id", "worker_security_group_id", "head_profile", "worker_profile",
        )},
    }  # fmt: skip
    if choice:
        chosen = _mend(request, there, settings, values, base["subnet_ids"], choice, say)
    else:
        chosen = _start(there, settings, values, base["subnet_ids"], choices, say)
    found = terraform.outputs(there.cluster)["nodes"]
    _end_strays(request.name, region, found, say)
    _way_in(there, folder, region, found, request, say)
    return _cluster(request, settings, folder, base, chosen, found, image, identity)


def _region(settings: Settings) -> str:
    assert settings.region
    return settings.region


def _refuse_others(name: str, settings: Settings, there: Home) -> None:
    """Refuse a name that is taken: by somebody else, in another region, or by a cluster whose state was lost."""
    if terraform.known(there.base):
        return
    region = _region(settings)
    found, _ = cleanup.find(region, name)
    state = settings.bucket(name, "base")
    is_ours = state is not None and account.has_object(state.region, state.name, state.key)
    if is_ours and any(each.kind == "instance" for each in found):
        raise RefusedError(f"{name}: is up, started from elsewhere; make cluster-down NAME={name} CLUSTER=aws first")
    if found and not is_ours:
        owners = ", ".join(sorted({each.owner or "?" for each in found}))
        raise RefusedError(
            f"{name}: there is such a cluster in {region} ({len(found)} things of {owners}), and {there.path} does not "
            f"know it: another NAME=, or, if it is yours and its state is lost, make leftovers NAME={name} REMOVE=1 "
            f"and make cluster-purge NAME={name} CLUSTER=aws"
        )

    role = f"draco-{name}-head"
    elsewhere = (
        None
        if found
        else account.ask(
            "looking for roles", lambda: account.tags_of_role(region, role).get("Region", "an unknown region")
        )
    )
    if elsewhere:
        raise RefusedError(f"{name}: there is such a cluster in {elsewhere}, and roles are global: another NAME=")


def _refuse_fewer(request: Request, region: str) -> None:
    """Refuse to take workers away, whose ranks may be running."""
    wanted_nodes = names(request.workers)
    extra = [node for node in instances.alive(region, request.name) if node not in wanted_nodes]
    if extra:
        raise RefusedError(
            f"{request.name}: has {', '.join(sorted(extra))} beside the WORKERS={request.workers} asked for; "
            "make cluster-down first; runs and data stay"
        )


def _choices(request: Request, settings: Settings, folder: Path, say: Say) -> list[Choice]:
    """Return what to try, in order."""
    say("asking AWS for prices and quotas")
    found = quoted(request, settings, folder)
    quote.refuse(found)
    ami = settings.ami or _ami(_region(settings))
    expires = home.expiry(datetime.now(UTC) + timedelta(hours=settings.hours))
    return [home.chosen(each, ami, expires, found.at(each.price)) for each in found.candidates]


def _ami(region: str) -> str:
    with account.speaking("looking for Amazon Linux 2023"):
        found: str = account.client("ssm", region).get_parameter(Name=_AMI)["Parameter"]["Value"]
    return found


def _base(name: str, settings: Settings, owner: str, there: Home, say: Say) -> dict[str, Any]:
    """Make or mend network, storage and registry; return where they are."""
    values = {"name": name, "owner": owner, "region": settings.region, "ssm": settings.ssm}
    terraform.prepare("base", there.base, values, settings.bucket(name, "base"))
    _apply(there.base, "base", name, _region(settings), say)
    return terraform.outputs(there.base)


def _apply(folder: Path, root: str, name: str, region: str, say: Say, limit_s: float = 1200) -> None:
    """Apply a root; where names are taken by what a stopped Terraform never heard of, remove that and go on."""
    try:
        terraform.apply(folder, say, limit_s)
    except NotConfiguredError as error:
        if not _TAKEN.search(str(error)):
            raise
        cleanup.remove_strays(region, name, root, terraform.values(folder), say)
        terraform.apply(folder, say, limit_s)


def _operator_key(name: str, folder: Path) -> str:
    """Return the public half of the operator's key for this cluster."""
    path = folder / "operator_key"
    if not path.exists():
        made = subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"operator of {name}", "-f", str(path)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise MissingError(f"ssh-keygen: {made.stderr.strip()}")
    return path.with_suffix(".pub").read_text().strip()


def _start(
    there: Home, settings: Settings, values: Mapping[str, Any], subnets: Mapping[str, str], choices: list[Choice],
    say: Say,
) -> Choice:  # fmt: skip
    """Make the instances at the first choice that has capacity; without any, leave none.

    Raises:
        NoCapacityError: none has; what was tried, and what to do.
    """
    tried = []
    for choice in choices:
        try:
            return _make(there, settings, values, subnets, choice, say)
        except NoCapacityError as error:
            tried.append(f"{_place_of(choice)}: {error}")
    say("no capacity: removing what was started")
    terraform.destroy(there.cluster, say)
    there.choose(None)
    more = "" if settings.on_demand else ", SET=on_demand=true"
    raise NoCapacityError("\n".join(
        [*tried, f"{values['name']}: nothing is running; try again later, other SET=worker_types=, fewer WORKERS{more}"]
    ))  # fmt: skip


def _mend(
    request: Request, there: Home, settings: Settings, values: Mapping[str, Any], subnets: Mapping[str, str],
    choice: Choice, say: Say,
) -> Choice:  # fmt: skip
    """Make the instances that are missing of a cluster, beside the others; on demand where that is allowed.

    Raises:
        NoCapacityError: there are none; the other instances stay.
    """
    try:
        return _make(there, settings, values, subnets, choice, say)
    except NoCapacityError as error:
        tried = [f"{_place_of(choice)}: {error}"]
    if choice.market == "spot" and (settings.on_demand or request.on_demand):
        promoted = _promoted(choice, missing(request, settings), settings.max_price)
        if isinstance(promoted, str):
            tried.append(promoted)
        else:
            costs = f"{quote.dollars(promoted.per_hour)} per hour in all"
            say(f"no spot capacity; on demand: {', '.join(promoted.promoted)}; {costs}")
            try:
                return _make(there, settings, values, subnets, promoted, say)
            except NoCapacityError as error:
                tried.append(f"on demand: {error}")
    raise NoCapacityError("\n".join([
        *tried, f"{values['name']}: its other nodes are there and cost money: try again later, or "
        f"make cluster-down NAME={values['name']} and make cluster-up, which may choose other types and zones",
    ]))  # fmt: skip


def _promoted(choice: Choice, lacking: Sequence[str], limit: float | None) -> Choice | str:
    """Return the choice with the workers that it lacks on demand, or why that is not to be."""
    new = [node for node in lacking if node not in (HEAD, *choice.promoted)]
    total = None
    if choice.per_hour is not None and choice.dearer is not None:
        total = choice.per_hour + len(new) * choice.dearer
    if limit is not None and (total is None or total > limit):
        costs = "nobody knows what" if total is None else quote.dollars(total)
        return f"on demand: {costs} per hour in all, above max_price={limit:g}"
    return choice._replace(promoted=(*choice.promoted, *new), per_hour=total)


def _make(
    there: Home, settings: Settings, values: Mapping[str, Any], subnets: Mapping[str, str], choice: Choice, say: Say
) -> Choice:
    """Make the instances that a choice lacks, and return it.

    Raises:
        NoCapacityError: it has no room.
    """
    say(f"starting instances: {_place_of(choice)}")
    there.choose(choice)
    terraform.prepare(
        "cluster", there.cluster,
        {**values, "zone": choice.zone, "subnet_id": subnets[choice.zone], "worker_type": choice.type,
         "market": choice.market, "on_demand_workers": list(choice.promoted), "ami": choice.ami,
         "expires_at": choice.expires_at},
        settings.bucket(values["name"], "cluster"),
    )  # fmt: skip
    _apply(there.cluster, "cluster", values["name"], values["region"], say, START_LIMIT_S)
    return choice


def _place_of(choice: Choice) -> str:
    return f"{choice.type} in {choice.zone}, {choice.market}"


def _end_strays(name: str, region: str, found: Mapping[str, Any], say: Say) -> None:
    """End instances of this cluster that Terraform does not know: it was stopped while AWS was still answering."""
    known = {each["id"] for each in found.values()}
    strays = [each for each in instances.find(region, name) if each.state in instances.ALIVE and each.id not in known]
    for each in strays:
        say(f"ending {each.id}, a second {each.node}")
    instances.end(region, strays)


def _way_in(there: Home, folder: Path, region: str, found: Mapping[str, Any], request: Request, say: Say) -> None:
    """Learn every node's host key from its console, and wait until each lets the operator in.

    Workers are reached through the head, which sees only what is encrypted for them and holds no key of the operator.
    """
    known = there.host_keys()
    strangers = {node: each["id"] for node, each in found.items() if each["id"] not in known}
    if strangers:
        say("waiting for host keys")
        collected = host_keys.collect(region, strangers, say)
        known |= {strangers[node]: key for node, key in collected.items()}
    there.keep_host_keys({each["id"]: known[each["id"]] for each in found.values()})
    hosts = folder.resolve() / "known_hosts"
    addresses = {node: [each["private_ip"], each["public_ip"]] for node, each in found.items()}
    hosts.write_text(host_keys.known_hosts(addresses, {node: known[each["id"]] for node, each in found.items()}))
    common = {
        "User": LOGIN, "IdentityFile": str(folder.resolve() / "operator_key"), "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(hosts), "GlobalKnownHostsFile": "none",
    }  # fmt: skip
    ssh.write_config(folder, {
        node: {**common, "HostName": each["public_ip"]} if node == HEAD
        else {**common, "HostName": each["private_ip"], "ProxyJump": HEAD}
        for node, each in found.items()
    })  # fmt: skip
    _await(folder, _nodes(found, request), say)


def _await(folder: Path, nodes: tuple[Node, ...], say: Say) -> None:
    deadline = time.monotonic() + SSH_LIMIT_S
    waiting = list(nodes)
    while True:
        states = ssh.probed(folder, waiting)
        waiting = [node for node in waiting if states[node.name] != "running"]
        if not waiting:
            return
        if time.monotonic() > deadline:
            silent = ", ".join(node.name for node in waiting)
            raise NotConfiguredError(
                f"{silent}: no login by ssh within {SSH_LIMIT_S} s; ssh -F {folder / 'ssh_config'} {waiting[0].name} "
                "says why; has your own address changed? make cluster-up again is safe"
            )
        say(f"waiting for {waiting[0].name} to let ssh in")
        time.sleep(2)


def _nodes(found: Mapping[str, Any], request: Request) -> tuple[Node, ...]:
    return tuple(Node(node, found[node]["private_ip"]) for node in names(request.workers))


def _cluster(
    request: Request, settings: Settings, folder: Path, base: Mapping[str, Any], choice: Choice,
    found: Mapping[str, Any], image: str, identity: str,
) -> Cluster:  # fmt: skip
    region = settings.region
    storage = {
        "storage_kind": "mount", "storage_fstype": "efs",
        **{f"storage_{part}_src": f"{base['file_system_id']}:/" for part in ("data", "runs")},
        **{f"storage_{part}_opts": f"_netdev,nofail,tls,iam,accesspoint={base[f'{part}_access_point_id']}"
           for part in ("data", "runs")},
    }  # fmt: skip
    registry_host = image.partition("/")[0]
    login = f"aws ecr get-login-password --region {region}"
    return Cluster(
        request.name, "aws", _nodes(found, request), base["subnet_cidrs"][choice.zone], "container", docker.PYTHON,
        docker.USER, datetime.now(UTC).isoformat(timespec="seconds"),
        {
            "image": request.image, "image_name": image, "image_id": identity, "image_pull": True,
            "image_login": f"{login} | docker login --username AWS --password-stdin {registry_host}",
            "image_logout": f"docker logout {registry_host}",
            "region": region, "zone": choice.zone, "type": choice.type, "market": choice.market,
            "per_hour": choice.per_hour, "dearer": choice.dearer, "expires_at": choice.expires_at,
            "instances": {node: each["id"] for node, each in found.items()}, "inventory_variables": storage,
        },
    )  # fmt: skip
