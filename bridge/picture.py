"""The picture of a take: a lane for each stem over the bar lines, each unit's origin in colour."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bridge.figures import (
    Envelope,
    Part,
    Placed,
    bar_frames,
    clock,
    decibels,
    grid,
    length,
    parts_of,
    song_marks,
    sound_of,
    tempi,
    tempo_marks,
)
from bridge.ledger import RUNGS, counted
from bridge.recorder import TakeReader
from realtime.protocols import Piece

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH, LEAST_HEIGHT = 1600, 900
_LEFT, _RIGHT, _TOP, _LEGEND_ROW = 190, 36, 132, 26
_LANE_GAP, _RIBBON = 14, 15
_PAGE, _LANE, _INK, _SOFT, _FAINT, _ACCENT = "#f7f6f2", "#ffffff", "#20242c", "#6f7683", "#d9dade", "#c8324b"
_LEAP = "#1c5fb6"
_INPUT_COLOUR, _UNKNOWN_COLOUR = "#55606e", "#9aa1ab"

_ONE_RAMP = ("#2b3a92", "#1c7fb6", "#1fb39b", "#9ccb4f", "#f0b02f", "#e0603a", "#a3265f")
_TWO_RAMPS: list[tuple[str, ...]] = [
    ("#1b3a8a", "#1a78b8", "#1fb0a6", "#86cc6e"),
    ("#741a6b", "#c9366a", "#ee7440", "#f4bb45"),
]
_RAMPS: list[tuple[str, ...]] = [
    ("#16336e", "#3a7bd5", "#8fc1f2"),
    ("#8a3206", "#e8772e", "#f8c48b"),
    ("#14532d", "#2f9e5b", "#9fdcae"),
    ("#6b1550", "#c43d94", "#eda6d6"),
    ("#6b4e04", "#c99a12", "#f0d97e"),
    ("#3b1f80", "#7a58d1", "#c1b0f0"),
    ("#6f1010", "#d23b3b", "#f2a2a2"),
    ("#0b4a4f", "#1b9aa3", "#92dbe0"),
]
_RUNG_COLOURS = {2: "#d9a400", 3: "#8a63d2", 4: "#e0662b", 5: "#9c1230"}
_HATCHES = {2: "///", 3: "...", 4: "xxx", 5: "\\\\\\"}
_BADGE = {"boxstyle": "round,pad=0.25", "facecolor": _LANE, "edgecolor": _FAINT, "linewidth": 0.8}
_MOST_NAMED = 24
_BADGES = {0: "rest", 2: "2 speculative", 3: "3 corpus", 4: "4 bar again", 5: "5 fade"}

Colour = tuple[float, float, float]


class _Palette:
    """A colour for every place in every source: one ramp a source, from its start to the end of what was used."""

    def __init__(self, parts: Sequence[Part]) -> None:
        used: Counter[str] = Counter()
        self.ends: dict[str, int] = {}
        for placed in (p for part in parts for p in part.placed):
            piece = placed.piece
            used[piece.source] += placed.stop - placed.start
            self.ends[piece.source] = max(self.ends.get(piece.source, 1), piece.source_frame + piece.source_frames)
        self.sources = [source for source, _ in used.most_common(len(_RAMPS))]
        self.others = len(used) - len(self.sources)
        few: dict[int, list[tuple[str, ...]]] = {1: [_ONE_RAMP], 2: _TWO_RAMPS}
        ramps = few.get(len(self.sources), _RAMPS)
        self._stops = {s: _rgb_rows(ramp) for s, ramp in zip(self.sources, ramps, strict=False)}

    def of(self, piece: Piece) -> Colour:
        return self.at(piece.source, (piece.source_frame + piece.source_frames / 2) / self.ends[piece.source])

    def at(self, source: str, place: float) -> Colour:
        """Return the colour at ``place``, 0 to 1, of a source."""
        if source not in self._stops:
            return _rgb_rows([_UNKNOWN_COLOUR])[0]
        stops = self._stops[source]
        grid = np.linspace(0, 1, len(stops))
        red, green, blue = (float(np.interp(place, grid, [stop[i] for stop in stops])) for i in range(3))
        return red, green, blue


def _rgb_rows(colours: Sequence[str]) -> list[Colour]:
    from matplotlib.colors import to_rgb

    return [to_rgb(colour) for colour in colours]


def draw(take: TakeReader, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the arrangement as a PNG, 1,600 pixels wide: the input and each stem over the bar lines.

    The colour of a stem is the place in the source that each unit comes from; spans that were not played by their
    final clip are hatched and named. ``title`` is by default the header's ``title``, or the folder's name.
    """
    _Picture(take, title or str(take.header.get("title") or take.folder.resolve().name)).save(path)


class _Picture:
    """One axes the size of the picture, in pixels from the top left; everything is placed by hand."""

    def __init__(self, take: TakeReader, title: str) -> None:
        from matplotlib.figure import Figure

        self.take = take
        self.frames = max(1, take.frames)
        self.columns = WIDTH - _LEFT - _RIGHT
        self.envelopes = {name: Envelope(sound_of(take, name), take.frames, self.columns) for name in take.stems}
        self.parts = parts_of(take, (envelope.peak for envelope in self.envelopes.values()))
        self.palette = _Palette(self.parts)
        self.entries = self._legend_entries()
        bottom = 44 + _LEGEND_ROW * (1 + self.entries[-1].row if self.entries else 0)
        lanes = 1 + len(self.parts)
        self.height = max(LEAST_HEIGHT, _TOP + bottom + lanes * 120)
        self.floor = self.height - bottom
        self.lane_height = (self.floor - _TOP - (lanes - 1) * _LANE_GAP) / lanes
        self.figure: Figure = Figure(figsize=(WIDTH / 100, self.height / 100), dpi=100, facecolor=_PAGE)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(self.height, 0))
        self.axes.axis("off")
        self._title(title)
        self._lanes()
        self._ruler()
        self._seconds()
        self._legend()

    def save(self, path: str | os.PathLike[str]) -> None:
        self.figure.savefig(os.fspath(path), format="png", dpi=100)

    def x(self, frame: float) -> float:
        """Pixel of a frame."""
        return _LEFT + self.columns * frame / self.frames

    def _text(
        self, x: float, y: float, text: str, size: float = 9, colour: str | Colour = _INK, **more: object
    ) -> None:
        style: dict[str, object] = {"va": "center", "parse_math": False, "zorder": 6, **more}
        self.axes.text(x, y, text, fontsize=size, color=colour, **style)  # type: ignore[arg-type]

    def _box(self, x: float, y: float, width: float, height: float, **style: object) -> None:
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), width, height, **{"linewidth": 0, **style}))  # type: ignore[arg-type]

    def _title(self, title: str) -> None:
        spans = [span for part in self.parts for span in part.spans if span.rung]
        final = sum(span.rung == 1 for span in spans)
        self._text(28, 34, title, 19, weight="bold")
        self._text(28, 66, f"{length(self.take)}, {tempi(self.take)}", 10.5, _SOFT)
        if spans:
            rests = sum(span.rung == 0 for part in self.parts for span in part.spans)
            text = f"{final} of {counted(len(spans), 'span')} played by their final clip"
            text += f", {counted(rests, 'rest')} besides" if rests else ""
            self._text(WIDTH - _RIGHT, 66, text, 10.5, _SOFT, ha="right")

    def _lanes(self) -> None:
        take = self.take
        envelope = Envelope(take.input(), take.frames, self.columns)
        self._lane(0, "input", ["what the player sent", _peak_words(decibels(envelope.peak or 0))])
        self._wave(0, envelope, [])
        for index, part in enumerate(self.parts, 1):
            self._lane(index, part.agent, _part_words(part))
            self._origins(index, part)
            self._wave(index, self.envelopes[part.agent], part.placed)
            self._rungs(index, part)
            self._events(index, part)

    def _lane_top(self, index: int) -> float:
        return _TOP + index * (self.lane_height + _LANE_GAP)

    def _lane(self, index: int, name: str, words: Sequence[str]) -> None:
        top = self._lane_top(index)
        self._box(_LEFT, top, self.columns, self.lane_height, facecolor=_LANE, zorder=0)
        middle = top + self.lane_height / 2
        start = middle - 9 * len(words)
        self._text(28, start - 4, name if len(name) <= 17 else name[:16] + "\u2026", 13, weight="bold")
        for row, word in enumerate(words):
            self._text(28, start + 20 + 18 * row, word, 8.5, _SOFT)

    def _boxes(self, boxes: Sequence[tuple[float, float]], top: float, height: float, **style: object) -> None:
        """Draw many boxes of one height, each from left to right, as one object."""
        from matplotlib.collections import PolyCollection

        shapes = [[(a, top), (b, top), (b, top + height), (a, top + height)] for a, b in boxes]
        self.axes.add_collection(PolyCollection(shapes, linewidths=0, **style), autolim=False)  # type: ignore[arg-type]

    def _origins(self, index: int, part: Part) -> None:
        """Tint the lane with each unit's colour and put a ribbon below, with the unit's number where it fits."""
        top, ribbon = self._lane_top(index), self._lane_top(index) + self.lane_height - _RIBBON
        places = [(self.x(placed.start), self.x(placed.stop)) for placed in part.placed]
        colours = [self.palette.of(placed.piece) for placed in part.placed]
        self._boxes(places, top, self.lane_height, facecolors=colours, alpha=0.10, antialiased=False, zorder=1)
        apart = [(left, right - (1.0 if right - left > 5 else 0.0)) for left, right in places]
        self._boxes(apart, ribbon, _RIBBON, facecolors=colours, zorder=3)
        if not self._numbered(part):
            return
        for placed, (left, right), colour in zip(part.placed, places, colours, strict=True):
            text = _unit_text(placed.piece)
            if right - left > _text_width(text):
                dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 0.6
                middle = (left + right) / 2
                self._text(middle, ribbon + _RIBBON / 2 + 0.5, text, 7, "white" if dark else _INK, ha="center")

    def _numbered(self, part: Part) -> bool:
        """Whether the numbers of most units find room in the ribbon."""
        fits = [self.x(p.stop) - self.x(p.start) > _text_width(_unit_text(p.piece)) for p in part.placed]
        return bool(part.units) and sum(fits) > len(fits) / 2

    def _wave(self, index: int, envelope: Envelope, placed: Sequence[Placed]) -> None:
        """Draw the envelope, one polygon for each run of columns of one colour."""
        from matplotlib.collections import PolyCollection

        room = self.lane_height / 2 - 8 - (_RIBBON / 2 if index else 0)
        middle = self._lane_top(index) + 8 + room
        if not envelope.there:
            self._text(_LEFT + self.columns / 2, middle, "the stem's file is missing", 10, _SOFT, ha="center")
            return
        scale = room / max(envelope.peak or 0.0, 1e-3)
        x = np.array([self.x(frame) for frame in envelope.edges])
        high = np.append(envelope.high, envelope.high[-1:]) * scale + 0.5
        low = np.append(envelope.low, envelope.low[-1:]) * scale - 0.5
        colours = self._column_colours(envelope, placed)
        changes = [0, *(i for i in range(1, len(colours)) if colours[i] != colours[i - 1]), len(colours)]
        shapes = []
        for first, last in pairwise(changes):
            run = slice(first, last + 1)
            upper = np.column_stack((x[run], middle - high[run]))
            lower = np.column_stack((x[run], middle - low[run]))
            shapes.append(np.concatenate((upper, lower[::-1])))
        faces = [colours[first] for first in changes[:-1]]
        self.axes.add_collection(PolyCollection(shapes, facecolors=faces, edgecolors="none", zorder=4), autolim=False)

    def _column_colours(self, envelope: Envelope, placed: Sequence[Placed]) -> list[Colour]:
        columns = len(envelope.low)
        plain = _rgb_rows([_UNKNOWN_COLOUR if placed else _INPUT_COLOUR])[0]
        colours = [plain] * columns
        for one in placed:  # in order, so that at a join the later unit is seen
            first = int(np.searchsorted(envelope.edges, one.start))
            last = int(np.searchsorted(envelope.edges, one.stop))
            colours[first:last] = [self.palette.of(one.piece)] * (min(last, columns) - first)
        return colours

    def _rungs(self, index: int, part: Part) -> None:
        """Flag, hatch and name what was not played by its final clip; neighbours of one rung are one field."""
        top, height = self._lane_top(index), self.lane_height - _RIBBON
        for rung, start, stop in _fields(part):
            left, width = self.x(start), self.x(min(stop, self.frames)) - self.x(start)
            if rung in _HATCHES:
                hatch = {"facecolor": "none", "edgecolor": "#20242c4a", "hatch": _HATCHES[rung]}
                self._box(left, top, width, height, zorder=5, **hatch)
                self._box(left, top, max(2.0, width - 1), 5, zorder=5, facecolor=_RUNG_COLOURS[rung])
            text = _BADGES.get(rung, str(rung))
            text = text if width > 6.4 * len(text) + 12 else str(rung or "")
            if text and width > 14:
                self._text(left + 7, top + 20, text, 7.5, _INK if rung else _SOFT, bbox=_BADGE)

    def _events(self, index: int, part: Part) -> None:
        """Mark where a new worker took over, and where the agent was put in quarantine; name them if they are few."""
        top, floor = self._lane_top(index), self._lane_top(index) + self.lane_height - _RIBBON
        events = [event for event in part.course.events if event.frame < self.frames]
        for heavy, width, size in ((False, 0.8, 5), (True, 1.6, 7)):
            places = [self.x(max(0, event.frame)) for event in events if (event.what == "quarantine") == heavy]
            self.axes.vlines(places, top, floor, color=_INK, linewidth=width, zorder=5.5)
            signs = {"marker": "v", "markersize": size, "linestyle": "none", "color": _INK, "zorder": 6}
            self.axes.plot(places, [floor] * len(places), **signs)  # type: ignore[arg-type]
        free = 0.0
        for event in events if len(events) <= _MOST_NAMED else ():
            x, width = self.x(max(0, event.frame)), 6.0 * len(event.what) + 14
            at = x + 6 if x + width < WIDTH - _RIGHT else x - width
            if at >= free:
                self._text(at, floor - 10, event.what, 7.5, _INK, bbox=_BADGE)
                free = at + width

    def _ruler(self) -> None:
        """Bar lines and numbers, beats where there is room, and what the tempo does."""
        bars = bar_frames(self.take)
        step = _bar_step(bars, self.columns / self.frames)
        for bar, frame in bars.items():
            numbered = bar % step == 0
            if numbered or step <= 4:
                self._line(self.x(frame), _TOP - 6 if numbered else _TOP, 0.9 if numbered else 0.5, "#20242c40")
            if numbered:
                self._text(self.x(frame), _TOP - 15, str(bar + 1), 8.5, _INK, ha="center")
        self._beats(bars)
        self._tempo()

    def _line(self, x: float, top: float, width: float, colour: str) -> None:
        self.axes.plot([x, x], [top, self.floor], color=colour, linewidth=width, zorder=2.5)

    def _beats(self, bars: dict[int, int]) -> None:
        tempo_map = grid(self.take)
        if tempo_map is None or not bars or self.columns / len(bars) < 90:
            return
        for bar in bars:
            for beat in range(1, math.ceil(tempo_map.bar_beats(bar))):
                frame = tempo_map.frame_at(tempo_map.downbeat(bar) + Fraction(beat))
                if frame < self.frames:
                    self._line(self.x(frame), _TOP, 0.5, "#20242c18")

    def _tempo(self) -> None:
        """Name each tempo, and each leap in the song, at its place; where names would collide the line is alone."""
        free = 0.0
        y = _TOP - 37
        marks = [(mark, _ACCENT) for mark in tempo_marks(self.take)]
        marks += [(mark, _LEAP) for mark in song_marks(self.take) if mark.frame < self.frames]
        for mark, colour in sorted(marks, key=lambda found: found[0].frame):
            x = self.x(max(0, mark.frame))
            if mark.until > mark.frame:
                self.axes.plot([x, self.x(mark.until)], [y + 10, y + 10], color=colour, linewidth=2, zorder=5)
            if mark.frame > 0:
                self.axes.plot([x, x], [_TOP - 6, self.floor], color=colour, linewidth=1, dashes=(4, 3), zorder=2.5)
            if x >= free:
                self.axes.plot([x], [y], marker=5, color=colour, markersize=6, zorder=6, linestyle="none")
                self._text(x + 9, y, mark.text, 9.5, colour, weight="bold")
                free = x + 24 + 8.4 * len(mark.text)

    def _seconds(self) -> None:
        seconds = self.frames / self.take.samplerate
        step = next((s for s in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600) if seconds / s <= 16), 1800)
        for second in range(0, int(seconds) + 1, step):
            x = self.x(second * self.take.samplerate)
            self.axes.plot([x, x], [self.floor + 3, self.floor + 8], color=_SOFT, linewidth=0.8)
            self._text(x, self.floor + 18, clock(second), 8, _SOFT, ha="center")

    def _legend_entries(self) -> list[_Entry]:
        """Lay the legend out in rows."""
        texts = [("ramp", source, _short(source)) for source in self.palette.sources]
        if self.palette.others:
            texts.append(("others", "", f"{self.palette.others} more"))
        rungs = sorted({span.rung for part in self.parts for span in part.spans} & set(_HATCHES))
        texts += [("rung", str(rung), f"{rung} {RUNGS[rung]}") for rung in rungs]
        if self.palette.sources:
            texts.append(("words", "", "colour: place in the source, from its start to the last frame used"))
        if any(self._numbered(part) for part in self.parts):
            texts.append(("words", "", "number: corpus unit, ~ time-stretched"))
        entries: list[_Entry] = []
        x, row = float(_LEFT), 0
        for kind, key, text in texts:
            width = {"ramp": 132, "words": 0}.get(kind, 40) + 6.1 * len(text) + 30
            if x + width > WIDTH - 10 and x > _LEFT:
                x, row = float(_LEFT), row + 1
            entries.append(_Entry(kind, key, text, x, row))
            x += width
        return entries

    def _legend(self) -> None:
        for entry in self.entries:
            y = self.floor + 46 + _LEGEND_ROW * entry.row
            x = entry.x
            if entry.kind == "ramp":
                for step in range(60):
                    self._box(x + 2 * step, y - 6, 2.2, 12, facecolor=self.palette.at(entry.key, step / 59))
                x += 128
            elif entry.kind == "others":
                self._box(x, y - 6, 28, 12, facecolor=_UNKNOWN_COLOUR)
                x += 36
            elif entry.kind == "rung":
                hatch = _HATCHES[int(entry.key)]
                self._box(x, y - 7, 28, 15, facecolor=_LANE, edgecolor="#20242c80", hatch=hatch)
                self._box(x, y - 7, 28, 4, facecolor=_RUNG_COLOURS[int(entry.key)])
                x += 36
            self._text(x, y, entry.text, 8.5, _SOFT if entry.kind == "words" else _INK)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One item of the legend at its place."""

    kind: str
    key: str
    text: str
    x: float
    row: int


def _part_words(part: Part) -> list[str]:
    names = {p.piece.source for p in part.placed}
    words = []
    if part.units:
        words.append(f"{len(part.units)} units, {len(set(part.units))} distinct")
    elif names:
        words.append(_short(next(iter(names))) if len(names) == 1 else f"{len(names)} sources")
    if part.margins_ms:
        words.append(f"least margin {min(part.margins_ms):.0f} ms".replace("-", "\u2212"))
    return [*words, _peak_words(part.peak_db)]


def _peak_words(peak_db: float | None) -> str:
    if peak_db is None:
        return "no file"
    return "silent" if math.isinf(peak_db) else f"peak {peak_db:.1f} dBFS".replace("-", "\u2212")


def _unit_text(piece: Piece) -> str:
    if piece.unit < 0:
        return ""
    return f"~{piece.unit}" if piece.stretched else str(piece.unit)


def _text_width(text: str) -> float:
    """Pixels that a number in the ribbon takes."""
    return 6.2 * len(text) + 4


def _short(source: str) -> str:
    """Return the end of a path that still tells files apart."""
    text = "/".join(Path(source).parts[-2:]) or source
    return text if len(text) <= 34 else "\u2026" + text[-33:]


def _fields(part: Part) -> list[tuple[int, int, int]]:
    """Join neighbouring spans of one rung other than 1 into (rung, start, stop); a late clip ends its span's."""
    fields: list[tuple[int, int, int]] = []
    for span in part.spans:
        stop = part.joined.get(span.key, span.start + span.frames)
        if span.rung == 1:
            continue
        if fields and fields[-1][0] == span.rung and fields[-1][2] == span.start:
            fields[-1] = (span.rung, fields[-1][1], stop)
        else:
            fields.append((span.rung, span.start, stop))
    return fields


def _bar_step(bars: dict[int, int], pixels_per_frame: float) -> int:
    """Return every how many bars one is numbered, so that the numbers stay apart: 1, 2, 4, 8, ..."""
    frames = list(bars.values())
    if len(frames) < 2:
        return 1
    narrowest = min(b - a for a, b in pairwise(frames)) * pixels_per_frame
    room = 12 + 7 * len(str(max(bars) + 1))
    return 1 if narrowest >= room else 2 ** math.ceil(math.log2(room / max(narrowest, 1e-6)))
