"""Reads the transaction log that W&B's service writes for an offline run."""

import json
import struct
import time
from pathlib import Path
from typing import Any


def records(run_folder: Path) -> list[Any]:
    """Return what a finished run wrote. W&B's service writes its end a moment after `finish` returns."""
    (path,) = run_folder.glob("*.wandb")
    until = time.monotonic() + 60
    while not (found := read_log(path.read_bytes())) or not found[-1].HasField("exit"):
        assert time.monotonic() < until, "the run has no end"
        time.sleep(0.02)
    return found


def read_log(content: bytes) -> list[Any]:
    """Read a transaction log of W&B: LevelDB's framing around protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, parts, found = 7, b"", []
    while position + 7 <= len(content):
        left_in_block = 32_768 - position % 32_768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        position += 7 + length
        parts += content[position - length : position]
        if kind in (1, 4) and position <= len(content):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(found: list[Any]) -> list[dict[str, Any]]:
    return [values(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]


def only_offline_run(folder: Path) -> Path:
    (found,) = (folder / "wandb").glob("offline-run-*")
    return found
