"""The record of a run: the content of `run.json`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

Status = Literal["running", "completed", "failed", "interrupted", "diverged"]


def _as_utf8(text: str) -> str:
    """Return text that JSON can hold: a command line may contain file names that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


Word = Annotated[str, AfterValidator(_as_utf8)]


class Info(BaseModel):
    """One section of the record; a field that was not recorded is None.

    Run folders may come from other versions or other people. A known field of the wrong type reads as None, unless
    it is in `required_types`. Writing the section back changes nothing: unknown, damaged and missing fields stay
    as they were read.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    required_types: ClassVar[frozenset[str]] = frozenset()
    """Fields that make the whole record unreadable if their type is wrong."""
    _damaged: dict[str, Any] = PrivateAttr(default_factory=dict)
    """Known fields of the wrong type, as they were read."""

    @model_validator(mode="wrap")
    @classmethod
    def _set_damaged_aside(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(content, Mapping | cls):
            raise PydanticCustomError("dict_type", "Input should be a JSON object")
        if isinstance(content, Mapping):
            content = {_as_utf8(str(name)): value for name, value in content.items()}
        try:
            return handler(content)
        except ValidationError as error:
            wrong = {str(problem["loc"][0]) for problem in error.errors(include_url=False, include_input=False)}
            if not isinstance(content, Mapping) or wrong & cls.required_types:
                raise
            info = handler({name: value for name, value in content.items() if name not in wrong})
            info._damaged = {name: value for name, value in content.items() if name in wrong}
            return info

    @model_serializer(mode="wrap")
    def _as_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        known = {name: value for name, value in handler(self).items() if name in self.model_fields_set}
        return self._damaged | known


class RuntimeInfo(Info):
    """Device and precision of the run."""

    device: str | None = None
    device_name: str | None = None
    device_reason: str | None = None
    precision: str | None = None
    precision_reason: str | None = None
    processes: int | None = None
    sharding: str | None = None


class AdapterBaseInfo(Info):
    """The weights that an adapter was trained on."""

    base: str | None = None
    """Hub id or folder."""
    revision: str | None = None
    """Commit on the hub."""
    metadata: dict[str, Any] | None = None
    """Digest of the weights in a folder."""


class ModelInfo(Info):
    """Name, shape and parameter counts of the model."""

    required_types = frozenset(
        {"name", "source", "architecture", "parameters", "layers", "width", "heads", "context", "vocabulary"}
    )

    name: str | None = None
    source: str | None = None
    """Hub id or folder of the initial weights; None for random ones."""
    parameters: int | None = None
    """Tied embeddings counted once, a LoRA adapter not at all."""
    parameters_without_embeddings: int | None = None
    dtype: str | None = None
    trainable_parameters: int | None = None
    adapter_base: AdapterBaseInfo | None = None
    architecture: str | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    context: int | None = None
    """Longest sequence, in tokens."""
    vocabulary: int | None = None


class DataInfo(Info):
    """The dataset, what was read of it, and its split."""

    required_types = frozenset({"dataset", "revision", "eval_dialogs"})

    dataset: str | None = None
    format: str | None = None
    license: str | None = None
    revision: str | None = None
    """SHA-256 of the file, or the fingerprint of a hub dataset."""
    rows: int | None = None
    unusable: int | None = None
    cut: int | None = None
    dropped: int | None = None
    first_bad_row: str | None = None
    notes: dict[str, int] | None = None
    """What was repaired or left out of the rows, with the number of dialogs."""
    unused_columns: list[str] | None = None
    template_notes: dict[str, int] | None = None
    """What was changed in the dialogs to fit the chat template, with the number of dialogs."""
    answers: int | None = None
    """Answers to learn in the dialogs that the chat template accepts."""
    not_learned: dict[str, int] | None = None
    """Those that are not learned under the template, by reason."""
    split_by: str | None = None
    """`hash`: by a hash of their text; `rows`: as their rows say."""
    spare: int | None = None
    """Dialogs that their rows hold out beyond those that are evaluated."""
    checked: int | None = None
    """Answers whose rows say what a right answer contains."""
    kept: int | None = None
    train_dialogs: int | None = None
    train_tokens: int | None = None
    train_supervised_tokens: int | None = None
    eval_dialogs: int | None = None
    eval_supervised_tokens: int | None = None
    known_prompts: int | None = None
    """Held-out dialogs whose prompt is that of a dialog to train on; None if unknown, as for a stream."""
    known_answers: int | None = None
    """Held-out dialogs whose first answer is that of a dialog to train on."""


class GitInfo(Info):
    """Commit of the working directory."""

    commit: str | None = None
    branch: str | None = None
    dirty: bool | None = None
    """None if git did not answer in time."""


class GpuInfo(Info):
    """The GPU, its driver and CUDA."""

    name: str | None = None
    count: int | None = None
    memory_bytes: int | None = None
    capability: str | None = None
    cuda: str | None = None
    driver: str | None = None


class EnvironmentInfo(Info):
    """The machine and the working directory of the run."""

    platform: str | None = None
    host: str | None = None
    cpu: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    executable: str | None = None
    folder: str | None = None
    """Working directory."""
    git: GitInfo | None = None
    gpu: GpuInfo | None = None


class ScheduleInfo(Info):
    """Numbers of optimizer steps; all None until the data is read."""

    model_config = ConfigDict(strict=False)

    required_types = frozenset({"total_steps", "log_every_steps", "eval_every_steps"})

    total_steps: int | None = None
    log_every_steps: int | None = None
    eval_every_steps: int | None = None


class WandbInfo(Info):
    """The W&B run."""

    mode: str | None = None
    reason: str | None = None
    id: str | None = None
    url: str | None = None


class Resumption(Info):
    """One resumption of an interrupted run."""

    time: str | None = None
    step: int | None = None
    """Step of the checkpoint; 0 without one."""
    told_step: int = -1
    """Last step that was logged before it resumed; -1 for none."""


def _require_sections(config: dict[str, Any]) -> dict[str, Any]:
    """Check the sections of the settings that are read without validating all of them."""
    for name in ("model", "data", "tracking", "runtime"):
        if not isinstance(config.get(name, {}), dict):
            raise ValueError(f"{name} has the wrong type")
    return config


class RunRecord(BaseModel):
    """The content of `run.json`. Sections that are not known yet are empty."""

    # Non-finite metrics are written as text: JSON's null would not read back as a number.
    model_config = ConfigDict(extra="allow", ser_json_inf_nan="strings")

    name: str
    status: Status = "running"
    resumed: list[Resumption] = []
    created: str
    finished: str | None = None
    duration_s: float | None = None
    exit_code: int | None = None
    command: list[Word] = []
    config: Annotated[dict[str, Any], AfterValidator(_require_sections)] = {}
    """The resolved settings. They stay unvalidated: `load_changed` checks them before a run uses them."""
    origins: dict[str, Word] = {}
    runtime: RuntimeInfo = RuntimeInfo()
    model: ModelInfo = ModelInfo()
    data: DataInfo = DataInfo()
    environment: EnvironmentInfo = EnvironmentInfo()
    versions: dict[str, str] = {}
    schedule: ScheduleInfo = ScheduleInfo()
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    """95% intervals of metrics over the held-out dialogs, by the names of the metrics."""
    replies: dict[str, float] = {}
    wandb: WandbInfo = WandbInfo()
    error: str | None = None
    _made_as: str | None = None
    """The name in the file, which stays there if the folder is renamed."""

    def settings(self, section: str) -> Mapping[str, Any]:
        """Return one section of the settings, such as `model`; empty if it was not recorded."""
        found = self.config.get(section)
        return found if isinstance(found, Mapping) else {}

    @property
    def model_name(self) -> str:
        """Name of the model that the run trains; empty if it was not recorded."""
        return self.model.name or str(self.settings("model").get("name") or "")


def now() -> str:
    """Return the present time as ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
