"""The card of a model on the hub: what is known about its licence, data, origin and results."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dialogkit.config.load import HUB_ID
from dialogkit.data.sources import NAMED
from dialogkit.errors import ModelError, first_line
from dialogkit.hints import Hint
from dialogkit.services.exporting.card import (
    CAUTION,
    FROM_NOTHING,
    Origin,
    origin_of,
    own_card,
    sections_about,
    without_head,
)
from dialogkit.services.exporting.hub_files import CARD
from dialogkit.services.runs.resolve import Loadable, call_on
from dialogkit.services.training.model_card import ADAPTER_ONLY, license_id
from dialogkit.text import counted
from dialogkit.tracking.evaluation_files import best_evaluations
from dialogkit.tracking.metric_specs import HELD_OUT

_OURS = "dialogkit"
"""The tag of a card that training wrote: its head is made anew; of another card, nothing is changed."""
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|research[ -]only", re.IGNORECASE)
_PUBLIC_DOMAIN = ("cc0-1.0", "pddl", "unlicense")
_OF_OUR_DATA = "en"
"""The language of the datasets with a short name."""


class Note(NamedTuple):
    """Something to know about a card, and what to do about it if anything."""

    text: str
    advice: Hint | None = None


class HubCard(NamedTuple):
    """A card.

    Attributes:
        text: all of it.
        head: the YAML at its beginning.
        notes: what to know before it is sent, each with what can be done about it.
    """

    text: str
    head: str
    notes: list[Note]


def hub_card(loadable: Loadable, folder: Path, repository: str, *, is_merged: bool, is_gguf: bool) -> HubCard:
    """Return the card of a model.

    A card that training wrote gets a new head, and a section on its use from the hub. To another card only what
    its head lacks is added.

    Args:
        loadable: the model.
        folder: its folder.
        repository: its name on the hub.
        is_merged: whether an adapter is sent together with its base, as one model.
        is_gguf: whether its weights are GGUF files.

    Raises: ModelError if the head of the card in the folder is not valid.
    """
    own = own_card(folder)
    given = _head_of(own, folder / CARD) if own is not None else {}
    origin, results = origin_of(loadable), _results(loadable)
    is_ours = own is None or _OURS in (given.get("tags") or [])
    head = _facts(loadable, origin, results)
    if is_gguf:
        head |= {"library_name": "gguf", "tags": [_OURS, "gguf", "conversational"]}
    if is_ours and is_merged:
        given.pop("library_name", None)
    # What training wrote about these is only as good as what it knew then; all else in a head is its author's.
    again = ("license", "model-index") if is_ours and loadable.run is not None else ()
    head |= {name: value for name, value in given.items() if name not in again or name not in head}
    body = without_head(own) if own is not None else f"\n# {loadable.display_name}\n\n{CAUTION}\n"
    if is_ours and own is not None and not is_gguf:
        body = _body(own, repository, is_adapter=head.get("library_name") == "peft")
    body = body.replace(f"{ADAPTER_ONLY}\n\n", "") if is_merged else body
    places = places_of(loadable)
    yaml = without_places(_yaml(head, loadable.display_name, folder / CARD), places)
    text = f"---\n{yaml}---\n{without_places(body, places)}"
    return HubCard(text, yaml, _notes(loadable, origin, head))


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


class _Measured(NamedTuple):
    """What was measured on the held-out dialogs of a dataset."""

    dataset: str
    dialogs: int | None
    values: dict[str, float]

    @property
    def size(self) -> str:
        """The number of dialogs as the end of a metric's name."""
        return "" if self.dialogs is None else f", {counted(self.dialogs, 'held-out dialog')}"


def _facts(loadable: Loadable, origin: Origin, results: list[_Measured]) -> dict[str, Any]:
    """Return the head of a card as far as it is known."""
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
        for measured in results
        for name, value in measured.values.items()
    ]
    data = ModelCardData(
        language=_OF_OUR_DATA if origin.data in NAMED else None,
        license=_license(origin),
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=weights if loadable.run is not None else None,
        datasets=[dataset] if dataset else None,
        tags=[_OURS, "conversational"],
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
    if origin.weights == FROM_NOTHING or _is_non_commercial(origin.data_license):
        return own
    asks_more = own in _PUBLIC_DOMAIN or _is_non_commercial(origin.weights_license)
    return license_id(origin.weights_license) if asks_more else own


def _is_non_commercial(license: str | None) -> bool:
    return _NON_COMMERCIAL.search(license or "") is not None


def _notes(loadable: Loadable, origin: Origin, head: Mapping[str, Any]) -> list[Note]:
    notes = []
    for thing, license in ((origin.data, origin.data_license), (origin.weights, origin.weights_license)):
        if _is_non_commercial(license):
            notes.append(Note(f"warning: {thing} is {license}: nobody may use the model commercially"))
    if head.get("license") == "other":
        known = origin.data_license or origin.weights_license
        why = f"the hub has no name for the licence {known!r}" if known else "no licence of its data is known"
        notes.append(Note(f"note: {why}: the card says `license: other`"))
    if "model-index" not in head:
        lacks = "it has no run here" if loadable.run is None else "no evaluation of it is kept"
        advice = None if loadable.run is None else call_on(loadable.run, "evaluate")
        notes.append(Note(f"note: {lacks}: the card has no model-index", advice))
    return notes


def _body(own: str, repository: str, *, is_adapter: bool) -> str:
    """Return the card that training wrote, with its use from the hub in place of the sections about its folder."""
    begin, *sections = sections_about(own)
    use = [
        "## Use",
        "",
        "```python",
        "from transformers import pipeline",
        f'chat = pipeline("text-generation", model="{repository}")',
        'chat([{"role": "user", "content": "Hello!"}])',
        "```",
        "",
        *(["Loading it requires peft.", ""] if is_adapter else []),
        "Or with dialogkit:",
        "",
        "```bash",
        f"dialogkit chat {repository}",
        "```",
        "",
        CAUTION,
        "",
    ]
    return "\n".join([begin.rstrip(), "", *sections, *use])


def _head_of(card: str, path: Path) -> dict[str, Any]:
    """Return the YAML at the beginning of a card. Raises: ModelError if it is not valid."""
    from huggingface_hub import ModelCard

    if without_head(card) == card:
        return {}
    try:
        return dict(ModelCard(card).data.to_dict())  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the YAML library raises, or the check of the results
        raise ModelError(
            f"the YAML at the beginning of {str(path)!r} is not valid: {first_line(error)}",
            hint="correct it, or delete the file to get a new card",
        ) from None


def _yaml(head: Mapping[str, Any], name: str, path: Path) -> str:
    """Return the head as the hub's library writes it, after it has checked it."""
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
