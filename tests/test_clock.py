"""Musical time is exact: identities, ten thousand bars against plain integers, ramps against their closed form."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.clock import (
    POSITION_DENOMINATOR,
    TEMPO_DENOMINATOR,
    Meter,
    TempoChange,
    TempoMap,
    Timeline,
    Transport,
    as_tempo,
    round_frame,
)

RATES = (8000, 11025, 22050, 37813, 44100, 48000, 88200, 96000, 192000)
ODD_TEMPI = ("60", "240/7", "97.31", "128", "173.2111", "1000/3", "399.999999")

exact = settings(deadline=None, derandomize=True)

rates = st.sampled_from(RATES) | st.integers(8000, 192000)
tempi = st.fractions(20, 400, max_denominator=TEMPO_DENOMINATOR)
meters = st.builds(Meter, st.integers(1, 13), st.sampled_from([2, 4, 8, 16]))
frames = st.integers(-(10**9), 10**9)


@st.composite
def changes(draw: st.DrawFn) -> list[TempoChange]:
    """Draw tempo and meter changes in the order in which they sound, tempi also inside bars."""
    bar, drawn = 0, []
    for _ in range(draw(st.integers(0, 6))):
        bar += draw(st.integers(1, 5))
        tempo, meter = draw(st.none() | tempi), draw(st.none() | meters)
        beat = Fraction(0) if meter else draw(st.sampled_from([Fraction(0), Fraction(1, 8), Fraction(1, 16)]))
        ramp = draw(st.sampled_from([0, 0, 1, 3, 8])) if tempo else 0
        drawn.append(TempoChange(bar, beat, tempo, meter, ramp))
    return drawn


@st.composite
def tempo_maps(draw: st.DrawFn) -> TempoMap:
    """Draw a map with a few changes and ramps."""
    tempo_map = TempoMap.steady(draw(rates), draw(tempi), draw(meters), draw(st.integers(-(10**6), 10**6)))
    for change in draw(changes()):
        tempo_map = change.applied(tempo_map)
    return tempo_map


# -- the identity, and order ---------------------------------------------------------------------------------------


@exact
@given(rates, tempi, st.fractions(), st.fractions(), frames)
def test_a_timeline_turns_frames_to_beats_and_back(
    samplerate: int, tempo: Fraction, origin: Fraction, beat: Fraction, frame: int
) -> None:
    timeline = Timeline(samplerate, tempo, frame=origin, beat=beat)
    assert timeline.frame_at(timeline.beat_at(frame)) == frame


@exact
@given(tempo_maps(), frames, st.integers(-5, 40))
def test_a_map_turns_frames_to_beats_and_back(tempo_map: TempoMap, frame: int, bar: int) -> None:
    near = tempo_map.bar_frame(bar)
    for one in (frame, near - 1, near, near + 1):
        assert tempo_map.frame_at(tempo_map.beat_at(one)) == one


@exact
@given(tempo_maps(), st.data())
def test_time_runs_forward(tempo_map: TempoMap, data: st.DataObject) -> None:
    edges = [round_frame(timeline.frame) for timeline in tempo_map.timelines]
    near = st.sampled_from(edges).flatmap(lambda edge: st.integers(edge - 3, edge + 3))
    anywhere = st.integers(edges[0] - 10**6, edges[-1] + 10**6)
    here = data.draw(near | anywhere)
    later = here + data.draw(st.integers(1, 10**5))
    assert tempo_map.beat_at(here) < tempo_map.beat_at(later)
    first, second = tempo_map.moment(here), tempo_map.moment(later)
    assert (first.bar, first.beat, first.phase) < (second.bar, second.beat, second.phase)


@exact
@given(tempo_maps(), st.integers(-20, 60))
def test_a_bar_line_has_phase_0_and_the_frame_before_it_does_not(tempo_map: TempoMap, bar: int) -> None:
    frame = tempo_map.bar_frame(bar)
    on, before = tempo_map.moment(frame), tempo_map.moment(frame - 1)
    assert (on.frame, on.bar) == (frame, bar)
    assert on.phase < 1e-3  # the frame lies at most half a frame behind the exact line
    assert before.bar == bar - 1
    assert 0 <= before.phase < 1
    assert tempo_map.downbeat(bar) + tempo_map.bar_beats(bar) == tempo_map.downbeat(bar + 1)


@pytest.mark.parametrize(
    ("position", "frame"), [("1/2", 1), ("-1/2", 0), ("-3/2", -1), ("5/3", 2), ("-5/3", -2), ("7", 7)]
)
def test_halves_round_up_on_both_sides_of_zero(position: str, frame: int) -> None:
    assert round_frame(Fraction(position)) == frame


# -- bar lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samplerate", RATES)
@pytest.mark.parametrize(("count", "unit"), [(4, 4), (3, 4), (7, 8)])
def test_ten_thousand_bars_start_where_integers_say(samplerate: int, count: int, unit: int) -> None:
    for bpm in ODD_TEMPI:
        tempo = Fraction(bpm)
        tempo_map = TempoMap.steady(samplerate, bpm, Meter(count, unit), downbeat=777)
        top = 60 * samplerate * 4 * count * tempo.denominator  # a bar is top / bottom frames
        bottom = tempo.numerator * unit
        for bar in (*range(-8, 60), *range(60, 10_000, 97), 9_999, 10_000):
            expected = 777 + (2 * bar * top + bottom) // (2 * bottom)
            assert tempo_map.bar_frame(bar) == expected, (bpm, bar)


def exact_downbeats(samplerate: int, start: Timeline, plan: list[TempoChange], bars: int) -> list[Fraction]:
    """Return the exact frame of bars 0 to ``bars``, by walking: tempi by beat, never rounded."""
    meter, tempi_from = start.meter, [(Fraction(-(10**9)), start.tempo)]
    downbeats, beat, left = [], Fraction(0), list(plan)
    for bar in range(bars + 1):
        downbeats.append(beat)
        while left and left[0].bar == bar:
            change = left.pop(0)
            meter = change.meter or meter
            if change.tempo is None:
                continue
            at, ramp = beat + change.beat, change.ramp_beats
            old = [tempo for since, tempo in tempi_from if since <= at][-1]
            steps = [(at + i, old + (change.tempo - old) * Fraction(2 * i + 1, 2 * ramp)) for i in range(ramp)]
            tempi_from = [(since, tempo) for since, tempo in tempi_from if since < at]
            tempi_from += [*steps, (at + ramp, change.tempo)]
        beat += meter.beats
    positions = []
    for downbeat in downbeats:
        frame = start.frame
        for (since, tempo), (until, _) in zip(tempi_from, [*tempi_from[1:], (downbeat, None)], strict=True):
            length = min(until, downbeat) - max(since, Fraction(0))
            frame += max(length, Fraction(0)) * 60 * samplerate / tempo
        positions.append(frame)
    return positions


@exact
@given(rates, tempi, meters, changes())
def test_changed_bars_start_where_a_slow_walk_says(
    samplerate: int, tempo: Fraction, meter: Meter, plan: list[TempoChange]
) -> None:
    tempo_map = TempoMap.steady(samplerate, tempo, meter)
    start = tempo_map.timelines[0]
    for change in plan:
        tempo_map = change.applied(tempo_map)
    for bar, exact in enumerate(exact_downbeats(samplerate, start, plan, 45)):
        assert abs(tempo_map.bar_frame(bar) - exact) <= Fraction(1, 2) + Fraction(1, 10**4), bar


def test_a_count_in_has_negative_bars() -> None:
    tempo_map = TempoMap.steady(48000, 120, Meter(3, 4), downbeat=2 * 72000)
    assert [tempo_map.bar_frame(bar) for bar in (-2, -1, 0)] == [0, 72000, 144000]
    first = tempo_map.moment(0)
    assert (first.bar, first.beat, first.phase) == (-2, Fraction(0), 0.0)
    last = tempo_map.moment(143_999)
    assert last.bar == -1
    assert last.phase == pytest.approx(1, abs=1e-4)
    assert last.phase < 1


def test_a_meter_change_keeps_beats_and_moves_bar_lines() -> None:
    four = TempoMap.steady(48000, 120)
    mixed = four.changed(four.downbeat(2), meter=Meter(7, 8))
    assert [mixed.downbeat(bar) for bar in range(5)] == [0, 4, 8, Fraction(23, 2), 15]
    assert [mixed.bar_beats(bar) for bar in (1, 2)] == [4, Fraction(7, 2)]
    assert mixed.bar_frame(3) == 8 * 24000 + 84000


def test_a_meter_alone_keeps_the_tempi_planned_after_it() -> None:
    planned = TempoMap.steady(48000, 120).changed(Fraction(16), Fraction(60))
    mixed = planned.changed(Fraction(8), meter=Meter(3, 4))
    assert mixed.frame_at(Fraction(17)) - mixed.frame_at(Fraction(16)) == 48000
    assert mixed.downbeat(5) == 17  # bars 0 and 1 of four beats, then of three


def test_a_tempo_drops_the_tempi_planned_after_it() -> None:
    planned = TempoMap.steady(48000, 120).changed(Fraction(16), Fraction(60))
    assert planned.changed(Fraction(8), Fraction(240)).at_beat(Fraction(99)).tempo == 240


@exact
@given(tempo_maps(), tempi, st.integers(1, 30))
def test_a_change_leaves_what_was_before_it(tempo_map: TempoMap, tempo: Fraction, bar: int) -> None:
    after = tempo_map.changed(tempo_map.downbeat(bar), tempo)
    assert [after.bar_frame(b) for b in range(-3, bar + 1)] == [tempo_map.bar_frame(b) for b in range(-3, bar + 1)]


def test_a_meter_change_inside_a_bar_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="only on a bar line; beat 6 is inside bar 2"):
        TempoMap.steady(48000, 120).changed(Fraction(6), meter=Meter(3, 4))


# -- ramps ---------------------------------------------------------------------------------------------------------


@exact
@given(rates, tempi, tempi, st.integers(1, 24), meters)
def test_a_ramp_lasts_as_long_as_its_closed_form(
    samplerate: int, first: Fraction, last: Fraction, beats: int, meter: Meter
) -> None:
    ramped = TempoMap.steady(samplerate, first, meter).ramped(Fraction(4), beats, last)
    steps = [first + (last - first) * Fraction(2 * i + 1, 2 * beats) for i in range(beats)]
    length = sum(60 * samplerate / tempo for tempo in steps)
    start = 4 * 60 * samplerate / first
    assert abs(ramped.frame_at(Fraction(4 + beats)) - (start + length)) <= Fraction(1, 2) + Fraction(1, 10**2)
    assert ramped.at_beat(Fraction(4 + beats)).tempo == last
    assert ramped.at_beat(Fraction(3)).tempo == first


@settings(exact, max_examples=15)
@given(st.sampled_from([(60, 240), (240, 60), (120, 121), (400, 20)]), st.integers(1, 12), meters)
def test_in_a_ramp_the_phase_climbs_wraps_and_never_stalls(ends: tuple[int, int], beats: int, meter: Meter) -> None:
    samplerate = 8000
    tempo_map = TempoMap.steady(samplerate, ends[0], meter).ramped(Fraction(1), beats, Fraction(ends[1]))
    slowest, fastest = sorted(Fraction(bpm, 60 * samplerate) for bpm in ends)  # beats a frame
    moments = [tempo_map.moment(frame) for frame in range(0, tempo_map.frame_at(Fraction(beats + 2)), 53)]
    for before, after in pairwise(moments):
        assert 0 <= before.phase < 1
        assert (after.bar > before.bar) or (after.bar == before.bar and after.phase > before.phase)
        gone = tempo_map.beat_at(after.frame) - tempo_map.beat_at(before.frame)
        assert 53 * slowest * Fraction(999, 1000) <= gone <= 53 * fastest * Fraction(1001, 1000)


def test_a_ramp_over_no_beats_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="at least one whole beat"):
        TempoMap.steady(48000, 120).ramped(Fraction(0), 0, Fraction(60))


# -- the transport -------------------------------------------------------------------------------------------------


def test_a_change_in_time_happens_where_it_was_meant() -> None:
    transport = Transport(TempoMap.steady(48000, 120), notice_frames=1280)
    change = TempoChange(bar=2, beat=Fraction(1), tempo=Fraction(90))
    place = transport.map.frame_at(Fraction(9))
    assert transport.announce(change, now=place - 1280) == change
    assert transport.map.at_beat(Fraction(9)).tempo == 90


@pytest.mark.parametrize(("late", "bar"), [(1279, 3), (1, 3), (-1, 3), (-94_720, 3), (-94_721, 4), (-190_721, 5)])
def test_a_late_change_counts_from_the_first_bar_line_far_enough_ahead(late: int, bar: int) -> None:
    transport = Transport(TempoMap.steady(48000, 120), notice_frames=1280)
    before = transport.map
    wished = TempoChange(bar=2, beat=Fraction(0), tempo=Fraction(90))
    now = before.bar_frame(2) - late
    happened = transport.announce(wished, now)
    assert happened == replace(wished, bar=bar, beat=Fraction(0))
    assert before.bar_frame(happened.bar) - now >= 1280 > before.bar_frame(happened.bar - 1) - now
    assert transport.map.at_beat(before.downbeat(bar)).tempo == 90
    assert transport.map.at_beat(before.downbeat(bar) - 1).tempo == 120


def test_a_late_change_inside_a_bar_waits_for_the_downbeat() -> None:
    transport = Transport(TempoMap.steady(48000, 120), notice_frames=1280)
    happened = transport.announce(TempoChange(bar=2, beat=Fraction(3), tempo=Fraction(90)), now=11 * 24000 - 5)
    assert (happened.bar, happened.beat) == (3, Fraction(0))


@exact
@given(st.lists(st.tuples(tempi, st.integers(0, 3)), min_size=1, max_size=20), st.integers(0, 10**6))
def test_what_was_played_never_moves(wishes: list[tuple[Fraction, int]], now: int) -> None:
    transport = Transport(TempoMap.steady(44100, 120), notice_frames=1280)
    for tempo, ahead in wishes:
        before = transport.map
        bar = before.moment(now).bar
        transport.announce(TempoChange(bar + ahead, tempo=tempo), now)
        for frame in (now - 10**5, now, now + 1279):
            assert transport.map.moment(frame) == before.moment(frame)
        now += 70_001


def test_many_changes_keep_numbers_small_and_the_grid_true() -> None:
    tempo_map, exact = TempoMap.steady(44100, 120), Fraction(0)
    tempo = Fraction(120)
    for bar in range(1, 2001):
        exact += 4 * 60 * 44100 / tempo
        exact = exact.limit_denominator(10**30)
        tempo = Fraction(100 * 10**6 + 7919 * bar, 10**6 - bar)
        tempo_map = tempo_map.changed(Fraction(4 * bar), tempo)
    last = tempo_map.timelines[-1]
    assert max(timeline.frame.denominator for timeline in tempo_map.timelines) <= POSITION_DENOMINATOR
    assert last.beat.denominator == 1
    assert abs(last.frame - exact) < Fraction(1, 10**6)


# -- words from outside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bpm", "tempo"),
    [
        (120, Fraction(120)),
        (93.7, Fraction(937, 10)),
        ("240/7", Fraction(240, 7)),
        (Fraction(1000, 3), Fraction(1000, 3)),
    ],
)
def test_a_tempo_is_read_exactly(bpm: float | str | Fraction, tempo: Fraction) -> None:
    assert as_tempo(bpm) == tempo


@exact
@given(st.floats(20, 400))
def test_a_float_tempo_gets_a_small_denominator(bpm: float) -> None:
    tempo = as_tempo(bpm)
    assert tempo.denominator <= TEMPO_DENOMINATOR
    assert abs(tempo - Fraction(bpm)) < Fraction(1, TEMPO_DENOMINATOR)


@pytest.mark.parametrize("bpm", ["fast", "", "1/0", float("nan"), float("inf"), "120 bpm", True])
def test_what_is_no_tempo_is_refused_in_words(bpm: float | str) -> None:
    with pytest.raises(ValueError, match="is not a number; a tempo is quarter notes per minute, say 120"):
        as_tempo(bpm)


@pytest.mark.parametrize("bpm", [0, -120, 19.9, 401, 0.5, "1e9"])
def test_a_tempo_outside_the_range_is_refused_in_words(bpm: float | str) -> None:
    with pytest.raises(ValueError, match=r"20 to 400 quarter notes per minute; did you give a period"):
        as_tempo(bpm)


@exact
@given(meters)
def test_a_meter_is_read_as_it_is_written(meter: Meter) -> None:
    assert Meter.parse(str(meter)) == meter
    assert meter.beats == 4 * Fraction(meter.count, meter.unit)


@pytest.mark.parametrize("text", ["", "4", "4/", "/4", "4:4", "four/4", "4/4/4", "-3/4", "3.5/4", "²/4"])
def test_what_is_no_meter_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="write count/unit, for instance 4/4, 3/4 or 7/8"):
        Meter.parse(text)


@pytest.mark.parametrize("text", ["0/4", "33/4", "4/3", "4/0", "4/64"])
def test_a_meter_outside_the_range_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=f"meter {text}: the count is 1 to 32 and the unit 1, 2, 4, 8, 16 or 32"):
        Meter.parse(text)


def test_a_new_tempo_keeps_the_meters_planned_after_it() -> None:
    planned = TempoMap.steady(48000, 120).changed(Fraction(32), meter=Meter(3, 4))
    tempo_map = planned.changed(Fraction(16), Fraction(90))
    assert tempo_map.at_beat(Fraction(100)).meter == Meter(3, 4)
    assert tempo_map.at_beat(Fraction(100)).tempo == 90
    assert tempo_map.downbeat(9) == 35


def test_a_new_meter_moves_a_planned_one_to_the_next_bar_line_and_keeps_planned_tempi() -> None:
    planned = TempoMap.steady(48000, 120).changed(Fraction(16), meter=Meter(7, 8)).changed(Fraction(20), Fraction(60))
    tempo_map = planned.changed(Fraction(4), meter=Meter(3, 4))
    assert tempo_map.at_beat(Fraction(15)).meter == Meter(3, 4)
    assert tempo_map.at_beat(Fraction(16)).meter == Meter(7, 8) or tempo_map.downbeat(5) == 16
    changes = [timeline.beat for timeline in tempo_map.timelines if timeline.meter == Meter(7, 8)]
    assert min(changes) == 16, "4 + four bars of 3 is a bar line"
    assert tempo_map.at_beat(Fraction(21)).tempo == 60
    odd = planned.changed(Fraction(4), meter=Meter(5, 4))
    assert min(t.beat for t in odd.timelines if t.meter == Meter(7, 8)) == 19


def test_a_change_announced_in_the_count_in_moves_nothing_that_was_played() -> None:
    before = TempoMap.steady(48000, 120, downbeat=192_000)
    transport = Transport(before, 1000)
    transport.announce(TempoChange(0, tempo=Fraction(90)), 90_000)
    assert [transport.map.moment(frame) for frame in (0, 90_000, 191_999)] == [
        before.moment(frame) for frame in (0, 90_000, 191_999)
    ]
    assert transport.map.bar_frame(1) == 192_000 + 4 * 32_000
    inside = before.changed(Fraction(-2), Fraction(60))
    assert inside.moment(50_000) == before.moment(50_000)
    assert inside.bar_frame(0) == 192_000 - 2 * 24_000 + 2 * 48_000


def test_a_tempo_with_a_huge_exponent_is_refused_at_once() -> None:
    for huge in ("1e3000000", "1" * 1000, "-1e400", "1e-3000000"):
        with pytest.raises(ValueError, match="tempo is"):
            as_tempo(huge)
    assert as_tempo("1.2e2") == 120


def test_a_change_for_a_bar_long_past_counts_from_the_next_one_at_once() -> None:
    transport = Transport(TempoMap.steady(48000, 120), 1000)
    done = transport.announce(TempoChange(-(10**9), tempo=Fraction(90)), 100_000)
    assert done.bar == 2
    assert done.beat == 0


def test_old_timelines_are_forgotten_and_nothing_later_moves() -> None:
    transport = Transport(TempoMap.steady(48000, 120), 1000)
    everything = transport.map
    now = 0
    for number in range(400):
        now = transport.map.bar_frame(2 * number)
        change = TempoChange(2 * number + 1, tempo=Fraction(80 + number % 90))
        transport.announce(change, now)
        everything = change.applied(everything)
    assert len(everything.timelines) > 350
    assert len(transport.map.timelines) < len(everything.timelines) - 50
    for frame in range(now - 300 * 48000, now + 30 * 48000, 100_003):
        assert transport.map.moment(frame) == everything.moment(frame)
