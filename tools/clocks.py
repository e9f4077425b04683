"""How well clocks are followed and led: MIDI clock through JACK, and Ableton Link between two processes.

Functions that a benchmark calls, and a command for one of them alone: ``python -m tools.clocks link --seconds 10``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bridge.jackclock import JackClock, JackConfig, JackMidiClock, jack_layout
from bridge.link import LinkIn, LinkOut, LinkPeer
from bridge.midiclock import TICKS
from bridge.sync import Observation, Position
from realtime import io
from realtime.buffers import Arena
from realtime.clock import Meter, Timeline
from realtime.devices import IoConfig
from realtime.hostclock import HostClock
from realtime.iowatch import DeviceSupervisor
from realtime.protocols import Block, StreamSpec
from realtime.rights import ENGINE_PRIORITY, realtime_rights, use_realtime
from realtime.stream import DeviceStream
from tools.live import NO_JACK, SAMPLERATE

SECOND_NS = 10**9
_GRID_NS = 10_000_000  # both processes say where they are a hundred times a second
_POLL_SECONDS = 0.01
_READY_SECONDS = 15.0
_BLOCK_FRAMES = 64


# -- MIDI clock through JACK -----------------------------------------------------------------------------------------


class _Master:
    """A DAW that sends MIDI clock: one JACK client's callback. Orders are beats to roll from, -1 to stop."""

    def __init__(self, client: Any, bpm: str, orders: Any) -> None:
        self.over = False
        self._client, self._orders = client, orders
        self._port = client.midi_outports.register("clock")
        self._tick = Fraction(60 * SAMPLERATE, TICKS) / Fraction(bpm)
        self._from: int | None = None
        self._first = self._next = 0

    def __call__(self, frames: int) -> None:
        self._port.clear_buffer()
        now = self._client.last_frame_time
        if self._orders.poll():
            self._obey(self._orders.recv(), now)
        while self._from is not None:
            at = self._from + round((self._next - self._first) * self._tick)
            if at >= now + frames:
                return
            self._port.write_midi_event(max(0, at - now), b"\xf8")
            self._next += 1

    def _obey(self, beats: int | None, now: int) -> None:
        if beats is None:
            self.over = True
        elif beats < 0:
            self._from = None
            self._port.write_midi_event(0, b"\xfc")
        else:
            self._from, self._first, self._next = now, TICKS * beats, TICKS * beats
            if beats:
                self._port.write_midi_event(0, bytes((0xF2, 4 * beats & 0x7F, 4 * beats >> 7)))
            self._port.write_midi_event(0, b"\xfb" if beats else b"\xfa")
            self._orders.send(now)


def _be_master(bpm: str, orders: Any) -> None:
    import jack

    client = jack.Client("daw", no_start_server=True)
    master = _Master(client, bpm, orders)
    client.set_process_callback(master)
    with client:
        while not master.over:
            time.sleep(0.05)


class _Silence:
    """What an engine is to its stream, without music."""

    def __init__(self, outputs: int) -> None:
        self.heard = self.mixed = 0
        self.played = -1
        self.stopped = False
        self._outputs = outputs

    def hear(self, block: Block) -> None:
        """Hear nothing."""
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        """Play nothing."""
        self.mixed += frames
        return np.zeros((frames, self._outputs), np.float32)


def _be_engine(handle: Any, spec: StreamSpec) -> None:
    use_realtime(ENGINE_PRIORITY)
    DeviceStream(spec, Arena.attach(handle)).run(_Silence(spec.outputs))


@contextlib.contextmanager
def _stage(bpm: str, told: list[str]) -> Iterator[tuple[JackMidiClock, JackClock, Arena, Any]]:
    """Run a device's process, an engine, a master, and what reads its clock; yield the latter and the way to it."""
    context = multiprocessing.get_context("spawn")
    spec = StreamSpec(SAMPLERATE, blocksize=_BLOCK_FRAMES, lead=4096, inputs=1, outputs=1)
    arena = Arena.create({**io.layout(spec), **jack_layout()})
    device = DeviceSupervisor(arena, IoConfig(spec, "system"), told.append)
    orders, theirs = context.Pipe()
    engine = context.Process(target=_be_engine, args=(arena.handle, spec), daemon=True)
    master = context.Process(target=_be_master, args=(bpm, theirs), daemon=True)
    clock = JackClock(arena, JackConfig(clock_from="daw:clock"), spec, told.append)
    source = JackMidiClock("daw", clock)
    try:
        device.start()
        engine.start()
        master.start()
        source.start()
        yield source, clock, arena, orders
    finally:
        source.stop()
        master.kill()
        engine.kill()
        device.stop()
        arena.close()
        arena.unlink()


@contextlib.contextmanager
def _server(name: str, period: int) -> Iterator[bool]:
    """Run a JACK server with the dummy driver; yield whether there is one."""
    jackd = shutil.which("jackd")
    if jackd is None or importlib.util.find_spec("jack") is None:
        yield False
        return
    before = os.environ.get("JACK_DEFAULT_SERVER")
    os.environ |= {"JACK_DEFAULT_SERVER": name, "JACK_NO_AUDIO_RESERVATION": "1", "JACK_NO_START_SERVER": "1"}
    rights = ["-R", "-P", "70"] if realtime_rights() else ["-r"]
    command = [jackd, "-n", name, *rights, "-d", "dummy", "-r", str(SAMPLERATE), "-p", str(period)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield server.poll() is None
    finally:
        server.terminate()
        server.wait(5)
        os.environ.pop("JACK_DEFAULT_SERVER")
        if before is not None:
            os.environ["JACK_DEFAULT_SERVER"] = before


def midi_clock_figures(
    bpm: str, seconds: float = 10.0, period: int = 1024, name: str = "sideman-bench-clock"
) -> dict[str, Any] | None:
    """Follow a DAW's MIDI clock through JACK: start, stop, locate, continue. ``None`` where there is no JACK.

    Parameters
    ----------
    bpm
        The DAW's tempo, as text.
    seconds
        In all, over five times of rolling.
    period, name
        Of the server: frames in a cycle, and what it is called.

    Returns
    -------
    dict
        ``rolls``, and of these ``disturbed`` by an xrun (a message may be lost then, so they count in nothing below);
        ``wrong_places``: rolls whose first tick or any later was not where the DAW was; ``grid_max_ms``,
        ``grid_p99_ms``: between the frame of a beat by the clock and by the DAW; ``by_time_p99_ms``: the same had
        ticks been taken by the time they came; ``tempo``: as it was read; ``xruns``, ``unplaced``: ticks without a
        frame; ``lock_seconds`` until JACK's frames and the session's were known to go together.
    """
    with _server(name, period) as there:
        if not there:
            return None
        with _stage(bpm, []) as (source, clock, arena, orders):
            begun = time.monotonic()
            host = HostClock(SAMPLERATE)
            while not (clock.connected and clock.map.offset is not None):
                if time.monotonic() - begun > _READY_SECONDS:
                    raise RuntimeError("the clock of the JACK server was not found in time")
                _follow(source, host, arena, 0.05)
            lock_seconds = time.monotonic() - begun
            _follow(source, host, arena, 5.0)  # until the host's clock is known as well
            changes = clock.map.changes
            rolls = [_roll(beats, seconds / 5, source, clock, arena, host, orders, bpm) for beats in _PLACES]
            orders.send(None)
            good = [roll for roll in rolls if not roll["disturbed"]]
            grid = np.concatenate([roll["grid_ms"] for roll in good] or [np.zeros(0)])
            steady = [roll for roll in good if roll["changes"] == changes]  # else the host's clock is on its way
            by_time = np.concatenate([roll["by_time_ms"] for roll in steady] or [np.zeros(0)])
            return {
                "bpm": bpm,
                "period": period,
                "rolls": len(rolls),
                "disturbed": len(rolls) - len(good),
                "wrong_places": sum(roll["wrong"] for roll in good),
                "ticks": len(grid),
                "grid_p99_ms": _percentile(grid, 99),
                "grid_max_ms": _percentile(grid, 100),
                "by_time_p99_ms": _percentile(by_time, 99),
                "tempo": float(source.reader.tempo or 0),
                "xruns": clock.xruns,
                "unplaced": sum(roll["unplaced"] for roll in rolls),
                "lock_seconds": round(lock_seconds, 2),
            }


_PLACES = (0, 64, 67, 0, 640)


def _follow(source: JackMidiClock, host: HostClock, arena: Arena, seconds: float) -> list[Observation]:
    stream, said = arena.status("stream.status"), []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = stream.read()
        if now["time_ns"]:
            host.observe(now["time_ns"], now["frame"])
        said += source.poll(time.monotonic_ns())
        time.sleep(_POLL_SECONDS)
    return said


def _roll(
    beats: int,
    seconds: float,
    source: JackMidiClock,
    clock: JackClock,
    arena: Arena,
    host: HostClock,
    orders: Any,
    bpm: str,
) -> dict[str, Any]:
    """Have the DAW roll from a beat for some time, and stop; compare."""
    before = (clock.xruns, clock.map.changes, clock.cycle["jumps"])
    orders.send(beats)
    said = [each for each in _follow(source, host, arena, seconds) if each.playing and each.beat is not None]
    begun = orders.recv()
    orders.send(-1)
    _follow(source, host, arena, 0.3)
    offset = clock.map.offset
    disturbed = offset is None or before != (clock.xruns, clock.map.changes, clock.cycle["jumps"])
    beat_frames = Fraction(60 * SAMPLERATE) / Fraction(bpm)
    placed = [
        (float(each.frame - (begun + (offset or 0) + (each.beat - beats) * beat_frames)), each.frame, each.time_ns)
        for each in said
        if each.frame is not None and each.beat is not None
    ]
    numbers = [round(TICKS * each.beat) for each in said if each.beat is not None]
    return {
        "disturbed": disturbed,
        "changes": clock.map.changes,
        "wrong": numbers != list(range(TICKS * beats, TICKS * beats + len(numbers))) or not numbers,
        "unplaced": len(said) - len(placed),
        "grid_ms": np.abs([off for off, _, _ in placed]) * 1000 / SAMPLERATE,
        "by_time_ms": np.abs([host.frame_at(at_ns) - frame for _, frame, at_ns in placed]) * 1000 / SAMPLERATE,
    }


def _percentile(values: Any, percent: float) -> float:
    return round(float(np.percentile(values, percent)), 4) if len(values) else float("nan")


# -- Ableton Link, two processes -------------------------------------------------------------------------------------


class _HostTimes:
    """A session whose frames are the host's time: as good as a device's clock that does not drift."""

    def __init__(self, origin_ns: int) -> None:
        self._origin_ns = origin_ns

    def frame_at(self, host_ns: int) -> int:
        """Session frame at a host time."""
        return (host_ns - self._origin_ns) * SAMPLERATE // SECOND_NS

    def time_ns_at(self, frame: int) -> int:
        """Host time of a session frame."""
        return self._origin_ns + frame * SECOND_NS // SAMPLERATE


def _sample(leads: bool, bpm: str, begin_ns: int, count: int, told: Any) -> None:
    """Be one of the two, and say where Link is at agreed times.

    Rows: beat, tempo, whether it plays, how late this process woke and how far two readings lie apart in ms.
    """
    quantum = Meter().beats
    peer = LinkPeer(Fraction(bpm) if leads else Fraction(100))
    position = Position(Timeline(SAMPLERATE, Fraction(bpm), Meter(), Fraction(0)))
    sender = LinkOut("out", peer, _HostTimes(begin_ns))
    source = LinkIn("in", peer, Meter())
    source.start()
    rows = np.zeros((count, 5))
    for row, place in zip(rows, range(count), strict=True):
        at_ns = begin_ns + place * _GRID_NS
        time.sleep(max(0.0, (at_ns - time.monotonic_ns()) / SECOND_NS))
        late_ns = time.monotonic_ns() - at_ns
        beat = peer.beat_at(at_ns, quantum)
        again = peer.beat_at(at_ns, quantum)
        said = list(source.poll(at_ns))
        tempo, playing = (said[0].tempo or 0, said[0].playing) if said else (0, False)
        row[:] = beat, float(tempo), bool(playing), late_ns / 1e6, (again - beat) * 60_000 / float(Fraction(bpm))
        if leads and place % 5 == 0:
            sender.send(position, time.monotonic_ns())
    told.send(rows)
    source.stop()


def link_figures(seconds: float = 10.0, bpm: str = "97") -> dict[str, Any]:
    """Have two processes in a Link session, of which one leads, say where they are at the same times.

    It meets whoever else is on the network; a network of its own (``unshare -n``, with ``lo`` up) is best.

    Returns
    -------
    dict
        ``phase_p99_ms``, ``phase_max_ms``: between the two, over the last two thirds; ``tempo_equal``,
        ``playing_equal``: whether what they observed was the same in the end; ``control_p99_ms``: how late the
        machine woke them, which says how quiet it was; ``reading_p99_ms``: two readings of one phase in one process.

    Raises
    ------
    OSError
        If Link is not there.
    """
    context = multiprocessing.get_context("spawn")
    begin_ns, count = time.monotonic_ns() + 3 * SECOND_NS, round(seconds * SECOND_NS / _GRID_NS)
    children, pipes = [], []
    for leads in (True, False):
        ours, theirs = context.Pipe()
        child = context.Process(target=_sample, args=(leads, bpm, begin_ns, count, theirs), daemon=True)
        child.start()
        children.append(child)
        pipes.append(ours)
    try:
        tables = []
        for pipe in pipes:
            if not pipe.poll(seconds + 30):
                raise OSError("Ableton Link did not run; is the package LinkPython-extern installed?")
            tables.append(pipe.recv())
    except EOFError:
        raise OSError("Ableton Link did not run; is the package LinkPython-extern installed?") from None
    finally:
        for child in children:
            child.join(2)
            child.kill()
    settled = count // 3
    one, other = (table[settled:] for table in tables)
    quantum = float(Meter().beats)
    apart = (one[:, 0] - other[:, 0] + quantum / 2) % quantum - quantum / 2
    phase_ms = np.abs(apart) * 60_000 / float(Fraction(bpm))
    return {
        "bpm": bpm,
        "samples": len(one),
        "tempo": other[-1, 1],
        "tempo_equal": bool(one[-1, 1] == other[-1, 1] == float(Fraction(bpm))),
        "playing_equal": bool(one[-1, 2] == other[-1, 2] == 1),
        "phase_p50_ms": _percentile(phase_ms, 50),
        "phase_p99_ms": _percentile(phase_ms, 99),
        "phase_max_ms": _percentile(phase_ms, 100),
        "control_p99_ms": _percentile(np.concatenate([one[:, 3], other[:, 3]]), 99),
        "reading_p99_ms": _percentile(np.abs(np.concatenate([one[:, 4], other[:, 4]])), 99),
    }


def main() -> int:
    """Measure one of the two, print the figures, and write them where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["link", "midi"])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--bpm", default="97")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = (link_figures if given.what == "link" else _midi)(given.seconds, given.bpm)
    print(json.dumps(figures, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(figures), encoding="utf-8")
    return 0


def _midi(seconds: float, bpm: str) -> dict[str, Any]:
    figures = midi_clock_figures(bpm, seconds)
    if figures is None:
        sys.exit(NO_JACK)
    return figures


if __name__ == "__main__":
    sys.exit(main())
