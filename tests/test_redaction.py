"""No key in tags, addresses or words reaches a file, an error or a job file, and no commit is taken for one."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dialogkit.redaction import redact, remember, without_secrets
from tests.conftest import Finished

Run = Callable[..., Finished]

CANARY = "c4na7y"
FORMS = {
    "W&B": "0123456789abcdef" * 2 + "01234567",
    "W&B, newer": f"wandb_v1_{CANARY}abcdefghijklmnop",
    "hub": f"hf_{CANARY}abcdefghijklmnopqrstuv",
    "address": f"https://user:{CANARY}@host.example/x",
    "named": f"api_key={CANARY}",
    "AWS": "AKIAC4NA7YABCDEFGHIJ",
}
"""Secrets by what they look like."""
PARTS = (CANARY, "C4NA7Y", FORMS["W&B"])
"""What of them no file and no line may hold."""

PLACES = {
    "tag": ("train", "--tag", "{}"),
    "project": ("train", "--project", "{}"),
    "name": ("train", "--name", "{}"),
    "notes": ("train", "--set", "tracking.notes=see {} there"),
    "group": ("train", "--set", "tracking.group={}"),
    "entity": ("train", "--set", "tracking.entity={}"),
    "tags": ("train", "--set", 'tracking.tags=["a", "{}"]'),
    "prompt of the test": ("train", "--set", 'generate.test_prompts=["wandb_v1_c4na7yabcdefghijklmnop {}"]'),
    "license": ("train", "--set", "model.license={}"),
    "tokenizer": ("train", "--set", "model.tokenizer={}"),
    "number": ("train", "--set", "train.max_steps={}"),
    "choice": ("train", "--set", "train.schedule={}"),
    "unknown setting": ("train", "--set", "tracking.api_key={}"),
    "without a value": ("train", "--set", "{}"),
    "samples": ("train", "--samples", "{}"),
    "dataset": ("train", "--dataset", "{}"),
    "model": ("train", "{}"),
    "preset": ("train", "--preset", "{}"),
    "config": ("train", "--config", "{}"),
    "from": ("train", "--from", "{}"),
    "resume": ("train", "--resume", "{}"),
    "budget": ("train", "--budget", "{}"),
    "wandb mode": ("train", "--wandb", "{}"),
    "tracker": ("train", "--tracker", "{}"),
    "output": ("train", "--output-dir", "{}", "--tag", "{}"),
    "extra": ("train", "custom-nano", "{}"),
    "generate": ("generate", "{}", "--prompt", "Hello!"),
    "evaluate": ("evaluate", "{}"),
    "evaluate on": ("evaluate", "--dataset", "{}"),
    "runs show": ("runs", "show", "{}"),
    "models show": ("models", "show", "{}"),
    "data inspect": ("data", "inspect", "{}"),
    "config show": ("config", "show", "--set", "tracking.notes={}"),
    "config validate": ("config", "validate", "{}"),
    "job's words": ("launch", "slurm", "--", "train", "--tag", "{}"),
    "job's partition": ("launch", "slurm", "--partition", "{}", "--", "train"),
    "job's account": ("launch", "slurm", "--account", "{}", "--", "train"),
    "job's setup": ("launch", "slurm", "--setup", "export X={}", "--", "train"),
    "job's memory": ("launch", "slurm", "--memory", "{}", "--", "train"),
    "image": ("launch", "kubernetes", "--image", "{}", "--claim", "c", "--", "train"),
    "claim": ("launch", "kubernetes", "--image", "i", "--claim", "{}", "--", "train"),
    "secret": ("launch", "kubernetes", "--image", "i", "--claim", "c", "--secret", "{}", "--", "train"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_refused_without_repeating_it(place: str, dialogkit: Run) -> None:
    for form, secret in FORMS.items():
        words = [word.replace("{}", secret) for word in PLACES[place]]
        done = dialogkit(*words)
        reported = done.out + done.err
        assert done.code == 2, (form, reported)
        assert re.match(r"(loading .*\n)?(error: |a Job)", done.err), (form, reported)
        assert [part for part in PARTS if part in reported] == [], (form, reported)
        written = [path for path in Path().rglob("*") if path.is_file()]
        assert [path for path in written if any(part.encode() in path.read_bytes() for part in PARTS)] == []
        assert [path for path in Path().rglob("*") if any(part in path.name for part in PARTS)] == []


SHA = "0123456789abcdef" * 2 + "89abcdef"


@pytest.mark.parametrize(
    "text",
    [
        f"data.revision={SHA}",
        f"the revision '{SHA}' is not there",
        f"commit {SHA}",
        f"/home/me/.cache/huggingface/hub/models--x/snapshots/{SHA}/config.json",
        f"registry.example/image@sha256:{SHA}{SHA[:24]}",
        f"nightly-{SHA}",
        "generate.max_new_tokens=5",
        "https://huggingface.co/datasets/a/b",
        "http://127.0.0.1:8080/path",
        "the tokenizer has no pad token: give one",
        "hf-internal-testing/tiny-random-gpt2",
        "sk-learn-is-a-library-of-many-things-and-more",
    ],
)
def test_what_only_looks_a_little_like_a_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert without_secrets([text]) == [text]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:p@ss:w/rd@proxy.example:3128 refused", "http://***@proxy.example:3128 refused"),
        ('{"api_key": "c4na7y", "a": 1}', '{"api_key": "***", "a": 1}'),
        ("Authorization: Bearer c4na7y1234", "Authorization: Bearer ***"),
        ("https://host/x?token=c4na7y&a=1", "https://host/x?token=***&a=1"),
        ("local-" + SHA, "***"),
        ("password = 'c4na7y'", "password = '***'"),
    ],
)
def test_a_secret_is_left_out_of_text(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "piece",
    [
        "key",
        "http://a:",
        *(
            pytest.param(piece, marks=pytest.mark.faults)
            for piece in ("h", "://", "sk-", "token =", "revision ", "'secret' ", "a_")
        ),
    ],
)
def test_a_long_text_is_searched_at_once(piece: str) -> None:
    began = time.monotonic()
    redact(piece * (300_000 // len(piece)))
    assert time.monotonic() - began < 20


def test_the_working_folder_of_a_shell_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/somebody/project")
    monkeypatch.setenv("OLDPWD", "/home/somebody/elsewhere")
    text = "dialogkit train --dataset /home/somebody/project/d.jsonl --output-dir /home/somebody/elsewhere/models"
    assert redact(text) == text


def test_secrets_of_this_process_are_left_out_whatever_they_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "plain-words-only")
    monkeypatch.setenv("https_proxy", "http://me:hunter%2022@proxy:3128")
    remember("read-from-a-file")
    assert redact("a plain-words-only b hunter%2022 c hunter 22 d read-from-a-file") == "a *** b *** c *** d ***"
