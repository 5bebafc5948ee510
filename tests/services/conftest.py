"""Evaluations that ask for fewer replies."""

from collections.abc import Iterator

import pytest

REPLIES = 16


@pytest.fixture(scope="module", autouse=True)
def few_replies() -> Iterator[None]:
    """An evaluation asks for 16 replies and not 64: most of its time goes into them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dialogkit.services.evaluation.evaluator.REPLIES", REPLIES)
        yield
