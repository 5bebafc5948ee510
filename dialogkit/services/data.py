"""Lists the datasets that have a short name."""

from dialogkit.config.base import Result


class DatasetRow(Result):
    """A dataset that has a short name."""

    name: str
    description: str
    license: str
    source: str


def list_datasets() -> list[DatasetRow]:
    """Return the datasets that have a short name; files and hub ids work as well."""
    from dialogkit.data.sources import NAMED

    return [
        DatasetRow(
            name=name,
            description=dataset.description,
            license=dataset.license,
            source=dataset.hub_id or "ships with the package",
        )
        for name, dataset in NAMED.items()
    ]
