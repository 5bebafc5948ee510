"""What an evaluation is asked for."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.config.problems import config_error, list_problems, require_number
from dialogkit.config.tracking import TrackingConfig
from dialogkit.hints import Change


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Which models to evaluate, on which dialogs, and how; validated when it is made.

    Raises: ConfigError for a number out of range or an unknown W&B mode.
    """

    models: tuple[str | None, ...] = (None,)
    """Catalogue names, runs, folders or hub ids; None is the newest finished run."""
    dataset: str | None = None
    """A dataset as `train` takes it. None: the one of each model's run, or `starter`."""
    samples: int | None = None
    """Evaluate on this many held-out dialogs, those with the lowest content hash. None: all."""
    max_bad_rows: int = 0
    """Malformed rows of another dataset's file to skip."""
    whole: bool = False
    """Score every dialog of the dataset, the held-out ones first."""
    batch_size: int = 8
    """Dialogs per batch; does not change the metrics."""
    worst: int = 0
    """Number of worst dialogs for which to generate a reply as well."""
    quick: bool = False
    """Score the answers only: no replies, no baselines."""
    tasks: tuple[str, ...] = ()
    """Tasks of the lm-evaluation-harness, by name or file."""
    use_model_settings: bool = False
    """Sample replies with the settings that come with each model."""
    wandb: str | None = None
    """W&B mode. None: that of the run."""
    output: Path = Path(DEFAULT_OUTPUT)
    """Folder of models and runs."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.samples is not None:
            require_number("samples", self.samples, least=1, usual=20)
        require_number("max_bad_rows", self.max_bad_rows, least=0, usual=0)
        require_number("batch_size", self.batch_size, least=1, most=65_536, usual=8)
        require_number("worst", self.worst, least=0, usual=5)
        if self.wandb is None:
            return
        try:
            TrackingConfig.model_validate({"wandb": self.wandb})
        except ValidationError as error:
            raise config_error(list_problems(error), Change({"wandb": "auto"})) from None

    @property
    def own_data(self) -> bool:
        """Whether each model is evaluated on the dataset it was trained on."""
        return self.dataset is None

    @property
    def stores_results(self) -> bool:
        """Whether there will be anything to store: a quick evaluation without tasks leaves no trace."""
        return not self.quick or bool(self.tasks)
