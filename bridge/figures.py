"""What a take amounts to: who played what, from where, and where the bars and tempi lie. Read from disk alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from bridge.ledger import Course, Key, counted, courses
from bridge.recorder import JoinLine, SpanLine, TakeReader, TempoLine
from realtime.clock import TempoMap
from realtime.protocols import Block, Origin, Piece


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
    course
        How its time went: its spans, their rungs, causes and margins.
    placed
        The source material, in order.
    joined
        Frame at which a late clip was joined inside a span, by the span's key.
    peak_db
        Peak of the stem in dBFS, minus infinity for silence; ``None`` where the stem's file is not there.
    """

    course: Course
    placed: list[Placed]
    joined: dict[Key, int]
    peak_db: float | None = None

    @property
    def agent(self) -> str:
        """Its name."""
        return self.course.agent

    @property
    def spans(self) -> list[SpanLine]:
        """What was decided, in order."""
        return self.course.spans

    @property
    def margins_ms(self) -> list[float]:
        """Milliseconds between each span's answer and its deadline; negative where it came late."""
        steps = self.course.hops.get("ready", ())
        return [1000 * s.margin_frames / self.course.samplerate for s in steps if s.margin_frames is not None]

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
    peaks = [Envelope(sound_of(take, agent), take.frames).peak for agent in take.stems]
    return parts_of(take, peaks)


def parts_of(take: TakeReader, peaks: Iterable[float | None]) -> list[Part]:
    """Return each agent's part, given their peaks (linear; None without a file)."""
    origins = {(r.agent, r.bar, r.beat, r.attempt): r.origin for r in take.replies}
    joins = {join.key: join for join in take.joins}
    lengths = {span.key: span.frames for span in take.spans}
    beats = _Beats(take)
    return [
        Part(
            course,
            [
                Placed(p.piece, p.start, min(p.stop, take.frames))
                for p in _placed(course.spans, origins, joins, lambda span: beats.moved(span, lengths[span.key]))
                if p.start < take.frames
            ],
            {join.key: join.frame for join in take.joins if join.agent == course.agent},
            None if peak is None else decibels(peak),
        )
        for course, peak in zip(courses(take), peaks, strict=True)
    ]


_ATTEMPTS = {1: 1, 2: 0, 3: 2}
"""Which question's answer plays on a rung."""


def _placed(
    spans: Sequence[SpanLine],
    origins: Mapping[tuple[str, int, Fraction, int], Origin | None],
    joins: Mapping[Key, JoinLine],
    beats_of: Callable[[SpanLine], list[Beat]],
) -> Iterator[Placed]:
    """Find the source material of each span: its own, its reply's, or (rung 4) that of the last good bar.

    A clip joined late follows what it took the place of, and is the last good bar from then on.
    """
    good: Origin | None = None
    for span in spans:
        attempt = span.attempt if span.attempt is not None else _ATTEMPTS.get(span.rung, 0)
        sounding, beats = span.origin, beats_of(span)
        if sounding is None and span.rung in _ATTEMPTS:
            sounding = origins.get((*span.key, attempt))
            good = sounding or good
        elif sounding is None and span.rung == 4:
            sounding = good
        yield from _on_the_timeline(span, sounding, span.start, beats)
        if span.key in joins:
            late = origins.get((*span.key, joins[span.key].attempt))
            good = late or good
            yield from _on_the_timeline(span, late, joins[span.key].frame, beats)


def _on_the_timeline(span: SpanLine, origin: Origin | None, since: int, beats: Sequence[Beat]) -> Iterator[Placed]:
    """Place a clip's pieces, counted from its span's first frame, as far as they sound from ``since`` on."""
    for piece in origin.pieces if origin is not None else ():
        for beat in beats:
            first, last = max(piece.at, beat.first), min(piece.at + piece.frames, beat.last)
            start = max(since, span.start + first + beat.shift)
            stop = min(span.start + span.frames, span.start + last + beat.shift, span.start + beat.end)
            if first < last and start < stop:
                yield Placed(piece, start, stop)


@dataclass(frozen=True, slots=True)
class Beat:
    """Frames ``first`` to ``last`` of a clip sound ``shift`` frames later than they lie in it, up to frame ``end``.

    All counted from the span's start.
    """

    first: int
    last: int
    shift: int
    end: int


class _Beats:
    """Says where the beats of a clip went when the tempo changed inside its span."""

    def __init__(self, take: TakeReader) -> None:
        self._retimes = {line.key: line for line in take.retimes}
        self._map = grid(take)

    def moved(self, span: SpanLine, frames: int) -> list[Beat]:
        """Return the beats of a span that was ``frames`` long when it was decided; one if nothing moved inside.

        What sounded when the change was known stayed; each beat after it begins where the new tempo puts it.
        """
        line, tempo_map = self._retimes.get(span.key), self._map
        if line is None or tempo_map is None or frames <= 0 or not 0 < span.beats <= _MOST_BEATS:
            return [Beat(0, span.frames, 0, span.frames)]
        count = math.ceil(span.beats)
        old = [min(frames, round(frames * k / span.beats)) for k in range(count)]
        first = tempo_map.downbeat(span.bar) + span.beat
        new = [
            tempo_map.frame_at(first + k) - span.start if span.start + old[k] > line.decided else old[k]
            for k in range(count)
        ]
        ends = zip(old, [*old[1:], frames], new, [*new[1:], span.frames], strict=True)
        return [Beat(a, b, at - a, end) for a, b, at, end in ends]


_MOST_BEATS = 256


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
    return f"{counted(len(bar_frames(take)), 'bar')}, {clock(take.frames / take.samplerate)}, {take.samplerate:,} Hz"


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def place(take: TakeReader, frame: int) -> str:
    """Return a frame as minutes and seconds, to a tenth, and its bar."""
    tenths = max(0, frame) * 10 // take.samplerate
    at = f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"
    tempo_map = grid(take)
    if tempo_map is None:
        return at
    bar = tempo_map.moment(max(0, frame)).bar
    return f"{at} (bar {bar + 1})" if bar >= 0 else f"{at} (count-in)"


def grid(take: TakeReader) -> TempoMap | None:
    """Return the take's tempo map; ``None`` where its lines make none, as after a cut in an unlucky place."""
    try:
        return take.tempo_map
    except (ValueError, ArithmeticError, IndexError):
        return None


def bar_frames(take: TakeReader) -> dict[int, int]:
    """Return frame by bar index, for every bar that starts within the take."""
    tempo_map, frames = grid(take), {}
    if tempo_map is None:
        return {}
    bar = tempo_map.moment(0).bar
    while (frame := tempo_map.bar_frame(bar)) < take.frames:
        if frame >= 0:
            frames[bar] = frame
        bar += 1
    return frames


def tempi(take: TakeReader) -> str:
    """Return the take's tempi in words."""
    marks, tempo_map = tempo_marks(take), grid(take)
    if tempo_map is None:
        return "no bar lines"
    if len(marks) > 4:
        bpms = [float(timeline.tempo) for timeline in tempo_map.unrolled(take.frames)]
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
    tempo_map = grid(take)
    marks: list[TempoMark] = []
    if tempo_map is None:
        return marks
    meter, reached = None, Fraction(-1)
    for at, line in enumerate(_tempo_lines(take, tempo_map)):
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


def _tempo_lines(take: TakeReader, tempo_map: TempoMap) -> Sequence[TempoLine]:
    """Return the take's tempo lines; where the song was left for another place, those of what was really played."""
    if not (take.locates or take.anchors):
        return take.tempo
    return [
        TempoLine(
            line.frame_at(line.beat), line.bar_at(line.beat), line.beat - line.downbeat(line.bar_at(line.beat)),
            line.tempo, line.meter,
        )
        for line in tempo_map.unrolled(take.frames)
    ]  # fmt: skip


def song_marks(take: TakeReader) -> list[TempoMark]:
    """Name the places where the song went on from another bar, or went round in a loop from there."""
    marks = []
    for line in take.locates:
        first, last = line.song_bar + 1, line.song_bar + line.loop_bars
        text = f"to bar {first}"
        if line.loop_bars > 0:
            text = f"loop {first}" + (f"\u2013{last}" if last > first else "")
        marks.append(TempoMark(line.frame, line.frame, line.bar, text))
    marks += [TempoMark(line.frame, line.frame, line.bar, f"led to bar {line.song_bar + 1}") for line in take.anchors]
    return sorted(marks, key=lambda mark: mark.frame)
