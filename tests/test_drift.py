"""The estimator of another clock: within a frame, without a jump, whatever arrives. Everything in virtual time.

The world is that of the benchmark: crystals 100 ppm off that wander by 10, seen 375 times a second and mostly 30 us
late. What it shows is measured against the truth, and beside the same loop without the envelope.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.hostclock import FASTEST_DRIFT, GAP_SLEW, LOCKING_SLEW, SLEW, HostClock, aligned_frame

TOOLS = Path(__file__).resolve().parent.parent / "tools"
RATE = 48000
SECOND = 10**9
PERIOD = 128

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Seen = tuple[Integers, Integers]
exact = settings(deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def drift() -> Iterator[Any]:
    """Return the suite ``drift``, imported as its runner imports it."""
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("bench_drift")
    finally:
        sys.path.remove(str(TOOLS))


@dataclass
class Followed:
    """What an estimator said right after each observation: host seconds from the start, and error in frames."""

    clock: HostClock
    times: Floats
    errors: Floats
    told: list[tuple[int, float]]

    def worst(self, begin: float, end: float = math.inf) -> float:
        """Return the largest error in a time."""
        return float(np.abs(self.errors[(self.times >= begin) & (self.times < end)]).max())

    def fastest(self, begin: float, end: float = math.inf) -> float:
        """Return the largest change of the error in a time, as a part of the rate."""
        chosen = (self.times >= begin) & (self.times < end)
        spans = np.diff(self.times[chosen]) * RATE
        return float(np.abs(np.diff(self.errors[chosen])[spans > 1] / spans[spans > 1]).max())


@pytest.fixture
def follow(drift: Any) -> Callable[..., Followed]:
    """Return a function that lets an estimator follow a crystal whose observations are tampered with."""

    def run(
        seconds: int,
        ppm: float = 100,
        tamper: Callable[[Floats, Integers, Integers], tuple[Integers, Integers]] = lambda t, host, frame: (
            host,
            frame,
        ),
        kept: Callable[[Floats], npt.NDArray[np.bool_]] = lambda t: np.ones(len(t), bool),
        clock: HostClock | None = None,
    ) -> Followed:
        crystal = drift.Crystal(seconds, RATE, ppm, seed=1)
        host_ns, frames = drift.observations(crystal, 0, seconds, np.random.default_rng(2))
        keep = kept((host_ns - drift.ORIGIN_NS) / 1e9)
        host_ns, frames = host_ns[keep], frames[keep]
        true_times = (host_ns - drift.ORIGIN_NS) / 1e9
        told_ns, told_frames = tamper(true_times, host_ns, frames)
        clock = clock or HostClock(RATE)
        told, _ = drift.ask(clock, told_ns.tolist(), told_frames.tolist())
        times, errors = drift.judged(crystal, told_ns, told)
        return Followed(clock, times, errors, told)

    return run


# -- what it is for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ppm", [100, -100, 0, 500])
def test_from_the_lock_on_it_is_within_a_frame_and_never_jumps(drift: Any, ppm: int) -> None:
    clock, crystal = HostClock(RATE), drift.Crystal(1200, RATE, ppm, seed=1)
    run = drift.follow(clock, crystal, np.random.default_rng(2))
    assert run.locked_seconds <= 5
    assert run.worst <= 1
    assert run.largest_step <= 0.05
    assert (clock.locked, clock.relocks, clock.doubts) == (True, 0, 0)
    assert clock.drift_ppm == pytest.approx(ppm, abs=12)


def test_it_is_the_estimator_that_does_it(drift: Any) -> None:
    crystal = drift.Crystal(1200, RATE, 100, seed=1)
    ours = drift.follow(HostClock(RATE), crystal, np.random.default_rng(2)).worst
    assert np.abs(crystal.nominal_error(RATE)).max() > 5000, "uncorrected"
    plain = drift.plain_dll(crystal, np.random.default_rng(2))
    assert plain > 1 > 2 * ours, "the same loop without the envelope"


def test_two_clocks_that_drift_apart_are_aligned_to_the_frame(drift: Any) -> None:
    (found,) = drift.composite_rows(600)
    assert found.ok
    assert found.value <= 1


def test_a_position_between_two_clocks_is_that_of_both() -> None:
    slow, fast = HostClock(RATE), HostClock(96000)
    for second in range(5000):
        slow.observe(second * SECOND // 500, second * 96)
        fast.observe(second * SECOND // 500, second * 192)
    assert aligned_frame(slow, 480_048, fast) == 960_096
    assert aligned_frame(fast, 960_096, slow) == 480_048


def test_seldom_observations_only_make_it_slower(drift: Any) -> None:
    crystal, clock = drift.Crystal(900, RATE, 100, seed=1), HostClock(RATE)
    seen = drift.observations(crystal, 0, 900, np.random.default_rng(2), RATE // 2)  # two a second
    told, locked_ns = drift.ask(clock, *(part.tolist() for part in seen))
    times, errors = drift.judged(crystal, seen[0], told)
    assert locked_ns is not None
    assert np.abs(errors[times >= 60]).max() <= 3


def test_a_clock_of_nanoseconds_is_a_clock_as_well(drift: Any) -> None:
    crystal, clock = drift.Crystal(120, SECOND, -100, seed=1), HostClock(SECOND)
    seen = drift.observations(crystal, 0, 120, np.random.default_rng(2), 10**7)
    told, _ = drift.ask(clock, *(part.tolist() for part in seen))
    times, errors = drift.judged(crystal, seen[0], told)
    assert np.abs(errors[times >= 5]).max() <= 20_000


# -- continuous, rising, exact -------------------------------------------------------------------------------------

steps_of_observations = st.lists(
    st.tuples(st.integers(0, 3 * SECOND) | st.integers(0, SECOND // 100), st.integers(-2 * RATE, 2 * RATE)),
    min_size=1,
    max_size=200,
)


@exact
@given(steps_of_observations, st.integers(0, 10**6))
def test_it_is_continuous_and_rises_whatever_is_observed(steps: list[tuple[int, int]], late: int) -> None:
    clock, host_ns = HostClock(RATE, window_seconds=0.1), 10**15
    for number, (step_ns, off) in enumerate(steps):
        host_ns += step_ns
        before, state = clock.position(host_ns), (clock.relocks, number > 0 and clock.drift_ppm)
        beginning = clock._count < 1
        clock.observe(host_ns, (host_ns - 10**15) * RATE // SECOND + (off if off % 3 == 0 else 0))
        after = clock.position(host_ns)
        if not beginning and clock.relocks == state[0]:
            assert after[0] - before[0] + after[1] - before[1] == pytest.approx(0, abs=1e-6)
        rising = [clock.position(host_ns + ahead) for ahead in range(0, 3 * 10**8, 10**7 + late)]
        gains = np.diff([frame - rising[0][0] + part for frame, part in rising])
        slack = FASTEST_DRIFT + LOCKING_SLEW + 1e-6
        expected = (10**7 + late) * RATE / SECOND
        assert (np.abs(gains / expected - 1) <= slack).all()
        assert 0 <= after[1] < 1


@exact
@given(st.integers(-(10**9), 10**9), st.floats(-900, 900), st.integers(0, 2**31))
def test_back_and_forth_is_the_identity(frame: int, ppm: float, seed: int) -> None:
    clock, chance = HostClock(RATE), np.random.default_rng(seed)
    for number in range(60):
        late = int(chance.exponential(1e5))
        clock.observe(round(number * SECOND / 10 * (1 - ppm * 1e-6)) + late, number * RATE // 10)
        for near in (number * RATE // 10 + frame % RATE - RATE // 2, frame):
            assert clock.frame_at(clock.host_ns_at(near)) == near


def test_where_time_and_frames_begin_makes_no_difference(drift: Any) -> None:
    crystal = drift.Crystal(30, RATE, 100, seed=1)
    host_ns, frames = (part.tolist() for part in drift.observations(crystal, 0, 30, np.random.default_rng(2)))
    plain, _ = drift.ask(HostClock(RATE), host_ns, frames)
    for later_ns, further in ((-drift.ORIGIN_NS, 0), (10**18, 10**17), (-(4 * 10**18), -(10**15))):
        moved, _ = drift.ask(HostClock(RATE), [at + later_ns for at in host_ns], [at + further for at in frames])
        assert [(frame - further, part) for frame, part in moved] == plain


def test_an_observation_leaves_nothing_behind(drift: Any) -> None:
    crystal, clock = drift.Crystal(60, RATE, 100, seed=1), HostClock(RATE)
    host_ns, frames = (part.tolist() for part in drift.observations(crystal, 0, 60, np.random.default_rng(2)))
    for at, frame in zip(host_ns[:8000], frames[:8000], strict=True):
        clock.observe(at, frame)
    before = sys.getallocatedblocks()
    for at, frame in zip(host_ns[8000:], frames[8000:], strict=True):
        clock.observe(at, frame)
    assert sys.getallocatedblocks() - before < 200


# -- faults --------------------------------------------------------------------------------------------------------


def test_outliers_of_any_length_are_not_heard(follow: Callable[..., Followed]) -> None:
    def held_up(t: Floats, host_ns: Integers, frames: Integers) -> Seen:
        chance = np.random.default_rng(7)
        hit = chance.random(len(t)) < 0.02
        late = np.where(hit, 10 ** chance.uniform(7, 9.5, len(t)), 0).astype(np.int64)  # 10 ms to 3 s
        order = np.argsort(host_ns + late, kind="stable")  # overtaken by what came in time
        return (host_ns + late)[order], frames[order]

    followed = follow(120, tamper=held_up)
    assert followed.worst(5, 119) <= 1
    assert followed.clock.ignored > 500
    assert followed.clock.relocks == 0


def test_a_stall_whose_backlog_comes_at_its_end_is_not_heard(follow: Callable[..., Followed]) -> None:
    def stalled(t: Floats, host_ns: Integers, frames: Integers) -> Seen:
        first, last = np.searchsorted(t, [60, 63])
        host_ns = host_ns.copy()
        host_ns[first:last] = host_ns[last] - last + np.arange(first, last)
        return host_ns, frames

    followed = follow(120, tamper=stalled)
    assert followed.worst(5) <= 1
    assert followed.clock.outliers > 1000
    assert followed.clock.relocks == 0


@pytest.mark.parametrize("late_ms", [50, 3000])
def test_a_jam_of_some_seconds_is_not_taken_for_the_time(follow: Callable[..., Followed], late_ms: int) -> None:
    def jammed(t: Floats, host_ns: Integers, frames: Integers) -> Seen:
        return np.maximum.accumulate(host_ns + np.where((t >= 60) & (t < 65), late_ms * 10**6, 0)), frames

    followed = follow(120, tamper=jammed)
    assert followed.worst(5) <= 1
    assert followed.clock.relocks == 0


def test_a_window_that_is_late_by_less_than_that_moves_it_by_a_frame_at_most(
    follow: Callable[..., Followed],
) -> None:
    def jammed(t: Floats, host_ns: Integers, frames: Integers) -> Seen:
        return host_ns + np.where((t >= 60) & (t < 61), 4 * 10**6, 0), frames

    followed = follow(120, tamper=jammed)
    assert followed.worst(5) <= 1


@pytest.mark.parametrize(("gap_seconds", "adrift_frames"), [(3, 1), (30, 4), (300, 150)])
def test_through_a_gap_it_goes_on_at_the_last_rate_and_comes_back_softly(
    follow: Callable[..., Followed], gap_seconds: int, adrift_frames: float
) -> None:
    followed = follow(200 + gap_seconds, kept=lambda t: (t < 100) | (t > 100 + gap_seconds))
    back = 100 + gap_seconds
    assert followed.worst(5, back + 0.5) <= adrift_frames, "10 ppm of wander, and no more"
    assert followed.fastest(back) <= GAP_SLEW + 20e-6
    assert followed.worst(back + 15) <= 1
    assert (followed.clock.relocks, followed.clock.locked) == (0, True)


@pytest.mark.parametrize("late_ms", [0.5, 3, -2])
def test_another_constant_lateness_is_followed_without_being_heard(
    follow: Callable[..., Followed], late_ms: float
) -> None:
    def later(t: Floats, host_ns: Integers, frames: Integers) -> Seen:
        return np.maximum.accumulate(host_ns + np.where(t >= 60, round(late_ms * 1e6), 0)), frames

    followed = follow(200, tamper=later)
    assert followed.fastest(20) <= SLEW + 20e-6
    assert followed.errors[-1] == pytest.approx(-late_ms * 48, abs=1.5)
    assert followed.clock.relocks == 0
    assert np.abs(followed.errors[followed.times > 60]).max() <= abs(late_ms) * 48 + 10, "it does not overshoot"


def test_another_rate_is_learned(follow: Callable[..., Followed]) -> None:
    def warmer(t: Floats, host_ns: Integers, frames: Integers) -> Seen:
        return host_ns + np.maximum((t - 60) * 40e3, 0).astype(np.int64), frames

    followed = follow(400, tamper=warmer)
    assert followed.clock.drift_ppm == pytest.approx(60, abs=12)
    truth = -np.maximum(followed.times - 60, 0) * 40e-6 * RATE
    late = followed.times > 300
    assert np.abs(followed.errors[late] - truth[late]).max() <= 1
    assert followed.clock.relocks == 0


@pytest.mark.parametrize(
    ("step_ns", "within_seconds"),
    [(-(50 * 10**6), 5), (-3600 * SECOND, 5), (-10 * SECOND, 5), (50 * 10**6, 12), (3600 * SECOND, 12)],
)
def test_a_host_clock_that_is_set_is_found_again_by_one_leap(
    follow: Callable[..., Followed], step_ns: int, within_seconds: int
) -> None:
    def leap(t: Floats, host_ns: Integers, frames: Integers) -> Seen:
        return host_ns + np.where(t >= 60, step_ns, 0), frames

    clean, followed = follow(120), follow(120, tamper=leap)
    clock = followed.clock
    assert (clock.relocks, clock.locked, clock.doubts) == (1, True, 0)
    assert clock.leap_frames == pytest.approx(-step_ns * RATE / SECOND * (1 + 100e-6), abs=abs(step_ns) * 1e-9 + 2)
    # The frames are what they were: nothing of the step is left. Until the leap it went on by the new host time.
    after = clean.times >= 60 + within_seconds
    off = [a[0] - b[0] + a[1] - b[1] for a, b in zip(followed.told, clean.told, strict=True)]
    assert np.abs(np.asarray(off)[after]).max() <= 1
    waiting = (clean.times >= 60) & (clean.times < 62.5)
    expected = step_ns * RATE / SECOND * (1 + clock.drift_ppm * 1e-6)
    assert np.abs(np.asarray(off)[waiting] - expected).max() <= abs(expected) * 20e-6 + 5, "nothing was slewed"


def test_a_counter_that_begins_anew_is_found_by_one_leap(follow: Callable[..., Followed]) -> None:
    followed = follow(120, tamper=lambda t, host_ns, frames: (host_ns, np.where(t >= 60, frames - 2_880_000, frames)))
    assert followed.clock.relocks == 1
    assert followed.clock.leap_frames == pytest.approx(-2_880_000, abs=2)


def test_a_clock_that_stands_still_or_runs_at_another_rate_is_not_followed() -> None:
    clock = HostClock(RATE)
    for number in range(3000):
        clock.observe(number * 10**7, number * 480)
    for number in range(3000, 6000):
        clock.observe(number * 10**7, 3000 * 480)
    for number in range(6000, 9000):
        clock.observe(number * 10**7, 3000 * 480 + (number - 6000) * 441)
    assert clock.relocks == 0
    assert clock.doubts > 50
    assert clock.drift_ppm == pytest.approx(0, abs=1)
    assert clock.frame_at(9000 * 10**7) == 9000 * 480, "it goes on alone"


def test_a_source_that_is_known_to_be_another_one_is_taken_up_at_once() -> None:
    clock = HostClock(RATE)
    for number in range(1000):
        clock.observe(number * 10**7, number * 480)
    clock.relock()
    assert not clock.locked
    clock.observe(10**10, 77)
    assert (clock.relocks, clock.frame_at(10**10)) == (1, 77)
    assert clock.leap_frames == pytest.approx(77 - 480_000, abs=1)
    for number in range(1, 500):
        clock.observe(10**10 + number * 10**7, 77 + number * 480)
    assert clock.locked
    assert clock.relocks == 1


# -- what is no observation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        (math.nan, 1), (1, math.nan), (math.inf, 1), (1, -math.inf), (None, 1), (1, "frame"), ("5", 5), (b"5", 5),
        (10**400, 1), (1, -(10**30)), (2**63, 2**63), ([1], 1), (True, 1), (1j, 1),
    ],
)  # fmt: skip
def test_what_is_no_observation_is_counted_and_changes_nothing(bad: tuple[Any, Any]) -> None:
    clock = HostClock(RATE)
    clock.observe(*bad)
    assert clock.ignored == 1
    for number in range(600):
        clock.observe(number * 10**7, number * 480)
    before = [clock.position(at) for at in range(0, 10**11, 10**9)]
    clock.observe(*bad)
    assert clock.ignored == 2
    assert [clock.position(at) for at in range(0, 10**11, 10**9)] == before
    for number in range(600, 1200):
        clock.observe(number * 10**7, number * 480)
    assert clock.frame_at(12 * SECOND) == 12 * RATE
    assert clock.relocks == 0


@pytest.mark.parametrize(("ns", "frames"), [(0, 0), (-(10**6), 0), (10**6, -(10**6)), (-(10**12), 0)])
def test_what_is_the_same_again_or_goes_back_once_is_counted_and_changes_nothing(ns: int, frames: int) -> None:
    clock = HostClock(RATE)
    for number in range(1200):
        clock.observe(number * 10**7, number * 480)
        if number == 700:
            before = clock.position(8 * SECOND)
            clock.observe(number * 10**7 + ns, number * 480 + frames)
            assert clock.ignored == 1
            assert clock.position(8 * SECOND) == before
    assert clock.frame_at(12 * SECOND) == 12 * RATE
    assert (clock.ignored, clock.relocks) == (1, 0)


def test_numbers_of_other_kinds_are_taken_for_what_they_are() -> None:
    plain, other = HostClock(RATE), HostClock(RATE)
    for number in range(1200):
        plain.observe(number * 10**7, number * 480)
        other.observe(np.int64(number * 10**7), np.float64(number * 480))  # type: ignore[arg-type]
    assert other.position(13 * SECOND) == plain.position(13 * SECOND)
    assert other.ignored == 0


@pytest.mark.parametrize(
    "options", [{"samplerate": 0}, {"window_seconds": 0.0}, {"window_seconds": math.nan}, {"bandwidth_hz": 0.2}]
)
def test_an_estimator_that_cannot_work_is_refused_in_words(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a clock has a positive rate, a window"):
        HostClock(**({"samplerate": RATE} | options))
