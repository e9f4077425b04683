"""A line through what a source says: found, held, left for another."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.songline import Found, LineFinder
from realtime.clock import Timeline, round_frame

RATE = 48_000


def ticks(finder: LineFinder, line: Timeline, first: int, end: int, parts: int = 24) -> list[Found]:
    return [
        finder.add(round_frame(line.position(Fraction(n, parts))), Fraction(n, parts), exact=True)
        for n in range(first, end)
    ]


def a_line(tempo: str, frame: int = 4711, beat: int = 0) -> Timeline:
    return Timeline(RATE, Fraction(tempo), frame=Fraction(frame), beat=Fraction(beat))


@pytest.mark.parametrize("tempo", ["97", "120", "60", "137.5", "99.99", "83.373", "240", "400", "20"])
def test_the_tempo_of_exact_ticks_is_found_to_the_last_decimal(tempo: str) -> None:
    finder, line = LineFinder(RATE), a_line(tempo)
    ticks(finder, line, 0, 600)
    assert finder.locked
    assert finder.line is not None
    assert finder.line.tempo == line.tempo
    assert finder.line.position(Fraction(0)) == 4711


def test_four_ticks_make_a_line() -> None:
    finder = LineFinder(RATE)
    assert ticks(finder, a_line("97"), 0, 4) == [Found.COLLECTED] * 3 + [Found.LOCKED]


def test_a_line_that_is_right_is_not_touched() -> None:
    finder, line = LineFinder(RATE), a_line("97")
    ticks(finder, line, 0, 300)
    held = finder.line
    ticks(finder, line, 300, 9000)
    assert finder.line is held


def test_a_beat_that_is_rounded_down_is_known_to_less_than_its_grain() -> None:
    finder, line = LineFinder(RATE), a_line("97")
    grain = Fraction(1, 1920)
    for frame in range(5120, 2_000_000, 1024):
        beat = line.beat_at(frame) // grain * grain
        finder.add(frame, beat, exact=True, grain=grain)
    assert finder.line is not None
    assert finder.line.tempo == 97
    assert abs(finder.line.position(Fraction(0)) - 4711) <= 1


def test_one_observation_beside_the_line_moves_nothing() -> None:
    finder, line = LineFinder(RATE), a_line("97")
    ticks(finder, line, 0, 300)
    held = finder.line
    assert finder.add(round_frame(line.position(Fraction(301, 24))), Fraction(1000), exact=True) is Found.STRAY
    ticks(finder, line, 302, 400)
    assert finder.line is held


def test_a_jump_is_believed_after_four_ticks_and_told_once() -> None:
    finder, line, other = LineFinder(RATE), a_line("97"), a_line("97", 20_000, 50)
    ticks(finder, line, 0, 300)
    found = ticks(finder, other, 50 * 24 + 600, 50 * 24 + 620)
    assert found[:4] == [Found.STRAY] * 3 + [Found.JUMPED]
    assert set(found[4:]) == {Found.FITS}
    assert finder.before is not None
    assert finder.before.position(Fraction(0)) == 4711
    assert finder.line is not None
    assert finder.line.frame_at(Fraction(50)) == 20_000


def test_a_fold_counts_what_is_still_on_its_way() -> None:
    finder, line = LineFinder(RATE), a_line("120")
    ticks(finder, line, 0, 300)
    finder.fold(round_frame(line.position(Fraction(16))), Fraction(8))
    assert set(ticks(finder, line, 300, 16 * 24)) == {Found.FITS}
    after = Timeline(RATE, line.tempo, frame=line.position(Fraction(16)), beat=Fraction(8))
    assert set(ticks(finder, after, 8 * 24, 12 * 24)) == {Found.FITS}


def test_packets_that_were_held_up_together_are_no_jump() -> None:
    finder, line = LineFinder(RATE), a_line("120")
    for n in range(100):
        finder.add(round_frame(line.position(Fraction(n, 5))), Fraction(n, 5))
    arrival = round_frame(line.position(Fraction(110, 5)))
    held = [finder.add(arrival + n, Fraction(100 + n, 5)) for n in range(6)]
    assert Found.JUMPED not in held
    assert finder.add(round_frame(line.position(Fraction(111, 5))), Fraction(111, 5)) is Found.FITS


def test_late_observations_are_laid_along_their_early_edge() -> None:
    finder, line, chance = LineFinder(RATE), a_line("97"), random.Random(1)
    for n in range(400):
        late = round(chance.uniform(0, 0.006) * RATE)
        finder.add(round_frame(line.position(Fraction(n, 6))) + late, Fraction(n, 6))
    assert finder.line is not None
    assert finder.line.tempo == 97
    off = float(finder.line.position(Fraction(400, 6)) - line.position(Fraction(400, 6))) / RATE
    assert 0 <= off <= 0.0012
    assert finder.spread_frames / RATE == pytest.approx(0.006 / math.sqrt(12), rel=0.2)


def test_a_claimed_tempo_is_a_candidate_and_no_more() -> None:
    finder, line = LineFinder(RATE), a_line("120")
    finder.tell(Fraction(97))
    for n in range(200):
        finder.add(round_frame(line.position(Fraction(n, 5))), Fraction(n, 5))
    assert finder.contradicted == 1
    assert finder.line is not None
    assert finder.line.tempo == 120


def test_a_position_that_stands_makes_no_line() -> None:
    finder = LineFinder(RATE)
    assert {finder.add(n * 4800, Fraction(7)) for n in range(50)} == {Found.COLLECTED}
    assert not finder.locked


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.fractions(-8, 400, max_denominator=1920), st.booleans()), max_size=80
    )
)
def test_anything_makes_a_tempo_that_can_be_played_or_none(said: list[tuple[int, Fraction, bool]]) -> None:
    finder = LineFinder(RATE)
    for frame, beat, exact in said:
        finder.add(frame, beat, exact)
        if finder.locked:
            assert finder.line is not None
            assert 20 <= finder.line.tempo <= 400
            assert finder.line.tempo.denominator <= 10**6
