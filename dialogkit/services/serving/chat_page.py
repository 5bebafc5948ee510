"""The page to chat on."""

import base64
import hashlib
import re
from importlib.resources import files
from typing import NamedTuple


class ChatPage(NamedTuple):
    """The page, and the digest of its script, as a policy names it."""

    html: str
    digest: str


def chat_page() -> ChatPage:
    """Return the page."""
    html = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    return ChatPage(html, f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")
