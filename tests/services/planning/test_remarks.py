"""What is said about a run with a time budget."""

from typing import Any

import pytest

from dialogkit.config.load import load_run_config
from dialogkit.services.planning.remarks import larger_batch


@pytest.mark.parametrize(
    ("model", "settings", "steps", "advised"),
    [
        ("custom-tiny", {"train.batch_size": 8}, 400, True),
        ("custom-tiny", {"train.batch_size": 32}, 400, False),
        ("custom-tiny", {"train.batch_size": 8}, 100, False),
        ("gpt2-small", {"train.batch_size": 8}, 400, False),
    ],
)
def test_a_larger_batch_is_advised_to_models_from_scratch_with_time_for_it(
    model: str, settings: dict[str, Any], steps: int, advised: bool
) -> None:
    note = larger_batch(load_run_config(model, overrides=settings), steps)
    assert (note is not None) == advised
