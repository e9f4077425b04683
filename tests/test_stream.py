"""Streams on virtual time: the same frames whatever the block, and a clock that neither stops nor leaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import io
from realtime.buffers import Arena
from realtime.protocols import Block, StreamSpec
from realtime.stream import (
    FAILED,
    RUNNING,
    SECOND_NS,
    STALE_NS,
    STARTING,
    DeviceStream,
    NullStream,
    OfflineStream,
    Playhead,
    frames_in,
)

MS = 1_000_000
SPEC = StreamSpec(48_000, inputs=1, outputs=1, blocksize=128, lead=1024)


class Ramp:
    """A process whose output tells its frame, counted from 1, plus a trace of what was heard up to there."""

    def __init__(self, end: int, stop_at: int | None = None) -> None:
        self.heard = 0
        self.mixed = 0
        self.played = -1
        self.input: list[Block] = []
        self.stopped = False
        self._end = end if stop_at is None else stop_at

    def hear(self, block: Block) -> None:
        self.input.append(block.copy())
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        self.mixed += frames
        self.stopped = self.mixed >= self._end
        return np.arange(self.mixed - frames + 1, self.mixed + 1, dtype=np.float32)[:, None]

    def all_input(self) -> Block:
        return np.concatenate(self.input)


class World:
    """Virtual time in steps of a millisecond, in which a scripted device process may live."""

    def __init__(self) -> None:
        self.now_ns = 5 * SECOND_NS
        self.each: list[Callable[[], None]] = []

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds * 1000))):
            self.now_ns += MS
            for action in self.each:
                action()

    def at(self, seconds: float) -> int:
        return 5 * SECOND_NS + int(seconds * SECOND_NS)


class ScriptedIo:
    """Writes what a device process would, while it is alive: playhead, heartbeat, and its frame as the input."""

    def __init__(self, world: World, arena: Arena, alive: Callable[[float], bool]) -> None:
        self._world = world
        self._status = arena.status("io.status")
        self._stream = arena.status("stream.status")
        self._input = arena.ring("io.input")
        self._alive = alive
        self._anchor: tuple[int, int] | None = None
        self.shift = 0  # how far wrong the device takes the engine's clock, when it comes back
        world.each.append(self.tick)

    def tick(self) -> None:
        now = self._world.now_ns
        if not self._alive((now - self._world.at(0)) / SECOND_NS):
            self._anchor = None
            return
        stream = self._stream.read()
        if self._anchor is None:
            self._anchor = (stream["frame"] + self.shift + frames_in(now - stream["time_ns"], 48_000), now)
        frame = self._anchor[0] + frames_in(now - self._anchor[1], 48_000) // 128 * 128
        self._status.publish(state=RUNNING, heartbeat_ns=now, playhead=frame, playhead_ns=now, has_input=1)
        start = max(self._input.written, 0)
        if frame > start:
            fresh = max(start, frame - 480) if start == 0 else start
            self._input.write(fresh, np.arange(fresh, frame, dtype=np.float32)[:, None])


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(io.layout(SPEC))
    yield arena
    arena.close()
    arena.unlink()


def render(blocksize: int, frames: int, source: Block | Callable[[int], Block]) -> tuple[Ramp, Block]:
    made: list[Block] = []
    process = Ramp(frames)
    OfflineStream(StreamSpec(48_000, 1, 1, blocksize), source, frames, lambda block: made.append(block.copy())).run(
        process
    )
    return process, np.concatenate(made)


@pytest.mark.parametrize("blocksize", [1, 64, 65, 300, 8192])
def test_offline_block_size_changes_nothing(blocksize: int) -> None:
    audio = np.random.default_rng(1).standard_normal((1000, 1)).astype(np.float32)
    process, output = render(blocksize, 1000, audio)
    assert np.array_equal(output[:, 0], np.arange(1, 1001))
    assert np.array_equal(process.all_input(), audio)
    assert max(len(block) for block in process.input) == min(blocksize, 1000)


def test_offline_input_that_ends_goes_on_as_silence() -> None:
    process, output = render(64, 300, np.ones((100, 1), np.float32))
    assert len(output) == 300
    assert process.all_input().sum() == 100
    assert not process.all_input()[100:].any()


def test_offline_reader_is_asked_for_each_block() -> None:
    asked: list[int] = []

    def read(count: int) -> Block:
        asked.append(count)
        return np.zeros((count, 1), np.float32)

    render(128, 300, read)
    assert asked == [128, 128, 44]


def test_offline_ends_when_the_process_stops_and_tells_progress() -> None:
    told: list[int] = []
    process = Ramp(1000, stop_at=200)
    OfflineStream(StreamSpec(48_000, 1, 1, 100), np.zeros((0, 1), np.float32), 1000, lambda _: None, told.append).run(
        process
    )
    assert told == [100, 200]


def test_offline_refuses_what_is_no_stream() -> None:
    silence = np.zeros((10, 1), np.float32)
    with pytest.raises(ValueError, match="blocksize=0"):
        OfflineStream(StreamSpec(48_000, blocksize=0), silence, 10, lambda _: None)
    with pytest.raises(ValueError, match="frames=-1"):
        OfflineStream(SPEC, silence, -1, lambda _: None)
    with pytest.raises(ValueError, match="axes swapped"):
        OfflineStream(SPEC, np.zeros((1, 10), np.float32), 10, lambda _: None).run(Ramp(10))


def test_null_stream_keeps_lead_ahead_of_the_clock() -> None:
    world, process = World(), Ramp(48_000)
    seen: list[tuple[int, int, int]] = []
    world.each.append(lambda: seen.append((world.now_ns, process.mixed, process.heard)))
    NullStream(SPEC, world.clock, world.sleep).run(process)
    for time_ns, mixed, heard in seen:
        now = frames_in(time_ns - world.at(0), 48_000) - SPEC.lead
        assert SPEC.lead - 2 * 48 <= mixed - now <= SPEC.lead + SPEC.turn_frames, (
            "a sleep is a whole number of ms here"
        )
        assert max(0, now) - SPEC.turn_frames - 2 * 48 <= heard <= max(0, now)
    assert len(set(mixed for _, mixed, _ in seen)) < 1.1 * 48_000 / SPEC.turn_frames, "it wakes for whole turns"
    assert world.now_ns - world.at(0) == pytest.approx(SECOND_NS, abs=13 * MS)
    assert not process.all_input().any()


@pytest.mark.parametrize("device", [True, False])
def test_a_live_stream_tells_the_process_what_is_played(arena: Arena, device: bool) -> None:
    world, process = World(), Ramp(4_800)
    told: list[tuple[int, int]] = []
    status = arena.status("stream.status")
    world.each.append(lambda: told.append((process.played, status.read()["frame"])))
    if device:
        DeviceStream(SPEC, arena, world.clock, world.sleep, patience_seconds=0).run(process)
    else:
        NullStream(SPEC, world.clock, world.sleep, status).run(process)
    assert told[0][0] == -SPEC.lead
    assert all(played == frame for played, frame in told)
    assert process.played > 4_800 - SPEC.lead - SPEC.turn_frames


def test_a_virtual_stream_plays_to_nobody() -> None:
    process, _ = render(64, 300, np.zeros((300, 1), np.float32))
    assert process.played == -1


@pytest.mark.parametrize("extra", [0, 700])
def test_more_is_mixed_ahead_for_a_device_that_asks_for_it(arena: Arena, extra: int) -> None:
    world = World()
    ScriptedIo(world, arena, alive=lambda seconds: seconds > 0.1)
    arena.status("io.status").publish(extra_lead=extra)
    _, _, seen = run_device(world, arena, 1.0)
    ahead = {mixed - frame for _, frame, mixed in seen[200:800]}
    assert ahead
    assert all(SPEC.lead + extra <= frames < SPEC.lead + extra + SPEC.turn_frames for frames in ahead), (
        "in whole turns"
    )


def test_null_stream_counts_what_was_due_before_it_was_mixed(arena: Arena) -> None:
    world, held = World(), [True]

    def sleep(seconds: float) -> None:
        world.sleep(seconds)
        if held and world.now_ns > world.at(1.0):
            held.clear()
            world.sleep(0.5)

    stream = NullStream(SPEC, world.clock, sleep, arena.status("stream.status"))
    stream.run(Ramp(2 * 48_000))
    told = arena.status("stream.status").read()
    assert (stream.late.underruns, told["underruns"]) == (1, 1)
    assert told["late_frames"] == stream.late.frames == pytest.approx(24_000 - SPEC.lead, abs=300)
    assert 96_000 <= told["mixed"] < 96_000 + SPEC.turn_frames


@given(
    st.lists(
        st.tuples(st.integers(0, 20 * MS), st.booleans(), st.integers(-100_000, 100_000), st.integers(0, 400 * MS)),
        max_size=60,
    )
)
def test_playhead_never_goes_back_nor_leaps(steps: list[tuple[int, bool, int, int]]) -> None:
    """Whatever a device process says, alive or not, right or wrong."""
    time_ns, told = SECOND_NS, -1024
    playhead = Playhead(SPEC, told, time_ns)
    for elapsed_ns, running, playhead_frame, age_ns in steps:
        time_ns += elapsed_ns
        device = {
            "state": RUNNING if running else FAILED,
            "heartbeat_ns": time_ns - age_ns,
            "playhead": playhead_frame,
            "playhead_ns": time_ns - age_ns,
        }
        now = playhead.advance(time_ns, device)
        assert told <= now <= told + frames_in(elapsed_ns, 48_000) + SPEC.blocksize
        assert playhead.follows == (running and age_ns < STALE_NS)
        told = now


def test_playhead_counts_on_by_the_wall_clock_without_rounding_up_errors() -> None:
    playhead = Playhead(SPEC, 0, 0)
    dead = {"state": FAILED, "heartbeat_ns": 0, "playhead": 0, "playhead_ns": 0}
    for turn in range(1, 30_001):
        now = playhead.advance(turn * 1_999_999, dead)
    assert now == frames_in(30_000 * 1_999_999, 48_000)


def run_device(world: World, arena: Arena, seconds: float) -> tuple[Ramp, DeviceStream, list[tuple[int, int, int]]]:
    """Run a device stream; return also (time, frame published, mixed) for every millisecond."""
    process = Ramp(int(seconds * 48_000))
    stream = DeviceStream(SPEC, arena, world.clock, world.sleep, patience_seconds=0)
    status, seen = arena.status("stream.status"), []

    def note() -> None:
        told = status.read()
        seen.append((told["time_ns"], told["frame"], told["mixed"]))

    world.each.insert(0, note)
    stream.run(process)
    return process, stream, seen


@pytest.mark.parametrize(
    ("state", "epoch", "waited_seconds"), [(STARTING, 0, 5.0), (FAILED, 0, 1.0), (STARTING, 1, 1.0)]
)
def test_the_first_frame_waits_for_a_device_that_opens(
    arena: Arena, state: int, epoch: int, waited_seconds: float
) -> None:
    world = World()

    def change() -> None:
        if world.now_ns == world.at(1.0):
            arena.status("io.status").publish(state=state, epoch=epoch)

    world.each.append(change)
    DeviceStream(SPEC, arena, world.clock, world.sleep).run(Ramp(48_000))
    told = arena.status("stream.status").read()
    seconds = (told["time_ns"] - world.at(0)) / SECOND_NS
    assert seconds == pytest.approx(waited_seconds + 1 + SPEC.lead / 48_000, abs=0.005)


def test_device_stream_writes_every_frame_at_its_index(arena: Arena) -> None:
    world = World()
    ScriptedIo(world, arena, alive=lambda seconds: seconds > 0.1)
    process, stream, _ = run_device(world, arena, 2.0)
    ring = arena.ring("io.output")
    assert ring.written == process.mixed
    assert np.array_equal(ring.read(0, 96_000)[:, 0], np.arange(1, 96_001))
    assert stream.late.underruns == 0


def test_clock_goes_on_when_the_device_dies_and_keeps_the_grid_when_it_is_back(arena: Arena) -> None:
    world = World()
    ScriptedIo(world, arena, alive=lambda seconds: not 1.0 < seconds < 2.5)
    process, stream, seen = run_device(world, arena, 4.0)
    for time_ns, frame, mixed in seen:
        wall = frames_in(time_ns - world.at(0), 48_000) - SPEC.lead
        assert abs(frame - wall) <= 2 * SPEC.blocksize  # the device tells whole blocks
        assert mixed >= min(frame + SPEC.lead, 4 * 48_000)
    assert stream.late.underruns == 0
    heard = process.all_input()[:, 0]
    silent = heard[60_000:100_000]
    assert not silent.any(), "without a device silence is heard"
    loud = np.flatnonzero(heard)
    assert np.array_equal(heard[loud], loud), "every input frame is heard at its index"
    assert loud[-1] > 150_000


@pytest.mark.parametrize("shift", [-400, 400])
def test_a_device_that_comes_back_a_little_off_is_approached_smoothly(arena: Arena, shift: int) -> None:
    world = World()
    device = ScriptedIo(world, arena, alive=lambda seconds: not 0.5 < seconds < 1.2)
    world.each.append(lambda: setattr(device, "shift", shift if world.now_ns > world.at(1.0) else 0))
    _, _, seen = run_device(world, arena, 2.0)
    for (before_ns, before, _), (after_ns, after, _) in pairwise(seen):
        assert before <= after <= before + frames_in(after_ns - before_ns, 48_000) + SPEC.blocksize + 1
    wall = frames_in(seen[-1][0] - world.at(0), 48_000) - SPEC.lead
    assert abs(seen[-1][1] - wall - shift) <= 2 * SPEC.blocksize


def test_input_that_comes_in_long_blocks_is_waited_for() -> None:
    """A block of a second arrives a second after its first frame; silence must not be heard in its place."""
    spec = StreamSpec(8000, inputs=1, outputs=1, blocksize=8192, lead=32768)
    arena, process = Arena.create(io.layout(spec)), Ramp(100_000)
    DeviceStream(spec, arena)._hear(process, 20_000, True, {"has_input": 1})
    assert process.heard == 20_000 - 2 * 8192
    arena.close()
    arena.unlink()


def test_an_engine_held_up_longer_than_lead_counts_one_underrun_and_mixes_on(arena: Arena) -> None:
    world = World()
    ScriptedIo(world, arena, alive=lambda _: True)
    held = [world.at(1.0)]

    def sleep(seconds: float) -> None:
        world.sleep(seconds)
        if held and world.now_ns > held[0]:
            held.clear()
            world.sleep(1.0)

    process = Ramp(3 * 48_000)
    stream = DeviceStream(SPEC, arena, world.clock, sleep, patience_seconds=0)
    stream.run(process)
    assert stream.late.underruns == 1
    assert stream.late.frames == pytest.approx(48_000 - SPEC.lead, abs=300)
    assert arena.status("stream.status").read()["underruns"] == 1
    assert np.array_equal(arena.ring("io.output").read(0, 144_000)[:, 0], np.arange(1, 144_001))
    heard = process.all_input()[:, 0]
    assert np.array_equal(heard[1000:140_000], np.arange(1000, 140_000)), "input is not lost for it"


def test_a_machine_that_stood_still_with_its_device_is_no_underrun(arena: Arena) -> None:
    world = World()
    device = ScriptedIo(world, arena, alive=lambda _: True)
    tick = world.each.pop()
    paused: list[int] = []

    def sleep(seconds: float) -> None:
        world.sleep(seconds)
        if not paused and world.now_ns > world.at(1.0):
            world.each.clear()
            world.sleep(0.2)  # nothing runs
            paused.append(frames_in(200 * MS, 48_000))
            assert device._anchor is not None
            device._anchor = (device._anchor[0] - paused[0], device._anchor[1])
            world.each.append(tick)

    world.each.append(tick)
    stream = DeviceStream(SPEC, arena, world.clock, sleep, patience_seconds=0)
    stream.run(Ramp(2 * 48_000))
    assert paused
    assert stream.late.underruns == 0
