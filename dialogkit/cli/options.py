"""Options that several commands share."""

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
PresetOption = Annotated[
    str, typer.Option("--preset", "-c", metavar="PRESET", help="test, development or production.")
]
ConfigOption = Annotated[str | None, typer.Option("--config", metavar="FILE", help="JSON file with any settings.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="One setting, such as train.learning_rate=1e-3."),
]
OutputOption = Annotated[str, typer.Option("--output-dir", metavar="DIR", help="Folder of models and runs.")]
NoCudaOption = Annotated[bool, typer.Option("--no-cuda", help="Use the CPU even where there is a GPU.")]
ModelSettingsOption = Annotated[
    bool, typer.Option("--use-model-settings", help="Sampling that comes with the model, where none is given.")
]
ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL", help="Name, run, RUN/checkpoint-N, folder or hub id. Default: the newest finished run."
    ),
]
