"""Measures what a training takes on this machine."""

import time
from typing import NamedTuple

from dialogkit.config.run import RunConfig


class Measured(NamedTuple):
    """What was measured of a model."""

    parameters: int
    parameters_without_embeddings: int
    device: str
    revision: str
    train_dialogs: int
    start_s: float
    """Seconds until the data are read and the model is built."""
    tokens_per_s: float
    step_s: float
    evaluation_s: float

    @property
    def costs(self) -> dict[str, float]:
        """What the parts of a training take, as a time budget counts them."""
        return {"start_s": self.start_s, "step_s": self.step_s, "evaluation_s": self.evaluation_s}


def measure(config: RunConfig) -> Measured:
    """Return what a training of a few steps takes on this machine. Raises: what a training raises at its start."""
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.services.training.memory_plan import fit_batch_to_memory
    from dialogkit.services.training.setup import TrainingSetup
    from dialogkit.services.training.speed import measure_speed

    runtime = resolve_runtime(config.runtime)
    started = time.perf_counter()
    setup = TrainingSetup(config, runtime)
    start_s = time.perf_counter() - started
    fit_batch_to_memory(setup)
    info, data = setup.model_info, setup.data
    speed = measure_speed(setup)
    return Measured(
        parameters=info["parameters"],
        parameters_without_embeddings=info["parameters_without_embeddings"],
        device=f"{runtime.device} ({runtime.device_name})",
        revision=data.ledger.revision,
        train_dialogs=len(data.sample),
        start_s=start_s,
        **speed._asdict(),
    )
