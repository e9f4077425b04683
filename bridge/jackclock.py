"""The JACK audio server as a clock: MIDI clock to the frame, the transport, and whose frame is whose.

A client of its own in a process of its own, :class:`JackClock`'s child, as the device's process is: when the server
dies, whatever hangs in its library is ended with it, and a new process waits for the server to come back. What the
client sees goes through shared memory: MIDI clock as records, the cycle and the transport as one status block.

*Python in a JACK callback.* No sound passes through this client: it has no audio port, so nobody's sound waits for
it, and the law of this house (no Python in the audio callback) is about sound. There is no other way to the frame of
a MIDI event: it is known in the process cycle and nowhere else (rtmidi's C++ callback hears it there and throws it
away). What the callback costs is held down: some 35 us a cycle; nobody else runs Python in that process (its main
thread wakes twenty times a second for microseconds), there is no garbage collection, nothing is awaited. If it is
late nevertheless, this client misses that cycle's events (a lost tick, which the reader of the clock counts and makes
up for), and the server counts an xrun, which its other clients are told of. On a loaded machine none was seen with
periods of 1,024 frames, and a few a second with 128: with periods under 512 it is for quiet machines. A server in
synchronous mode (``-S``) would wait for it, so that is not the mode to use it in.

*Frames.* The sound device's process, on the same server, counts the same frames from another origin. The
difference is a whole number that stays until a cycle is missed or something is restarted. :class:`FrameMap` finds it
exactly and notices when it changes.

JACK's frames are 32 bits wide and come round after a day; here they are counted on.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn, Protocol

from bridge.midiclock import SPOKEN, ClockReader, ClockWriter, Dialect, Tick
from bridge.sync import Observation, Position
from realtime.buffers import Arena, ArenaHandle, Layout, RecordRing, StatusBlock, record_layout, status_layout
from realtime.clock import TEMPO_DENOMINATOR, Meter, TempoMap
from realtime.protocols import StreamSpec
from realtime.stream import RUNNING as DEVICE_RUNNING

SECOND_NS = 10**9

CYCLE_FIELDS = {
    "frame": "i8",  # JACK's frame at the beginning of the last cycle, counted on beyond 32 bits; 0 before the first
    "time_ns": "i8",  # monotonic time of that, late by the wake-up of the server, never early
    "period": "i8",  # frames in a cycle
    "samplerate": "i8",
    "cycles": "i8",
    "jumps": "i8",  # cycles that did not go on from the one before
    "faults": "i8",  # calls of the callback that failed, for whatever reason
    "refused": "i8",  # MIDI messages that found no room on their way to the bridge
    "late": "i8",  # MIDI messages that came after the frame they were for
    "rolling": "i8",  # the transport: 1 if it rolls
    "position": "i8",  # its frame at the beginning of the cycle
    "bbt": "i8",  # 1 if another client says bars and beats; bar and beat count from 1
    "bar": "i8",
    "beat": "i8",
    "tick": "i8",
    "bbt_offset": "i8",  # frames by which the cycle is later than what bar, beat and tick say
    "ticks_per_beat": "f8",
    "beats_per_bar": "f8",
    "beat_type": "f8",
    "beats_per_minute": "f8",
}
"""What the callback sees in each cycle, in one status block: ``jack.cycle``."""

STATE_FIELDS = {
    "state": "i8",  # of the process: see below
    "heartbeat_ns": "i8",
    "epoch": "i8",  # counts the times a server was reached
    "xruns": "i8",  # that the server told of, whoever was late
    "connected": "i8",  # peers that are connected, of those the session names
}
OPENING, RUNNING, GONE = range(3)

_EVENT = struct.Struct("<qq")  # frame and time of a message from JACK, before its bytes
_ORDER = struct.Struct("<q")  # frame of a message to JACK, before its bytes
_MESSAGES, _MESSAGE_BYTES = 1024, 32
_ORDERS_HELD = 256
_TEXT_BYTES = 512
_TURN_SECONDS = 0.05
_RETRY_SECONDS = 0.5
_STALE_NS = 1_000_000_000
_IMPORT_NS = 15_000_000_000
_AGAIN_NS = 500_000_000
_WRAP = 1 << 32


def jack_layout() -> Layout:
    """Arrays that the client's process shares with the bridge."""
    return {
        **status_layout("jack.cycle", CYCLE_FIELDS),  # written by the callback
        **status_layout("jack.state", STATE_FIELDS),  # written by the rest of its process
        **record_layout("jack.in", _MESSAGES, _MESSAGE_BYTES),  # MIDI clock, written by the callback
        **record_layout("jack.out", _MESSAGES, _MESSAGE_BYTES),  # MIDI clock, written by the bridge
        **record_layout("jack.text", 16, _TEXT_BYTES),  # sentences for the user
        **status_layout("jack.control", {"stop": "i8"}),  # written by the bridge
    }


@dataclass(frozen=True, slots=True)
class JackConfig:
    """Which server, and whom to connect to.

    Attributes
    ----------
    server
        Name of the server, ``""`` for the one that programs find here by default.
    client
        Name of the client to be; JACK adds a number if it is taken.
    clock_from, clock_to
        Port to take MIDI clock from, and ports to send it to: whole names (``ardour:MIDI Clock out``), or what one
        begins with. They are connected whenever they appear. Empty: others connect what they want.
    sends
        Whether there is a port to send MIDI clock from.
    """

    server: str = ""
    client: str = "sideman-clock"
    clock_from: str = ""
    clock_to: tuple[str, ...] = ()
    sends: bool = False


# -- in the client's process -----------------------------------------------------------------------------------------


class Cycle:
    """The process callback: note where the clock and the transport are, pass on MIDI clock, send what is due.

    On JACK's thread. It allocates what Python allocates for numbers and waits for nothing.
    """

    def __init__(self, client: Any, arena: Arena, valid_bbt: int, valid_offset: int) -> None:
        self._client = client
        self._status = arena.status("jack.cycle")
        self._in, self._out = arena.records("jack.in"), arena.records("jack.out")
        self._hears: Any = None
        self._sends: Any = None
        self._bbt, self._offset = valid_bbt, valid_offset
        self._orders: deque[tuple[int, bytes]] = deque()
        before = self._status.read()  # counters go on from those of the process before
        self._cycles, self._jumps = before["cycles"], before["jumps"]
        self._faults, self._late, self._refused = before["faults"], before["late"], before["refused"]
        self._samplerate = int(client.samplerate)
        self._frame = -1

    def ports(self, hears: Any, sends: Any) -> None:
        """Say which ports are its own, before it runs."""
        self._hears, self._sends = hears, sends

    def __call__(self, frames: int) -> None:
        """Be one cycle of so many frames."""
        try:
            self._turn(frames)
        except Exception:  # noqa: BLE001 - JACK would never call again; what failed is counted, and seen in the status
            self._faults += 1

    def _turn(self, frames: int) -> None:
        client = self._client
        frame = self._counted_on(client.last_frame_time, frames)
        time_ns = time.monotonic_ns() - client.frames_since_cycle_start * SECOND_NS // self._samplerate
        for offset, data in self._hears.incoming_midi_events():
            message = bytes(data)
            if message and message[0] in SPOKEN:
                # A period earlier, for those who go by time: the device tells its own frames as the end of a cycle.
                at_ns = time_ns + (offset - frames) * SECOND_NS // self._samplerate
                self._in.post(_EVENT.pack(frame + offset, at_ns) + message)
        if self._sends is not None:
            self._send(frame, frames)
        state, position = client.transport_query_struct()
        self._cycles += 1
        self._status.publish(
            frame=frame,
            time_ns=time_ns,
            period=frames,
            samplerate=self._samplerate,
            cycles=self._cycles,
            jumps=self._jumps,
            faults=self._faults,
            refused=self._refused + self._in.refused,
            late=self._late,
            rolling=state == 1,
            position=position.frame,
            bbt=bool(position.valid & self._bbt),
            bar=position.bar,
            beat=position.beat,
            tick=position.tick,
            bbt_offset=position.bbt_offset if position.valid & self._offset else 0,
            ticks_per_beat=position.ticks_per_beat,
            beats_per_bar=position.beats_per_bar,
            beat_type=position.beat_type,
            beats_per_minute=position.beats_per_minute,
        )

    def _counted_on(self, frame: int, frames: int) -> int:
        """Return the frame beyond 32 bits, and count a cycle that does not go on from the last."""
        before = self._frame
        if before < 0:
            self._frame = frame
            return frame
        at = before + (frame - before) % _WRAP
        if at - before > _WRAP // 2:  # it went back
            at -= _WRAP
        self._jumps += at != before + frames
        self._frame = at
        return at

    def _send(self, frame: int, frames: int) -> None:
        """Write what falls into this cycle; what is late goes out at once, in its order."""
        orders, port = self._orders, self._sends
        while len(orders) < _ORDERS_HELD and (record := self._out.take()) is not None:
            orders.append((_ORDER.unpack_from(record)[0], record[_ORDER.size :]))
        port.clear_buffer()
        at = 0
        while orders and orders[0][0] < frame + frames:
            due, message = orders.popleft()
            self._late += due < frame
            at = max(at, due - frame)
            port.write_midi_event(at, message)


def jack_process(handle: ArenaHandle, config: JackConfig) -> NoReturn:
    """Be the client's process until told to stop, or the bridge or the server is gone; end hard, as JACK may hang."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to answer
    arena = Arena.attach(handle)
    _run_client(arena, config)
    os._exit(0)


def _run_client(arena: Arena, config: JackConfig) -> None:
    state = arena.status("jack.state")
    state.publish(state=OPENING, heartbeat_ns=time.monotonic_ns(), connected=0)
    client = _open(arena, config)
    if client is None:
        return
    import jack

    cycle = Cycle(client, arena, jack._lib.JackPositionBBT, jack._lib.JackBBTFrameOffset)
    cycle.ports(
        client.midi_inports.register("clock_in"),
        client.midi_outports.register("clock_out") if config.sends else None,
    )
    gone = threading.Event()
    xruns = Counter(all=state.read()["xruns"])  # counted on JACK's notification thread
    client.set_shutdown_callback(lambda status, reason: gone.set())
    client.set_xrun_callback(lambda delay: xruns.update(all=1))
    client.set_process_callback(cycle)
    gc.collect()
    gc.freeze()
    gc.disable()
    client.activate()
    _tell(
        arena, f"JACK's clock is read by '{client.name}', at {client.samplerate} Hz in periods of {client.blocksize}"
    )
    state.publish(state=RUNNING, epoch=state.read()["epoch"] + 1)
    patch = _Patch(client, config, arena)
    while not gone.is_set() and not _over(arena):
        state.publish(heartbeat_ns=time.monotonic_ns(), connected=patch.look(), xruns=xruns["all"])
        time.sleep(_TURN_SECONDS)
    if gone.is_set():
        _tell(arena, "the JACK server is gone; its clock is waited for")
    state.publish(state=GONE)


def _open(arena: Arena, config: JackConfig) -> Any:
    """Return a client, as soon as there is a server; ``None`` if told to stop before."""
    try:
        import jack
    except ImportError:
        return _never(arena, "the package JACK-Client is not installed: pip install 'sideman[jack]'")
    except OSError as error:
        return _never(
            arena, f"JACK's library is not on this machine ({error}); on Debian: apt install libjack-jackd2-0"
        )
    jack.set_error_function(lambda text: None)
    jack.set_info_function(lambda text: None)
    said = False
    while not _over(arena):
        arena.status("jack.state").publish(heartbeat_ns=time.monotonic_ns())
        try:
            return jack.Client(config.client, no_start_server=True, servername=config.server or None)
        except jack.JackError:
            if not said:
                server = f"'{config.server}'" if config.server else "by the default name"
                _tell(arena, f"there is no JACK server {server}; its clock is waited for")
            said = True
        time.sleep(_RETRY_SECONDS)
    return None


def _never(arena: Arena, why: str) -> None:
    """Say why it cannot be, and wait for the end."""
    _tell(arena, why)
    while not _over(arena):
        arena.status("jack.state").publish(heartbeat_ns=time.monotonic_ns())
        time.sleep(_RETRY_SECONDS)


class _Patch:
    """Keeps the ports connected that the session names, whenever they come. Main thread of the client's process."""

    def __init__(self, client: Any, config: JackConfig, arena: Arena) -> None:
        self._client, self._config, self._arena = client, config, arena
        self._due = 0.0
        self._connected: frozenset[tuple[str, str]] = frozenset()

    def look(self) -> int:
        """Connect what is there and is not connected, twice a second; return how many are."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _RETRY_SECONDS
            pairs = frozenset(self._pairs())
            for source, target in pairs - self._connected:
                _tell(self._arena, f"MIDI clock goes from '{source}' to '{target}'")
            self._connected = pairs
        return len(self._connected)

    def _pairs(self) -> Iterator[tuple[str, str]]:

        config = self._config
        if config.clock_from:
            yield from self._joined(self._client.midi_inports[0], config.clock_from)
        if config.sends:
            for name in config.clock_to:
                yield from self._joined(self._client.midi_outports[0], name)

    def _joined(self, own: Any, name: str) -> Iterator[tuple[str, str]]:
        """Connect an own port with the first that is called so; yield source and target if that worked."""
        import jack

        for port in self._named(name, outputs=own.is_input):
            pair = (port.name, own.name) if own.is_input else (own.name, port.name)
            try:
                if not own.is_connected_to(port):
                    self._client.connect(*pair)
            except jack.JackError:
                continue  # it has gone meanwhile
            yield pair
            return

    def _named(self, name: str, *, outputs: bool) -> list[Any]:
        """Return the ports that are called so, or else begin so."""
        ports: list[Any] = self._client.get_ports(
            "^" + re.escape(name), is_midi=True, is_output=outputs, is_input=not outputs
        )
        return sorted(ports, key=lambda port: (port.name != name, port.name))


def _over(arena: Arena) -> bool:
    """Whether the bridge said stop, or is gone."""
    parent = multiprocessing.parent_process()
    return bool(arena.status("jack.control").read()["stop"]) or (parent is not None and not parent.is_alive())


def _tell(arena: Arena, text: str) -> None:
    arena.records("jack.text").post(text.encode()[:_TEXT_BYTES])


# -- whose frame is whose --------------------------------------------------------------------------------------------


class FrameMap:
    """The whole number between JACK's frames and the session's, exact, from pairs of frame and time. One thread.

    Both processes are clients of one server, so both counters go on by a period in every cycle; what a frame of the
    one is called by the other is a constant, except that whoever misses a cycle falls back by a period. How it is
    found:

    1. *Within a period* it is exact at once: the remainder of the difference, the same in every observation.
    2. *Which period*: the device had taken frames up to P when it was looked at, at a time that belongs to JACK's
       frame j. So ``session - JACK`` lies between ``P - period - j`` and ``P - j``, or a little lower, since a client
       is called some time into the cycle. That interval is a period wide and its place chances with every look; what
       nine in ten of the last looks agree on, and its neighbours do not, is it.
    3. *It has changed* when the last sixteen looks agree in the same way on another, or eight of the last ten
       contradict it; then the rest is looked at anew. The time of a cycle is taken as the least late of six, so a
       machine that stumbles is no contradiction.

    With a jitter of the wake-ups of up to a quarter of a period it locks within some twenty looks. It never locks
    where the device runs at another rate, or in blocks of which a period is not a whole number, and then nothing here
    is exact: :attr:`offset` stays ``None``, and time has to do. A device that is not on this server is for the caller
    to know: its blocks may fit by chance.

    Parameters
    ----------
    samplerate, blocksize
        The session's.

    Attributes
    ----------
    offset
        Session frame less JACK frame, ``None`` while it is not known.
    changes
        Times that it became another one.
    """

    def __init__(self, samplerate: int, blocksize: int) -> None:
        self.offset: int | None = None
        self.changes = 0
        self._samplerate, self._blocksize = samplerate, blocksize
        self._period = 0
        self._epochs: tuple[int, int] = (0, 0)
        self._late: deque[int] = deque(maxlen=_CYCLES_SEEN)
        self._seen = (0, 0)
        self._device_seen = (0, 0)
        self._looks: deque[tuple[int, int]] = deque(maxlen=_LOOKS)
        self._against: deque[bool] = deque(maxlen=_CONTRADICTIONS_OF)
        self._last: int | None = None

    def session(self, jack_frame: int) -> int | None:
        """Session frame of one of JACK's."""
        return None if self.offset is None else jack_frame + self.offset

    def jack(self, session_frame: int) -> int | None:
        """JACK's frame of one of the session's."""
        return None if self.offset is None else session_frame - self.offset

    def look(self, cycle: Mapping[str, int], device: Mapping[str, int], epoch: int = 0) -> None:
        """Take in what the two status blocks say: ``jack.cycle`` and ``io.status``, read together.

        Parameters
        ----------
        cycle, device
            The numbers of :data:`CYCLE_FIELDS` and of :data:`realtime.stream.IO_FIELDS`.
        epoch
            Counts the times that JACK's side was opened.
        """
        rate, period = cycle["samplerate"], cycle["period"]
        known = cycle["frame"] and device["playhead"] and period % self._blocksize == 0
        if not (known and rate == device["samplerate"] == self._samplerate):
            self._forget()
            return
        if (epoch, device["epoch"]) != self._epochs or period != self._period:
            self._epochs, self._period = (epoch, device["epoch"]), period
            self._forget()
        if not self._clock(cycle["frame"], cycle["time_ns"]):
            return
        seen = (device["playhead"], device["heartbeat_ns"])
        if seen == self._device_seen:
            return
        self._device_seen = seen
        now = (seen[1] - min(self._late)) * rate  # the frame of JACK's at that time, times a second
        self._look(seen[0] - period, now // SECOND_NS, (seen[0] - period - cycle["frame"]) % period)

    def _clock(self, frame: int, time_ns: int) -> bool:
        """Note when a cycle began; return whether enough of them are known to tell the time by."""
        if (frame, time_ns) != self._seen:
            self._seen = (frame, time_ns)
            self._late.append(time_ns - frame * SECOND_NS // self._samplerate)
        return len(self._late) >= _CYCLES_SEEN // 2

    def _look(self, first: int, now: int, remainder: int) -> None:
        """Note that the device was in the cycle of session frame ``first``, or the next, at JACK's frame ``now``."""
        self._looks.append((first - now, remainder))
        if self.offset is not None:
            self._against.append(not self._agrees(self.offset, (first - now, remainder)))
            fresh = self._vote(_LEAST_LOOKS)
            if sum(self._against) < _CONTRADICTIONS and fresh in (None, self.offset):
                return
            while len(self._looks) > (_CONTRADICTIONS if fresh in (None, self.offset) else _LEAST_LOOKS):
                self._looks.popleft()
            self.offset = None
        self.offset = self._vote(_LOOKS)
        if self.offset is not None:
            self._against.clear()
            self.changes += self._last not in (None, self.offset)
            self._last = self.offset

    def _agrees(self, offset: int, look: tuple[int, int]) -> bool:
        behind = offset - look[0]  # 0 to a period, and what the device's callback is late by in its cycle
        return (offset - look[1]) % self._period == 0 and -self._period // 4 <= behind <= 3 * self._period // 2

    def _vote(self, last: int) -> int | None:
        """Return the offset that the last looks agree on, ``None`` if they do not."""
        looks, period = list(self._looks)[-last:], self._period
        if len(looks) < _LEAST_LOOKS:
            return None
        remainder = Counter(look[1] for look in looks).most_common(1)[0][0]
        middle = sorted(look[0] for look in looks)[len(looks) // 2] + period // 2
        nearest = middle + (remainder - middle + period // 2) % period - period // 2
        votes = {
            offset: sum(self._agrees(offset, look) for look in looks)
            for offset in (nearest - period, nearest, nearest + period)
        }
        best = max(votes, key=lambda offset: votes[offset])
        rivals = max(count for offset, count in votes.items() if offset != best)
        clear = 10 * votes[best] >= 9 * len(looks) and 10 * rivals <= 8 * votes[best]
        return best if clear else None

    def _forget(self) -> None:
        self.offset = None
        self._late.clear()
        self._looks.clear()
        self._against.clear()


_CYCLES_SEEN = 6
_LOOKS, _LEAST_LOOKS = 32, 16
_CONTRADICTIONS, _CONTRADICTIONS_OF = 8, 10


# -- the transport ---------------------------------------------------------------------------------------------------


class TransportReader:
    """JACK's transport as observations. Pure. One thread.

    A client that is the timebase master says bar, beat and tick, and a tempo. Ticks are coarse (12 frames at 120
    bpm), but the transport's frame is exact: where the ticks are what a steady tempo since frame 0 makes of it, the
    exact beat is taken from the frame. Without a master there is the frame alone, and the session's plan makes beats
    of it.

    A tempo is meant by the notes that are counted (the documentation) or by quarter notes (some programs);
    it matters where the meter is not in quarters, and the beats that pass tell which it is.

    Parameters
    ----------
    source
        Name for the observations.
    song
        The session's plan with its bar 0 at frame 0, for a transport that says nothing but a frame.

    Attributes
    ----------
    odd
        Cycles in which a master said what cannot be.
    """

    def __init__(self, source: str, song: TempoMap) -> None:
        self.odd = 0
        self._source, self._song = source, song
        self._before: Mapping[str, Any] | None = None
        self._quarters = False  # whether the tempo counts quarter notes whatever the meter
        self._mark: tuple[int, Fraction] | None = None

    def read(self, cycle: Mapping[str, Any], at: int | None) -> Observation | None:
        """Return what a cycle says; ``at`` is the session's at its beginning, where that is known."""
        before, self._before = self._before, cycle
        if before is not None and before["frame"] == cycle["frame"]:
            return None
        located = before is not None and not _goes_on(before, cycle)
        common: dict[str, Any] = {
            "source": self._source,
            "time_ns": cycle["time_ns"] - cycle["period"] * SECOND_NS // cycle["samplerate"],
            "playing": bool(cycle["rolling"]),
            "frame": at,
            "located": located,
        }
        if located:
            self._mark = None
        if not cycle["bbt"]:
            frame = Fraction(cycle["position"] * self._song.timelines[0].samplerate, cycle["samplerate"])
            line = self._song.at_frame(frame)
            return Observation(beat=line.beat_at(frame), tempo=line.tempo, **common)
        try:
            return self._bars(cycle, common)
        except (ValueError, ZeroDivisionError, OverflowError):
            self.odd += 1  # a master that says bar 0, no beats, NaN
            return None

    def _bars(self, cycle: Mapping[str, Any], common: dict[str, Any]) -> Observation:
        meter = _meter(cycle["beats_per_bar"], cycle["beat_type"])
        said = _tempo(cycle["beats_per_minute"])
        unit = Fraction(4, meter.unit)
        tick = Fraction(cycle["tick"]) / Fraction(cycle["ticks_per_beat"])
        if cycle["bar"] < 1 or not 1 <= cycle["beat"] <= meter.count or not 0 <= tick < 2:
            raise ValueError
        counted = cycle["beat"] - 1 + tick  # in the notes that are counted
        self._learn(cycle, meter, said, (cycle["bar"] - 1) * meter.count + counted)
        tempo = said if self._quarters else said * unit
        elapsed = cycle["bbt_offset"] * tempo / (60 * cycle["samplerate"])
        grain = unit / Fraction(cycle["ticks_per_beat"])
        bar_beat, exact = self._exact(cycle, tempo, counted * unit + elapsed, unit, grain)
        bar = cycle["bar"] - 1
        if bar_beat < 0 or bar_beat >= meter.beats:  # a tick was rounded over the bar line
            bar, bar_beat = bar + bar_beat // meter.beats, bar_beat % meter.beats
        common["grain"] = Fraction(0) if exact else grain
        return Observation(bar=int(bar), bar_beat=bar_beat, tempo=tempo, meter=meter, **common)

    def _learn(self, cycle: Mapping[str, Any], meter: Meter, said: Fraction, counted: Fraction) -> None:
        """Find out what the tempo counts, from a beat or more that passed."""
        if meter.unit == 4 or not cycle["rolling"]:
            return
        if self._mark is None or self._mark[0] > cycle["position"] or self._mark[1] > counted:
            self._mark = (cycle["position"], counted)
            return
        frames, beats = cycle["position"] - self._mark[0], counted - self._mark[1]
        if beats < 1 or frames <= 0:
            return
        seen = beats * 60 * cycle["samplerate"] / frames
        in_units, in_quarters = said, said * meter.unit / 4
        self._quarters = abs(seen - in_quarters) < abs(seen - in_units)
        self._mark = (cycle["position"], counted)

    def _exact(
        self, cycle: Mapping[str, Any], tempo: Fraction, bar_beat: Fraction, unit: Fraction, tick: Fraction
    ) -> tuple[Fraction, bool]:
        """Return the beat in the bar, and whether it is exact.

        It is by the frame, if the ticks agree that the tempo was steady from frame 0 on.
        """
        since = cycle["position"] * tempo / (60 * cycle["samplerate"])
        start = (since - bar_beat) / unit
        whole = round(start)
        near = abs(start - whole) * unit <= 2 * tick
        return (since - whole * unit, True) if near else (bar_beat, False)


def _goes_on(before: Mapping[str, Any], cycle: Mapping[str, Any]) -> bool:
    """Whether the transport is where it must be if nobody moved it."""
    moved = cycle["position"] - before["position"]
    if before["rolling"] and cycle["rolling"]:
        return bool(abs(moved - (cycle["frame"] - before["frame"])) <= cycle["period"])
    return bool(0 <= moved <= cycle["frame"] - before["frame"])


def _meter(count: float, unit: float) -> Meter:
    if count != int(count) or unit != int(unit):
        raise ValueError
    return Meter(int(count), int(unit))


def _tempo(bpm: float) -> Fraction:
    tempo = Fraction(bpm).limit_denominator(TEMPO_DENOMINATOR)  # refuses NaN and infinity
    if tempo <= 0:
        raise ValueError
    thousandths = Fraction(round(tempo * 1000), 1000)
    return thousandths if abs(thousandths - tempo) * 10**6 < tempo else tempo


# -- in the bridge ---------------------------------------------------------------------------------------------------


class Child(Protocol):
    """What is needed of a process."""

    def is_alive(self) -> bool: ...

    def kill(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...


class JackClock:
    """The client's process as the bridge has it: kept alive, read, and asked what frame is whose. One thread.

    A source that reads it and a sender that uses it hold one of these in common.

    Parameters
    ----------
    arena
        Memory laid out by :func:`jack_layout` and :func:`realtime.io.layout`.
    config
        Which server, which ports.
    spec
        The session's stream.
    tell
        Takes sentences for the user.
    same_server
        Whether the session's sound device is on this server as well: only then frames are exact.
    spawn
        Starts the process; tests give their own.
    clock
        Monotonic nanoseconds.

    Attributes
    ----------
    map
        Between JACK's frames and the session's.
    restarts
        Processes started beyond the first.
    """

    def __init__(
        self,
        arena: Arena,
        config: JackConfig,
        spec: StreamSpec,
        tell: Callable[[str], None] = lambda text: None,
        *,
        same_server: bool = True,
        spawn: Callable[[], Child] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.map = FrameMap(spec.samplerate, spec.blocksize)
        self.restarts = 0
        self.config, self.samplerate = config, spec.samplerate
        self._arena, self._tell, self._clock, self._same = arena, tell, clock, same_server
        self._spawn = spawn or self._spawn_process
        self._cycle, self._state = arena.status("jack.cycle"), arena.status("jack.state")
        self._device: StatusBlock = arena.status("io.status")
        self._in: RecordRing = arena.records("jack.in")
        self._out: RecordRing = arena.records("jack.out")
        self._texts: RecordRing = arena.records("jack.text")
        self._child: Child | None = None
        self._spawned_ns = self._due_ns = 0
        self._users = 0
        self.messages: deque[tuple[int, int, bytes]] = deque(maxlen=_MESSAGES)

    def start(self) -> None:
        """Start the process, for the first who asks."""
        self._users += 1
        if self._child is None:
            self._begin(self._clock())

    def stop(self) -> None:
        """End the process with the last who used it."""
        self._users = max(0, self._users - 1)
        if self._users:
            return
        self._arena.status("jack.control").publish(stop=1)
        if self._child is not None:
            self._child.join(0.5)
            self._child.kill()
            self._child.join(0.5)
            self._child = None
        self._hear()

    def poll(self, now_ns: int) -> None:
        """Look after the process, take up its messages, and keep the frames together."""
        self._hear()
        self._look_after(now_ns)
        while (record := self._in.take()) is not None:
            if len(record) > _EVENT.size:
                self.messages.append((*_EVENT.unpack_from(record), record[_EVENT.size :]))
        cycle, device = self.cycle, self._device.read()
        if self._same and device["state"] == DEVICE_RUNNING and self.running:
            self.map.look(cycle, device, self._state.read()["epoch"])

    @property
    def cycle(self) -> dict[str, Any]:
        """What the last cycle was, by the names of :data:`CYCLE_FIELDS`."""
        return self._cycle.read()

    @property
    def running(self) -> bool:
        """Whether the client is connected to a server."""
        return bool(self._state.read()["state"] == RUNNING)

    @property
    def xruns(self) -> int:
        """Xruns of the server since the first start, whoever was late."""
        return int(self._state.read()["xruns"])

    @property
    def connected(self) -> int:
        """How many of the ports that the session names are connected."""
        return int(self._state.read()["connected"])

    def post(self, frame: int, message: bytes) -> bool:
        """Send a MIDI message at one of JACK's frames; return whether it found room."""
        return self._out.post(_ORDER.pack(frame) + message)

    def _begin(self, now_ns: int) -> None:
        try:
            self._child, self._spawned_ns = self._spawn(), now_ns
        except OSError as error:
            self._tell(f"the process that reads JACK's clock cannot be started ({error}); it is tried again")
            self._due_ns = now_ns + _IMPORT_NS

    def _look_after(self, now_ns: int) -> None:
        """Replace the process if it has ended or hangs."""
        if not self._users:
            return
        if self._child is None:
            if now_ns >= self._due_ns:
                self._begin(now_ns)
            return
        state = self._state.read()
        fresh = state["heartbeat_ns"] > self._spawned_ns
        hangs = now_ns - max(state["heartbeat_ns"], self._spawned_ns) > (_STALE_NS if fresh else _IMPORT_NS)
        if self._child.is_alive() and not hangs:
            return
        self._child.kill()
        self._child.join(0.5)
        self._child, self._due_ns = None, now_ns + _AGAIN_NS
        self.restarts += 1

    def _hear(self) -> None:
        while (text := self._texts.take()) is not None:
            self._tell(text.decode(errors="replace"))

    def _spawn_process(self) -> Child:
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=jack_process, args=(self._arena.handle, self.config), name="sideman-jack", daemon=True
        )
        process.start()
        return process


class JackMidiClock:
    """MIDI clock through JACK, to the frame: a source.

    Parameters
    ----------
    name
        Of the source in the session.
    clock
        The client.
    dialect
        How the peer speaks; ``AUTO`` goes by the name of the port, then by what it does.
    """

    def __init__(self, name: str, clock: JackClock, dialect: Dialect | str = Dialect.AUTO) -> None:
        self.name = name
        dialect = Dialect(dialect)
        known = Dialect.of(clock.config.clock_from) if dialect is Dialect.AUTO else dialect
        self.reader = ClockReader(name, clock.samplerate, known)
        self._clock = clock

    def start(self) -> None:
        """Start the client."""
        self._clock.start()

    def poll(self, now_ns: int) -> Iterable[Observation]:
        """Return what came since the last call."""
        clock, said = self._clock, []
        clock.poll(now_ns)
        self.reader.period = clock.cycle["period"]
        while clock.messages:
            frame, time_ns, message = clock.messages.popleft()
            said += self.reader.feed(message, Tick(time_ns, frame, clock.map.session(frame)))
        cycle = clock.cycle
        if clock.connected and now_ns - cycle["time_ns"] < _STALE_NS:
            said += self.reader.silent(Tick(cycle["time_ns"], cycle["frame"], clock.map.session(cycle["frame"])))
        return said

    def stop(self) -> None:
        """End the client."""
        self._clock.stop()


class JackTransport:
    """JACK's transport: a source. Another client keeps the time, and may say bars and beats.

    Parameters
    ----------
    name
        Of the source in the session.
    clock
        The client.
    song
        The session's plan with its bar 0 at frame 0, for a transport that says nothing but a frame.
    """

    def __init__(self, name: str, clock: JackClock, song: TempoMap) -> None:
        self.name = name
        self.reader = TransportReader(name, song)
        self._clock = clock

    def start(self) -> None:
        """Start the client."""
        self._clock.start()

    def poll(self, now_ns: int) -> Iterable[Observation]:
        """Return what the last cycle says."""
        clock = self._clock
        clock.poll(now_ns)
        if not clock.running or now_ns - (cycle := clock.cycle)["time_ns"] > _STALE_NS:
            return []
        said = self.reader.read(cycle, clock.map.session(cycle["frame"]))
        return [] if said is None else [said]

    def stop(self) -> None:
        """End the client."""
        self._clock.stop()


class JackClockOut:
    """Sends the band's time as MIDI clock through JACK, every tick on its frame: a sender.

    Nothing is sent while JACK's frames and the session's are not known to go together.
    """

    def __init__(self, name: str, clock: JackClock) -> None:
        self.name = name
        self.writer = ClockWriter()
        self.refused = 0
        self._clock = clock
        self._until: int | None = None  # JACK's frame up to which everything was sent

    def start(self) -> None:
        """Start the client."""
        self._clock.start()

    def send(self, position: Position, now_ns: int) -> None:
        """Send what falls due until the next call, and some more: a tenth of a second."""
        clock = self._clock
        clock.poll(now_ns)
        cycle, offset = clock.cycle, clock.map.offset
        if offset is None or not clock.running:
            self._until = None
            return
        rate, period = cycle["samplerate"], cycle["period"]
        now = cycle["frame"] + (now_ns - cycle["time_ns"]) * rate // SECOND_NS
        first = now + 2 * period
        if self._until is not None and -rate < self._until - first < rate:
            first = self._until
        self._until = end = max(first, now + 2 * period + rate // 10)
        for frame, message in self.writer.write(position, first + offset, end + offset):
            self.refused += not clock.post(frame - offset, message)

    def stop(self) -> None:
        """End the client."""
        self._clock.stop()
