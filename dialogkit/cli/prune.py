"""`dialogkit runs prune`."""

import sys
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from dialogkit.cli import complete
from dialogkit.cli.options import JsonOption, OutputOption, age
from dialogkit.cli.output import Output, table, untrusted
from dialogkit.errors import ConfigError, did_you_mean
from dialogkit.hints import Call
from dialogkit.text import counted

if TYPE_CHECKING:
    from dialogkit.services.runs.prune import PruneResult, PruneRow
    from dialogkit.tracking.record import Status

_SHOWN = 10
"""Foreign files that are named one by one."""


def prune_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Runs to delete. Default: only the checkpoints of finished runs.",
            autocompletion=complete.runs,
        ),
    ] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, metavar="N", help="Keep only the newest N finished runs.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Only runs older than 12h, 30d or 2w.")
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option("--status", metavar="STATUS", help="Only runs that failed, were interrupted, ..."),
    ] = None,
    checkpoints_only: Annotated[
        bool, typer.Option("--checkpoints-only", help="Keep the runs and their models.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Delete runs or their checkpoints, and only what dialogkit wrote.

    In a terminal it asks first; elsewhere it only says what it would delete, unless --yes is given.

    Unfinished runs are deleted only by name or --status; published models (models/NAME) never.
    """
    from dialogkit.services.runs.listing import skipped_runs
    from dialogkit.services.runs.prune import prune_runs

    output = Output(json_mode=json_output)
    asks = not yes and not json_output and sys.stdin is not None and sys.stdin.isatty() and output.err.is_terminal

    def agreed(planned: "PruneResult") -> bool:
        if not asks:
            return yes
        render_pruning(output, planned)
        return typer.confirm("delete this?", err=True)

    result = prune_runs(
        names,
        keep=keep,
        older_than_s=age(older_than),
        status=_statuses(status),
        checkpoints_only=checkpoints_only,
        output=output_dir,
        agreed=agreed,
    )
    to_do = not result.pruned and any(row.problem is None for row in result.rows)
    again = Call(
        "runs prune",
        *(names or []),
        keep=keep,
        older_than=older_than,
        status=status,
        checkpoints_only=checkpoints_only,
        output_dir=output_dir,
        yes=True,
    )
    if to_do and asks:
        output.note("nothing was deleted")
        return

    def render(out: Output) -> None:
        render_pruning(out, result)
        if not names:
            out.skipped(skipped_runs(output=output_dir))

    output.result(result, render, hint=again if to_do else None)
    if result.pruned and any(row.problem for row in result.rows):
        raise typer.Exit(1)


def render_pruning(output: Output, result: "PruneResult") -> None:
    """Print what would be deleted, or what was."""
    if not result.rows:
        output.print("there is nothing to delete")
        return
    if result.pruned:
        output.print(f"deleted {_deleted(result)}, {size(result.freed_bytes)} freed")
    else:
        drawn = table("run", "status", "to delete", "frees", right=("frees",))
        for row in result.rows:
            cells = ("nothing", "") if row.problem else (_what(row), size(row.freed_bytes))
            drawn.add_row(*map(untrusted, (row.name, row.status, *cells)))
        output.print(drawn, f"this frees {size(result.freed_bytes)}")
        if any(row.freed_bytes < row.bytes for row in result.rows):
            output.note("files that are also in another folder, such as a published model, stay there")
    _render_kept(output, result)


def _deleted(result: "PruneResult") -> str:
    done = [row for row in result.rows if row.problem is None]
    whole = [row for row in done if not row.checkpoints_only]
    deleted = [counted(len(whole), "run")] if whole else []
    if len(done) > len(whole):
        deleted.append(f"the checkpoints of {counted(len(done) - len(whole), 'run')}")
    return " and ".join(deleted) or "nothing"


def _render_kept(output: Output, result: "PruneResult") -> None:
    """Print which files and runs are kept."""
    foreign = [path for row in result.rows for path in row.foreign]
    for path in foreign[:_SHOWN]:
        output.note(f"not dialogkit's, kept: {path}")
    if len(foreign) > _SHOWN:
        output.note(f"and {len(foreign) - _SHOWN:,} more")
    for row in result.rows:
        if row.problem:
            output.note(f"kept: {row.problem}")


def _what(row: "PruneRow") -> str:
    if row.checkpoints_only:
        return "its checkpoints"
    return "the run and its model" if row.deletes_model else "the run"


def size(number: int) -> str:
    """Return bytes as people say them: 512 B, 4.8 MB, 1.25 GB."""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{number} B" if unit == "B" else f"{value:.3g} {unit}"


def _statuses(given: list[str] | None) -> "list[Status] | None":
    from dialogkit.tracking.record import Status

    known = get_args(Status)
    for status in given or []:
        if status not in known:
            raise ConfigError(
                f"--status {status!r} is none of {', '.join(known)}{did_you_mean(status, known)}",
                hint=Call("runs list"),
            )
    return [status for status in known if status in given] if given else None
