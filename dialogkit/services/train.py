"""Trains a model: from a validated configuration to a published model and its record."""

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.load import flatten, load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.errors import DivergedError, InterruptedRunError
from dialogkit.services.card import model_card
from dialogkit.services.generate import ReplyResult
from dialogkit.services.models import describe_architecture
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
    run_name,
    write_text,
)
from dialogkit.tracking.wandb_run import WandbRun, open_wandb

if TYPE_CHECKING:
    from dialogkit.data.prepare import DialogTokens, PreparedData
    from dialogkit.engine.arguments import Schedule
    from dialogkit.engine.runtime import Runtime
    from dialogkit.models.tokenizer import ChatTokenizer


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


class DryRunResult(Result):
    """What a dry run measured. Nothing was kept."""

    model: str
    parameters: int
    device: str
    precision: str
    train_dialogs: int
    total_steps: int
    tokens_per_step: float
    """Mean, padding-free."""
    longest_batch_tokens: int
    tokens_per_s: float
    """Of the second of two steps on the longest batch."""
    peak_memory_bytes: int
    expected_s: float
    """Expected time of the training steps."""
    eval_nats_per_token: float
    reply: str


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
        wandb_run = open_wandb(
            config.tracking,
            name=name,
            tags=[config.model.name, config.preset, "single-model", "pipeline", *config.tracking.tags],
            folder=output,
            settings={k.replace(".", "/"): v for k, v in flatten(record.config)},
        )
        record.wandb = {"mode": wandb_run.mode, "reason": wandb_run.reason, "id": wandb_run.id}
        result, trainer = _work(config, run, record, runtime, wandb_run, reporter, started)
    except BaseException as error:
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
    config: RunConfig,
    run: RunDir,
    record: RunRecord,
    runtime: "Runtime",
    wandb_run: WandbRun,
    reporter: TrainReporter,
    started: float,
) -> tuple[TrainResult, Any]:
    parts = _Parts(config, runtime)
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


class _Parts:
    """Tokenizer, data and model of a run, made in this order: bad data fails before weights are made."""

    def __init__(self, config: RunConfig, runtime: "Runtime") -> None:
        from dialogkit.config.paths import cache_dir
        from dialogkit.data.prepare import prepare_data
        from dialogkit.engine.arguments import resolve_schedule
        from dialogkit.models.build import build_model, context_length
        from dialogkit.models.tokenizer import load_tokenizer

        self.config, self.runtime = config, runtime
        self.tokenizer: ChatTokenizer = load_tokenizer(config.model)
        built = None
        context = config.model.context
        if context is None or not config.model.from_scratch:
            built = build_model(config.model, self.tokenizer, seed=config.train.seed, dropout=config.train.dropout)
            context = context_length(built)
        self.data: PreparedData = prepare_data(config.data, self.tokenizer, context=context, cache=cache_dir())
        self.schedule: Schedule = resolve_schedule(config.train, len(self.data.train))
        self.context = context
        if built is None:
            built = build_model(config.model, self.tokenizer, seed=config.train.seed, dropout=config.train.dropout)
        self.model: Any = built.to(runtime.device)

    def score(self, *, autocast: bool) -> dict[str, float]:
        """Return the figures on the evaluation set; published ones in float32, without autocast."""
        from dialogkit.engine.attention import use_packed_attention
        from dialogkit.inference.scoring import score_batches
        from dialogkit.services.evaluate import batches_of

        use_packed_attention(self.model)
        return score_batches(
            self.model,
            batches_of(self.data.evaluation, self.config.train.eval_batch_size),
            self.tokenizer.stop_ids,
            device=self.runtime.device,
            autocast=self.runtime.autocast() if autocast else None,
        ).figures()

    def fit(self, *, folder: Path, sink: Any) -> Any:
        """Train in place."""
        from dialogkit.data.collate import collate_dialogs
        from dialogkit.engine.fit import fit

        return fit(
            self.model,
            self.data.train,
            self.config.train,
            self.runtime,
            self.schedule,
            collate=collate_dialogs,
            score=lambda: self.score(autocast=True),
            folder=folder,
            sink=sink,
            tokenizer=self.tokenizer.hf,
            compile=self.config.runtime.compile,
            workers=self.config.runtime.workers,
        )

    def reply_to_tests(self, name: str, prompts: tuple[str, ...] | None = None) -> list[ReplyResult]:
        """Answer the fixed test prompts."""
        from dialogkit.dialog import Message
        from dialogkit.engine.attention import use_plain_attention
        from dialogkit.inference.session import generate_replies

        use_plain_attention(self.model)
        prompts = self.config.generate.test_prompts if prompts is None else prompts
        made = generate_replies(
            self.model,
            self.tokenizer,
            [[Message("user", prompt)] for prompt in prompts],
            self.config.generate,
            context=self.context,
            device=self.runtime.device,
        )
        return [
            ReplyResult(
                model=name,
                prompt=prompt,
                reply=reply.text,
                tokens=reply.tokens,
                seconds=reply.seconds,
                stop_reason=reply.stop_reason,
            )
            for prompt, reply in zip(prompts, made, strict=True)
        ]

    def model_facts(self) -> dict[str, Any]:
        """Return name, shape and exact parameter counts."""
        embedding = {p.data_ptr() for p in self.model.get_input_embeddings().parameters()}
        if hasattr(self.model.base_model, "wpe"):
            embedding.add(self.model.base_model.wpe.weight.data_ptr())
        total = sum(p.numel() for p in self.model.parameters())
        inside = sum(p.numel() for p in self.model.parameters() if p.data_ptr() in embedding)
        return {
            "name": self.config.model.name,
            "source": self.config.model.source,
            "parameters": total,
            "parameters_without_embeddings": total - inside,
            "trainable_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            **describe_architecture(self.model.config),
            "vocabulary": self.tokenizer.vocabulary,
        }

    def data_facts(self) -> dict[str, Any]:
        """Return the ledger and the sizes of the split."""
        train, evaluation = self.data.train, self.data.evaluation
        return {
            **asdict(self.data.ledger),
            "kept": self.data.ledger.kept,
            "train_dialogs": len(train),
            "train_tokens": int(train.lengths.sum()),
            "train_supervised_tokens": train.supervised_tokens,
            "eval_dialogs": len(evaluation),
            "eval_supervised_tokens": evaluation.supervised_tokens,
        }

    def ledger_line(self) -> str:
        """Return in one line what became of the rows."""
        ledger, train = self.data.ledger, self.data.train
        share = train.supervised_tokens / max(1, int(train.lengths.sum()))
        return (
            f"{ledger.dataset}: {ledger.rows:,} rows, {ledger.kept:,} kept, {ledger.cut:,} cut, "
            f"{ledger.dropped + ledger.unusable:,} dropped; {train.supervised_tokens:,} supervised tokens "
            f"({share:.0%} of the training tokens)"
            + (" - from the cache" if self.data.from_cache else "")
            + (f"; first dropped: {ledger.first_bad_row}" if ledger.first_bad_row else "")
        )

    def header(self, run: RunDir, wandb_run: WandbRun) -> dict[str, str]:
        """Return the facts to show before the first step."""
        facts = self.model_facts()
        train = self.config.train
        return {
            "model": f"{facts['name']}, {facts['parameters']:,} parameters "
            f"({facts['parameters_without_embeddings']:,} without embeddings), "
            f"{facts.get('architecture', '')}",
            "device": f"{self.runtime.device} ({self.runtime.device_name})",
            "precision": f"{self.runtime.precision}, because {self.runtime.precision_reason}",
            "data": f"{len(self.data.train):,} dialogs to train, {len(self.data.evaluation):,} held out "
            f"({self.data.ledger.dataset})",
            "steps": f"{self.schedule.total_steps:,} of {train.batch_size} dialogs, "
            f"learning rate {train.learning_rate:g}",
            "run": str(run.path),
            "W&B": f"{wandb_run.mode} ({wandb_run.reason}), project {self.config.tracking.project}",
        }


def dry_run(config: RunConfig, *, reporter: TrainReporter | None = None) -> DryRunResult:
    """Resolve everything, build the model, and measure two steps on the longest batch. Writes nothing.

    Raises: what `train` would raise before and in its first steps.
    """
    import torch

    from dialogkit.engine.runtime import resolve_runtime

    (reporter or LogReporter()).note("dry run: nothing will be kept")
    runtime = resolve_runtime(config.runtime)
    parts = _Parts(config, runtime)
    dialogs: DialogTokens = parts.data.train
    longest = dialogs.lengths.argsort()[-config.train.batch_size :]
    figures = parts.score(autocast=True)
    reply = parts.reply_to_tests(config.model.name, config.generate.test_prompts[:1] or ("Hello!",))[0]
    speeds: list[float] = []

    def sink(step: int, metrics: dict[str, float]) -> None:
        if "perf/tokens_per_s" in metrics:  # an evaluation has none
            speeds.append(metrics["perf/tokens_per_s"])

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dialogkit-dry-run-")))
        parts.data = type(parts.data)(dialogs.select(longest), parts.data.evaluation, parts.data.ledger, True)
        schedule, parts.schedule = parts.schedule, type(parts.schedule)(2, 1, 3)
        parts.config = config.model_copy(
            update={"train": config.train.model_copy(update={"max_steps": 2, "keep": "last"})}
        )
        parts.fit(folder=folder, sink=sink)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    tokens_per_step = float(dialogs.lengths.mean()) * config.train.batch_size
    return DryRunResult(
        model=config.model.name,
        parameters=parts.model_facts()["parameters"],
        device=runtime.device,
        precision=runtime.precision,
        train_dialogs=len(dialogs),
        total_steps=schedule.total_steps,
        tokens_per_step=tokens_per_step,
        longest_batch_tokens=int(dialogs.lengths[longest].sum()),
        tokens_per_s=speeds[-1],
        peak_memory_bytes=_peak_memory(torch, runtime.device),
        expected_s=schedule.total_steps * tokens_per_step / speeds[-1],
        eval_nats_per_token=figures["nats_per_token"],
        reply=reply.reply,
    )


def _peak_memory(torch: Any, device: str) -> int:
    """Return the peak of the device's memory, or of the process on the CPU, in bytes."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
