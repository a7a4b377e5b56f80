"""Whether the hub can be reached, asked once: without a network every load would wait some 20 s in retries."""

from __future__ import annotations

import functools
import socket
import urllib.request
from urllib.parse import urlsplit

import huggingface_hub.constants

PROBE_SECONDS = 3.0


@functools.cache
def reachable() -> bool:
    """Whether the hub answers. When it does not, the libraries are set to their local caches from here on."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    endpoint = urlsplit(huggingface_hub.constants.ENDPOINT)
    if endpoint.scheme in urllib.request.getproxies():
        return True  # only the proxy could say; the libraries ask it themselves
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError:
        import datasets.config

        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
        return False
    return True
