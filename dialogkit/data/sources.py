"""Finds datasets by name (shipped ones, files, worlds, hub ids) and reads their dialogs."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from dialogkit.config.data import DataConfig
from dialogkit.config.load import HUB_ID
from dialogkit.config.paths import nearest_file
from dialogkit.data.hints import (
    AS_ROWS,
    DETECT_FORMAT,
    FIX_ROWS,
    SUFFIXES,
    USE_SMALLTALK,
    USE_STARTER,
    dataset_beside,
    datasets_of,
    use_another_file,
)
from dialogkit.data.not_datasets import named_file
from dialogkit.data.open_files import NOT_UTF8, STREAMED, Row, suffix_of
from dialogkit.data.questions import COLUMNS, Checked, checked_of
from dialogkit.data.readers import read_rows
from dialogkit.data.row_parser import RowParser
from dialogkit.data.split import SPLIT, held_out_by_rows
from dialogkit.data.trees import LOST, read_trees
from dialogkit.data.turns import RowError
from dialogkit.data.views import PackedDialogs
from dialogkit.data.worlds.location import WORLDS, holds_world
from dialogkit.errors import DataError, UnavailableError, did_you_mean, os_reason
from dialogkit.hints import Change, Either
from dialogkit.system.hub import from_hub

T = TypeVar("T")

STARTER = Path(__file__).parent / "samples" / "starter.jsonl"
SMALLTALK = WORLDS / "smalltalk"
SMALLTALK_CORE = WORLDS / "smalltalk-core"

SHOWN_ROWS = 10
"""Malformed rows that an error shows."""
_MAX_COUNTED = 100_000
"""Malformed rows after which reading stops, unless `data.max_bad_rows` allows more."""


@dataclass(frozen=True)
class DataSource:
    """A dataset that was found but not read: a file, the folder of a world, or a hub dataset."""

    name: str
    path: Path | None = None
    world: Path | None = None
    hub_id: str = ""
    license: str | None = None
    description: str = ""


_SHIPPED = DataSource("starter", STARTER, license="CC0-1.0", description="dialogs that ship with the package")
_SMALLTALK = DataSource(
    "smalltalk",
    world=SMALLTALK,
    license="CC0-1.0",
    description="greetings, facts, sums and short talk, made when needed: a small model learns it in minutes",
)
_SMALLTALK_CORE = DataSource(
    "smalltalk-core",
    world=SMALLTALK_CORE,
    license="CC0-1.0",
    description="what comes up most in smalltalk: 40 capitals, sums of small numbers, everyday things",
)
_ALPACA = DataSource(
    "alpaca-gpt4",
    hub_id="vicgalle/alpaca-gpt4",
    license="CC BY-NC 4.0 (research only)",
    description="52,000 instructions answered by GPT-4",
)
NAMED = {source.name: source for source in (_SHIPPED, _SMALLTALK, _SMALLTALK_CORE, _ALPACA)}
"""Datasets with a short name."""


@dataclass
class RawData:
    """The dialogs of a source, with counts of its rows."""

    name: str
    format: str
    license: str | None
    revision: str
    """SHA-256 of the file's bytes or of the world, or the fingerprint of the hub dataset."""
    rows: int = 0
    part: float = 1.0
    """Fraction of a world's dialogs that was made."""
    dialogs: PackedDialogs = field(default_factory=PackedDialogs)
    places: list[str] = field(default_factory=list)
    """Where each dialog is, as `file:line` or `file[number]`."""
    held_out: list[bool] | None = None
    """Whether each dialog is held out, if the rows say so in `split`."""
    checked: dict[int, Checked] = field(default_factory=dict)
    """What rows say about the answers, by the index of the dialog."""
    unusable: int = 0
    """Rows without a dialog, or that could not be read."""
    bad_rows: list[str] = field(default_factory=list)
    """`place: reason` of the first unusable rows."""
    notes: dict[str, int] = field(default_factory=dict)
    """What was repaired or left out, with the number of dialogs."""
    unused_columns: list[str] = field(default_factory=list)


def find_world(name: str) -> Path:
    """Return the folder of a world by its name or path. Raises: DataError if there is none."""
    shipped = {source.name: source.world for source in NAMED.values() if source.world is not None}
    if name in shipped:
        return shipped[name]
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        return folder
    known = ", ".join(shipped)
    if name in NAMED or os.path.lexists(folder):
        raise DataError(f"{name!r} is not a world; a world is a folder of topics, or {known}", hint=USE_SMALLTALK)
    worlds = [*shipped, *filter(holds_world, os.listdir())]
    near = next(iter(get_close_matches(os.path.normpath(name), worlds, n=1)), "smalltalk")
    raise DataError(
        f"there is no world {name!r}{did_you_mean(name, worlds)}; a world is a folder of topics, or {known}",
        hint=Change({"data.dataset": near}),
    )


def looks_like_file(name: str) -> bool:
    """Return whether a dataset's name can only be that of a file."""
    return suffix_of(Path(name)) in SUFFIXES or not HUB_ID.match(name)


def find_source(config: DataConfig) -> DataSource:
    """Return the source of a dataset. Raises: DataError if it is no known name, file or hub id."""
    name = config.dataset
    if name in NAMED:
        return NAMED[name]
    # Unlike pathlib's, these functions accept any text, even one that is too long for a file name.
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        if holds_world(path):
            from dialogkit.data.worlds.folder import license_of

            return DataSource(path.resolve().name, world=path, license=license_of(path))
        inside = _data_files(path)
        first = next(iter(datasets_of(inside, most=1)), None)
        hint = Change({"data.dataset": str(first)}) if first else None
        if len(inside) > 1 and any(suffix_of(file) in STREAMED for file in inside):
            hint = Change({"data.dataset": name, "data.streaming": True})
        raise DataError(f"{name!r} is a folder, not a file", hint=hint)
    if os.path.isfile(path):
        if suffix_of(path) not in SUFFIXES:
            raise named_file(path) or DataError(
                f"{name!r} has none of the endings {', '.join(SUFFIXES)} (or .gz after them)",
                hint=Either(AS_ROWS, use_another_file(path)),
            )
        return DataSource(path.name, path)
    if os.path.lexists(path):
        kind = "a broken link" if os.path.islink(path) else "neither a file nor a folder"
        raise DataError(f"{name!r} is {kind}", hint=use_another_file(path))
    if HUB_ID.match(name) and suffix_of(path) not in SUFFIXES:
        return DataSource(name, hub_id=name)
    if "/" in name or path.suffix:
        other = dataset_beside(path)
        meant = f" (did you mean {str(other)!r}?)" if other and other == nearest_file(path, SUFFIXES) else ""
        hint = Change({"data.dataset": str(other)}) if other else None
        raise DataError(f"the dataset file {name!r} does not exist{meant}", hint=hint)
    raise DataError(f"unknown dataset {name!r}{did_you_mean(name, NAMED)}")


def _data_files(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if suffix_of(Path(name)) in SUFFIXES]


def datasets_in(folder: str) -> list[Path]:
    """Return the first files of a folder that can be trained on, as far as a few are tried."""
    path = Path(os.path.expanduser(folder))
    return datasets_of(_data_files(path)) if os.path.isdir(path) else []


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes. Raises: DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {os_reason(error)}") from None


def source_digest(source: DataSource) -> str | None:
    """Return the SHA-256 of what a source is made of; None for a hub dataset.

    Raises: DataError if it cannot be read.
    """
    if source.world is not None:
        from dialogkit.data.worlds.dialogs import dataset_digest

        return dataset_digest(source.world)
    return None if source.path is None else file_digest(source.path)


def read_dialogs(source: DataSource, config: DataConfig, *, most: int | None = None) -> RawData:
    """Return all dialogs of a source; with `most`, a world makes no more than these, drawn like the others.

    Raises: DataError naming the file, the line and the reason for unreadable input; UnavailableError if the
    hub cannot be reached and the dataset is not in its cache.
    """
    part = 1.0
    if source.path is not None:
        rows = read_rows(source.path)
        revision = file_digest(source.path)
    elif source.world is not None:
        rows, revision, part = _world_rows(source.world, most)
    else:
        rows, revision = _hub_rows(source.hub_id, config.revision)
    raw = RawData(source.name, "", source.license, revision, part=part)
    parser = RowParser("" if config.format == "auto" else config.format, config.column_of, source=source.name)
    malformed, refused = _BadRows(), _BadRows()

    def sound_rows() -> Iterator[tuple[str, Any]]:
        for place, row, problem in rows:
            raw.rows += 1
            if problem is None:
                yield place, row
                continue
            malformed.add(place, problem)
            if malformed.number > max(config.max_bad_rows, _MAX_COUNTED):
                return

    found: Iterator[tuple[str, Any]] = sound_rows()
    first = next(found, None)
    if first is not None:
        found = chain([first], found)
        if parser.expects_trees(first[1]):  # a dialog is a path through many rows
            trees = read_trees(found)
            found = iter(trees.rows)
            parser.notes.update(trees.notes)
            for place in trees.lost:
                refused.add(place, LOST)
            raw.rows = malformed.number + len(trees.rows) + len(trees.lost)
        splits: list[Any] = []
    for place, row in found:
        values = parser.values_of(row)
        try:
            dialog = parser.parse(row)
            checked = checked_of(values, dialog, trusted=source.world is not None)
        except RowError as error:
            refused.add(place, str(error))
            continue
        except DataError as error:  # a check is written by hand, so it is not left out without a word
            malformed.add(place, error.message)
            continue
        if checked is not None:
            raw.checked[len(raw.dialogs)] = checked
        raw.dialogs.append(dialog)
        raw.places.append(place)
        splits.append(values.get(SPLIT))
    if malformed.number > config.max_bad_rows:
        not_utf8 = NOT_UTF8 in malformed.counted
        named = named_file(source.path, not_utf8=not_utf8) if source.path is not None else None
        raise named or malformed_rows_error(malformed.number, malformed.first, all_rows=not raw.dialogs)
    raw.unusable, raw.bad_rows = malformed.number + refused.number, malformed.first + refused.first
    if not raw.rows:
        raise DataError(
            f"{source.name} holds no rows", hint=use_another_file(source.path) if source.path else USE_STARTER
        )
    if not raw.dialogs:
        if not parser.format and parser.unknown is not None:
            raise parser.unknown
        reasons = [*malformed.reasons(), *refused.reasons()]
        raise DataError(
            f"none of the {raw.rows} rows of {source.name} is a dialog"
            f"{f' in the format {parser.format}' if parser.format else ''}: {reasons[0]}",
            hint=FIX_ROWS if config.format == "auto" else DETECT_FORMAT,
            details=reasons[1:SHOWN_ROWS],
        )
    raw.format, raw.notes, raw.unused_columns = parser.format, dict(parser.notes), parser.unused
    raw.held_out = held_out_by_rows(splits)
    used = [*([SPLIT] if raw.held_out is not None else []), *(COLUMNS if raw.checked or source.world else [])]
    of_rows = {parser.column_of(name) for name in used}
    raw.unused_columns = [column for column in raw.unused_columns if column not in of_rows]
    return raw


@dataclass
class _BadRows:
    """Rows that cannot be used: their number, the first ones with the reason, and the rows of each reason."""

    number: int = 0
    first: list[str] = field(default_factory=list)
    counted: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Number of rows and the first place by reason, of the first `SHOWN_ROWS` reasons."""

    def reasons(self) -> list[str]:
        """Return each reason with its first place and the number of further rows."""
        return [
            f"{place}: {reason}" + (f" (and {number - 1:,} more such rows)" if number > 1 else "")
            for reason, (number, place) in self.counted.items()
        ]

    def add(self, place: str, reason: str) -> None:
        self.number += 1
        if reason in self.counted or len(self.counted) < SHOWN_ROWS:
            number, first = self.counted.get(reason, (0, place))
            self.counted[reason] = (number + 1, first)
        if len(self.first) < SHOWN_ROWS:
            self.first.append(f"{place}: {reason}")


def malformed_rows_error(
    number: int, first: list[str], *, streamed: bool = False, all_rows: bool = False
) -> DataError:
    """Return the error of malformed rows, with their number and the first ones.

    Of a stream, the number is a lower bound. Where all rows are malformed, skipping them leaves nothing.
    """
    is_bound = streamed or number > _MAX_COUNTED
    more = f" (and {'at least ' if is_bound else ''}{number - 1:,} more such rows)" if number > 1 else ""
    enough = max(100, 10 * number) if streamed else number
    allow = Either("fix that line", Change({"data.max_bad_rows": enough}))
    hint = USE_STARTER if (is_bound and not streamed) or all_rows else allow
    return DataError(f"{first[0]}{more}", hint=hint, details=first[1:])


def _from_hub(hub_id: str, load: Callable[[Any], T], *, lacking: str | None = None) -> T:
    """Call a function of `datasets` that may ask the hub. Raises: DataError, UnavailableError."""
    import datasets
    import huggingface_hub.errors

    def ask(online: bool) -> T:
        was_offline = datasets.config.HF_HUB_OFFLINE
        datasets.config.HF_HUB_OFFLINE = was_offline or not online
        try:
            return load(datasets)
        finally:
            datasets.config.HF_HUB_OFFLINE = was_offline

    datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()  # otherwise it reports at length that it uses its cache
    try:
        return from_hub(ask, lacking=lacking or f"the dataset {hub_id!r} is not in its cache", hint=USE_STARTER)
    except (ConnectionError, huggingface_hub.errors.HfHubHTTPError) as error:
        message = f"the dataset {hub_id!r} cannot be fetched: {_first_line(error)}"
        raise UnavailableError(message, hint=USE_STARTER) from None
    except (datasets.exceptions.DatasetNotFoundError, OSError, ValueError) as error:
        message = f"the dataset {hub_id!r} cannot be loaded: {_first_line(error)}"
        raise DataError(message, hint=USE_STARTER) from None
    finally:
        datasets.logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hub_rows(hub_id: str, revision: str | None) -> tuple[Iterator[Row], str]:
    dataset = _from_hub(hub_id, lambda datasets: datasets.load_dataset(hub_id, revision=revision, split="train"))
    rows = (Row(f"{hub_id}[{number}]", row) for number, row in enumerate(dataset, 1))
    return rows, str(dataset._fingerprint)


def _world_rows(folder: Path, most: int | None) -> tuple[Iterator[Row], str, float]:
    from dialogkit.data.worlds.dialogs import DIALOGS, dataset_digest, make_dialogs
    from dialogkit.data.worlds.folder import read_world

    world, dialogs = read_world(folder), min(DIALOGS, most or DIALOGS)
    made = enumerate(make_dialogs(world, dialogs), 1)
    rows = (Row(f"{world.name}[{number}]", row) for number, row in made)
    return rows, dataset_digest(folder), dialogs / DIALOGS


def hub_files(hub_id: str, revision: str | None) -> tuple[list[str], str, int | None]:
    """Return the files of a hub dataset's training split, its commit, and its number of rows if the hub states it.

    Raises: DataError if there is none; UnavailableError if the hub cannot be reached.
    """
    from huggingface_hub import HfFileSystem

    def find(datasets: Any) -> tuple[Any, list[Any]]:
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError
        builder = datasets.load_dataset_builder(hub_id, revision=revision)
        found = (builder.config.data_files or {}).get("train", [])
        return builder, [HfFileSystem().resolve_path(address) for address in found]

    lacking = f"only the hub knows the files of the dataset {hub_id!r}"
    builder, places = _from_hub(hub_id, find, lacking=lacking)
    split = (builder.info.splits or {}).get("train")
    rows = int(split.num_examples) if split is not None and split.num_examples else None
    return [place.path_in_repo for place in places], places[0].revision if places else "", rows


def fetch_file(hub_id: str, file: str, commit: str) -> Path:
    """Return a file of a hub dataset in the hub's cache on disk. Raises: UnavailableError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    def load(online: bool) -> Path:
        local = not online
        return Path(hf_hub_download(hub_id, file, repo_type="dataset", revision=commit, local_files_only=local))

    disable_progress_bars()
    with suppress(OSError):  # a file of a commit never changes, so the hub is not asked for a cached one
        return load(online=False)
    try:
        lacking = f"the file {file!r} of {hub_id!r} is not in its cache"
        return from_hub(load, lacking=lacking, hint=USE_STARTER)
    except (OSError, HfHubHTTPError) as error:
        message = f"the file {file!r} of {hub_id!r} cannot be fetched: {_first_line(error)}"
        raise UnavailableError(message, hint=USE_STARTER) from None
