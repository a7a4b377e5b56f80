"""How figures look: colours told apart by every kind of eye, a marker for each, and no date in the file."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from propulsion.harness.tables import escape

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which is too pale on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", ":")
GREY, PALE = "#595959", "#d9d9d9"
DPI = 110
ABOVE, BELOW = 0.85, 0.5  # inches for the heading and for the axis
NARROWEST = 7.3  # inches: the heading has to find room
LONGEST = 32  # characters of a name
RC: Any = {
    "svg.hashsalt": "propulsion",  # else the ids in the file are random
    "svg.fonttype": "none",  # text stays text: small files that do not depend on a font
    "text.parse_math": False,  # a `$` in a name is a dollar
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line of the row with that place: no two of the first 63 are the same."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def name(text: str, longest: int = LONGEST) -> str:
    """A name from a record as a label: one line, only what can be printed, not endless."""
    text = escape.plain(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


@contextmanager
def drawing() -> Iterator[None]:
    """The project's style, and nobody else's."""
    with rc_context():
        import matplotlib

        matplotlib.rcdefaults()
        with rc_context(RC):
            yield


def grid(count: int, columns: int, width: float, height: float, left: float = 0.6) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each `width` x `height` inches, with room for labels on the left."""
    lines = -(-count // columns)
    columns = -(-count // lines)  # six panels are two lines of three, not five and one
    right = left + columns * width + 0.1
    across, down = max(right + 0.15, NARROWEST), BELOW + lines * height + ABOVE
    figure = Figure(figsize=(across, down))
    figure.subplots_adjust(
        left=left / across,
        right=right / across,
        top=1 - ABOVE / down,
        bottom=BELOW / down,
        hspace=min(0.55, 0.9 / height),
        wspace=0.28,
    )
    panels = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def panel(axes: Axes, title: str) -> None:
    """A panel's title, in its place at once: searching for one, and for a label's that is not there, takes long."""
    axes.set_title(title, loc="left", y=1.0)
    for axis, place in ((axes.xaxis, (0.5, -0.2)), (axes.yaxis, (-0.2, 0.5))):
        if not axis.get_label_text():
            axis.set_label_coords(*place)


def legend_columns(figure: Figure, names: list[str]) -> int:
    """How many names stand side by side below a figure, its lines as even as can be."""
    fit = max(1, min(len(names), int(figure.get_figwidth() / (0.55 + 0.075 * max(map(len, names))))))
    return math.ceil(len(names) / math.ceil(len(names) / fit))


def heading(figure: Figure, title: str, below: str) -> None:
    """Title at the upper left, and a smaller text under it, in two lines at most."""
    height, width = figure.get_figheight(), figure.get_figwidth()
    lines = textwrap.wrap(below, max(20, int(15 * width)), max_lines=2, placeholder=" …")
    title = textwrap.shorten(title, max(20, int(11.5 * width)), placeholder=" …")
    figure.text(0.01, 1 - 0.08 / height, title, ha="left", va="top", fontsize=10, fontweight="bold")
    figure.text(0.01, 1 - 0.28 / height, "\n".join(lines), ha="left", va="top", fontsize=8, color=GREY)


def log_counts(axes: Axes) -> None:
    """A logarithmic x axis of counts: `1 k`, `10 M`."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: short_count(x))
    axes.xaxis.set_minor_formatter(NullFormatter())


def short_count(x: float) -> str:
    """`770`, `22.7 k`, `355 M`."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def save(figure: Figure) -> dict[str, bytes]:
    """The figure as SVG and PNG."""
    svg, png = io.BytesIO(), io.BytesIO()
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.print_png(png, metadata={"Software": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}
