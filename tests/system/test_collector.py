"""The garbage collector is changed in a process of dialogkit's own alone."""

import gc
from collections.abc import Iterator

import pytest

from dialogkit.system import collector


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the collector."""
    threshold = gc.get_threshold()
    monkeypatch.setattr(collector, "is_own", False)
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("as_before")
def test_only_a_process_of_its_own_spares_what_is_loaded() -> None:
    gc.unfreeze()  # what is frozen may be freed at any time, which would change the count
    frozen = gc.get_freeze_count()
    collector.spare_loaded()
    assert gc.get_freeze_count() == frozen
    young, middle, full = gc.get_threshold()
    collector.take_over()
    collector.spare_loaded()
    assert gc.get_freeze_count() > frozen
    assert gc.get_threshold()[:2] == (young, middle)
    assert gc.get_threshold()[2] > full
