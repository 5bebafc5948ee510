"""What a run reports before the first step: header, data ledger, warnings and costs."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dialogkit.config.train import TrainConfig
from dialogkit.data.split import BY_ROWS, held_out_remark
from dialogkit.engine import flops
from dialogkit.hints import Change, Hint
from dialogkit.text import counted, known_from_training
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from dialogkit.services.training.learner import Learner


def header(learner: "Learner", run: RunDir, wandb_run: WandbRun) -> dict[str, str]:
    """Return the information to show before the first step."""
    info = learner.model_info
    train = learner.config.train
    said = ", as the rows say" if learner.data.ledger.split_by == BY_ROWS else ""
    return {
        "model": f"{info['name']}, {info['parameters']:,} parameters "
        f"({info['parameters_without_embeddings']:,} without embeddings), "
        f"{info.get('architecture', '')}",
        **({"learns": _trainable(learner)} if train.method == "lora" else {}),
        "device": f"{learner.runtime.device} ({learner.runtime.device_name})"
        + (f", {learner.runtime.processes} processes" if learner.runtime.processes > 1 else ""),
        "precision": f"{learner.runtime.precision}, because {learner.runtime.precision_reason}",
        "data": f"{_dialogs_of(learner)} dialogs to train on, "
        f"{len(learner.data.evaluation):,} held out for evaluation{said} ({learner.data.ledger.dataset})",
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
    """Return one line on how many rows were kept, cut and dropped; for a stream, of those read so far."""
    ledger, (dialogs, tokens, supervised) = learner.data.ledger, _trained_on(learner)
    if learner.config.data.streaming and not ledger.rows:
        size = "" if learner.data.size is None else f", at most {counted(learner.data.size, 'dialog')} to train on"
        return f"{ledger.dataset}: read as a stream{size}; kept and dropped rows are reported at the end"
    return (
        f"{ledger.dataset}: {counted(ledger.rows, 'row')}{' so far' if learner.config.data.streaming else ''}, "
        f"{ledger.kept:,} kept, {ledger.cut:,} cut, "
        f"{ledger.dropped + ledger.unusable:,} dropped; to train on: {counted(dialogs, 'dialog')} with "
        f"{counted(supervised, 'supervised token')} ({supervised / max(1, tokens):.0%}: those of the answers)"
        + (" - from the cache" if learner.data.from_cache else "")
        + (f"; first dropped: {ledger.first_bad_row}" if ledger.first_bad_row else "")
    )


def warnings(learner: "Learner", advice: Callable[[Hint], str]) -> list[str]:
    """Return warnings about unexpected effects of the data and the settings.

    Args:
        learner: tokenizer, data and model.
        advice: renders a hint as the user would type it.
    """
    from dialogkit.engine.device import emulates_bf16
    from dialogkit.models.build import has_dropout

    lines = [learner.settings_note] if learner.settings_note else []
    lines += learner.data.ledger.remarks()
    if known := known_from_training(counted(len(learner.data.evaluation), "held-out dialog"), *learner.known):
        lines.append(f"{known}: their metrics say less about new questions")
    remark = held_out_remark(len(learner.data.evaluation), learner.data.ledger.kept)
    if remark and not learner.config.data.streaming:
        lines.append(remark)
    if (dropout := learner.config.train.dropout) and not has_dropout(learner.model):
        lines.append(f"train.dropout={dropout:g} does nothing: the layers of this model have no dropout")
    train, defaults = learner.config.train, TrainConfig()
    of_lora = (name for name in TrainConfig.model_fields if name.startswith("lora_"))
    unused = [name for name in of_lora if getattr(train, name) != getattr(defaults, name)]
    if train.method == "full" and unused:
        lines.append(f"train.{unused[0]} does nothing: train.method is full, and only lora uses it")
    if emulates_bf16(learner.runtime):
        faster = advice(Change({"runtime.precision": "fp32"}))
        lines.append(f"this CPU only emulates bf16: {faster} is many times faster")
    return lines


def data_info(learner: "Learner") -> dict[str, Any]:
    """Return the ledger and the sizes of the split; for a stream, those of its first pass so far."""
    evaluation, (dialogs, tokens, supervised) = learner.data.evaluation, _trained_on(learner)
    return {
        **asdict(learner.data.ledger),
        "kept": learner.data.ledger.kept,
        "train_dialogs": dialogs,
        "train_tokens": tokens,
        "train_supervised_tokens": supervised,
        "eval_dialogs": len(evaluation),
        "eval_supervised_tokens": evaluation.supervised_tokens,
        **dict(zip(("known_prompts", "known_answers"), learner.known, strict=True)),
    }


def flops_per_token(learner: "Learner") -> float:
    """Return the operations to train on a token of this data."""
    info, lengths, train = learner.model_info, learner.data.sample.lengths, learner.data.sample
    return flops.flops_per_token(
        parameters=info["parameters_without_embeddings"],
        width=info.get("width", 0),
        layers=info.get("layers", 0),
        vocabulary=info["vocabulary"],
        supervised_share=train.supervised_tokens / max(1, int(lengths.sum())),
        context=float((lengths**2).sum() / max(1, lengths.sum())),
        adapter=info["trainable_parameters"] if learner.config.train.method == "lora" else 0,
    )


def _trained_on(learner: "Learner") -> tuple[int, int, int]:
    """Return the training dialogs, their tokens and the supervised ones among these."""
    if learner.config.data.streaming:
        counts = learner.data.stream.counts  # type: ignore[union-attr]
        return counts.train, counts.train_tokens, counts.train_supervised_tokens
    train = learner.data.sample
    return len(train), int(train.lengths.sum()), train.supervised_tokens


def _dialogs_of(learner: "Learner") -> str:
    """Return the number of training dialogs, and of all available ones if not all are used."""
    if learner.data.size is None:
        return "a stream of"
    available = learner.data.ledger.kept - learner.data.ledger.spare - len(learner.data.evaluation)
    return f"{learner.data.size:,}" + (f" of {available:,}" if available > learner.data.size else "")


def _trainable(learner: "Learner") -> str:
    train, info = learner.config.train, learner.model_info
    trainable, total = info["trainable_parameters"], info["parameters"]
    return f"{trainable:,} parameters of LoRA, rank {train.lora_rank} ({trainable / total:.2%} of the model's)"
