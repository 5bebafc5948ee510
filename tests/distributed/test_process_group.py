"""Errors that only mean that another rank is lost, and errors of this rank itself."""

import pytest

from dialogkit.distributed.shutdown import is_lost_peer
from dialogkit.errors import DataError, ProcessLostError


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ProcessLostError("gone"), True),
        (ConnectionResetError("reset"), True),
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:4"),
            True,
        ),
        (RuntimeError("NCCL Error 2: unhandled system error"), True),
        (RuntimeError("Broken pipe in TCPStore::get"), True),
        (RuntimeError("[2] is setting up a communicator, but store->get('0') has an error"), True),
        # A restart would not help.
        (RuntimeError("NCCL error: unhandled cuda error: Failed to CUDA calloc 608 bytes, out of memory"), False),
        (
            RuntimeError(
                "don't know how to restore data location of torch.storage.UntypedStorage (tagged with a)"
            ),
            False,
        ),
        (RuntimeError("Error(s) in loading state_dict for GPT2LMHeadModel: size mismatch"), False),
        (ValueError("gloo"), False),
        (DataError("the store is empty"), False),
    ],
)
def test_which_errors_mean_that_another_rank_is_lost(error: Exception, lost: bool) -> None:
    assert is_lost_peer(error) is lost
