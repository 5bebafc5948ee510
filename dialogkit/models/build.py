"""Build models: from a shape with random weights, or from the weights of a source."""

import re
from collections.abc import Iterable
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dialogkit.config.model import ModelConfig
from dialogkit.errors import ModelError, UnavailableError, shortened
from dialogkit.hints import Call, Change
from dialogkit.models.adapter_source import find_adapter
from dialogkit.models.adapters import merge_into, require_finite
from dialogkit.models.context import SHORTEST_CONTEXT, require_context
from dialogkit.models.generation import without_generation_settings
from dialogkit.models.limits import time_limit
from dialogkit.models.sources import load_from_source, size_of, unusable
from dialogkit.models.tokenizer import ChatTokenizer
from dialogkit.text import byte_size, counted

BUILD_SECONDS = 15.0
"""Time limit for building a config on the meta device; models of hundreds of layers take 1-2 s."""
_NAMED_TOKENS = 5
"""Tokens without an embedding that an error names."""
_LAYER = re.compile(r"\.(\d+)\.")


def build_model(
    config: ModelConfig, tokenizer: ChatTokenizer, *, seed: int = 42, dropout: float = 0.0, room: int | None = None
) -> Any:
    """Return a float32 causal language model for training, as plain transformers classes.

    From scratch the weights depend only on the shape, the vocabulary and the seed. The generation config ends
    a reply at the tokenizer's end of turn. If the source is an adapter, it is merged into its base. `dropout` is
    the probability of dropping a hidden state in training; `room` limits the bytes that the weights of a source
    may take.

    Raises: ModelError if the source cannot be loaded, does not fit its tokenizer or computes NaN;
    UnavailableError if its weights do not fit into memory.
    """
    if config.from_scratch:
        if config.vocabulary is not None and config.vocabulary != tokenizer.vocabulary:
            raise ModelError(
                f"{config.name!r} has a vocabulary of {config.vocabulary}, but its tokenizer has "
                f"{tokenizer.vocabulary} entries",
                hint=Change({"model.vocabulary": tokenizer.vocabulary}),
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not those of devices, which would not be restored
            model = _new_model(config, tokenizer, dropout)
    else:
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        adapter = find_adapter(config)
        source = config if adapter is None else adapter.base
        described = without_generation_settings(load_from_source(AutoConfig.from_pretrained, source))
        _require_buildable(source, described, room)
        model, report = load_from_source(
            AutoModelForCausalLM.from_pretrained,
            source,
            config=described,
            # Given here, the model's own is not read.
            generation_config=GenerationConfig(),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        # Transformers would fill missing weights with random numbers.
        _require_all_layers(source, model, report["unexpected_keys"])
        absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
        if absent:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise ModelError(
                f"the weights of {config.source!r} do not fit its config: {absent[0]!r}{more} is missing or has "
                "another shape"
            )
        _remove_quantization_marks(model)
        _require_embeddings(tokenizer, model.get_input_embeddings().weight.shape[0], config)
        require_finite(repr(source.source), model.named_parameters())
        if adapter is not None:
            merge_into(model, adapter)
        _require_numbers(model, config.source or "")
        _set_dropout(model, dropout)
    end_at_turn(model, tokenizer)
    return model


def _require_embeddings(tokenizer: ChatTokenizer, rows: int, config: ModelConfig) -> None:
    """Raise ModelError if the ids of a tokenizer reach beyond the embeddings of its model."""
    surplus = tokenizer.tokens_from(rows)
    if not surplus:
        return
    named = ", ".join(f"{shortened(token, 40)!r} ({number})" for number, token in surplus[:_NAMED_TOKENS])
    more = f" and {len(surplus) - _NAMED_TOKENS:,} more" if len(surplus) > _NAMED_TOKENS else ""
    one = len(surplus) == 1
    raise ModelError(
        f"the tokenizer of {config.source!r} has {counted(len(surplus), 'token')} for which its model, with "
        f"{rows:,} embeddings, has none: {named}{more}",
        hint=f"remove {'it' if one else 'them'} from the tokenizer, or save the model with "
        f"{tokenizer.highest_id + 1:,} embeddings (resize_token_embeddings in transformers)",
    )


def end_at_turn(model: Any, tokenizer: ChatTokenizer) -> None:
    """Set the end of turn as the end of a generated text, for whatever tool generates it.

    The model's generation config holds special tokens and nothing else.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.hf.bos_token_id,
        eos_token_id=sorted(tokenizer.reply_stop_ids),
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
        except OSError:  # the disk's fault, not the model's
            raise
        except Exception as error:
            raise unusable(source.source or source.name, error) from None


def _require_buildable(config: ModelConfig, described: Any, room: int | None) -> None:
    """Build a source's model on the meta device; raise if that takes too long or it would need too much memory.

    A config decides how much is built before the first weight is read.
    """
    from transformers import AutoModelForCausalLM

    source = config.source or ""
    require_context(source, described)
    try:
        with time_limit(BUILD_SECONDS), torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    except TimeoutError:
        raise ModelError(
            f"the config of {source!r} describes a model that takes more than {BUILD_SECONDS:g} s to build"
        ) from None
    except Exception as error:  # whatever a library raises for a nonsensical config
        raise unusable(source, error) from None
    numbers = sum(tensor.numel() for tensor in {*skeleton.parameters(), *skeleton.buffers()})
    held = size_of(config)
    if held and numbers > 8 * held:
        raise ModelError(
            f"the config of {source!r} describes {numbers:,} parameters, but its weights have only {held:,} bytes"
        )
    if room is not None and 4 * numbers > room:
        raise UnavailableError(
            f"the weights of {source!r} take {byte_size(4 * numbers)} of memory; {byte_size(room)} are free",
            hint=Call("models list"),
        )


def _require_all_layers(config: ModelConfig, model: Any, unexpected: Iterable[str]) -> None:
    """Raise ModelError if weights hold layers that the config lacks: they would be dropped silently."""
    layers = getattr(model.config, "num_hidden_layers", 0)
    beyond = [name for name in sorted(unexpected) if (found := _LAYER.search(name)) and int(found[1]) >= layers]
    if layers and beyond:
        raise ModelError(
            f"the config of {config.source!r} has {layers} layers, but its weights hold more: {beyond[0]!r}"
        )


@torch.no_grad()
def _require_numbers(model: Any, source: str) -> None:
    """Raise ModelError if a model fails on a short text, or computes NaN or infinity."""
    entries = model.get_input_embeddings().weight.shape[0]
    # On shorter texts some kernels skip NaN.
    ids = (torch.arange(SHORTEST_CONTEXT) % entries)[None]
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    except Exception as error:  # untrusted settings that nothing has used so far
        raise unusable(source, error) from None
    finally:
        model.train(was_training)
    if logits.shape != (1, ids.shape[1], entries) or not torch.isfinite(logits).all():
        raise ModelError(
            f"{source!r} computes NaN or infinity for {ids.shape[1]} tokens, though its weights are finite"
        )


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
    """Return whether `train.dropout` has any effect on a model; Llama, for one, has no dropout."""
    return any(_drops(name, module) for name, module in model.named_modules())


def _drops(name: str, module: torch.nn.Module) -> bool:
    # Attention inside packed dialogs has no dropout.
    return isinstance(module, torch.nn.Dropout) and "attn_dropout" not in name and "attention_dropout" not in name


def _set_dropout(model: Any, dropout: float) -> None:
    """Set dropout in the configuration and in every module: existing modules ignore the configuration."""
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
    """Remove what marks a dequantized GGUF model as quantized, so that it trains and saves normally."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "is_quantized", "quantization_method", "_is_quantized"):
        if mark in model.__dict__:
            delattr(model, mark)
