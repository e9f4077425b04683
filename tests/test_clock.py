"""Musical time is exact: identities, ten thousand bars against plain integers, ramps against their closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.clock import (
    KEPT_SECONDS,
    MAX_BARS,
    POSITION_DENOMINATOR,
    TEMPO_DENOMINATOR,
    Anchor,
    Locate,
    Meter,
    TempoChange,
    TempoMap,
    Timeline,
    Transport,
    as_tempo,
    round_frame,
)
from realtime.messages import from_bytes, to_bytes

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


@settings(exact, max_examples=40)
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


# -- going elsewhere in the song -----------------------------------------------------------------------------------

locates = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 20), st.sampled_from([0, 0, 1, 2, 3, 7])), min_size=1, max_size=4
)


def planned(samplerate: int, tempo: Fraction, meter: Meter, plan: list[TempoChange]) -> TempoMap:
    """Return a song."""
    tempo_map = TempoMap.steady(samplerate, tempo, meter, downbeat=-777)
    for change in plan:
        tempo_map = change.applied(tempo_map)
    return tempo_map


@dataclass
class Walker:
    """Plays a song bar by bar, slowly and with nothing but sums: what a map with locates has to agree with."""

    song: TempoMap
    wishes: list[Locate]
    by_hand: tuple[int, Fraction] | None = None  # from this bar of the session on, in this tempo

    def bars(self, count: int) -> Iterator[tuple[int, Fraction, Meter]]:
        """Yield song bar, exact frame and meter of bar 0 and after."""
        frame, place, wishes = self.song.timelines[0].position(self.song.downbeat(0)), (0, 0, 0), list(self.wishes)
        for bar in range(count):
            if wishes and wishes[0].bar == bar:
                wish = wishes.pop(0)
                place = (bar, wish.song_bar, wish.loop_bars)
            song_bar = place[1] + ((bar - place[0]) % place[2] if place[2] else bar - place[0])
            start, end = self.song.downbeat(song_bar), self.song.downbeat(song_bar + 1)
            yield song_bar, frame, self.song.at_beat(start).meter
            if self.by_hand is not None and bar >= self.by_hand[0]:
                frame += (end - start) * 60 * self.song.timelines[0].samplerate / self.by_hand[1]
                continue
            edges = [start, *(line.beat for line in self.song.timelines if start < line.beat < end), end]
            for since, until in pairwise(edges):
                frame += (until - since) * self.song.at_beat(since).beat_frames


@settings(exact, max_examples=30)
@given(rates, tempi, meters, changes(), locates, st.none() | st.tuples(st.integers(0, 30), tempi))
def test_a_map_with_locates_plays_what_a_slow_walk_plays(
    samplerate: int,
    tempo: Fraction,
    meter: Meter,
    plan: list[TempoChange],
    places: list[tuple[int, int, int]],
    by_hand: tuple[int, Fraction] | None,
) -> None:
    song = planned(samplerate, tempo, meter, plan)
    wishes, bar, session = [], 0, song.as_session()
    for further, song_bar, loop_bars in places:
        bar += further
        wishes.append(Locate(bar, song_bar, loop_bars))
        session = wishes[-1].applied(session)
    if by_hand is not None:
        session = TempoChange(by_hand[0], tempo=by_hand[1]).applied(session)
    for bar, (song_bar, frame, written) in enumerate(Walker(song, wishes, by_hand).bars(60)):
        assert session.song_bar(bar) == song_bar, bar
        assert session.at_beat(session.downbeat(bar)).meter == written, bar
        assert session.downbeat(bar) + session.bar_beats(bar) == session.downbeat(bar + 1)
        assert abs(session.bar_frame(bar) - frame) <= Fraction(1, 2) + Fraction(1, 10**4), bar


@settings(exact, max_examples=30)
@given(
    rates, tempi, meters, changes(), locates, st.none() | tempi, st.integers(0, 40), st.sampled_from([0, 1, 5, 16])
)
def test_with_locates_and_hands_frames_and_beats_stay_inverse_and_rise(
    samplerate: int,
    tempo: Fraction,
    meter: Meter,
    plan: list[TempoChange],
    places: list[tuple[int, int, int]],
    hand: Fraction | None,
    hand_bar: int,
    ramp_beats: int,
) -> None:
    session, bar = planned(samplerate, tempo, meter, plan).as_session(), 0
    if hand is not None:
        session = TempoChange(hand_bar, Fraction(1, 16), hand, None, ramp_beats).applied(session)
    for further, song_bar, loop_bars in places:
        bar += further
        session = session.located(bar, song_bar, loop_bars)
    assert [s.beat for s in session.stretches] == sorted(s.beat for s in session.stretches)
    places_to_try = [session.bar_frame(bar) for bar in range(45)] + [round_frame(s.frame) for s in session.stretches]
    for place in sorted(places_to_try):
        for frame in (place - 1, place, place + 1, place + samplerate // 3):
            assert session.frame_at(session.beat_at(frame)) == frame
    for place, following in pairwise(sorted(set(places_to_try))):
        assert session.beat_at(place) < session.beat_at(following)
    for bar in range(0, 45, 2):
        moment = session.moment(session.bar_frame(bar))
        assert moment.bar == bar
        assert moment.phase == pytest.approx(0, abs=1e-3)
        assert session.moment(session.bar_frame(bar) - 1).bar == bar - 1
    end = session.bar_frame(45)
    written_out = TempoMap(session.unrolled(end))
    for frame in range(0, end, end // 50 + 1):
        assert abs(written_out.beat_at(frame) - session.beat_at(frame)) < Fraction(1, 10**9)


@pytest.mark.parametrize("samplerate", [44100, 48000])
def test_ten_thousand_rounds_of_an_awkward_loop_start_where_integers_say(samplerate: int) -> None:
    session = TempoMap.steady(samplerate, "97.3", Meter(7, 8), downbeat=12_345).located(5, 9, 3)
    top, bottom = 60 * samplerate * 7 * 10, 2 * 973  # a bar is top / bottom frames: 7/2 beats at 973/10 bpm
    for rounds in (*range(20), *range(20, 10_000, 83), 9_999, 10_000, 10**6):
        for offset in range(3):
            bar = 5 + 3 * rounds + offset
            assert session.song_bar(bar) == 9 + offset
            assert session.bar_frame(bar) == 12_345 + (2 * bar * top + bottom) // (2 * bottom)
    assert len(session.stretches) == 2


def test_ten_thousand_rounds_with_a_ramp_and_meters_inside_are_exact_lengths_apart() -> None:
    song = planned(
        44100,
        Fraction("97.3"),
        Meter(7, 8),
        [TempoChange(3, Fraction(1), Fraction("141.7"), None, 11), TempoChange(6, meter=Meter(5, 4)),
         TempoChange(7, tempo=Fraction(1000, 7))],
    )  # fmt: skip
    session = song.located(4, 2, 7)
    first, length = session.at_beat(session.downbeat(4)).position(session.downbeat(4)), Fraction(0)
    for line, following in pairwise(session.unrolled(session.bar_frame(18))):
        if first <= line.frame < session.stretches[1].frame + session.stretches[1].loop.frames:  # type: ignore[union-attr]
            length += following.frame - line.frame
    for rounds in (0, 1, 2, 999, 10_000):
        assert session.bar_frame(4 + 7 * rounds) == round_frame(first + rounds * length)
        assert session.bar_beats(4 + 7 * rounds + 4) == 5
        assert session.bar_beats(4 + 7 * rounds + 7) == Fraction(7, 2)
        tempi = [session.at_beat(session.downbeat(4 + 7 * rounds + bar)).tempo for bar in range(7)]
        assert tempi[:2] == [Fraction("97.3"), Fraction("97.3")]
        assert tempi[5] == Fraction(1000, 7)


@settings(exact, max_examples=30)
@given(tempo_maps(), st.integers(1, 30), st.integers(0, 30), st.integers(0, 4))
def test_a_locate_leaves_what_was_before_it(song: TempoMap, bar: int, song_bar: int, loop_bars: int) -> None:
    after = song.located(bar, song_bar, loop_bars)
    assert [after.bar_frame(b) for b in range(-3, bar + 1)] == [song.bar_frame(b) for b in range(-3, bar + 1)]
    end = song.bar_frame(bar)
    for frame in range(song.bar_frame(-2), end, (end - song.bar_frame(-2)) // 40 + 1):
        assert after.moment(frame) == song.moment(frame)
    assert [after.song_bar(b) for b in (-2, 0, bar - 1, bar)] == [-2, 0, bar - 1, song_bar]


def test_a_song_nobody_touches_is_played_as_it_is_planned() -> None:
    song = planned(
        48000, Fraction(120), Meter(4, 4), [TempoChange(4, tempo=Fraction(90)), TempoChange(8, ramp_beats=0)]
    )
    transport = Transport(song, 1000)
    for now in range(0, 10**8, 10**7):
        transport.advance(now)
    assert transport.map is song, "all of it: it may be gone back to"
    assert [song.song_bar(bar) for bar in (-2, 0, 9)] == [-2, 0, 9]
    touched = song.as_session()
    assert [touched.moment(frame) for frame in range(-50_000, 10**6, 77_777)] == [
        song.moment(frame) for frame in range(-50_000, 10**6, 77_777)
    ]


def test_planned_tempi_ramps_and_meters_come_with_their_part_of_the_song() -> None:
    song = planned(
        48000,
        Fraction(120),
        Meter(),
        [TempoChange(8, meter=Meter(3, 4), tempo=Fraction(60)), TempoChange(10, tempo=Fraction(180), ramp_beats=6)],
    )
    session = song.located(2, 9)
    assert [session.bar_beats(bar) for bar in (1, 2, 3)] == [4, 3, 3]
    assert [session.at_beat(session.downbeat(bar)).tempo for bar in (1, 2, 3, 4, 5)] == [120, 60, 70, 130, 180]


def test_a_locate_during_a_planned_ramp_ends_the_ramp() -> None:
    song = planned(48000, Fraction(60), Meter(), [TempoChange(2, tempo=Fraction(160), ramp_beats=40)])
    session = song.located(4, 0)
    assert session.at_beat(session.downbeat(4) - 1).tempo > 60
    assert session.at_beat(session.downbeat(4)).tempo == 60
    assert session.at_beat(session.downbeat(6)).tempo == Fraction(60) + Fraction(100, 80)


def test_a_loop_goes_on_until_another_locate_ends_it() -> None:
    session = TempoMap.steady(48000, 120).located(4, 8, 2).located(9, 3)
    assert [session.song_bar(bar) for bar in range(3, 13)] == [3, 8, 9, 8, 9, 8, 3, 4, 5, 6]
    nested = session.located(7, 20, 1)
    assert [nested.song_bar(bar) for bar in range(5, 12)] == [9, 8, 20, 20, 20, 20, 20], "the last word holds"


def test_what_was_set_by_hand_stays_by_hand_through_loops_and_locates() -> None:
    plan = [TempoChange(8, tempo=Fraction(60)), TempoChange(9, meter=Meter(3, 4))]
    session = planned(48000, Fraction(120), Meter(), plan).located(2, 7, 3)
    session = TempoChange(12, Fraction(1), Fraction(101)).applied(session)
    assert session.at_beat(session.downbeat(12)).tempo == 60
    assert {session.at_beat(session.downbeat(bar)).tempo for bar in range(13, 60)} == {101}
    assert [session.bar_beats(bar) for bar in range(14, 20)] == [4, 4, 3, 4, 4, 3], "meters are the song's"
    assert [session.song_bar(bar) for bar in range(11, 20)] == [7, 8, 9] * 3
    session = session.located(20, 0)
    assert {session.at_beat(session.downbeat(bar)).tempo for bar in range(20, 60)} == {101}
    session = session.located(25, 7, as_written=True)
    assert [session.at_beat(session.downbeat(bar)).tempo for bar in (24, 25, 26)] == [101, 120, 60]


def test_as_it_is_written_gives_up_what_is_set_by_hand_until_then_and_nothing_later() -> None:
    song = planned(48000, Fraction(120), Meter(), [TempoChange(8, tempo=Fraction(60))])
    session = TempoChange(2, tempo=Fraction(200), ramp_beats=40).applied(song.as_session())
    session = TempoChange(5, meter=Meter(3, 4)).applied(session)
    written = session.located(5, 7, as_written=True)
    assert [written.at_beat(written.downbeat(bar)).tempo for bar in (5, 6, 9)] == [120, 60, 60]
    assert written.bar_beats(5) == 4
    later = TempoChange(7, tempo=Fraction(99)).applied(written)
    assert [later.at_beat(later.downbeat(bar)).tempo for bar in (5, 6, 7, 20)] == [120, 60, 99, 99]
    again = TempoChange(3, tempo=Fraction(300), ramp_beats=30).applied(later)
    assert [again.at_beat(again.downbeat(bar)).tempo for bar in (5, 6, 7, 20)] == [120, 60, 60, 60]


def test_a_ramp_by_hand_goes_on_by_the_beat_through_wraps_and_locates() -> None:
    plain = TempoMap.steady(48000, 120).as_session()
    wish = TempoChange(2, Fraction(2), Fraction(60), None, 20)
    expected = [wish.applied(plain).at_beat(Fraction(beat)).tempo for beat in range(8, 40)]
    looped = wish.applied(plain.located(1, 4, 1))
    assert [looped.at_beat(Fraction(beat)).tempo for beat in range(8, 40)] == expected
    for bar in (3, 4, 6, 9):
        located = wish.applied(plain).located(bar, 0, 3).located(bar + 1, 2)
        assert [located.at_beat(Fraction(beat)).tempo for beat in range(8, 40)] == expected
        assert located.song_bar(bar) == 0
    again = wish.applied(plain).located(4, 0)
    assert [located.at_beat(Fraction(b)).tempo for b in range(8, 40)] == [
        again.at_beat(Fraction(b)).tempo for b in range(8, 40)
    ]


def test_what_is_wished_for_a_later_bar_comes_in_that_bar_of_the_session() -> None:
    song = planned(48000, Fraction(120), Meter(), [TempoChange(20, meter=Meter(3, 4))])
    pending = TempoChange(10, Fraction(2), Fraction(90)).applied(song.as_session())
    pending = TempoChange(12, meter=Meter(7, 8)).applied(pending)
    session = pending.located(8, 20, 4)
    assert [session.bar_beats(bar) for bar in (7, 8, 9, 10, 11)] == [4, 3, 3, 3, 3]
    place = session.downbeat(10) + 2
    assert [session.at_beat(beat).tempo for beat in (place - 1, place)] == [120, 90]
    assert session.bar_beats(12) == Fraction(7, 2)
    ramp = TempoChange(10, tempo=Fraction(60), ramp_beats=12).applied(song.as_session())
    ramp = TempoChange(11, meter=Meter(5, 4)).applied(ramp).located(9, 20)
    assert [ramp.bar_beats(bar) for bar in (9, 10, 11, 12)] == [3, 3, 5, 5]
    begin = ramp.downbeat(10)
    assert [ramp.at_beat(begin + beat).tempo for beat in (-1, 0, 11, 12)] == [
        120,
        Fraction(235, 2),
        Fraction(125, 2),
        60,
    ]


def test_an_offset_that_a_bar_no_longer_has_is_its_end() -> None:
    song = planned(48000, Fraction(120), Meter(), [TempoChange(20, meter=Meter(2, 4))])
    session = TempoChange(10, Fraction(3), Fraction(90)).applied(song.as_session()).located(8, 20)
    assert session.at_beat(session.downbeat(11) - Fraction(1, 100)).tempo == 120
    assert session.at_beat(session.downbeat(11)).tempo == 90


def test_a_new_tempo_drops_those_wished_for_later_and_no_meter_and_no_locate() -> None:
    session = TempoMap.steady(48000, 120).as_session()
    session = TempoChange(10, tempo=Fraction(90), meter=Meter(3, 4)).applied(session).located(12, 40)
    session = TempoChange(6, tempo=Fraction(70)).applied(session)
    assert session.at_beat(session.downbeat(30)).tempo == 70
    assert [session.bar_beats(bar) for bar in (9, 10, 12)] == [4, 3, 3]
    assert session.song_bar(13) == 41


def test_a_meter_set_by_hand_is_that_of_its_part_of_the_song() -> None:
    three = TempoChange(6, meter=Meter(3, 4))
    one = three.applied(TempoMap.steady(48000, 120).located(2, 0, 3))
    assert [one.bar_beats(bar) for bar in range(4, 12)] == [4, 4, 3, 3, 3, 3, 3, 3]
    song = planned(
        48000, Fraction(120), Meter(), [TempoChange(2, meter=Meter(7, 8)), TempoChange(4, meter=Meter(2, 4))]
    )
    two = three.applied(song.located(2, 0, 4))  # bars 6, 7 are 0, 1 of the song
    half = Fraction(7, 2)
    assert [two.bar_beats(bar) for bar in range(4, 14)] == [half, half, 3, 3, half, half, 3, 3, half, half]
    assert [two.song_bar(bar) for bar in range(5, 12)] == [3, 0, 1, 2, 3, 0, 1]
    elsewhere = two.located(14, 3)
    assert [elsewhere.bar_beats(bar) for bar in (14, 15)] == [half, 2]
    assert [elsewhere.located(16, 0, as_written=True).bar_beats(bar) for bar in (15, 16)] == [2, 4]


def test_planned_tempi_stay_in_their_bars_of_the_song_when_the_meter_is_set_by_hand() -> None:
    plan = [
        TempoChange(8, Fraction(3), Fraction(90)),
        TempoChange(9, tempo=Fraction(60)),
        TempoChange(12, tempo=Fraction(80)),
    ]
    session = planned(48000, Fraction(120), Meter(), plan).as_session()
    session = TempoChange(4, meter=Meter(3, 4)).applied(session)
    assert [session.at_beat(session.downbeat(bar)).tempo for bar in (8, 9, 12)] == [120, 60, 80]
    assert session.at_beat(session.downbeat(9) - Fraction(1, 8)).tempo == 120, "beat 3 is beyond the bar"


def test_a_meter_by_hand_inside_a_bar_is_refused_in_words() -> None:
    session = TempoMap.steady(48000, 120).located(2, 5, 2)
    with pytest.raises(ValueError, match="only on a bar line; beat 18 is inside bar 5"):
        TempoChange(4, Fraction(2), meter=Meter(3, 4)).applied(session)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"bar": 3, "song_bar": -1}, "song bar -1: a song's bars are 0 to 1,000,000"),
        ({"bar": 3, "song_bar": 10**9}, "song bar 1000000000: a song's bars are"),
        ({"bar": 10**9, "song_bar": 0}, "bar 1000000000: a session's bars are"),
        ({"bar": -(10**9), "song_bar": 0}, "bar -1000000000: a session's bars are"),
        ({"bar": 3, "song_bar": 0, "loop_bars": -2}, "a loop of -2 bars: a loop has 1 to 1,000,000"),
        ({"bar": 3, "song_bar": 0, "loop_bars": 10**9}, "a loop of 1000000000 bars"),
    ],
)
def test_a_locate_to_where_nobody_plays_is_refused_in_words(wish: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Locate(**wish)


def test_a_locate_travels_and_what_travels_is_checked() -> None:
    wish = Locate(7, 3, 4, as_written=True)
    assert from_bytes(Locate, to_bytes(wish)) == wish
    assert from_bytes(Locate, b'{"bar":7,"song_bar":3}') == Locate(7, 3)
    with pytest.raises(ValueError, match="song bar -3"):
        from_bytes(Locate, b'{"bar":7,"song_bar":-3}')


def test_a_locate_in_time_happens_in_its_bar() -> None:
    transport = Transport(TempoMap.steady(48000, 120), notice_frames=1280)
    wish = Locate(3, 40, 2)
    assert transport.locate(wish, now=transport.map.bar_frame(3) - 1280) == wish
    assert [transport.map.song_bar(bar) for bar in range(2, 7)] == [2, 40, 41, 40, 41]


@pytest.mark.parametrize(("late", "bar"), [(1279, 4), (-1, 4), (-94_720, 4), (-94_721, 5), (-(10**6), 14)])
def test_a_late_locate_counts_from_the_first_bar_line_far_enough_ahead(late: int, bar: int) -> None:
    transport = Transport(TempoMap.steady(48000, 120), notice_frames=1280)
    before = transport.map
    done = transport.locate(Locate(3, 40), now=before.bar_frame(3) - late)
    assert done == Locate(bar, 40)
    assert [transport.map.song_bar(b) for b in (bar - 1, bar)] == [bar - 1, 40]
    assert transport.map.bar_frame(bar) == before.bar_frame(bar)


def test_a_loop_shorter_than_the_notice_is_left_in_time_as_well() -> None:
    transport = Transport(TempoMap.steady(48000, 400, Meter(1, 8)), notice_frames=48_000)  # a bar is 3,600 frames
    transport.locate(Locate(20, 0, 1), now=0)
    assert [transport.map.song_bar(bar) for bar in (19, 20, 500)] == [19, 0, 0]
    now = transport.map.bar_frame(500)
    done = transport.locate(Locate(501, 30), now)
    assert done.bar == 514
    assert transport.map.bar_frame(514) - now >= 48_000 > transport.map.bar_frame(513) - now
    assert [transport.map.song_bar(bar) for bar in (513, 514, 515)] == [0, 30, 31]
    assert transport.map.bar_frame(600) == 600 * 3_600


@settings(exact, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 3), tempi), min_size=1, max_size=12))
def test_what_was_played_never_moves_whatever_is_announced(
    wishes: list[tuple[int, int, int, Fraction]],
) -> None:
    plan = [
        TempoChange(3, meter=Meter(7, 8)),
        TempoChange(5, tempo=Fraction(97), ramp_beats=9),
        TempoChange(9, meter=Meter()),
    ]
    transport, now = Transport(planned(44100, Fraction(120), Meter(), plan), notice_frames=1280), 0
    for number, (ahead, song_bar, loop_bars, tempo) in enumerate(wishes):
        before = transport.map
        bar = before.moment(now).bar + ahead
        if number % 3:
            transport.locate(Locate(bar, song_bar, loop_bars), now)
        else:
            transport.announce(TempoChange(bar, tempo=tempo, ramp_beats=song_bar), now)
        for frame in (now - 10**5, now, now + 1279):
            assert transport.map.moment(frame) == before.moment(frame)
            assert transport.map.song_bar(before.moment(frame).bar) == before.song_bar(before.moment(frame).bar)
        transport.advance(now)
        assert transport.map.moment(now) == before.moment(now)
        now += 170_001


def test_a_day_of_looping_and_turning_the_tempo_stays_small() -> None:
    transport, now, turns = Transport(TempoMap.steady(48000, 97), 1280), 0, 0
    transport.locate(Locate(2, 8, 4), 0)
    while now < 24 * 3600 * 48000:
        moment = transport.map.moment(now)
        assert transport.map.song_bar(moment.bar) in (*range(8, 12), 0, 1)
        transport.announce(TempoChange(moment.bar + 1, tempo=Fraction(80 + turns % 40)), now)
        now, turns = now + 60 * 48000, turns + 1
        transport.advance(now)
        assert len(transport.map.stretches) <= KEPT_SECONDS // 60 + 3
    last = transport.map.stretches[-1]
    assert max(last.frame.denominator, last.frame_shift.denominator) < 10**40
    assert transport.map.song_bar(MAX_BARS) in range(8, 12)


@settings(exact, max_examples=40)
@given(tempo_maps(), st.integers(-20, 60))
def test_a_downbeat_is_found_where_a_walk_over_all_timelines_finds_it(tempo_map: TempoMap, bar: int) -> None:
    lines = reversed(tempo_map.timelines)
    walked = next((line.downbeat(bar) for line in lines if line.downbeat(bar) >= line.beat), None)
    assert tempo_map.downbeat(bar) == (tempo_map.timelines[0].downbeat(bar) if walked is None else walked)


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
    assert len(transport.map.stretches) < len(everything.timelines) - 50
    for frame in range(now - 300 * 48000, now + 30 * 48000, 100_003):
        assert transport.map.moment(frame) == everything.moment(frame)


# Another's grid


@st.composite
def anchors(draw: st.DrawFn) -> Anchor:
    return Anchor(
        draw(st.integers(-3_000_000, 6_000_000)),
        draw(st.integers(-4, 500)),
        Fraction(draw(st.integers(20_000, 400_000)), 1000),
        draw(st.sampled_from([Meter(4, 4), Meter(7, 8), Meter(3, 4), Meter(1, 8), Meter(12, 8)])),
    )


@given(
    st.integers(20, 400),
    st.sampled_from([Meter(4, 4), Meter(7, 8), Meter(1, 16), Meter(5, 4)]),
    st.lists(st.tuples(anchors(), st.integers(0, 900_000)), min_size=1, max_size=4),
)
def test_an_anchor_brings_the_session_onto_its_grid_to_the_frame(
    bpm: int, meter: Meter, wishes: list[tuple[Anchor, int]]
) -> None:
    transport = Transport(TempoMap.steady(48_000, bpm, meter), 2000)
    now = 0
    for anchor, elapsed in wishes:
        now += elapsed
        before = transport.map
        bar, song_bar, _ = transport.anchor(anchor, now)
        after, grid = transport.map, anchor.grid(48_000)
        fixed = before.moment(now + 2000)
        for past in range(fixed.bar - 5, fixed.bar + 1):
            if before.bar_frame(past) <= now + 2000 and before.bar_frame(past) > now - 480_000:
                assert after.bar_frame(past) == before.bar_frame(past), "nothing moves that is decided"
        for ahead in range(50):
            line = grid.frame_at(grid.downbeat(song_bar + ahead))
            assert after.bar_frame(bar + ahead) == line
            assert after.song_bar(bar + ahead) == song_bar + ahead
            assert after.moment(line).bar == bar + ahead
        frames = [after.bar_frame(past) for past in range(fixed.bar - 2, bar + 3)]
        assert frames == sorted(set(frames)), "time goes on"
        if not before.stretches:  # the first: no bend is under way
            whole = (grid.meter.beats / grid.tempo + meter.beats / bpm) * 60 * 48_000
            assert after.bar_frame(bar) - now - 2000 <= 2 * whole, "soon"


@pytest.mark.parametrize("off", [-2000, -3, 0, 3, 2000])
def test_what_is_nearly_on_the_grid_is_bent_a_little(off: int) -> None:
    transport = Transport(TempoMap.steady(48_000, 120), 2000)
    bar, song_bar, _ = transport.anchor(Anchor(96_000 * 7 + off, 40, Fraction(120)), 100_000)
    assert song_bar == bar + 33
    assert transport.map.bar_frame(bar) == 96_000 * bar + off
    tempi = {float(line.tempo) for line in transport.map.unrolled(10**6)}
    assert max(tempi) <= 120 / 0.95
    assert min(tempi) >= 120 / 1.05
    assert transport.map.at_frame(10**7).tempo == 120


def test_an_anchor_within_the_same_grid_changes_nothing_but_the_song_bar() -> None:
    before = TempoMap.steady(48_000, Fraction(97), Meter(7, 8))
    transport = Transport(before, 2000)
    transport.anchor(Anchor(before.bar_frame(0), 10, Fraction(97), Meter(7, 8)), 300_000)
    after = transport.map
    for bar in range(30):
        assert after.bar_frame(bar) == before.bar_frame(bar)
    assert after.song_bar(20) == 30


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tempo": Fraction(10)}, "20 to 400"),
        ({"tempo": Fraction(401)}, "20 to 400"),
        ({"tempo": Fraction(100) + Fraction(1, 10**9)}, "denominator"),
        ({"song_bar": 10**7}, "song bar"),
        ({"frame": 2**60}, "no session reaches"),
    ],
)
def test_what_is_no_grid_is_refused(keys: dict[str, Any], words: str) -> None:
    sound: dict[str, Any] = {"frame": 0, "song_bar": 0, "tempo": Fraction(120)}
    with pytest.raises(ValueError, match=words):
        Anchor(**sound | keys)


def led() -> tuple[Transport, int]:
    """Return a transport on which another's grid, 0.75 s off, holds soon, and its first bar there."""
    transport = Transport(TempoMap.steady(48_000, 120), 2000)
    bar, _, _ = transport.anchor(Anchor(36_000, 400, Fraction(120)), 6000)
    return transport, bar


@pytest.mark.parametrize("loop_bars", [0, 4])
def test_a_place_wished_by_hand_leaves_the_bend_behind(loop_bars: int) -> None:
    transport, bar = led()
    done = transport.locate(Locate(0, 8, loop_bars), 6010)
    assert done.bar == bar, "what is bent is not changed"
    assert transport.map.at_frame(60 * 48_000).tempo == 120


def test_a_meter_and_a_tempo_by_hand_leave_the_bend_behind() -> None:
    transport, bar = led()
    transport.announce(TempoChange(bar, meter=Meter(3, 4)), 6010)
    assert transport.map.at_frame(60 * 48_000).tempo == 120
    done = transport.announce(TempoChange(0, tempo=Fraction(90)), 6020)
    assert done.bar == bar
    assert transport.map.at_frame(60 * 48_000).tempo == 90


@pytest.mark.parametrize(("bpm", "off"), [(400, -1000), (20, 20_000)])
def test_a_gentle_bend_stays_within_what_a_tempo_may_be(bpm: int, off: int) -> None:
    transport = Transport(TempoMap.steady(48_000, bpm), 2000)
    transport.anchor(Anchor(transport.map.bar_frame(3) + off, 5, Fraction(bpm)), 0)
    assert all(20 <= line.tempo <= 400 for line in transport.map.unrolled(10**8))
