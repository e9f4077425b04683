"""Following, in virtual time: simulated sources of every kind, a model of the engine that takes anchors, and what the
bars it plays are called and where they begin, against what the simulated DAW does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.follower import Follower
from bridge.sync import Observation, SessionClock
from realtime.clock import Anchor, Meter, TempoMap, Timeline, Transport, round_frame
from realtime.engine import Command

RATE = 48_000
SECOND = 10**9
STEP_NS = 20_000_000
REACH = 1024 + 2 * 256
FOUR, SEVEN, THREE, FIVE = Meter(4, 4), Meter(7, 8), Meter(3, 4), Meter(5, 4)
ZERO_NS = 7 * SECOND
"""Host time of session frame 0."""


# -- a DAW, by what is true -----------------------------------------------------------------------------------------


@dataclass
class Part:
    """From ``frame`` on the song is at ``line``; not rolling where there is none."""

    frame: int
    line: Timeline | None


class Daw:
    """What a DAW really does: start, stop, locate, tempi, meters, over session frames."""

    def __init__(self, tempo: float | str, meter: Meter = FOUR) -> None:
        self.parts: list[Part] = [Part(-(10**9), None)]
        self.tempo, self.meter = Fraction(tempo), meter
        self.beat = Fraction(0)
        self.bars = Timeline(RATE, self.tempo, meter)

    def play(self, seconds: float, beat: Fraction | int | None = None) -> Daw:
        frame = round(seconds * RATE)
        beat = self.beat_at(frame) if beat is None else Fraction(beat)
        beat = self.beat if beat is None else beat
        line = replace(self.bars, tempo=self.tempo, frame=Fraction(frame), beat=beat)
        self.parts.append(Part(frame, line))
        return self

    def stop(self, seconds: float) -> Daw:
        frame = round(seconds * RATE)
        here = self.beat_at(frame)
        self.beat = here if here is not None else self.beat
        self.parts.append(Part(frame, None))
        return self

    def turn(self, beat: int, tempo: float | str) -> Daw:
        """Another tempo from a beat on."""
        line = self.parts[-1].line
        assert line is not None
        self.tempo = Fraction(tempo)
        at = line.position(Fraction(beat))
        new = replace(line, tempo=self.tempo, frame=at, beat=Fraction(beat))
        self.parts.append(Part(math.ceil(at), new))
        return self

    def remeter(self, bar: int, meter: Meter) -> Daw:
        """Another meter from a bar on."""
        line = self.parts[-1].line
        assert line is not None
        beat = line.downbeat(bar)
        new = replace(line, meter=meter, bar=bar, bar_beat=beat, frame=line.position(beat), beat=beat)
        self.bars = new
        self.parts.append(Part(math.ceil(new.frame), new))
        return self

    def loop(self, seconds: float, first: int, end: int, rounds: int) -> Daw:
        """Play from bar ``first`` and go back to it at bar ``end``, so many times."""
        self.play(seconds, first * self.meter.beats)
        for _ in range(rounds):
            line = self.parts[-1].line
            assert line is not None
            at = line.position(end * self.meter.beats)
            new = replace(line, frame=at, beat=first * self.meter.beats)
            self.parts.append(Part(math.ceil(at), new))
        return self

    def line_at(self, frame: int) -> Timeline | None:
        return next(part.line for part in reversed(self.parts) if part.frame <= frame)

    def beat_at(self, frame: int) -> Fraction | None:
        line = self.line_at(frame)
        return line.beat_at(frame) if line is not None else None

    def since(self, frame: int) -> int:
        """Frame of the last change before a frame."""
        return max(part.frame for part in self.parts if part.frame <= frame)


# -- what it sends --------------------------------------------------------------------------------------------------


def ns(frame: int) -> int:
    return ZERO_NS + round(frame * SECOND / RATE)


def midi(
    daw: Daw, end: float, name: str = "midi", rounding: Callable[[Fraction], int] = round_frame
) -> list[Observation]:
    """MIDI clock through JACK: a tick every 24th, its frame exact but for its rounding; no tempo, no meter."""
    said = []
    for index, part in enumerate(daw.parts):
        if part.line is None:
            if index:
                said.append(Observation(name, ns(part.frame), playing=False, frame=part.frame))
            continue
        until = daw.parts[index + 1].frame if index + 1 < len(daw.parts) else round(end * RATE)
        before = daw.parts[index - 1].line
        fresh = before is None or before.beat_at(part.frame) != part.line.beat_at(part.frame)
        if before is not None and abs(before.beat_at(part.frame) - part.line.beat_at(part.frame)) < Fraction(1, 100):
            fresh = False
        tick = math.ceil(part.line.beat_at(part.frame) * 24)
        while (frame := rounding(part.line.position(Fraction(tick, 24)))) < until:
            said.append(
                Observation(name, ns(frame), beat=Fraction(tick, 24), playing=True, frame=frame, located=fresh)
            )
            tick, fresh = tick + 1, False
    return said


@dataclass
class Osc:
    """A DAW's position over OSC: 10 times a second, as of the beginning of an audio period, late by some."""

    name: str = "osc"
    period: int = 256
    every: float = 0.0995
    jitter: Callable[[random.Random], float] = lambda chance: chance.uniform(0, 0.004)
    tempo_told: bool = False
    meter_told: bool = False
    playing_told: bool = True
    loss: float = 0.0
    reorder: float = 0.0
    sender: str = ""
    seed: int = 1

    def __call__(self, daw: Daw, end: float, begin: float = 0.0) -> list[Observation]:
        chance = random.Random(self.seed)
        said: list[tuple[int, Observation]] = []
        rolling = None
        at = begin + 0.0131
        while at < end:
            frame = round(at * RATE) // self.period * self.period
            arrival = ns(round(at * RATE)) + round(self.jitter(chance) * SECOND)
            line = daw.line_at(frame)
            if (line is not None) != rolling and self.playing_told:
                rolling = line is not None
                said.append((arrival, Observation(self.name, arrival, playing=rolling, sender=self.sender)))
            if line is not None and chance.random() >= self.loss:
                beat = line.beat_at(frame)
                bar = line.bar_at(beat)
                ticks = (beat - line.downbeat(bar)) * 1920 // 1
                told = Observation(
                    self.name, arrival, bar=bar, bar_beat=Fraction(ticks, 1920), sender=self.sender,
                    tempo=line.tempo if self.tempo_told else None, meter=line.meter if self.meter_told else None,
                )  # fmt: skip
                late = round(0.15 * SECOND) if chance.random() < self.reorder else 0
                said.append((arrival + late, replace(told, time_ns=arrival + late)))
            at += self.every
        return [observation for _, observation in sorted(said, key=lambda pair: pair[0])]


# -- an engine, as far as anchors go --------------------------------------------------------------------------------


class Engine:
    """The engine's transport as it is, fed with commands; and when the band plays."""

    def __init__(self, song: TempoMap) -> None:
        self.transport = Transport(song, REACH)
        self.bars: list[tuple[int, int, bool]] = []  # frame of a bar line, bar of the song, whether the band plays
        self.anchors: list[tuple[int, Anchor]] = []
        self.rests: list[tuple[int, bool]] = []
        self._plays_from: int | None = -(10**9)
        self._bar = 0
        self._anchored = 0

    def take(self, command: Command, now: int) -> None:
        if command.do == "anchor":
            assert command.anchor is not None
            self.anchors.append((now, command.anchor))
            bar = self.transport.anchor(command.anchor, now)[0]
            self._anchored = self.transport.map.bar_frame(bar)
            return
        assert command.do == "rest"
        self.rests.append((now, bool(command.value)))
        self._plays_from = None if command.value else max(now, self._anchored)

    def advance(self, now: int) -> None:
        """Play up to a frame: note every bar line, what it is called, and whether the band plays."""
        while (frame := self.transport.map.bar_frame(self._bar)) <= now:
            plays = self._plays_from is not None and frame >= self._plays_from
            self.bars.append((frame, self.transport.map.song_bar(self._bar), plays))
            self._bar += 1


@dataclass
class Heard:
    """What came of a run."""

    engine: Engine
    follower: Follower
    told: list[str]

    def errors(self, daw: Daw, begin: float, end: float) -> list[tuple[int, int, float]]:
        """Bar lines played in a time: frame, how many bars the number is off, how many seconds the place is off."""
        found = []
        for frame, bar, playing in self.engine.bars:
            line = daw.line_at(frame)
            if playing and line is not None and begin * RATE <= frame < end * RATE:
                near = line.bar_at(line.beat_at(frame) + line.meter.beats / 2)
                found.append((frame, bar - near, (frame - line.frame_at(line.downbeat(near))) / RATE))
        return found


def run(
    said: Iterable[Observation],
    end: float,
    order: tuple[str, ...] = ("midi",),
    *,
    song: TempoMap | None = None,
    clock_jitter: float = 30e-6,
) -> Heard:
    """Play sources into a follower and its commands into an engine."""
    song = song or TempoMap.steady(RATE, 120)
    clock = SessionClock(RATE)
    told: list[str] = []
    following = Follower(clock, song, order, notice_frames=REACH + RATE // 50, tell=told.append)
    engine = Engine(song)
    chance = random.Random(5)
    waiting = list(said)
    if all(0 < observation.time_ns < 2**60 for observation in waiting):
        waiting.sort(key=lambda observation: observation.time_ns)
    index = 0
    now_ns = ZERO_NS
    # the clock has been running for a while when the song begins
    for back in range(300, 0, -1):
        time_ns = ZERO_NS - back * STEP_NS
        clock.observe(
            time_ns + round(chance.expovariate(1 / clock_jitter) * SECOND), round((time_ns - ZERO_NS) * RATE / SECOND)
        )
    while now_ns < ZERO_NS + end * SECOND:
        frame = round((now_ns - ZERO_NS) * RATE / SECOND)
        clock.observe(now_ns + round(chance.expovariate(1 / clock_jitter) * SECOND), frame)
        while index < len(waiting) and (waiting[index].time_ns <= now_ns or waiting[index].time_ns > 2**60):
            following.take(waiting[index])
            index += 1
        for command in following.step(now_ns):
            engine.take(command, frame)
        engine.advance(frame)
        now_ns += STEP_NS
    return Heard(engine, following, told)


def assert_exact(heard: Heard, daw: Daw, begin: float, end: float, bars: int) -> None:
    errors = heard.errors(daw, begin, end)
    assert len(errors) >= bars
    assert {(number, place) for _, number, place in errors} == {(0, 0.0)}


def assert_near(heard: Heard, daw: Daw, begin: float, end: float, bars: int, seconds: float = 0.005) -> None:
    errors = heard.errors(daw, begin, end)
    assert len(errors) >= bars
    assert {number for _, number, _ in errors} == {0}
    late = sorted(abs(place) for _, _, place in errors)
    assert late[math.ceil(0.99 * len(late)) - 1] <= seconds, late[-5:]


# -- exact sources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tempo", "meter"), [("97", SEVEN), ("120", FOUR), ("133.333", THREE), ("61.7", FIVE), ("400/7", FOUR)]
)
@pytest.mark.parametrize("rounding", [round_frame, math.floor, math.ceil])
def test_midi_clock_puts_every_bar_line_on_its_frame(
    tempo: str, meter: Meter, rounding: Callable[[Fraction], int]
) -> None:
    daw = Daw(tempo, meter).play(1.0101)
    song = TempoMap.steady(RATE, 120, meter)
    heard = run(midi(daw, 130, rounding=rounding), 130, song=song)
    assert_exact(heard, daw, 8 if tempo != "400/7" else 16, 130, 23)
    assert len(heard.engine.anchors) <= 6


def test_an_exact_source_is_not_anchored_again_without_need() -> None:
    daw = Daw("97", SEVEN).play(1)
    heard = run(midi(daw, 230), 230, song=TempoMap.steady(RATE, 97, SEVEN))
    assert_exact(heard, daw, 2, 230, 100)
    assert len(heard.engine.anchors) == 1
    assert heard.engine.rests == [(0, True), (heard.engine.anchors[0][0], False)]


def test_the_band_enters_within_a_bar_of_the_start_with_the_right_number() -> None:
    daw = Daw("120").play(2, beat=64)
    heard = run(midi(daw, 10), 10)
    playing = [(frame, bar) for frame, bar, plays in heard.engine.bars if plays]
    assert playing[0] == (2 * RATE + 2 * RATE, 17)


def test_stop_rests_at_once_and_continue_goes_on_where_it_stopped() -> None:
    daw = Daw("120").play(1).stop(9.3).play(15.7)
    heard = run(midi(daw, 30), 30)
    assert_exact(heard, daw, 2, 9, 3)
    assert_exact(heard, daw, 17, 30, 5)
    stopped = [frame for frame, resting in heard.engine.rests if resting]
    assert 0 <= stopped[1] - round(9.3 * RATE) <= RATE // 20
    assert not [bar for frame, bar, plays in heard.engine.bars if plays and 9.4 * RATE < frame < 15.7 * RATE]


def test_locate_while_it_rolls_is_followed_within_a_bar() -> None:
    daw = Daw("97", SEVEN).play(1).play(20.123, beat=Fraction(7, 2) * 40).play(33, beat=0)
    heard = run(midi(daw, 50), 50, song=TempoMap.steady(RATE, 120, SEVEN))
    bar = 3.5 * 60 / 97
    assert_exact(heard, daw, 4, 20.1, 7)
    assert_exact(heard, daw, 20.123 + bar, 33, 5)
    assert_exact(heard, daw, 33 + bar, 50, 7)


@pytest.mark.parametrize("rounding", [round_frame, math.floor])
@pytest.mark.parametrize("tempo", ["97", "99.99", "61.7"])
def test_a_daw_that_counts_its_song_in_frames_is_met_to_the_frame_wherever_it_goes(
    tempo: str, rounding: Callable[[Fraction], int]
) -> None:
    beat_frames = 60 * RATE / Fraction(tempo)
    there = round_frame(140 * beat_frames) / beat_frames  # as near to bar 41 as a frame can be
    daw = Daw(tempo, SEVEN).play(1.0101).stop(30.2).play(36).play(60.3, beat=there)
    heard = run(midi(daw, 100, rounding=rounding), 100, song=TempoMap.steady(RATE, 120, SEVEN))
    for begin, end in ((6, 30.2), (41, 60.3), (66, 100)):
        assert_exact(heard, daw, begin, end, 4)


def test_a_loop_is_gone_round_without_a_wrong_bar_once_it_is_known() -> None:
    daw = Daw("120").loop(1, 4, 8, 8)
    heard = run(midi(daw, 60), 60)
    errors = heard.errors(daw, 4, 60)
    wrong = [frame for frame, number, _ in errors if number]
    assert len(wrong) <= 2  # the first bar of the first rounds: nobody can know that it is a loop
    assert_exact(heard, daw, 28, 60, 15)


def test_a_loop_that_ends_costs_one_bar() -> None:
    daw = Daw("120").loop(1, 0, 2, 5)
    heard = run(midi(daw, 60), 60)
    wrong = [frame for frame, number, _ in heard.errors(daw, 2, 60) if number]
    assert len(wrong) <= 3
    assert_exact(heard, daw, 28, 60, 15)


def test_a_tempo_ramp_is_followed_beat_by_beat() -> None:
    daw = Daw("100").play(1)
    for step in range(1, 17):
        daw.turn(16 + step, str(100 + step * Fraction(20, 16)))
    heard = run(midi(daw, 60), 60)
    ramp_ends = float(daw.parts[-1].frame) / RATE
    assert_near(heard, daw, 11, ramp_ends, 3, seconds=0.06)
    assert_exact(heard, daw, ramp_ends + 4, 60, 15)


def test_a_tempo_step_is_exact_again_within_two_bars() -> None:
    daw = Daw("97").play(1).turn(32, "123.456")
    heard = run(midi(daw, 90), 90)
    turned = daw.parts[-1].frame / RATE
    assert_exact(heard, daw, 4, turned + 0.01, 6)
    errors = heard.errors(daw, turned + 5, 90)
    assert len(errors) > 25
    assert {number for _, number, _ in errors} == {0}
    assert max(abs(place) for _, _, place in errors) <= 1.01 / RATE  # the turn need not lie on a frame


def test_planned_meters_hold_for_who_counts_beats_alone() -> None:
    song = (
        TempoMap.steady(RATE, 120)
        .changed(Fraction(32), meter=SEVEN)
        .changed(Fraction(32) + 4 * SEVEN.beats, meter=THREE)
    )
    daw = Daw("120").play(1).remeter(8, SEVEN).remeter(12, THREE)
    heard = run(midi(daw, 60), 60, song=song)
    assert_exact(heard, daw, 4, 60, 25)


def test_a_count_in_is_waited_out() -> None:
    daw = Daw("120").play(1, beat=-8)
    heard = run(midi(daw, 20), 20)
    playing = [(frame, bar) for frame, bar, plays in heard.engine.bars if plays]
    assert playing[0] == (5 * RATE, 0)


def test_ticks_that_go_missing_move_nothing() -> None:
    daw = Daw("97").play(1)
    chance = random.Random(3)
    said = [tick for tick in midi(daw, 100) if tick.located or chance.random() > 0.05]
    heard = run(said, 100)
    assert_exact(heard, daw, 6, 100, 35)


# -- OSC position ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tempo", "meter", "period"),
    [("97", SEVEN, 256), ("97", SEVEN, 1024), ("120", FOUR, 256), ("120", FOUR, 1024), ("83.37", THREE, 64)],
)
def test_osc_position_is_within_5_ms(tempo: str, meter: Meter, period: int) -> None:
    daw = Daw(tempo, meter).play(1.01)
    song = TempoMap.steady(RATE, 120, meter)
    heard = run(Osc(period=period)(daw, 110), 110, ("osc",), song=song)
    assert_near(heard, daw, 8, 110, 42)


def test_osc_position_with_a_tempo_is_within_5_ms_from_the_first_bar() -> None:
    daw = Daw("97", SEVEN).play(1.01)
    heard = run(Osc(tempo_told=True)(daw, 120), 120, ("osc",), song=TempoMap.steady(RATE, 120, SEVEN))
    assert_near(heard, daw, 4, 120, 50)


def test_osc_with_loss_and_reordering() -> None:
    daw = Daw("97").play(1)
    heard = run(Osc(loss=0.1, reorder=0.05)(daw, 120), 120, ("osc",))
    assert_near(heard, daw, 8, 120, 40)


def test_osc_with_a_long_tail_of_lateness() -> None:
    daw = Daw("97").play(1)

    def jitter(chance: random.Random) -> float:
        return chance.expovariate(1 / 0.0025) + (0.3 if chance.random() < 0.02 else 0)

    heard = run(Osc(jitter=jitter)(daw, 120), 120, ("osc",))
    assert_near(heard, daw, 8, 120, 40)


def test_a_daw_on_another_crystal_is_kept_up_with() -> None:
    daw = Daw("96.99515", SEVEN).play(1.01)  # 97 by a clock that is 50 ppm slow, which it says
    said = [replace(o, tempo=Fraction(97)) for o in Osc()(daw, 130)]
    heard = run(said, 130, ("osc",), song=TempoMap.steady(RATE, 97, SEVEN))
    assert_near(heard, daw, 6, 130, 50)
    assert not [text for text in heard.told if "bpm" in text]


@pytest.mark.parametrize("mean", [0.0002, 0.001])
def test_midi_clock_over_a_cable_is_within_a_millisecond(mean: float) -> None:
    daw, chance = Daw("97", SEVEN).play(1.01), random.Random(4)
    said = [
        replace(o, frame=None, time_ns=o.time_ns + round(chance.expovariate(1 / mean) * SECOND))
        for o in midi(daw, 120)
    ]
    heard = run(said, 120, song=TempoMap.steady(RATE, 97, SEVEN))
    assert_near(heard, daw, 4, 120, 50, seconds=0.001)


def test_frames_that_are_said_to_be_exact_and_are_not_are_taken_as_late() -> None:
    daw, chance = Daw("97", SEVEN).play(1.01), random.Random(4)
    said = []
    for o in midi(daw, 120):
        late = chance.randrange(0, 512)
        said.append(replace(o, frame=(o.frame or 0) + late, time_ns=ns((o.frame or 0) + late)))
    heard = run(said, 120, song=TempoMap.steady(RATE, 97, SEVEN))
    assert {number for _, number, _ in heard.errors(daw, 8, 120)} == {0}
    assert_near(heard, daw, 8, 120, 48)


def test_a_daw_that_says_whole_beats_and_its_tempo() -> None:
    daw = Daw("97").play(1.01)
    line = daw.parts[-1].line
    assert line is not None
    said = []
    for beat in range(180):
        seconds = math.ceil((float(line.position(Fraction(beat))) / RATE + 0.003) / 0.1) * 0.1  # at its next tick
        at = ns(round(seconds * RATE))
        said.append(Observation("osc", at, beat=Fraction(beat), tempo=Fraction(97), playing=True))
    heard = run(said, 110, ("osc",))
    assert_near(heard, daw, 6, 110, 40, seconds=0.08)


@pytest.mark.parametrize("shift", [-0.03, 0.03])
def test_a_daw_that_loses_a_moment_keeps_its_tempo(shift: float) -> None:
    daw = Daw("97", SEVEN).play(1.01)
    line = daw.parts[-1].line
    assert line is not None
    daw.parts.append(Part(40 * RATE, replace(line, frame=line.frame + round(shift * RATE))))
    for period in (256, 1024):
        heard = run(Osc(period=period)(daw, 90), 90, ("osc",), song=TempoMap.steady(RATE, 97, SEVEN))
        assert {anchor.tempo for _, anchor in heard.engine.anchors} == {Fraction(97)}
        assert_near(heard, daw, 8, 40, 13)
        assert_near(heard, daw, 50, 90, 16)


def test_a_jam_of_less_than_a_second_moves_nothing() -> None:
    daw = Daw("97", SEVEN).play(1.01)
    said = [
        replace(o, time_ns=o.time_ns + 45_000_000) if 40 < (o.time_ns - ZERO_NS) / SECOND < 40.9 else o
        for o in Osc()(daw, 90)
    ]
    heard = run(said, 90, ("osc",), song=TempoMap.steady(RATE, 97, SEVEN))
    assert_near(heard, daw, 4, 90, 38)


def test_osc_start_stop_locate() -> None:
    daw = Daw("120").play(1).stop(10).play(15).play(30, beat=400).play(45, beat=8)
    heard = run(Osc()(daw, 60), 60, ("osc",))
    for begin, end in ((3, 10), (17.5, 30), (32.1, 45), (47.1, 60)):
        assert_near(heard, daw, begin, end, 3, seconds=0.012)
    assert not [bar for frame, bar, plays in heard.engine.bars if plays and 10.5 * RATE < frame < 15 * RATE]


def test_osc_loop() -> None:
    daw = Daw("120").loop(1, 4, 8, 8)
    heard = run(Osc()(daw, 70), 70, ("osc",))
    wrong = [frame for frame, number, _ in heard.errors(daw, 4, 70) if number]
    assert len(wrong) <= 3
    assert_near(heard, daw, 35, 70, 15, seconds=0.012)


def test_a_meter_that_is_told_is_followed() -> None:
    daw = Daw("120").play(1).remeter(8, SEVEN).remeter(16, THREE)
    heard = run(Osc(meter_told=True, tempo_told=True)(daw, 60), 60, ("osc",))
    errors = heard.errors(daw, 4, 60)
    wrong = [frame for frame, number, place in errors if number or abs(place) > 0.01]
    assert len(errors) > 25
    assert len(wrong) <= 3, wrong  # nobody says that a meter comes, so its first bar line is heard too late
    assert [text for text in heard.told if "bar 9 has 7/8" in text]


def test_a_meter_nobody_tells_is_found_in_the_bars_themselves() -> None:
    daw = Daw("120", THREE).play(1)
    heard = run(Osc()(daw, 60), 60, ("osc",))
    assert_near(heard, daw, 6, 60, 30, seconds=0.01)
    assert [text for text in heard.told if "3/4" in text]


def test_a_tempo_step_over_osc() -> None:
    for told in (True, False):
        daw = Daw("100").play(1).turn(40, "108")
        heard = run(Osc(tempo_told=told)(daw, 90), 90, ("osc",))
        turned = daw.parts[-1].frame / RATE
        assert_near(heard, daw, turned + 6, 90, 20, seconds=0.01)


def test_a_tempo_ramp_over_osc_keeps_bar_numbers() -> None:
    daw = Daw("100").play(1)
    for step in range(1, 33):
        daw.turn(16 + step, str(100 + step))
    heard = run(Osc(tempo_told=True)(daw, 60), 60, ("osc",))
    errors = heard.errors(daw, 6, 60)
    assert {number for _, number, _ in errors} == {0}
    assert max(abs(place) for _, _, place in errors) < 0.08


# -- trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["midi", "osc"])
def test_a_source_that_dies_and_returns_is_re_locked_within_a_bar(kind: str) -> None:
    daw = Daw("97", SEVEN).play(1)
    said = midi(daw, 120) if kind == "midi" else Osc()(daw, 120)
    gap = [o for o in said if not 40 * SECOND < o.time_ns - ZERO_NS < 55 * SECOND]
    heard = run(gap, 120, (kind,), song=TempoMap.steady(RATE, 120, SEVEN))
    bar = 3.5 * 60 / 97
    assert {number for _, number, _ in heard.errors(daw, 6, 120)} == {0}
    assert_near(heard, daw, 6, 55, 20, seconds=0.006)  # free-wheeling as well
    assert_near(heard, daw, 55 + bar, 120, 25, seconds=0.006)
    assert [text for text in heard.told if "nothing is heard of it" in text]


def test_one_that_has_stood_for_long_is_not_lost_when_it_starts() -> None:
    """It says that it plays, and where only a tenth of a second later; where it stood was said long ago."""
    stood = Observation("osc", ns(2400), beat=Fraction(0), playing=False)
    said = Osc()(Daw("120").play(8), 20)
    first = next(index for index, each in enumerate(said) if each.bar is not None)
    heard = run([stood, *said[:first], *said[first + 1 :]], 20, ("osc",))
    assert not [text for text in heard.told if "nothing is heard of it" in text]


def test_a_source_that_was_restarted_elsewhere_never_has_a_wrong_bar_number_after_a_bar() -> None:
    daw = Daw("120").play(1).stop(30).play(33, beat=4 * 50)
    for kind in ("midi", "osc"):
        said = midi(daw, 60) if kind == "midi" else Osc()(daw, 60)
        killed = [o for o in said if not 29.5 * SECOND < o.time_ns - ZERO_NS < 33 * SECOND]  # no word of stopping
        heard = run(killed, 60, (kind,))
        assert_near(heard, daw, 35.2, 60, 11, seconds=0.012)


def test_the_band_plays_on_while_the_source_is_lost() -> None:
    daw = Daw("97").play(1)
    said = [o for o in midi(daw, 30) if o.time_ns - ZERO_NS < 30 * SECOND]
    heard = run(said, 200)
    assert_exact(heard, daw, 6, 200, 75)
    assert heard.follower.status().lost


def test_a_second_sender_is_not_listened_to() -> None:
    daw, other = Daw("120").play(1), Daw("90").play(1.3, beat=77)
    said = Osc(sender="a:1")(daw, 60) + Osc(sender="b:2", seed=9)(other, 60, begin=5)
    heard = run(said, 60, ("osc",))
    assert_near(heard, daw, 6, 60, 20)
    assert len([text for text in heard.told if "b:2 says where the song is as well" in text]) >= 1
    assert len(heard.told) < 12


def test_the_second_sender_is_heard_when_the_first_has_gone() -> None:
    daw, other = Daw("120").play(1), Daw("90").play(1.3, beat=77)
    said = Osc(sender="a:1")(daw, 20) + Osc(sender="b:2", seed=9)(other, 60, begin=15)
    heard = run(said, 60, ("osc",))
    assert_near(heard, other, 28, 60, 10, seconds=0.01)


def test_a_tempo_that_contradicts_the_position_is_not_believed() -> None:
    daw = Daw("120").play(1)
    said = [replace(o, tempo=Fraction(97)) if o.bar is not None else o for o in Osc()(daw, 100)]
    heard = run(said, 100, ("osc",))
    assert {number for _, number, _ in heard.errors(daw, 4, 100)} == {0}
    assert_near(heard, daw, 12, 100, 40)
    assert [text for text in heard.told if "says 97 bpm, but its position moves at 120" in text]


def test_a_position_that_moves_rolls_whatever_is_said() -> None:
    daw = Daw("120").play(1)
    said = [replace(o, playing=False) for o in Osc()(daw, 60)]
    heard = run(said, 60, ("osc",))
    assert_near(heard, daw, 6, 60, 25)
    assert [text for text in heard.told if "says that it has stopped" in text]


def test_a_position_that_stands_has_stopped_whatever_is_said() -> None:
    daw = Daw("120").play(1)
    said = Osc()(daw, 20)
    last = [o for o in said if o.bar is not None][-1]
    said += [replace(last, time_ns=ns(round((20 + k / 10) * RATE)), playing=True) for k in range(100)]
    heard = run(said, 30, ("osc",))
    assert heard.engine.rests[-1][1] is True
    assert 20 * RATE < heard.engine.rests[-1][0] < 21.5 * RATE


def test_a_source_that_jumps_about_never_moves_the_band() -> None:
    daw = Daw("120").play(1)
    chance = random.Random(2)
    said = [
        replace(o, bar=chance.randrange(500)) if o.bar is not None and chance.random() < 0.2 else o
        for o in Osc()(daw, 120)
    ]
    heard = run(said, 120, ("osc",))
    assert {number for _, number, _ in heard.errors(daw, 8, 120)} == {0}


BAD = [
    {"beat": Fraction(-(10**6))},
    {"beat": math.nan},
    {"beat": math.inf},
    {"beat": Fraction(10**12)},
    {"bar": -999},
    {"bar": 10**9},
    {"bar": 0, "bar_beat": Fraction(-1)},
    {"bar": 0, "bar_beat": Fraction(10**6)},
    {"tempo": Fraction(0)},
    {"tempo": Fraction(10_000)},
    {"tempo": math.nan},
    {"frame": 2**70, "beat": Fraction(0)},
    {"time_ns": 0},
    {"time_ns": 2**62},
    {"tempo": "120"},
]


@pytest.mark.parametrize("bad", BAD)
def test_what_makes_no_sense_is_said_once_and_ignored(bad: dict[str, object]) -> None:
    daw = Daw("120").play(1)
    said = Osc()(daw, 30)
    wrong = [replace(o, **{"bar": None, "bar_beat": None, **bad}) for o in said[100:200]]  # type: ignore[arg-type]
    clean = run(said, 30, ("osc",))
    jumbled = [o for pair in zip(said[100:200], wrong, strict=True) for o in pair]
    heard = run([*said[:100], *jumbled, *said[200:]], 30, ("osc",))
    assert heard.engine.bars == clean.engine.bars
    assert heard.engine.anchors == clean.engine.anchors
    lines = [text for text in heard.told if text not in clean.told]
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("osc: ")
    assert "ignored" in lines[0]


# -- who leads ------------------------------------------------------------------------------------------------------


def test_a_better_source_takes_over_once_it_has_held() -> None:
    first, second = Daw("120").play(20.4, beat=12), Daw("97").play(1)
    heard = run(midi(first, 60) + Osc()(second, 60), 60, ("midi", "osc"))
    assert_near(heard, second, 6, 20, 5)
    assert_exact(heard, first, 20.4 + 8, 60, 14)


def test_a_source_that_flickers_is_not_gone_over_to() -> None:
    first, second = Daw("120").play(1), Daw("97").play(1)
    said = [o for o in midi(first, 60) if o.time_ns - ZERO_NS < 10 * SECOND or (o.time_ns // SECOND) % 4 == 0]
    heard = run(said + Osc()(second, 60), 60, ("midi", "osc"))
    assert_near(heard, second, 20, 60, 10, seconds=0.012)


def test_a_worse_source_takes_over_when_the_leader_is_lost() -> None:
    daw = Daw("120").play(1)
    said = [o for o in midi(daw, 60) if o.time_ns - ZERO_NS < 20 * SECOND] + Osc()(daw, 60)
    heard = run(said, 60, ("midi", "osc"))
    assert heard.follower.status().leader == "osc"
    assert_near(heard, daw, 4, 60, 25, seconds=0.012)


def test_a_stop_is_a_stop_though_another_rolls_on() -> None:
    daw, other = Daw("120").play(1).stop(20), Daw("97").play(0.5)
    heard = run(midi(daw, 60) + Osc()(other, 60), 60, ("midi", "osc"))
    assert heard.engine.rests[-1][1] is True
    assert heard.engine.rests[-1][0] < 20.1 * RATE


def test_who_starts_after_the_leader_has_stopped_leads() -> None:
    daw, other = Daw("120").play(1).stop(20), Daw("97").play(25)
    heard = run(midi(daw, 60) + Osc()(other, 60), 60, ("midi", "osc"))
    assert_near(heard, other, 30, 60, 10)


def test_with_internal_the_band_plays_until_somebody_else_does() -> None:
    daw = Daw("97").play(10)
    heard = run(midi(daw, 30), 30, ("midi", "internal"))
    assert [bar for frame, bar, plays in heard.engine.bars if plays and frame < 10 * RATE]
    assert_exact(heard, daw, 13, 30, 6)
    alone = run([], 10, ("midi", "internal"))
    assert alone.engine.rests == []
    assert run([], 10, ("midi",)).engine.rests == [(0, True)]


@pytest.mark.parametrize("order", [(), ("midi", "midi"), ("internal", "midi")])
def test_an_order_that_makes_no_sense(order: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="name each source once"):
        Follower(SessionClock(RATE), TempoMap.steady(RATE, 120), order)


# -- anything at all ------------------------------------------------------------------------------------------------

anything = st.one_of(
    st.none(), st.integers(), st.floats(), st.fractions(), st.booleans(), st.text(max_size=4), st.just(2**200)
)
places = st.fractions(min_value=-8, max_value=400, max_denominator=1920)
observations = st.builds(
    Observation,
    source=st.sampled_from(["midi", "osc", "nobody"]),
    time_ns=st.one_of(st.integers(min_value=ZERO_NS, max_value=ZERO_NS + 20 * SECOND), st.integers()),
    beat=st.one_of(places, anything),
    bar=st.one_of(st.none(), st.integers(min_value=-2, max_value=100), anything),
    bar_beat=st.one_of(st.none(), places, anything),
    tempo=st.one_of(st.none(), st.fractions(min_value=20, max_value=400), anything),
    meter=st.sampled_from([None, FOUR, SEVEN, THREE, Meter(1, 32)]),
    playing=st.one_of(st.none(), st.booleans(), anything),
    frame=st.one_of(st.none(), st.integers(min_value=0, max_value=20 * RATE), anything),
    located=st.booleans(),
    grain=st.sampled_from([Fraction(0), Fraction(1, 1920), math.nan]),
    sender=st.sampled_from(["", "a", "b"]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(observations, max_size=60))
def test_nothing_a_source_says_raises_or_leads_to_what_cannot_be_played(said: list[Observation]) -> None:
    clock = SessionClock(RATE)
    told: list[str] = []
    follower = Follower(clock, TempoMap.steady(RATE, 120), ("midi", "osc"), tell=told.append)
    for index in range(100):
        now_ns = ZERO_NS + index * 200_000_000
        clock.observe(now_ns, index * RATE // 5)
        for observation in said[index::100]:
            follower.take(observation)
        for command in follower.step(now_ns):
            if command.anchor is not None:
                assert 20 <= command.anchor.tempo <= 400
                assert command.anchor.song_bar >= 0
            else:
                assert command.do == "rest"
    follower.status()


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["97", "120", "147.5"]), st.sampled_from([FOUR, SEVEN]))
def test_jumbled_observations_of_a_song_never_misname_a_bar(chance: random.Random, tempo: str, meter: Meter) -> None:
    daw = Daw(tempo, meter).play(1)
    said = []
    for observation in Osc(loss=0.1)(daw, 40):
        if chance.random() < 0.1:
            said.append(replace(observation, time_ns=observation.time_ns + chance.randrange(400_000_000)))
        said.append(observation)
    heard = run(said, 40, ("osc",), song=TempoMap.steady(RATE, 120, meter))
    assert {number for _, number, _ in heard.errors(daw, 6, 40)} == {0}
