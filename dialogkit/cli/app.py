"""All commands of the command line, and the one place where errors end."""

import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

import typer
from typer.exceptions import TyperException

from dialogkit import __version__
from dialogkit.cli import (
    chat,
    config,
    data,
    doctor,
    evaluate,
    export,
    generate,
    hints,
    launch,
    models,
    plan,
    prune,
    push,
    runs,
    serve,
    tokenizer,
    train,
)
from dialogkit.cli.aliases import DEVICE
from dialogkit.cli.output import Output
from dialogkit.cli.terminal import between_words
from dialogkit.distributed.rank import enter, require_sound_rank, silence, this_rank
from dialogkit.errors import ConfigError, DialogKitError
from dialogkit.redaction import redact
from dialogkit.text import sanitize

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="dialogkit",
    help="Train, test and talk to small dialog models.",
    epilog="Exit codes: 0 done, 1 failed while it ran, 2 wrong input, 3 training diverged, "
    "130 or 143 stopped by a signal.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The catalogue of models: list, show.", no_args_is_help=True)
config_app = typer.Typer(help="Settings: show, validate, schema.", no_args_is_help=True)
data_app = typer.Typer(help="Datasets: list, inspect, make.", no_args_is_help=True)
runs_app = typer.Typer(help="Training runs: list, show, compare, best, report, prune, sync.", no_args_is_help=True)
launch_app = typer.Typer(help="Job files for clusters: slurm, kubernetes.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Tokenizers: train.", no_args_is_help=True)

app.command("train", cls=train.TrainCommand)(train.train_command)
app.command("plan")(plan.plan_command)
app.command("generate")(generate.generate_command)
app.command("chat")(chat.chat_command)
app.command("serve")(serve.serve_command)
app.command("evaluate", epilog=evaluate.LEGEND)(evaluate.evaluate_command)
app.command("export")(export.export_command)
app.command("push")(push.push_command)
app.add_typer(models_app, name="models")
models_app.command("list")(models.list_command)
models_app.command("show")(models.show_command)
app.add_typer(runs_app, name="runs")
runs_app.command("list")(runs.list_command)
runs_app.command("show")(runs.show_command)
runs_app.command("compare")(runs.compare_command)
runs_app.command("best")(runs.best_command)
runs_app.command("report")(runs.report_command)
runs_app.command("prune")(prune.prune_command)
runs_app.command("sync")(runs.sync_command)
app.add_typer(data_app, name="data")
data_app.command("list")(data.list_command)
data_app.command("inspect")(data.inspect_command)
data_app.command("make")(data.make_command)
app.add_typer(config_app, name="config")
config_app.command("show")(config.show_command)
config_app.command("validate")(config.validate_command)
config_app.command("schema")(config.schema_command)
app.add_typer(tokenizer_app, name="tokenizer")
tokenizer_app.command("train")(tokenizer.train_command)
app.add_typer(launch_app, name="launch")
launch_app.command("slurm")(launch.slurm_command)
launch_app.command("kubernetes")(launch.kubernetes_command)
app.command("doctor")(doctor.doctor_command)


def _print_version(value: bool) -> None:
    if value:
        Output().text(f"dialogkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, test and talk to small dialog models."""


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time: while a bar is drawn, its lines go above the bar."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        self.stream = sys.stderr
        super().emit(record)


class _Sanitized(logging.Formatter):
    """Makes warnings of libraries safe to print: they may quote what they read, and URLs with passwords.

    A terminal breaks them between words.
    """

    def __init__(self, stderr: "Console") -> None:
        super().__init__("%(message)s")
        self._stderr = stderr

    def format(self, record: logging.LogRecord) -> str:
        """Return a message."""
        text = sanitize(redact(super().format(record)))
        return between_words(text, self._stderr.width) if self._stderr.is_terminal else text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 run-time or I/O, 2 wrong input, 3 diverged, 130/143 signals."""
    words = list(sys.argv[1:] if argv is None else argv)
    output = Output(json_mode="--json" in words)
    hints.remember(words)
    log = _Stderr()
    log.setFormatter(_Sanitized(output.err))
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    logging.getLogger("dialogkit.system.network").setLevel(logging.INFO)  # says what it waits for
    # Libraries send no telemetry, and draw no progress bars into our output.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        if words[:1] == ["train"]:
            require_sound_rank()
            if this_rank() is not None:
                _one_of_several(words, output)
        code = hints.command_line()(words, prog_name="dialogkit", standalone_mode=False)
        sys.stdout.flush()
    except DialogKitError as error:
        if os.environ.get("DIALOGKIT_DEBUG"):
            raise
        from dialogkit.cli.repair import line_for_error

        error.hint = line_for_error(error, words) or error.hint
        output.error(error)
        raise SystemExit(error.exit_code) from None
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
            raise SystemExit(0) from None
        output.error(_usage_error(error, words))
        raise SystemExit(2) from None
    except BrokenPipeError:
        # The reader of our output left before its end; typer exits in the same way where it notices first.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    if code == 130:  # typer's code for Ctrl-C
        output.note("stopped")
    raise SystemExit(code if isinstance(code, int) else 0)


def _one_of_several(words: list[str], output: Output) -> NoReturn:
    """Run a command as one of several processes: rank 0 prints, and an error of one ends all."""
    from dialogkit.services.cluster.launch import end_at_once, end_with
    from dialogkit.system.signals import stopped_by

    enter()
    rank = this_rank()
    assert rank is not None
    kept = silence() if rank.rank else None

    def say(error: DialogKitError | None) -> None:
        if kept is not None:
            os.dup2(kept, 2)
        if error is not None:
            output.error(error)

    try:
        code = hints.command_line()(words, prog_name="dialogkit", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:
            raise stopped_by(signal.SIGINT)
    except TyperException as error:
        end_with(_usage_error(error, words), rank, say)
    except KeyboardInterrupt:
        end_with(stopped_by(signal.SIGINT), rank, say)
    except BaseException as error:
        end_with(error, rank, say)
    end_at_once(code if isinstance(code, int) else 0)


def _suggests_only(part: str, line: str) -> bool:
    """Return whether every word that a suggestion names is in `line`."""
    return not part.startswith(" (did you mean") or any(
        word in shlex.split(line) for word in re.findall(r"[\w-]+", part)
    )


def _usage_error(error: TyperException, words: list[str]) -> ConfigError:
    """Return typer's error as one sentence, with the value that typer leaves out."""
    from dialogkit.cli.repair import line_for

    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else f"dialogkit {hints.verb_of(words)}".strip()
    message = error.format_message().strip().rstrip(".")
    message = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", message)
    if "pydantic" in sys.modules:  # otherwise it cannot have raised anything, and importing it takes time
        from pydantic import ValidationError

        from dialogkit.config.problems import list_problems

        if isinstance(error.__cause__, ValidationError):
            option = error.param.get_error_hint()  # type: ignore[attr-defined]
            message = f"{option}{list_problems(error.__cause__)[0]}"
    # A wrong flag is reported in one form, whoever found it wrong.
    message = re.sub(r"^(?:Invalid value for )?'(--[\w-]+)'(?: / '-\w')?: ", r"\1: ", message)
    message = re.sub(r" \(Possible options: (.*)\)$", r" (did you mean \1?)", message)
    hint = f"{command} --help"
    if (line := line_for(words)) is not None:
        hint = line
        # What click finds alike may be less alike than what is suggested.
        message = "".join(
            part for part in re.split(r"( \(did you mean .*\))$", message) if _suggests_only(part, line)
        )
    if (unknown := re.match(r"[Nn]o such option: --?([\w-]+)", message)) and unknown[1] in DEVICE:
        message = f"{message.partition(' (')[0]}; a GPU is used automatically if there is one"
    if command.startswith("dialogkit launch ") and "train" in words and "--" not in words:
        begins = words.index("train")  # without the --, options of `train` are taken for the job's
        hint = f"dialogkit {shlex.join([*words[:begins], '--', *words[begins:]])}"
    return ConfigError(f"{message[0].lower()}{message[1:]}", hint=hint)
