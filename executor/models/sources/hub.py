"""Whether the Hugging Face hub can be asked, without waiting for long."""

from __future__ import annotations

import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_LONGEST_S = 5.0


@cache
def hub_answers() -> bool:
    """Whether somebody answers where the hub should be; asked once in a process.

    Without a network its library would try six times, half a minute in all, for each file, and say so each time. Behind a
    proxy the way to the hub is not ours to test, and the answer is yes.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    place = urlsplit(constants.ENDPOINT)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), timeout=_LONGEST_S).close()
    except OSError:
        return False
    return True
