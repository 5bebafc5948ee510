"""The page to chat on."""

import base64
import hashlib
from importlib.resources import files
from typing import NamedTuple


class ChatPage(NamedTuple):
    """The page, and the digest of its script, as a policy names it."""

    html: str
    digest: str


def chat_page() -> ChatPage:
    """Return the page."""
    html, style, script = (
        files(__package__).joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    html = html.replace("<style>", f"<style>{style}").replace("<script>", f"<script>{script}")
    return ChatPage(html, f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")
