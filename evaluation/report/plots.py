"""Plots of the report as SVG data URIs: training curves, sparklines, hit@1 by task, kind and
tokens."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from zlib import crc32

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.adaptive.figures import AdaptiveFigures
from evaluation.metrics import Estimate
from evaluation.variants import RIVAL_SUFFIX

Record = Mapping[str, float]
"""One line of metrics.jsonl."""

GREY = "#868e96"
COLOURS = {
    "no_cot": GREY,
    "warm_start_text": "#e3b26b",
    "warm_start": "#c77700",
    "eg_rl_text": "#7fb3cf",
    "eg_rl": "#0b6ea3",
    "published_text": "#b9a3cf",
    "published": "#8f5fbf",
    "published_other": "#cfc4d9",
    "warm_start_other": "#c9b59a",
    "warm_start_samples": "#7a4a00",
    "eg_rl_other": "#a9bac4",
    "eg_rl_samples": "#06405f",
}
"""One colour per variant, the text-only one lighter; used in every plot and table."""
_RIVALS = ("#8f5fbf", "#2f9e5f", "#c2255c", "#5f6f1f", "#4c4fa3")
_SERIES = ("#0b6ea3", "#c77700", "#2f9e5f", "#8f5fbf")
_PHASES = {
    "time/rollout_s": ("rollout", "#0b6ea3"),
    "time/reward_s": ("reward", "#2f9e5f"),
    "time/train_s": ("train", "#c77700"),
    "time/sync_s": ("sync", "#8f5fbf"),
}
_ALARM = "#c0392b"
_STEP_TIME = "time/step_s"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#ced4da",
    "axes.labelcolor": "#495057",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 8,
    "xtick.color": "#868e96",
    "ytick.color": "#868e96",
    "xtick.labelcolor": "#495057",
    "ytick.labelcolor": "#495057",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#edf0f2",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "embed-rl",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    # Names of data sets are no formulas.
    "text.parse_math": False,
    "text.usetex": False,
}


def colour_of(variant: str) -> str:
    """Return the colour of a variant; that of a rival follows from its name."""
    if variant.endswith(RIVAL_SUFFIX):
        return _RIVALS[crc32(variant.encode()) % len(_RIVALS)]
    return COLOURS.get(variant, GREY)


def plot_curves(records: Sequence[Record]) -> str:
    """Return the training curves over steps: a grid of small panels.

    A metric that was never recorded gives an empty panel that says so.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(11.4, 5.6), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
        _lines(axes[0, 0], records, "Reward", ("reward/total", "reward/outcome", "reward/format"))
        _lines(axes[0, 1], records, "Rank accuracy in the batch", ("rank/accuracy",))
        _lines(axes[0, 2], records, "Held-out hit@1", ("eval/hit_at_1",), marker="o")
        _lines(axes[1, 0], records, "KL to the warm start", ("policy/kl",))
        _lines(axes[1, 1], records, "Policy entropy", ("policy/entropy",))
        _phases(axes[1, 2], records)
        for panel in axes.flat:
            panel.set_xlabel("step")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _uri(figure)


def plot_tasks(tasks: Mapping[str, Mapping[str, Estimate]], titles: Mapping[str, str]) -> str:
    """Return hit@1 of each variant by task, with intervals; ``tasks`` is {task: {variant: ..}}."""
    names = list(tasks)
    with plt.rc_context(_STYLE):
        row_height = max(0.62, 0.124 * len(titles))
        figure, axes = plt.subplots(
            figsize=(11.4, 0.9 + row_height * len(names)), layout="constrained"
        )
        apart = min(0.16, 0.8 / len(titles))
        for row, name in enumerate(names):
            axes.axhspan(row - 0.46, row + 0.46, color="#f8f9fa", zorder=0, linewidth=0)
            for index, (variant, estimate) in enumerate(tasks[name].items()):
                height = row + (index - (len(titles) - 1) / 2) * apart
                colour = colour_of(variant)
                axes.plot(
                    (estimate.low, estimate.high), (height, height), color=colour, linewidth=1.6
                )
                axes.plot(estimate.mean, height, "o", color=colour, markersize=5.5)
        _score_axis(axes, names)
        _key(axes, {titles[name]: _dot(colour_of(name)) for name in titles})
        return _uri(figure)


def plot_evidence(
    kinds: Mapping[str, Mapping[str, tuple[float, float]]], titles: Mapping[str, str]
) -> str:
    """Return hit@1 with text only (hollow) and with evidence (filled), by kind of task.

    ``kinds`` is {kind: {reasoner: (text only, with evidence)}}.
    """
    names = list(kinds)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(11.4, 0.9 + 0.5 * len(names)), layout="constrained")
        for row, name in enumerate(names):
            axes.axhspan(row - 0.44, row + 0.44, color="#f8f9fa", zorder=0, linewidth=0)
            for index, (reasoner, (text, full)) in enumerate(kinds[name].items()):
                height = row + (index - (len(titles) - 1) / 2) * 0.34
                colour = COLOURS.get(reasoner, GREY)
                axes.plot((text, full), (height, height), color=colour, linewidth=1.6, zorder=2)
                # The ring is larger, so that it shows around the dot where both agree.
                axes.plot(text, height, "o", markersize=9, zorder=3, **_hollow(colour))
                axes.plot(full, height, "o", color=colour, markersize=5.5, zorder=4)
        _score_axis(axes, names)
        key = {}
        for name, title in titles.items():
            key[f"{title}, text only"] = _hollow(COLOURS.get(name, GREY))
            key[f"{title}, text + evidence"] = _dot(COLOURS.get(name, GREY))
        _key(axes, key)
        return _uri(figure)


def plot_adaptive(figures: AdaptiveFigures) -> str:
    """Return hit@1 by mean tokens a query: gate with its intervals, random gate and oracle.

    Dashed: the target that the saving is measured at. Dot: the gate at its threshold.
    """
    ways = {"oracle": "#2f9e5f", "gate": COLOURS["eg_rl"], "random": GREY}
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(11.4, 3.6), layout="constrained")
        tokens = [point.tokens for point in figures.points]
        for way, colour in ways.items():
            estimates = [getattr(point, way) for point in figures.points]
            axes.plot(tokens, [e.mean for e in estimates], color=colour, label=way)
            if way == "gate":
                low, high = [e.low for e in estimates], [e.high for e in estimates]
                axes.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(figures.target, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        at = figures.at_threshold
        axes.plot(at.tokens.mean, at.hit_at_1.mean, "o", color=ways["gate"], label="at threshold")
        axes.set_xlabel("generated tokens a query")
        axes.set_ylabel("hit@1")
        axes.legend(loc="lower right")
        return _uri(figure)


def plot_sparkline(
    points: Sequence[tuple[float, float]], *, limit: float, alarms: Sequence[float]
) -> str:
    """Return (step, value) points as a small line, the limit dashed where it is finite.

    ``alarms`` are the steps at which the alarm rang.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(2.6, 0.46), layout="constrained")
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=_SERIES[0], linewidth=1.2)
        axes.plot(steps[-1], values[-1], "o", color=_SERIES[0], markersize=3)
        rang = [(step, value) for step, value in points if step in alarms]
        if rang:
            axes.plot(*zip(*rang, strict=True), "o", color=_ALARM, markersize=3.5)
        if math.isfinite(limit):
            axes.axhline(limit, color=_ALARM, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.margins(x=0.04, y=0.18)
        axes.set_axis_off()
        return _uri(figure)


def _lines(
    axes: Axes, records: Sequence[Record], title: str, names: Sequence[str], marker: str = ""
) -> None:
    axes.set_title(title)
    drawn = 0
    for name, colour in zip(names, _SERIES, strict=False):
        points = [(row["step"], row[name]) for row in records if name in row]
        if not points:
            continue
        drawn += 1
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, marker=marker, markersize=4, label=name)
    if not drawn:
        _empty(axes)
    elif len(names) > 1:
        labels = [line.get_label().partition("/")[2] for line in axes.get_lines()]
        axes.legend(axes.get_lines(), labels, loc="best", handlelength=1.4)


def _phases(axes: Axes, records: Sequence[Record]) -> None:
    """Stack the seconds of each phase; phases without a name here are summed up as `other`."""
    axes.set_title("Seconds per step, by phase")
    rows = [row for row in records if _STEP_TIME in row]
    if not rows:
        _empty(axes)
        return
    steps = [row["step"] for row in rows]
    stacks = {label: [row.get(name, 0.0) for row in rows] for name, (label, _) in _PHASES.items()}
    known = [sum(row.get(name, 0.0) for name in _PHASES) for row in rows]
    other = [max(0.0, row[_STEP_TIME] - seconds) for row, seconds in zip(rows, known, strict=True)]
    colours = [colour for _, colour in _PHASES.values()]
    axes.stackplot(
        steps,
        [*stacks.values(), other],
        labels=[*stacks, "other"],
        colors=[*colours, "#ced4da"],
        alpha=0.85,
        linewidth=0,
    )
    axes.set_ylim(0, max(row[_STEP_TIME] for row in rows) * 1.35)
    axes.legend(loc="upper right", ncols=3, handlelength=0.9, columnspacing=1.0)


def _empty(axes: Axes) -> None:
    axes.text(
        0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY
    )
    axes.set_yticks([])


def _score_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("hit@1")


def _dot(colour: str) -> dict[str, str]:
    return {"color": colour}


def _hollow(colour: str) -> dict[str, str]:
    return {"markerfacecolor": "white", "markeredgecolor": colour}


def _key(axes: Axes, entries: Mapping[str, Mapping[str, str]]) -> None:
    """Put the legend above the axes, in one row as far as there is room."""
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", markersize=5.5, label=label, **style)
        for label, style in entries.items()
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(len(handles), 5),
        handletextpad=0.2,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def _uri(figure: Figure) -> str:
    """Return the figure as SVG in a data URI; no date inside, so equal data give equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
