"""Check that all ranks have the same request."""

import json
import socket
from dataclasses import replace
from pathlib import Path

from dialogkit.config.load import flatten
from dialogkit.distributed import process_group, rendezvous
from dialogkit.errors import ConfigError, DialogKitError
from dialogkit.services.training.lifecycle import TrainRequest
from dialogkit.tracking.run_dir import RunDir

_OWN = ("name", "runtime.devices", "runtime.output_dir")
"""Settings that may differ between ranks: rank 0's output folder is used."""


def require_same_request(request: TrainRequest) -> TrainRequest:
    """Return the request of all ranks: the one given, or to resume the run of ranks that were restarted.

    Raises: ConfigError on every rank if they differ.
    """
    if (begun := rendezvous.started_run()) is not None:
        return _restart_request(request, begun) if request.resumed is None else replace(request, restarted=True)
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


def _restart_request(request: TrainRequest, folder: Path) -> TrainRequest:
    """Return the request to resume the run that these ranks had started before one of them was lost.

    Raises: DialogKitError with exit code 0 if that run is finished.
    """
    run = RunDir(folder)
    if process_group.broadcast(process_group.is_main_process() and run.read().status == "completed"):
        error = DialogKitError(f"the run {run.name!r} is finished: there is nothing to do")
        error.exit_code = 0
        raise error
    if process_group.is_main_process():
        times = rendezvous.restarts()
        line = "a rank was lost: all ranks are restarted" + (f" ({times})" if times else "")
        run.append_console(line)
        request.reporter.note(line)
    return TrainRequest(resumed=run, restarted=True, command=request.command, reporter=request.reporter)
