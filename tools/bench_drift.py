"""Suite ``drift``: two crystals a day apart from each other, and what becomes of a bar line between them.

All in virtual time. A device at 48 kHz tells its frame once per period of 128 frames, as it does live: 375 times a
second. What it tells is late by an exponential of 30 us, one time in a thousand by 1 to 10 ms more. Its crystal is
off by 100 ppm and wanders by 10: a sine of ten minutes (5 ppm), one of an hour (3 ppm) and a random walk (2 ppm).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rows import Options, Row

SUITE = "drift"
SAMPLERATE, PERIOD_FRAMES = 48000, 128
LATENESS_SECONDS, TAIL, TAIL_SECONDS = 30e-6, 1e-3, (1e-3, 1e-2)
MESSAGE_SECONDS, MESSAGE_LATENESS_SECONDS = 0.01, 100e-6
ORIGIN_NS = 1_234_567_890_123_456_789
CHUNK_SECONDS = 120
SETTLED_SECONDS = 60

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def rows(options: Options) -> Iterator[Row]:
    """Yield the suite's rows."""
    hours = 1 if options.quick else 24
    for ppm in (100, -100):
        yield from estimator_rows(hours, ppm)
    yield baseline_row(hours)
    yield from composite_rows(hours * 3600)


def row(name: str, value: float, unit: str, goal: str, ok: bool | None, reason: str = "") -> Row:
    """Make a row of this suite."""
    return Row(SUITE, name, float(value), unit, goal, None if ok is None else bool(ok), reason)


def estimator_rows(hours: int, ppm: int) -> Iterator[Row]:
    """Yield how far the shipped estimator is off, for a device ``ppm`` fast."""
    from realtime.hostclock import HostClock

    seconds = hours * 3600
    clock, device = HostClock(SAMPLERATE), Crystal(seconds, SAMPLERATE, ppm, seed=1)
    run = follow(clock, device, chance=np.random.default_rng(2))
    what = f"{run.observed:,} observations in {hours} h of virtual time, an output after each, from the lock on"
    yield row(f"error, device {ppm:+d} ppm", run.worst, "frames", "<= 1", run.worst <= 1, what)
    step, clean = run.largest_step, run.largest_step <= 0.05 and not clock.relocks
    yield row(
        f"jump from output to output, {ppm:+d} ppm", step, "frames", "<= 0.05", clean, "beyond the true clock's"
    )
    locked = run.locked_seconds
    yield row(f"until locked, within a frame, {ppm:+d} ppm", locked, "s", "<= 5", locked <= 5 and run.worst <= 1)
    off = float(np.abs(device.nominal_error(SAMPLERATE)).max())
    yield row(f"baseline: nominal rate, {ppm:+d} ppm", off, "frames", "", None, "what is corrected")
    if ppm > 0:
        yield row("time of an observation and an output", run.us_each, "us", "", None, "wall clock")


def baseline_row(hours: int) -> Row:
    """Return how far the same loop is off without the envelope."""
    device = Crystal(hours * 3600, SAMPLERATE, 100, seed=1)
    worst = plain_dll(device, np.random.default_rng(2))
    why = f"the same loop at every observation, without the envelope, from {SETTLED_SECONDS} s on"
    return row("baseline: plain DLL, +100 ppm", worst, "frames", "", None, why)


def composite_rows(seconds: int) -> Iterator[Row]:
    """Yield how far a DAW's time is off on the device's clock when the two are 100 ppm apart."""
    from realtime.hostclock import HostClock

    device, daw = Crystal(seconds, SAMPLERATE, 60, seed=3), Crystal(seconds, 10**9, -40, seed=4)
    device_clock, daw_clock = HostClock(SAMPLERATE), HostClock(10**9)
    chance, worst, outputs = np.random.default_rng(5), 0.0, 0
    for begin in range(0, seconds, CHUNK_SECONDS):
        end = min(begin + CHUNK_SECONDS, seconds)
        seen = observations(device, begin, end, chance)
        told = observations(
            daw, begin, end, chance, round(MESSAGE_SECONDS * 1e9), lateness_seconds=MESSAGE_LATENESS_SECONDS
        )
        aligned = align(device_clock, daw_clock, seen, told)
        truth = device.frames_at(daw.seconds_at(told[1]))
        wrong = np.abs(np.asarray(aligned) - truth)[told[0] >= ORIGIN_NS + 5 * 10**9]
        worst, outputs = max(worst, float(wrong.max())), outputs + len(wrong)
    what = (
        f"{outputs:,} positions of the DAW in {seconds / 3600:.3g} h, 100 a second, exponential lateness of "
        f"{MESSAGE_LATENESS_SECONDS * 1e6:.0f} us, rounded to whole device frames; from 5 s on"
    )
    yield row("error, DAW's time on the device, 100 ppm apart", worst, "frames", "<= 1", worst <= 1, what)


def align(device: Any, daw: Any, seen: tuple[Integers, Integers], told: tuple[Integers, Integers]) -> list[int]:
    """Feed two estimators in the order of time; return the device frame of each position of the DAW as it comes."""
    from realtime.hostclock import aligned_frame

    frames = iter(zip(*(part.tolist() for part in seen), strict=True))
    seen_ns, frame = next(frames)
    aligned = []
    for host_ns, daw_ns in zip(*(part.tolist() for part in told), strict=True):
        while seen_ns < host_ns:
            device.observe(seen_ns, frame)
            seen_ns, frame = next(frames, (2**62, 0))
        daw.observe(host_ns, daw_ns)
        aligned.append(aligned_frame(daw, daw_ns, device))
    for left in [(seen_ns, frame), *frames] if seen_ns < 2**62 else ():
        device.observe(*left)
    return aligned


# The world


class Crystal:
    """A clock of some nominal rate, with its error and its wander, against perfect time.

    Parameters
    ----------
    seconds
        How long it runs.
    samplerate
        Its nominal frames per second.
    ppm, wander_ppm
        How much too fast it is, and how far that wanders to either side.
    """

    def __init__(self, seconds: int, samplerate: int, ppm: float, wander_ppm: float = 10, seed: int = 0) -> None:
        chance = np.random.default_rng(seed)
        self.seconds, self.samplerate = seconds, samplerate
        self._knots = np.arange(seconds + seconds // 500 + 10, dtype=np.float64)  # a slow clock takes longer
        walk = np.sin(np.cumsum(chance.normal(0, 0.01, len(self._knots))))  # folded, so that it stays within +-1
        phases = chance.uniform(0, 2 * math.pi, 2)
        wander = (
            0.5 * np.sin(2 * math.pi * self._knots / 600 + phases[0])
            + 0.3 * np.sin(2 * math.pi * self._knots / 3600 + phases[1])
            + 0.2 * walk
        )
        extra = np.cumsum(samplerate * 1e-6 * (ppm + wander_ppm * wander[:-1]))
        # Only what it gains on its nominal rate is a float: as precise after a day as after a second.
        self._gained = np.concatenate([[0.0], extra])

    def nominal_error(self, samplerate: int) -> Floats:
        """Return by how many frames its nominal rate is wrong at each second."""
        return self._gained * samplerate / self.samplerate

    def frames_at(self, seconds: Floats) -> Floats:
        """Return its frame at each time."""
        return seconds * self.samplerate + np.interp(seconds, self._knots, self._gained)

    def seconds_at(self, frames: Integers) -> Floats:
        """Return the time of each frame."""
        nominal = frames / self.samplerate
        seconds = nominal
        for _ in range(4):  # each brings it 10,000 times nearer
            seconds = nominal - np.interp(seconds, self._knots, self._gained) / self.samplerate
        return seconds


def observations(
    crystal: Crystal,
    begin: float,  # of the clock's own seconds
    end: float,
    chance: np.random.Generator,
    step: int = PERIOD_FRAMES,
    *,
    lateness_seconds: float = LATENESS_SECONDS,
    tail: float = TAIL,
) -> tuple[Integers, Integers]:
    """Return host times (ns, rising) and frames of what is observed of a clock between two of its own times."""
    first, last = (-(-round(place * crystal.samplerate) // step) for place in (begin, end))
    frames = np.arange(first, last, dtype=np.int64) * step
    late = chance.exponential(lateness_seconds, len(frames))
    held_up = chance.random(len(frames)) < tail
    late[held_up] += chance.uniform(*TAIL_SECONDS, int(held_up.sum()))
    host_ns = ORIGIN_NS + np.rint((crystal.seconds_at(frames) + late) * 1e9).astype(np.int64)
    return np.maximum.accumulate(host_ns), frames


@dataclass
class Run:
    """What came of following a clock.

    Attributes
    ----------
    times, errors
        Of each output: host time in seconds, and estimate minus truth in frames.
    """

    observed: int = 0
    worst: float = 0.0
    largest_step: float = 0.0
    locked_seconds: float = math.inf
    us_each: float = math.inf
    times: list[Floats] = field(default_factory=list)
    errors: list[Floats] = field(default_factory=list)


def follow(
    clock: Any, crystal: Crystal, chance: np.random.Generator, until: int | None = None, keep: bool = False
) -> Run:
    """Let an estimator follow a clock, and ask it after each observation where the clock is."""
    run, busy_seconds, last_error = Run(), 0.0, math.nan
    for begin in range(0, until or crystal.seconds, CHUNK_SECONDS):
        end = min(begin + CHUNK_SECONDS, until or crystal.seconds)
        host_ns, frames = observations(crystal, begin, end, chance)
        started = time.perf_counter()
        told, locked_ns = ask(clock, host_ns.tolist(), frames.tolist())
        busy_seconds += time.perf_counter() - started
        times, errors = judged(crystal, host_ns, told)
        run.observed += len(frames)
        if run.locked_seconds == math.inf and locked_ns is not None:
            run.locked_seconds = (locked_ns - ORIGIN_NS) / 1e9
        since = errors[times >= run.locked_seconds]
        if len(since):
            run.worst = max(run.worst, float(np.abs(since).max()))
            steps = np.diff(since, prepend=last_error if math.isfinite(last_error) else since[0])
            run.largest_step, last_error = max(run.largest_step, float(np.abs(steps).max())), float(since[-1])
        if keep:
            run.times.append(times)
            run.errors.append(errors)
    run.us_each = busy_seconds / run.observed * 1e6
    return run


def ask(clock: Any, host_ns: list[int], frames: list[int]) -> tuple[list[tuple[int, float]], int | None]:
    """Feed observations; return the estimate right after each, and when it was locked first."""
    told, locked_ns, observe, position = [], None, clock.observe, clock.position
    for at, frame in zip(host_ns, frames, strict=True):
        observe(at, frame)
        told.append(position(at))
        if locked_ns is None and clock.locked:
            locked_ns = at
    return told, locked_ns


def judged(crystal: Crystal, host_ns: Integers, told: list[tuple[int, float]]) -> tuple[Floats, Floats]:
    """Return the times in seconds, and estimates minus truth in frames."""
    times = (host_ns - ORIGIN_NS) / 1e9
    truth = crystal.frames_at(times)
    whole = np.fromiter((frame for frame, _ in told), np.int64, len(told))
    part = np.fromiter((fraction for _, fraction in told), np.float64, len(told))
    return times, (whole - truth) + part


def plain_dll(crystal: Crystal, chance: np.random.Generator) -> float:
    """Return the worst error in frames of the loop of Adriaensen (2005), taking every observation as it comes."""
    from realtime.hostclock import BANDWIDTH_HZ

    period = PERIOD_FRAMES / SAMPLERATE
    omega = 2 * math.pi * BANDWIDTH_HZ * period
    alpha, beta = math.sqrt(2) * omega, omega * omega
    expected, width, worst = None, period, 0.0
    for begin in range(0, crystal.seconds, CHUNK_SECONDS):
        host_ns, frames = observations(crystal, begin, min(begin + CHUNK_SECONDS, crystal.seconds), chance)
        told = []
        for seconds in ((host_ns - ORIGIN_NS) / 1e9).tolist():
            expected = seconds if expected is None else expected
            error = seconds - expected
            told.append(expected)
            expected += alpha * error + width
            width += beta * error
        wrong = np.abs(np.asarray(told) - crystal.seconds_at(frames)) * SAMPLERATE
        settled = wrong[crystal.seconds_at(frames) >= SETTLED_SECONDS]
        worst = max(worst, float(settled.max(initial=0.0)))
    return worst
