"""The words of sync: the session's clock, and a position that is sent out."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bridge.sync import Observation, Position, SessionClock
from realtime.clock import Meter, Timeline
from realtime.hostclock import SECOND_NS

RATE = 48_000
ZERO_NS = 7 * SECOND_NS


def test_an_observation_is_a_value() -> None:
    said = Observation("midi", 1, beat=Fraction(1, 24), playing=True)
    assert said == Observation("midi", 1, beat=Fraction(1, 24), playing=True)
    with pytest.raises(AttributeError):
        said.beat = Fraction(0)  # type: ignore[misc]


def test_session_clock_is_fed_by_the_stream_and_inverts_itself() -> None:
    clock = SessionClock(RATE)
    clock.observe(0, 0)
    assert not clock.known
    for index in range(1000):
        clock.observe(ZERO_NS + index * 10_000_000, index * 480)
    assert clock.known
    assert clock.latest_ns == ZERO_NS + 999 * 10_000_000
    assert clock.frame_at(ZERO_NS + 5 * SECOND_NS) == 5 * RATE
    assert clock.time_ns_at(5 * RATE) == pytest.approx(ZERO_NS + 5 * SECOND_NS, abs=20_000)
    assert clock.leaps == 0


def test_a_session_clock_that_was_set_says_so() -> None:
    clock = SessionClock(RATE)
    for index in range(3000):
        shift = 96_000 if index > 1000 else 0
        clock.observe(ZERO_NS + index * 10_000_000, index * 480 + shift)
    assert clock.leaps == 1
    assert clock.frame_at(ZERO_NS + 29 * SECOND_NS) == pytest.approx(29 * RATE + 96_000, abs=2)


def test_a_position_says_every_tick_of_a_window_once() -> None:
    position = Position(Timeline(RATE, Fraction(97), Meter(7, 8), Fraction(1000)))
    whole = list(position.ticks(0, 100_000))
    parts = [tick for first in range(0, 100_000, 777) for tick in position.ticks(first, min(first + 777, 100_000))]
    assert parts == whole
    assert whole[0] == (position.frame_at(Fraction(whole[0][1], 24)), whole[0][1])
    assert [tick for _, tick in whole] == list(range(whole[0][1], whole[-1][1] + 1))
    assert all(frame == position.frame_at(Fraction(tick, 24)) for frame, tick in whole)


def test_a_position_is_the_song_s() -> None:
    position = Position(Timeline(RATE, Fraction(97), Meter(7, 8), Fraction(1000)), playing=False)
    assert (position.bar_at(999), position.bar_at(1000)) == (-1, 0)
    assert position.beat_at(position.frame_at(Fraction(8))) == pytest.approx(8, abs=1e-4)
    assert (position.tempo, position.meter) == (Fraction(97), Meter(7, 8))
    assert not position.playing
