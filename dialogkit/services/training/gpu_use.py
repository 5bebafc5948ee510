"""How busy a run kept its GPU, and which batch would use more of it."""

from collections.abc import Mapping

LITTLE_USED = 0.7
"""Share of the time below which a larger batch is suggested."""
SPARE_MEMORY = 0.9
"""Share of the GPU's memory that a suggested batch may take."""


class GpuUse:
    """Collects what the logged points of a run say about its GPU."""

    def __init__(self) -> None:
        self._busy: list[float] = []
        self._peak = 0.0
        self._held = 0.0

    def point(self, metrics: Mapping[str, float]) -> None:
        """Add a logged point."""
        if "gpu/utilization" in metrics:
            self._busy.append(metrics["gpu/utilization"])
        self._peak = max(self._peak, metrics.get("gpu/memory_peak_bytes", 0.0))
        # After a step only weights and the optimizer's state are left, whatever the batch.
        self._held = metrics.get("gpu/memory_allocated_bytes", self._held)

    @property
    def busy(self) -> float | None:
        """Mean share of the time in which the GPU computed; None if the driver was not asked."""
        return sum(self._busy) / len(self._busy) if self._busy else None

    def larger_batch(self, batch_size: int, memory: float) -> int | None:
        """Return the batch size, doubled as often as useful, that keeps the GPU busy; None if this one does.

        A GPU that is idle waits for the processor, which takes about as long for a larger batch.

        Args:
            batch_size: dialogs of a step in this run.
            memory: bytes of memory of the GPU.
        """
        if self.busy is None or self.busy >= LITTLE_USED:
            return None
        of_dialogs = max(self._peak - self._held, 1.0)
        room = (SPARE_MEMORY * memory - self._held) / of_dialogs
        most = batch_size * min(1 / max(self.busy, 0.01), room)
        larger = batch_size
        while 2 * larger <= most:
            larger *= 2
        return larger if larger > batch_size else None
