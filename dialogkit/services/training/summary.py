"""What a run reports about itself before the first step: header, data ledger, warnings, and its costs."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dialogkit.config.train import TrainConfig
from dialogkit.data.split import held_out_remark
from dialogkit.hints import Change, Hint
from dialogkit.text import counted
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from dialogkit.engine.histograms import Histogram
    from dialogkit.services.training.learner import Learner


def header(learner: "Learner", run: RunDir, wandb_run: WandbRun) -> dict[str, str]:
    """Return the facts to show before the first step."""
    facts = learner.model_info
    train = learner.config.train
    return {
        "model": f"{facts['name']}, {facts['parameters']:,} parameters "
        f"({facts['parameters_without_embeddings']:,} without embeddings), "
        f"{facts.get('architecture', '')}",
        **({"learns": _trainable(learner)} if train.method == "lora" else {}),
        "device": f"{learner.runtime.device} ({learner.runtime.device_name})"
        + (f", {learner.runtime.processes} processes" if learner.runtime.processes > 1 else ""),
        "precision": f"{learner.runtime.precision}, because {learner.runtime.precision_reason}",
        "data": f"{_dialogs_of(learner)} dialogs to train, "
        f"{len(learner.data.evaluation):,} held out ({learner.data.ledger.dataset})",
        "steps": (
            f"{learner.schedule.total_steps:,}"
            if train.budget_s is None
            else f"what fits into {train.budget_s:,.0f} s,"
        )
        + f" of {counted(train.batch_size, 'dialog')}, learning rate {train.learning_rate:g}",
        "run": str(run.path),
        "W&B": f"{wandb_run.mode} ({wandb_run.reason})"
        + (f", project {learner.config.tracking.project}" if wandb_run.mode != "disabled" else ""),
    }


def ledger_line(learner: "Learner") -> str:
    """Return in one line what became of the rows; of a stream, of those that were read so far."""
    ledger, (dialogs, tokens, supervised) = learner.data.ledger, _trained_on(learner)
    if learner.streamed and not ledger.rows:
        size = "" if learner.data.size is None else f", at most {counted(learner.data.size, 'dialog')} to train on"
        return f"{ledger.dataset}: read as a stream{size}; what became of its rows is told at the end"
    return (
        f"{ledger.dataset}: {counted(ledger.rows, 'row')}{' so far' if learner.streamed else ''}, "
        f"{ledger.kept:,} kept, {ledger.cut:,} cut, "
        f"{ledger.dropped + ledger.unusable:,} dropped; to train on: {counted(dialogs, 'dialog')} with "
        f"{counted(supervised, 'supervised token')} ({supervised / max(1, tokens):.0%} of theirs)"
        + (" - from the cache" if learner.data.from_cache else "")
        + (f"; first dropped: {ledger.first_bad_row}" if ledger.first_bad_row else "")
    )


def warnings(learner: "Learner", advice: Callable[[Hint], str]) -> list[str]:
    """Return what a user may not expect of the data and the settings.

    Args:
        learner: tokenizer, data and model.
        advice: renders a hint in the words in which the user gives commands.
    """
    from dialogkit.engine.device import emulates_bf16
    from dialogkit.models.build import has_dropout

    told = [learner.settings_note] if learner.settings_note else []
    if not learner.streamed and (
        remark := held_out_remark(len(learner.data.evaluation), learner.data.ledger.kept)
    ):
        told.append(remark)
    if (dropout := learner.config.train.dropout) and not has_dropout(learner.model):
        told.append(f"train.dropout={dropout:g} does nothing: the layers of this model have no dropout")
    train, defaults = learner.config.train, TrainConfig()
    of_lora = (name for name in TrainConfig.model_fields if name.startswith("lora_"))
    unused = [name for name in of_lora if getattr(train, name) != getattr(defaults, name)]
    if train.method == "full" and unused:
        told.append(f"train.{unused[0]} does nothing: train.method is full, and lora has a use for it")
    if emulates_bf16(learner.runtime):
        faster = advice(Change({"runtime.precision": "fp32"}))
        told.append(f"this CPU only emulates bf16: {faster} is many times faster")
    return told


def data_info(learner: "Learner") -> dict[str, Any]:
    """Return the ledger and the sizes of the split; of a stream those of its first pass so far."""
    evaluation, (dialogs, tokens, supervised) = learner.data.evaluation, _trained_on(learner)
    return {
        **asdict(learner.data.ledger),
        "kept": learner.data.ledger.kept,
        "train_dialogs": dialogs,
        "train_tokens": tokens,
        "train_supervised_tokens": supervised,
        "eval_dialogs": len(evaluation),
        "eval_supervised_tokens": evaluation.supervised_tokens,
    }


def flops_per_token(learner: "Learner") -> float:
    """Return the operations to train on a token of this data."""
    from dialogkit.engine.flops import flops_per_token

    facts, lengths, train = learner.model_info, learner.data.sample.lengths, learner.data.sample
    return flops_per_token(
        parameters=facts["parameters_without_embeddings"],
        width=facts.get("width", 0),
        layers=facts.get("layers", 0),
        vocabulary=facts["vocabulary"],
        supervised_share=train.supervised_tokens / max(1, int(lengths.sum())),
        context=float((lengths**2).sum() / max(1, lengths.sum())),
        adapter=facts["trainable_parameters"] if learner.config.train.method == "lora" else 0,
    )


def peak_flops(learner: "Learner") -> float | None:
    """Return the most operations a second of the device, where that is known."""
    from dialogkit.engine.flops import peak_flops

    return peak_flops(learner.runtime.device_name, learner.runtime.precision)


def length_histogram(learner: "Learner") -> "Histogram":
    """Return the histogram of the training dialogs' tokens."""
    import numpy as np

    from dialogkit.engine.histograms import Histogram

    return Histogram(*np.histogram(learner.data.sample.lengths, bins=32))


def _trained_on(learner: "Learner") -> tuple[int, int, int]:
    """Return the training dialogs, their tokens and the supervised ones among these."""
    if learner.streamed:
        counts = learner.data.stream.counts  # type: ignore[union-attr]
        return counts.train, counts.train_tokens, counts.train_supervised_tokens
    train = learner.data.sample
    return len(train), int(train.lengths.sum()), train.supervised_tokens


def _dialogs_of(learner: "Learner") -> str:
    """Return how many dialogs there are to train on, and of how many where not all are used."""
    if learner.data.size is None:
        return "a stream of"
    available = learner.data.ledger.kept - len(learner.data.evaluation)
    return f"{learner.data.size:,}" + (f" of {available:,}" if available > learner.data.size else "")


def _trainable(learner: "Learner") -> str:
    train, facts = learner.config.train, learner.model_info
    number, whole = facts["trainable_parameters"], facts["parameters"]
    return f"{number:,} parameters of LoRA, rank {train.lora_rank} ({number / whole:.2%} of the model's)"
