"""The tokenizer, data and model of a training run, and the operations that need all three."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.paths import cache_dir
from dialogkit.config.run import RunConfig
from dialogkit.distributed import process_group
from dialogkit.errors import ConfigError
from dialogkit.hints import Change, Either
from dialogkit.models.folder import describe_architecture
from dialogkit.services.training.memory_plan import require_room
from dialogkit.services.training.progress import say_stopping
from dialogkit.system.memory import free_bytes

if TYPE_CHECKING:
    from dialogkit.config.data import DataConfig
    from dialogkit.data.prepare import PreparedData
    from dialogkit.data.stream_setup import StreamedData
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.dialog import ChatTokenizer
    from dialogkit.engine.budget import Budget
    from dialogkit.engine.callbacks import StopAtSignal
    from dialogkit.engine.checkpoints import Progress
    from dialogkit.engine.device import Runtime
    from dialogkit.engine.task import FitTask
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.services.evaluation.questions import Question


class TrainingSetup:
    """Tokenizer, data and model of a run, created in this order: bad data fails before weights are created."""

    def __init__(
        self,
        config: RunConfig,
        runtime: "Runtime",
        *,
        raise_missed_signal: "Callable[[], None] | None" = None,
        prepare: "Callable[[DataConfig, ChatTokenizer, int], PreparedData] | None" = None,
    ) -> None:
        """Build everything; every rank calls this.

        Args:
            config: the settings of the run.
            runtime: device and precision.
            raise_missed_signal: raises the error of a signal that a library swallowed before the first step.
            prepare: returns the dialogs for a tokenizer and a context, in place of all dialogs of the dataset.

        Raises: ConfigError, DataError, ModelError, OutOfMemoryError.
        """
        from dialogkit.data.prepare import prepare_data
        from dialogkit.engine.arguments import resolve_schedule
        from dialogkit.models.context import context_length
        from dialogkit.models.generation import choose_settings
        from dialogkit.models.tokenizer import load_tokenizer

        config.train.require_divisible(process_group.world_size())
        built = None
        context = config.model.context
        self.data: PreparedData | StreamedData
        with process_group.main_process_first():  # the other ranks use its caches
            generate, self.settings_note = choose_settings(
                config.generate, config.model, hint=Change({"generate.use_model_settings": False})
            )
            config = config.model_copy(update={"generate": generate})
            self.config, self.runtime = config, runtime
            self.tokenizer = load_tokenizer(config.model)
            if context is None or not config.model.from_scratch:
                built = self._build(room=free_bytes())
                context = context_length(built.config)
            if config.data.streaming:
                self.data = self._stream(context)
            elif prepare is not None:
                self.data = prepare(config.data, self.tokenizer, context)
            else:
                self.data = prepare_data(config.data, self.tokenizer, context=context, cache=cache_dir())
        self.schedule = resolve_schedule(config.train, self.data.size or 0)
        self.context = context
        if built is None:
            require_room(config.model, self.tokenizer.vocabulary)
            built = self._build()
        self.model: Any = built.to(runtime.device)
        self._stop: StopAtSignal | None = None
        self._raise_missed_signal = raise_missed_signal

    def _stream(self, context: int) -> "StreamedData":
        """Return the dataset as a stream. Raises: ConfigError if the number of steps is unknown."""
        from dialogkit.data.stream_setup import prepare_stream

        train = self.config.train
        data = prepare_stream(self.config.data, self.tokenizer, context=context, seed=train.seed)
        if data.size is None and train.max_steps is None and train.budget_s is None:
            raise ConfigError(
                f"cannot convert epochs to steps: the size of {data.ledger.dataset} is unknown until it is read",
                hint=Either(Change({"train.max_steps": 1000}), Change({"train.budget_s": 3600})),
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

    def merge_adapter(self) -> None:
        """Merge a LoRA adapter into the weights, unless the settings keep it separate."""
        from dialogkit.models.adapters import merge_adapter

        if self.config.train.method == "lora" and self.config.train.merge:
            merge_adapter(self.model)

    def should_abort(self) -> bool:
        """Return whether to abort evaluations and replies between training steps, because of a signal.

        Every rank has to call a sharded model equally often, so a sharded evaluation is never aborted.
        """
        return self.runtime.sharding == "none" and self._stop is not None and self._stop.should_abort()

    def _evaluation_batches(self) -> "Iterator[tuple[dict[str, Any], list[int]]]":
        from dialogkit.data.collate import batches_of
        from dialogkit.engine.callbacks import EvaluationAborted

        for batch in batches_of(self._own_held_out, self.config.train.eval_batch_size):
            if self.should_abort():
                raise EvaluationAborted
            yield batch
        if self.runtime.sharding == "none":
            return
        # Every rank has to call a sharded model equally often, even with nothing to score.
        size = self.config.train.eval_batch_size
        count = -(-len(self._own_held_out) // size)
        for _ in range(count, max(process_group.all_gather(count))):
            first, _ = next(batches_of(self.data.evaluation, 1))
            nothing = {name: first[name][:0] for name in ("labels", "label_positions")}
            yield {**first, **nothing}, [0]

    def score(self, *, autocast: bool) -> dict[str, float]:
        """Return the metrics on the held-out dialogs, on every rank; published ones are in float32.

        Raises: EvaluationAborted if a signal stops training meanwhile.
        """
        return self.likelihood(autocast=autocast).figures()

    def likelihood(self, *, autocast: bool) -> "Likelihood":
        """Return the likelihood of the held-out dialogs, on every rank; of several ranks only the sums.

        Raises: EvaluationAborted if a signal stops training meanwhile.
        """
        from dialogkit.distributed.sharding import is_sharded, within_sharded
        from dialogkit.engine.attention import use_packed_attention
        from dialogkit.engine.callbacks import EvaluationAborted
        from dialogkit.inference.likelihood import Likelihood, score_batches

        use_packed_attention(self.model)
        # Each rank scores some dialogs: metrics come from the sums of all ranks, and all abort if one does.
        sums, aborted = Likelihood.nothing(), False
        try:
            if len(self._own_held_out) or is_sharded(self.model):
                likelihood = score_batches(
                    self.model,
                    self._evaluation_batches(),
                    self.tokenizer.stop_ids,
                    device=self.runtime.device,
                    autocast=self.runtime.autocast() if autocast else None,
                    **({"within": within_sharded(self.model)} if is_sharded(self.model) else {}),
                )
                if process_group.world_size() == 1:
                    return likelihood
                sums = likelihood.sums()
        except EvaluationAborted:
            if process_group.world_size() == 1:
                raise
            aborted = True
        *sums, any_aborted = process_group.all_reduce_floats([*sums, float(aborted)])
        if any_aborted:
            raise EvaluationAborted
        return Likelihood.of_sums(sums)

    @cached_property
    def _own_held_out(self) -> "DialogTokens":
        """The held-out dialogs that this rank scores: about as many tokens as every other rank."""
        from dialogkit.engine.batches import balance

        evaluation = self.data.evaluation
        if process_group.world_size() == 1:
            return evaluation
        groups = balance(evaluation.lengths.tolist(), process_group.world_size())
        return evaluation.select(sorted(groups[process_group.rank()]))

    @cached_property
    def questions(self) -> "list[Question]":
        """Held-out questions with checks; none without checks in the dataset."""
        from dialogkit.services.evaluation.questions import choose_questions

        return choose_questions(self.data.evaluation, self.data.checked, self.tokenizer)

    def fit_task(
        self, folder: Path, *, resume_from: "tuple[Path, Progress] | None" = None, budget: "Budget | None" = None
    ) -> "FitTask":
        """Return what `engine.fit.fit` trains.

        Args:
            folder: where checkpoints go.
            resume_from: checkpoint to resume from; None starts at the first step.
            budget: wall-clock limit instead of the schedule's steps.
        """
        from dialogkit.data.collate import collate_dialogs
        from dialogkit.engine.callbacks import StopAtSignal
        from dialogkit.engine.task import FitTask

        every, missed = self.config.tracking.histogram_every_steps, self._raise_missed_signal
        self._stop = StopAtSignal() if missed is None else StopAtSignal(say_stopping, missed)
        return FitTask(
            model=self.model,
            train_set=self.data.train,
            config=self.config.train,
            runtime=self.runtime,
            schedule=self.schedule,
            collate=collate_dialogs,
            score=lambda: self.score(autocast=True),
            folder=folder,
            tokenizer=self.tokenizer.hf,
            compile=self.config.runtime.compile,
            workers=self.config.runtime.workers,
            histogram_every=min(max(1, self.schedule.total_steps // 5), 500) if every is None else every,
            trackers=self.config.tracking.trackers,
            project=self.config.tracking.project,
            resume_from=resume_from,
            budget=budget,
            stop=self._stop,
        )

    def limit_tokens(self, limit: int) -> None:
        """Compute at most so many tokens at once from now on."""
        train = self.config.train.model_copy(update={"micro_batch_tokens": limit})
        self.config = self.config.model_copy(update={"train": train})

    def reset_model(self) -> None:
        """Reset the model to its initial weights."""
        import gc

        del self.model
        gc.collect()
        self.model = self._build().to(self.runtime.device)

    @cached_property
    def training_overlap(self) -> tuple[int, int] | tuple[None, None]:
        """Numbers of held-out dialogs whose prompt, and whose answer, training contains; unknown for a stream."""
        from dialogkit.data.overlap import overlap_of

        if self.config.data.streaming:
            return None, None
        return overlap_of(self.data.evaluation, self.data.sample)

    @cached_property
    def model_info(self) -> dict[str, Any]:
        """Name, shape and exact parameter counts."""
        from dialogkit.models.shape import count_parameters

        total, inside = count_parameters(self.model)
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        adapter = {}
        if self.config.train.method == "lora":
            total -= trainable  # without the adapter
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
