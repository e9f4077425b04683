"""The picture of a take's time: how much there was to spare at each step of each span, and what fell back and why.

Every agent has a field of its own over the same bars. Hops differ in colour and in the shape of their dots, rungs in
the row they are in, so that it reads without colour and in print.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge.figures import bar_frames, clock, length
from bridge.ledger import CAUSES, RUNGS, Course, Event, Step
from bridge.recorder import TakeReader

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOPS_DRAWN = ("ready", "mixed", "out")
_LOOKS = {"ready": ("#0072b2", "o"), "mixed": ("#b35900", "s"), "out": ("#00805c", "^")}
_WORDS = {"ready": "answer ready", "mixed": "mixed", "out": "out of the device"}
_LATE, _BUDGET, _INK, _SOFT, _FAINT = "#b3001b", "#5b6270", "#20242c", "#6f7683", "#d9dade"
_RUNG_COLOURS = {2: "#8f6b00", 3: "#7a58d1", 4: "#d4551a", 5: "#20242c"}
_EVENTS = {"new worker": "N", "lost worker": "L", "quarantine": "Q"}
_DPI, _WIDTH, _FIELD, _ROW, _TOP, _BOTTOM = 150, 12.0, 2.3, 0.17, 1.5, 0.3  # inches
_LEFT, _RIGHT, _GAP, _SEAM = 1.35, 0.25, 0.58, 0.08
_LINEAR_MS, _FLOOR_MS = 10.0, 4.0
_AXIS = f"ms to spare\n(logarithmic beyond \u00b1{_LINEAR_MS:.0f})"
_COLUMNS = 500
"""Most dots of a hop; of more spans the worst of each so many is drawn."""
_MOST_MARKS = 24


def worth_drawing(found: Sequence[Course]) -> bool:
    """Whether the picture says something: it was live, or something fell back or was late; never in virtual time."""
    live = any(course.hops.get(hop) for course in found for hop in ("mixed", "out"))
    return live or (any(course.hops for course in found) and not all(course.well for course in found))


def draw_margins(take: TakeReader, found: Sequence[Course], path: str | os.PathLike[str]) -> None:
    """Draw margins over time as a PNG, 1,800 pixels wide: a field for each agent, its worst moments marked."""
    from matplotlib.figure import Figure

    drawn = [course for course in found if course.spans]
    heights = [_FIELD + _ROW * len(_rungs(course)) + _GAP for course in drawn]
    height = _TOP + sum(heights) + _BOTTOM
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    figure.text(
        0.4 / _WIDTH, 1 - 0.34 / height, f"{take.folder.resolve().name}: time to spare", fontsize=15, color=_INK,
        weight="bold", va="center", parse_math=False,
    )  # fmt: skip
    figure.text(0.4 / _WIDTH, 1 - 0.62 / height, _subtitle(take, drawn), fontsize=9, color=_SOFT, va="center")
    bars, down = list(bar_frames(take).items()), _TOP
    for course, room in zip(drawn, heights, strict=True):
        rows = _ROW * len(_rungs(course))
        width = _WIDTH - _LEFT - _RIGHT
        box = (_LEFT / _WIDTH, 1 - (down + rows + _FIELD) / height, width / _WIDTH, _FIELD / height)
        axes = figure.add_axes(box)
        _field(axes, course, take)
        if rows:
            top = figure.add_axes((box[0], box[1] + box[3] + _SEAM / height, box[2], rows / height))
            _rows(top, course, take)
            top.set_title(_heading(course), loc="left", fontsize=10, color=_INK, parse_math=False)
        else:
            axes.set_title(_heading(course), loc="left", fontsize=10, color=_INK, parse_math=False)
        _bar_axis(axes, take, bars, last=course is drawn[-1])
        down += room
    _legend(figure, drawn, height)
    figure.savefig(os.fspath(path), format="png", dpi=_DPI)


def _rungs(course: Course) -> list[int]:
    """Rungs below the first that the agent was on, each a row."""
    return [rung for rung in RUNGS if rung > 1 and course.rungs[rung]]


def _subtitle(take: TakeReader, drawn: Sequence[Course]) -> str:
    most = max((len(course.spans) for course in drawn), default=0)
    each = f"; each dot is the worst of {-(-most // _COLUMNS)} spans" if most > _COLUMNS else ""
    return f"{length(take)}; milliseconds before it was needed, 0 is just in time, below is too late{each}"


def _heading(course: Course) -> str:
    parts = []
    for hop in HOPS_DRAWN:
        worst = course.margins(hop).worst_ms
        if worst is not None:
            parts.append(f"{hop} {round(worst)}".replace("-", "\u2212"))
    words = [f"least: {', '.join(parts)} ms"] if parts else []
    if course.late_finals:
        words.append(f"{course.late_finals:,} of {course.finals:,} final answers late")
    if course.respawns:
        words.append(f"{course.respawns:,} new worker" + "s" * (course.respawns > 1))
    if course.quarantined is not None:
        words.append("in quarantine in the end")
    return f"{course.agent}   " + ";  ".join(words)


# One agent's field


def _field(axes: Axes, course: Course, take: TakeReader) -> None:
    """Draw the margins of one agent's hops, its budget and what happened to its workers."""
    rate = take.samplerate
    shown = [hop for hop in HOPS_DRAWN if course.hops.get(hop)]
    values = [
        1000 * step.margin_frames / rate
        for hop in shown
        for step in course.hops[hop]
        if step.margin_frames is not None
    ]
    budgets = [1000 * frames / rate for _, frames in course.budgets]
    low = min([-_FLOOR_MS, *(1.8 * value for value in values if value < 0)])
    high = 1.7 * max([2 * _LINEAR_MS, *values, *budgets])
    axes.set_yscale("symlog", linthresh=_LINEAR_MS, linscale=0.8)
    axes.set(xlim=(0, max(1, take.frames)), ylim=(low, high))
    _scale(axes, low, high)
    axes.axhspan(low, 0, facecolor="#b3001b12", linewidth=0, zorder=0)
    axes.axhline(0, color=_LATE, linewidth=1.0, zorder=2)
    axes.set_ylabel(_AXIS, fontsize=8.5, color=_INK)
    for hop in shown:
        _dots(axes, hop, _worst(course.hops[hop], take.frames), rate, low)
    if course.budgets:
        frames = [frame for frame, _ in course.budgets]
        axes.plot(
            [*frames, take.frames], [*budgets, budgets[-1]], color=_BUDGET, linewidth=1.3, dashes=(5, 2.5), zorder=3,
            drawstyle="steps-post",
        )  # fmt: skip
    _mark_events(axes, [event for event in course.events if event.frame <= take.frames])


def _mark_events(axes: Axes, events: Sequence[Event]) -> None:
    """Mark what happened to the workers: named while they are few, ticks above where they are many."""
    few = len(events) <= _MOST_MARKS
    named = [event for event in events if few or event.what == "quarantine"]
    across = axes.get_xaxis_transform()
    for heavy, width, alpha in ((False, 0.7, 0.5), (True, 1.4, 0.85)):
        at = [max(0, event.frame) for event in events if (event.what == "quarantine") == heavy]
        floor = 0 if few or heavy else 0.93
        axes.vlines(at, floor, 1, transform=across, color=_INK, linewidth=width, alpha=alpha, zorder=2.5)
    for event in named:
        axes.annotate(
            _EVENTS[event.what], (max(0, event.frame), 1), xycoords=across, fontsize=7.5, xytext=(0, -7),
            textcoords="offset points", ha="center", va="center", color="white", zorder=7,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": _INK, "linewidth": 0},
        )  # fmt: skip


def _scale(axes: Axes, low: float, high: float) -> None:
    """Put plain milliseconds on the axis."""
    ticks = [tick for tick in (-10000, -1000, -100, -10, 0, 10, 30, 100, 300, 1000, 3000, 10000) if low < tick < high]
    axes.set_yticks(ticks, [f"{tick:,}".replace("-", "\u2212") for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.tick_params(labelsize=8, colors=_INK, length=3, color=_SOFT)
    axes.grid(axis="y", color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_SOFT)


def _worst(steps: Sequence[Step], frames: int) -> list[Step]:
    """Return the steps, or where they are many the worst in each of equal stretches of time."""
    if len(steps) <= _COLUMNS:
        return list(steps)
    worst: dict[int, Step] = {}
    for step in steps:
        column = step.span.start * _COLUMNS // max(1, frames)
        if column not in worst or _rank(step) < _rank(worst[column]):
            worst[column] = step
    return [worst[column] for column in sorted(worst)]


def _rank(step: Step) -> float:
    return float("-inf") if step.margin_frames is None else step.margin_frames


def _dots(axes: Axes, hop: str, steps: Sequence[Step], rate: int, low: float) -> None:
    """Draw a hop: its sign in time, large and red where it was late; what never came lies on the floor."""
    colour, shape = _LOOKS[hop]
    fine = [
        (s.span.start, 1000 * s.margin_frames / rate) for s in steps if s.margin_frames is not None and not s.late
    ]
    late = [(s.span.start, 1000 * s.margin_frames / rate) for s in steps if s.margin_frames is not None and s.late]
    never = [(s.span.start, low) for s in steps if s.margin_frames is None]
    size = 4.2 if len(steps) <= 150 else 3.0
    for points, late_at, least in ((fine, False, size), (late, True, 6.5), (never, True, 6.5)):
        if points:
            axes.plot(
                *zip(*points, strict=True), linestyle="none", marker=shape, color=_LATE if late_at else colour,
                markersize=least, zorder=6 if late_at else 4, markeredgewidth=0.7 if late_at else 0,
                markeredgecolor="white", clip_on=not late_at,
            )  # fmt: skip


def _rows(axes: Axes, course: Course, take: TakeReader) -> None:
    """Draw a row for each rung that was played below the first, with the cause where it finds room."""
    rungs = _rungs(course)
    axes.set(xlim=(0, max(1, take.frames)), ylim=(len(rungs), 0))
    axes.set_yticks([row + 0.5 for row in range(len(rungs))], [f"{rung} {_SHORT[rung]}" for rung in rungs])
    axes.tick_params(labelsize=7.5, colors=_INK, length=0)
    axes.set_xticks([])
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    pixel = take.frames / ((_WIDTH - _LEFT - _RIGHT) * _DPI)
    for row, rung in enumerate(rungs):
        axes.axhline(row + 0.5, color=_FAINT, linewidth=0.7, zorder=1)
        runs = [(start, max(stop - start, 4 * pixel), cause) for start, stop, cause in _runs(course, rung)]
        places = [(start, width) for start, width, _ in runs]
        axes.broken_barh(places, (row + 0.18, 0.64), facecolor=_RUNG_COLOURS[rung], linewidth=0, zorder=3)
        for at, (start, width, cause) in enumerate(runs):
            free = (runs[at + 1][0] if at + 1 < len(runs) else take.frames) - start - width
            text = _short_cause(cause)
            if width > (12 + 9.0 * len(text)) * pixel:
                axes.text(
                    start + 6 * pixel, row + 0.52, text, fontsize=7.5, color="white", va="center", zorder=4,
                    parse_math=False,
                )  # fmt: skip
            elif free > (6 + 9.0 * len(text)) * pixel:
                axes.text(
                    start + width + 4 * pixel, row + 0.52, text, fontsize=7.5, color=_INK, va="center", zorder=4,
                    parse_math=False, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6},
                )  # fmt: skip


_SHORT = {2: "speculative", 3: "continuation", 4: "bar again", 5: "fade"}


def _runs(course: Course, rung: int) -> list[tuple[int, int, str]]:
    """Join neighbouring spans of one rung and cause into (start, stop, cause)."""
    runs: list[tuple[int, int, str]] = []
    for span in course.spans:
        if span.rung != rung:
            continue
        stop = span.start + span.frames
        if runs and runs[-1][1] == span.start and runs[-1][2] == span.cause:
            runs[-1] = (runs[-1][0], stop, span.cause)
        else:
            runs.append((span.start, stop, span.cause))
    return runs


def _short_cause(cause: str) -> str:
    """Return a cause that fits beside a mark."""
    if cause in CAUSES:
        return cause or "?"
    return cause if len(cause) <= 26 else cause[:25] + "\u2026"


# What all fields share


def _bar_axis(axes: Axes, take: TakeReader, bars: Sequence[tuple[int, int]], last: bool) -> None:
    """Number the bars below, or the seconds where the bar lines are not known."""
    if bars:
        step = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1 << 30) if len(bars) / n <= 24)
        at = [(frame, str(bar + 1)) for bar, frame in bars if bar % step == 0]
    else:
        seconds = take.frames / take.samplerate
        step = next((n for n in (1, 2, 5, 10, 30, 60, 300, 1800) if seconds / n <= 20), 7200)
        at = [(second * take.samplerate, clock(second)) for second in range(0, int(seconds) + 1, step)]
    axes.set_xticks([frame for frame, _ in at], [text for _, text in at])
    axes.grid(axis="x", color=_FAINT, linewidth=0.5)
    if last:
        axes.set_xlabel("bar" if bars else "time", fontsize=9, color=_INK)


def _legend(figure: object, drawn: Sequence[Course], height: float) -> None:
    """Say what each sign means, once, for those that are there."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    assert isinstance(figure, Figure)
    signs = [
        Line2D([], [], color=_LOOKS[hop][0], marker=_LOOKS[hop][1], linestyle="none", markersize=5, label=_WORDS[hop])
        for hop in HOPS_DRAWN
        if any(course.hops.get(hop) for course in drawn)
    ]
    if any(step.late for course in drawn for hop in HOPS_DRAWN for step in course.hops.get(hop, ())):
        signs.append(
            Line2D(
                [], [], color=_LATE, marker="o", linestyle="none", markersize=6.5,
                label="too late; at the very bottom: it never came",
            )
        )  # fmt: skip
    if any(course.budgets for course in drawn):
        signs.append(Line2D([], [], color=_BUDGET, linewidth=1.3, dashes=(5, 2.5), label="time an answer is given"))
    happened = {event.what for course in drawn for event in course.events}
    said = ", ".join(f"{letter} {what}" for what, letter in _EVENTS.items() if what in happened)
    if said:
        signs.append(Line2D([], [], color=_INK, linewidth=0.9, label=said))
    if signs:
        figure.legend(
            handles=signs, loc="upper left", bbox_to_anchor=(0.32 / _WIDTH, 1 - 0.72 / height), ncols=len(signs),
            fontsize=8.5, frameon=False, handletextpad=0.5, columnspacing=1.8,
        )  # fmt: skip
