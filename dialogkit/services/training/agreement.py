"""All ranks of a training need the same arguments."""

import json
import socket
from collections.abc import Mapping
from typing import Any

from dialogkit.config.load import flatten
from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError

_OWN = ("name", "runtime.devices", "runtime.output_dir")
"""Settings of which each process may have its own: of the places, the first one's is taken."""


def require_same_training(config: RunConfig) -> None:
    """Raise ConfigError, in every process alike, unless all of them were given the same settings for a new run."""
    _require_same({"--resume": None, **dict(flatten(config.model_dump(mode="json")))})


def require_same_resume(run: str, changes: Mapping[str, Any], *, force: bool) -> None:
    """Raise ConfigError, in every process alike, unless all of them go on with the same run in the same manner."""
    _require_same({"--resume": run, **({"--force": True} if force else {}), **changes})


def _require_same(asked: Mapping[str, Any]) -> None:
    from dialogkit.distributed import process_group

    if (
        process_group.count() == 1 or process_group.begun_run() is not None
    ):  # all go on with the run that they had begun
        return
    first, *others = process_group.gather((socket.gethostname(), asked))
    for index, other in enumerate(others, 1):
        names = [
            name
            for name in {**first[1], **other[1]}
            if name not in _OWN and first[1].get(name) != other[1].get(name)
        ]
        if not names:
            continue
        # What follows from another way to begin says no more.
        name = "--resume" if "--resume" in names else names[0]
        one, its = (
            f"{json.dumps(told[name]) if told.get(name) is not None else 'left out'} in process {number} on {host}"
            for number, (host, told) in ((0, first), (index, other))
        )
        more = f" (and {len(names) - 1} more)" if len(names) > 1 and name != "--resume" else ""
        raise ConfigError(
            f"the processes of a training take the same words, and {name} is {one} and {its}{more}",
            hint="start all of them with the same settings",
        )
