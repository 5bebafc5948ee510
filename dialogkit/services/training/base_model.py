"""What has to be so before a training of an adapter begins."""

from pathlib import Path

from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError
from dialogkit.services.runs.resolve import lasting_source, output_option
from dialogkit.tracking.publishing import published_dir


def with_lasting_base(config: RunConfig) -> RunConfig:
    """Return the settings of a run whose base, if it trains an adapter, stays where it is.

    Raises: ConfigError if the settings do not suit an adapter; UnavailableError without peft.
    """
    if config.train.method != "lora":
        return config
    from dialogkit.models.adapters import require_peft

    model, output = config.model, Path(config.runtime.output_dir)
    published = published_dir(output, model.name)
    if model.from_scratch:
        trained = f"dialogkit train {published} --method lora"
        first = f"dialogkit train {model.name} --preset {config.preset}"
        raise ConfigError(
            f"train.method: lora adapts what a model has learned, and {model.name!r} begins with random weights",
            hint=(trained if published.is_dir() else first) + output_option(output),
        )
    if config.train.optimizer != "adamw":
        raise ConfigError(
            f"train.optimizer: {config.train.optimizer} evens out whole matrices, and LoRA's are halves of one",
            hint="--set train.optimizer=adamw",
        )
    require_peft()
    lasting = lasting_source(model, output)
    if not config.train.merge and Path(lasting.source or "").resolve() == published.resolve():
        raise ConfigError(
            f"the adapter would take the place of its own base, {str(published)!r}",
            hint=f"--set model.name=my-{published.name}",
        )
    return config.model_copy(update={"model": lasting})
