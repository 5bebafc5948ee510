"""Check that all ranks of a training have the same request."""

import json
import socket
from dataclasses import replace

from dialogkit.config.load import flatten
from dialogkit.distributed import process_group, rendezvous
from dialogkit.errors import ConfigError
from dialogkit.services.training.lifecycle import TrainRequest, restart_request

_OWN = ("name", "runtime.devices", "runtime.output_dir")
"""Settings that may differ between ranks: rank 0's output folder is used."""


def require_same_request(request: TrainRequest) -> TrainRequest:
    """Return the request of all ranks: the one given, or to resume the run of ranks that were restarted.

    Raises: ConfigError on every rank if they differ.
    """
    if (begun := rendezvous.begun_run()) is not None:
        return restart_request(request, begun) if request.resumed is None else replace(request, restarted=True)
    if process_group.world_size() == 1:
        return request
    if request.config is not None:
        asked = {"resume": None, **dict(flatten(request.config.model_dump(mode="json")))}
    else:
        assert request.resumed is not None
        asked = {"resume": request.resumed.name, **({"force": True} if request.force else {}), **request.changes}
    first, *others = process_group.all_gather((socket.gethostname(), asked))
    for rank, other in enumerate(others, 1):
        differing = [name for name in {**first[1], **other[1]} if first[1].get(name) != other[1].get(name)]
        names = [name for name in differing if name not in _OWN]
        if not names:
            continue
        # Other differences follow from resuming another run.
        name = "resume" if "resume" in names else names[0]
        one, its = (
            f"{json.dumps(given[name]) if given.get(name) is not None else 'left out'} on rank {number} ({host})"
            for number, (host, given) in ((0, first), (rank, other))
        )
        more = f" (and {len(names) - 1} more)" if len(names) > 1 and name != "resume" else ""
        raise ConfigError(
            f"all ranks need the same arguments: {name} is {one} and {its}{more}",
            hint="start all ranks with the same settings",
        )
    return request
