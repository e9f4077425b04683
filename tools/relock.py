"""A DAW that is killed in mid-song and comes back, in virtual time: how soon the band is with it, and what it counts.

What a DAW would say (MIDI clock in bytes, OSC messages, JACK's cycles) goes through the readers of a session into its
follower; what that wants goes to the engine's own transport. The bar lines that come of it are compared with the
DAW's. Tempo, meter, when it dies, for how long, and where it comes back are drawn from a seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from bridge.follower import Follower
from bridge.jackclock import TransportReader
from bridge.midiclock import CLOCK, CONTINUE, SONG_POSITION, START, STOP, TICKS, ClockReader, Tick
from bridge.profiles import ProfileSource, dialect
from bridge.sync import Observation, SessionClock
from realtime.buffers import join_frames
from realtime.clock import Anchor, Meter, TempoMap, Timeline, Transport, round_frame
from realtime.engine import Command

RATE = 48_000
SECOND_NS = 10**9
LEAD, TURN = 1024, 128
NOTICE = LEAD + 2 * join_frames(RATE)
"""How early the engine must know, counted from what it mixes next."""
REACH = 2 * LEAD + 2 * TURN + 2 * join_frames(RATE)
TURN_SECONDS, POLL_SECONDS = 0.010, 0.020
ORIGIN_NS = 7 * SECOND_NS
"""Host time of session frame 0."""
WARM_TURNS = 300
CLOCK_LATE_SECONDS, CABLE_LATE_SECONDS = 30e-6, 0.5e-3
OSC_LATE_SECONDS, OSC_PERIOD, JACK_PERIOD = 0.004, 256, 1024
JACK_OFFSET = 123_456_789
"""JACK's frame less the session's."""
SETTLE_BARS = 3
"""In so many the band is with the DAW that it met first."""
AFTER_BARS = 6
NEAR_SECONDS = 0.010
"""A bar line of the band's further from the DAW's is not on it."""
METERS = (Meter(4, 4), Meter(4, 4), Meter(3, 4), Meter(7, 8), Meter(5, 4), Meter(6, 8))
RENAMED_SECONDS = 3.5
"""No program is restarted faster, to speak from another port; one that was would be a second sender at first."""
WAYS = ("from the start", "where it died", "elsewhere")
ON = "as if nothing had been"


@dataclass(frozen=True, slots=True)
class Case:
    """One death and one return.

    Attributes
    ----------
    kind
        How the DAW speaks: a key of :data:`SPEAKERS`.
    way
        Where it comes back: one of :data:`WAYS`, or :data:`ON`.
    plan
        The session's own tempo map.
    first
        The song before the death, and its line; it begins at its frame.
    after
        The song from the return on; it begins at its frame, unless it went on all the time.
    dies, returns, ends
        Session frames.
    said_stop
        Whether its last word was that it stops.
    renamed
        Whether it speaks from another port when it is back.
    seed
        Of what is late.
    """

    kind: str
    way: str
    plan: TempoMap
    first: Timeline
    after: Timeline
    dies: int
    returns: int
    ends: int
    said_stop: bool
    renamed: bool
    seed: int

    def parts(self) -> list[tuple[int, int, Timeline]]:
        """Return when it rolls, from a frame to another, and on which line."""
        return [(int(self.first.frame), self.dies, self.first), (self.returns, self.ends, self.after)]


def tempo(chance: random.Random) -> Fraction:
    """Return a tempo as people choose them: mostly whole."""
    return Fraction(str(round(chance.uniform(70, 170), chance.choice((0, 0, 1, 2, 3)))))


def draw(kind: str, seed: int) -> Case:
    """Return a case."""
    chance = random.Random(f"{kind} {seed}")
    meter, bpm = chance.choice(METERS), tempo(chance)
    plan = TempoMap.steady(RATE, chance.choice((bpm, tempo(chance))), meter)
    begins = round(chance.uniform(0.5, 1.5) * RATE)
    first = Timeline(RATE, bpm, meter, Fraction(begins), bar=0)
    bar_frames = float(meter.beats * first.beat_frames)
    dies = begins + round(chance.uniform(SETTLE_BARS + 1, SETTLE_BARS + 6) * bar_frames)
    away = chance.choice((chance.uniform(0.3, 3), chance.uniform(3, 8), chance.uniform(8, 15)))
    renamed = away > RENAMED_SECONDS and chance.random() < 0.5
    returns = dies + round(away * RATE)
    way = chance.choice((*WAYS, ON) if SPEAKERS[kind].rejoins else WAYS)
    said_stop = way != ON and chance.random() < 0.3
    if way == ON:
        after, bar_after = first, bar_frames
    else:
        again = bpm if chance.random() < 0.75 else tempo(chance)
        beat = _place(chance, way, first, dies)
        after = Timeline(RATE, again, meter, Fraction(returns), beat)
        bar_after = float(meter.beats * after.beat_frames)
    ends = returns + round((AFTER_BARS + 1) * bar_after)
    return Case(kind, way, plan, first, after, dies, returns, ends, said_stop, renamed, seed)


def _place(chance: random.Random, way: str, first: Timeline, dies: int) -> Fraction:
    """Return the beat of the song at which the DAW comes back: a sixteenth, as a song position cannot say more."""
    if way == "from the start":
        return Fraction(0)
    if way == "where it died":
        return Fraction(math.floor(first.beat_at(dies) * 4), 4)
    return Fraction(chance.randrange(4 * 800), 4)


# -- what it says ----------------------------------------------------------------------------------------------------


def host_ns(frame: float | Fraction) -> int:
    """Host time of a session frame."""
    return ORIGIN_NS + round(frame * SECOND_NS / RATE)


Said = list[tuple[int, Observation]]
"""When it is heard (host time), and what was understood."""


def midi_bytes(case: Case) -> Iterator[tuple[int, bytes]]:
    """Yield a DAW's MIDI clock: frames and messages."""
    for part, (begins, ends, line) in enumerate(case.parts()):
        beat = line.beat_at(begins)
        if part == 0 or case.way != ON:
            if beat:
                sixteenth = int(beat * 4)
                yield begins, bytes((SONG_POSITION, sixteenth & 0x7F, sixteenth >> 7))
            yield begins, bytes((CONTINUE if beat else START,))
        tick = math.ceil(beat * TICKS)
        while (frame := round_frame(line.position(Fraction(tick, TICKS)))) < ends:
            yield frame, bytes((CLOCK,))
            tick += 1
        if part == 0 and case.said_stop:
            yield ends, bytes((STOP,))


def through_jack(case: Case) -> Said:
    """Hear MIDI clock by the frames of the audio server's clock."""
    reader, said = ClockReader(case.kind, RATE), []
    for frame, message in midi_bytes(case):
        heard_ns = host_ns(-(-frame // JACK_PERIOD) * JACK_PERIOD)
        when = Tick(host_ns(frame), frame + JACK_OFFSET, frame)
        said += [(heard_ns, each) for each in reader.feed(message, when)]
    return said


def over_a_cable(case: Case) -> Said:
    """Hear MIDI clock by the time at which it comes."""
    reader, chance, said = ClockReader(case.kind, RATE), random.Random(case.seed), []
    latest = 0
    for frame, message in midi_bytes(case):
        late = chance.expovariate(1 / CABLE_LATE_SECONDS) * SECOND_NS
        latest = max(latest, host_ns(frame) + round(late))  # a cable keeps the order
        said += [(latest, each) for each in reader.feed(message, Tick(latest))]
    return said


Words = Callable[[Timeline, int], list[tuple[str, tuple[Any, ...]]]]
"""What a program says at a frame of a line."""


@dataclass(frozen=True, slots=True)
class Program:
    """How a program speaks OSC: what it says when it rolls, as it goes, how often, and when it stops."""

    dialect: str
    rolls: Words
    goes: Words
    every_seconds: float
    stops: tuple[str, tuple[Any, ...]]


def over_osc(case: Case, program: Program) -> Said:
    """Hear a program's OSC: as of the beginning of an audio period, and late by some."""
    source = ProfileSource(case.kind, dialect(program.dialect), case.plan, lambda address, arguments: None)
    chance, said, port = random.Random(case.seed), [], 40_000

    def hear(frame: int, messages: list[tuple[str, tuple[Any, ...]]]) -> None:
        heard_ns = host_ns(frame) + round(chance.uniform(0, OSC_LATE_SECONDS) * SECOND_NS)
        for address, arguments in messages:
            observation = source.take(address, arguments, heard_ns, ("127.0.0.1", port))
            if observation is not None:
                said.append((heard_ns, observation))

    for part, (begins, ends, line) in enumerate(case.parts()):
        port += part * case.renamed
        at = -(-begins // OSC_PERIOD) * OSC_PERIOD
        if part == 0 or case.way != ON:
            hear(at, program.rolls(line, at))
        step = program.every_seconds * RATE
        for index in range(1 + int((ends - 1 - at) / step)):
            frame = (at + round(index * step)) // OSC_PERIOD * OSC_PERIOD
            hear(frame, program.goes(line, frame))
        if part == 0 and case.said_stop:
            hear(ends, [program.stops])
    return sorted(said, key=lambda one: one[0])


def counted(line: Timeline, frame: int) -> tuple[int, int, Fraction]:
    """Return a place as people read it: bar and beat from 1, of the meter's own notes, and what part of a beat."""
    beat = line.beat_at(frame)
    bar = line.bar_at(beat)
    inside = (beat - line.downbeat(bar)) * line.meter.unit / 4
    return bar + 1, int(inside) + 1, inside % 1


def _ardour(line: Timeline, frame: int) -> list[tuple[str, tuple[Any, ...]]]:
    bar, beat, part = counted(line, frame)
    ticks = int(part * 1920 * 4 / line.meter.unit)  # of a quarter note, whatever the meter counts
    return [("/position/bbt", (f"{bar:03d}|{beat:02d}|{ticks:04d}",))]


def _reaper(line: Timeline, frame: int) -> list[tuple[str, tuple[Any, ...]]]:
    bar, beat, part = counted(line, frame)
    return [("/beat/str", (f"{bar}.{beat}.{int(part * 100):02d}",))]


def _live(line: Timeline, frame: int) -> list[tuple[str, tuple[Any, ...]]]:
    return [("/live/song/get/current_song_time", (float(line.beat_at(frame)),))]


def _live_rolls(line: Timeline, frame: int) -> list[tuple[str, tuple[Any, ...]]]:
    prefix = "/live/song/get/"
    return [
        (prefix + "signature_numerator", (line.meter.count,)),
        (prefix + "signature_denominator", (line.meter.unit,)),
        (prefix + "tempo", (float(line.tempo),)),
        (prefix + "is_playing", (1,)),
    ]


ARDOUR = Program(
    "ardour", lambda line, frame: [("/transport_play", (1,))], _ardour, 0.0995, ("/transport_stop", (1,))
)
REAPER = Program(
    "reaper",
    lambda line, frame: [("/tempo/raw", (float(line.tempo),)), ("/play", (1.0,))],
    _reaper,
    1 / 30,
    ("/stop", (1.0,)),
)
LIVE = Program("live", _live_rolls, _live, 0.1, ("/live/song/get/is_playing", (0,)))


def by_transport(case: Case) -> Said:
    """Hear JACK's transport with another client that says bars and beats: a cycle now and then, as it is polled."""
    reader, said, before = TransportReader(case.kind, case.plan), [], -1
    for part, (begins, ends, line) in enumerate(case.parts()):
        at = float(begins)
        while at < ends + RATE / 10:
            frame = int(at) // JACK_PERIOD * JACK_PERIOD
            rolling = begins <= frame < ends
            if frame != before and (rolling or (part == 0 and case.said_stop and frame >= ends)):
                before = frame
                observation = reader.read(_cycle(line, frame, rolling), frame)
                if observation is not None:
                    said.append((host_ns(frame), observation))
            at += POLL_SECONDS * RATE
    return said


def _cycle(line: Timeline, frame: int, rolling: bool) -> dict[str, Any]:
    bar, beat, part = counted(line, frame)
    return {
        "frame": frame + JACK_OFFSET, "time_ns": host_ns(frame), "period": JACK_PERIOD, "samplerate": RATE,
        "rolling": rolling, "position": round(line.beat_at(frame) * line.beat_frames), "bbt": 1, "bar": bar,
        "beat": beat, "tick": int(part * 1920), "bbt_offset": 0, "ticks_per_beat": 1920.0,
        "beats_per_bar": float(line.meter.count), "beat_type": float(line.meter.unit),
        "beats_per_minute": float(line.tempo * line.meter.unit / 4),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Speaker:
    """A way in which a DAW says its time: what is understood of it, and whether one that lost it finds back in."""

    hear: Callable[[Case], Said]
    rejoins: bool = True


SPEAKERS = {
    "midi clock through JACK": Speaker(through_jack),
    "midi clock by cable": Speaker(over_a_cable, rejoins=False),  # nobody says where it is until it starts again
    "JACK transport": Speaker(by_transport),
    "OSC, Ardour": Speaker(lambda case: over_osc(case, ARDOUR)),
    "OSC, REAPER": Speaker(lambda case: over_osc(case, REAPER)),
    "OSC, Live": Speaker(lambda case: over_osc(case, LIVE)),
}


# -- what the band makes of it ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BarLine:
    """One bar line of the band's.

    Attributes
    ----------
    frame, bar
        Where it is, and what it is called in the song.
    plays
        Whether the band plays from there.
    anchors
        How many anchors had led to it.
    """

    frame: int
    bar: int
    plays: bool
    anchors: int


class Band:
    """The engine's transport, led by commands, and the bar lines that come of it."""

    def __init__(self, plan: TempoMap) -> None:
        self.lines: list[BarLine] = []
        self._transport = Transport(plan, NOTICE)
        self._anchored: list[int] = []  # for each anchor the first bar that it led to
        self._plays_from: int | None = 0  # bar
        self._next: int | None = None  # frame of the bar line that is next, until something moves it

    def take(self, command: Command, frame: int) -> None:
        """Carry a command out while ``frame`` leaves for the loudspeaker."""
        if command.do == "anchor" and command.anchor is not None:
            self._anchored.append(self._transport.anchor(command.anchor, frame + LEAD)[0])
            self._next = None
        elif command.do == "rest" and command.value:
            self._plays_from = None
        elif command.do == "rest" and self._plays_from is None:
            here = self._transport.map.moment(frame + LEAD)
            self._plays_from = max([here.bar + (here.beat > 0), *self._anchored[-1:]])

    def advance(self, frame: int) -> None:
        """Play up to a frame."""
        while (at := self._next_frame()) <= frame:
            bar, self._next = len(self.lines), None
            plays = self._plays_from is not None and bar >= self._plays_from
            led = sum(first <= bar for first in self._anchored)
            self.lines.append(BarLine(at, self._transport.map.song_bar(bar), plays, led))

    def _next_frame(self) -> int:
        if self._next is None:
            self._next = self._transport.map.bar_frame(len(self.lines))
        return self._next


def play(case: Case, tamper: Callable[[Command, int], Command | None] = lambda command, frame: command) -> Band:
    """Let a band follow a case; ``tamper`` may change a command, or drop it, for a test of the figures."""
    clock, chance, band = SessionClock(RATE), random.Random(case.seed), Band(case.plan)
    follower = Follower(clock, case.plan, (case.kind,), notice_frames=REACH)
    said = iter(SPEAKERS[case.kind].hear(case))
    heard = next(said, None)
    turn_ns = round(TURN_SECONDS * SECOND_NS)

    def tell_time(now_ns: int) -> int:
        frame = (now_ns - ORIGIN_NS) * RATE // SECOND_NS
        clock.observe(now_ns + round(chance.expovariate(1 / CLOCK_LATE_SECONDS) * SECOND_NS), frame)
        return frame

    for back in range(WARM_TURNS, 0, -1):
        tell_time(ORIGIN_NS - back * turn_ns)
    for now_ns in range(ORIGIN_NS, host_ns(case.ends), turn_ns):
        frame = tell_time(now_ns)
        while heard is not None and heard[0] <= now_ns:
            follower.take(heard[1])
            heard = next(said, None)
        for command in follower.step(now_ns):
            changed = tamper(command, frame)
            if changed is not None:
                band.take(changed, frame)
        band.advance(frame)
    return band


# -- what is judged --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Return:
    """How a band took a DAW's return.

    Attributes
    ----------
    case
        What happened.
    bars
        Bar lines of the DAW's that went by from its return on until the band was with it to stay. With 1 everything
        is right from one bar after the return on: that is what can be had of a DAW that returns on a bar line, or
        right before one. Infinite if the band never was with it.
    elapsed_bars
        The same as time: from the return to the bar line on which they were together.
    wrong
        Bar lines that were called wrongly, before, in between or after. Between the death and the first anchor after
        the return the band counts on by itself, which is right whatever the DAW does then.
    off_seconds
        By how much each bar line lies beside the DAW's from then on.
    """

    case: Case
    bars: float
    elapsed_bars: float
    wrong: int
    off_seconds: tuple[float, ...]


def judge(case: Case, lines: Sequence[BarLine]) -> Return:
    """Compare the band's bar lines with the DAW's."""
    settled = case.first.frame_at(case.first.downbeat(SETTLE_BARS))
    wrong = sum(not _named(case.first, line) for line in lines if settled <= line.frame < case.dies and line.plays)
    before = max((line.anchors for line in lines if line.frame < case.returns), default=0)
    last_bar = max((line.bar for line in lines if line.frame < case.dies), default=0)
    since: list[BarLine] = []
    for line in lines:
        if line.frame < case.dies or line.frame >= case.ends:
            continue
        on_its_own = line.anchors <= before and line.bar == last_bar + 1
        there = line.frame >= case.returns and _named(case.after, line)
        wrong += line.plays and not (on_its_own or there)
        last_bar = line.bar
        if line.frame >= case.returns:
            since.append(line)
    lost = [index for index, line in enumerate(since) if not (line.plays and _met(case.after, line))]
    met = since[lost[-1] + 1 :] if lost else since
    if not met:
        return Return(case, math.inf, math.inf, wrong, ())
    near = round(NEAR_SECONDS * RATE)
    passed = sum(
        case.returns <= frame < met[0].frame - near for frame in bar_frames(case.after, case.returns, case.ends)
    )
    elapsed = (met[0].frame - case.returns) / float(case.after.meter.beats * case.after.beat_frames)
    return Return(case, passed, elapsed, wrong, tuple(_beside(case.after, line) for line in met))


def bar_frames(line: Timeline, first: int, end: int) -> list[int]:
    """Return the frames of a line's bar lines in a stretch of time."""
    bar, frames = line.bar_at(line.beat_at(first)), []
    while (frame := line.frame_at(line.downbeat(bar))) < end:
        if frame >= first:
            frames.append(frame)
        bar += 1
    return frames


def _nearest(song: Timeline, frame: int) -> int:
    return song.bar_at(song.beat_at(frame) + song.meter.beats / 2)


def _named(song: Timeline, line: BarLine) -> bool:
    """Whether a bar line has the number of the DAW's that is nearest to it."""
    return line.bar == _nearest(song, line.frame)


def _beside(song: Timeline, line: BarLine) -> float:
    """Return by how many seconds a bar line lies beside the DAW's of the same number."""
    return abs(line.frame - song.frame_at(song.downbeat(line.bar))) / RATE


def _met(song: Timeline, line: BarLine) -> bool:
    return _named(song, line) and _beside(song, line) <= NEAR_SECONDS


@dataclass(slots=True)
class Figures:
    """What became of many cases.

    Attributes
    ----------
    returns
        Each of them.
    """

    returns: list[Return] = field(default_factory=list)

    @property
    def worst_bars(self) -> float:
        """Most bar lines that went by."""
        return max((one.bars for one in self.returns), default=0)

    @property
    def wrong(self) -> int:
        """Bar lines that were called wrongly."""
        return sum(one.wrong for one in self.returns)

    def of_kind(self, kind: str) -> list[Return]:
        """Return those of one way to speak."""
        return [one for one in self.returns if one.case.kind == kind]


def relock(cases_each: int, seed: int = 1, kinds: Sequence[str] = tuple(SPEAKERS)) -> Figures:
    """Play so many cases of each kind."""
    figures = Figures()
    for kind in kinds:
        for number in range(cases_each):
            case = draw(kind, seed * 1_000_000 + number)
            figures.returns.append(judge(case, play(case).lines))
    return figures


def grid_moved(song_bars: int) -> Callable[[Command, int], Command]:
    """Return what makes every anchor name another bar: a fault to be found."""

    def move(command: Command, frame: int) -> Command:
        if command.anchor is None:
            return command
        at = command.anchor
        return Command("anchor", anchor=Anchor(at.frame, at.song_bar + song_bars, at.tempo, at.meter))

    return move
