"""`dialogkit data`."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

from dialogkit.cli import complete
from dialogkit.cli.options import BadRowsOption, ColumnsOption, JsonOption, SetOption, Sets, given_settings
from dialogkit.cli.output import Output, table, untrusted, values_grid
from dialogkit.hints import Call
from dialogkit.text import counted, listed, percent, percentage_of, sanitize

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from dialogkit.services.data import MadeDialogs
    from dialogkit.services.inspection.results import InspectResult, ShownDialog, Token

BAR = 40
"""Maximum width of a histogram bar, in columns."""
_WIDEST = 200
"""Maximum width of lines of tokens, in columns; a file or a pipe has no edge."""
_TOPICS = 12
"""Topics that are named one by one."""
SMALLEST_SHARE = 0.001
"""Scripts with a smaller fraction of the letters are not named one by one."""
_SPLIT = {"hash": "chosen by a hash of their text", "rows": "chosen by the column split"}


def list_command(json_output: JsonOption = False) -> None:
    """List the datasets with a short name; files and hub ids work as well."""
    from dialogkit.services.data import list_datasets

    rows = list_datasets()
    drawn = table("name", "what", "licence", "source")
    for row in rows:
        drawn.add_row(row.name, row.description, row.license, row.source)
    Output(json_mode=json_output).result(rows, lambda out: out.print(drawn))


def make_command(
    world: Annotated[
        str,
        typer.Argument(help="smalltalk, smalltalk-core, or a folder of topics.", autocompletion=complete.worlds),
        Sets("data.dataset"),
    ],
    output_file: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help=r"JSON Lines file to write; - for stdout. \[WORLD.jsonl]"
        ),
    ] = None,
    dialogs: Annotated[
        int, typer.Option("--dialogs", "-n", min=1, max=10_000_000, metavar="N", help="Number of dialogs.")
    ] = 50_000,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, max=2**32 - 1, metavar="S", help="The same seed makes the same dialogs."),
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Make dialogs from WORLD, a folder of facts and questions about them."""
    from dialogkit.services.data import dialog_lines, write_dialogs

    output = Output(json_mode=json_output)
    if output_file == "-":
        output.lines(dialog_lines(world, dialogs=dialogs, seed=seed))
        return
    with output.busy(f"making {counted(dialogs, 'dialog')} of {world}"):
        made = write_dialogs(world, output_file, dialogs=dialogs, seed=seed, force=force)
    output.result(made, lambda out: render_made(out, made), hint=Call("data inspect", made.file))


def render_made(output: Output, made: "MadeDialogs") -> None:
    """Print what was made, with the topics that have the most dialogs."""
    held_out = [f"{number:,} by {new}" for new, number in made.held_out.items()]
    most = [
        f"{topic} {percentage_of(number, made.dialogs)}" for topic, number in made.topics.items()
    ]  # the largest first
    if (more := len(most) - _TOPICS) > 1:
        most[_TOPICS:] = [f"{more:,} more"]
    values = {
        "file": f"{made.file}: {counted(made.dialogs, 'dialog')} of {made.world}, seed {made.seed}",
        "held out": f"{sum(made.held_out.values()):,}" + (f" ({', '.join(held_out)})" if held_out else ""),
        "topics": f"{len(made.topics):,}: {listed(most)}",
        "answers": f"{made.answers:,}, {made.checked:,} of them with a check",
    }
    output.print(values_grid(values))


def inspect_command(
    context: typer.Context,
    dataset: Annotated[
        str,
        typer.Argument(
            help="starter, smalltalk, alpaca-gpt4, a file, a world or a hub id.", autocompletion=complete.datasets
        ),
        Sets("data.dataset"),
    ] = "starter",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Model whose tokenizer and context length to use.",
            autocompletion=complete.base_models,
        ),
    ] = "custom-tiny",
    samples: Annotated[
        int | None,
        typer.Option("--samples", "-s", min=1, metavar="N", help="Training dialogs. Default: all."),
        Sets("data.samples"),
    ] = None,
    show: Annotated[
        int, typer.Option("--show", min=0, max=10_000, metavar="N", help="Show N dialogs token by token.")
    ] = 0,
    columns: ColumnsOption = None,
    max_bad_rows: BadRowsOption = 0,
    sets: SetOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show what a model sees of DATASET: its rows, lengths, duplicates and oddities, and what to improve."""
    from dialogkit.config.load import parse_sets
    from dialogkit.services.inspect import inspect_data

    output = Output(json_mode=json_output)
    with output.busy(f"reading {dataset}"):
        result = inspect_data(
            dataset,
            model=model,
            show=show,
            overrides=given_settings(inspect_command, context.params) | parse_sets(sets or []),
        )
    training = Call(
        "train",
        model,
        dataset=dataset if dataset != "starter" else None,
        samples=samples,
        max_bad_rows=max_bad_rows or None,
        columns=columns,
        sets=sets,
        settings={"train.epochs": result.epochs} if result.epochs else None,
    )
    output.result(result, lambda out: _render(out, result), hint=training)


def _render(output: Output, result: "InspectResult") -> None:
    for dialog in result.shown:
        _render_dialog(output, dialog)
    output.print(_overview(result), "")
    _render_lengths(output, result)
    output.print("")
    _render_examples(output, result)
    output.print("")
    for remark in result.remarks:
        output.print(_listed(untrusted(remark)))
    if not result.remarks:
        output.print("Nothing to improve.")


def _listed(text: Text) -> Table:
    """Return text as a list item, its lines aligned."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text("-", style="bold yellow"), text)
    return grid


def _overview(result: "InspectResult") -> Table:
    dialogs = result.train.dialogs + result.held_out.dialogs
    copies, overlap, held_out = result.copies, result.overlap, result.held_out.dialogs
    groups = f" in {counted(copies.near_groups, 'group')}" if copies.near else ""
    checked = result.checked.answers
    values = {
        "dataset": f"{result.dataset}, format {result.format}" + (f", {result.license}" if result.license else ""),
        "rows": f"{result.rows:,}: {result.kept:,} kept ({result.cut:,} of them cut at {result.limit:,} tokens), "
        f"{result.dropped:,} without supervision, {result.unusable:,} unusable",
        "to train on": _set(result.train),
        "held out": f"{_set(result.held_out)}; {_SPLIT[result.split_by]}",
        **({"checked": f"{counted(checked, 'answer')} with a check of what is right"} if checked else {}),
        "tokens": f"{result.model}'s, {result.bytes_per_token:.2f} bytes of text each",
        "turns": _turns(result.turns, dialogs)
        + (
            f"; a system prompt in {percentage_of(result.system_prompts, dialogs)}"
            if result.system_prompts
            else ""
        ),
        "letters": _letters(result.scripts),
        "duplicates": f"{copies.exact:,} exact, {copies.near:,} near{groups} "
        f"(Jaccard {copies.threshold} of {copies.shingle_words}-word shingles)",
        "held out, but known": f"{overlap.prompt:,} of {held_out:,} by their prompt, {overlap.answer:,} by their "
        f"answer, {overlap.near:,} as near duplicates",
    }
    return values_grid(values)


def _set(figures: Any) -> str:
    share = percentage_of(figures.supervised_tokens, figures.tokens)
    return f"{counted(figures.dialogs, 'dialog')}, {counted(figures.tokens, 'token')}, {share} of them learned"


def _turns(turns: dict[int, int], dialogs: int, number: int = 4) -> str:
    """Return the most frequent numbers of turns, and how many dialogs have another one."""
    most = sorted(sorted(turns.items(), key=lambda item: -item[1])[:number])
    shares = [f"{count} in {percentage_of(part, dialogs)}" for count, part in most]
    left = dialogs - sum(part for _, part in most)
    return ", ".join([*shares, f"others in {percentage_of(left, dialogs)}"] if left else shares)


def _letters(scripts: dict[str, float]) -> str:
    if not scripts:
        return "none"
    named = {name: share for name, share in scripts.items() if share >= SMALLEST_SHARE}
    others = [name for name in scripts if name not in named]
    shown = [f"{name} {percent(share)}" for name, share in named.items()]
    return ", ".join(shown) + (f", traces of {', '.join(others[:6])}" if others else "")


def _render_lengths(output: Output, result: "InspectResult") -> None:
    lengths = result.lengths
    spread = f"  median {lengths.median:,.0f}, 95% up to {lengths.percentile_95:,.0f}, longest {lengths.longest:,}"
    output.print(Text.assemble(("tokens of a dialog", "bold"), spread))
    dialogs = result.train.dialogs + result.held_out.dialogs
    most = max(part.dialogs for part in lengths.histogram)
    width = max(8, min(BAR, output.out.width - 40))
    grid = _grid("right", "left", "right", "left", "right", "right", "left")
    for part in lengths.histogram:
        style, mark = ("red", "cut") if part.cut else ("cyan", "")
        bar = Text(_bar(part.dialogs / most * width, ascii_only=output.out.options.ascii_only), style)
        share = percentage_of(part.dialogs, dialogs)
        grid.add_row(f"{part.low:,}", "-", f"{part.high:,}", bar, f"{part.dialogs:,}", share, Text(mark, style))
    output.print(grid)


def _grid(*justified: "JustifyMethod") -> Table:
    return Table.grid(*(Column(justify=justify, no_wrap=True) for justify in justified), padding=(0, 1))


def _bar(columns: float, *, ascii_only: bool) -> str:
    """Return a bar of a width in columns, to an eighth of a column; a bar above 0 is never empty."""
    if ascii_only:
        return "#" * (max(1, round(columns)) if columns else 0)
    whole, eighths = divmod(max(1, round(8 * columns)) if columns else 0, 8)
    return "\u2588" * whole + " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[eighths].strip()


def _render_examples(output: Output, result: "InspectResult") -> None:
    """Print unusual dialogs, one per line."""
    rows: list[tuple[str, str, str, str]] = []
    for title, form, examples in (
        ("longest", "{:,.0f} tokens", result.longest),
        ("oddest characters", "{:.1f} bits each", result.oddest),
        ("most repetitive", "zips to {:.0%}", result.most_repetitive),
        ("most copied", "{:,.0f} times", result.most_copied),
    ):
        rows += [(title, form.format(e.value), e.place, e.beginning) for e in examples]
    for pair in result.near_pairs:
        rows.append(("near duplicates", f"{pair.similarity:.2f} alike", pair.places[0], pair.beginnings[0]))
        rows.append(("near duplicates", "to", pair.places[1], pair.beginnings[1]))
    places = [_place(place) for _, _, place, _ in rows]
    titles = [title if n == 0 or rows[n - 1][0] != title else "" for n, (title, *_) in enumerate(rows)]
    taken = sum(max(map(len, column)) + 1 for column in (titles, [value for _, value, *_ in rows], places))
    grid = _grid("left", "right", "right", "left")
    for title, place, (_, value, _, beginning) in zip(titles, places, rows, strict=True):
        text = untrusted(" ".join(beginning.split()), "dim")
        text.truncate(max(8, output.out.width - taken), overflow="ellipsis")
        grid.add_row(Text(title), Text(value), untrusted(place, "cyan"), text)
    output.print(Text("worth a look", style="bold"), grid)


def _place(place: str) -> str:
    """Return the line or row of a dialog, without its file."""
    found = re.fullmatch(r".*(?::(\d+)|\[(\d+)\])", place, flags=re.DOTALL)
    if found is None:
        return place
    return f"line {found[1]}" if found[1] else f"row {found[2]}"


def _render_dialog(output: Output, dialog: "ShownDialog") -> None:
    """Print a dialog token by token; lines of supervised tokens begin with `+`, with or without colours."""
    learned = sum(token.supervised for token in dialog.tokens)
    title = f"{dialog.place}: {counted(len(dialog.tokens), 'token')}, {learned:,} learned (the lines with +)"
    width = min(output.out.width, _WIDEST)
    lines = _token_lines(dialog.tokens, width, ascii_only=output.out.options.ascii_only)
    output.print(untrusted(title, "bold"), *lines, "")


def _token_lines(tokens: "Sequence[Token]", width: int, *, ascii_only: bool) -> Iterator[Text]:
    """Yield lines of tokens with marks between them, all supervised or none; `width` is in columns."""
    between, newline = ("|", "\\n") if ascii_only else ("\u2502", "\u21b5")
    line = Text()
    for number, token in enumerate(tokens):
        style = ("green" if token.supervised else "magenta" if token.special else "dim") + " bold" * token.special
        turned = number > 0 and token.supervised != tokens[number - 1].supervised
        mark = "+ " if token.supervised else "  "
        shown = sanitize(token.text).replace("\t", "\\t").replace("\n", newline)
        for piece in _pieces(shown, width - len(mark) - 1):
            if line and (turned or line.cell_len + cell_len(piece) + 1 > width):
                yield line
                line = Text()
            turned = False
            if not line:
                line = Text(mark, style="green" if token.supervised else "")
            line.append(piece, style)
            line.append(between, "dim")
        if token.text.endswith("\n"):
            yield line
            line = Text()
    if line:
        yield line


def _pieces(text: str, width: int) -> list[str]:
    """Split text into pieces that fit a line."""
    if cell_len(text) <= width:
        return [text]
    half = max(1, width // 2)  # no character is wider than two columns
    return [text[start : start + half] for start in range(0, len(text), half)]
