"""How a run that ends early is recorded."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dialogkit.errors import InterruptedRunError
from dialogkit.services.train import train


def test_a_stop_within_a_library_that_catches_everything_is_a_stop(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "from_pretrained", lambda *_, **__: signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(InterruptedRunError, match=r"^stopped by Ctrl-C before training began, so .*") as stop:
        train(small_config())
    assert stop.value.exit_code == 130
