"""What a take amounts to: who played what, from where, how late, and how the time went. Read from disk alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from bridge.recorder import SpanLine, TakeReader
from realtime.protocols import Block, Origin, Piece

RUNGS = {
    0: "rest",
    1: "final clip",
    2: "speculative clip",
    3: "corpus continuation",
    4: "last good bar again",
    5: "fade to silence",
}
"""The ladder: what plays in a span, best first; 0 is a rest, which is no fault."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One piece of source material where it sounds: output frames ``start`` to ``stop``."""

    piece: Piece
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """One agent's part in a take, in figures.

    Attributes
    ----------
    spans
        What was decided, in order; where a span was logged twice, its later line.
    placed
        The source material, in order.
    joined
        Frame at which a late clip was joined inside a span, by the span's key.
    margins_ms
        Milliseconds between each span's answer and its deadline; negative where it came late.
    peak_db
        Peak of the stem in dBFS, minus infinity for silence; ``None`` where the stem's file is not there.
    """

    agent: str
    channels: int
    samplerate: int
    spans: list[SpanLine]
    placed: list[Placed]
    joined: dict[tuple[str, int, Fraction], int]
    margins_ms: list[float]
    peak_db: float | None = None
    rungs: Counter[int] = field(default_factory=Counter)

    @property
    def bars(self) -> int:
        """Bars in which the agent was asked for something."""
        return len({span.bar for span in self.spans})

    @property
    def units(self) -> list[tuple[str, int]]:
        """Source and index of each corpus unit that sounded, in order."""
        return [(p.piece.source, p.piece.unit) for p in self.placed if p.piece.unit >= 0]

    @property
    def stretched(self) -> int:
        """Pieces whose length was fitted by time stretching."""
        return sum(p.piece.stretched for p in self.placed)


def summarise(take: TakeReader) -> list[Part]:
    """Return each agent's part, in the order of the take's stems. Reads every stem once."""
    return [part_of(take, agent, Envelope(sound_of(take, agent), take.frames).peak) for agent in take.stems]


def part_of(take: TakeReader, agent: str, peak: float | None) -> Part:
    """Return one agent's part, given its peak (linear; None without a file)."""
    mine = {span.key: span for span in take.spans if span.agent == agent and span.start < take.frames}
    spans = sorted(mine.values(), key=lambda span: span.start)
    margins = [1000 * s.margin_frames / take.samplerate for s in spans if s.margin_frames is not None]
    return Part(
        agent,
        take.stems[agent],
        take.samplerate,
        spans,
        [Placed(p.piece, p.start, min(p.stop, take.frames)) for p in _placed(take, spans) if p.start < take.frames],
        {join.key: join.frame for join in take.joins if join.agent == agent},
        margins,
        None if peak is None else decibels(peak),
        Counter(span.rung for span in spans),
    )


def _placed(take: TakeReader, spans: Sequence[SpanLine]) -> Iterator[Placed]:
    """Find the source material of each span: its own, its reply's, or (rung 4) that of the last good bar.

    A clip joined late follows what it took the place of, and is the last good bar from then on.
    """
    origins = {(r.agent, r.bar, r.beat, r.attempt): r.origin for r in take.replies}
    joins = {join.key: join for join in take.joins}
    good: Origin | None = None
    for span in spans:
        attempt = span.attempt if span.attempt is not None else int(span.rung == 1)
        sounding = span.origin
        if sounding is None and span.rung in (1, 2):
            sounding = origins.get((*span.key, attempt))
            good = sounding or good
        elif sounding is None and span.rung == 4:
            sounding = good
        yield from _on_the_timeline(span, sounding, span.start)
        if span.key in joins:
            late = origins.get((*span.key, joins[span.key].attempt))
            good = late or good
            yield from _on_the_timeline(span, late, joins[span.key].frame)


def _on_the_timeline(span: SpanLine, origin: Origin | None, since: int) -> Iterator[Placed]:
    """Place a clip's pieces, counted from its span's first frame, as far as they sound from ``since`` on."""
    for piece in origin.pieces if origin is not None else ():
        start = max(since, span.start + piece.at)
        stop = min(span.start + span.frames, span.start + piece.at + piece.frames)
        if start < stop:
            yield Placed(piece, start, stop)


def sound_of(take: TakeReader, agent: str) -> Iterable[Block] | None:
    """Return a stem's sound in blocks; None where its file is gone."""
    return take.stem_blocks(agent) if take.has(agent) else None


def decibels(level: float) -> float:
    """Return a linear level in dBFS; minus infinity for silence."""
    return 20 * math.log10(level) if level > 0 else -math.inf


class Envelope:
    """Lowest and highest sample in each of ``columns`` equal stretches of a sound, over all channels."""

    def __init__(self, blocks: Iterable[Block] | None, frames: int, columns: int = 1) -> None:
        columns = max(1, min(columns, frames))
        self.edges: npt.NDArray[np.int64] = np.arange(columns + 1, dtype=np.int64) * frames // columns
        self.low = np.zeros(columns, np.float32)
        self.high = np.zeros(columns, np.float32)
        self.there = blocks is not None
        at = 0
        for block in blocks or ():
            self._take(np.nan_to_num(block, posinf=0.0, neginf=0.0), at)
            at += len(block)

    @property
    def peak(self) -> float | None:
        """Largest magnitude, linear; ``None`` where there is no sound file."""
        return float(max(-self.low.min(), self.high.max())) if self.there else None

    def _take(self, block: Block, at: int) -> None:
        first = int(np.searchsorted(self.edges, at, "right")) - 1
        last = int(np.searchsorted(self.edges, at + len(block), "left"))
        cuts = np.maximum(self.edges[first:last] - at, 0)
        columns = slice(first, last)
        self.low[columns] = np.minimum(self.low[columns], np.minimum.reduceat(block.min(axis=1), cuts))
        self.high[columns] = np.maximum(self.high[columns], np.maximum.reduceat(block.max(axis=1), cuts))


def length(take: TakeReader) -> str:
    """Return bars, time and rate in words."""
    return f"{len(bar_frames(take))} bars, {clock(take.frames / take.samplerate)}, {take.samplerate:,} Hz"


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def bar_frames(take: TakeReader) -> dict[int, int]:
    """Return frame by bar index, for every bar that starts within the take."""
    if not take.tempo:
        return {}
    tempo_map, frames = take.tempo_map, {}
    bar = tempo_map.moment(0).bar
    while (frame := tempo_map.bar_frame(bar)) < take.frames:
        if frame >= 0:
            frames[bar] = frame
        bar += 1
    return frames


def tempi(take: TakeReader) -> str:
    """Return the take's tempi in words."""
    if not take.tempo:
        return "no bar lines"
    marks = tempo_marks(take)
    if len(marks) > 4:
        bpms = [float(timeline.tempo) for timeline in take.tempo_map.timelines]
        return f"\u2669 = {round(min(bpms), 2):g} to {round(max(bpms), 2):g} in {len(marks) - 1} changes"
    return ", ".join(mark.text + (f" from bar {mark.bar + 1}" if len(marks) > 1 else "") for mark in marks)


@dataclass(frozen=True, slots=True)
class TempoMark:
    """A tempo or meter that holds from a frame on; a ramp reaches it at ``until``."""

    frame: int
    until: int
    bar: int
    text: str


def tempo_marks(take: TakeReader) -> list[TempoMark]:
    """Name the tempi; lines that follow each other by a beat or less are the steps of one ramp."""
    tempo_map = take.tempo_map
    marks: list[TempoMark] = []
    meter, reached = None, Fraction(-1)
    for at, line in enumerate(take.tempo):
        beat = tempo_map.downbeat(line.bar) + line.beat
        until = tempo_map.frame_at(beat + line.ramp_beats) if line.ramp_beats else line.frame
        changed = line.meter not in (None, meter)
        meter = line.meter or meter
        step = at > 1 and beat - reached <= 1 and not changed
        gradual = step or line.ramp_beats > 0
        words = (
            [f"\u2669 {'to' if gradual else '='} {round(float(line.tempo), 2):g}"] if line.tempo is not None else []
        )
        begin = marks.pop() if step else TempoMark(line.frame, until, line.bar, "")
        marks.append(replace(begin, until=until, text="  ".join([*words, *([str(meter)] if changed else [])])))
        reached = beat + line.ramp_beats
    return marks
