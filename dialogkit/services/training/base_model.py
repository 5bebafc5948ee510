"""The base model of a LoRA adapter: checked, and recorded by a lasting path."""

from pathlib import Path

from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError
from dialogkit.hints import Call, Change
from dialogkit.services.runs.resolve import lasting_source, output_of
from dialogkit.tracking.publishing import published_dir


def with_lasting_base(config: RunConfig) -> RunConfig:
    """Return the settings; if they train an adapter, with a base model that will still exist later.

    Raises: ConfigError if the settings do not suit an adapter; UnavailableError without peft.
    """
    if config.train.method != "lora":
        return config
    from dialogkit.models.adapter_source import require_peft

    model, output = config.model, Path(config.runtime.output_dir)
    published = published_dir(output, model.name)
    if model.from_scratch:
        adapt = Call("train", published, method="lora", **output_of(output))
        first = Call("train", model.name, preset=config.preset, **output_of(output))
        raise ConfigError(
            f"train.method: lora adapts a trained model, but {model.name!r} starts from random weights",
            hint=adapt if published.is_dir() else first,
        )
    if config.train.optimizer != "adamw":
        raise ConfigError(
            f"train.optimizer: {config.train.optimizer} orthogonalizes whole matrices; LoRA has low-rank factors",
            hint=Change({"train.optimizer": "adamw"}),
        )
    require_peft()
    lasting = lasting_source(model, output)
    if not config.train.merge and Path(lasting.source or "").resolve() == published.resolve():
        raise ConfigError(
            f"the adapter would replace its own base model, {str(published)!r}",
            hint=Change({"model.name": f"my-{published.name}"}),
        )
    return config.model_copy(update={"model": lasting})
