"""The start of a cluster on AWS, in steps. After a step that failed the next `cluster-up` goes on from there.

agreement -> base (network, storage, registry) -> image -> instances -> host keys -> a way in by ssh
"""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from draco.cluster import docker, engine, ssh
from draco.cluster.aws import account, agreement, home, host_keys, instances, machine_images, registry, terraform
from draco.cluster.aws import settings as settings_module
from draco.cluster.aws.agreement import Agreement
from draco.cluster.aws.cost import quote
from draco.cluster.aws.cost.prices import Market
from draco.cluster.aws.home import Choice, Home
from draco.cluster.aws.leftovers import cleanup
from draco.cluster.aws.settings import Settings
from draco.cluster.backend import HEAD, Cluster, Node, Request, Say, names
from draco.cluster.ssh_key import operator_key
from draco.errors import NoCapacityError, NotConfiguredError, RefusedError

LOGIN = "ec2-user"  # of Amazon Linux
START_LIMIT_S = 300  # for the instances of one candidate
SSH_LIMIT_S = 240
_TAKEN = re.compile(r"Already ?Exists|Duplicate", re.IGNORECASE)


def up(request: Request, folder: Path, say: Say) -> Cluster:
    """Start the cluster, or its missing nodes, as `request.agreed` says. See Backend."""
    agreed = request.agreed
    assert isinstance(agreed, Agreement), "nobody agreed to a price"
    terraform.require()
    identity = engine.image_id(request.image)
    settings, region, there = agreed.settings, agreed.region, home.of(folder)
    say("asking AWS who is calling")
    caller = account.caller(region)
    _refuse_others(request.name, settings, there)
    agreement.refuse_changes(request, settings, folder)
    agreement.refuse_changed(agreed, request, folder)
    owner = settings.owner or re.sub(r"[^\w+=,.@-]", "-", caller.name, flags=re.ASCII)[:64]
    ssh_cidr = settings.ssh_cidr or account.own_cidr()
    choice = there.choice() if agreed.standing else None
    _refuse_fewer(request, region)
    there.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings_module.save(settings, there.settings)
    base = _base(request.name, settings, owner, there, say)
    image = registry.push(region, base["repository_url"], request.image, say)
    key = operator_key(request.name, folder).with_suffix(".pub").read_text().strip()
    values = {
        "name": request.name, "owner": owner, "region": region, "workers": request.workers, "image": image,
        "ssh_cidr": ssh_cidr, "ssh_public_key": key, "head_type": settings.head_type,
        "idle_minutes": settings.idle_minutes, "volume_gb": settings.disk_gb, "efa": settings.efa,
        "placement_group": settings.placement_group,
        "max_spot_price": None if settings.max_spot_price is None else f"{settings.max_spot_price:g}",
        **{key: base[key] for key in (
            "vpc_id", "head_security_group_id", "worker_security_group_id", "head_profile", "worker_profile",
        )},
    }  # fmt: skip
    agreement.refuse_changed(agreed, request, folder)  # minutes may have passed
    if choice:
        chosen = _mend(request, agreed, there, values, base["subnet_ids"], choice, say)
    else:
        chosen = _start(agreed, there, values, base["subnet_ids"], say)
    found = terraform.outputs(there.cluster)["nodes"]
    _end_strays(request.name, region, found, say)
    _way_in(there, folder, region, found, request, say)
    return _cluster(request, settings, folder, base, chosen, found, image, identity)


def _refuse_others(name: str, settings: Settings, there: Home) -> None:
    """Refuse a name that is taken: by somebody else, in another region, or by a cluster whose state was lost."""
    if terraform.known(there.base):
        return
    assert settings.region
    region = settings.region
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
    if found:
        return
    role = f"draco-{name}-head"
    elsewhere = account.ask(
        "looking for roles", lambda: account.tags_of_role(region, role).get("Region", "an unknown region")
    )
    if elsewhere:
        raise RefusedError(f"{name}: there is such a cluster in {elsewhere}, and roles are global: another NAME=")


def _refuse_fewer(request: Request, region: str) -> None:
    """Refuse to remove workers: their ranks may be running."""
    wanted_nodes = names(request.workers)
    extra = [node for node in instances.alive(region, request.name) if node not in wanted_nodes]
    if extra:
        raise RefusedError(
            f"{request.name}: has {', '.join(sorted(extra))} beside the WORKERS={request.workers} asked for; "
            "make cluster-down first; runs and data stay"
        )


def _choices(agreed: Agreement) -> list[Choice]:
    """Return the agreed choices in order; their lifetime begins now."""
    assert agreed.quote
    told, settings = agreed.quote, agreed.settings
    types = (settings.head_type, *(each.type for each in told.candidates))
    found = {driven: settings.ami or machine_images.newest(agreed.region, name)
             for driven, name in {machine_images.has_gpus(name): name for name in types}.items()}  # fmt: skip
    expires = home.expiry(datetime.now(UTC) + timedelta(hours=settings.hours))
    head = found[machine_images.has_gpus(settings.head_type)]
    return [
        home.chosen(each, head, expires, told.at(each.price))._replace(
            worker_ami=found[machine_images.has_gpus(each.type)], gpus=told.gpus(each.type),
            head_gpus=told.gpus(settings.head_type), block=settings.capacity_reservation,
        )
        for each in told.candidates
    ]  # fmt: skip


def _base(name: str, settings: Settings, owner: str, there: Home, say: Say) -> dict[str, Any]:
    """Create or repair network, storage and registry; return their identities."""
    values = {"name": name, "owner": owner, "region": settings.region, "ssm": settings.ssm}
    terraform.prepare("base", there.base, values, settings.bucket(name, "base"))
    assert settings.region
    _apply(there.base, "base", name, settings.region, say)
    return terraform.outputs(there.base)


def _apply(folder: Path, root: str, name: str, region: str, say: Say, limit_s: float = 1200) -> None:
    """Apply a root. Things that an earlier, stopped Terraform left behind may hold its names: remove them and go on."""
    try:
        terraform.apply(folder, say, limit_s)
    except NotConfiguredError as error:
        if not _TAKEN.search(str(error)):
            raise
        cleanup.remove_strays(region, name, root, terraform.values(folder), say)
        terraform.apply(folder, say, limit_s)


def _start(agreed: Agreement, there: Home, values: Mapping[str, Any], subnets: Mapping[str, str], say: Say) -> Choice:
    """Start the instances at the first choice that has capacity; if none has, leave no instance.

    Raises:
        NoCapacityError: no choice has capacity; names what was tried.
        RefusedError: the choice whose turn it is costs more than was agreed.
    """
    tried, rise = [], ""
    for choice in _choices(agreed):
        if rise := agreement.dearer(agreed, choice, choice.market):
            tried.append(f"{_place_of(choice)}: {rise}")
            break
        try:
            return _make(agreed, there, values, subnets, choice, say)
        except NoCapacityError as error:
            tried.append(f"{_place_of(choice)}: {error}")
    if terraform.known(there.cluster):
        say("removing what was started")
        terraform.destroy(there.cluster, say)
    there.choose(None)
    name, more = values["name"], "" if agreed.settings.on_demand else ", SET=on_demand=true"
    if rise:
        tried.append(f"{name}: nothing is running; make cluster-up asks again, at what it costs now")
        raise RefusedError("\n".join(tried))
    tried.append(f"{name}: nothing is running; try again later, other SET=worker_types=, fewer WORKERS{more}")
    raise NoCapacityError("\n".join(tried))


def _mend(
    request: Request, agreed: Agreement, there: Home, values: Mapping[str, Any], subnets: Mapping[str, str],
    choice: Choice, say: Say,
) -> Choice:  # fmt: skip
    """Start the missing instances of a cluster beside the others; on demand where that is allowed.

    Raises:
        NoCapacityError: AWS has none; the other instances stay.
        RefusedError: what is missing costs more than was agreed; the other instances stay.
    """
    settings = agreed.settings
    lacking = set(agreement.missing(request, settings)) - {HEAD}
    if lacking - set(choice.promoted):
        _refuse_dearer(agreed, request.name, choice, choice.market)
    if lacking & set(choice.promoted):
        _refuse_dearer(agreed, request.name, choice, "on-demand")
    try:
        return _make(agreed, there, values, subnets, choice, say)
    except NoCapacityError as error:
        tried = [f"{_place_of(choice)}: {error}"]
    if choice.market == "spot" and (settings.on_demand or request.on_demand):
        promoted = agreement.promoted(choice, agreement.missing(request, settings), settings.max_price)
        if isinstance(promoted, str):
            tried.append(promoted)
        else:
            _refuse_dearer(agreed, request.name, promoted, "on-demand")
            costs = f"{quote.dollars(promoted.per_hour)} per hour in all"
            say(f"no spot capacity; on demand: {', '.join(promoted.promoted)}; {costs}")
            try:
                return _make(agreed, there, values, subnets, promoted, say)
            except NoCapacityError as error:
                tried.append(f"on demand: {error}")
    raise NoCapacityError("\n".join([
        *tried, f"{values['name']}: its other nodes are there and cost money: try again later, or "
        f"make cluster-down NAME={values['name']} and make cluster-up, which may choose other types and zones",
    ]))  # fmt: skip


def _refuse_dearer(agreed: Agreement, name: str, choice: Choice, market: Market) -> None:
    """Refuse to start workers beside others, if they cost more than was agreed."""
    if rise := agreement.dearer(agreed, choice, market):
        where = f"{choice.type} in {choice.zone}, {market}"
        raise RefusedError(f"{where}: {rise}\n{name}: its other nodes stay; make cluster-up asks again")


def _make(
    agreed: Agreement, there: Home, values: Mapping[str, Any], subnets: Mapping[str, str], choice: Choice, say: Say
) -> Choice:
    """Start the instances that a choice lacks, and return it.

    Raises:
        NoCapacityError: AWS has none there.
    """
    say(f"starting instances: {_place_of(choice)}")
    there.choose(choice)
    terraform.prepare(
        "cluster", there.cluster,
        {**values, "zone": choice.zone, "subnet_id": subnets[choice.zone], "worker_type": choice.type,
         "market": choice.market, "on_demand_workers": list(choice.promoted), "ami": choice.ami,
         "worker_ami": choice.worker_ami, "capacity_reservation_id": choice.block, "expires_at": choice.expires_at},
        agreed.settings.bucket(values["name"], "cluster"),
    )  # fmt: skip
    _apply(there.cluster, "cluster", values["name"], values["region"], say, START_LIMIT_S)
    return choice


def _place_of(choice: Choice) -> str:
    return f"{choice.type} in {choice.zone}, {choice.market}"


def _end_strays(name: str, region: str, found: Mapping[str, Any], say: Say) -> None:
    """End instances of this cluster that Terraform does not know, because it was stopped before AWS answered."""
    known = {each["id"] for each in found.values()}
    strays = [each for each in instances.find(region, name) if each.state in instances.ALIVE and each.id not in known]
    for each in strays:
        say(f"ending {each.id}, a second {each.node}")
    instances.end(region, strays)


def _way_in(there: Home, folder: Path, region: str, found: Mapping[str, Any], request: Request, say: Say) -> None:
    """Read every node's host key from its console, and wait until each accepts the operator's ssh.

    Workers are reached through the head. It sees only encrypted traffic, and holds no key of the operator.
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
            "gpus": {node: choice.head_gpus if node == HEAD else choice.gpus for node in found},
        },
    )  # fmt: skip
