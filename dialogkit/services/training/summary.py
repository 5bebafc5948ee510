"""What a run reports before the first step: header, data ledger, warnings and costs."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dialogkit.config.train import TrainConfig
from dialogkit.data.split import BY_ROWS, held_out_remark
from dialogkit.engine import flops
from dialogkit.hints import Call, Change, Hint
from dialogkit.text import counted, known_from_training
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from dialogkit.services.training.setup import TrainingSetup


def header(setup: "TrainingSetup", run: RunDir, wandb_run: WandbRun) -> dict[str, str]:
    """Return the information to show before the first step."""
    info = setup.model_info
    train = setup.config.train
    said = ", as the rows say" if setup.data.ledger.split_by == BY_ROWS else ""
    return {
        "model": f"{info['name']}, {info['parameters']:,} parameters "
        f"({info['parameters_without_embeddings']:,} without embeddings), "
        f"{info.get('architecture', '')}",
        **({"learns": _trainable(setup)} if train.method == "lora" else {}),
        "device": f"{setup.runtime.device} ({setup.runtime.device_name})"
        + (f", {setup.runtime.processes} processes" if setup.runtime.processes > 1 else "")
        + f", because {setup.runtime.device_reason}",
        "precision": f"{setup.runtime.precision}, because {setup.runtime.precision_reason}",
        "data": f"{_dialogs_of(setup)} dialogs to train on, "
        f"{len(setup.data.evaluation):,} held out for evaluation{said} ({setup.data.ledger.dataset})",
        "steps": (
            f"{setup.schedule.total_steps:,}"
            if train.budget_s is None
            else f"what fits into {train.budget_s:,.0f} s,"
        )
        + f" of {counted(train.batch_size, 'dialog')}, learning rate {train.learning_rate:g}",
        "run": str(run.path),
        "W&B": f"{wandb_run.mode} ({wandb_run.reason})"
        + (f", project {setup.config.tracking.project}" if wandb_run.mode != "disabled" else ""),
    }


def ledger_line(setup: "TrainingSetup") -> str:
    """Return one line on how many rows were kept, cut and dropped; for a stream, of those read so far."""
    ledger, (dialogs, tokens, supervised) = setup.data.ledger, _trained_on(setup)
    if setup.config.data.streaming and not ledger.rows:
        size = "" if setup.data.size is None else f", at most {counted(setup.data.size, 'dialog')} to train on"
        return f"{ledger.dataset}: read as a stream{size}; kept and dropped rows are reported at the end"
    return (
        f"{ledger.dataset}: {counted(ledger.rows, 'row')}{' so far' if setup.config.data.streaming else ''}, "
        f"{ledger.kept:,} kept, {ledger.cut:,} cut, "
        f"{ledger.dropped + ledger.unusable:,} dropped; to train on: {counted(dialogs, 'dialog')} with "
        f"{counted(supervised, 'supervised token')} ({supervised / max(1, tokens):.0%}: those of the answers)"
        + (" - from the cache" if setup.data.from_cache else "")
        + (f"; first dropped: {ledger.first_bad_row}" if ledger.first_bad_row else "")
    )


def warnings(setup: "TrainingSetup", advice: Callable[[Hint], str]) -> list[str]:
    """Return warnings about unexpected effects of the data and the settings.

    Args:
        setup: tokenizer, data and model of the run.
        advice: renders a hint as the user would type it.
    """
    from dialogkit.engine.device import is_emulated, unused_gpu, usable_devices
    from dialogkit.models.build import has_dropout

    lines = [setup.settings_note] if setup.settings_note else []
    lines += setup.data.ledger.remarks()
    held_out = counted(len(setup.data.evaluation), "held-out dialog")
    if known := known_from_training(held_out, *setup.training_overlap):
        lines.append(f"{known}: their metrics say less about new questions")
    remark = held_out_remark(len(setup.data.evaluation), setup.data.ledger.kept)
    if remark and not setup.config.data.streaming:
        lines.append(remark)
    if (dropout := setup.config.train.dropout) and not has_dropout(setup.model):
        lines.append(f"train.dropout={dropout:g} does nothing: the layers of this model have no dropout")
    train, defaults = setup.config.train, TrainConfig()
    of_lora = (name for name in TrainConfig.model_fields if name.startswith("lora_"))
    unused = [name for name in of_lora if getattr(train, name) != getattr(defaults, name)]
    if train.method == "full" and unused:
        lines.append(f"train.{unused[0]} does nothing: train.method is full, and only lora uses it")
    if problem := unused_gpu(setup.runtime):
        lines.append(f"the GPU is not used: {problem}; what helps: {advice(Call('doctor'))}")
    if (devices := usable_devices(setup.runtime, train.batch_size)) > 1:
        faster = advice(Change({"runtime.devices": devices}))
        lines.append(f"one GPU is used of several: {faster} trains on {devices}")
    if is_emulated(setup.runtime):
        faster = advice(Change({"runtime.precision": "fp32"}))
        lines.append(f"this CPU only emulates {setup.runtime.precision}: {faster} is many times faster")
    return lines


def data_info(setup: "TrainingSetup") -> dict[str, Any]:
    """Return the ledger and the sizes of the split; for a stream, those of its first pass so far."""
    evaluation, (dialogs, tokens, supervised) = setup.data.evaluation, _trained_on(setup)
    return {
        **asdict(setup.data.ledger),
        "kept": setup.data.ledger.kept,
        "train_dialogs": dialogs,
        "train_tokens": tokens,
        "train_supervised_tokens": supervised,
        "eval_dialogs": len(evaluation),
        "eval_supervised_tokens": evaluation.supervised_tokens,
        **dict(zip(("known_prompts", "known_answers"), setup.training_overlap, strict=True)),
    }


def flops_per_token(setup: "TrainingSetup") -> float:
    """Return the operations to train on a token of this data."""
    info, lengths, train = setup.model_info, setup.data.sample.lengths, setup.data.sample
    return flops.flops_per_token(
        parameters=info["parameters_without_embeddings"],
        width=info.get("width", 0),
        layers=info.get("layers", 0),
        vocabulary=info["vocabulary"],
        supervised_share=train.supervised_tokens / max(1, int(lengths.sum())),
        context=float((lengths**2).sum() / max(1, lengths.sum())),
        adapter=info["trainable_parameters"] if setup.config.train.method == "lora" else 0,
    )


def _trained_on(setup: "TrainingSetup") -> tuple[int, int, int]:
    """Return the training dialogs, their tokens and the supervised ones among these."""
    if setup.config.data.streaming:
        counts = setup.data.stream.counts  # type: ignore[union-attr]
        return counts.train, counts.train_tokens, counts.train_supervised_tokens
    train = setup.data.sample
    return len(train), int(train.lengths.sum()), train.supervised_tokens


def _dialogs_of(setup: "TrainingSetup") -> str:
    """Return the number of training dialogs, and of all available ones if not all are used."""
    if setup.data.size is None:
        return "a stream of"
    available = setup.data.ledger.kept - setup.data.ledger.spare - len(setup.data.evaluation)
    return f"{setup.data.size:,}" + (f" of {available:,}" if available > setup.data.size else "")


def _trainable(setup: "TrainingSetup") -> str:
    train, info = setup.config.train, setup.model_info
    trainable, total = info["trainable_parameters"], info["parameters"]
    return f"{trainable:,} parameters of LoRA, rank {train.lora_rank} ({trainable / total:.2%} of the model's)"
