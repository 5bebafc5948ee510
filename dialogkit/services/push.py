"""Sends a trained model to the Hugging Face hub."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dialogkit import __version__
from dialogkit.config.base import Result
from dialogkit.config.load import HUB_ID, folder_name
from dialogkit.config.paths import DEFAULT_OUTPUT, EXPORTS
from dialogkit.errors import ConfigError, DialogKitError, ModelError
from dialogkit.hints import Call, Either
from dialogkit.services.evaluation.evaluator import ProgressSink
from dialogkit.services.exporting.card_head import places_of, without_places
from dialogkit.services.exporting.hub_card import HubCard, Note, hub_card
from dialogkit.services.exporting.hub_files import CARD, PushedFile, Upload, choose_files, settings_without_folders
from dialogkit.services.exporting.hub_repository import (
    PushRequest,
    account_of,
    address_of,
    require_hub,
    require_name,
    send,
)
from dialogkit.services.exporting.not_pushed import what_is_not_pushed
from dialogkit.services.runs.resolve import Loadable, output_of, refuse_sharded, resolve_model
from dialogkit.system.compute_lock import alone
from dialogkit.text import listed
from dialogkit.tracking.run_dir import REPORT_FILE

Show = Callable[[Sequence[PushedFile], Sequence[Note]], None]


class PushResult(Result):
    """A model on the hub, or with `dry_run` what would go there.

    Attributes:
        repository: its name, with that of its owner where that is known.
        url: its address; None where the owner is not known.
        private: whether only its owner sees it.
        files: all files of the model.
        committed: the names of those that the repository lacked or held in another version.
        sent_bytes: bytes of files that were sent.
        removed: the names of files of an earlier model that were removed.
        left_out: the names of files that stay here.
        commit: the commit; None if the repository held everything.
        notes: what its readers should know.
        card: the YAML at the beginning of its card.
        dry_run: whether nothing was sent.
    """

    repository: str
    url: str | None
    private: bool
    files: list[PushedFile]
    committed: list[str]
    sent_bytes: int
    removed: list[str]
    left_out: list[str]
    commit: str | None
    notes: list[str]
    card: str
    dry_run: bool

    def repr_fields(self) -> Iterable[tuple[str, Any]]:
        """Return where it is."""
        yield "url", self.url
        yield "private", self.private
        yield "committed", self.committed
        yield "dry_run", self.dry_run


def push(
    model: str | Path,
    repository: str,
    *,
    public: bool = False,
    dry_run: bool = False,
    bundle: bool = False,
    message: str | None = None,
    include_pickle: bool = False,
    force: bool = False,
    output: str | Path = DEFAULT_OUTPUT,
    on_files: Show = lambda files, notes: None,
    on_progress: ProgressSink = lambda stage, fraction: None,
) -> PushResult:
    """Send a model to the Hugging Face hub, with a card that says what it was trained on and how good it is.

    Only the model goes there: its weights, tokenizer and settings, and its card. What the repository has already
    is not sent again, so the same call continues after a failure.

    Args:
        model: catalogue name, run or folder.
        repository: `user/name`, or `name` for a repository of one's own; it is created if there is none.
        public: let everybody see a new repository. An existing one stays as it is.
        dry_run: send nothing, and ask nobody.
        bundle: send the run's report as well.
        message: that of the commit.
        include_pickle: also send weights that are a pickle, which can run code.
        force: replace other files of the repository.
        output: folder of models and runs.
        on_files: receives the files and notes before anything is sent.
        on_progress: receives the current stage and the fraction of the work that is done.

    Raises: ModelError, ConfigError, StorageError, UnavailableError; InterruptedRunError after Ctrl-C.
    """
    again = push_call(
        model,
        repository,
        output,
        public=public,
        dry_run=dry_run,
        bundle=bundle,
        message=message,
        include_pickle=include_pickle,
        force=force,
    )
    require_name(repository, lambda name: Call("push", model, name, **again.options))
    _refuse_other_exports(model, again, output)
    loadable = resolve_model(str(model), output=output)
    with _folder_of(loadable) as (folder, only, is_merged):
        files, left_out = choose_files(folder, only=only, pickles=include_pickle)
        is_gguf = any(name.endswith(".gguf") for name in files)
        if not is_gguf:
            from dialogkit.models.folder import require_sound

            require_sound(folder)
        token = "" if dry_run else require_hub()
        account = "" if dry_run else account_of(token, again)
        named = repository if "/" in repository or dry_run else f"{account}/{repository}"
        card = hub_card(loadable, folder, named, is_merged=is_merged, is_gguf=is_gguf)
        texts = {
            CARD: card.text,
            **settings_without_folders(files),
            **({REPORT_FILE: _report(loadable, again)} if bundle else {}),
        }
        upload = Upload({name: path for name, path in files.items() if name not in texts}, texts)
        upload.require_no_secrets()
        notes = _notes(card, left_out, is_merged=is_merged)
        on_files(upload.listed(), notes)
        known: dict[str, Any] = {
            **{"files": upload.listed(), "left_out": left_out, "notes": [note.text for note in notes]},
            **{"card": card.head, "dry_run": dry_run},
        }
        if dry_run:
            return PushResult(
                repository=named,
                url=address_of(named) if "/" in named else None,
                private=not public,
                committed=[],
                sent_bytes=0,
                removed=[],
                commit=None,
                **known,
            )
        commit_message = message or f"{loadable.display_name}, with dialogkit {__version__}"
        done = send(PushRequest(named, upload, commit_message, public, force, again), token, account, on_progress)
    if public and done.is_private:
        stays = f"note: {named} is private and stays so; its settings on the hub change that"
        known["notes"] = [*known["notes"], stays]
    return PushResult(
        repository=named,
        url=done.url,
        private=done.is_private,
        committed=done.committed,
        sent_bytes=done.bytes,
        removed=done.removed,
        commit=done.commit,
        **known,
    )


def push_call(model: str | Path, repository: str, output: str | Path, **options: Any) -> Call:
    """Return the call of `push` with those of its options that are set."""
    given = {name: value for name, value in options.items() if value}
    return Call("push", model, repository, **given, **output_of(output))


def _refuse_other_exports(model: str | Path, again: Call, output: str | Path) -> None:
    """Raise ModelError, with the calls that push the model itself, for a page or a bundle."""
    found = what_is_not_pushed(Path(model).expanduser())
    if found is None:
        return
    what, name = found
    text = f"{str(model)!r} is {what}, which is not pushed: push the model itself, or a GGUF file of it"
    try:
        origin = resolve_model(name, output=output) if name else None
    except DialogKitError:  # it was deleted, or is in another folder
        origin = None
    if name is None or origin is None or not Path(origin.model.source or "").exists():
        raise ModelError(text)
    from dialogkit.services.export import DEFAULT_TYPE

    repository, given = again.arguments[1], again.options
    made = Path(EXPORTS) / f"{folder_name(origin.name)}-{DEFAULT_TYPE}"
    is_made = any(made.glob("*.gguf"))
    as_gguf = Call("push", made, repository, **given) if is_made else Call("export", name, **output_of(output))
    raise ModelError(text, hint=Either(Call("push", name, repository, **given), as_gguf))


@contextmanager
def _folder_of(loadable: Loadable) -> Iterator[tuple[Path, str | None, bool]]:
    """Yield the folder of a model, the one file of it that is asked for, and whether it was made here.

    An adapter whose base is only on this machine becomes one model with it.

    Raises: ModelError for a model of the hub, or one that is sharded.
    """
    source = loadable.model.source or ""
    path = Path(source).expanduser()
    if not path.exists():
        raise ModelError(
            f"{source!r} is on the hub already: train a model from it to push your own",
            hint=Call("train", loadable.name if HUB_ID.match(loadable.name) is None else source, preset="test"),
        )
    if path.is_file():
        yield path.parent, path.name, False
        return
    if loadable.run is not None:
        refuse_sharded(loadable.run, path)
    from dialogkit.models.adapter_source import find_adapter

    adapter = None if list(path.glob("*.gguf")) else find_adapter(loadable.model)
    if adapter is None or not Path(adapter.base.source or "").exists():
        yield path, None, False
        return
    with TemporaryDirectory(prefix="dialogkit-push-") as made, alone():
        from dialogkit.services.runs.loading import load_for_inference

        loaded = load_for_inference(loadable, device="cpu")
        loaded.model.save_pretrained(made)
        loaded.tokenizer.save(Path(made))
        if (card := path / CARD).is_file():
            (Path(made) / CARD).write_bytes(card.read_bytes())
        yield Path(made), None, True


def _report(loadable: Loadable, again: Call) -> str:
    """Return the report of a model's run without this machine's folders. Raises: ConfigError without a run."""
    if loadable.run is None:
        without = {name: value for name, value in again.options.items() if name != "bundle"}
        raise ConfigError(
            f"{loadable.display_name!r} has no run here, and so no report",
            hint=Call("push", *again.arguments, **without),
        )
    from dialogkit.tracking.report import render_report

    return without_places(render_report([loadable.run]), places_of(loadable))


def _notes(card: HubCard, left_out: Sequence[str], *, is_merged: bool) -> list[Note]:
    """Return what is worth knowing about what is sent."""
    notes = list(card.notes)
    if is_merged:
        notes.append(Note("note: the adapter's base is only on this machine: both are sent as one model"))
    if left_out:
        more = [f"{len(left_out) - 8} more"] if len(left_out) > 8 else []
        notes.append(Note(f"note: not sent: {listed([*left_out[:8], *more])}"))
    return notes
