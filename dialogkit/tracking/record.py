"""The record of a run, as `run.json` keeps it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

Status = Literal["running", "completed", "failed", "interrupted", "diverged"]


_SIZES = dict.fromkeys(("parameters", "layers", "width", "heads", "context", "vocabulary"), int | None)


def _as_utf8(text: str) -> str:
    """Return text that JSON can hold: words of a command line may name files whose names are no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


Word = Annotated[str, AfterValidator(_as_utf8)]


def _holding(**kinds: Any) -> AfterValidator:
    """Check the facts that are read back: a record may be anybody's."""

    def check(facts: dict[str, Any]) -> dict[str, Any]:
        if wrong := [name for name, kind in kinds.items() if name in facts and not isinstance(facts[name], kind)]:
            raise ValueError(f"{wrong[0]} has the wrong type")
        return facts

    return AfterValidator(check)


_Config = Annotated[dict[str, Any], _holding(model=dict, data=dict, tracking=dict, runtime=dict)]

_Model = Annotated[dict[str, Any], _holding(name=str, source=str | None, architecture=str | None, **_SIZES)]

_Data = Annotated[dict[str, Any], _holding(dataset=str, revision=str | None, eval_dialogs=int)]


class RunRecord(BaseModel):
    """The content of `run.json`. Parts that are not known yet are empty."""

    # A figure that is no number is written as text; JSON's null would not be read back.
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="strings")

    name: str
    status: Status = "running"
    resumed: list[dict[str, Any]] = []
    """When and at which step an interrupted run was gone on with."""
    created: str
    finished: str | None = None
    duration_s: float | None = None
    exit_code: int | None = None
    command: list[Word] = []
    config: _Config = {}
    origins: dict[str, Word] = {}
    runtime: dict[str, Any] = {}
    model: _Model = {}
    data: _Data = {}
    environment: dict[str, Any] = {}
    versions: dict[str, str] = {}
    schedule: dict[str, int] = {}
    metrics: dict[str, float] = {}
    replies: dict[str, float] = {}
    wandb: dict[str, Any] = {}
    error: str | None = None
    _made_as: str | None = None
    """The name in the file, which a renamed run keeps there."""


def now() -> str:
    """Return the present time as ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
