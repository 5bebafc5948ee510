"""`dialogkit data`."""

from pydantic import BaseModel

from dialogkit.cli.options import JsonOption
from dialogkit.cli.output import Output, table


class DatasetRow(BaseModel):
    """A dataset that has a short name."""

    name: str
    description: str
    license: str
    source: str


def list_command(json_output: JsonOption = False) -> None:
    """List the datasets that have a short name; files and hub ids work as well."""
    from dialogkit.data.sources import NAMED

    rows = [
        DatasetRow(
            name=name,
            description=d.description,
            license=d.license,
            source=d.hub_id or "ships with the package",
        )
        for name, d in NAMED.items()
    ]
    drawn = table("name", "what", "licence", "source")
    for row in rows:
        drawn.add_row(row.name, row.description, row.license, row.source)
    Output(json_mode=json_output).result(rows, lambda out: out.print(drawn))
