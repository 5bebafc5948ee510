"""What ranks other than 0 write: nothing."""

import inspect
from pathlib import Path
from typing import Any

from dialogkit.services.training.silent import SilentRunDir
from dialogkit.system.ownership import FILE_LIST
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir

WRITES: dict[str, tuple[Any, ...]] = {
    "write": (RunRecord(name="run", created="", config={}),),
    "list_files": (),
    "unlist_files": (),
    "cut_after": (0,),
    "append_metrics": (1, {"train/loss": 1.0}),
    "append_histograms": (1, {"weights": ([1, 2], [0.0, 0.5, 1.0])}),
    "append_sample": ({"step": 1, "prompt": "Hello!", "reply": "Hi."},),
    "append_console": ("a line",),
}
"""The methods that write, with arguments."""
READS = {
    "checkpoints", "create", "held", "metrics", "read", "require_free", "require_no_links", "require_there",
    "samples",
}  # fmt: skip
"""The others; `create` and `held` are called on rank 0 alone, and by `locked`."""


def test_every_method_that_writes_is_silent(tmp_path: Path) -> None:
    public = {name for name, _ in inspect.getmembers(RunDir, inspect.isroutine) if not name.startswith("_")}
    assert public == WRITES.keys() | READS | {"locked"}
    real = tmp_path / "real"
    real.mkdir()
    # Two files that are shortened or deleted where these methods are not silent.
    (real / "metrics.jsonl").write_text('{"step": 9}\n')
    (real / FILE_LIST).write_text("")
    before = {path.name: path.read_bytes() for path in real.iterdir()}
    for path in (real, tmp_path / "elsewhere"):
        silent = SilentRunDir(path)
        with silent.locked():
            for name, arguments in WRITES.items():
                getattr(silent, name)(*arguments)
    assert {path.name: path.read_bytes() for path in real.iterdir()} == before
    assert not (tmp_path / "elsewhere").exists()
