"""Arguments and options that several commands share, and the settings that options give."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dialogkit.cli import complete
from dialogkit.errors import ConfigError
from dialogkit.hints import Change, word_of
from dialogkit.text import duration_word, parse_duration


@dataclass(frozen=True)
class Sets:
    """The setting that an option gives; part of the option's annotation.

    The one place that maps a flag to a setting.

    Attributes:
        setting: dotted name.
        to: for an option without a value, the value that it gives to the setting.
        read: turns the typed word into the setting's value. Raises: ConfigError for a wrong one.
        write: the reverse: the word for a value.
    """

    setting: str
    to: Any = None
    read: Callable[[Any], Any] = lambda word: word
    write: Callable[[Any], str] = word_of


def sets_of(command: Callable[..., Any]) -> dict[str, Sets]:
    """Return what the parameters of a command set, by the names of the parameters."""
    parameters = inspect.signature(inspect.unwrap(command)).parameters.values()
    return {
        parameter.name: extra
        for parameter in parameters
        for extra in getattr(parameter.annotation, "__metadata__", ())
        if isinstance(extra, Sets)
    }


def given_settings(command: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the typed options of a command give, by their dotted names.

    Args:
        command: a function that is a command.
        given: what was typed, by the names of its parameters; None, False and [] for what was not.

    Raises: ConfigError for a word that is not a value of its setting.
    """
    return {
        sets.setting: sets.read(given[name]) if sets.to is None else sets.to
        for name, sets in sets_of(command).items()
        if given[name] is not None and given[name] is not False and given[name] not in ([], ())
    }


def one_model(word: str | None, option: str | None) -> str | None:
    """Return the model that was given as a word or by `--model`. Raises: ConfigError for two different ones."""
    if word is not None and option not in (None, word):
        raise ConfigError(f"MODEL is {word!r}, but --model is {option!r}", hint=Change({"model": option}))
    return word if word is not None else option


# How words are read


def seconds_of(flag: str, text: str, *, example: str) -> float:
    """Return the seconds of a time such as 90s or 1h30m.

    Raises: ConfigError. Its hint is the example; for a number without a unit, that number with the example's unit.
    """
    seconds = parse_duration(text)
    if seconds is None:
        if re.fullmatch(r"[1-9]\d{0,2}(\.\d+)?", number := text.strip(), re.ASCII):
            example = number + example[-1]
        raise ConfigError(
            f"{flag}: {text!r} is not a time such as 90s, 20m, 1h30m, 1.5h or 2d",
            hint=Change({flag.removeprefix("--").replace("-", "_"): example}),
        )
    return seconds


def budget(text: str) -> float:
    """Return the seconds of `--budget`. Raises: ConfigError."""
    return _time_to_train("budget", text)


def time_to_train(text: str) -> float:
    """Return the seconds of the `--time` of a plan. Raises: ConfigError."""
    return _time_to_train("time", text)


def _time_to_train(option: str, text: str) -> float:
    if not (seconds := seconds_of(f"--{option}", text, example="20m")):
        raise ConfigError(f"--{option}: {text!r} leaves no time to train", hint=Change({option: "20m"}))
    return seconds


def age(text: str | None) -> float | None:
    """Return the seconds of `--older-than`. Raises: ConfigError."""
    # A thousand years are as good as any longer time, and still a date.
    return None if text is None else min(seconds_of("--older-than", text, example="30d"), 1000 * 365 * 86_400.0)


def time_limit(text: str | None) -> int | None:
    """Return the seconds of `--time`, also as Slurm writes it: 12:00:00 or 2-12:00:00. Raises: ConfigError."""
    if text is None:
        return None
    if clock := re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", text.strip()):
        days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
        seconds = ((24 * days + hours) * 60 + minutes) * 60 + rest
    else:
        seconds = round(seconds_of("--time", text, example="12h"))
    if not 60 <= seconds < 1000 * 86_400:
        raise ConfigError(f"--time: {text!r} is not from 1 minute to 999 days", hint=Change({"time": "12h"}))
    return seconds


def devices(text: str) -> int | str:
    """Return the number of `--devices`, or auto. Raises: ConfigError."""
    if text == "auto" or re.fullmatch(r"[1-9][0-9]{0,3}", text):
        return text if text == "auto" else int(text)
    raise ConfigError(
        f"--devices: {text!r} is neither a number of devices nor auto", hint=Change({"devices": "auto"})
    )


def columns(words: list[str]) -> list[str]:
    """Return the parts of `--columns prompt=frage,response=antwort`; a column's name may contain commas."""
    # What is no role is a part as well, so that it is named.
    between = re.compile(r",(?=\s*[\w-]+=)")
    return [part.strip() for word in words for part in between.split(word)]


# Shared by many commands

JsonOption = Annotated[bool, Option("--json", help="Print one JSON object for programs.")]
PresetOption = Annotated[
    str | None,
    Option(
        "--preset",
        "-c",
        metavar="PRESET",
        help=r"test, talk, development or production. \[test]",
        autocompletion=complete.presets,
    ),
]
ConfigOption = Annotated[str | None, Option("--config", metavar="FILE", help="JSON file with any settings.")]
SetOption = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="NAME=VALUE",
        help="One setting, such as train.schedule=cosine; may be repeated.",
        autocompletion=complete.settings,
    ),
]
OutputOption = Annotated[
    str, Option("--output-dir", metavar="DIR", help="Folder of models and runs."), Sets("runtime.output_dir")
]
NoCudaOption = Annotated[
    bool, Option("--no-cuda", help="Use the CPU even if there is a GPU."), Sets("runtime.device", to="cpu")
]
Int8Option = Annotated[bool, Option("--int8", help="Round weights to 8 bits: faster replies on a CPU.")]
ModelSettingsOption = Annotated[
    bool, Option("--use-model-settings", help="Use the model's own sampling settings where none is given.")
]
ModelsArgument = Annotated[
    list[str] | None,
    Argument(
        metavar="MODEL",
        help="Name, run, RUN/checkpoint-N, folder or hub id. Default: the newest finished run.",
        autocompletion=complete.models,
    ),
]
ModelArgument = Annotated[
    str | None,
    Argument(
        help="Catalogue name, run, folder or hub id. Default: the newest finished run.",
        autocompletion=complete.models,
    ),
]
ModelOption = Annotated[
    str | None,
    Option("--model", "-m", metavar="MODEL", help="Another way to give MODEL.", autocompletion=complete.models),
]
ModelsOption = Annotated[
    list[str] | None,
    Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Another way to give MODEL; may be repeated.",
        autocompletion=complete.models,
    ),
]
BadRowsOption = Annotated[
    int, Option("--max-bad-rows", min=0, metavar="N", help="Malformed rows to skip."), Sets("data.max_bad_rows")
]

ColumnsOption = Annotated[
    list[str] | None,
    Option(
        "--columns", metavar="ROLE=COLUMN", help="What columns mean: prompt=frage,response=antwort; see the docs."
    ),
    Sets("data.columns", read=columns),
]

# How replies are sampled

MaxNewTokensOption = Annotated[
    int | None,
    Option("--max-new-tokens", metavar="N", help="Maximum length of a reply, in tokens."),
    Sets("generate.max_new_tokens"),
]
TemperatureOption = Annotated[
    float | None,
    Option("--temperature", metavar="T", help="0: always the most probable token."),
    Sets("generate.temperature"),
]
TopKOption = Annotated[
    int | None,
    Option("--top-k", metavar="K", help="Sample from the K most probable tokens."),
    Sets("generate.top_k"),
]
TopPOption = Annotated[
    float | None,
    Option("--top-p", metavar="P", help="Sample from the top tokens with total probability P."),
    Sets("generate.top_p"),
]
RepetitionPenaltyOption = Annotated[
    float | None, Option("--repetition-penalty", metavar="R", help="1: off."), Sets("generate.repetition_penalty")
]
SeedOption = Annotated[
    int | None, Option("--seed", metavar="S", help="The same seed gives the same reply."), Sets("generate.seed")
]

# Of `train`

BaseModelArgument = Annotated[
    str | None,
    Argument(
        help=r"Catalogue name, model file (.json), folder, GGUF file or hub id. \[custom-tiny]",
        autocompletion=complete.base_models,
    ),
]
BaseModelOption = Annotated[
    str | None,
    Option(
        "--model", "-m", metavar="MODEL", help="Another way to give MODEL.", autocompletion=complete.base_models
    ),
]
EpochsOption = Annotated[
    float | None,
    Option("--epochs", metavar="N", help=r"Passes over the training dialogs. \[the preset's]"),
    Sets("train.epochs"),
]
LearningRateOption = Annotated[
    float | None,
    Option("--lr", metavar="X", help=r"Peak learning rate. \[the model's]"),
    Sets("train.learning_rate"),
]
BatchSizeOption = Annotated[
    int | None,
    Option("--batch-size", metavar="N", help=r"Dialogs in one optimizer step. \[the preset's]"),
    Sets("train.batch_size"),
]
TrainSamplesOption = Annotated[
    int | None,
    Option("--samples", "-s", metavar="N", help=r"Training dialogs to use. \[the preset's]"),
    Sets("data.samples"),
]
TrainDatasetOption = Annotated[
    str | None,
    Option(
        "--dataset",
        "-d",
        metavar="DATA",
        help="starter, smalltalk, alpaca-gpt4, a file, a world or a hub id.",
        autocompletion=complete.datasets,
    ),
    Sets("data.dataset"),
]
TrainBadRowsOption = Annotated[
    int | None,
    Option("--max-bad-rows", metavar="N", help=r"Malformed rows to skip. \[0]"),
    Sets("data.max_bad_rows"),
]
ProjectOption = Annotated[
    str | None, Option("--project", "-p", metavar="NAME", help="W&B project."), Sets("tracking.project")
]
RunNameOption = Annotated[str | None, Option("--name", metavar="RUN", help="Name of the run."), Sets("name")]
WandbOption = Annotated[
    str | None,
    Option(
        "--wandb",
        metavar="MODE",
        help="auto, online, offline or disabled.",
        autocompletion=complete.one_of("auto", "online", "offline", "disabled"),
    ),
    Sets("tracking.wandb"),
]
TrainOutputOption = Annotated[
    str | None,
    Option("--output-dir", metavar="DIR", help=r"Folder of models and runs. \[models]"),
    Sets("runtime.output_dir"),
]
TagsOption = Annotated[
    list[str] | None,
    Option("--tag", metavar="TAG", help="An extra W&B tag; may be repeated."),
    Sets("tracking.tags"),
]
TrackersOption = Annotated[
    list[str] | None,
    Option(
        "--tracker",
        metavar="NAME",
        help="Besides W&B: tensorboard, trackio or mlflow.",
        autocompletion=complete.one_of("tensorboard", "trackio", "mlflow"),
    ),
    Sets("tracking.trackers"),
]
LogModelOption = Annotated[
    bool,
    Option("--log-model", help="Upload the finished model to W&B as an artifact."),
    Sets("tracking.log_model", to=True),
]
ResumeOption = Annotated[
    str | None,
    Option(
        "--resume",
        metavar="RUN",
        help="Resume a run; last: the newest unfinished one.",
        autocompletion=complete.resumable,
    ),
]
BudgetOption = Annotated[
    str | None,
    Option("--budget", metavar="TIME", help="Wall-clock limit for the whole run, e.g. 90s, 20m, 1h30m."),
    Sets("train.budget_s", read=budget, write=duration_word),
]
FromOption = Annotated[
    str | None,
    Option(
        "--from",
        metavar="RUN",
        help="Start a new run from the weights of a finished run or a checkpoint.",
        autocompletion=complete.runs,
    ),
]
ForceOption = Annotated[
    bool, Option("--force", help="Resume despite changed settings, or restart if no checkpoint is usable.")
]
FitBatchOption = Annotated[
    bool,
    Option("--fit-batch", help="Split each batch into as many parts as memory requires."),
    Sets("train.fit_batch", to=True),
]
DevicesOption = Annotated[
    str | None,
    Option("--devices", metavar="N", help=r"Train on N devices; auto: on all GPUs. \[1]"),
    Sets("runtime.devices", read=devices),
]
TrainNodesOption = Annotated[
    str | None,
    Option("--nodes", metavar="N", help="Number of machines; 1:2 continues with one if the other is lost."),
]
NodeRankOption = Annotated[
    int | None, Option("--node-rank", metavar="N", min=0, help="Number of this machine; 0 hosts the rendezvous.")
]
RendezvousOption = Annotated[
    str | None, Option("--rendezvous", metavar="HOST:PORT", help="Where the machines meet.")
]
TrainRestartsOption = Annotated[
    int | None, Option("--max-restarts", metavar="N", min=0, help=r"Restarts after a lost process. \[3]")
]
MethodOption = Annotated[
    str | None,
    Option(
        "--method",
        metavar="METHOD",
        help=r"full, or lora: train small adapters only. \[full]",
        autocompletion=complete.one_of("full", "lora"),
    ),
    Sets("train.method"),
]
NoMergeOption = Annotated[
    bool,
    Option("--no-merge", help="Keep the LoRA adapter separate from its base model."),
    Sets("train.merge", to=False),
]
DryRunOption = Annotated[bool, Option("--dry-run", help="Measure two steps on the longest batch; save nothing.")]

# Of `launch`

WordsArgument = Annotated[
    list[str],
    Argument(
        metavar="-- train ...",
        help="The train command to run in the job.",
        autocompletion=complete.one_of("train"),
    ),
]
NodesOption = Annotated[int, Option("--nodes", min=1, max=4096, metavar="N", help="Number of machines.")]
GpusOption = Annotated[
    int, Option("--gpus", min=0, max=64, metavar="N", help="GPUs per machine, one process each; 0: CPU only.")
]
CpusOption = Annotated[
    int | None, Option("--cpus", min=1, max=4096, metavar="N", help=r"CPU cores per machine. \[4 per process]")
]
MemoryOption = Annotated[str | None, Option("--memory", metavar="SIZE", help="Memory per machine, such as 64G.")]
RestartsOption = Annotated[
    int, Option("--max-restarts", min=0, metavar="N", help="Restarts after a lost process.")
]
NameOption = Annotated[str | None, Option("--name", metavar="RUN", help="Name of the job and its run.")]
OutputFileOption = Annotated[
    Path | None, Option("--output", "-o", metavar="FILE", help=r"File to write. \[standard output]")
]
