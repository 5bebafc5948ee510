"""What a run says about its GPU, from the points that it logged."""

import pytest

from dialogkit.services.training.gpu_use import GpuUse

GIB = 2**30


@pytest.mark.parametrize(
    ("busy", "peak", "larger"),
    [
        ([0.1, 0.14], 4, 64),  # by its share of the time
        ([0.1, 0.14], 14, 32),  # by memory
        ([0.5, 0.3], 4, 16),
        ([0.6], 4, None),  # twice as many would take longer
        ([0.9], 4, None),
        ([0.1], 70, None),
        ([], 4, None),
    ],
)
def test_a_larger_batch_is_named_where_the_gpu_is_idle_and_has_room(
    busy: list[float], peak: int, larger: int | None
) -> None:
    use = GpuUse()
    use.point({"eval/nats_per_token": 1.0})
    for share in busy:
        memory = {"gpu/memory_peak_bytes": peak * GIB, "gpu/memory_allocated_bytes": 2 * GIB}
        use.point({"gpu/utilization": share, **memory})
    assert use.busy == (pytest.approx(sum(busy) / len(busy)) if busy else None)
    assert use.larger_batch(8, 80 * GIB) == larger
