"""Whether a server can be reached, asked quickly: the libraries themselves retry for minutes."""

import os
import socket
from functools import cache
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 2.0


@cache
def reachable(url: str) -> bool:
    """Return whether a TCP connection to the host of `url`, or to the proxy set for it, opens within 2 s."""
    scheme = urlsplit(url).scheme or "https"
    proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme.upper()}_PROXY")
    target = urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}" if proxy else url)
    port = target.port or (80 if target.scheme == "http" else 443)
    if not target.hostname:
        return False
    try:
        with socket.create_connection((target.hostname, port), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def hub_reachable() -> bool:
    """Return whether the Hugging Face hub may be asked: not forbidden by `HF_HUB_OFFLINE`, and it answers."""
    offline = os.environ.get("HF_HUB_OFFLINE", "") or os.environ.get("TRANSFORMERS_OFFLINE", "")
    if offline.strip().upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    return reachable(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
