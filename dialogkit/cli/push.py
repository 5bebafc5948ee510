"""`dialogkit push`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli import complete, hints, options
from dialogkit.cli.output import Output, table, untrusted, values_grid
from dialogkit.hints import Call, Shell
from dialogkit.text import byte_size, counted, listed

if TYPE_CHECKING:
    from dialogkit.services.exporting.hub_card import Note
    from dialogkit.services.exporting.hub_files import PushedFile
    from dialogkit.services.push import PushResult


def push_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Catalogue name, run or folder.", autocompletion=complete.models)
    ],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Repository on the hub: USER/NAME, or NAME for one of your own.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent. Needs no account, and asks nobody.")
    ] = False,
    bundle: Annotated[bool, typer.Option("--bundle", help="Send the run's report as well.")] = False,
    message: Annotated[
        str | None, typer.Option("--message", metavar="TEXT", help="Message of the commit.")
    ] = None,
    include_pickle: Annotated[
        bool, typer.Option("--include-pickle", help="Also send weights that are a pickle, which can run code.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace other files of these names, or another model.")
    ] = False,
    output_dir: options.OutputOption = "models",
    json_output: options.JsonOption = False,
) -> None:
    """Send MODEL to the Hugging Face hub: private unless --public, with a card. Repeat it to resume."""
    from dialogkit.services.push import push, push_call

    shown = Output(json_mode=json_output)
    shown_notes: list[str] = []

    def show(files: Sequence["PushedFile"], notes: Sequence["Note"]) -> None:
        if not dry_run:
            parts = [f"{file.name} ({_size(file.bytes)})" for file in files]
            shown.note(f"files: {listed(parts)}, {_size(sum(file.bytes for file in files))} in all")
        for text, advice in notes:
            shown.note(text if advice is None else f"{text}; {hints.render(advice)}")
            shown_notes.append(text)

    with shown.progress() as on_progress:
        result = push(
            model,
            repository,
            public=public,
            dry_run=dry_run,
            bundle=bundle,
            message=message,
            include_pickle=include_pickle,
            force=force,
            output=output_dir,
            on_files=show,
            on_progress=on_progress,
        )
    for note in result.notes[len(shown_notes) :]:
        shown.note(note)
    is_gguf = any(file.name.endswith(".gguf") for file in result.files)
    loaded = Shell(f"llama-cli -hf {result.repository}") if is_gguf else Call("chat", result.repository)
    sends = push_call(
        model,
        repository,
        output_dir,
        public=public,
        bundle=bundle,
        message=message,
        include_pickle=include_pickle,
        force=force,
    )
    following = sends if dry_run else loaded
    shown.result(result, lambda out: render_push(out, result), hint=following)


def render_push(output: Output, result: "PushResult") -> None:
    """Print where the model is, or what would go there and the beginning of its card."""
    who = "only its owner sees it" if result.private else "everybody sees it"
    if result.dry_run:
        files = table("file", "size", right=("size",))
        for file in result.files:
            files.add_row(untrusted(file.name), _size(file.bytes))
        output.print(files)
        output.text(f"\n{result.card}")
        total = _size(sum(file.bytes for file in result.files))
        output.note(f"dry run: {total} would go to {result.repository}, and {who}; nothing was sent")
        return
    committed = "nothing, as it holds all of this" if not result.committed else listed(result.committed)
    values = {"model": f"{result.url}, {who}", "committed": committed}
    if result.removed:
        values["removed"] = f"{listed(result.removed)}, of an earlier model"
    if result.commit is not None:
        values["commit"] = result.commit
    output.print(values_grid(values))


def _size(count: int) -> str:
    """Return a number of bytes in a unit of its order."""
    if count < 1024:
        return counted(count, "byte")
    return f"{count / 1024:,.1f} KiB" if count < 2**20 else byte_size(count)
