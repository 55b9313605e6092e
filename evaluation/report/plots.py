"""Inline SVG plots in the page's own colours: matplotlib draws, the page's stylesheet colours text and lines."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INK = "#010203"  # a stand-in that no palette holds; replaced by the colour of the text around the plot
PALETTE = ("#8a94a6", "#2f7de1", "#e0872d", "#2fa36b", "#b255c9", "#d4495e")
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class PlotSeries:
    """One method's clips in a scatter plot; the mean is drawn large."""

    x: Sequence[float]
    y: Sequence[float]


def scatter_svg(series: Sequence[PlotSeries], x_label: str, y_label: str, static_below: float) -> str:
    """An `<svg>` element: a small mark for each clip, a large one for each method's mean, a band for static clips."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": x_label + y_label, "font.family": "sans-serif", "font.size": 10,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.12, color=INK, linewidth=0.8)
        axes.set_axisbelow(True)
        for index, one in enumerate(series):
            if not one.x:
                continue
            look: dict[str, Any] = {"color": colour_of(index), "marker": MARKERS[index % len(MARKERS)], "linewidths": 0}
            axes.scatter(one.x, one.y, s=26, alpha=0.4, **look)
            mean = sum(one.x) / len(one.x), sum(one.y) / len(one.y)
            axes.scatter([mean[0]], [mean[1]], s=130, zorder=3, **look)
        right = max(axes.get_xlim()[1], static_below * 2)
        axes.set_xlim(min(0.0, axes.get_xlim()[0]), right)
        axes.axvspan(axes.get_xlim()[0], static_below, color=PALETTE[-1], alpha=0.12, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(text.getvalue())


def colour_of(index: int) -> str:
    """The colour of the index-th method, in plots and captions alike."""
    return PALETTE[index % len(PALETTE)]


def _inline(svg: str) -> str:
    """The bare element, sized by the page, in the colour and font of the text around it."""
    element = svg[svg.index("<svg") :].replace(INK, "currentColor")
    element = re.sub(r'\swidth="[^"]*pt"|\sheight="[^"]*pt"', "", element, count=2)
    return re.sub(
        r"font-family: [^;\"]*;?|font: (\d+)px [^;\"]*", lambda m: f"font-size: {m[1]}px" if m[1] else "", element
    )
