"""The whole configuration of a run."""

from typing import Self

from pydantic import Field, model_validator

from dialogkit.config.base import Section, conflict
from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.model import NAME_PATTERN, ModelConfig
from dialogkit.config.runtime import RuntimeConfig
from dialogkit.config.tracking import TrackingConfig
from dialogkit.config.train import TrainConfig


class RunConfig(Section):
    """Everything that determines a run. Machine-written copies are complete and reproduce the run."""

    name: str | None = Field(None, pattern=NAME_PATTERN)
    """Name of the run. None: {model}-{preset}-{timestamp}."""
    preset: str = Field("custom", pattern=NAME_PATTERN)
    """The preset that the settings are based on."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    tracking: TrackingConfig = TrackingConfig()
    generate: GenerateConfig = GenerateConfig()

    @model_validator(mode="after")
    def _check_sharding(self) -> Self:
        if self.runtime.sharding == "fsdp" and self.train.optimizer == "muon":
            raise conflict(
                "train.optimizer 'muon' needs complete matrices, and runtime.sharding 'fsdp' leaves each process "
                "only a shard of them",
                "train.optimizer",
                "adamw",
            )
        if self.runtime.sharding == "fsdp" and self.train.method == "lora":
            raise conflict(
                "train.method 'lora' needs the complete base model in each process, and runtime.sharding 'fsdp' "
                "shards it",
                "runtime.sharding",
                "none",
            )
        return self
