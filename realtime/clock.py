"""Musical time: meters, timelines, tempo maps, and the transport that publishes them.

There is one clock, the session's frame counter, an integer. Musical time is exact: tempo, beats and the
position of every bar line are fractions, and a position becomes a frame once, by rounding. So errors never
add up: bar 10,000 starts where arithmetic says it does, and ``frame -> beat -> frame`` is the identity.

A :class:`TempoMap` is an immutable value. A reader takes it once per block or span and never twice
(after Ableton Link's session state). Only the :class:`Transport`, in the engine, publishes a new one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter

SLOWEST_BPM, FASTEST_BPM = 20, 400
TEMPO_DENOMINATOR = 10**6
"""An outside tempo (a float, a host's) becomes the nearest fraction with at most this denominator."""
MAX_DIGITS = 40
KEPT_SECONDS = 600
"""The transport forgets timelines that ended longer ago: nobody looks back so far, and a map stays small for ever."""
POSITION_DENOMINATOR = 10**12
"""Bound of an origin's denominator: the rounding is below 1e-12 frame a change, and numbers stay small for ever."""


def round_frame(position: Fraction) -> int:
    """Round an exact position to its frame; a half goes up, for negative positions too."""
    return (2 * position.numerator + position.denominator) // (2 * position.denominator)


def as_tempo(bpm: float | str | Fraction) -> Fraction:
    """Turn a tempo from outside (quarter notes per minute) into a fraction.

    Raises
    ------
    ValueError
        If it is no number or outside 20 to 400.
    """
    text = str(bpm)
    try:
        if len(text) > MAX_DIGITS or "e" in text.lower():  # 1e999999999 would be written out before it is refused
            text = str(float(text))
        tempo = Fraction(text).limit_denominator(TEMPO_DENOMINATOR)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"bpm={bpm!r} is not a number; a tempo is quarter notes per minute, say 120") from None
    if not SLOWEST_BPM <= tempo <= FASTEST_BPM:
        raise ValueError(
            f"bpm={bpm}: a tempo is {SLOWEST_BPM} to {FASTEST_BPM} quarter notes per minute; "
            "did you give a period, or count eighths?"
        )
    return tempo


@dataclass(frozen=True, slots=True)
class Meter:
    """Beats to the bar as musicians write it: ``Meter(7, 8)`` is seven eighths."""

    count: int = 4
    unit: int = 4

    def __post_init__(self) -> None:
        if not (1 <= self.count <= 32 and self.unit in (1, 2, 4, 8, 16, 32)):
            raise ValueError(f"meter {self}: the count is 1 to 32 and the unit 1, 2, 4, 8, 16 or 32, as in 7/8")

    @classmethod
    def parse(cls, text: str) -> Meter:
        """Read ``"7/8"``."""
        count, slash, unit = text.partition("/")
        if not (slash and count.strip().isdecimal() and unit.strip().isdecimal()):
            raise ValueError(f"meter {text!r}: write count/unit, for instance 4/4, 3/4 or 7/8")
        return cls(int(count), int(unit))

    @property
    def beats(self) -> Fraction:
        """Length of a bar in quarter notes."""
        return Fraction(4 * self.count, self.unit)

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


@dataclass(frozen=True, slots=True)
class Timeline:
    """One stretch of constant tempo and meter: two lines, frame over beat and bar over beat.

    Attributes
    ----------
    samplerate
        Frames per second.
    tempo
        Quarter notes per minute.
    meter
        Beats to the bar.
    frame, beat
        The origin: exact frame at which ``beat`` (quarter notes since bar 0) falls. A timeline holds from here.
    bar, bar_beat
        A bar whose downbeat is at ``bar_beat``.
    """

    samplerate: int
    tempo: Fraction
    meter: Meter = Meter()
    frame: Fraction = Fraction(0)
    beat: Fraction = Fraction(0)
    bar: int = 0
    bar_beat: Fraction = Fraction(0)

    @property
    def beat_frames(self) -> Fraction:
        """Exact frames in one beat."""
        return 60 * self.samplerate / self.tempo

    def position(self, beat: Fraction) -> Fraction:
        """Exact frame of a beat."""
        return self.frame + (beat - self.beat) * self.beat_frames

    def frame_at(self, beat: Fraction) -> int:
        """Frame of a beat, rounded once."""
        return round_frame(self.position(beat))

    def beat_at(self, frame: int | Fraction) -> Fraction:
        """Exact beat of a frame."""
        return self.beat + (frame - self.frame) / self.beat_frames

    def downbeat(self, bar: int) -> Fraction:
        """Beat on which ``bar`` starts."""
        return self.bar_beat + (bar - self.bar) * self.meter.beats

    def bar_at(self, beat: Fraction) -> int:
        """Bar that contains ``beat``."""
        return self.bar + (beat - self.bar_beat) // self.meter.beats


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant in all its names: frame, bar, beat within the bar, and phase of the bar (0 <= phase < 1)."""

    frame: int
    bar: int
    beat: Fraction
    phase: float


_beat, _frame = attrgetter("beat"), attrgetter("frame")


@dataclass(frozen=True, slots=True)
class TempoMap:
    """Timelines in order, each holding from its origin to the next one's; the first reaches back for ever."""

    timelines: tuple[Timeline, ...]

    @classmethod
    def steady(
        cls, samplerate: int, bpm: float | str | Fraction, meter: Meter = Meter(), downbeat: int = 0
    ) -> TempoMap:
        """Return a map of one tempo whose bar 0 starts at frame ``downbeat``."""
        return cls((Timeline(samplerate, as_tempo(bpm), meter, Fraction(downbeat)),))

    def at_beat(self, beat: Fraction) -> Timeline:
        """Return the timeline that holds at ``beat``."""
        return self.timelines[max(0, bisect_right(self.timelines, beat, key=_beat) - 1)]

    def at_frame(self, frame: int | Fraction) -> Timeline:
        """Return the timeline that holds at ``frame``."""
        return self.timelines[max(0, bisect_right(self.timelines, frame, key=_frame) - 1)]

    def frame_at(self, beat: Fraction) -> int:
        """Frame of a beat, rounded once."""
        return self.at_beat(beat).frame_at(beat)

    def beat_at(self, frame: int) -> Fraction:
        """Exact beat of a frame; its inverse is :meth:`frame_at`."""
        return self.at_frame(frame).beat_at(frame)

    def downbeat(self, bar: int) -> Fraction:
        """Beat on which ``bar`` starts."""
        for timeline in reversed(self.timelines):
            beat = timeline.downbeat(bar)
            if beat >= timeline.beat:
                return beat
        return self.timelines[0].downbeat(bar)

    def bar_frame(self, bar: int) -> int:
        """Frame on which ``bar`` starts."""
        return self.frame_at(self.downbeat(bar))

    def bar_beats(self, bar: int) -> Fraction:
        """Length of ``bar`` in beats."""
        return self.at_beat(self.downbeat(bar)).meter.beats

    def moment(self, frame: int) -> Moment:
        """Name an instant by bar and beat.

        A downbeat's frame, which is rounded, belongs to the bar it starts, even where the exact bar line lies up
        to half a frame later.
        """
        beat = self.beat_at(frame)
        bar = self.at_beat(beat).bar_at(beat)
        if self.bar_frame(bar + 1) <= frame:
            bar += 1
        start = self.downbeat(bar)
        offset = max(Fraction(0), beat - start)
        return Moment(frame, bar, offset, float(offset / self.bar_beats(bar)))

    def changed(self, beat: Fraction, tempo: Fraction | None = None, meter: Meter | None = None) -> TempoMap:
        """Return the map with a new tempo or meter from ``beat`` on; what lies before stays where it was.

        A new tempo drops the tempi planned after it, but no meter; a new meter drops neither. A meter planned for
        what is no bar line any more comes on the next one.

        Raises
        ------
        ValueError
            If the meter changes where no bar starts.
        """
        old = self.at_beat(beat)
        bar = old.bar_at(beat)
        bar_beat = old.downbeat(bar)
        if meter is not None and meter != old.meter and bar_beat != beat:
            raise ValueError(f"the meter can change only on a bar line; beat {beat} is inside bar {bar + 1}")
        new = Timeline(
            old.samplerate,
            tempo if tempo is not None else old.tempo,
            meter or old.meter,
            old.position(beat).limit_denominator(POSITION_DENOMINATOR),
            beat,
            bar,
            bar_beat,
        )
        kept = self.timelines[: bisect_left(self.timelines, beat, key=_beat)]
        if not kept:  # the first timeline reaches back for ever: what lies before the change keeps its tempo
            kept = (replace(old, frame=old.position(beat), beat=beat),)
        result, before = TempoMap((*kept, new)), old.meter
        for timeline in self.timelines[bisect_right(self.timelines, beat, key=_beat) :]:
            result = result._with_planned(timeline, timeline.meter != before, tempo is None)
            before = timeline.meter
        return result

    def _with_planned(self, planned: Timeline, meter_changes: bool, keeps_tempo: bool) -> TempoMap:
        """Return the map with what an older one had planned at a later place."""
        result = self
        if keeps_tempo:
            result = result.changed(planned.beat, planned.tempo)
        if meter_changes:
            last = result.timelines[-1]
            beat = last.downbeat(last.bar_at(planned.beat))
            result = result.changed(beat if beat == planned.beat else beat + last.meter.beats, meter=planned.meter)
        return result

    def since(self, frame: int) -> TempoMap:
        """Return the map without the timelines that ended before ``frame``; from there on nothing moves."""
        return TempoMap(self.timelines[max(0, bisect_right(self.timelines, frame, key=_frame) - 1) :])

    def ramped(self, beat: Fraction, beats: int, tempo: Fraction) -> TempoMap:
        """Return the map with a linear ramp to ``tempo`` over ``beats`` whole beats: one constant timeline a beat.

        Step i of n has the tempo half-way through it: ``a + (b - a) * (i + 1/2) / n``; ``tempo`` holds after.
        """
        if beats < 1:
            raise ValueError(f"a tempo ramp over {beats} beats; it takes at least one whole beat")
        first = self.at_beat(beat).tempo
        ramp = self
        for step in range(beats):
            part = Fraction(2 * step + 1, 2 * beats)
            ramp = ramp.changed(beat + step, (first + (tempo - first) * part).limit_denominator(TEMPO_DENOMINATOR))
        return ramp.changed(beat + beats, tempo)


@dataclass(frozen=True, slots=True)
class TempoChange:
    """A wish to change tempo or meter at ``beat`` of ``bar``; with ``ramp_beats`` the tempo gets there gradually."""

    bar: int
    beat: Fraction = Fraction(0)
    tempo: Fraction | None = None
    meter: Meter | None = None
    ramp_beats: int = 0

    def applied(self, tempo_map: TempoMap) -> TempoMap:
        """Return ``tempo_map`` with this change in it."""
        at = tempo_map.downbeat(self.bar) + self.beat
        if self.meter is not None:
            tempo_map = tempo_map.changed(at, meter=self.meter)
        if self.tempo is not None and self.ramp_beats:
            tempo_map = tempo_map.ramped(at, self.ramp_beats, self.tempo)
        elif self.tempo is not None:
            tempo_map = tempo_map.changed(at, self.tempo)
        return tempo_map


class Transport:
    """Publishes one tempo map; the only writer of musical time. Engine thread only.

    Parameters
    ----------
    tempo_map
        What holds at the start.
    notice_frames
        How early a change must be known: ``lead`` + 2 blocks before the place it is for.
    """

    def __init__(self, tempo_map: TempoMap, notice_frames: int) -> None:
        self.map = tempo_map
        self._notice_frames = notice_frames

    def announce(self, change: TempoChange, now: int) -> TempoChange:
        """Take a change in, at frame ``now``, and return it as it will happen.

        One announced too late for its place counts from the first bar line that is far enough ahead.
        """
        bar = max(change.bar, self.map.moment(now).bar)  # what is past cannot be changed, nor be counted up from
        if bar > change.bar:
            change = replace(change, bar=bar, beat=Fraction(0))
        while self.map.frame_at(self.map.downbeat(bar) + change.beat) - now < self._notice_frames:
            bar += 1
            change = replace(change, bar=bar, beat=Fraction(0))
        past = now - KEPT_SECONDS * self.map.timelines[0].samplerate
        self.map = change.applied(self.map.since(past))
        return change
