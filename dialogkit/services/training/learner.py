"""What a training works with: tokenizer, data and model of one run, and what is done with them together."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.run import RunConfig
from dialogkit.config.train import TrainConfig
from dialogkit.data.split import held_out_remark
from dialogkit.errors import ConfigError, OutOfMemoryError
from dialogkit.inference.results import ReplyResult, reply_results
from dialogkit.models.folder import describe_architecture
from dialogkit.services.training.progress import say_stopping
from dialogkit.text import counted
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from dialogkit.data.prepare import PreparedData
    from dialogkit.data.stream_setup import StreamedData
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.engine.arguments import Schedule
    from dialogkit.engine.budget import Budget
    from dialogkit.engine.callbacks import MetricSink, StopAtSignal
    from dialogkit.engine.checkpoints import Progress
    from dialogkit.engine.device import Runtime
    from dialogkit.engine.histograms import Histogram, HistogramSink
    from dialogkit.models.tokenizer import ChatTokenizer


class Parts:
    """Tokenizer, data and model of a run, made in this order: bad data fails before weights are made."""

    def __init__(
        self, config: RunConfig, runtime: "Runtime", *, raise_lost_stop: "Callable[[], None] | None" = None
    ) -> None:
        from dialogkit.config.paths import cache_dir
        from dialogkit.data.prepare import prepare_data
        from dialogkit.distributed import process_group
        from dialogkit.engine.arguments import resolve_schedule
        from dialogkit.models.build import context_length
        from dialogkit.models.generation import choose_settings
        from dialogkit.models.tokenizer import load_tokenizer
        from dialogkit.system.memory import free_bytes

        config.train.require_even(process_group.count())
        built = None
        context = config.model.context
        self.data: PreparedData | StreamedData
        with process_group.first_goes_first():  # the others find in caches what it fetches and prepares
            chosen = choose_settings(config.generate, config.model, hint="--set generate.use_model_settings=false")
            config = config.model_copy(update={"generate": chosen.config})
            self.config, self.runtime, self._settings_note = config, runtime, chosen.note
            self.tokenizer: ChatTokenizer = load_tokenizer(config.model)
            if context is None or not config.model.from_scratch:
                built = self._build(room=free_bytes())
                context = context_length(built)
            if config.data.streaming:
                self.data = self._stream(context)
            else:
                self.data = prepare_data(config.data, self.tokenizer, context=context, cache=cache_dir())
        self.schedule: Schedule = resolve_schedule(config.train, self.data.size or 0)
        self.context = context
        if built is None:
            self._require_room()
            built = self._build()
        self.model: Any = built.to(runtime.device)
        self._stop: StopAtSignal | None = None
        self._raise_lost_stop = raise_lost_stop

    def _stream(self, context: int) -> "StreamedData":
        """Return the dataset as a stream. Raises: ConfigError if nothing tells how many steps it is to be."""
        from dialogkit.data.stream_setup import prepare_stream

        train = self.config.train
        data = prepare_stream(self.config.data, self.tokenizer, context=context, seed=train.seed)
        if data.size is None and train.max_steps is None and train.budget_s is None:
            raise ConfigError(
                f"how many dialogs {data.source.name} has is not known before it was read, so that epochs do not "
                "say how long to train",
                hint="--set train.max_steps=1000, or: --budget 1h",
            )
        return data

    def _build(self, *, room: int | None = None) -> Any:
        from dialogkit.models.adapters import add_adapter
        from dialogkit.models.build import build_model, require_savable

        model, train = self.config.model, self.config.train
        built = build_model(model, self.tokenizer, seed=train.seed, dropout=train.dropout, room=room)
        if not model.from_scratch:
            require_savable(built, model)
        if train.method == "lora":
            add_adapter(built, train, model)
        return built

    def merge(self) -> None:
        """Make the trained model whole weights, if its settings do not ask for the adapter alone."""
        from dialogkit.models.adapters import merge_adapter

        if self.config.train.method == "lora" and self.config.train.merge:
            merge_adapter(self.model)

    def leaves(self) -> bool:
        """Return whether a signal asks to leave what goes on beside the training steps.

        Where the model is sharded all processes have to make the same calls of it, and none can leave.
        """
        return self.runtime.sharding == "none" and self._stop is not None and self._stop.leaves()

    def _evaluation_batches(self) -> "Iterator[tuple[dict[str, Any], list[int]]]":
        from dialogkit.data.collate import batches_of
        from dialogkit.distributed import process_group
        from dialogkit.engine.callbacks import EvaluationLeft

        for batch in batches_of(self._evaluated, self.config.train.eval_batch_size):
            if self.leaves():
                raise EvaluationLeft
            yield batch
        if self.runtime.sharding == "none":
            return
        # Every process calls a sharded model as often as the others, if with nothing to score.
        size = self.config.train.eval_batch_size
        made = -(-len(self._evaluated) // size)
        for _ in range(made, max(process_group.gather(made))):
            first, _ = next(batches_of(self.data.evaluation, 1))
            nothing = {name: first[name][:0] for name in ("labels", "label_positions")}
            yield {**first, **nothing}, [0]

    def score(self, *, autocast: bool) -> dict[str, float]:
        """Return the figures on the evaluation set; published ones in float32, without autocast.

        Raises: EvaluationLeft in the midst of a training that a signal asks to stop.
        """
        from dialogkit.distributed import process_group
        from dialogkit.distributed.sharding import is_sharded, within_sharded
        from dialogkit.engine.attention import use_packed_attention
        from dialogkit.engine.callbacks import EvaluationLeft
        from dialogkit.inference.likelihood import Likelihood, score_batches

        use_packed_attention(self.model)
        likelihood, left = None, False
        try:
            if len(self._evaluated) or is_sharded(self.model):
                likelihood = score_batches(
                    self.model,
                    self._evaluation_batches(),
                    self.tokenizer.stop_ids,
                    device=self.runtime.device,
                    autocast=self.runtime.autocast() if autocast else None,
                    **({"within": within_sharded(self.model)} if is_sharded(self.model) else {}),
                )
        except EvaluationLeft:
            if process_group.count() == 1:
                raise
            left = True
        if process_group.count() == 1 and likelihood is not None:
            return likelihood.figures()
        # Each process has scored its share: the sums of all make the figures, and all leave if one does.
        sums = likelihood.sums() if likelihood is not None and not left else Likelihood.nothing()
        *sums, any_left = process_group.summed([*sums, float(left)])
        if any_left:
            raise EvaluationLeft
        return Likelihood.of_sums(sums).figures()

    @cached_property
    def _evaluated(self) -> "DialogTokens":
        """The evaluation dialogs that this process scores: about as many tokens as each of the others."""
        from dialogkit.distributed import process_group
        from dialogkit.engine.batches import deal

        evaluation = self.data.evaluation
        if process_group.count() == 1:
            return evaluation
        hands = deal(evaluation.lengths.tolist(), process_group.count())
        return evaluation.select(sorted(hands[process_group.index()]))

    def fit(
        self,
        *,
        folder: Path,
        sink: "MetricSink",
        histograms: "HistogramSink | None" = None,
        resume_from: "tuple[Path, Progress] | None" = None,
        budget: "Budget | None" = None,
        planned: "Callable[[Schedule], None]" = lambda _: None,
    ) -> Any:
        """Train in place, from the beginning or from a checkpoint; see `engine.fit.fit`."""
        from dialogkit.data.collate import collate_dialogs
        from dialogkit.engine.callbacks import StopAtSignal
        from dialogkit.engine.fit import fit

        lost = self._raise_lost_stop
        self._stop = StopAtSignal() if lost is None else StopAtSignal(say_stopping, lost)
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
            histograms=histograms,
            histogram_every=self.histogram_every(),
            trackers=self.config.tracking.trackers,
            project=self.config.tracking.project,
            resume_from=resume_from,
            stop=self._stop,
            budget=budget,
            planned=planned,
        )

    def _require_room(self) -> None:
        """Raise OutOfMemoryError if the weights of a model from scratch are more than there is memory for."""
        from dialogkit.system.memory import free_bytes

        counts, free = self.config.model.parameter_counts(self.tokenizer.vocabulary), free_bytes()
        if counts is not None and free is not None and 4 * counts.total > free:
            raise OutOfMemoryError(
                f"the weights of {self.config.model.name} alone take {4 * counts.total / 2**30:,.1f} GiB and "
                f"{free / 2**30:,.1f} GiB are free",
                hint="dialogkit models list",
            )

    def split_finer(self) -> bool:
        """Split the batch into at least twice as many parts. Returns whether it could be."""
        from dialogkit.services.training.memory_plan import parts_that_fit

        train = self.config.train
        finer = parts_that_fit(train.batch_size, 2 * train.accumulation_steps, lambda _: True)
        if finer is not None:
            self._split(finer)
        return finer is not None

    def _split(self, parts: int) -> None:
        train = self.config.train.model_copy(update={"accumulation_steps": parts})
        self.config = self.config.model_copy(update={"train": train})

    def require_memory(self) -> str | None:
        """Split the batch so that a step fits into the CPU's memory, if the settings allow that.

        Returns what is to be told of it. Raises: OutOfMemoryError if a step would not fit.
        """
        from dialogkit.distributed import process_group
        from dialogkit.services.training.memory_plan import parts_that_fit
        from dialogkit.system.memory import free_bytes

        free, train = free_bytes(), self.config.train
        # The processes of a machine share its memory, and all of them have to come to the same.
        told_free = [
            share for share in process_group.gather(free and free // process_group.local_count()) if share
        ]
        free = min(told_free, default=None)
        if self.runtime.device != "cpu" or free is None or self.step_bytes(train.accumulation_steps) <= free:
            return None
        begin, needed = train.accumulation_steps, self.step_bytes(train.accumulation_steps) / 2**30
        of_process = train.batch_size // process_group.count()
        fitting = parts_that_fit(of_process, begin, lambda parts: self.step_bytes(parts) <= free)
        told = f"a step takes about {needed:.1f} GiB and {free / 2**30:.1f} GiB are free"
        if fitting is None:
            saved = "--set train.activation_checkpointing=true"
            raise OutOfMemoryError(
                f"{told}, which not even single dialogs fit into",
                hint="dialogkit models list" if train.activation_checkpointing else saved,
            )
        at_once = counted(of_process // fitting, "dialog")
        if not train.fit_batch:
            raise OutOfMemoryError(
                f"{told}; {at_once} at once would fit (train.accumulation_steps={fitting})", hint="--fit-batch"
            )
        self._split(fitting)
        return f"{told}: each step is made of {fitting} parts of {at_once}"

    def step_bytes(self, parts: int) -> int:
        """Return about how many bytes of the CPU's memory a step takes, in so many parts."""
        from dialogkit.services.training.memory_plan import step_bytes

        train, facts = self.config.train, self.model_facts
        at_once = train.batch_size // (parts * self.runtime.processes)
        longest = sorted(self.data.sample.lengths.tolist())[-at_once:]
        layers = 1 if train.activation_checkpointing else facts.get("layers", 0)
        return step_bytes(
            parameters=facts["trainable_parameters"],
            layers=layers,
            width=facts.get("width", 0),
            tokens=sum(longest),
            precision=self.runtime.precision,
        )

    def begin_again(self) -> None:
        """Give the model the weights with which the run began."""
        import gc

        del self.model
        gc.collect()
        self.model = self._build().to(self.runtime.device)

    def histogram_every(self) -> int:
        """Return the steps between histograms; 0 where there are none."""
        chosen = self.config.tracking.histogram_every_steps
        return min(max(1, self.schedule.total_steps // 5), 500) if chosen is None else chosen

    def reply_to_tests(self, first: int | None = None, *, longest: int | None = None) -> list[ReplyResult]:
        """Answer the fixed test prompts, or the first of them; also in the midst of a training."""
        from dialogkit.dialog import Message
        from dialogkit.engine.attention import plain_attention
        from dialogkit.engine.loss import own_forward
        from dialogkit.inference.replies import generate_replies

        prompts = self.config.generate.test_prompts[:first]
        with own_forward(self.model), plain_attention(self.model):
            made = generate_replies(
                self.model,
                self.tokenizer,
                [[Message("user", prompt)] for prompt in prompts],
                self._reply_settings(longest),
                context=self.context,
                device=self.runtime.device,
                leave=self.leaves,
            )
        return reply_results(self.config.model.name, prompts, made)

    def reply_to_held_out(self, first: int, *, longest: int | None = None) -> list[ReplyResult]:
        """Answer the first turns of the first held-out dialogs, whose own answers are the references."""
        from dialogkit.engine.attention import plain_attention
        from dialogkit.engine.loss import own_forward
        from dialogkit.inference.replies import continue_prompts
        from dialogkit.services.evaluation.scoring import exchanges

        held_out = self.data.evaluation
        pairs = exchanges(held_out.select(range(min(first, len(held_out)))), self.tokenizer)
        with own_forward(self.model), plain_attention(self.model):
            made = continue_prompts(
                self.model,
                self.tokenizer,
                [pair.prompt_ids for pair in pairs],
                self._reply_settings(longest),
                context=self.context,
                device=self.runtime.device,
                leave=self.leaves,
            )
        prompts, references = [pair.prompt for pair in pairs], [pair.answer for pair in pairs]
        return reply_results(self.config.model.name, prompts, made, references)

    def _reply_settings(self, longest: int | None) -> GenerateConfig:
        settings = self.config.generate
        if longest is None:
            return settings
        return settings.model_copy(update={"max_new_tokens": min(longest, settings.max_new_tokens)})

    def flops_per_token(self) -> float:
        """Return the operations to train on a token of this data."""
        from dialogkit.engine.flops import flops_per_token

        facts, lengths, train = self.model_facts, self.data.sample.lengths, self.data.sample
        return flops_per_token(
            parameters=facts["parameters_without_embeddings"],
            width=facts.get("width", 0),
            layers=facts.get("layers", 0),
            vocabulary=facts["vocabulary"],
            supervised_share=train.supervised_tokens / max(1, int(lengths.sum())),
            context=float((lengths**2).sum() / max(1, lengths.sum())),
            adapter=facts["trainable_parameters"] if self.config.train.method == "lora" else 0,
        )

    def peak_flops(self) -> float | None:
        """Return the most operations a second of the device, where that is known."""
        from dialogkit.engine.flops import peak_flops

        return peak_flops(self.runtime.device_name, self.runtime.precision)

    def length_histogram(self) -> "Histogram":
        """Return the histogram of the training dialogs' tokens."""
        import numpy as np

        from dialogkit.engine.histograms import Histogram

        return Histogram(*np.histogram(self.data.sample.lengths, bins=32))

    @cached_property
    def model_facts(self) -> dict[str, Any]:
        """Name, shape and exact parameter counts."""
        from dialogkit.models.shape import count_parameters

        total, inside = count_parameters(self.model)
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        adapter = {}
        if self.config.train.method == "lora":
            total -= trainable  # the model's own, with which it is published
            adapter = {"adapter_base": self.model.adapter_base}
        return {
            "name": self.config.model.name,
            "source": self.config.model.source,
            "parameters": total,
            "parameters_without_embeddings": total - inside,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "trainable_parameters": trainable,
            **adapter,
            **describe_architecture(self.model.config.to_dict()),
            "vocabulary": self.tokenizer.vocabulary,
        }

    def data_facts(self) -> dict[str, Any]:
        """Return the ledger and the sizes of the split; of a stream those of its first pass so far."""
        evaluation, (dialogs, tokens, supervised) = self.data.evaluation, self._trained_on()
        return {
            **asdict(self.data.ledger),
            "kept": self.data.ledger.kept,
            "train_dialogs": dialogs,
            "train_tokens": tokens,
            "train_supervised_tokens": supervised,
            "eval_dialogs": len(evaluation),
            "eval_supervised_tokens": evaluation.supervised_tokens,
        }

    @property
    def streamed(self) -> bool:
        """Whether the dialogs are read while training."""
        return self.config.data.streaming

    def _trained_on(self) -> tuple[int, int, int]:
        """Return the training dialogs, their tokens and the supervised ones among these."""
        if self.streamed:
            counts = self.data.stream.counts  # type: ignore[union-attr]
            return counts.train, counts.train_tokens, counts.train_supervised_tokens
        train = self.data.sample
        return len(train), int(train.lengths.sum()), train.supervised_tokens

    def require_place(self, checkpoint: Path) -> None:
        """Raise what `DialogStream.require_place` does if a stream cannot go on from a checkpoint."""
        if self.streamed:
            self.data.stream.require_place(checkpoint)  # type: ignore[union-attr]

    def ledger_line(self) -> str:
        """Return in one line what became of the rows; of a stream, of those that were read so far."""
        ledger, (dialogs, tokens, supervised) = self.data.ledger, self._trained_on()
        if self.streamed and not ledger.rows:
            size = "" if self.data.size is None else f", at most {counted(self.data.size, 'dialog')} to train on"
            return f"{ledger.dataset}: read as a stream{size}; what became of its rows is told at the end"
        return (
            f"{ledger.dataset}: {counted(ledger.rows, 'row')}{' so far' if self.streamed else ''}, "
            f"{ledger.kept:,} kept, {ledger.cut:,} cut, "
            f"{ledger.dropped + ledger.unusable:,} dropped; to train on: {counted(dialogs, 'dialog')} with "
            f"{counted(supervised, 'supervised token')} ({supervised / max(1, tokens):.0%} of theirs)"
            + (" - from the cache" if self.data.from_cache else "")
            + (f"; first dropped: {ledger.first_bad_row}" if ledger.first_bad_row else "")
        )

    def warnings(self) -> list[str]:
        """Return what a user may not expect of the data and the settings."""
        from dialogkit.engine.device import emulates_bf16
        from dialogkit.models.build import has_dropout

        told = [self._settings_note] if self._settings_note else []
        if not self.streamed and (remark := held_out_remark(len(self.data.evaluation), self.data.ledger.kept)):
            told.append(remark)
        if (dropout := self.config.train.dropout) and not has_dropout(self.model):
            told.append(f"train.dropout={dropout:g} does nothing: the layers of this model have no dropout")
        train, defaults = self.config.train, TrainConfig()
        of_lora = (name for name in TrainConfig.model_fields if name.startswith("lora_"))
        unused = [name for name in of_lora if getattr(train, name) != getattr(defaults, name)]
        if train.method == "full" and unused:
            told.append(f"train.{unused[0]} does nothing: train.method is full, and lora has a use for it")
        if emulates_bf16(self.runtime):
            told.append("this CPU only emulates bf16: --set runtime.precision=fp32 is many times faster")
        return told

    def _share(self) -> str:
        """Return how many dialogs there are to train on, and of how many where not all are used."""
        if self.data.size is None:
            return "a stream of"
        available = self.data.ledger.kept - len(self.data.evaluation)
        return f"{self.data.size:,}" + (f" of {available:,}" if available > self.data.size else "")

    def _what_learns(self) -> str:
        train, facts = self.config.train, self.model_facts
        number, whole = facts["trainable_parameters"], facts["parameters"]
        return f"{number:,} parameters of LoRA, rank {train.lora_rank} ({number / whole:.2%} of the model's)"

    def header(self, run: RunDir, wandb_run: WandbRun) -> dict[str, str]:
        """Return the facts to show before the first step."""
        facts = self.model_facts
        train = self.config.train
        return {
            "model": f"{facts['name']}, {facts['parameters']:,} parameters "
            f"({facts['parameters_without_embeddings']:,} without embeddings), "
            f"{facts.get('architecture', '')}",
            **({"learns": self._what_learns()} if train.method == "lora" else {}),
            "device": f"{self.runtime.device} ({self.runtime.device_name})"
            + (f", {self.runtime.processes} processes" if self.runtime.processes > 1 else ""),
            "precision": f"{self.runtime.precision}, because {self.runtime.precision_reason}",
            "data": f"{self._share()} dialogs to train, "
            f"{len(self.data.evaluation):,} held out ({self.data.ledger.dataset})",
            "steps": (
                f"{self.schedule.total_steps:,}"
                if train.budget_s is None
                else f"what fits into {train.budget_s:,.0f} s,"
            )
            + f" of {counted(train.batch_size, 'dialog')}, learning rate {train.learning_rate:g}",
            "run": str(run.path),
            "W&B": f"{wandb_run.mode} ({wandb_run.reason})"
            + (f", project {self.config.tracking.project}" if wandb_run.mode != "disabled" else ""),
        }
