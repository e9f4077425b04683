"""One source's song position as a line over session frames, found in what it says and held while that agrees.

Two kinds of observation are told apart. An *exact* one comes from a clock that is the device's own (MIDI clock or
transport through JACK): its frame is wrong by its rounding and nothing else, so a tempo and a place either explain
every observation or are wrong, and the right ones are found exactly. A *stamped* one carries the host time at which a
message arrived: late by a little always and by a lot now and then, never early, so a line is laid through many and
moved to their early edge.

Beats are quarter notes of the song, frames are session frames. Nothing here knows of bars, sources or commands.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from realtime.clock import FASTEST_BPM, POSITION_DENOMINATOR, SLOWEST_BPM, TEMPO_DENOMINATOR, Timeline

TEMPO_STEPS = tuple(Fraction(1, parts) for parts in (1, 2, 10, 100, 1000))
"""Tempi people set, roundest first: of what the observations allow the roundest is believed."""
EXACT_LOCK, EXACT_STRAYS = 4, 4
"""Exact observations that make a line, and those beside it that make another: 80 ms of MIDI clock at 120 bpm."""
LOCK_SECONDS, TOLD_LOCK_SECONDS = 0.6, 0.15
"""How long stamped observations must agree before they make a line: with the tempo to be found, and with it told."""
LOCK_UNSURE, LOCK_MOST_SECONDS = 0.007, 1.2
"""And until the tempo is known to this part of it, but not longer than this."""
STAMPED_LOCK, TOLD_LOCK, STAMPED_STRAYS = 5, 2, 3
"""How many of them it takes at least: for both, and for a jump to be believed."""
SLOW_SECONDS = 0.25
"""A source that speaks less often than this needs one observation fewer to be believed about a jump."""
SPREAD_SECONDS, LEAST_SPREAD_SECONDS = 0.003, 0.0002
"""What stamped observations are taken to scatter by until there are enough to tell, and at least."""
NEAR_SECONDS, FAR_SECONDS = 0.010, 0.060
"""So far from the line they may lie whatever they scatter by; and further off than that it is a jump in any case."""
PHASE_SECONDS = 12.0
"""Those of so long a time tell where the early edge is."""
KEPT_SECONDS, KEPT_FRAMES = 0.040, 500
"""Stamped observations are kept at this distance in seconds, exact ones in frames; all are looked at."""
KEPT_STAMPED, KEPT_EXACT, KEPT_STRAYS, LOST_STRAYS = 300, 512, 12, 40
"""How many are kept; and how many beside the line, exact ones and stamped ones, are too many for it to be held."""
LAID_SECONDS = 0.25
"""How often a line is laid anew through many."""
JAM_SECONDS = 1.0
"""What is only a little late may be held up: it must stay so for as long to be believed."""
TOLD_OFF = 0.0005
"""A tempo that is told may be off by this part: another crystal, a number that was cut short."""
SURE = 3.0
"""So many standard errors from what was measured, a tempo is another one."""
SETTLED = 8
"""So many tell how far they scatter, and whether the tempo has changed."""
LONG, BOUNDING, BOUNDING_ROOM = 128, 96, 0.01
"""Exact observations that speak for themselves; those of a long row that bound its tempo, and the room they leave."""
ROUNDING_SECONDS = 10
"""After so long a time on one line it is known how its source rounds."""
BESIDE = 16
"""Nearer to the line than this, in frames, exact observations may mean that it was not quite the right one."""
PARALLEL = 0.15
"""A line that turns by less than this part of its length goes on in the same tempo, as far as a few can tell."""
OWN_TICKS = Fraction(1, 10**8)
"""A DAW keeps its tempo in ticks of its own, so that it is off by some of this."""
_OPEN, _EXACT = Fraction(1, 10**6), Fraction(1, 10**7)
"""By how much a bound that is itself excluded is drawn in, and what sums may be off by, in frames."""


class Found(Enum):
    """What an observation was."""

    COLLECTED = "collected"
    FITS = "fits"
    STRAY = "stray"
    LOCKED = "locked"
    JUMPED = "jumped"
    LOST = "lost"


class Point(NamedTuple):
    """One observation: a frame, and the beat there; the same once more as a float, which is quick to work with."""

    frame: int
    beat: Fraction
    near: float


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where exact observations put beat 0 in a tempo: the earliest and the latest of them, and from when they are."""

    tempo: Fraction
    least: Fraction
    most: Fraction
    first: int
    last: int

    @property
    def slack(self) -> Fraction:
        """What they may miss a line by beside their rounding, in frames."""
        return _EXACT + OWN_TICKS * max(0, self.last - self.first)

    def with_place(self, place: Fraction, frame: int) -> _Extent:
        return replace(self, least=min(self.least, place), most=max(self.most, place), last=frame)


def _point(frame: int, beat: Fraction) -> Point:
    return Point(frame, beat, float(beat))


class LineFinder:
    """Finds the line through one source's observations. One thread, virtual time.

    The line is only ever as old as the last jump: a new place is believed when several observations in a row agree on
    it, so neither a packet that was held up nor one that is wrong moves anything. Within a stretch of constant tempo
    the line of an exact source does not move at all once it is right.

    Parameters
    ----------
    samplerate
        Frames per second of the session.
    guess
        Tempo to expect: what was played last, or is planned.

    Attributes
    ----------
    line
        Song beats over frames; its meter and bars mean nothing. ``None`` until there is one, provisional until
        :attr:`locked`.
    locked
        Whether enough observations agree on it.
    exact
        Whether it is that of exact observations.
    spread_frames
        How far observations scatter around it.
    unsure_frames
        How far the line itself may be off for that: 0 where it is exact.
    told
        Tempo the source claims, a candidate and no more.
    contradicted
        Times the claimed tempo was given up because the position moved in another.
    before
        The line that held until the last jump.
    since
        Frame of the first observation on the line, of those that made it.
    """

    def __init__(self, samplerate: int, guess: Fraction | None = None) -> None:
        self.samplerate = samplerate
        self.line: Timeline | None = None
        self.before: Timeline | None = None
        self.locked = self.exact = False
        self.spread_frames = self.unsure_frames = SPREAD_SECONDS * samplerate
        self.contradicted = self.since = 0
        self.told: Fraction | None = None
        self._rough = False  # exact observations that do not lie on a line to the frame are taken as stamped ones
        self._band = 1.0  # how far apart exact observations may lie: their rounding, and the grain of their beats
        self._points: deque[Point] = deque(maxlen=KEPT_EXACT)
        self._strays: deque[Point] = deque()
        self._fold: tuple[int, Fraction] | None = None
        self._held = guess
        self._disbelieved: Fraction | None = None
        self._last = self._laid = 0
        self._slow = False
        self._extent: _Extent | None = None
        self._rounding: int | None = None  # which of the ways to round it is, once that is known

    def restart(self) -> None:
        """Begin anew: what comes next does not go on from what was. The tempo is kept as a guess."""
        self._restart(rough=False)

    def _restart(self, rough: bool) -> None:
        if self.locked:
            self.before = self.line
        self.locked, self._rough = False, rough
        self._fold = self._extent = None
        self._points.clear()
        self._strays.clear()

    def tell(self, tempo: Fraction | None) -> None:
        """Take a tempo the source claims. One that is new turns the line where it is."""
        if tempo is None or tempo == self.told:
            return
        self.told, self._disbelieved = tempo, None
        if self.line is not None and self.locked and not self.exact and tempo != self.line.tempo:
            beat = self._points[-1][1] if self._points else self.line.beat
            self.line = replace(self.line.from_beat(beat), tempo=tempo)
            self._points = deque(list(self._points)[-1:], maxlen=KEPT_STAMPED)

    def fold(self, frame: int, beats: Fraction) -> None:
        """Expect that from ``frame`` on the song is ``beats`` earlier than the line says: the end of a loop."""
        if self.line is not None:
            self.before = self.line
            self._fold = frame, beats
            self.line, self._extent = replace(self.line, beat=self.line.beat - beats), None
            folded = (_point(point.frame, point.beat - beats) for point in self._points)
            self._points = deque(folded, maxlen=self._points.maxlen)
            self._strays.clear()

    def add(self, frame: int, beat: Fraction, exact: bool = False, grain: Fraction = Fraction(0)) -> Found:
        """Take one observation in and say what it was.

        Parameters
        ----------
        frame, beat
            Where the song was when. Frames may come out of order; then they count as late.
        exact
            The frame is right but for its rounding.
        grain
            The beat was rounded down to multiples of this.
        """
        exact = exact and not self._rough
        if exact != self.exact and self._points:
            self._restart(self._rough)
        self.exact, self._band = exact, self._band_of(grain)
        point = _point(frame, self._folded(frame, beat))
        self._slow = frame - self._last > SLOW_SECONDS * self.samplerate
        self._last = frame
        if not self.locked or self.line is None:
            return self._collect(point)
        if self._near(_lates([point], self.line)[0]):
            self._strays.clear()
            self._keep(point)
            self._refine(point)
            return Found.FITS
        self._strays.append(point)
        return self._judge_strays()

    def _band_of(self, grain: Fraction) -> float:
        tempo = self.line.tempo if self.line is not None else self.told or Fraction(120)
        return 1.0 + float(grain * 60 * self.samplerate / tempo)

    def _folded(self, frame: int, beat: Fraction) -> Fraction:
        """Return the beat as the folded line counts, for what was still observed before the fold."""
        if self._fold is None or self.line is None:
            return beat
        at, beats = self._fold
        if frame > at + FAR_SECONDS * self.samplerate:
            self._fold = None
            return beat
        place = self.line.beat_at(frame)
        return beat - beats if abs(beat - beats - place) < abs(beat - place) else beat

    # -- no line yet --------------------------------------------------------------------------------------------

    def _collect(self, point: Point) -> Found:
        """Gather observations until some of them make a line."""
        if self._points and (point[0] <= self._points[-1][0] or point[1] <= self._points[-1][1]):
            if point[1] == self._points[-1][1]:
                return Found.COLLECTED  # said twice; the first time is the earlier, so the truer
            self._points.clear()
        self._points.append(point)
        points = list(self._points)
        line = self._exact_start(points) if self.exact else self._stamped_start(points)
        if line is None:
            if len(points) >= (KEPT_STRAYS if self.exact else KEPT_STAMPED):
                self._rough = self._rough or self.exact
                self._points = deque(points[-KEPT_STRAYS // 2 :], maxlen=KEPT_STAMPED)
            return Found.COLLECTED
        self.line, self.locked, self.since = line, True, self._points[0][0]
        self._refine(point)
        return Found.LOCKED

    def _exact_start(self, points: list[Point]) -> Timeline | None:
        recent = points[-EXACT_LOCK:]
        if len(recent) < EXACT_LOCK:
            return None
        line = self._through(recent)
        if line is None or not self._collinear(recent, line, self._band + 0.5):
            return None
        self._points = deque(recent, maxlen=KEPT_EXACT)
        return line

    def _stamped_start(self, points: list[Point]) -> Timeline | None:
        span = (points[-1][0] - points[0][0]) / self.samplerate
        if self.told is not None and len(points) >= TOLD_LOCK and span >= TOLD_LOCK_SECONDS:
            line = Timeline(self.samplerate, self.told, frame=Fraction(points[0][0]), beat=points[0][1])
            line = _early(points, line)
            if self._collinear(points, line, self._far_frames):
                return line
        if len(points) < STAMPED_LOCK and not (len(points) >= 3 and span >= 3 * SLOW_SECONDS):
            return None
        found = self._through(points)
        if found is None or span < LOCK_SECONDS:
            return None
        if not self._collinear(points, found, self._far_frames):
            self._points.popleft()
            return None
        if span < LOCK_MOST_SECONDS and self._unsure(points) > LOCK_UNSURE and not self._slow:
            return None
        if self._held is not None and self._agrees(self._held, float(found.tempo), points):
            return _early(points, replace(found, tempo=self._held))
        return found

    def _agrees(self, tempo: Fraction, measured: float, points: list[Point]) -> bool:
        """Whether a measured tempo may be this one, for how the observations scatter."""
        return abs(float(tempo) / measured - 1) <= SURE * self._unsure(points)

    def _unsure(self, points: list[Point]) -> float:
        """Return how far a tempo measured from observations may be off, as a part of it: one standard error."""
        slope, _, spread = _fitted(points)
        beats = np.array([point.near for point in points])
        scatter = math.sqrt(float(np.sum((beats - beats.mean()) ** 2)))
        return max(spread, self.spread_frames) / (scatter * slope) if scatter * slope > 0 else 1.0

    def _through(self, points: list[Point]) -> Timeline | None:
        """Return the line through observations, ``None`` where it would be no tempo."""
        if len(points) < 2 or points[-1][1] == points[0][1]:
            return None
        slope, frame, _ = _fitted(points)
        if not (slope > 0 and SLOWEST_BPM <= 60 * self.samplerate / slope <= FASTEST_BPM):
            return None
        tempo = Fraction(60 * self.samplerate / slope).limit_denominator(TEMPO_DENOMINATOR)
        at = Fraction(frame).limit_denominator(TEMPO_DENOMINATOR)
        return Timeline(self.samplerate, tempo, frame=points[0][0] + at, beat=points[0][1])

    def _collinear(self, points: list[Point], line: Timeline, width: float) -> bool:
        late = _lates(points, line)
        return max(late) - min(late) <= width

    # -- beside the line ----------------------------------------------------------------------------------------

    @property
    def _far_frames(self) -> float:
        """How far an observation may lie from the line at all: one of the few of a slow source twice as far."""
        return FAR_SECONDS * self.samplerate * (2 if self._slow else 1)

    def _near(self, late: float) -> bool:
        if self.exact:
            return -1.5 <= late <= self._band + 0.5
        most = min(max(5 * self.spread_frames, NEAR_SECONDS * self.samplerate), self._far_frames)
        if self._slow and len(self._points) < SETTLED:
            most = self._far_frames
        return -most <= late <= most

    def _judge_strays(self) -> Found:
        """Decide whether observations beside the line agree on another one."""
        strays = list(self._strays)
        enough = EXACT_STRAYS if self.exact else STAMPED_STRAYS - self._slow
        if len(strays) < enough:
            return Found.STRAY
        found = self._exact_move(strays[-enough:]) if self.exact else self._stamped_move(strays, enough)
        if found is Found.STRAY and len(strays) >= (KEPT_STRAYS if self.exact else LOST_STRAYS):
            self._restart(self._rough or self.exact)
            self._points = deque(strays[-KEPT_STRAYS // 2 :], maxlen=KEPT_STAMPED)
            return Found.LOST
        return found

    def _exact_move(self, strays: list[Point]) -> Found:
        assert self.line is not None
        line = self._through(strays)
        if line is None or not self._collinear(strays, line, self._band + 0.5):
            return Found.STRAY
        old = self.line
        off = abs(_lates(strays[:1], old)[0])
        whole = [*self._points, *strays]
        tempo = self._snapped(whole) if off <= BESIDE * self._band else None
        if tempo is not None:  # it was one line all along, and not this one
            self._points, self.line = deque(whole, maxlen=KEPT_EXACT), self._placed(whole, tempo)
            self._strays.clear()
            return Found.FITS
        if self._collinear(strays, old, self._band + 0.5):
            moved = replace(line, tempo=old.tempo)
            return self._jump(moved, strays)
        if off > FAR_SECONDS * self.samplerate:
            return self._jump(line, strays)
        joint = [*list(self._points)[-1:], *strays]
        self._points = deque(joint if self._collinear(joint, line, self._band + 0.5) else strays, maxlen=KEPT_EXACT)
        self._strays.clear()
        self.line, self._extent = line, None
        self._refine(strays[-1])
        return Found.FITS

    def _stamped_move(self, strays: list[Point], enough: int) -> Found:
        """Judge stamped observations beside the line: the newest of them that agree, if they are enough."""
        assert self.line is not None
        old, rate = self.line, self.samplerate
        width = max(6 * self.spread_frames, 2 * NEAR_SECONDS * rate)
        while len(strays) >= enough:
            span = (strays[-1][0] - strays[0][0]) / rate
            if span < TOLD_LOCK_SECONDS / 2:
                return Found.STRAY
            if self._collinear(strays, old, max(width, PARALLEL * span * rate)):
                mean = sum(_lates(strays, old)) / len(strays)
                if abs(mean) > self._far_frames:
                    return self._jump(_early(strays, old), strays)
                if mean > 0 and span < JAM_SECONDS and not self._slow:
                    return Found.STRAY
                return self._shift(strays)
            line = self._through(strays)
            if line is not None and len(strays) >= STAMPED_LOCK and self._collinear(strays, line, width):
                return self._jump(line, strays)
            strays = strays[1:]
        return Found.STRAY

    def _shift(self, strays: list[Point]) -> Found:
        """Take over a line near the old one, in its tempo unless what lies on it moves in another."""
        assert self.line is not None
        found = self._through(strays)
        line = self.line
        if found is not None and not self._agrees(line.tempo, float(found.tempo), strays):
            line = replace(line, tempo=self._roundest(float(found.tempo), self._unsure(strays)))
        self.line = _early(strays, line)
        self._points = deque(strays, maxlen=KEPT_STAMPED)
        self._strays.clear()
        return Found.FITS

    def _jump(self, line: Timeline, points: list[Point]) -> Found:
        self.before, self.line, self._fold, self._extent = self.line, line, None, None
        self.since = points[0][0]
        self._points = deque(points, maxlen=KEPT_EXACT if self.exact else KEPT_STAMPED)
        self._strays.clear()
        self._refine(points[-1])
        return Found.JUMPED

    # -- on the line --------------------------------------------------------------------------------------------

    def _keep(self, point: Point) -> None:
        """Keep an observation if it is not too near to the last one that was kept."""
        apart = KEPT_FRAMES if self.exact else round(KEPT_SECONDS * self.samplerate)
        if self._points and point[0] - self._points[-1][0] < apart:
            return
        if self.exact and len(self._points) == KEPT_EXACT:  # the longest view is the sharpest: thin it out
            points = list(self._points)
            old = points[: KEPT_EXACT // 2]
            self._points = deque([*old[::2], *points[KEPT_EXACT // 2 :]], maxlen=KEPT_EXACT)
        self._points.append(point)

    def _refine(self, point: Point) -> None:
        if self.exact:
            self._refine_exact(point)
        elif len(self._points) < 2 * SETTLED or abs(point.frame - self._laid) >= LAID_SECONDS * self.samplerate:
            self._laid = point.frame
            self._lay()

    def _refine_exact(self, point: Point) -> None:
        """Hold the line while it explains every observation to the frame; else find the one that does."""
        assert self.line is not None
        self.spread_frames, self.unsure_frames = self._band / 2, 0.0
        if self._explained(point, self.line):
            return
        points = list(self._points)
        if points[-1] != point:
            points.append(point)
        if self._explains_recent(points, self.line):
            return
        while len(points) >= 2:
            tempo = self._snapped(points)
            if tempo is not None:
                self.line = self._placed(points, tempo)
                break
            points = points[(len(points) + 1) // 2 :]
        else:
            return
        self._points = deque(points, maxlen=KEPT_EXACT)

    def _explained(self, point: Point, line: Timeline) -> bool:
        """Whether a line lies where all observations so far, rounded in one way, allow it."""
        extent = self._extent
        if extent is None or extent.tempo != line.tempo:
            return False
        place = point.frame - point.beat * 60 * self.samplerate / line.tempo
        extent = self._extent = extent.with_place(place, point.frame)
        if self._doubtful(line.tempo, list(self._points)):
            return False
        return self._lies(line, extent)

    def _lies(self, line: Timeline, extent: _Extent) -> bool:
        """Whether a line lies where observations, rounded in one way, allow it; learns which way that is."""
        origin, slack = line.position(Fraction(0)), extent.slack
        ways = [way for way, (low, high) in self._allowed(extent).items() if low - slack <= origin <= high + slack]
        if len(ways) == 1 and extent.last - extent.first >= ROUNDING_SECONDS * self.samplerate:
            self._rounding = ways[0]
        return bool(ways)

    def _explains_recent(self, points: list[Point], line: Timeline) -> bool:
        """Whether the line holds for the later half of what was observed: then it is the earlier that is outdated."""
        recent = points[len(points) // 2 :]
        if len(recent) < LONG:
            return False
        extent = _extent(recent, line.tempo, self.samplerate)
        if not self._lies(line, extent):
            return False
        self._points, self._extent = deque(recent, maxlen=KEPT_EXACT), extent
        return True

    def _doubtful(self, tempo: Fraction, points: list[Point]) -> bool:
        """Whether a rounder tempo is possible than that of a line laid through a few observations."""
        return tempo.denominator > 1000 and len(points) <= 2 * EXACT_LOCK

    def _allowed(self, extent: _Extent) -> dict[int, tuple[Fraction, Fraction]]:
        """Return where beat 0 may lie, by how frames were rounded: to the nearest (0), down (1), up (2)."""
        grain, half = Fraction(self._band - 1.0), Fraction(1, 2)
        least, most = extent.least, extent.most
        ways = {
            0: (most - grain - half, least + half),
            1: (most - grain, least + 1 - _OPEN),  # rounded down, it is not a whole frame earlier than where it is
            2: (most - grain - 1 + _OPEN, least),
        }
        found = {way: (low, high) for way, (low, high) in ways.items() if low <= high + extent.slack}
        if self._rounding in found:
            return {self._rounding: found[self._rounding]}
        self._rounding = None
        return found

    def _snapped(self, points: list[Point]) -> Fraction | None:
        """Return the roundest tempo in which all observations lie on a line to the frame, if there is one."""
        bounds = self._bounds(points)
        if bounds is None:
            return None
        low, high = bounds
        current, middle = self.line.tempo if self.line is not None else None, Fraction((low + high) / 2)
        candidates = [self.told, current if current is not None and 1000 % current.denominator == 0 else None]
        candidates += [round(middle / step) * step for step in TEMPO_STEPS]
        candidates += [current, middle.limit_denominator(TEMPO_DENOMINATOR)]
        for tempo in candidates:
            if tempo is not None and low <= tempo <= high and SLOWEST_BPM <= tempo <= FASTEST_BPM:
                extent = _extent(points, tempo, self.samplerate)
                if extent.most - extent.least <= Fraction(self._band) + extent.slack:
                    return tempo
        return None

    def _bounds(self, points: list[Point]) -> tuple[float, float] | None:
        """Return between which tempi any two observations, each right to the frame, leave room, if they do."""
        step = max(1, len(points) // BOUNDING)
        chosen = points[::-step][::-1]
        frames = np.array([float(point.frame - chosen[0].frame) for point in chosen])
        beats = np.array([point.near - chosen[0].near for point in chosen])
        before, after = np.triu_indices(len(chosen), 1)
        between, passed = frames[after] - frames[before], beats[after] - beats[before]
        if not len(passed) or passed.min() <= 0:
            return None
        room = self._band + BOUNDING_ROOM
        shortest, longest = float(((between - room) / passed).max()), float(((between + room) / passed).min())
        if longest <= 0 or shortest > longest:
            return None
        minute = 60.0 * self.samplerate
        return minute / longest, minute / max(shortest, minute / (2 * FASTEST_BPM))

    def _placed(self, points: list[Point], tempo: Fraction) -> Timeline:
        """Return the line of a tempo; beat 0 is on a whole frame if it may be, as where a DAW's song begins."""
        extent = self._extent = _extent(points, tempo, self.samplerate)
        allowed = self._allowed(extent)
        middles = [(low + high) / 2 for low, high in allowed.values()] or [(extent.least + extent.most) / 2]
        place = middles[0]
        for low, high in allowed.values():
            whole = round((low + high) / 2)
            if low - _EXACT <= whole <= high + _EXACT:
                place = Fraction(whole)
                break
        beat = points[0].beat
        frame = (place + beat * 60 * self.samplerate / tempo).limit_denominator(POSITION_DENOMINATOR)
        return Timeline(self.samplerate, tempo, frame=frame, beat=beat)

    def _lay(self) -> None:
        """Lay the line of stamped observations: their tempo, and the early edge of when they came."""
        assert self.line is not None
        points = list(self._points)
        if len(points) < SETTLED:
            self._settle_few(points)
            return
        points = self._since_change(points)
        slope, _, spread = _fitted(points)
        if slope <= 0:
            return
        self.spread_frames = max(spread, LEAST_SPREAD_SECONDS * self.samplerate)
        tempo = self._believed(points, slope)
        recent = [p for p in points if points[-1][0] - p[0] <= PHASE_SECONDS * self.samplerate]
        here = recent[-1]
        line = Timeline(self.samplerate, tempo, frame=Fraction(here.frame), beat=here.beat)
        late = sorted(_lates(recent, line))
        self.unsure_frames = self.spread_frames / math.sqrt(len(late))
        edge = late[: max(3, len(late) // 10)]
        self.line = replace(line, frame=line.frame + Fraction(sum(edge) / len(edge)).limit_denominator(1000))

    def _settle_few(self, points: list[Point]) -> None:
        """While there are few, the line moves only if all of them lie beside it."""
        assert self.line is not None
        late = _lates(points, self.line)
        self.unsure_frames = self.spread_frames / math.sqrt(len(late))
        if len(late) >= 3 and (min(late) > NEAR_SECONDS * self.samplerate or max(late) < 0):
            shift = Fraction(min(late)).limit_denominator(1000)
            self.line = replace(self.line, frame=self.line.frame + shift)

    def _since_change(self, points: list[Point]) -> list[Point]:
        """Return the observations since the tempo last changed: a line through all leaves the last ones beside it."""
        while len(points) >= 2 * SETTLED:
            recent = points[-SETTLED:]
            slope, at, _ = _fitted(points[:-SETTLED])
            spread = max(_fitted(points[-2 * SETTLED :])[2], LEAST_SPREAD_SECONDS * self.samplerate)
            first = points[0]
            ahead = [point.frame - first.frame - at - (point.near - first.near) * slope for point in recent]
            reach = (recent[-1].near - first.near) / max(points[-SETTLED - 1].near - first.near, 1e-9)
            if abs(sum(ahead) / SETTLED) <= 4 * spread / math.sqrt(SETTLED) * reach + 0.0005 * self.samplerate:
                break
            points = recent
        if len(points) < len(self._points):
            self._points = deque(points, maxlen=KEPT_STAMPED)
        return points

    def _believed(self, points: list[Point], slope: float) -> Fraction:
        """Return the tempo to go by: the claimed one if the position moves so, else the one that held unless it is
        refuted, else the roundest that may be.
        """
        assert self.line is not None
        measured, unsure, many = 60 * self.samplerate / slope, self._unsure(points), len(points) >= 2 * SETTLED
        if self.told is not None and self.told != self._disbelieved:
            off = abs(float(self.told) / measured - 1)
            if off <= SURE * unsure + TOLD_OFF:
                self._held = self.told
                return self.told
            if many and off > 2 * SURE * unsure + 4 * TOLD_OFF:
                self._disbelieved = self.told
                self.contradicted += 1
        held = self._held
        if held is not None and (self._agrees(held, measured, points) or (not many and held == self.line.tempo)):
            return held
        tempo = self._roundest(measured, unsure)
        if many:
            self._held = tempo
        return tempo

    def _roundest(self, measured: float, unsure: float) -> Fraction:
        """Return the roundest tempo within two standard errors of a measured one, else that."""
        for step in TEMPO_STEPS:
            tempo = round(Fraction(measured) / step) * step
            if abs(float(tempo) / measured - 1) <= 2 * unsure and SLOWEST_BPM <= tempo <= FASTEST_BPM:
                return tempo
        tempo = Fraction(measured).limit_denominator(TEMPO_DENOMINATOR)
        return min(max(tempo, Fraction(SLOWEST_BPM)), Fraction(FASTEST_BPM))


def _lates(points: list[Point], line: Timeline) -> list[float]:
    """Return by how many frames each observation comes after the line."""
    whole, beat, slope = math.floor(line.frame), float(line.beat), float(line.beat_frames)
    part = float(line.frame - whole)
    return [point.frame - whole - part - (point.near - beat) * slope for point in points]


def _early(points: list[Point], line: Timeline) -> Timeline:
    """Return a line parallel to this one through the earliest of observations."""
    late = _lates(points, line)
    point = points[late.index(min(late))]
    return replace(line, frame=Fraction(point.frame), beat=point.beat)


def _fitted(points: list[Point]) -> tuple[float, float, float]:
    """Return the least-squares line of frames over beats, both counted from the first point: slope (frames a beat),
    frame at the first beat, and how far (rms) the points lie from it.
    """
    first = points[0]
    frames = np.array([float(point.frame - first.frame) for point in points])
    beats = np.array([point.near - first.near for point in points])
    middle = beats - beats.mean()
    power = float(middle @ middle)
    if power <= 0:
        return 0.0, 0.0, 0.0
    slope = float(middle @ frames) / power
    start = float(frames.mean() - slope * beats.mean())
    left = frames - start - slope * beats
    return slope, start, math.sqrt(float(left @ left) / max(1, len(points) - 2))


def _extent(points: list[Point], tempo: Fraction, samplerate: int) -> _Extent:
    """Return where beat 0 is by each of the observations, if this is the tempo."""
    beat_frames = 60 * samplerate / tempo
    first, length = points[0], float(beat_frames)
    off = [point.frame - first.frame - (point.near - first.near) * length for point in points]
    origin = first.frame - first.beat * beat_frames
    return _Extent(tempo, origin + Fraction(min(off)), origin + Fraction(max(off)), first.frame, points[-1].frame)
