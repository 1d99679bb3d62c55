"""The picture of a metric card: planted against measured, the response to another defect, recorded SAEs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from bench.audit.card import Card, MetricCard

_SIZE = (11.0, 3.2)  # inches, per metric
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ortsae-bench",
    "svg.fonttype": "none",
    "font.size": 8.0,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_OWN, _OTHER, _GREY = "#c0392b", "#2471a3", "#7f8c8d"


def svg(card: Card) -> bytes:
    """An SVG that is the same bytes for the same card and version of matplotlib."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    n = len(card.metrics)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], _SIZE[1] * n + 0.4), layout="constrained")
        figure.suptitle(f"{card.id} on {card.world}: {card.defect}")
        axes = figure.subplots(n, 3, squeeze=False, width_ratios=(3, 2, 2))
        for row, (name, metric) in zip(axes, card.metrics.items(), strict=True):
            _recovery(row[0], name, metric)
            _absence(row[1], card, metric)
            _subjects(row[2], metric)
        out = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _recovery(axis: Any, name: str, metric: MetricCard) -> None:
    axis.set_title(name, loc="left", fontweight="bold")
    if (p := metric.planted) is None:
        _empty(axis, metric, "planted")
        return
    truth = np.array(p.truth)
    axis.plot(truth.T, np.array(p.measured).T, color=_OWN, alpha=0.25, linewidth=0.8)
    axis.plot(truth.ravel(), np.ravel(p.measured), color=_OWN, alpha=0.25, marker="o", markersize=2, linestyle="none")
    ends = np.array([truth.min(), truth.max()])
    axis.plot(ends, p.intercept + p.slope * ends, color="black", linewidth=1.2, label=f"line, slope {p.slope:.3g}")
    if p.truth_error is not None:
        axis.plot(ends, ends, color=_GREY, linestyle="--", linewidth=1, label="identity")
    if (level := metric.control) is not None:
        low, high = axis.get_ylim()
        inside = low - (high - low) / 2 < level < high + (high - low) / 2
        place = [level, level] if inside else [np.nan, np.nan]  # far away it would flatten the lines
        label = f"random dictionary {level:.3g}" + ("" if inside else " (outside)")
        axis.plot(ends, place, color=_GREY, linestyle=":", linewidth=1, label=label)
    counted = p.truth_error is not None and truth.max() > 1
    axis.set_xlabel("true number" if counted else "true value" if p.truth_error is not None else "true rate of the defect")
    axis.set_ylabel("measured")
    axis.legend(frameon=False, fontsize=7)


def _absence(axis: Any, card: Card, metric: MetricCard) -> None:
    axis.set_title("change at 10 % of a defect", loc="left")
    if (a := metric.absence) is None:
        _empty(axis, metric, "absence")
        return
    axis.axhspan(-a.allowed, a.allowed, color=_GREY, alpha=0.2, linewidth=0)
    axis.axhline(0, color=_GREY, linewidth=0.8)
    for at, (values, colour) in enumerate(((a.own, _OWN), (a.moved, _OTHER))):
        spread = at + np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [at]
        axis.plot(spread, values, color=colour, marker="o", markersize=3, linestyle="none")
    axis.set_xticks([0, 1], [card.defect, f"{a.defect}\ninstead"])
    axis.set_xlim(-0.5, 1.5)
    axis.set_xlabel(f"band: {a.basis}")


def _subjects(axis: Any, metric: MetricCard) -> None:
    axis.set_title("recorded SAEs of a language model", loc="left")
    if not metric.subjects:
        _empty(axis, metric, "real")
        return
    for at, s in enumerate(metric.subjects):
        low, high = s.interval or (s.value, s.value)
        colour = _GREY if s.control else _OTHER
        axis.plot([low, high], [at, at], color=colour, linewidth=1.5)
        axis.plot([s.value], [at], color=colour, marker="o", markersize=4)
    axis.set_yticks(range(len(metric.subjects)), [s.name for s in metric.subjects])
    axis.set_ylim(-0.5, len(metric.subjects) - 0.5)


def _empty(axis: Any, metric: MetricCard, part: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, f"not measured:\n{metric.missing.get(part, '')}", ha="center", va="center", color=_GREY, wrap=True)
