"""`dialogkit data`."""

from dialogkit.cli.options import JsonOption
from dialogkit.cli.output import Output, table


def list_command(json_output: JsonOption = False) -> None:
    """List the datasets that have a short name; files and hub ids work as well."""
    from dialogkit.services.data import list_datasets

    rows = list_datasets()
    drawn = table("name", "what", "licence", "source")
    for row in rows:
        drawn.add_row(row.name, row.description, row.license, row.source)
    Output(json_mode=json_output).result(rows, lambda out: out.print(drawn))
