"""The card of a model on the hub: what is known about its licence, data, origin and results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dialogkit.errors import ModelError, first_line
from dialogkit.hints import Hint
from dialogkit.services.exporting.card import (
    CAUTION,
    Origin,
    origin_of,
    own_card,
    sections_about,
    without_head,
)
from dialogkit.services.exporting.card_head import (
    OURS,
    as_yaml,
    card_head,
    is_non_commercial,
    places_of,
    without_places,
)
from dialogkit.services.exporting.hub_files import CARD
from dialogkit.services.runs.resolve import Loadable, call_on
from dialogkit.services.training.model_card import ADAPTER_ONLY


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
    origin = origin_of(loadable)
    is_ours = own is None or OURS in (given.get("tags") or [])
    head = card_head(loadable, origin, "gguf" if is_gguf else "transformers")
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
    yaml = without_places(as_yaml(head, folder / CARD), places)
    text = f"---\n{yaml}---\n{without_places(body, places)}"
    return HubCard(text, yaml, _notes(loadable, origin, head))


def _notes(loadable: Loadable, origin: Origin, head: Mapping[str, Any]) -> list[Note]:
    notes = []
    for thing, license in ((origin.data, origin.data_license), (origin.weights, origin.weights_license)):
        if is_non_commercial(license):
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
