"""The head of a model's card: what the hub reads of its licence, data, origin and results."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dialogkit.config.load import HUB_ID
from dialogkit.data.sources import NAMED
from dialogkit.errors import ModelError, first_line
from dialogkit.services.exporting.card import FROM_NOTHING, Origin
from dialogkit.services.runs.resolve import Loadable
from dialogkit.services.training.model_card import license_id
from dialogkit.text import counted
from dialogkit.tracking.evaluation_files import best_evaluations
from dialogkit.tracking.metric_specs import HELD_OUT

OURS = "dialogkit"
"""The tag of a card that training wrote: its head is made anew; of another card, nothing is changed."""
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|research[ -]only", re.IGNORECASE)
_PUBLIC_DOMAIN = ("cc0-1.0", "pddl", "unlicense")
_OF_OUR_DATA = "en"
"""The language of the datasets with a short name."""


class _Measured(NamedTuple):
    """What was measured on the held-out dialogs of a dataset."""

    dataset: str
    dialogs: int | None
    values: dict[str, float]

    @property
    def size(self) -> str:
        """The number of dialogs as the end of a metric's name."""
        return "" if self.dialogs is None else f", {counted(self.dialogs, 'held-out dialog')}"


def card_head(loadable: Loadable, origin: Origin, library: str = "transformers") -> dict[str, Any]:
    """Return the head of a card as far as it is known; `library` is what loads the model."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = _hub_id_of(origin.data)
    weights = origin.weights if HUB_ID.match(origin.weights) and not Path(origin.weights).exists() else None
    scores = [
        EvalResult(
            task_type="text-generation",
            task_name="Dialog",
            dataset_type=_hub_id_of(measured.dataset) or measured.dataset,
            dataset_name=measured.dataset,
            dataset_split="held-out",
            metric_type=name,
            metric_name=f"{HELD_OUT[name][0]}{measured.size}",
            metric_value=float(f"{value:.6g}"),
        )
        for measured in _results(loadable)
        for name, value in measured.values.items()
    ]
    data = ModelCardData(
        language=_OF_OUR_DATA if origin.data in NAMED else None,
        license=_license(origin),
        library_name=library,
        pipeline_tag="text-generation",
        base_model=weights if loadable.run is not None else None,
        datasets=[dataset] if dataset else None,
        tags=[OURS, *([] if library == "transformers" else [library]), "conversational"],
        model_name=loadable.display_name if scores else None,
        eval_results=scores or None,
    )
    return {name: value for name, value in data.to_dict().items() if value is not None}  # type: ignore[no-untyped-call]


def _results(loadable: Loadable) -> list[_Measured]:
    """Return the stored evaluations of a run's finished model, or what training measured at its end."""
    run = loadable.run
    if run is None or loadable.display_name != run.name:  # a checkpoint
        return []
    record, found = run.read(), []
    for stored in best_evaluations(run):
        if stored.get("trained_on") is not True and (values := _finite(stored)):
            dialogs = stored.get("dialogs")
            named = str(stored.get("dataset"))
            found.append(_Measured(named, dialogs if isinstance(dialogs, int) else None, values))
    at_the_end = _finite({name: record.metrics.get(f"final/{name}") for name in HELD_OUT})
    own = record.data.dataset
    if own is not None and at_the_end and own not in [measured.dataset for measured in found]:
        found.insert(0, _Measured(own, record.data.eval_dialogs, at_the_end))
    return found


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    known = {name: values.get(name) for name in HELD_OUT}
    return {name: float(v) for name, v in known.items() if isinstance(v, int | float) and math.isfinite(v)}


def _hub_id_of(dataset: str | None) -> str | None:
    """Return the hub id of a dataset; None for one that is not on the hub."""
    if dataset in NAMED:
        return NAMED[dataset].hub_id or None
    # The record has no folder of a file, so a name with one is that of the hub.
    return dataset if dataset is not None and HUB_ID.match(dataset) else None


def _license(origin: Origin) -> str:
    """Return the licence as the hub writes it: that of the data, or of the base where the base asks for more."""
    own = origin.license_id
    if origin.weights == FROM_NOTHING or is_non_commercial(origin.data_license):
        return own
    asks_more = own in _PUBLIC_DOMAIN or is_non_commercial(origin.weights_license)
    return license_id(origin.weights_license) if asks_more else own


def is_non_commercial(license: str | None) -> bool:
    """Return whether a licence forbids commercial use."""
    return _NON_COMMERCIAL.search(license or "") is not None


def places_of(loadable: Loadable) -> dict[str, str]:
    """Return the folders of this machine that a model's record names, with what stands for each elsewhere."""
    places = {str(Path.home()): "~"}
    if loadable.run is not None:
        record = loadable.run.read()
        places |= {path: Path(path).name for path in _absolute_paths(record.model_dump(mode="json"))}
        places |= {folder: "." for folder in [record.environment.folder] if folder}
        places[str(loadable.run.path.resolve())] = loadable.run.name
    return {place: name for place, name in places.items() if len(Path(place).parts) > 1}


def _absolute_paths(value: object) -> Iterator[str]:
    """Yield the paths in JSON that begin at the root."""
    if isinstance(value, str) and Path(value).is_absolute():
        yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _absolute_paths(child)


def without_places(text: str, places: Mapping[str, str]) -> str:
    """Return a text with other words for the folders of this machine."""
    for place in sorted(places, key=len, reverse=True):
        whole = rf"(?<![\w.~-]){re.escape(place)}(?![\w-])"
        text = re.sub(whole, places[place].replace("\\", r"\\"), text)
    return text


def as_yaml(head: Mapping[str, Any], path: Path) -> str:
    """Return the head as the hub's library writes it, after it has checked it.

    Raises: ModelError if it is not valid, which a card in `path` then is to blame for.
    """
    from huggingface_hub import ModelCardData

    # In the order in which the hub's documentation has them.
    first = ("language", "license", "library_name", "pipeline_tag", "base_model", "datasets", "tags")
    try:
        written = str(ModelCardData(**head).to_yaml(line_break="\n", original_order=list(first)))
    except Exception as error:
        raise ModelError(
            f"the YAML at the beginning of {str(path)!r} is not valid: {first_line(error)}",
            hint="correct it, or delete the file to get a new card",
        ) from None
    return written if written.endswith("\n") else f"{written}\n"
