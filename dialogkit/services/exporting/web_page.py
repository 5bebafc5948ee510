"""A page that runs a model in the browser: what stands in its folder beside the weights."""

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.generate import GenerateConfig
from dialogkit.errors import ModelError
from dialogkit.hints import Change

if TYPE_CHECKING:
    from dialogkit.models.tokenizer import ChatTokenizer

SCRIPTS = ("local.js", "model.js", "sampling.js", "tokenizer.js", "worker.js")
FILES = ("index.html", *SCRIPTS, "settings.json", "tokenizer.json")
_ROLES = ("system", "user", "assistant")
_OTHERWISE = Change({"to": "gguf"})


def require_page(tokenizer: "ChatTokenizer") -> None:
    """Raise ModelError if the page would make other ids of a dialog than dialogkit."""
    from dialogkit.models.byte_level import composes_accents, pre_tokenizer_of, rules_of

    rules = rules_of(tokenizer)
    pre_tokenizer_of(rules)
    composes_accents(rules)
    for token in rules["added_tokens"]:
        if named := next((name for name in ("lstrip", "rstrip", "single_word") if token[name]), None):
            raise ModelError(
                f"the token {token['content']!r} changes the text around it ({named}), which the page does not do",
                hint=_OTHERWISE,
            )
    if tokenizer.turn_format is None:
        raise ModelError(
            "the model has a chat template of its own, and the page renders the formats of dialogkit only",
            hint=_OTHERWISE,
        )


def write_page(
    folder: Path,
    name: str,
    tokenizer: "ChatTokenizer",
    sampling: GenerateConfig,
    *,
    context: int,
    cache: tuple[int, int, int],
    html: str,
    digest: str,
) -> None:
    """Write the page, its scripts, the tokenizer and the settings.

    Args:
        folder: where.
        name: the name that the page shows.
        tokenizer: one that `require_page` accepts.
        sampling: the settings where the page's user gives none.
        context: the longest dialog, in tokens.
        cache: layers, groups of keys, and the numbers of a head.
        html: the page that a server has.
        digest: that of its script.
    """
    from dialogkit.models.byte_level import pre_tokenizer_of, rules_of

    rules, turns = rules_of(tokenizer), tokenizer.turn_format
    assert turns is not None
    settings: dict[str, Any] = {
        "name": name,
        "splits": pre_tokenizer_of(rules),
        "format": {
            **{part: getattr(turns, part) for part in ("start", "separator", "end_of_turn")},
            **{role: getattr(turns, role) for role in _ROLES},
        },
        "ends": sorted(tokenizer.reply_stop_ids),
        "context": context,
        "cache": dict(zip(("layers", "groups", "head"), cache, strict=True)),
        "sampling": sampling.model_dump(
            include={"temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens"}
        ),
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
    (folder / "index.html").write_text(local_page(html, digest), encoding="utf-8")
    for script in SCRIPTS:
        content = files(__package__).joinpath("web", script).read_text(encoding="utf-8")
        (folder / script).write_text(content, encoding="utf-8")


def local_page(html: str, digest: str) -> str:
    """Return the chat page with a worker in place of the server, and the policy that it reaches nothing else."""
    policy = (
        f"default-src 'none'; script-src 'self' {digest}; style-src 'unsafe-inline'; "
        "connect-src 'self'; worker-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    charset, script = '<meta charset="utf-8">\n', "<script>"
    assert (html.count(charset), html.count(script)) == (1, 1)
    header = f'{charset}<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    return html.replace(charset, header).replace(script, f'<script src="local.js"></script>\n{script}')
