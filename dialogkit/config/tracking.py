"""What is recorded where."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from dialogkit.config.base import CONFLICT, Section

Tracker = Literal["tensorboard", "trackio", "mlflow"]
Tag = Annotated[str, Field(min_length=1, max_length=64)]

_NOT_IN_PROJECT = re.compile(r"[/\\#?%:]")


class TrackingConfig(Section):
    """Where to record a run. The local record is always written."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """W&B mode. auto: online when a key is found and the server answers, offline otherwise."""
    project: str = Field("dialog-model-training", min_length=1, max_length=128)
    """W&B project."""
    entity: str | None = Field(None, min_length=1, max_length=128)
    """W&B user or team. None: the key's default."""
    group: str | None = Field(None, min_length=1, max_length=128)
    """W&B group of runs."""
    notes: str | None = Field(None, max_length=4096)
    """Free text shown beside the W&B run."""
    histogram_every_steps: int | None = Field(None, examples=[50], ge=0, le=1_000_000)
    """Steps between histograms of weights and gradients. None: five per run, at most 500 steps apart. 0: none."""
    replies_at_evaluations: int = Field(3, ge=0, le=1_000)
    """Test prompts answered at each evaluation in 32 tokens, all at the end. 0: none, nor checked questions."""
    held_out_replies: int = Field(2, ge=0, le=1_000)
    """Held-out dialogs whose first turn is answered too, shown with the answer of the dataset. 0: none."""
    report: bool = True
    """Write an HTML page about the run into its folder when it has finished."""
    log_model: bool = False
    """Upload the finished model to W&B as an artifact."""
    trackers: tuple[Tracker, ...] = Field((), max_length=3, strict=False)
    """Trackers beside W&B: tensorboard, trackio, mlflow. Each is an extra, such as dialogkit[tensorboard]."""
    tags: tuple[Tag, ...] = Field((), max_length=50, strict=False)
    """Further W&B tags, beside the model, the preset, single-model and pipeline."""

    @field_validator("project")
    @classmethod
    def _check_project(cls, value: str) -> str:
        """Refuse what W&B refuses in a project's name, which otherwise turns W&B off when the run starts."""
        if found := sorted(set(_NOT_IN_PROJECT.findall(value))):
            fitting = _NOT_IN_PROJECT.sub("-", value).strip("-") or "my-project"
            problem = f"W&B allows no {' '.join(found)} in the name of a project (got {value!r})"
            context = {"problem": problem, "setting": "tracking.project", "value": fitting}
            raise PydanticCustomError(CONFLICT, "{problem}", context)
        return value
