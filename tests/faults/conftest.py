"""The training that is not disturbed, once for all tests of a session."""

from pathlib import Path

import pytest

from tests.faults.training import Undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, isolated_home: Path) -> Undisturbed:
    """How an undisturbed run ends."""
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))
