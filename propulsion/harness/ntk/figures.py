"""Pictures of kernels: heatmaps side by side, spectra, and closeness beside the controls."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from propulsion.harness.tables.model import TASK_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
SHOWN = ("full", "propulsion", "propulsion_attn", "lora", "ia3", "bitfit", "head")


def heatmaps(records: Sequence[Record]) -> Figure:
    """The kernels of the first seed, with the head, each scaled to a mean diagonal of 1; rows sorted by label."""
    from propulsion.harness.figures import style

    subjects = {label: s for label, s in records[0]["subjects"].items() if label in SHOWN}
    labels = sorted(subjects, key=SHOWN.index)
    figure, panels = style.grid(len(labels), 4, 1.75, 1.75, left=0.25)
    flat = sorted(value for label in labels for line in subjects[label]["picture"] for value in line)
    low, high = flat[len(flat) // 100], flat[-1 - len(flat) // 100]
    for label, axes in zip(labels, panels, strict=True):
        shown = axes.imshow(subjects[label]["picture"], cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        axes.set_title(f"{style.name(label, 16)}, {subjects[label]['whole']['alignment']:.2f}", loc="left")
    right = max(axes.get_position().x1 for axes in panels)
    top = max(axes.get_position().y1 for axes in panels)
    height = panels[0].get_position().height
    across = figure.get_figwidth()
    figure.set_figwidth(max(across, right * across + 0.9))
    scale = across / figure.get_figwidth()
    figure.subplots_adjust(left=figure.subplotpars.left * scale, right=figure.subplotpars.right * scale)
    bar = figure.add_axes(
        (right * scale + 0.2 / figure.get_figwidth(), top - height, 0.12 / figure.get_figwidth(), height)
    )
    figure.colorbar(shown, cax=bar)
    bar.grid(False)
    style.heading(
        figure,
        f"{_place(records)}: tangent kernels at the start, with the head",
        "rows sorted by label, mean diagonal 1; the number: centred alignment with full fine-tuning's",
    )
    return figure


def spectra(records: Sequence[Record]) -> Figure:
    """Eigenvalues of the backbone's part of each kernel, as shares of their sum; mean over seeds."""
    from matplotlib.ticker import NullFormatter

    from propulsion.harness.figures import style

    labels = [label for label in SHOWN if all("adapter" in r["subjects"].get(label, {}) for r in records)]
    figure, (axes,) = style.grid(1, 1, 4.2, 2.9)
    figure.set_figwidth(figure.get_figwidth() + 1.9)
    figure.subplots_adjust(right=0.7)
    for i, label in enumerate(labels):
        lines = [r["subjects"][label]["adapter"]["spectrum"] for r in records]
        mean = [fmean(values) for values in zip(*lines, strict=True)]
        places = [n for n, value in enumerate(mean, 1) if value > 1e-7]
        axes.plot(places, [mean[n - 1] for n in places], **style.look(i), markersize=3, markevery=4, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("eigenvalue, by size")
    axes.set_ylabel("share of the trace")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    style.heading(figure, f"{_place(records)}: spectra", "kernels of what is trained in the backbone, head left out")
    return figure


def controlled(groups: Sequence[Sequence[Record]]) -> list[str]:
    """The methods that have controls: not full fine-tuning, nor a head alone."""
    subjects = (subject for records in groups for r in records for subject in r["subjects"].items())
    return list(dict.fromkeys(label for label, subject in subjects if "controls" in subject))


def closeness(groups: Sequence[Sequence[Record]]) -> Figure:
    """Alignment with full fine-tuning's kernel, head left out, beside the controls; a panel for each task.

    Args:
        groups: the records of each task, with one method or more that is `controlled`.
    """
    from propulsion.harness.figures import style

    labels = controlled(groups)
    names = [style.name(label, 24) for label in labels]
    figure, panels = style.grid(len(groups), 4, 1.9, 0.26 * len(labels) + 0.5, 0.35 + 0.072 * max(map(len, names)))
    figure.set_figheight(figure.get_figheight() + 0.25)
    height = figure.get_figheight()
    figure.subplots_adjust(top=1 - style.ABOVE / height, bottom=(style.BELOW + 0.3) / height)
    kinds = (("method", 0), ("random directions", 1), ("random weights", 2))
    for records, axes in zip(groups, panels, strict=True):
        for y, label in enumerate(labels):
            subjects = [r["subjects"][label] for r in records if "controls" in r["subjects"].get(label, {})]
            for kind, i in kinds:
                values = [_alignment(s, i) for s in subjects]
                look = style.look(i)
                axes.plot(values, [y] * len(values), linestyle="", color=look["color"], marker=look["marker"],
                          markersize=5, alpha=0.8, label=kind if y == 0 else None)  # fmt: skip
        axes.set_ylim(len(labels) - 0.4, -0.6)
        place: Any = axes.get_subplotspec()
        first = place.is_first_col()
        axes.set_yticks(range(len(labels)) if first else [], names if first else [])
        axes.set_title(style.name(_task(records)), loc="left")
        axes.set_xlabel("alignment")
        axes.locator_params(axis="x", nbins=4)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower left", bbox_to_anchor=(0.01, 0), ncols=3, fontsize=8)
    backbone = groups[0][0]["run"]["backbone"]
    style.heading(
        figure,
        f"{backbone}: alignment with full fine-tuning's kernel, head left out",
        "each seed a mark; controls have the method's own number of parameters",
    )
    return figure


def _alignment(subject: Record, kind: int) -> float:
    own = [subject["adapter"], subject["controls"]["directions"]["adapter"], subject["controls"]["subset"]["adapter"]]
    return float(own[kind]["alignment"])


def _task(records: Sequence[Record]) -> str:
    return TASK_NAMES.get(records[0]["run"]["task"], str(records[0]["run"]["task"]))


def _place(records: Sequence[Record]) -> str:
    source = records[0]["run"]["data"]["source"]
    return f"{_task(records)} ({source} data), {records[0]['run']['backbone']}"
