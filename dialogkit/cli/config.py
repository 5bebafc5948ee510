"""`dialogkit config`."""

from pathlib import Path
from typing import Annotated

import typer

from dialogkit.cli import complete
from dialogkit.cli.options import ConfigOption, JsonOption, PresetOption, SetOption
from dialogkit.cli.output import Output, options_table
from dialogkit.errors import ConfigError
from dialogkit.text import counted, sanitize


def show_command(
    model: Annotated[
        str | None, typer.Argument(help=r"The model. \[custom-tiny]", autocompletion=complete.base_models)
    ] = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show the settings that `train` would use, and where each comes from."""
    from dialogkit.config.load import list_settings, load_with_origins, parse_sets

    settings = list_settings(
        load_with_origins(model, preset=preset, config_file=config, overrides=parse_sets(sets or []))
    )
    rows = [(s.name, s.value, s.origin) for s in settings]
    Output(json_mode=json_output).result(settings, lambda out: out.print(options_table(rows)))


def validate_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A settings file or a model file.")],
) -> None:
    """List every problem of a settings file at once."""
    from dialogkit.config.load import validate_file

    problems = validate_file(Path(file))
    if problems:
        count = counted(len(problems), "problem")
        raise ConfigError(f"{file} has {count}", hint="dialogkit config schema", details=problems)
    Output().text(sanitize(f"{file} is valid"))


def schema_command() -> None:
    """Print the JSON Schema of settings files, for editors."""
    from dialogkit.config.load import schema_text

    Output().text(schema_text())
