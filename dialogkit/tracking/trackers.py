"""Trackers besides W&B: their packages, and where they write by default."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from dialogkit.errors import UnavailableError
from dialogkit.hints import Shell
from dialogkit.system.variables import changed_variables


def require_trackers(names: Sequence[str]) -> None:
    """Raise UnavailableError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UnavailableError(
                f"the tracker {name} needs a package that is not installed",
                hint=Shell(f"pip install 'dialogkit[{name}]'"),
            )


@contextmanager
def tracker_places(run: Path, output: Path, project: str) -> Iterator[None]:
    """Make trackers write into the run's folder or beside the runs, unless the user has set another place.

    They read environment variables, which are restored afterwards.
    """
    places = {
        "TENSORBOARD_LOGGING_DIR": str(run / "tensorboard"),
        "TRACKIO_DIR": str(output.absolute() / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{output.absolute() / 'mlflow.db'}",
        "MLFLOW_EXPERIMENT_NAME": project,
    }
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs each table that it creates
    with changed_variables({name: place for name, place in places.items() if name not in os.environ}):
        yield
