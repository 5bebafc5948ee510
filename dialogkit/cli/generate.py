"""`dialogkit generate`."""

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dialogkit.cli import complete, options
from dialogkit.cli.output import Output, replies_table
from dialogkit.errors import ConfigError, os_reason
from dialogkit.hints import Call
from dialogkit.text import lines_of

if TYPE_CHECKING:
    from dialogkit.config.generate import GenerateConfig
    from dialogkit.inference.results import ReplyResult
    from dialogkit.services.generate import GenerateResult


def generate_command(
    context: typer.Context,
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="A prompt; may be repeated.")
    ] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option("--prompts-file", metavar="FILE", help="One prompt per line; - is standard input."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System text before each prompt.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare", metavar="MODEL", help="Another model, side by side.", autocompletion=complete.models
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = None,
    top_p: options.TopPOption = None,
    repetition_penalty: options.RepetitionPenaltyOption = None,
    seed: options.SeedOption = None,
    use_model_settings: options.ModelSettingsOption = False,
    int8: options.Int8Option = False,
    no_cuda: options.NoCudaOption = False,
    output_dir: options.OutputOption = "models",
    json_output: options.JsonOption = False,
) -> None:
    """Let MODEL answer prompts, or the built-in test prompts if none is given."""
    from dialogkit.services.generate import generate

    config, model = sampling(context.params), options.one_model(model, model_option)
    prompts = read_prompts(prompt, prompts_file, model=model)
    models = [*([] if model is None else [model]), *(compare or [])]
    if twice := [name for name in models if models.count(name) > 1]:
        raise ConfigError(f"{twice[0]!r} cannot be compared with itself", hint=Call("generate", twice[0]))
    if compare and model is None:
        hint = Call("generate", compare[0], compare=compare[1:] or None)
        raise ConfigError("--compare needs a MODEL to compare with", hint=hint)
    output = Output(json_mode=json_output)
    streams = (
        not json_output and not compare and prompts is not None and len(prompts) == 1 and output.out.is_terminal
    )
    if prompts is None and _is_piped():
        output.note("standard input is ignored; to read prompts from it: dialogkit generate --prompts-file -")
    output.loading()
    with output.busy("answering the test prompts" if prompts is None else "answering") as end_busy:

        def stream(text: str) -> None:
            end_busy()
            output.stream(text)

        result = generate(
            models or None,
            prompts,
            system=system,
            config=config,
            output=output_dir,
            device="cpu" if no_cuda else "auto",
            int8=int8,
            on_text=stream if streams else None,
        )
    for note in result.notes:
        output.note(note)
    output.result(result, lambda out: render_replies(out, result, streamed=streams))


def sampling(given: Mapping[str, Any], verb: str = "generate") -> "GenerateConfig":
    """Return the sampling settings among the parameters of a command. Raises: ConfigError that names the flag."""
    from pydantic import ValidationError

    from dialogkit.config.generate import GenerateConfig
    from dialogkit.config.problems import list_problems

    try:
        known = {name: given.get(name) for name in GenerateConfig.model_fields}
        return GenerateConfig(**{name: value for name, value in known.items() if value is not None})
    except ValidationError as error:
        problem = list_problems(error)[0]
        flag = f"--{problem.setting.replace('_', '-')}"
        raise ConfigError(flag + problem.removeprefix(problem.setting), hint=Call(verb, help=True)) from None


def read_prompts(prompts: list[str] | None, file: str | None, *, model: str | None = None) -> list[str] | None:
    """Return typed prompts and those of a file; None for none. Raises: ConfigError if the file has none."""
    texts = list(prompts or [])
    if file is not None:
        hint = Call("generate", *filter(None, [model]), prompt="Hello!")
        try:
            content = _standard_input() if file == "-" else Path(file).read_bytes()
            lines = [line for line in lines_of(content.decode("utf-8-sig")) if line.strip()]
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"the prompts file {file!r} is not UTF-8 text (byte {error.start})", hint=hint
            ) from None
        except OSError as error:
            raise ConfigError(f"the prompts file {file!r} cannot be read: {os_reason(error)}", hint=hint) from None
        if not lines:
            raise ConfigError(f"the prompts file {file!r} contains no prompt", hint=hint)
        texts += lines
    return texts or None


def _is_piped() -> bool:
    """Return whether text in a pipe is ready to be read."""
    try:
        import select

        piped = stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
        return piped and bool(select.select([sys.stdin], [], [], 0)[0])
    except (OSError, ValueError, AttributeError):  # closed, or not a file of the system
        return False


def _standard_input() -> bytes:
    return sys.stdin.buffer.read() if sys.stdin is not None else b""  # None where it is closed


def render_replies(output: Output, result: "GenerateResult", *, streamed: bool) -> None:
    """Print the replies, those of several models side by side; `streamed`: the text is printed already."""
    models = list(dict.fromkeys(reply.model for reply in result.replies))
    by_prompt: dict[str, list[ReplyResult]] = {}
    for reply in result.replies:
        by_prompt.setdefault(reply.prompt, []).append(reply)
    if streamed:
        output.end_stream()
        output.reply_statistics(result.replies[0])
    elif len(models) == 1:
        for reply in result.replies:
            output.reply(reply, prompt=len(result.replies) > 1)
    else:
        rows = [(prompt, [reply.reply for reply in replies]) for prompt, replies in by_prompt.items()]
        if (drawn := replies_table(output.out, models, rows)) is not None:
            output.print(drawn)
            return
        for replies in by_prompt.values():
            for number, reply in enumerate(replies):
                output.reply(reply, prompt=number == 0, model=reply.model)
