"""Trains a model: from a validated configuration to a published model and its record."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dialogkit.config.load import flatten, load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.errors import DialogKitError, DivergedError, InterruptedRunError
from dialogkit.services.card import model_card
from dialogkit.services.generate import ReplyResult
from dialogkit.services.parts import Parts
from dialogkit.services.reporter import LogReporter, TrainReporter, show_log
from dialogkit.services.result import Result
from dialogkit.services.versions import package_versions
from dialogkit.tracking.rundir import (
    RunDir,
    RunRecord,
    now,
    ordinary_permissions,
    publish,
    published_dir,
    require_publishable,
    run_name,
    write_text,
)
from dialogkit.tracking.wandb_run import WandbRun, find_credentials, open_wandb, resolve_mode


class TrainResult(Result):
    """What a training left, and its figures."""

    run: str
    run_dir: str
    model_dir: str
    """The run's own model folder."""
    published_dir: str
    """The folder of the newest finished model of this name."""
    steps: int
    duration_s: float
    metrics: dict[str, float]
    """`final/...` figures on the held-out dialogs in float32, `before/...` the same before the first step."""
    replies: list[ReplyResult]
    success_rate: float
    """Share of the test prompts with a reply that is not empty."""
    stop_rate: float
    """Share of the replies that ended by themselves."""
    wandb_mode: str
    wandb_dir: str | None
    wandb_url: str | None


def train(
    config: RunConfig,
    *,
    origins: Mapping[str, str] | None = None,
    command: list[str] | None = None,
    reporter: TrainReporter | None = None,
) -> TrainResult:
    """Train, evaluate, answer the test prompts, and publish the model.

    Args:
        config: everything that decides the run.
        origins: where each setting came from; kept with the run.
        command: the words typed; kept with the run.
        reporter: takes what happens; None logs it.

    Raises: DialogKitError, with the run's record telling how it ended.
    """
    return _train(config, origins=origins or {}, command=command or [], reporter=reporter or LogReporter())[0]


def train_single_model(
    model_name: str = "custom-tiny",
    config_type: str = "test",
    *,
    max_samples: int | None = None,
    project_name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, float]]:
    """Train one model from a notebook and return HF's trainer and the metrics.

    Args:
        model_name: a model of the catalogue, a model file, a folder or a hub id.
        config_type: the preset: test, development or production.
        max_samples: training dialogs to use; None is the preset's.
        project_name: W&B project.
        overrides: further settings by dotted names, such as `{"train.learning_rate": 1e-3}`.
    """
    words = {"data.samples": max_samples, "tracking.project": project_name}
    chosen = {name: value for name, value in words.items() if value is not None} | dict(overrides or {})
    config = load_run_config(model_name, preset=config_type, overrides=chosen)
    show_log()
    result, trainer = _train(config, origins={}, command=[], reporter=LogReporter())
    return trainer, result.metrics


def _train(
    config: RunConfig, *, origins: Mapping[str, str], command: list[str], reporter: TrainReporter
) -> tuple[TrainResult, Any]:
    from dialogkit.engine.runtime import resolve_runtime

    started = time.perf_counter()
    runtime = resolve_runtime(config.runtime)
    output = Path(config.runtime.output_dir)
    name = config.name or run_name(config.model.name, config.preset, output)
    # What can be known to be wrong is told before anything is made.
    require_publishable(published_dir(output, config.model.name))
    resolve_mode(config.tracking.wandb, find_credentials(Path.cwd()))
    run = RunDir.create(output, name)
    record = RunRecord(
        name=name,
        created=now(),
        command=command,
        config=config.model_dump(mode="json"),
        origins=dict(origins),
        runtime=asdict(runtime),
        versions=package_versions(),
    )
    run.write(record)
    wandb_run: WandbRun | None = None
    try:
        parts = Parts(config, runtime)
        wandb_run = open_wandb(
            config.tracking,
            name=name,
            tags=[config.model.name, config.preset, "single-model", "pipeline", *config.tracking.tags],
            folder=output,
            settings={k.replace(".", "/"): v for k, v in flatten(record.config)},
        )
        record.wandb = {"mode": wandb_run.mode, "reason": wandb_run.reason, "id": wandb_run.id}
        result, trainer = _work(parts, run, record, wandb_run, reporter, started)
    except BaseException as error:
        if isinstance(error, DialogKitError) and not record.schedule:
            run.remove()  # refused before it began: there is nothing to tell that the error does not say
            raise
        record.status = _status(error)
        record.finished, record.error = now(), str(error) or type(error).__name__
        run.write(record)
        if wandb_run is not None:
            wandb_run.finish(exit_code=getattr(error, "exit_code", 1))
        raise
    return result, trainer


def _status(error: BaseException) -> Any:
    match error:
        case DivergedError():
            return "diverged"
        case InterruptedRunError() | KeyboardInterrupt():
            return "interrupted"
        case _:
            return "failed"


def _work(
    parts: Parts,
    run: RunDir,
    record: RunRecord,
    wandb_run: WandbRun,
    reporter: TrainReporter,
    started: float,
) -> tuple[TrainResult, Any]:
    config = parts.config
    record.model, record.data = parts.model_facts(), parts.data_facts()
    record.schedule = asdict(parts.schedule)
    run.write(record)
    wandb_run.update_config(
        {"model_facts": record.model, "data_facts": record.data, "runtime_facts": record.runtime}
    )
    reporter.header(parts.header(run, wandb_run))
    reporter.note(parts.ledger_line())

    def sink(step: int, metrics: dict[str, float]) -> None:
        run.append_metrics(step, metrics)
        wandb_run.log(step, metrics)
        reporter.step(step, parts.schedule.total_steps, metrics)

    before = parts.score(autocast=False)
    sink(0, {f"eval/{name}": value for name, value in before.items()})
    fitted = parts.fit(folder=run.path, sink=sink)
    final = parts.score(autocast=False)
    metrics = {
        **{f"before/{name}": value for name, value in before.items()},
        **{f"final/{name}": value for name, value in final.items()},
        "train/steps": fitted.steps,
        "train/tokens": fitted.tokens,
        "train/supervised_tokens": fitted.supervised_tokens,
        "train/seconds": fitted.train_s,
        "perf/tokens_per_s": fitted.tokens / max(fitted.train_s, 1e-9),
    }
    replies = parts.reply_to_tests(config.model.name)
    success_rate = sum(reply.succeeded for reply in replies) / max(len(replies), 1)
    stop_rate = sum(reply.stop_reason == "end of turn" for reply in replies) / max(len(replies), 1)
    for reply in replies:
        run.append_sample({"step": fitted.steps, **reply.model_dump()})
    columns = ["prompt", "reply", "tokens", "seconds", "stop_reason"]
    wandb_run.log_table("replies", columns, [[getattr(r, c) for c in columns] for r in replies])
    fitted.trainer.save_model(str(run.model_dir))
    parts.tokenizer.save(run.model_dir)
    record.metrics = metrics
    record.replies = {"success_rate": success_rate, "stop_rate": stop_rate}
    write_text(run.model_dir / "README.md", model_card(record))
    ordinary_permissions(run.model_dir)
    target = published_dir(Path(config.runtime.output_dir), config.model.name)
    publish(run.model_dir, target)
    wandb_run.summarize({**metrics, "replies/success_rate": success_rate, "replies/stop_rate": stop_rate})
    wandb_dir, wandb_url = wandb_run.folder, wandb_run.url
    wandb_run.finish(exit_code=0)
    record.status, record.finished = "completed", now()
    run.write(record)
    return (
        TrainResult(
            run=run.name,
            run_dir=str(run.path),
            model_dir=str(run.model_dir),
            published_dir=str(target),
            steps=fitted.steps,
            duration_s=time.perf_counter() - started,
            metrics=metrics,
            replies=replies,
            success_rate=success_rate,
            stop_rate=stop_rate,
            wandb_mode=wandb_run.mode,
            wandb_dir=str(wandb_dir) if wandb_dir else None,
            wandb_url=wandb_url,
        ),
        fitted.trainer,
    )
