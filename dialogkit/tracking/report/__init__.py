"""Render a run, or several side by side, as one self-contained HTML page: no network, no script, no other file.

Every expression of the template passes one filter, which makes control characters visible and escapes the rest.
Only drawings bypass it, and these contain nothing but numbers. A content security policy also forbids scripts and
requests.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from dialogkit import __version__
from dialogkit.system.ownership import is_signed, read_regular
from dialogkit.text import sanitize
from dialogkit.tracking.report.charts import charts_of
from dialogkit.tracking.report.commands import Commands
from dialogkit.tracking.report.replies import diary_of, final_replies_of
from dialogkit.tracking.report.run import NOTHING, date, headline_of, read_run, tiles_of
from dialogkit.tracking.report.tables import (
    Best,
    data_of,
    evaluations_of,
    machine_of,
    settings_of,
    shares_of,
    summary_of,
    tasks_of,
    training_metrics_of,
    versions_of,
)
from dialogkit.tracking.run_dir import RunDir

if TYPE_CHECKING:
    from jinja2 import Template

GENERATOR = f"dialogkit {__version__}"
MARK = '<meta name="generator" content="dialogkit '
"""Identifies a page as written by dialogkit, near its beginning."""

COMMENT = "<!-- {} -->"
"""Comment that holds the checksum of a page."""


def is_own_report(path: Path) -> bool:
    """Return whether a file is a page that dialogkit wrote and, as far as can be known, nobody changed.

    Pages of 0.1.0 have no checksum in their last line.
    """
    content = read_regular(path, 256 * 2**20) or b""
    is_unsigned = COMMENT.partition("{")[0].encode() + b"sha256:" not in content
    return is_signed(path) or (is_unsigned and MARK.encode() in content[:1024])


def render_report(
    runs: Sequence[RunDir], *, output: Path | None = None, verdict: str = "", best: Best = MappingProxyType({})
) -> str:
    """Return the page of a run, or of several side by side.

    Args:
        runs: the runs.
        output: their folder of models and runs; None is the default one.
        verdict: a sentence on which of several runs is best.
        best: the run that predicts best by more than chance, by dataset and number of dialogs.

    Raises: ModelError if a record cannot be read.
    """
    seen = [read_run(run, order) for order, run in enumerate(runs)]
    page = _template().render(
        generator=GENERATOR,
        runs=seen,
        one=seen[0] if len(seen) == 1 else None,
        headlines=[headline_of(run) for run in seen],
        tiles=tiles_of(seen[0]),
        summary=summary_of(seen),
        verdict=verdict,
        comparable=len({(run.record.data.revision, run.record.data.eval_dialogs) for run in seen}) == 1,
        charts=charts_of(seen),
        evaluations=evaluations_of(seen, best),
        tasks=tasks_of(seen),
        training_metrics=training_metrics_of(seen),
        diary=diary_of(seen),
        replies=final_replies_of(seen),
        chosen=settings_of(seen, all_of_them=False),
        settings=settings_of(seen, all_of_them=True),
        data=data_of(seen),
        shares=shares_of(seen[0]),
        machine=machine_of(seen),
        versions=versions_of(seen),
        commands=Commands(seen, output),
        nothing=NOTHING,
        date=date,
    )
    return page.strip() + "\n"


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else sanitize(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
