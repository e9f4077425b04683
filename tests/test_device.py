"""The device process against a real audio server: JACK with its dummy driver. Run with ``pytest -m device``."""

from __future__ import annotations

import ctypes.util
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realtime import io
from realtime.buffers import Arena, ArenaHandle
from realtime.protocols import Block, StreamSpec
from realtime.stream import RUNNING, SECOND_NS, DeviceStream

pytestmark = pytest.mark.device

SERVER = "sideman-test"
PERIOD = 128
EVERY = 4800  # session frames from click to click


def _missing() -> str:
    if shutil.which("jackd") is None:
        return "jackd is not installed"
    if ctypes.util.find_library("portaudio") is None:
        return "PortAudio (libportaudio2) is not installed"
    if importlib.util.find_spec("jack") is None:
        return "JACK-Client is not installed"
    return ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Start audio servers, as many as asked for, one after the other; end those that are left."""
    if reason := _missing():
        pytest.skip(reason)
    monkeypatch.setenv("JACK_DEFAULT_SERVER", SERVER)
    monkeypatch.setenv("JACK_NO_AUDIO_RESERVATION", "1")
    started: list[subprocess.Popen[bytes]] = []

    def start(rate: int) -> subprocess.Popen[bytes]:
        realtime = ["-R", "-P", "70"] if io.realtime_rights() else ["-r"]
        command = ["jackd", "-n", SERVER, *realtime, "-d", "dummy", "-r", str(rate), "-p", str(PERIOD)]
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
    io.use_realtime(io.ENGINE_PRIORITY)
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

    def __init__(self, spec: StreamSpec, folder: Path) -> None:
        self.spec = spec
        self.told: list[str] = []
        self.arena = Arena.create(io.layout(spec))
        self.supervisor = io.DeviceSupervisor(self.arena, io.IoConfig(spec, device="system"), self.told.append)
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
        return bool(self.device["state"] == RUNNING and self.device["epoch"] == epoch)

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


def test_clicks_leave_on_the_grid(server: Callable[[int], object], tmp_path: Path) -> None:
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


def test_sound_is_back_on_the_grid_after_the_server_died(
    server: Callable[[int], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
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
        print(f"back after {back_seconds:.2f} s; clicks {1e3 * (np.median(after) - np.median(before)):+.2f} ms")
        assert len(after) >= 15
        assert abs(np.median(after) - np.median(before)) < 0.002
        assert back_seconds < 2.0
        assert any("stopped" in text or "not answer" in text for text in rig.told)


def test_a_device_at_another_rate_is_converted(server: Callable[[int], object], tmp_path: Path) -> None:
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


def test_an_unknown_device_is_named_and_never_replaced(server: Callable[[int], object]) -> None:
    server(48_000)
    spec = StreamSpec(48_000)
    arena = Arena.create(io.layout(spec))
    told: list[str] = []
    supervisor = io.DeviceSupervisor(arena, io.IoConfig(spec, device="no such device"), told.append)
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


def test_devices_are_listed(server: Callable[[int], object]) -> None:
    server(48_000)
    deadline = time.monotonic() + 10
    while not (found := io.list_devices()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [(device.name, device.inputs, device.outputs, device.samplerate) for device in found] == [
        ("system", 2, 2, 48_000)
    ]
