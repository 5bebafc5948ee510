"""Uploads the offline W&B runs of an output folder."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dialogkit.redaction import redact
from dialogkit.system.credentials import Credentials
from dialogkit.tracking.wandb_run import sound_settings

SYNC_TIMEOUT_S = 600.0
"""Time limit for the upload of one offline run."""

_SYNC_SETTINGS = {
    "WANDB__GRAPHQL_TIMEOUT_SECONDS": "10",
    "WANDB__GRAPHQL_RETRY_MAX": "2",
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB__FILE_STREAM_TIMEOUT_SECONDS": "15",
    "WANDB__FILE_STREAM_RETRY_MAX": "2",
    "WANDB__FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB__FILE_TRANSFER_RETRY_MAX": "2",
    "WANDB__FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB_ERROR_REPORTING": "false",
}
"""Retries of W&B's upload for an unresponsive server; by default it retries for days."""

_EMPTY_BYTES = 7  # a `.wandb` file's header without a record


def offline_folders(output: Path) -> list[Path]:
    """Return the offline W&B runs of an output folder that are not uploaded yet, oldest first."""
    folders = sorted((output / "wandb").glob("offline-run-*"))
    return [folder for folder in folders if folder.is_dir() and not list(folder.glob("*.wandb.synced"))]


def folders_of_run(output: Path, wandb_id: str | None) -> list[Path]:
    """Return the offline folders of one W&B run that are not uploaded yet; each start of it made one.

    Where two starts fall into one second, W&B ends the name of the second folder with a number.
    """
    own = re.compile(rf".+-{re.escape(wandb_id or '')}(-\d+)?")
    return [folder for folder in offline_folders(output) if wandb_id and own.fullmatch(folder.name)]


def sync_folder(folder: Path, credentials: Credentials) -> str | None:
    """Upload one offline run. Return the reason if that failed, else None. Says nothing: that may take a while.

    Each upload has its own process, because W&B gives up all runs of a call at the first unreadable one. The
    process and the service that it starts are killed after `SYNC_TIMEOUT_S`, or if this function is interrupted.

    Raises: TimeoutError if the upload took too long.
    """
    files = list(folder.glob("*.wandb"))
    if not files or files[0].stat().st_size <= _EMPTY_BYTES:
        return f"{folder.name} holds no record: its run ended before W&B wrote any"
    key = credentials.require_key()
    # Nothing from the working directory, such as modules or W&B settings, may be loaded beside the key.
    command = [sys.executable, "-P", "-m", "wandb", "sync", str(folder.absolute())]
    environment = {**_SYNC_SETTINGS, **os.environ, "WANDB_API_KEY": key, "WANDB_BASE_URL": credentials.server}
    with tempfile.TemporaryFile("w+", errors="replace") as printed, tempfile.TemporaryDirectory() as empty:
        try:
            child = subprocess.Popen(
                command,
                env=environment | sound_settings(empty),
                cwd=empty,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"{folder.name}: {error.strerror or type(error).__name__}"
        try:
            deadline = time.monotonic() + SYNC_TIMEOUT_S
            while child.poll() is None:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{folder.name} was not uploaded within {SYNC_TIMEOUT_S:.0f} s")
                with suppress(subprocess.TimeoutExpired):
                    child.wait(0.25)
        finally:
            _end_group(child)
        printed.seek(0)
        lines = printed.read().replace(key, "***").strip().splitlines()
    wrong = [line for line in lines if "error" in line.lower()]
    # W&B also exits with 0 if the server did not answer or refused; its mark file confirms the upload.
    if child.returncode == 0 and not wrong and list(folder.glob("*.wandb.synced")):
        return None
    reason = (wrong or lines[-1:] or [""])[0].removeprefix("wandb: ").removeprefix("ERROR ").strip()
    if reason in ("", "<no message>"):
        reason = "W&B gives no reason; the server may refuse the key"
    return f"{folder.name} was not uploaded: {redact(reason)}"


def _end_group(child: "subprocess.Popen[Any]") -> None:
    """Kill a process and its children, also if the process itself has ended."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    elif child.poll() is None:
        child.kill()
    child.wait()
