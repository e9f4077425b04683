"""The device process without a device: its loop against a device in virtual time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import io
from realtime.buffers import Arena
from realtime.devices import DeviceError, IoConfig
from realtime.protocols import Block, StreamSpec
from realtime.stream import (
    LOST_EMPTY,
    LOST_GONE,
    LOST_LATE,
    LOST_UNSEEN,
    OUT_SECONDS,
    RUNNING,
    SECOND_NS,
    STARTING,
    Departures,
    DeviceStream,
    frames_in,
)

MS = 1_000_000
SPEC = StreamSpec(48_000, inputs=1, outputs=1, blocksize=128, lead=1024, latency=300)


class VirtualDevice:
    """A port whose callbacks come with virtual time, with rtmixer's manners: an empty or full ring ends an action.

    It notes every frame that left (``played``), and records the number of each frame as its sample.
    """

    blocksize = 128
    latency = (0, 256)

    def __init__(
        self, rate: int = 48_000, inputs: int = 1, outputs: int = 1, record_capacity: int = 24_000, burst: int = 128
    ) -> None:
        self.samplerate, self.inputs, self.outputs = rate, inputs, outputs
        self.burst = burst  # an audio server whose own block is longer calls several times at once
        self.played: list[float] = []
        self.running = True
        self._blocks = 0
        self._begun_ns = -1
        self._play: deque[float] = deque()
        self._play_first: int | None = None
        self._play_on = False
        self._record: deque[float] = deque()
        self._record_first: int | None = None
        self._record_on = False
        self._record_capacity = record_capacity

    def run_until(self, time_ns: int) -> None:
        if self._begun_ns < 0:
            self._begun_ns = time_ns
        while self.running and frames_in(time_ns - self._begun_ns, self.samplerate) >= self.frames() + self.burst:
            for _ in range(self.burst // self.blocksize):
                self._callback()

    def _callback(self) -> None:
        start = self.frames()
        self._blocks += 1
        taken = 0
        if self._play_on:
            if self._play_first is None:
                self._play_first = start
            while taken < self.blocksize and self._play:
                self.played.append(self._play.popleft())
                taken += 1
            self._play_on = taken == self.blocksize
        self.played += [0.0] * (self.blocksize - taken)
        if self._record_on:
            if self._record_first is None:
                self._record_first = start
            room = self._record_capacity - len(self._record)
            self._record += [float(start + at) for at in range(min(room, self.blocksize))]
            self._record_on = room >= self.blocksize

    def frames(self) -> int:
        return self._blocks * self.blocksize

    def active(self) -> bool:
        return self.running

    def device_xruns(self) -> int:
        return 0

    def start_play(self) -> None:
        self._play_first, self._play_on = None, True

    def play_first(self) -> int | None:
        return self._play_first

    def play_ended(self) -> bool:
        return not self._play_on

    def fill(self) -> int:
        return len(self._play)

    def write(self, block: Block) -> None:
        self._play += block[:, 0].tolist()

    def drop(self) -> None:
        self._play.clear()

    def start_record(self) -> None:
        self._record_first, self._record_on = None, True

    def record_first(self) -> int | None:
        return self._record_first

    def record_ended(self) -> bool:
        return not self._record_on

    def read(self) -> Block:
        block = np.array(self._record, np.float32)[:, None]
        self._record.clear()
        return block


class Ramp:
    """A process whose output tells its frame, counted from 1, up to ``end``."""

    def __init__(self, end: int) -> None:
        self.heard = 0
        self.mixed = 0
        self.played = -1
        self.stopped = False
        self.input: list[Block] = []
        self._end = end

    def hear(self, block: Block) -> None:
        self.input.append(block.copy())
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        self.mixed += frames
        self.stopped = self.mixed >= self._end
        return np.arange(self.mixed - frames + 1, self.mixed + 1, dtype=np.float32)[:, None]


class Rig:
    """An engine's stream, a device loop and a virtual device; each of the two can be held up at given times."""

    def __init__(self, spec: StreamSpec = SPEC, device: VirtualDevice | None = None) -> None:
        self.spec = spec
        self.arena = Arena.create(io.layout(spec))
        self.now_ns = 7 * SECOND_NS
        self.device = device or VirtualDevice()
        self.loop = io.DeviceLoop(spec, self.device, self.arena)
        self.io_holds: list[tuple[float, float]] = []  # start and length in seconds
        self.engine_holds: list[tuple[float, float]] = []
        self.gone = False

    def seconds(self) -> float:
        return self.now_ns / SECOND_NS - 7

    def tick(self) -> None:
        self.now_ns += MS
        self.device.run_until(self.now_ns)
        held = any(start <= self.seconds() < start + length for start, length in self.io_holds)
        if not held and not self.gone:
            try:
                self.loop.turn(self.now_ns)
            except io.DeviceGone:
                self.gone = True

    def replace_device(self, device: VirtualDevice) -> None:
        self.device, self.gone = device, False
        self.loop = io.DeviceLoop(self.spec, device, self.arena)

    def sleep(self, seconds: float) -> None:
        for _ in range(max(1, round(1000 * seconds))):
            self.tick()
        while any(start <= self.seconds() < start + length for start, length in self.engine_holds):
            self.tick()

    def play(self, seconds: float) -> tuple[Ramp, DeviceStream]:
        for _ in range(100):  # the device opens first
            self.tick()
        process = Ramp(int(seconds * self.spec.samplerate))
        stream = DeviceStream(self.spec, self.arena, lambda: self.now_ns, self.sleep)
        stream.run(process)
        for _ in range(50):
            self.tick()
        return process, stream

    def status(self) -> dict[str, int]:
        return self.arena.status("io.status").read()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.arena.close()
    rig.arena.unlink()


def grid_offsets(played: list[float]) -> set[int]:
    """Device frame less session frame, of everything that was played."""
    audio = np.array(played)
    at = np.flatnonzero(audio)
    return {int(offset) for offset in at - (audio[at] - 1)}


def fates(rig: Rig, frames: int) -> list[int | None]:
    """What became of each of the first frames."""
    departures = Departures(rig.arena)
    return [departures.of(frame) for frame in range(frames)]


def heard_frames(device: VirtualDevice, frames: int) -> set[int]:
    """Session frames that were played by a device, of the first ones."""
    audio = np.array(device.played)
    return {int(value) - 1 for value in audio[(audio > 0) & (audio <= frames)]}


def test_every_frame_leaves_once_and_in_its_place(rig: Rig) -> None:
    rig.play(2.0)
    audio = np.array(rig.device.played)
    assert len(grid_offsets(rig.device.played)) == 1
    assert np.array_equal(audio[audio > 0][:96_000], np.arange(1, 96_001)), "from the first frame on"
    status = rig.status()
    assert (status["xruns"], status["starved"], status["overflows"]) == (0, 0, 0)
    assert status["fill_min"] > 0.6 * SPEC.lead


def test_input_comes_in_on_the_grid_less_the_latency(rig: Rig) -> None:
    process, _ = rig.play(2.0)
    [offset] = grid_offsets(rig.device.played)
    heard = np.concatenate(process.input)[:, 0]
    at = np.arange(5_000, 90_000)
    assert np.array_equal(heard[at], at + offset + SPEC.latency)


def test_a_device_process_held_up_loses_frames_but_not_the_grid(rig: Rig) -> None:
    rig.io_holds = [(1.0, 0.05)]
    rig.play(2.0)
    status = rig.status()
    assert status["xruns"] == 1
    assert len(grid_offsets(rig.device.played)) == 1
    audio = np.array(rig.device.played)
    missing = 96_000 - np.count_nonzero((audio > 0) & (audio <= 96_000))
    assert missing == status["lost_frames"]
    assert 0.03 * 48_000 < missing < 0.1 * 48_000


def test_margins_are_what_lay_before_a_frame_in_the_ring(rig: Rig) -> None:
    rig.io_holds = [(1.0, 0.015)]
    rig.play(2.0)
    known = fates(rig, 96_000)
    margins = [margin for margin in known if margin is not None]
    assert len(margins) == 96_000
    assert min(margins[4_000:40_000]) >= SPEC.lead - 3 * 128
    held = round(0.015 * 48_000)
    assert min(margins) == pytest.approx(SPEC.lead - held, abs=200)
    assert max(margins) < SPEC.lead


def test_a_lost_range_is_told_with_its_reason(rig: Rig) -> None:
    rig.io_holds, rig.engine_holds = [(0.5, 0.05)], [(1.2, 0.1)]
    rig.play(2.0)
    known = fates(rig, 96_000)
    empty = [frame for frame, fate in enumerate(known) if fate == LOST_EMPTY]
    late = [frame for frame, fate in enumerate(known) if fate == LOST_LATE]
    status = rig.status()
    assert len(empty) == status["lost_frames"] == empty[-1] + 1 - empty[0]
    assert len(late) == status["starved_frames"]
    assert (status["lost_start"], status["lost_end"]) == (late[0], late[-1] + 1)


def test_what_lay_in_the_ring_of_a_device_that_died_did_not_go_out(rig: Rig) -> None:
    tick, first = rig.tick, rig.device

    def die_and_return() -> None:
        tick()
        if rig.device is first and rig.seconds() > 1.0:
            first.running = False
        if rig.gone and rig.seconds() > 1.5:
            rig.replace_device(VirtualDevice())

    rig.tick = die_and_return  # type: ignore[method-assign]
    rig.play(2.5)
    known = fates(rig, 110_000)
    heard = heard_frames(first, 110_000) | heard_frames(rig.device, 110_000)
    assert {frame for frame, fate in enumerate(known) if fate is not None and fate >= 0} == heard
    gone = [frame for frame, fate in enumerate(known) if fate == LOST_GONE]
    assert len(gone) == 110_000 - len(heard) == gone[-1] + 1 - gone[0]
    assert max(heard_frames(first, 110_000)) + 1 == gone[0]


def test_without_a_device_a_frame_is_lost_a_second_after_it_was_due(rig: Rig) -> None:
    departures = Departures(rig.arena)
    assert departures.of(100) is None
    rig.arena.status("stream.status").publish(frame=100 + 48_000)
    assert departures.of(100) is None
    rig.arena.status("stream.status").publish(frame=101 + 48_000)
    assert departures.of(100) == LOST_GONE


def test_what_nobody_asked_about_for_long_is_not_called_lost(rig: Rig) -> None:
    departing = io.Departing(rig.arena.ring("io.out"))
    departing.hand(10_000, 700)
    departing.skip(OUT_SECONDS * 48_000 + 10_000)
    departing.hand(OUT_SECONDS * 48_000 + 20_000, 600)
    departing.settle(1 << 40)
    departures = Departures(rig.arena)
    assert departures.of(9_999) == LOST_UNSEEN
    assert departures.of(OUT_SECONDS * 48_000 + 19_999) == 600
    assert set(departures.words) == {LOST_EMPTY, LOST_LATE, LOST_GONE, LOST_UNSEEN}


def test_a_short_hold_is_bridged(rig: Rig) -> None:
    rig.io_holds = [(1.0, 0.015)]
    rig.play(2.0)
    assert rig.status()["xruns"] == 0
    assert np.count_nonzero(np.array(rig.device.played)) >= 96_000


def test_an_engine_held_up_leaves_silence_and_the_grid(rig: Rig) -> None:
    rig.engine_holds = [(1.0, 0.1)]
    _, stream = rig.play(2.0)
    status = rig.status()
    assert stream.late.underruns == 1
    assert status["xruns"] == 0, "the ring is padded, its action goes on"
    assert status["starved"] >= 1
    assert status["starved_frames"] == pytest.approx(0.1 * 48_000 - SPEC.lead, abs=600)
    assert len(grid_offsets(rig.device.played)) == 1


def test_lost_input_leaves_a_gap_and_the_grid() -> None:
    rig = Rig(device=VirtualDevice(record_capacity=2_000))
    rig.io_holds = [(1.0, 0.12)]
    process, _ = rig.play(2.0)
    [offset] = grid_offsets(rig.device.played)
    heard = np.concatenate(process.input)[:, 0]
    at = np.flatnonzero(heard)
    assert rig.status()["overflows"] == 1
    assert np.array_equal(heard[at], at + offset + SPEC.latency)
    lost = int(at[-1]) + 1 - int(at[0]) - len(at)
    assert lost == pytest.approx(0.12 * 48_000 - 2_000, abs=500)
    rig.arena.unlink()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(0.0, 0.15)), max_size=4),
    st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(0.0, 0.15)), max_size=4),
)
def test_no_hold_moves_the_grid_and_every_frame_is_accounted_for(
    io_holds: list[tuple[float, float]], engine_holds: list[tuple[float, float]]
) -> None:
    rig = Rig()
    rig.io_holds, rig.engine_holds = io_holds, engine_holds
    rig.play(1.2)
    assert len(grid_offsets(rig.device.played)) == 1
    known = fates(rig, 57_600)
    out = {frame for frame, fate in enumerate(known) if fate is not None and fate >= 0}
    assert out == heard_frames(rig.device, 57_600)
    assert None not in known
    rig.arena.close()
    rig.arena.unlink()


def test_a_new_device_takes_up_the_grid_of_the_old_one(rig: Rig) -> None:
    first = rig.device

    tick = rig.tick

    def fail_and_return() -> None:
        tick()
        if rig.device is first and rig.seconds() > 1.0:
            first.running = False
        if rig.gone and rig.seconds() > 2.0:
            rig.replace_device(VirtualDevice())

    rig.tick = fail_and_return  # type: ignore[method-assign]
    process, stream = rig.play(4.0)
    assert rig.device is not first
    assert stream.late.underruns == 0
    [before], [after] = grid_offsets(first.played), grid_offsets(rig.device.played)
    moved_seconds = (rig.device._begun_ns - first._begun_ns) / SECOND_NS
    assert abs(after - before + round(moved_seconds * 48_000)) <= 48, "to a millisecond, as the loop looks"
    assert process.heard > 150_000
    status = rig.status()
    assert status["epoch"] == 2


def test_a_device_that_falls_silent_is_given_up(rig: Rig) -> None:
    rig.play(0.5)
    status = rig.status()
    assert status["state"] == RUNNING
    rig.device.run_until = lambda time_ns: None  # type: ignore[method-assign]
    for _ in range(150):
        rig.tick()
    assert not rig.gone
    for _ in range(100):
        rig.tick()
    assert rig.gone


def test_the_loop_waits_for_the_engine_with_silence(rig: Rig) -> None:
    for _ in range(500):
        rig.tick()
    assert rig.status()["state"] == STARTING
    assert not any(rig.device.played)
    assert rig.status()["xruns"] == 0


@pytest.mark.parametrize("rate", [44_100, 96_000])
def test_a_device_at_another_rate_keeps_the_grid(rate: int) -> None:
    """A slow ramp through the resampler tells the position of each frame to a fraction."""
    rig = Rig(StreamSpec(48_000, 1, 1, 128, 1536), VirtualDevice(rate))
    rig.io_holds = [(1.5, 0.1)]
    process, _ = rig.play(3.0)
    audio = np.array(rig.device.played)
    ratio = 48_000 / rate
    offsets = (audio - 1) - np.arange(len(audio)) * ratio

    def steady(start: float, end: float) -> Block:
        stretch: Block = offsets[int(start * rate) : int(end * rate)]
        return stretch

    before, after = steady(0.6, 1.4), steady(2.0, 2.9)
    assert np.ptp(before) < 1
    assert np.ptp(after) < 1
    assert abs(np.median(before) - np.median(after)) <= 1
    assert rig.status()["xruns"] == 1
    heard = np.concatenate(process.input)[:, 0]
    positions = heard[20_000:60_000] * ratio + np.median(before)
    assert np.abs(positions - np.arange(20_000, 60_000)).max() <= 1.5
    rig.arena.unlink()


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000, 32_000])
def test_a_device_at_another_rate_is_fed_however_short_the_lead(rate: int) -> None:
    """A server comes back at another rate in the middle of a session, whose lead was chosen for the old one."""
    rig = Rig(StreamSpec(48_000, 1, 1, 128, 512), VirtualDevice(rate))
    rig.play(2.0)
    status = rig.status()
    assert (status["xruns"], status["starved"]) == (0, 0)
    assert all(fate is not None and fate >= 0 for fate in fates(rig, 90_000))
    assert status["fill_min"] > 0.4 * 512 * rate / 48_000
    rig.arena.unlink()


@pytest.mark.parametrize("burst", [256, 1024, 4096])
def test_a_server_with_long_blocks_is_fed_however_short_the_lead(burst: int) -> None:
    """A server comes back with a longer period than the lead: more is mixed ahead, and nothing is lost for it."""
    rig = Rig(StreamSpec(48_000, 1, 1, 128, 512), VirtualDevice(burst=burst))
    rig.play(3.0)
    status = rig.status()
    known = fates(rig, 140_000)
    begun = next(frame for frame, fate in enumerate(known) if fate is not None and fate >= 0)
    assert begun < 8 * burst, "the period is not known from the start"
    assert all(fate is not None and fate >= 0 for fate in known[begun:])
    assert len(grid_offsets(rig.device.played)) == 1
    assert (status["xruns"], status["starved"]) == (0, 0)
    assert heard_frames(rig.device, 140_000) == set(range(begun, 140_000))
    assert status["extra_lead"] == burst - 128
    told = rig.arena.records("io.text").take()
    assert (told is not None and f"takes {burst} frames at a time" in told.decode()) == (burst > 512)
    rig.arena.unlink()


def test_devices_with_only_outputs_or_inputs(rig: Rig) -> None:
    rig.replace_device(VirtualDevice(inputs=0))
    process, _ = rig.play(1.0)
    assert len(grid_offsets(rig.device.played)) == 1
    assert process.heard > 45_000
    assert not np.concatenate(process.input).any()
    assert rig.status()["has_input"] == 0


def test_block_clock_finds_the_least_late() -> None:
    clock = io.BlockClock(48_000)
    late = np.random.default_rng(3).exponential(0.8 * MS, 1000)
    for block in range(1, 1000):
        clock.observe(block * 128, SECOND_NS + block * 128 * SECOND_NS // 48_000 + int(late[block]))
    error_ns = clock.time_ns(128_000) - (SECOND_NS + 128_000 * SECOND_NS // 48_000)
    assert clock.settled
    assert 0 <= error_ns < 0.1 * MS


def test_block_clock_follows_a_device_that_stood_still() -> None:
    clock = io.BlockClock(48_000)
    for block in range(1, 200):
        clock.observe(block * 128, block * 128 * SECOND_NS // 48_000 + (0 if block < 180 else 60 * MS))
    assert clock.time_ns(199 * 128) == 199 * 128 * SECOND_NS // 48_000 + 60 * MS


def test_an_orphaned_device_process_plays_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine fades out at the next bar when the bridge has died; a device that went at once would cut it off."""

    class Gone:
        @staticmethod
        def is_alive() -> bool:
            return False

    arena = Arena.create(io.layout(SPEC))
    assert not io.over(arena)
    monkeypatch.setattr("realtime.io.multiprocessing.parent_process", Gone)
    stream = arena.status("stream.status")
    stream.publish(time_ns=time.monotonic_ns() + 60 * SECOND_NS, frame=100, mixed=1124)
    assert not io.over(arena)
    stream.publish(stopped=1)
    assert not io.over(arena), "the last frames have not left yet"
    stream.publish(frame=1124)
    assert io.over(arena)
    stream.publish(stopped=0, time_ns=1)
    assert io.over(arena), "the engine is gone as well"
    arena.close()
    arena.unlink()


def test_the_shared_ring_holds_what_is_mixed_ahead_of_slow_and_long_blocks() -> None:
    spec = StreamSpec(8000, blocksize=8192, lead=32768)
    assert io.layout(spec)["io.output.audio"][1][0] >= 2 * spec.lead


def test_a_device_that_is_not_there_is_told_once_and_tried_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that come and go meanwhile are no news."""
    answers = [
        DeviceError("there is no device 'Scarlett' with an output; there is: 'HDMI'"),
        DeviceError("there is no device 'Scarlett' with an output; there is: 'HDMI'; 'Webcam'"),
        DeviceError("device 'Scarlett' does not open: busy; is another program using it?"),
        SimpleNamespace(text="playing to 'Scarlett'"),
    ]
    rescans: list[bool] = []

    def open_port(config: IoConfig, rescan: bool) -> object:
        rescans.append(rescan)
        answer = answers.pop(0)
        if isinstance(answer, DeviceError):
            raise answer
        return answer

    arena = Arena.create(io.layout(SPEC))
    monkeypatch.setattr(io, "RtmixerPort", open_port)
    monkeypatch.setattr(io, "_RETRY_NS", 0)
    port = io._open_port(arena, IoConfig(SPEC, "Scarlett"))
    assert port is not None
    assert rescans == [False, True, True, True]
    texts = arena.records("io.text")
    told = [record.decode() for record in iter(texts.take, None)]
    assert [text.split(";")[0] for text in told] == [
        "there is no device 'Scarlett' with an output",
        "device 'Scarlett' does not open: busy",
    ]
    assert all("tried again" in text for text in told)
    arena.close()
    arena.unlink()


def test_audio_libraries_do_not_write_into_the_terminal() -> None:
    """JACK says four lines on every try to reach a server; what Python has to say is still seen."""
    code = (
        "import os, sys; from realtime import io; io._mute_libraries(); "
        "os.write(1, b'noise'); os.write(2, b'noise'); print('a traceback', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "a traceback\n")


class EmptiedInATurn(VirtualDevice):
    """Its ring runs empty between two calls of one turn: after the loop looked, before it writes."""

    at_frame = 48_000

    def play_ended(self) -> bool:
        ended = super().play_ended()
        if not ended and self.frames() >= self.at_frame:
            self.at_frame = 1 << 60
            while self._play_on:
                self._callback()
        return ended


def test_what_was_written_after_the_ring_ran_empty_moves_nothing() -> None:
    rig = Rig(device=EmptiedInATurn())
    rig.play(3.0)
    assert rig.status()["xruns"] == 1
    assert len(grid_offsets(rig.device.played)) == 1
