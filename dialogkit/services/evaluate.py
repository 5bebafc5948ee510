"""How well models predict held-out answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.data import DataConfig
from dialogkit.data.sources import NAMED, looks_like_file
from dialogkit.errors import DataError
from dialogkit.services.models import DEFAULT_OUTPUT, Loadable, resolve_model
from dialogkit.services.result import Result
from dialogkit.tracking.rundir import RunRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dialogkit.data.prepare import DialogTokens


class EvaluateRow(Result):
    """The figures of one model; each is a quotient of sums over all supervised tokens."""

    model: str
    dataset: str
    dialogs: int
    tokens: int
    """Supervised tokens, ends of turn included."""
    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    """Bits per UTF-8 byte of the answers, ends of turn left out; comparable between tokenizers."""
    accuracy: float
    """Share of supervised tokens that the model finds most probable."""


class EvaluateResult(Result):
    """One row for each model."""

    rows: list[EvaluateRow]


def evaluate(
    model: str | Path | Sequence[str] | None = None,
    *,
    dataset: str | None = None,
    samples: int | None = None,
    max_bad_rows: int = 0,
    whole: bool = False,
    batch_size: int = 8,
    output: str | Path = DEFAULT_OUTPUT,
    device: str = "auto",
) -> EvaluateResult:
    """Return the likelihood figures of one model or several, in float32.

    Args:
        model: catalogue name, run, folder or hub id, or several; None is the newest finished run.
        dataset: a dataset as `train` takes it; None is the one of the run, or `starter`.
        samples: use so many held-out dialogs, those of the lowest content hash. None: all.
        max_bad_rows: malformed rows of another dataset's file that are passed over.
        whole: score every dialog of the dataset and not the held-out ones alone, which come first.
        batch_size: dialogs at once; the figures do not depend on it.
        output: folder of models and runs.
        device: auto, cpu, cuda or mps.

    Raises: ModelError, DataError, UnavailableError.
    """
    names: list[str | None] = [None]
    if model is not None:
        names = [str(model)] if isinstance(model, str | Path) else [str(name) for name in model]
    chosen = [resolve_model(name, output=output) for name in names]

    from dialogkit.config.paths import cache_dir
    from dialogkit.data.prepare import prepare_data
    from dialogkit.engine.attention import use_packed_attention
    from dialogkit.services.loading import load_for_inference

    rows = []
    for loadable in chosen:
        loaded = load_for_inference(loadable, device=device)
        config = _dataset_of(loadable, dataset)
        if max_bad_rows:
            config = config.model_copy(update={"max_bad_rows": max_bad_rows})
        data = prepare_data(config, loaded.tokenizer, context=loaded.context, cache=cache_dir())
        dialogs = data.evaluation
        if whole:
            dialogs = concatenate([data.evaluation, data.train])
        if samples is not None:
            dialogs = dialogs.select(range(min(samples, len(dialogs))))
        use_packed_attention(loaded.model)
        from dialogkit.inference.scoring import score_batches

        figures = score_batches(
            loaded.model,
            batches_of(dialogs, batch_size),
            loaded.tokenizer.stop_ids,
            device=loaded.device,
        )
        rows.append(
            EvaluateRow(
                model=loaded.name,
                dataset=data.ledger.dataset,
                dialogs=len(dialogs),
                tokens=figures.tokens,
                **figures.figures(),
            )
        )
    return EvaluateResult(rows=rows)


def batches_of(dialogs: "DialogTokens", batch_size: int) -> "Iterator[tuple[dict[str, Any], int]]":
    """Yield padding-free batches with the bytes of their answers."""
    from dialogkit.data.collate import collate_dialogs

    for start in range(0, len(dialogs), batch_size):
        chunk = [dialogs[i] for i in range(start, min(start + batch_size, len(dialogs)))]
        yield collate_dialogs(chunk), sum(d["answer_bytes"] for d in chunk)


def concatenate(parts: "Sequence[DialogTokens]") -> "DialogTokens":
    """Return the dialogs of several sets as one."""
    import numpy as np

    from dialogkit.data.prepare import DialogTokens

    lengths = np.concatenate([part.lengths for part in parts])
    return DialogTokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.supervised for part in parts]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        np.concatenate([part.answer_bytes for part in parts]),
    )


def find_dataset(record: RunRecord) -> str:
    """Return the dataset of a run as it is known from here; a relative file may lie where the run was started.

    Raises: DataError if a file is in neither folder: another dataset would give figures of something else.
    """
    name = str(record.config["data"]["dataset"])
    if name in NAMED or Path(name).expanduser().is_file() or not looks_like_file(name):
        return name
    there = Path(str(record.environment.get("folder", ""))) / name
    if there.is_file():
        return str(there)
    raise DataError(
        f"the dataset of the run {record.name!r} is neither {name!r} here nor {str(there)!r}",
        hint=f"dialogkit runs show {record.name}",
    )


def _dataset_of(loadable: Loadable, dataset: str | None) -> DataConfig:
    """Return the data settings of the run that made the model, or those of another dataset."""
    settings: dict[str, Any] = {}
    if loadable.run is not None:
        record = loadable.run.read()
        settings = dict(record.config.get("data", {}))
        settings.pop("samples", None)
        if dataset is None and "dataset" in settings:
            settings["dataset"] = find_dataset(record)
    if dataset is not None:
        # Models that are compared on a dataset are given the same dialogs, whatever limit they were trained with.
        settings.pop("max_tokens", None)
        if dataset != settings.get("dataset"):
            settings = {"dataset": dataset}
    return DataConfig.model_validate(settings)
