"""Load a model with its tokenizer for inference."""

from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.services.runs.resolve import Loadable

if TYPE_CHECKING:
    from dialogkit.models.tokenizer import ChatTokenizer


class LoadedModel(NamedTuple):
    """A float32 model on its device, with its tokenizer."""

    name: str
    model: Any
    tokenizer: "ChatTokenizer"
    context: int
    """Longest sequence, in tokens."""
    device: str


def load_for_inference(loadable: Loadable, *, device: str) -> LoadedModel:
    """Return the model and tokenizer of a MODEL argument.

    Raises: ModelError; UnavailableError, also if the weights do not fit into memory.
    """
    from dialogkit.config.runtime import RuntimeConfig
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.models.build import build_model
    from dialogkit.models.context import context_length
    from dialogkit.models.tokenizer import load_tokenizer
    from dialogkit.system.memory import free_bytes

    runtime = resolve_runtime(RuntimeConfig.model_validate({"device": device}))
    tokenizer = load_tokenizer(loadable.model)
    model = build_model(loadable.model, tokenizer, room=free_bytes()).to(runtime.device).eval()
    return LoadedModel(loadable.name, model, tokenizer, context_length(model.config), runtime.device)
