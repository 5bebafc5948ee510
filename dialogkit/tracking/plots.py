"""Draw curves as SVG that takes its colours and its font from the page around it.

SVG rather than an interactive plot: a curve is a few kilobytes, a plotting library megabytes in every page. SVG
needs no script, prints, and follows the dark mode of the page.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

MOST_POINTS = 400
"""Maximum number of points drawn of a curve; a page has no more pixels."""

LARGEST = 1e30
"""Larger values are skipped: they would flatten the rest of the curve."""

_INK, _FAINT = "#010001", "#010002"
_FIRST_COLOUR = 0x010100
_PAGE_COLOURS = {_INK: "var(--muted)", _FAINT: "var(--line)"}
_FONT_SIZE = 11
_STEPS = (1, 2, 2.5, 5, 10)
"""Distances between ticks, times a power of ten."""


class Curve(NamedTuple):
    """Values over steps, in a colour that the page defines.

    Attributes:
        steps, values: of equal length; non-finite values leave a gap.
        colour: name of a custom property of the page's style, such as `--s1`.
        look: a line, a faint line behind others, or a line with a mark on each point.
        dashed: distinguishes curves of the same colour.
    """

    steps: Sequence[float]
    values: Sequence[float]
    colour: str
    look: Literal["line", "faint", "marks"] = "line"
    dashed: bool = False

    @property
    def drawable(self) -> bool:
        """Whether any point can be drawn."""
        return any(map(_drawn, self.values))


def _drawn(value: float) -> bool:
    return math.isfinite(value) and abs(value) < LARGEST


def draw(
    curves: Sequence[Curve],
    *,
    title: str,
    width: int,
    height: int,
    form: Callable[[float], str] = "{:g}".format,
    from_zero: bool = False,
) -> str:
    """Return curves as an `<svg>` element for a page that defines their colours, `--muted` and `--line`.

    Curves are drawn back to front, sizes are in pixels, and `form` formats the values at the axis. The title is
    the accessible name of the picture; markup in it is not escaped.
    """
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    colours = {name: f"#{_FIRST_COLOUR + n:06x}" for n, name in enumerate(dict.fromkeys(c.colour for c in curves))}
    # Only numbers as text: names come from outside and belong in the page's legend, where they are escaped.
    with rc_context():
        rcdefaults()  # independent of the style set in a notebook
        rcParams.update({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": _FONT_SIZE})
        figure = Figure(figsize=(width / 72, height / 72))  # SVG counts 72 dots an inch
        FigureCanvasSVG(figure)
        left, right, bottom, top = 46, 10, 24, 8
        inside = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        axes = figure.add_axes(inside, frameon=False)
        for number, curve in enumerate(curves):
            steps, values = thinned(curve.steps, curve.values)
            marked = curve.look == "marks" or sum(map(_drawn, values)) == 1
            axes.plot(
                steps,
                [value if _drawn(value) else math.nan for value in values],
                color=colours[curve.colour],
                alpha=0.38 if curve.look == "faint" else 1.0,
                linewidth=1.1 if curve.look == "faint" else 1.9,
                linestyle=(0, (5, 2)) if curve.dashed else "-",
                marker="o" if marked else None,
                markersize=6,
                markeredgewidth=0,
                solid_joinstyle="round",
                solid_capstyle="round",
                zorder=3 + number,
                clip_on=not marked,
            )
        axes.margins(x=0.01, y=0.08)
        if from_zero:
            axes.set_ylim(0, max(axes.get_ylim()[1], 1e-12))
        axes.grid(axis="y", color=_FAINT, linewidth=1)
        axes.axhline(axes.get_ylim()[0], color=_FAINT, linewidth=1.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
        axes.tick_params(length=0, pad=6, labelcolor=_INK)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(drawn.getvalue(), {**_PAGE_COLOURS, **{h: f"var({n})" for n, h in colours.items()}}, title)


def thinned(
    steps: Sequence[float], values: Sequence[float], most: int = MOST_POINTS
) -> tuple[list[float], list[float]]:
    """Return at most `most` points: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(values) <= most:
        return list(steps), list(values)
    kept: list[int] = []
    stretches = most // 2
    for n in range(stretches):
        stretch = range(n * len(values) // stretches, (n + 1) * len(values) // stretches)
        known = [i for i in stretch if _drawn(values[i])] or list(stretch)[:1]
        kept += sorted({min(known, key=lambda i: values[i]), max(known, key=lambda i: values[i])})
    return [steps[i] for i in kept], [values[i] for i in kept]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return the moving mean over a window, without non-finite values."""
    half = window // 2
    sums = list(accumulate((value if _drawn(value) else 0.0 for value in values), initial=0.0))
    counts = list(accumulate(map(_drawn, values), initial=0))
    means = []
    for n, value in enumerate(values):
        low, high = max(0, n - half), min(len(values), n + half + 1)
        means.append((sums[high] - sums[low]) / (counts[high] - counts[low]) if _drawn(value) else math.nan)
    return means


def _for_page(svg: str, colours: dict[str, str], title: str) -> str:
    """Adapt matplotlib's SVG to a page: its colours and font, no fixed size, short numbers, unique ids."""
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = svg[svg.index(">") + 1 :]
    superfluous = r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| transform="rotate\(-0 [^"]*"'
    svg = re.sub(superfluous, "", svg, flags=re.DOTALL)
    svg = re.sub(r"font(?:-\w+)?: [^;\"]*;? ?", "", svg)
    # Positions to a tenth of a pixel; the numbers at the axes are between the tags and stay unchanged.
    svg = re.sub(r'="[^"<>]*"', lambda m: re.sub(r"-?\d+\.\d{2,}", lambda n: f"{float(n[0]):.1f}", m[0]), svg)
    svg = re.sub(r"#01[0-9a-f]{4}", lambda m: colours.get(m[0], m[0]), svg)
    # Ids must be unique in the whole page; unused ones are removed.
    own = re.sub(r"\W+", "-", title.lower())
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{own}-{m[1]}"' if m[1] in used else "", svg)
    svg = svg.replace('xlink:href="#', f'href="#{own}-').replace("url(#", f"url(#{own}-")
    svg = re.sub(r"<g>\s*</g>|<g/>|<defs>\s*</defs>", "", svg)
    joined = 'stroke-linejoin="round" stroke-linecap="butt"'
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{title}" font-size="{_FONT_SIZE}" {joined}>'
    return re.sub(r"\s*\n\s*", "\n", head + svg)
