"""No key of the environment, of a file or of an address reaches a byte that dialogkit writes or prints."""

import json
from pathlib import Path

import pytest

from tests.conftest import SMALL, run_process

KEYS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWx",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYzzEXAMPLEKEY",
    "https_proxy": "http://someone:pr0xy-Passw0rd@127.0.0.1:9",
    "HF_ENDPOINT": "http://someone:endp0int-Passw0rd@127.0.0.1:9",
}
IN_FILE = "local-fedcba9876543210fedcba9876543210fedcba98"
SECRETS = [
    *(KEYS[name] for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")),
    *("pr0xy-Passw0rd", "endp0int-Passw0rd", IN_FILE),
]
LEFT_OUT = ("tracking.wandb", "tracking.report", "runtime.device")
SETTINGS = [
    word
    for name, value in SMALL.items()
    if name not in LEFT_OUT
    for word in ("--set", f"{name}={json.dumps(value)}")
]
COMMANDS = [
    ["train", "custom-nano", "--name", "one", "--wandb", "auto", "--no-cuda", *SETTINGS],
    ["train", "custom-nano", "--name", "two", "--wandb", "offline", "--no-cuda", *SETTINGS],
    ["evaluate", "one", "--samples", "4"],
    ["generate", "one", "--prompt", "Hello!", "--json"],
    ["generate", "someone/some-model", "--prompt", "Hello!"],
    ["train", "custom-nano", "--dataset", "http://someone:in-a-W0rd@127.0.0.1:9/rows.jsonl"],
    ["train", "custom-nano", "--tag", KEYS["WANDB_API_KEY"]],
    ["train", "custom-nano", "--set", f"tracking.notes=my key is {KEYS['HF_TOKEN']}"],
    ["train", "custom-nano", "--name", f"run-{KEYS['HF_TOKEN']}"],
    ["runs", "sync"],
    ["runs", "show", "one", "--all"],
    ["runs", "report", "one", "two", "--output", "both.html"],
    ["launch", "slurm", "--output", "job.sh", "--", "train"],
    ["launch", "kubernetes", "--image", "an/image:1", "--claim", "work", "--output", "job.yaml", "--", "train"],
    ["config", "show", "custom-nano"],
    ["doctor"],
    ["doctor", "--network"],
]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_no_secret_is_in_what_is_written_or_printed(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"WANDB_API_KEY={IN_FILE}\nWANDB_BASE_URL=http://127.0.0.1:9\n")
    (tmp_path / ".env").chmod(0o600)
    environment = {**KEYS, "WANDB_MODE": "", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    secrets, found, codes = [*SECRETS, "in-a-W0rd"], [], {}
    for words in COMMANDS:
        done = run_process(*words, cwd=tmp_path, **environment)
        assert done.code in (0, 1, 2), (words, done.err)
        assert "Traceback" not in done.err, (words, done.err)
        codes[" ".join(words)[:40]] = done.code
        found += [(words, secret) for secret in secrets if secret in done.out + done.err]
    assert found == []
    assert (codes["train custom-nano --name one --wandb aut"], codes["evaluate one --samples 4"]) == (0, 0)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".env"]
    assert len(files) > 40
    found_in = [
        (str(path), secret) for path in files for secret in secrets if secret.encode() in path.read_bytes()
    ]
    assert found_in == []
