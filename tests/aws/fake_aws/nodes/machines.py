"""Brings nodes in line with moto's instances: every running instance is a node, and no other."""

import contextlib
import itertools
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fake_aws import listener, roles
from fake_aws.asked import Asked
from fake_aws.gaps import instances
from fake_aws.nodes import network, storage, tools
from fake_aws.nodes.node import Node, remove_cgroups
from fake_aws.nodes.registry import Registry, forget
from fake_aws.world import World

# Requests after which the nodes may have to change; most others only look.
_CHANGES = ("Run", "Terminate", "Start", "Stop", "Authorize", "Revoke", "Modify", "Delete", "Request", "Associate")


class Machines:
    """All nodes of a fake.

    Args:
        world: where the instances are.
        net: what the nodes are attached to.
    """

    def __init__(self, world: World, net: network.Network) -> None:
        self._world, self._network = world, net
        self._nodes: dict[str, Node] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._background: list[threading.Thread] = []

    def follow(self, asked: Asked) -> None:
        """Do what a request makes necessary."""
        if asked.service == "ec2" and asked.action.startswith(_CHANGES):
            self.reconcile()

    def reconcile(self) -> None:
        """End the nodes of instances that do not run, start those that are missing, and see to all firewalls."""
        with self._lock:
            running = {
                instance.id: instance
                for reservation in list(self._world.ec2.reservations.values())
                for instance in reservation.instances
                if instance.state in ("pending", "running")
            }
            gone = [self._nodes.pop(name) for name in set(self._nodes) - set(running)]
            new = [self._new(instance) for name, instance in running.items() if name not in self._nodes]
            kept = list(self._nodes.values())
        ending = [self._do(node.end) for node in gone]
        for node in new:
            self._do(node.start)
        for node in kept:
            node.filter()
        for thread in ending:
            thread.join()
        for node in gone:
            self._do(node.clear)

    def end(self) -> None:
        """End all nodes."""
        with self._lock:
            nodes, self._nodes = list(self._nodes.values()), {}
        for thread in [self._do(node.end) for node in nodes]:
            thread.join()
        for node in nodes:
            self._do(node.clear)
        for thread in self._background:
            thread.join()

    def node(self, instance: str) -> Node:
        """Return the node of an instance."""
        with self._lock:
            if instance in self._nodes:
                return self._nodes[instance]
        raise ValueError(f"{instance}: does not run")

    def console(self, given: dict[str, Any]) -> str:
        """Return what an instance wrote to its console, of one that ended too."""
        path = self._world.folder / "instances" / given["instance"] / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def about(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return a node's first process and its folder, for tests that reach inside."""
        node = self.node(given["instance"])
        return {"pid": node.pid, "folder": str(node.folder), "space": node.space, "address": node.instance.public_ip}

    def cut(self, given: dict[str, Any]) -> None:
        """Take an instance's network away, or with `down: false` give it back."""
        self.node(given["instance"]).cut(given.get("down", True))

    def notice(self, given: dict[str, Any]) -> None:
        """Set what an instance reads at a path of its metadata; None takes it away."""
        notices = self.node(given["instance"]).metadata.notices
        if given["content"] is None:
            notices.pop(given["path"], None)
        else:
            notices[given["path"]] = given["content"]

    def interrupt(self, given: dict[str, Any], take: Callable[[dict[str, Any]], None]) -> None:
        """Tell a spot instance that it is taken back, and take it."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + float(given["after_s"])))
        notices = self.node(given["instance"]).metadata.notices
        notices.update({"spot/instance-action": {"action": "terminate", "time": at}, "spot/termination-time": at})
        take(given)

    def shut_down(self, instance: Any, _: str) -> str:
        """Do what an instance wants that shut itself down: terminate or stop it, once it has its answer."""

        def follow() -> None:
            if instance.state != "running":
                return
            if instance.instance_initiated_shutdown_behavior == "terminate":
                instances.end(self._world, instance, "Client.InstanceInitiatedShutdown",
                              "Instance initiated shutdown")  # fmt: skip
            else:
                instance.stop()
            self.reconcile()

        self._do(follow)
        return "shutting down\n"

    def _new(self, instance: Any) -> Node:
        reports: dict[str, Callable[[str], str]] = {
            "shutdown": partial(self.shut_down, instance),
            "mount": partial(storage.mount, self._world, instance),
        }
        node = self._nodes[instance.id] = Node(self._world, self._network, instance, next(self._numbers), reports)
        return node

    def _do(self, work: Callable[[], None]) -> threading.Thread:
        """Do something in the background; what goes wrong is in the fake's log."""

        def done() -> None:
            try:
                work()
            except Exception as error:
                sys.stderr.write(f"{work}: {type(error).__name__}: {error}\n")

        thread = threading.Thread(target=done)
        thread.start()
        self._background = [one for one in self._background if one.is_alive()] + [thread]
        return thread


@contextlib.contextmanager
def running(world: World, application: Callable[..., Any], port: int) -> Iterator[None]:
    """Have nodes for instances as long as the context lasts."""
    if reason := tools.why_not():
        raise RuntimeError(reason)
    clean(world)
    for name in ("instances", "efs"):
        (world.folder / name).mkdir(parents=True)
    net = network.Network(world.prefix)
    with contextlib.ExitStack() as stack:
        stack.callback(net.down)
        net.up()
        world.operator, world.port = net.host, port
        stack.enter_context(listener.listening(application, net.host, port))
        registry = stack.enter_context(Registry.running(world, net.host))
        machines = Machines(world, net)
        stack.callback(machines.end)
        world.checks.append(partial(roles.check, world))
        world.after += [machines.follow, partial(storage.follow, world)]
        world.parts.update({
            "reconcile": lambda _: machines.reconcile(),
            "console": machines.console,
            "node": machines.about,
            "cut": machines.cut,
            "notice": machines.notice,
            "interrupt": partial(machines.interrupt, take=world.parts["interrupt"]),
            "look-into-registry": registry.look,
            "delete-from-registry": registry.delete,
        })  # fmt: skip
        yield


def clean(world: World) -> None:
    """Remove what an earlier process with the same folder could not remove, because it was killed."""
    network.Network(world.prefix).down()
    remove_cgroups(f"{world.prefix}-*")
    forget(world)
    for name in ("instances", "efs"):
        shutil.rmtree(world.folder / name, ignore_errors=True)
