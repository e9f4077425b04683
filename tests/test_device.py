"""The device process against a real audio server: JACK with its dummy driver. Run with ``pytest -m device``."""

from __future__ import annotations

import ctypes.util
import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realtime import io, rights
from realtime.buffers import Arena, ArenaHandle
from realtime.devices import IoConfig, list_devices
from realtime.iowatch import DeviceSupervisor
from realtime.protocols import Block, StreamSpec
from realtime.stream import LOST_GONE, RUNNING, SECOND_NS, STALE_NS, Departures, DeviceStream

pytestmark = pytest.mark.device

SERVER = "sideman-test"
PERIOD = 128
EVERY = 4800  # session frames from click to click
PATIENCE_SECONDS = 6.0  # beyond any doubt; how long it takes on an idle machine is the benchmark's to say


Server = Callable[..., "subprocess.Popen[bytes]"]


def _missing() -> str:
    if shutil.which("jackd") is None:
        return "jackd is not installed"
    if ctypes.util.find_library("portaudio") is None:
        return "PortAudio (libportaudio2) is not installed"
    if importlib.util.find_spec("jack") is None:
        return "JACK-Client is not installed"
    return ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start audio servers, as many as asked for, one after the other; end those that are left."""
    if reason := _missing():
        pytest.skip(reason)
    monkeypatch.setenv("JACK_DEFAULT_SERVER", SERVER)
    monkeypatch.setenv("JACK_NO_AUDIO_RESERVATION", "1")
    started: list[subprocess.Popen[bytes]] = []

    def start(rate: int, period: int = PERIOD) -> subprocess.Popen[bytes]:
        realtime = ["-R", "-P", "70"] if rights.realtime_rights() else ["-r"]
        command = ["jackd", "-n", SERVER, *realtime, "-d", "dummy", "-r", str(rate), "-p", str(period)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.terminate()  # kindly: it clears its shared memory away
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Clicks:
    """A process that makes a click every ``EVERY`` frames and listens to nothing."""

    def __init__(self, outputs: int) -> None:
        self.heard = 0
        self.mixed = 0
        self.played = -1
        self.stopped = False
        self._outputs = outputs

    def hear(self, block: Block) -> None:
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        block = np.zeros((frames, self._outputs), np.float32)
        block[-self.mixed % EVERY :: EVERY] = 0.5
        self.mixed += frames
        return block


def _engine(handle: ArenaHandle, spec: StreamSpec) -> None:
    rights.use_realtime(rights.ENGINE_PRIORITY)
    DeviceStream(spec, Arena.attach(handle)).run(Clicks(spec.outputs))


def _ear(rate: int, seconds: float, path: Path) -> None:
    """Record what the device process plays, and the monotonic time of the first frame; a process of its own."""
    import jack
    import rtmixer

    patch = jack.Client("ear", no_start_server=True)
    known = {port.name for port in patch.get_ports("in_0", is_input=True)}
    recorder = rtmixer.Recorder(channels=1, blocksize=PERIOD, samplerate=rate)
    ring = rtmixer.RingBuffer(4, 1 << 20)
    with recorder:
        [port] = [port for port in patch.get_ports("in_0", is_input=True) if port.name not in known]
        for other in patch.get_all_connections(port):
            patch.disconnect(other, port)
        [source] = patch.get_ports("out_0", is_output=True)
        patch.connect(source, port)
        action = recorder.record_ringbuffer(ring, start=-1.0)
        clock = io.BlockClock(rate)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            clock.observe(int(action.done_frames), time.monotonic_ns())
            time.sleep(0.0005)
        audio = np.frombuffer(ring.read(), np.float32)
        stats = recorder._state.stats
        np.savez(path, audio=audio, first_ns=clock.time_ns(0), xruns=stats.input_overflows + stats.output_underflows)
    os._exit(0)


class Rig:
    """An engine, a device process and its supervisor, as the bridge has them."""

    def __init__(self, spec: StreamSpec, folder: Path, device: str = "system") -> None:
        self.spec = spec
        self.told: list[str] = []
        self.arena = Arena.create(io.layout(spec))
        self.supervisor = DeviceSupervisor(self.arena, IoConfig(spec, device), self.told.append)
        self._context = multiprocessing.get_context("spawn")
        self._engine = self._context.Process(target=_engine, args=(self.arena.handle, spec), daemon=True)
        self._folder = folder

    def __enter__(self) -> Rig:
        self.supervisor.start()
        self._engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.kill()
        self._engine.join()
        self.supervisor.stop()
        self.arena.close()
        self.arena.unlink()

    @property
    def device(self) -> dict[str, Any]:
        return self.arena.status("io.status").read()

    @property
    def engine(self) -> dict[str, Any]:
        return self.arena.status("stream.status").read()

    def wait_for(self, what: Callable[[], bool], seconds: float = 15.0) -> float:
        begun = time.monotonic()
        while not what():
            assert time.monotonic() - begun < seconds, f"{self.told}, {self.device}, {self.engine}"
            time.sleep(0.005)
        return time.monotonic() - begun

    def playing(self, epoch: int = 1) -> bool:
        """Whether a device is heard, the ``epoch``-th that was opened or a later one."""
        return bool(self.device["state"] == RUNNING and self.device["epoch"] >= epoch and self.beats())

    def beats(self) -> bool:
        return bool(time.monotonic_ns() - self.device["heartbeat_ns"] < STALE_NS)

    def clock_seconds(self) -> float:
        """How far the session's clock is before the wall's, but for a constant."""
        engine = self.engine
        return float(engine["frame"] / self.spec.samplerate - engine["time_ns"] / SECOND_NS)

    def listen(self, rate: int, seconds: float = 2.0) -> dict[str, Any]:
        path = self._folder / f"{time.monotonic_ns()}.npz"
        ear = self._context.Process(target=_ear, args=(rate, seconds, path))
        ear.start()
        ear.join(seconds + 20)
        with np.load(path) as heard:
            return dict(heard)

    def offsets_seconds(self, heard: dict[str, Any], rate: int) -> Block:
        """How far after its place on the engine's clock each click was heard, modulo the clicks' distance."""
        clicks = np.flatnonzero(np.abs(heard["audio"]) > 0.1)
        times_ns = int(heard["first_ns"]) + clicks * SECOND_NS // rate
        engine = self.engine
        frames = engine["frame"] + (times_ns - engine["time_ns"]) * self.spec.samplerate / SECOND_NS
        offsets: Block = ((frames + EVERY / 2) % EVERY - EVERY / 2) / self.spec.samplerate
        return offsets


def test_clicks_leave_on_the_grid(server: Server, tmp_path: Path) -> None:
    server(48_000)
    with Rig(StreamSpec(48_000), tmp_path) as rig:
        rig.wait_for(rig.playing)
        heard = rig.listen(48_000)
        steps = np.diff(np.flatnonzero(heard["audio"]))
        lost = steps[steps != EVERY] - EVERY
        assert len(steps) >= 15
        # A period that the server itself lost moves what follows by whole periods; nothing else may.
        assert len(lost) <= rig.device["device_xruns"] + int(heard["xruns"])
        assert not np.any(lost % PERIOD)
        assert rig.device["has_input"]
        assert rig.engine["heard"] > 48_000


def test_sound_is_back_on_the_grid_after_the_server_died(server: Server, tmp_path: Path) -> None:
    first = server(48_000)
    with Rig(StreamSpec(48_000), tmp_path) as rig:
        rig.wait_for(rig.playing)
        before = rig.offsets_seconds(rig.listen(48_000), 48_000)
        first.kill()
        first.wait()
        frame = rig.engine["frame"]
        rig.wait_for(lambda: not rig.playing())
        time.sleep(1.0)
        assert rig.engine["frame"] > frame + 40_000, "the clock goes on without a device"
        server(48_000)
        back_seconds = rig.wait_for(lambda: rig.playing(epoch=2))
        after = rig.offsets_seconds(rig.listen(48_000), 48_000)
        moved = moved_seconds(before, after)
        print(f"back after {back_seconds:.2f} s; clicks {1e3 * moved:+.2f} ms")
        assert len(after) >= 15
        assert moved < 0.002
        assert back_seconds < PATIENCE_SECONDS
        assert any("stopped" in text or "not answer" in text for text in rig.told)


def moved_seconds(before: Block, after: Block) -> float:
    """How far the grid moved: the least of all pairs, as a dummy server that was held up moves some clicks."""
    return float(np.abs(before[:, None] - after[None, :]).min())


def kill(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()


@pytest.mark.parametrize(("rate", "period"), [(44_100, 128), (48_000, 1024)])
def test_a_server_that_comes_back_otherwise_is_the_same_session(
    server: Server, tmp_path: Path, rate: int, period: int
) -> None:
    """At another rate, or with a period longer than the lead: same clock, same grid, and nothing starves."""
    first = server(48_000)
    with Rig(StreamSpec(48_000, lead=512), tmp_path) as rig:
        rig.wait_for(rig.playing)
        before = rig.offsets_seconds(rig.listen(48_000), 48_000)
        clock = rig.clock_seconds()
        kill(first)
        rig.wait_for(lambda: not rig.playing())
        server(rate, period)
        back_seconds = rig.wait_for(lambda: rig.playing(epoch=2))
        counted, drift = rig.device, rig.clock_seconds() - clock
        after = rig.offsets_seconds(rig.listen(rate), rate)
        moved = moved_seconds(before, after)
        print(f"back after {back_seconds:.2f} s; clicks {1e3 * moved:+.2f} ms, clock {1e3 * drift:+.2f} ms")
        assert len(after) >= 15
        # The ear hears a period later than the device plays; a longer one only shows there.
        assert moved < 0.002 + 2 * period / rate
        assert abs(drift) < 0.003 + period / rate
        assert back_seconds < PATIENCE_SECONDS
        assert rig.device["samplerate"] == rate
        assert rig.device["starved"] - counted["starved"] <= 1 + rig.device["device_xruns"]
        assert any(f"{rate} Hz" in text for text in rig.told) == (rate != 48_000)


def test_a_session_starts_without_a_server_and_is_heard_when_there_is_one(server: Server, tmp_path: Path) -> None:
    with Rig(StreamSpec(48_000), tmp_path, device="") as rig:
        rig.wait_for(lambda: rig.engine["frame"] > 48_000)
        assert len(rig.told) == 1
        assert "no sound device" in rig.told[0]
        clock = rig.clock_seconds()
        server(48_000)
        back_seconds = rig.wait_for(rig.playing)
        print(f"heard after {back_seconds:.2f} s, clock {1e3 * (rig.clock_seconds() - clock):+.2f} ms")
        assert back_seconds < PATIENCE_SECONDS
        assert any("playing to 'system, JACK Audio Connection Kit'" in text for text in rig.told)
        assert abs(rig.clock_seconds() - clock) < 0.006
        departures, frame = Departures(rig.arena), rig.engine["frame"] + 24_000
        rig.wait_for(lambda: departures.of(frame) is not None)
        assert departures.of(48_000) == LOST_GONE
        assert (departures.of(frame) or 0) > 0


def test_a_server_that_dies_twice_and_one_that_stands_still(server: Server, tmp_path: Path) -> None:
    first = server(48_000)
    with Rig(StreamSpec(48_000), tmp_path, device="") as rig:
        rig.wait_for(rig.playing)
        before = rig.offsets_seconds(rig.listen(48_000), 48_000)
        clock = rig.clock_seconds()
        kill(first)
        second = server(48_000)
        time.sleep(0.3)
        kill(second)
        time.sleep(0.5)
        third = server(48_000)
        epoch = rig.device["epoch"]
        twice_seconds = rig.wait_for(lambda: rig.playing(epoch + 1))
        os.kill(third.pid, signal.SIGSTOP)
        time.sleep(3)
        epoch = rig.device["epoch"]
        os.kill(third.pid, signal.SIGCONT)
        stopped_seconds = rig.wait_for(lambda: rig.playing(epoch + 1))
        drift = rig.clock_seconds() - clock  # of a dummy server that is held up a device's clock is late, so at once
        after = rig.offsets_seconds(rig.listen(48_000), 48_000)
        moved = moved_seconds(before, after)
        print(f"back after {twice_seconds:.2f} s and {stopped_seconds:.2f} s; clicks {1e3 * moved:+.2f} ms, "
              f"clock {1e3 * drift:+.2f} ms; {rig.told}")  # fmt: skip
        assert max(twice_seconds, stopped_seconds) < PATIENCE_SECONDS
        assert moved < 0.002
        assert abs(drift) < 0.006


def _stagebox() -> None:
    """Be another device of the server: PortAudio shows every JACK client with ports as one."""
    import jack

    client = jack.Client("stagebox", no_start_server=True)
    for number in (1, 2):
        client.inports.register(f"in_{number}")
        client.outports.register(f"out_{number}")
    client.set_process_callback(lambda frames: None)
    with client:
        time.sleep(60)


def test_a_device_that_went_is_waited_for_while_another_is_there(server: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    first, boxes = server(48_000), [context.Process(target=_stagebox, daemon=True) for _ in range(2)]
    boxes[0].start()
    while [device.name for device in list_devices()].count("stagebox") == 0:
        time.sleep(0.1)
    with Rig(StreamSpec(48_000), tmp_path, device="stage") as rig:
        rig.wait_for(rig.playing)
        boxes[0].kill()
        boxes[0].join()
        kill(first)
        rig.wait_for(lambda: not rig.playing())
        server(48_000)
        time.sleep(3)
        assert rig.device["epoch"] == 1, "only the other one is there"
        assert len([text for text in rig.told if "no device 'stagebox, JACK" in text]) == 1
        boxes[1].start()
        rig.wait_for(lambda: rig.playing(epoch=2))
        assert "playing to 'stagebox, JACK" in rig.told[-1]
    boxes[1].kill()
    boxes[1].join()


def test_a_device_at_another_rate_is_converted(server: Server, tmp_path: Path) -> None:
    server(44_100)
    with Rig(StreamSpec(48_000, lead=1536), tmp_path) as rig:
        rig.wait_for(rig.playing)
        heard = rig.listen(44_100)
        loud = np.flatnonzero(np.abs(heard["audio"]) > 0.2)
        clicks = loud[np.diff(loud, prepend=-100) > 50]
        errors = np.abs(np.diff(clicks) - EVERY * 44_100 / 48_000)
        assert len(errors) >= 15
        assert np.count_nonzero(errors > 1) <= rig.device["device_xruns"] + int(heard["xruns"])
        assert rig.device["samplerate"] == 44_100
        assert any("44100 Hz" in text for text in rig.told)


def test_an_unknown_device_is_named_and_never_replaced(server: Server) -> None:
    server(48_000)
    spec = StreamSpec(48_000)
    arena = Arena.create(io.layout(spec))
    told: list[str] = []
    supervisor = DeviceSupervisor(arena, IoConfig(spec, device="no such device"), told.append)
    try:
        supervisor.start()
        deadline = time.monotonic() + 15
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        supervisor.stop()
        arena.close()
        arena.unlink()
    assert "no such device" in told[0]
    assert "system" in told[0]


def test_devices_are_listed(server: Server) -> None:
    server(48_000)
    deadline = time.monotonic() + 10
    while not (found := list_devices()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [(device.name, device.inputs, device.outputs, device.samplerate) for device in found] == [
        ("system", 2, 2, 48_000)
    ]
