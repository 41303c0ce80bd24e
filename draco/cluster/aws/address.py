"""The caller's own address, as the world sees it: the one place from which the head is reached by ssh."""

import ipaddress
import os
import urllib.request
from http.client import HTTPException

from draco.errors import MissingError

_ASKED = "https://checkip.amazonaws.com"  # answers with the address and nothing else; DRACO_CHECKIP_URL is another
_PATIENCE_S = 10
_LONGEST = 64


def own_cidr() -> str:
    """Return the caller's public IPv4 address as a network of one, x.y.z.w/32.

    Raises:
        MissingError: nobody tells it.
    """
    url = os.environ.get("DRACO_CHECKIP_URL") or _ASKED
    try:
        if not url.startswith(("https://", "http://")):
            raise ValueError("DRACO_CHECKIP_URL must begin with https://")
        with urllib.request.urlopen(url, timeout=_PATIENCE_S) as response:
            told = response.read(_LONGEST).decode("ascii").strip()
        return f"{ipaddress.IPv4Address(told)}/32"
    except (OSError, HTTPException, ValueError) as error:
        raise MissingError(
            f"{url} does not tell this machine's public IPv4 address ({error}): SET=ssh_cidr=x.y.z.w/32 names it"
        ) from error
