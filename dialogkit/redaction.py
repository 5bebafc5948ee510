"""Recognises secrets and removes them from what is written and printed."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from urllib.parse import unquote, urlsplit

_NAMES = r"token|secret|passw(?:or)?d|passphrase|pwd|credentials?|signature"
SECRET_NAME = re.compile(rf"(key|{_NAMES})$", re.IGNORECASE)  # not max_new_tokens
SHORTEST_SECRET = 8
"""Shorter values of the environment are not redacted, as they could be common words."""

_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"wandb_v1_[\w-]{16,}"
    r"|local-[0-9a-f]{40}(?![0-9a-f])"
    r"|hf_(?:oauth_|jwt_)?[A-Za-z0-9]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])"
    r"|(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[\w-]{16,}"
    r"|sk-(?=[\w-]{0,100}\d)[\w-]{32,}"
    r")"
)
_HEXADECIMAL = re.compile(
    # Commit hashes look the same, but follow such a word or are part of a path, as in the hub's cache.
    r"(?P<commit>(?:revision|commit|sha1?)\W{0,4})?(?<![\w/\\@-])[0-9a-f]{40}(?![\w/\\-])",
    re.IGNORECASE,
)
# A `Path` of a URL has lost one of its slashes. Bounded, as texts of any length are searched.
_IN_URL = re.compile(r"(:/{1,2})(?:[^\s/:@'\"]{0,256}:[^\s'\"]{0,1024}|[^\s/@'\"]{1,1024})@")
_NAMED = re.compile(
    rf"((?:(?<=[\w.-])key|{_NAMES})(?:\s{{0,8}}=\s{{0,8}}[\"']?|[\"']\s{{0,8}}:\s{{0,8}}[\"']))([^\s\"'&;,]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(authorization['\"]?\s*:\s*['\"]?(?:(?:bearer|basic)\s+)?)[^\s'\"]+", re.IGNORECASE)

_FOLDERS = ("PWD", "OLDPWD")
"""Variables that hold the shell's working folder, although their names look like those of passwords."""

_remembered: set[str] = set()


def remember(secret: str) -> str:
    """Remember a secret that was read from a file, so that it is redacted from now on, and return it."""
    if len(secret) >= SHORTEST_SECRET:
        _remembered.add(secret)
    return secret


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets of an environment by variable name, including passwords of proxies."""
    found = {}
    for name, value in environment.items():
        is_secret = SECRET_NAME.search(name) and name.upper() not in _FOLDERS
        secret = value.strip() if is_secret else ""
        if name.lower().endswith("_proxy") and "@" in value:
            with suppress(ValueError):
                secret = urlsplit(value if "://" in value else f"//{value}").password or ""
        if len(secret) >= SHORTEST_SECRET:
            found[name] = secret
    return found


def redact(text: str) -> str:
    """Return text with `***` in place of known secrets and of everything that looks like one."""
    return _redacted(_without(text, {*secrets_of(os.environ).values(), *_remembered}), named=True)


def secret_in(text: str, *, named: bool = True) -> str | None:
    """Describe the secret in a text: a key of W&B or the hub, or what looks like one; None if there is none.

    Args:
        text: a setting, or text to be written.
        named: also detect `name=value` where the name is that of a secret.
    """
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        value = os.environ.get(name, "").strip()
        if len(value) >= SHORTEST_SECRET and value in text:
            return f"the value of {name}"
    return "what seems to be a secret" if _redacted(_without(text, _remembered), named=named) != text else None


def without_secrets(words: Iterable[str]) -> list[str]:
    """Return the words of a command line with `***` for secrets, known by their look or their flag."""
    shown: list[str] = []
    hide = False
    for word in words:
        *names, _ = word.split("=")
        secret = next((number for number, name in enumerate(names) if SECRET_NAME.search(name)), None)
        if hide:
            shown.append("***")
            hide = False
        elif secret is not None:
            shown.append(redact("=".join([*names[: secret + 1], "***"])))
        else:
            shown.append(redact(word))
            hide = word.startswith("--") and bool(SECRET_NAME.search(word))
    return shown


def _without(text: str, secrets: set[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        for written in {secret, unquote(secret)}:
            if len(written) >= SHORTEST_SECRET:
                text = text.replace(written, "***")
    return text


def _redacted(text: str, *, named: bool) -> str:
    text = _IN_URL.sub(r"\1***@", text)
    text = _KEYS.sub("***", text)
    text = _HEXADECIMAL.sub(lambda found: found[0] if found["commit"] else "***", text)
    text = _HEADER.sub(r"\1***", text)
    return _NAMED.sub(r"\1***", text) if named else text
