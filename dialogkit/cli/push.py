"""`dialogkit push`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli import complete, options
from dialogkit.cli.output import Output, table, untrusted, values_grid
from dialogkit.hints import Call
from dialogkit.text import byte_size, listed

if TYPE_CHECKING:
    from dialogkit.services.exporting.hub_files import PushedFile
    from dialogkit.services.push import PushResult


def push_command(
    model: Annotated[str, typer.Argument(help="Catalogue name, run or folder.", autocompletion=complete.models)],
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
    from dialogkit.services.push import push

    shown = Output(json_mode=json_output)

    def show(files: Sequence["PushedFile"], notes: Sequence[str]) -> None:
        if not dry_run:
            parts = [f"{file.name} ({byte_size(file.bytes)})" for file in files]
            shown.note(f"files: {listed(parts)}, {byte_size(sum(file.bytes for file in files))} in all")
        for note in notes:
            shown.note(note)

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
    following = None if dry_run else Call("chat", result.repository)
    shown.result(result, lambda out: render_push(out, result), hint=following)


def render_push(output: Output, result: "PushResult") -> None:
    """Print where the model is, or what would go there and the beginning of its card."""
    who = "only its owner sees it" if result.private else "everybody sees it"
    if result.dry_run:
        files = table("file", "size", right=("size",))
        for file in result.files:
            files.add_row(untrusted(file.name), byte_size(file.bytes))
        output.print(files)
        output.text(f"\n{result.card}")
        total = byte_size(sum(file.bytes for file in result.files))
        output.note(f"dry run: {total} would go to {result.repository}, and {who}; nothing was sent")
        return
    sent = "nothing, as it holds all of this" if not result.sent else listed(result.sent)
    values = {"model": f"{result.url}, {who}", "sent": f"{sent}; {byte_size(result.sent_bytes)} of weights"}
    if result.removed:
        values["removed"] = f"{listed(result.removed)}, of an earlier model"
    if result.commit is not None:
        values["commit"] = result.commit
    output.print(values_grid(values))
