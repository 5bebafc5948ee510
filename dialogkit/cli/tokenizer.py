"""`dialogkit tokenizer`."""

from typing import Annotated

import typer

from dialogkit.cli.options import JsonOption
from dialogkit.cli.output import Output, untrusted
from dialogkit.hints import Call


def train_command(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Dialog files, or plain text (.txt).")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    vocab_size: Annotated[int, typer.Option(metavar="N", min=1, max=2_000_000, help="Vocabulary size.")] = 32_768,
    json_output: JsonOption = False,
) -> None:
    """Train a tokenizer for other languages or domains, for model.tokenizer of a model file."""
    from dialogkit.services.tokenizer import train_tokenizer

    result = train_tokenizer(files, vocabulary=vocab_size, output=output)
    why = f" (not {vocab_size:,}: the text has no more)" if result.entries < vocab_size else ""
    dataset = next((file for file in files if not file.endswith(".txt")), None)
    Output(json_mode=json_output).result(
        result,
        lambda out: out.print(untrusted(f"{result.entries:,} entries in {result.folder}{why}")),
        hint=Call("train", "custom-tiny", dataset=dataset, settings={"model.tokenizer": output}),
    )
