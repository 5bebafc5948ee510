"""The scale of the loss in float16, which lifts small gradients above the smallest number of that type."""

from typing import Any

import torch

COLLAPSED = 1.0
"""A scale below this no longer lifts gradients: they overflow for another reason."""


class LossScaler(torch.amp.GradScaler):
    """torch's scaler, which also counts the steps that it skips, without making a GPU wait.

    The scale begins with 65,536, doubles after 2,000 steps without overflow, and is halved by each step with one:
    such a step changes no weight.

    Source: Micikevicius et al. 2018, "Mixed precision training", section 3.2.
    """

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._one_on = device
        self._skipped: torch.Tensor | int = 0
        self._skips: torch.Tensor | bool = False

    @property
    def skipped_steps(self) -> int:
        """Steps skipped so far, those before a resume included."""
        return int(self._skipped)

    @property
    def skipped_last_step(self) -> bool:
        """Whether the latest step was skipped."""
        return bool(self._skips)

    @property
    def has_collapsed(self) -> bool:
        """Whether gradients overflow whatever the scale."""
        return self.get_scale() < COLLAPSED

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Adapt the scale to the step, and count it if it was skipped."""
        before = self._present()
        super().update(new_scale)
        self._skips = self._present() < before
        self._skipped = self._skipped + self._skips.long()

    def _present(self) -> torch.Tensor:
        """Return the scale on its device; `get_scale` waits for it."""
        return self.scale(torch.ones((), device=self._one_on))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {**super().state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint holds."""
        super().load_state_dict(state_dict)
        self._skipped = int(state_dict["skipped_steps"])
