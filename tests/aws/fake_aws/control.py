"""The control endpoint, /_fake/NAME: JSON in, JSON out. Tests set things here and nodes report to it."""

import json
import threading
from typing import Any

from fake_aws.errors import Answer
from fake_aws.gaps import spot
from fake_aws.world import World

PREFIX = "/_fake/"


def install(world: World) -> None:
    """Add the parts that every fake has."""

    def faults(given: dict[str, Any]) -> None:
        world.faults.set(given)

    def prices(given: dict[str, Any]) -> None:
        world.prices.set(given)

    def quotas(given: dict[str, Any]) -> dict[str, float]:
        world.quotas.update({code: float(limit) for code, limit in given.items()})
        return world.quotas

    def calls(given: dict[str, Any]) -> list[dict[str, Any]]:
        return [call for call in list(world.calls) if given.get("action") in (None, call["action"])]

    def settings(given: dict[str, Any]) -> dict[str, float]:
        world.console_delay_s = float(given.get("console_delay_s", world.console_delay_s))
        world.minute_s = float(given.get("minute_s", world.minute_s))
        return {"console_delay_s": world.console_delay_s, "minute_s": world.minute_s}

    def spot_status(given: dict[str, Any]) -> None:
        spot.mark(world, given["instance"], given["code"])

    def interrupt(given: dict[str, Any]) -> None:
        """Mark a spot instance for termination, and end it so many seconds later."""
        instance = world.ec2.get_instance(given["instance"])

        def take() -> None:
            if instance.state == "running":
                spot.interrupt(world, instance)
                world.parts["reconcile"]({})

        spot.mark(world, instance.id)
        timer = threading.Timer(float(given["after_s"]), take)
        timer.daemon = True
        timer.start()

    def reconcile(given: dict[str, Any]) -> None:
        """Without nodes there is nothing to bring in line with the API."""

    world.parts.update({
        "faults": faults, "prices": prices, "quotas": quotas, "calls": calls, "settings": settings,
        "spot-status": spot_status, "interrupt": interrupt, "reconcile": reconcile,
    })  # fmt: skip


def answer(world: World, name: str, given: dict[str, Any]) -> Answer:
    """Answer one request; what goes wrong comes back as `{"error": ...}` with status 400."""
    part = world.parts.get(name)
    if part is None:
        return _json(404, {"error": f"no part {name!r}; there are {sorted(world.parts)}"})
    try:
        return _json(200, {"result": part(given)})
    except Exception as error:  # tests and scripts on nodes show what it says
        return _json(400, {"error": f"{type(error).__name__}: {error}"})


def _json(status: int, content: Any) -> Answer:
    return Answer(status, "application/json", json.dumps(content, default=str).encode())
