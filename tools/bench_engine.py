"""Suite ``engine``: how long the engine takes for a block, with a whole band at work.

The shipped engine (:func:`realtime.engine.shared_engine`) runs in a process of its own, as it does live: garbage
collection frozen and off, SCHED_FIFO where that is allowed, driven by the shipped stream on the wall clock
(:class:`realtime.stream.NullStream`: the device's does the same and copies what was mixed). Every stem sounds, and is
asked and answered bar by bar, speculative and final and how it would go on, with origins of sixteen pieces; a second
process stands for all the workers, and this one drains the take's lines as a recorder does.

The engine wakes once in a few blocks of 128 frames at 48 kHz and mixes them together. Everything from waking up to
going to sleep is timed, also where there was nothing to mix, and shared out evenly among the blocks mixed; none is
left out. The longest turn is told beside it, as a part of the lead.

Beside it a control runs at the same priority and period: the bare copies and sums of as many stems, in NumPy. What
the control takes beyond its usual time is the machine's. Where the control itself is over a goal, ``ok`` is null.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rows import Options, Row

from realtime.buffers import Arena, ArenaHandle, Layout, StatusBlock, checksum, join_frames
from realtime.clock import TempoMap
from realtime.engine import Engine, EngineConfig, PartConfig, engine_layout, settle, shared_engine
from realtime.messages import encode, to_bytes
from realtime.mixer import Metronome, Monitor, Strip
from realtime.protocols import Origin, Piece, StreamSpec
from realtime.rights import ENGINE_PRIORITY, use_realtime
from realtime.seat import ADMITTED, STATE_ARMED, AgentConfig
from realtime.stream import STREAM_FIELDS, NullStream

SUITE = "engine"
SAMPLERATE, PERIOD_FRAMES, LEAD = 48000, 128, 1024
PERIOD_NS, LEAD_NS = (frames * 10**9 // SAMPLERATE for frames in (PERIOD_FRAMES, LEAD))
BPM = 120
BAR_BLOCKS = 4 * 60 * SAMPLERATE // BPM // PERIOD_FRAMES
STEMS, SCALING = 16, (1, 4, 64)
WARM_UP_BARS = 3
PIECES = 16
LEVEL = 0.05
COMPUTE_SECONDS = 0.05
"""What an answer is said to have taken: it settles how long before a bar line it is asked for."""
FLAT_BLOCKS = 100_000
FLAT_STEMS = 4
SETTLED_BARS = 500
"""By then every bounded memory of the engine is full: recent answers, questions, cached numbers."""

Nanoseconds = npt.NDArray[np.int64]


def rows(options: Options) -> Iterator[Row]:
    """Yield the suite's rows."""
    with tempfile.TemporaryDirectory(prefix="sideman-bench-") as name:
        folder = Path(name)
        yield from time_rows(folder, 4500 if options.quick else 100_000)
        for stems in SCALING:
            yield scaling_row(folder, stems, 900 if options.quick else 7500)
        yield from flat_rows(folder, FLAT_BLOCKS, 0 if options.quick else SETTLED_BARS)


def row(name: str, value: float, unit: str, goal: str, ok: bool | None, reason: str = "") -> Row:
    """Make a row of this suite."""
    return Row(SUITE, name, float(value), unit, goal, None if ok is None else bool(ok), reason)


def unmeasured(name: str, unit: str, goal: str, reason: str) -> Row:
    """Make a row for what cannot be measured here."""
    return Row(SUITE, name, None, unit, goal, None, reason)


def time_rows(folder: Path, blocks: int) -> Iterator[Row]:
    """Time every block of a band of sixteen, beside the control."""
    found = measure(folder, STEMS, blocks)
    name = f"time of a block, {STEMS} stereo stems"
    if isinstance(found, str):
        yield unmeasured(name, "%", "<= 2, <= 10", found)
        return
    control = np.percentile(found.control, [50, 99, 99.9, 100]) / PERIOD_NS * 100
    figures = np.percentile(found.times, [50, 99, 99.9, 100]) / PERIOD_NS * 100
    what = f"of the period; {len(found.times):,} blocks, {found.spans:,} spans played, " + (
        "SCHED_FIFO" if found.realtime else "no realtime rights"
    )
    for label, value, quiet, most in zip(
        ("p50", "p99", "p99.9", "max"), figures, control, (2, 0, 10, 0), strict=True
    ):
        if not most:
            yield row(f"{name}, {label}", value, "%", "", None, "no goal")
            continue
        ok, reason = bool(value <= most), what
        if quiet > most or (not ok and not found.realtime):
            ok, reason = None, f"{what}; the machine is too noisy: its control takes {quiet:.1f} %"  # type: ignore[assignment]
        yield row(f"{name}, {label}", value, "%", f"<= {most}", ok, reason)
    yield row("control, p50", control[0], "%", "", None, "bare copies and sums of as many stems, beside it")
    yield row("control, p99.9", control[2], "%", "", None, f"max {control[3]:.1f} %")
    yield row("longest turn", found.longest_turn / LEAD_NS * 100, "%", "", None,
              f"of the lead; {found.turn_frames} frames are mixed at a time")  # fmt: skip
    yield row("blocks in a second of the engine's time", 1e9 / found.times.mean(), "1/s", "", None,
              f"{SAMPLERATE / PERIOD_FRAMES:g} are played")  # fmt: skip


def scaling_row(folder: Path, stems: int, blocks: int) -> Row:
    """Time a band of another size."""
    name = f"time of a block, {stems} stereo stem{'s' if stems > 1 else ''}, p50"
    found = measure(folder, stems, blocks)
    if isinstance(found, str):
        return unmeasured(name, "%", "", found)
    p50, tail = np.percentile(found.times, [50, 99.9]) / PERIOD_NS * 100
    return row(name, p50, "%", "", None, f"p99.9 {tail:.1f} %; {len(found.times):,} blocks; no goal, for comparison")


def flat_rows(folder: Path, blocks: int, settled_bars: int) -> Iterator[Row]:
    """Let the engine run as fast as it can and look at its interpreter's memory once a bar, after so many bars.

    Without these what is bounded still fills up, and nothing can be said.
    """
    name, goal = f"engine's allocated blocks over {blocks:,} blocks", "<= 0.1"
    found = measure(folder, FLAT_STEMS, blocks + settled_bars * BAR_BLOCKS, paced=False)
    if isinstance(found, str):
        yield unmeasured(name, "1/bar", goal, found)
        return
    slope = growth(found.allocated[settled_bars:])
    what = f"objects a bar, from bar {settled_bars} on, looked at once a bar in the same place; {found.spans:,} spans"
    if not settled_bars:
        what += "; what is bounded has not filled up: without --quick it has"
    yield row(name, slope, "1/bar", goal, slope <= 0.1 if settled_bars else None, what)
    yield row(f"blocks a second, unpaced, {FLAT_STEMS} stems", 1e9 / found.times.mean(), "1/s", "", None)


def growth(allocated: Nanoseconds) -> float:
    """Return by how many objects a bar the count grows: the median slope between all pairs of bars that lie apart.

    What is kept for a while and let go again, be it a queue or a cache, does not count; what is kept for ever does.
    """
    bars = np.arange(len(allocated))
    first, second = np.triu_indices(len(bars), max(1, len(bars) // 2))
    return float(np.median((allocated[second] - allocated[first]) / (second - first)))


# What is measured, and how


@dataclass(frozen=True, slots=True)
class Found:
    """Nanoseconds of each block of the engine and of the control, objects once a bar, spans that an answer played.

    The longest turn, in nanoseconds, and its length in frames.
    """

    times: Nanoseconds
    longest_turn: int
    turn_frames: int
    control: Nanoseconds
    allocated: Nanoseconds
    spans: int
    realtime: bool


def measure(folder: Path, stems: int, blocks: int, paced: bool = True) -> Found | str:
    """Run a band for so many blocks; return what was found, or why nothing was."""
    config = band(stems)
    try:
        arena = Arena.create(layout(config))
    except OSError as error:
        return f"no memory for {stems} stems: {error}"
    context = multiprocessing.get_context("spawn")
    wakes = [context.Semaphore(0) for _ in config.parts]
    warm_up = WARM_UP_BARS * BAR_BLOCKS
    paths = [str(folder / f"{name}.npz") for name in ("engine", "control")]
    feeder = context.Process(target=feed, args=(arena.handle, config, paced), daemon=True)
    engine = context.Process(target=drive, args=(arena.handle, config, wakes, warm_up, blocks, paced, paths[0]),
                             daemon=True)  # fmt: skip
    control = context.Process(target=be_control, args=(arena.handle, stems, warm_up + blocks, paths[1]), daemon=True)
    processes = [feeder, engine, control] if paced else [feeder, engine]
    try:
        for process in processes:
            process.start()
        log = arena.records("log")
        deadline = time.monotonic() + 60 + 2 * (warm_up + blocks) * PERIOD_NS / 1e9
        spans = 0
        while engine.is_alive() and time.monotonic() < deadline:
            while (record := log.take()) is not None:
                line = json.loads(record)
                spans += line["type"] == "span" and line["rung"] == 1
            time.sleep(0.05 if paced else 0.001)
        arena["bench"][0] = 1
        for process in processes:
            process.join(10)
        if engine.exitcode != 0:
            return "the engine's process did not come to its end"
        with np.load(paths[0]) as file:
            made = dict(file)
        quiet = np.load(paths[1])["times"][warm_up:] if paced else np.zeros(1, np.int64)
        times, turn = made["times"], config.spec.turn_frames
        longest = int(made["longest_turn"])
        return Found(times, longest, turn, quiet, made["allocated"], spans, bool(made["realtime"]))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        arena.close()
        arena.unlink()


def band(stems: int) -> EngineConfig:
    """Return a band of stereo agents in steady time, with a metronome and the player's own sound."""
    spec = StreamSpec(SAMPLERATE, 1, 2, PERIOD_FRAMES, LEAD)
    names = [f"agent-{index}" for index in range(stems)]
    parts = tuple(PartConfig(AgentConfig(name, "corpus", 2), Strip(name, 2, gain_db=-6.0)) for name in names)
    return EngineConfig(
        spec, TempoMap.steady(SAMPLERATE, BPM), 1, parts, metronome=Metronome(on=True), monitor=Monitor(),
        monitor_delay_frames=LEAD, longest_span_seconds=2.5,
    )  # fmt: skip


def layout(config: EngineConfig) -> Layout:
    """Return the session's memory, and a word of this bench's own: when all is over, when the engine rolls."""
    return {**engine_layout(config), "bench": (np.dtype("i8"), (2,))}


def drive(
    handle: ArenaHandle, config: EngineConfig, wakes: list[Any], warm_up: int, blocks: int, paced: bool, path: str
) -> None:
    """Be the engine's process."""
    arena = Arena.attach(handle)
    engine = shared_engine(arena, config, wakes)
    wait_until_armed(arena, config)
    settle()
    realtime = use_realtime(ENGINE_PRIORITY)
    arena["bench"][1] = 1
    if paced:
        watch = Watch(engine, warm_up, blocks)
        NullStream(config.spec, sleep=watch.sleep, status=StatusBlock.private(STREAM_FIELDS)).run(engine)
        times, allocated, longest = watch.times[warm_up:], np.zeros(1, np.int64), watch.longest
    else:
        times, allocated = hurried(engine, warm_up + blocks)
        times, longest = times[warm_up:], int(times.max())
    np.savez(path, times=times, allocated=allocated, realtime=realtime, longest_turn=longest)


class Watch:
    """Stands between the stream and its sleep: what passes from one sleep to the next is the engine's time."""

    def __init__(self, engine: Engine, warm_up: int, blocks: int) -> None:
        self.times = np.zeros(warm_up + blocks, np.int64)
        self.longest = 0
        self._engine, self._warm_up = engine, warm_up
        self._made = self._spent = 0
        self._woke = time.perf_counter_ns()

    def sleep(self, seconds: float) -> None:
        """Note what this turn took, share it out among its blocks; then sleep."""
        spent = time.perf_counter_ns() - self._woke
        self._spent += spent
        end = min(self._engine.mixed // PERIOD_FRAMES, len(self.times))
        if end > self._made:
            self.times[self._made : end] = self._spent // (end - self._made)
            self.longest = max(self.longest, spent if self._made >= self._warm_up else 0)
            self._made, self._spent = end, 0
        if end == len(self.times):
            self._engine.stopped = True
            return
        time.sleep(seconds)
        self._woke = time.perf_counter_ns()


def hurried(engine: Engine, blocks: int) -> tuple[Nanoseconds, Nanoseconds]:
    """Mix block after block as fast as it goes; return the time of each, and the interpreter's objects once a bar."""
    sound = np.random.default_rng(1).normal(0, LEVEL, (PERIOD_FRAMES, 1)).astype(np.float32)
    times = np.zeros(blocks, np.int64)
    allocated = np.zeros(blocks // BAR_BLOCKS + 1, np.int64)
    for index in range(blocks):
        engine.played = engine.mixed - LEAD
        begun = time.perf_counter_ns()
        engine.hear(sound)
        engine.mix(PERIOD_FRAMES)
        times[index] = time.perf_counter_ns() - begun
        if index % BAR_BLOCKS == 0:
            allocated[index // BAR_BLOCKS] = sys.getallocatedblocks()
    return times, allocated


class Pace:
    """Wakes once a period; a stall is one lateness, not many."""

    def __init__(self) -> None:
        self._due = time.monotonic_ns()

    def wait(self) -> None:
        """Wait for the next period."""
        self._due += PERIOD_NS
        time.sleep(max(0, self._due - time.monotonic_ns()) / 1e9)
        self._due = max(self._due, time.monotonic_ns() - PERIOD_NS)


def be_control(handle: ArenaHandle, stems: int, blocks: int, path: str) -> None:
    """Be the control: as much sound, moved and added up with nothing around it."""
    arena = Arena.attach(handle)
    clips = np.random.default_rng(2).normal(0, LEVEL, (stems, SAMPLERATE, 2)).astype(np.float32).view(np.complex64)
    ring = np.zeros((SAMPLERATE // PERIOD_FRAMES * PERIOD_FRAMES, stems), np.complex64)
    packed, gains = np.zeros((stems, 2 * PERIOD_FRAMES), np.float32), np.ones((stems, 2 * PERIOD_FRAMES), np.float32)
    times = np.zeros(blocks, np.int64)
    settle()
    use_realtime(ENGINE_PRIORITY)
    while not arena["bench"][1]:
        time.sleep(0.001)
    time.sleep(PERIOD_NS / 2e9)  # between the engine's blocks, not in their midst
    clock = Pace()
    for index in range(blocks):
        clock.wait()
        at = index * PERIOD_FRAMES % len(ring)
        begun = time.perf_counter_ns()
        for stem in range(stems):
            ring[at : at + PERIOD_FRAMES, stem] = clips[stem, at : at + PERIOD_FRAMES, 0]
        packed.view(np.complex64)[...] = ring[at : at + PERIOD_FRAMES].T
        np.multiply(packed, gains, out=packed)
        count = stems
        while count > 1:
            half = (count + 1) // 2
            np.add(packed[: count - half], packed[half:count], out=packed[: count - half])
            count = half
        times[index] = time.perf_counter_ns() - begun
    np.savez(path, times=times)


# The other processes' part


def wait_until_armed(arena: Arena, config: EngineConfig) -> None:
    """Wait until all agents serve."""
    statuses = [arena.status(f"{part.agent.name}.worker0") for part in config.parts]
    while any(status.read()["state"] != STATE_ARMED for status in statuses):
        time.sleep(0.001)


def feed(handle: ArenaHandle, config: EngineConfig, paced: bool) -> None:
    """Be all the workers: answer every question at once, with sound and an origin as a corpus agent gives them."""
    with suppress(AttributeError, OSError):
        os.nice(5)
    arena = Arena.attach(handle)
    stands = [Stand(arena, part.agent.name, seed) for seed, part in enumerate(config.parts)]
    while not arena["bench"][0]:
        for stand in stands:
            if stand.answer():  # one after the other, as two cores would
                time.sleep(0.002 if paced else 0)
        time.sleep(0.001 if paced else 0)


class Stand:
    """Stands for one agent's worker: the same records, the same memory, no thought."""

    def __init__(self, arena: Arena, name: str, seed: int) -> None:
        self._requests, self._replies = arena.records(f"{name}.requests"), arena.records(f"{name}.replies")
        self._clips = arena[f"{name}.clips"]
        frames, channels = self._clips.shape[1:]
        self._sound = np.random.default_rng(seed).normal(0, LEVEL, (frames, channels)).astype(np.float32)
        self._lead_in = join_frames(SAMPLERATE)
        arena[f"{name}.seat"][ADMITTED] = 1
        arena.status(f"{name}.worker0").publish(
            state=STATE_ARMED,
            budget_seconds=2 * COMPUTE_SECONDS,
            warm_up_runs=1,
            heartbeat_ns=time.monotonic_ns(),
            continues=1,
        )

    def answer(self) -> bool:
        """Answer the next question, if there is one; return whether there was."""
        while (record := self._requests.take()) is not None:
            message = json.loads(record)
            if "play" in message:
                self._play(message["play"], int(message["slot"]))
                return True
        return False

    def _play(self, request: dict[str, Any], slot: int) -> None:
        frames = self._lead_in + int(request["frames"])
        clip = self._clips[slot, :frames]
        clip[:] = self._sound[:frames]
        self._replies.post(
            to_bytes({
                "span": request["span"], "attempt": request["attempt"], "slot": slot, "fault": "",
                "compute_seconds": COMPUTE_SECONDS, "origin": encode(origin(int(request["frames"]))),
                "frames": frames, "lead_in": self._lead_in, "checksum": checksum(clip),
            })
        )  # fmt: skip


def origin(frames: int) -> Origin:
    """Return an origin like that of a corpus agent that plays sixteenths."""
    starts = [frames * k // PIECES for k in range(PIECES + 1)]
    return Origin("corpus", "demo-corpora/bass", "0123456789abcdef" * 4, tuple(
        Piece("bass.flac", 48000 * k + 117, end - at, at, end - at, 31 * k, False, 0.8333)
        for k, (at, end) in enumerate(pairwise(starts))
    ))  # fmt: skip
