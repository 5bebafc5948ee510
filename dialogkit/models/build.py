"""Models: from a shape with random weights, or with the weights of a source."""

from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dialogkit.config.model import ModelConfig
from dialogkit.errors import ModelError
from dialogkit.models.adapters import find_adapter, merge_into
from dialogkit.models.generation import without_generation_settings
from dialogkit.models.sources import load_from_source, unusable
from dialogkit.models.tokenizer import ChatTokenizer


def build_model(config: ModelConfig, tokenizer: ChatTokenizer, *, seed: int = 42, dropout: float = 0.0) -> Any:
    """Return a float32 causal language model for training, as plain transformers classes.

    From scratch the weights depend on the shape, the vocabulary and the seed only. The generation config ends
    a reply at the tokenizer's end of turn. Where the source is an adapter, it is merged into the model that it
    belongs to.

    Raises: ModelError if the source cannot be loaded or does not fit its tokenizer.
    """
    if config.from_scratch:
        if config.vocabulary is not None and config.vocabulary != tokenizer.vocabulary:
            raise ModelError(
                f"{config.name!r} has a vocabulary of {config.vocabulary}, but its tokenizer has "
                f"{tokenizer.vocabulary} entries",
                hint=f"--set model.vocabulary={tokenizer.vocabulary}",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _new_model(config, tokenizer, dropout)
    else:
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        adapter = find_adapter(config)
        source = config if adapter is None else adapter.base
        model, report = load_from_source(
            AutoModelForCausalLM.from_pretrained,
            source,
            config=without_generation_settings(load_from_source(AutoConfig.from_pretrained, source)),
            # In the place of the model's own, which is then not read.
            generation_config=GenerationConfig(),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        # In the place of these, transformers would go on with random numbers.
        absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
        if absent:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise ModelError(
                f"the weights of {config.source!r} do not fit its config: {absent[0]!r}{more} is missing or of "
                "another shape"
            )
        _remove_quantization_marks(model)
        entries = model.get_input_embeddings().weight.shape[0]
        if tokenizer.vocabulary > entries:
            raise ModelError(
                f"the tokenizer of {config.source!r} has {tokenizer.vocabulary} entries, but its model only "
                f"{entries}"
            )
        if adapter is not None:
            merge_into(model, adapter)
        _set_dropout(model, dropout)
    end_at_turn(model, tokenizer)
    return model


def end_at_turn(model: Any, tokenizer: ChatTokenizer) -> None:
    """Make the end of turn the end of a generated text, whatever tool generates it.

    The model's generation config has special tokens and nothing else.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.hf.bos_token_id,
        eos_token_id=sorted(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    model.config.eos_token_id = tokenizer.end_of_turn_id
    model.config.pad_token_id = tokenizer.pad_id


def require_savable(model: Any, source: ModelConfig) -> None:
    """Raise ModelError if transformers would refuse to save a model's configs, as at the first checkpoint."""
    with TemporaryDirectory(prefix="dialogkit-configs-") as folder, suppress(OSError):
        try:
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
        except OSError:  # about this disk, and not about the model
            raise
        except Exception as error:
            raise unusable(source.source or source.name, error) from None


def context_length(model: Any) -> int:
    """Return the longest text, in tokens, that the model's attention and positions allow."""
    return _longest(model.config)


def read_context(config: ModelConfig) -> int:
    """Return what `context_length` would of the model, from its configuration alone.

    Raises: ModelError if the source cannot be read; UnavailableError if it lies on an unreachable hub.
    """
    if config.from_scratch and config.context is not None:
        return config.context
    from transformers import AutoConfig

    adapter = find_adapter(config)
    return _longest(load_from_source(AutoConfig.from_pretrained, config if adapter is None else adapter.base))


def _longest(config: Any) -> int:
    longest: int = getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 1024)
    window: int | None = getattr(config, "sliding_window", None)
    # Attention here is full inside a dialog; up to the window that is the same.
    return min(longest, window) if window else longest


def _new_model(config: ModelConfig, tokenizer: ChatTokenizer, dropout: float) -> Any:
    shared = {
        "vocab_size": tokenizer.vocabulary,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.end_of_turn_id,
        "pad_token_id": tokenizer.pad_id,
        "use_cache": True,
    }
    if config.architecture == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        shape = GPT2Config(
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            n_positions=config.context,
            n_inner=config.feed_forward_width,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=0.0,
            **shared,
        )
        return GPT2LMHeadModel(shape)
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=config.feed_forward_width,
        max_position_embeddings=config.context,
        **shared,
    )
    return LlamaForCausalLM(shape)


def has_dropout(model: Any) -> bool:
    """Return whether `train.dropout` does anything to a model; Llama's layers, for one, have none."""
    return any(_drops(name, module) for name, module in model.named_modules())


def _drops(name: str, module: torch.nn.Module) -> bool:
    # Attention inside packed dialogs has no dropout.
    return isinstance(module, torch.nn.Dropout) and "attn_dropout" not in name and "attention_dropout" not in name


def _set_dropout(model: Any, dropout: float) -> None:
    """Set the configuration, and every dropout module: once these exist, the former alone changes nothing."""
    for name in ("attn_pdrop", "attention_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    for name in ("resid_pdrop", "embd_pdrop", "hidden_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, dropout)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout if _drops(name, module) else 0.0


def _remove_quantization_marks(model: Any) -> None:
    """Make a de-quantized GGUF model an ordinary one, so that it trains and saves as such."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "is_quantized", "quantization_method", "_is_quantized"):
        if mark in model.__dict__:
            delattr(model, mark)
