"""MIDI clock as a language: what is read from bytes, what is written for a position. No port, no time but given."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.midiclock import (
    CLOCK,
    CONTINUE,
    LAST_SIXTEENTH,
    SONG_POSITION,
    START,
    STOP,
    ClockReader,
    ClockWriter,
    Dialect,
    Tick,
    TickTempo,
    simplest_tempo,
)
from bridge.sync import Observation, Position
from realtime.clock import Meter, Timeline, round_frame

RATE = 48000
Event = tuple[int, bytes]


def interval(bpm: Fraction | str, rate: int = RATE) -> Fraction:
    return Fraction(60 * rate, 24) / Fraction(bpm)


def ticks(bpm: Fraction | str, count: int, start: int = 0, rate: int = RATE) -> list[Event]:
    """Ticks of a master that counts in frames, each cut to a whole one."""
    return [(int(start + k * interval(bpm, rate)), b"\xf8") for k in range(count)]


def song_position(sixteenths: int) -> bytes:
    return bytes((SONG_POSITION, sixteenths & 0x7F, sixteenths >> 7))


def read(reader: ClockReader, events: Iterable[Event], offset: int = 0) -> list[Observation]:
    """Have events read that come with frames; the session's are ``offset`` later."""
    said: list[Observation] = []
    for frame, message in events:
        said += reader.feed(message, Tick(frame * 10**9 // RATE, frame, frame + offset))
    return said


def read_by_time(reader: ClockReader, events: Iterable[Event]) -> list[Observation]:
    return [said for time_ns, message in events for said in reader.feed(message, Tick(time_ns))]


def placed(said: Iterable[Observation]) -> list[Observation]:
    return [each for each in said if each.beat is not None and each.playing]


def numbers(said: Iterable[Observation]) -> list[int]:
    """Return the ticks of the song that were said; a beat is that of a whole frame, so next to the tick's."""
    return [round(each.beat * 24) for each in placed(said) if each.beat is not None]


# -- tempo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "tempo"),
    [
        ("96.9", "97.2", "97"),
        ("96.6", "96.89", "96.7"),
        ("119.993", "119.999", "119.996"),
        ("120.0002", "120.002", "120.001"),
        ("133.3331", "133.3339", "400/3"),
    ],
)
def test_the_roundest_tempo_is_what_was_meant(low: str, high: str, tempo: str) -> None:
    found = simplest_tempo(Fraction(low), Fraction(high))
    assert found == Fraction(tempo)


def test_a_tempo_that_still_fits_is_kept() -> None:
    assert simplest_tempo(Fraction(96), Fraction(99), Fraction("97.25")) == Fraction("97.25")
    assert simplest_tempo(Fraction(96), Fraction(97), Fraction("97.25")) != Fraction("97.25")


@given(st.fractions(20, 400, max_denominator=1000), st.fractions(20, 400, max_denominator=1000))
def test_what_is_said_lies_between_the_bounds(a: Fraction, b: Fraction) -> None:
    low, high = min(a, b), max(a, b) + Fraction(1, 10**6)
    assert low < simplest_tempo(low, high) < high


@pytest.mark.parametrize("bpm", ["20", "61.27", "97", "97.003", "120", "133.333", "174.5", "300"])
def test_a_tempo_is_known_to_the_third_decimal_after_a_few_bars(bpm: str) -> None:
    tempo = TickTempo(RATE, exact=True)
    for number, (at, _) in enumerate(ticks(bpm, 500, start=1234)):
        tempo.tick(number, at)
    assert tempo.exact
    assert tempo.tempo == Fraction(bpm)


@pytest.mark.parametrize("bpm", ["97", "120", "140"])
def test_a_round_tempo_is_known_at_the_third_tick(bpm: str) -> None:
    tempo = TickTempo(RATE, exact=True)
    seen = []
    for number, (at, _) in enumerate(ticks(bpm, 100)):
        tempo.tick(number, at)
        seen.append(tempo.tempo)
    assert seen[:2] == [None, None]
    assert set(seen[2:]) == {Fraction(bpm)}


def test_a_change_of_tempo_is_heard_in_its_first_tick() -> None:
    reader = ClockReader("midi", RATE)
    first = ticks("120", 49)
    second = ticks("90", 49, start=first[-1][0])[1:]
    said = read(reader, [(0, b"\xfa"), *first, *second])
    tempi = [each.tempo for each in placed(said)]
    assert tempi[48] == 120
    assert tempi[49] == 90
    assert tempi[-1] == 90
    assert numbers(said) == list(range(97))


def test_a_ramp_is_followed_tick_by_tick_and_no_beat_is_lost() -> None:
    reader = ClockReader("midi", RATE)
    at, events = Fraction(0), [(0, b"\xfa")]
    for k in range(24 * 32):
        events.append((int(at), b"\xf8"))
        at += interval(Fraction(100) + Fraction(k, 24))
    said = placed(read(reader, events))
    assert len(said) == 24 * 32
    for number, each in enumerate(said):
        assert each.beat is not None
        assert abs(each.beat * 24 - number) < Fraction(1, 8)
    assert said[-1].tempo is not None
    assert abs(said[-1].tempo - 132) < Fraction(1, 2)
    assert reader.exact


@pytest.mark.parametrize("seed", range(5))
def test_ticks_from_a_thread_jitter_and_the_tempo_stands(seed: int) -> None:
    chance = random.Random(seed)
    reader = ClockReader("midi", RATE)
    events = [(k * 20_833_333 + chance.randrange(0, 1_500_000), b"\xf8") for k in range(24 * 16)]
    said = placed(read_by_time(reader, [(0, b"\xfa"), *events]))
    assert [each.beat for each in said] == [Fraction(k, 24) for k in range(24 * 16)]
    assert {each.tempo for each in said[48:]} == {Fraction(120)}
    assert not any(each.frame is not None for each in said)


def test_frames_that_jitter_are_not_called_exact() -> None:
    chance = random.Random(1)
    reader = ClockReader("midi", RATE)
    events = [(0, b"\xfa")] + [(k * 1000 + chance.randrange(0, 60), b"\xf8") for k in range(24 * 16)]
    said = placed(read(reader, events, offset=7))
    assert not reader.exact
    assert said[-1].frame is None
    assert said[-1].tempo == 120
    assert said[-1].beat == Fraction(24 * 16 - 1, 24)


def test_frames_that_have_become_exact_are_called_so_again() -> None:
    chance = random.Random(1)
    reader = ClockReader("midi", RATE)
    read(reader, [(k * 1000 + chance.randrange(0, 60), b"\xf8") for k in range(24 * 16)])
    assert not reader.exact
    read(reader, ticks("120", 100, start=24 * 16 * 1000))
    assert reader.exact


# -- position ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bpm", ["97", "97.003", "120", "133.333"])
def test_the_bar_lines_are_the_masters_to_the_frame(bpm: str) -> None:
    """Beat 0 on frame 1000: what is said of any later tick leads to every bar line, rounded as the master does."""
    reader = ClockReader("midi", RATE)
    said = placed(read(reader, [(1000, b"\xfa"), *ticks(bpm, 3000, start=1000)], offset=50_000))
    assert [each.located for each in said] == [True] + [False] * 2999
    for each in said[400:]:
        assert each.tempo == Fraction(bpm)
        assert each.frame is not None
        assert each.beat is not None
        assert each.meter is None
        assert each.frame - each.beat * 24 * interval(bpm) == 51_000


def test_the_first_tick_after_a_start_is_beat_0() -> None:
    reader = ClockReader("midi", RATE)
    idle = ticks("120", 50)
    said = read(reader, [*idle, (50_100, b"\xfa"), *ticks("120", 3, start=50_200)], offset=10)
    first = next(each for each in said if each.playing)
    assert first.tempo == 120
    assert first.beat == 0
    assert (first.frame, first.located) == (50_210, True)
    assert [each.beat for each in said if each.playing is None] == [None, None]  # nobody has said where


def test_continue_goes_on_where_it_stopped() -> None:
    reader = ClockReader("midi", RATE)
    events = [(0, b"\xfa"), *ticks("120", 30), (29_500, b"\xfc"), (60_000, b"\xfb"), *ticks("120", 5, start=60_100)]
    said = read(reader, events)
    [stop] = [each for each in said if each.playing is False]
    assert stop.beat is None
    again = [each for each in said if each.playing][30:]
    assert [each.beat for each in again] == [Fraction(n, 24) for n in range(30, 35)]
    assert [each.located for each in again] == [False] * 5


def test_song_position_counts_sixteenths() -> None:
    reader = ClockReader("midi", RATE)
    said = read(reader, [(0, song_position(33)), (10, b"\xfb"), *ticks("120", 2, start=2000)])
    assert [(each.beat, each.playing, each.located) for each in said] == [
        (Fraction(33, 4), None, True),
        (Fraction(33, 4), True, True),
        (Fraction(33 * 6 + 1, 24), True, False),
    ]


def test_ticks_before_the_stop_do_not_move_a_position_that_was_said() -> None:
    reader = ClockReader("midi", RATE)
    events = [(0, b"\xfa"), *ticks("120", 30), (29_500, b"\xfc"), (29_600, song_position(64)),
              *ticks("120", 40, start=30_000), (70_010, b"\xfb"), *ticks("120", 2, start=71_000)]  # fmt: skip
    assert placed(read(reader, events))[30].beat == 16


def test_a_position_said_while_it_plays_holds_from_the_next_tick() -> None:
    reader = ClockReader("midi", RATE)
    events = [(0, b"\xfa"), *ticks("120", 30), (29_500, song_position(16)), *ticks("120", 3, start=30_000)]
    said = placed(read(reader, events))
    assert [each.beat for each in said[30:]] == [4, Fraction(97, 24), Fraction(98, 24)]
    assert said[30].located


def test_who_joins_in_the_middle_gets_a_tempo_and_no_place() -> None:
    reader = ClockReader("midi", RATE)
    said = read(reader, ticks("97", 200))
    assert len(said) == 8
    assert {(each.beat, each.playing, each.tempo) for each in said} == {(None, None, Fraction(97))}


# -- Ardour --------------------------------------------------------------------------------------------------------


class Ardour:
    """Speaks as Ardour 7.3 was heard to: positions in ticks, on a beat; quarters cut to whole frames; cycles."""

    def __init__(self, bpm: str, origin: int, period: int = 1024) -> None:
        self.beat = 24 * interval(bpm)
        self.origin, self.period = origin, period

    def roll(self, song_frame: int, jack_frame: int, frames: int) -> Iterator[Event]:
        """Roll from a frame of the song, at a frame of JACK's, for so long."""
        first = -(-song_frame // self.beat)  # the next whole beat
        at = float(jack_frame + round_frame(first * self.beat) - song_frame)
        if first:
            yield jack_frame, bytes((SONG_POSITION, int(first * 24) & 0x7F, int(first * 24) >> 7))
        yield int(at), bytes((CONTINUE if first else START,))
        while at < jack_frame + frames:
            yield int(at), b"\xf8"
            at += int(self.beat) / 24
        yield jack_frame + frames, b"\xfc"


@pytest.mark.parametrize("bpm", ["97", "120", "97.3", "133.33", "61"])
@pytest.mark.parametrize("song_frame", [0, 192_000, 480_000, 200_000, 1_234_567])
def test_ardours_own_grid_is_found_to_the_frame(bpm: str, song_frame: int) -> None:
    """The song's frame 0 in JACK's frames, from anywhere in it, and two minutes later as well."""
    reader = ClockReader("midi", RATE, Dialect.ARDOUR)
    ardour = Ardour(bpm, 0)
    read(reader, Ardour(bpm, 0).roll(0, 1024, 96_000))  # it has been heard before
    said = placed(read(reader, ardour.roll(song_frame, 1_024_000, 120 * RATE)))
    assert said[0].located
    for each in (said[100], said[-1]):
        assert each.tempo == Fraction(bpm)
        assert each.frame is not None
        assert each.beat is not None
        assert each.frame - each.beat * ardour.beat == 1_024_000 - song_frame
    assert said[0].beat is not None
    assert abs(said[0].beat - -(-song_frame // ardour.beat)) < Fraction(1, 20_000)


def test_ardours_ticks_would_run_away_from_its_bars() -> None:
    """What the dialect is for: the standard reading is a frame off after two beats, and a bar's worth after hours."""
    reader = ClockReader("midi", RATE, Dialect.STANDARD)
    said = placed(read(reader, Ardour("97", 0).roll(0, 0, 600 * RATE)))
    last = said[-1]
    assert last.frame is not None
    assert last.beat is not None
    assert abs(last.frame - last.beat * 24 * interval("97")) > 600


def test_a_port_called_ardour_is_believed_to_be_ardours() -> None:
    assert Dialect.of("ardour:MIDI Clock out") is Dialect.ARDOUR
    assert Dialect.of("Ardour:MIDI Clock out 129:2") is Dialect.ARDOUR
    assert Dialect.of("Digitakt MIDI 1") is Dialect.AUTO
    assert Dialect("ardour") is Dialect.ARDOUR


def test_ardour_shows_itself_by_stopping_and_going_on() -> None:
    reader = ClockReader("midi", RATE)
    ardour = Ardour("120", 0)
    read(reader, ardour.roll(0, 0, 141_000))
    read(reader, ardour.roll(141_000, 200_000, 100_000))
    assert reader.dialect == "auto"
    read(reader, ardour.roll(0, 400_000, 141_000))
    said = placed(read(reader, ardour.roll(141_000, 600_000, 100_000)))
    assert reader.dialect is Dialect.ARDOUR
    assert said[0].beat == 6


def test_a_peer_that_keeps_the_standard_shows_itself_as_well() -> None:
    reader = ClockReader("midi", RATE)
    events = [(0, b"\xfa"), *ticks("120", 960), (960_100, b"\xfc"), (960_200, song_position(160)), (960_300, b"\xfb")]
    read(reader, events)
    assert reader.dialect is Dialect.STANDARD


def test_ardour_beyond_what_it_can_say_has_no_place() -> None:
    """From beat 683 on it says nothing before it continues; no bar number is better than a wrong one."""
    reader = ClockReader("midi", RATE, Dialect.ARDOUR)
    read(reader, Ardour("120", 0).roll(0, 0, 100_000))
    said = read(reader, [(200_000, b"\xfb"), *ticks("120", 50, start=200_000)])
    assert placed(said) == []
    assert reader.unsaid == 1
    assert said[-1].playing


def test_a_stop_of_ardours_that_was_lost_is_noticed_by_the_silence() -> None:
    reader = ClockReader("midi", RATE, Dialect.ARDOUR)
    events = list(Ardour("97", 0).roll(0, 0, 100_000))[:-1]
    read(reader, events)
    assert reader.silent(Tick(0, 101_000)) == []
    [said] = reader.silent(Tick(0, 130_000))
    assert said.playing is False
    assert reader.silent(Tick(0, 140_000)) == []
    assert reader.missed == 1


def test_a_start_of_ardours_that_was_lost_has_it_rolling_nobody_knows_where() -> None:
    reader = ClockReader("midi", RATE, Dialect.ARDOUR)
    read(reader, Ardour("97", 0).roll(0, 0, 100_000))
    said = read(reader, list(Ardour("97", 0).roll(192_000, 200_000, 100_000))[2:-1])
    assert said[-1].playing
    assert placed(said) == []
    assert reader.missed == 1


# -- faults --------------------------------------------------------------------------------------------------------


def test_a_lost_tick_is_counted_and_moves_nothing() -> None:
    reader = ClockReader("midi", RATE)
    events = [event for k, event in enumerate([(0, b"\xfa"), *ticks("97", 400)]) if k not in (100, 201, 202, 203)]
    said = placed(read(reader, events))
    assert reader.lost == 4
    assert said[-1].beat is not None
    assert said[-1].beat * 24 == pytest.approx(399, abs=1e-2)
    assert said[-1].frame is not None
    assert said[-1].frame - said[-1].beat * 24 * interval("97") == 0


@pytest.mark.parametrize("period", [128, 256, 1024])
@pytest.mark.parametrize("missed", [1, 3])
@pytest.mark.parametrize("bpm", ["97", "120", "133.33"])
def test_a_peer_that_missed_periods_of_the_server_has_stood_still_for_them(
    bpm: str, missed: int, period: int
) -> None:
    """An xrun: the server's frames went on, the peer's song did not. No tick was lost, and the grid is later now."""
    reader = ClockReader("midi", RATE, Dialect.ARDOUR)
    reader.period = period
    still = missed * period
    events = [
        (at + still * (at > 200_000) + still * (at > 400_000), message)
        for at, message in Ardour(bpm, 0).roll(0, 1024, 30 * RATE)
    ]
    said = placed(read(reader, events))
    for each, origin in ((said[100], 1024), (said[-1], 1024 + 2 * still)):
        assert each.beat is not None
        assert each.frame is not None
        assert each.tempo == Fraction(bpm)
        assert each.frame - each.beat * 24 * interval(bpm) == origin
    assert reader.lost == 0
    assert reader.stalls == 2
    numbered = {round(each.beat * 24) for each in said if each.beat is not None}
    assert len(set(range(max(numbered) + 1)) - numbered) == 2  # nothing is said of the first tick after each


def test_where_ticks_were_lost_in_a_missed_period_both_are_noticed() -> None:
    reader = ClockReader("midi", RATE, Dialect.ARDOUR)
    reader.period = 1024
    events = list(Ardour("97", 0).roll(0, 1024, 30 * RATE))
    events = [(at + 1024 * (at > 200_000), message) for at, message in events[:160] + events[161:]]
    assert 198_000 < events[160][0] < 202_000
    last = placed(read(reader, events))[-1]
    assert last.frame is not None
    assert last.beat is not None
    assert last.frame - last.beat * 24 * interval("97") == 2048
    assert (reader.lost, reader.stalls) == (1, 1)


def test_a_tempo_whose_interval_is_longer_by_a_period_is_a_tempo() -> None:
    reader = ClockReader("midi", RATE)
    reader.period = 200
    first = ticks("120", 97)
    said = placed(read(reader, [(0, b"\xfa"), *first, *ticks("100", 97, start=first[-1][0])[1:]]))
    assert said[-1].tempo == 100
    assert said[-1].frame == first[-1][0] + 96 * 1200
    assert said[-1].beat == Fraction(192, 24)
    assert len(said) == 193
    assert reader.stalls == 0


@pytest.mark.parametrize("message", [b"\xfc", song_position(4), b"\xfa"])
def test_what_comes_after_a_tick_that_may_be_late_finds_it_counted(message: bytes) -> None:
    reader = ClockReader("midi", RATE)
    reader.period = 1024
    first = ticks("120", 97)
    said = read(reader, [(0, b"\xfa"), *first, (first[-1][0] + 2024, b"\xf8"), (first[-1][0] + 2030, message)])
    assert len(placed(said)) >= 98
    assert reader.stalls == 0


def test_ticks_that_come_twice_are_dropped() -> None:
    reader = ClockReader("midi", RATE)
    events = [(0, b"\xfa")]
    for k, (at, message) in enumerate(ticks("97", 400)):
        events += [(at, message)] * (2 if k in (50, 150, 250) else 1)
    said = placed(read(reader, events))
    assert reader.doubled == 3
    assert len(said) == 400
    assert said[-1].beat is not None
    assert round(said[-1].beat * 24) == 399


def test_a_stall_followed_by_a_burst_moves_nothing() -> None:
    """Ticks that a busy machine held up and handed over at once: three intervals, then two of nothing."""
    reader = ClockReader("midi", RATE)
    times = [k * 20_833_333 for k in range(200)]
    times[100] = times[101] = times[102]
    said = placed(read_by_time(reader, [(0, b"\xfa"), *((at, b"\xf8") for at in times)]))
    assert said[-1].beat == Fraction(199, 24)
    assert said[-1].tempo == 120


def test_half_the_tempo_is_not_a_row_of_lost_ticks() -> None:
    reader = ClockReader("midi", RATE)
    first = ticks("120", 97)
    said = placed(read(reader, [(0, b"\xfa"), *first, *ticks("60", 97, start=first[-1][0])[1:]]))
    assert said[-1].tempo == 60
    assert said[-1].beat == Fraction(192, 24)
    assert reader.lost == 0


@pytest.mark.parametrize("bpm", ["60", "113", "119", "120", "120.01", "177"])
def test_two_masters_on_one_port_are_noticed_and_nothing_is_said_of_either(bpm: str) -> None:
    reader = ClockReader("midi", RATE)
    one, other = ticks("120", 480), ticks(bpm, 480, start=300)
    said = read(reader, [event for event in sorted([(0, b"\xfa"), *one, *other]) if event[0] < 470_000])
    assert reader.confused
    assert max(each.time_ns for each in said) < 2 * 10**9


def test_when_the_other_master_is_gone_the_tempo_is_back_and_the_place_waits_to_be_said() -> None:
    reader = ClockReader("midi", RATE)
    one, other = ticks("120", 480), ticks("113", 240, start=300)
    read(reader, sorted([(0, b"\xfa"), *one, *other]))
    later = read(reader, ticks("120", 200, start=480_000))
    assert not reader.confused
    assert later[-1].tempo == 120
    again = placed(read(reader, [(700_000, song_position(32)), (700_100, b"\xfb"), *ticks("120", 30, start=701_000)]))
    assert again[0].beat == 8


def test_a_clock_that_was_gone_for_long_comes_back_on_its_grid_or_without_a_place() -> None:
    events = [(0, b"\xfa"), *ticks("97", 4000)]
    exact = ClockReader("midi", RATE)
    said = placed(read(exact, events[:2000] + events[2300:]))
    assert said[-1].beat is not None
    assert round(said[-1].beat * 24) == 3999  # every tick that was missed is known to the frame
    vague = ClockReader("midi", RATE)
    moved = [(at + 600, message) for at, message in events[2300:]]  # another song, for all we know
    later = read(vague, moved) if read(vague, events[:2000]) else []
    assert placed(later) == []
    assert later[-1].tempo == 97


def test_another_servers_frames_are_another_row() -> None:
    reader = ClockReader("midi", RATE)
    read(reader, [(10**6, b"\xfa"), *ticks("97", 100, start=10**6)])
    said = read(reader, ticks("97", 100, start=500))
    assert placed(said) == []
    assert said[-1].tempo == 97
    again = placed(read(reader, [(200_000, b"\xfa"), *ticks("97", 3, start=200_000)]))
    assert again[0].beat == 0


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**40), 2**40),
            st.one_of(st.binary(max_size=6), st.sampled_from([b"\xf8", b"\xfa", b"\xfb", b"\xfc", b"\xf2\x10\x01"])),
            st.booleans(),
        ),
        max_size=60,
    ),
    st.sampled_from(list(Dialect)),
)
def test_any_bytes_at_any_time_are_read_without_a_fault(
    events: list[tuple[int, bytes, bool]], dialect: Dialect
) -> None:
    reader = ClockReader("midi", RATE, dialect)
    for at, message, counted in events:
        for each in reader.feed(message, Tick(at, at if counted else None, at)):
            assert each.source == "midi"
            assert each.beat is None or each.beat >= 0
            assert each.tempo is None or 5 < each.tempo < 1000


@settings(deadline=None)
@given(st.data())
def test_messages_may_be_cut_and_mixed_with_others(data: st.DataObject) -> None:
    """A song position around which real-time bytes and other messages come, a byte at a time."""
    reader = ClockReader("midi", RATE)
    noise = st.sampled_from([b"", b"\xfe", b"\x90\x40\x7f", b"\xf0\x01\x02\xf7", b"\xb0\x07\x10", b"\xf6"])
    stream = data.draw(noise) + b"\xf2" + data.draw(st.sampled_from([b"", b"\xfe"])) + b"\x05"
    stream += data.draw(st.sampled_from([b"", b"\xfe"])) + b"\x01" + data.draw(noise)
    for byte in stream:
        reader.feed(bytes((byte,)), Tick(0))
    said = reader.feed(b"\xfb", Tick(1)) + reader.feed(b"\xf8", Tick(2))
    assert [each.beat for each in said] == [Fraction(133, 4)]


def test_a_song_position_cut_short_is_counted() -> None:
    reader = ClockReader("midi", RATE)
    reader.feed(b"\xf2\x05\x90\x40\x7f", Tick(0))
    assert reader.odd == 1
    assert placed(reader.feed(b"\xfb\xf8", Tick(1))) == []


# -- writing -------------------------------------------------------------------------------------------------------


def line(bpm: str = "97", frame: int = 0, beat: str = "0") -> Position:
    return Position(Timeline(RATE, Fraction(bpm), Meter(), Fraction(frame), Fraction(beat)))


def write(writer: ClockWriter, position: Position, first: int, end: int, step: int = 5000) -> list[Event]:
    events: list[Event] = []
    for at in range(first, end, step):
        events += writer.write(position, at, min(at + step, end))
    return events


def test_every_tick_is_on_its_frame() -> None:
    position = line("97")
    events = write(ClockWriter(), position, 0, 10 * RATE)
    clocks = [frame for frame, message in events if message == b"\xf8"]
    assert clocks == [round_frame(k * interval("97")) for k in range(len(clocks))]
    assert len(clocks) == 388


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=60), st.fractions(40, 300, max_denominator=1000))
def test_windows_may_be_cut_anywhere(steps: list[int], bpm: Fraction) -> None:
    position = Position(Timeline(RATE, bpm, Meter(), Fraction(20_000)))
    whole, cut = ClockWriter(), ClockWriter()
    events, at = [], 0
    for step in steps:
        events += cut.write(position, at, at + step)
        at += step
    expected = whole.write(position, 0, at)
    clocks = [event for event in events if event[1] == b"\xf8"]
    assert clocks == [event for event in expected if event[1] == b"\xf8"]
    assert [frame for frame, _ in events] == sorted(frame for frame, _ in events)


def test_the_song_starts_with_a_start_half_a_tick_before_beat_0() -> None:
    position = line("120", frame=48_000, beat="0")
    events = write(ClockWriter(), position, 0, 100_000)
    [(at, message)] = [event for event in events if event[1] != b"\xf8"]
    assert message == b"\xfa"
    assert at == 47_500
    assert [frame for frame, message in events if message == b"\xf8"][:2] == [0, 1000]  # ticks of the count-in


def test_what_is_written_reads_the_same() -> None:
    """Start, stop, another place, on again: a reader is told the same beats on the same frames."""
    writer, reader = ClockWriter(), ClockReader("midi", RATE)
    first = line("97", frame=30_000)
    rest = replace(first, playing=False)
    second = line("97", frame=400_000, beat="64")
    events = write(writer, first, 0, 200_000) + write(writer, rest, 200_000, 300_000)
    events += write(writer, second, 300_000, 700_000)
    said = read(reader, events)
    for each in placed(said):
        position = first if each.frame is not None and each.frame < 300_000 else second
        assert each.frame is not None
        assert each.beat is not None
        assert abs(position.timeline.position(each.beat) - each.frame) <= 1
    idle = [each.playing for each in said if each.beat is None]
    assert idle[0] is None
    assert set(idle[1:]) == {False}
    assert {each.located for each in placed(said)} == {True, False}


def test_stop_is_said_at_once_and_ticks_go_on() -> None:
    writer, position = ClockWriter(), line("120")
    write(writer, position, -2000, 40_000)
    events = write(writer, replace(position, playing=False), 40_000, 60_000)
    assert events[0] == (40_000, b"\xfc")
    assert [message for _, message in events[1:]] == [b"\xf8"] * 20


def test_a_continue_waits_for_a_sixteenth() -> None:
    writer = ClockWriter()
    position = line("120", frame=1000, beat="8")
    write(writer, replace(position, playing=False), 0, 20_300)
    events = write(writer, position, 20_300, 40_000)
    said = [event for event in events if event[1] != b"\xf8"]
    assert said == [(24_500, song_position(36 - 2 + 0)), (24_500, b"\xfb")] or said[0][1] == song_position(36)
    [place] = [message for _, message in said if message[0] == SONG_POSITION]
    sixteenth = place[1] | place[2] << 7
    following = next(frame for frame, message in events if message == b"\xf8" and frame > said[0][0])
    assert position.timeline.beat_at(following) == Fraction(sixteenth, 4)


def test_another_place_while_it_plays_is_stop_position_continue() -> None:
    writer = ClockWriter()
    write(writer, line("120"), -1000, 50_000)
    events = write(writer, line("120", frame=50_000, beat="32"), 50_000, 80_000)
    words = [message[0] for _, message in events if message != b"\xf8"]
    assert words == [STOP, SONG_POSITION, CONTINUE]


@pytest.mark.parametrize("shift", [-900, -300, -3, 3, 300, 900])
def test_a_line_that_is_moved_a_little_keeps_its_count(shift: int) -> None:
    """A grid that was put right by less than a tick: no tick is lost, none is sent twice, nothing is said of it."""
    writer = ClockWriter()
    events = write(writer, line("120"), 0, 50_500)
    events += write(writer, line("120", frame=shift), 50_500, 100_000)
    assert [message[0] for frame, message in events if message != b"\xf8" and frame > 10_000] == []
    count = sum(message == b"\xf8" for _, message in events)
    assert count == max(tick for _, tick in line("120", frame=shift).ticks(0, 100_000)) + 1


def test_beyond_the_last_song_position_it_continues_without() -> None:
    writer = ClockWriter()
    beat = Fraction(LAST_SIXTEENTH + 5, 4)
    events = write(writer, line("120", frame=10_000, beat=str(beat)), 0, 20_000)
    assert [message for _, message in events if message != b"\xf8"] == [b"\xfb"]
    assert writer.unsaid == 1
    assert CLOCK == 0xF8
