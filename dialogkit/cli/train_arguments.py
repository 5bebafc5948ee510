"""What was typed after `train`, also where it is part of a job: its options, and the settings that they give."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.cli.options import given_settings, one_model
from dialogkit.errors import ConfigError

if TYPE_CHECKING:
    from dialogkit.config.load import LoadedConfig


@dataclass(frozen=True)
class TrainArguments:
    """The options of `train` as they were typed, by the names of its parameters."""

    command: Callable[..., Any]
    given: Mapping[str, Any]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings by dotted names, of the options and of `--set`. Raises: ConfigError for a wrong word."""
        from dialogkit.config.load import parse_sets

        return given_settings(self.command, self.given) | parse_sets(self.given["sets"] or [])

    @property
    def model(self) -> str | None:
        """MODEL, as a word or by its option. Raises: ConfigError for two different ones."""
        return one_model(self.given["model"], self.given["model_option"])

    @property
    def output(self) -> Path:
        """Folder of models and runs."""
        from dialogkit.config.paths import DEFAULT_OUTPUT

        return Path(self.given["output_dir"] or DEFAULT_OUTPUT)

    def load(self) -> "LoadedConfig":
        """Return the configuration of a new run. Raises: ConfigError, ModelError."""
        from dialogkit.config.load import load_with_origins
        from dialogkit.services.training.resume import find_start

        model, settings = self.model, self.settings
        if self.given["from_run"] is not None:
            start, trained = find_start(self.given["from_run"], output=self.output)
            model, settings = str(start), {"model.name": trained, **settings}
        loaded = load_with_origins(
            model, preset=self.given["preset"], config_file=self.given["config"], overrides=settings
        )
        if self.given["no_merge"] and (method := loaded.config.train.method) != "lora":
            raise ConfigError(
                f"--no-merge keeps the adapter that LoRA trains, and --method is {method!r}",
                hint="--method lora --no-merge",
            )
        return loaded
