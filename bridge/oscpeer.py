"""A program that streams audio over OSC, as sideman sees it: what it asks for, and its frames on the session's grid.

No socket and no clock of its own: packets and times are given.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bridge.audiopackets import HEAD_BYTES, HELLO, MOST_BYTES, MOST_FRAMES, AudioPacket, whole
from bridge.guard import TokenBucket, check_entrance
from bridge.jitter import STRAY, TWICE, JitterBuffer
from bridge.packets import PacketError, Value
from bridge.resend import RoundTrip, Sender
from realtime.buffers import Arena, AudioRing
from realtime.io import BlockClock, Departing, Grid
from realtime.protocols import Block, StreamSpec
from realtime.stream import LOST_EMPTY, LOST_LATE, SECOND_NS, frames_in

MOST_DELAY_SECONDS = 16
LEAST_BLOCK = 16
WANTS = ("mix", "stems", "all")
FORMS = ("blob", "floats")
MIX = "mix"

_TURN_SENT = 96
_STRAYS = 8  # in a row, of one time: then it is the peer's count that has jumped
_FILLED_AT_ONCE = 8
_PEER_SLACK = 1000.0  # packets a second beyond the blocks: acknowledgements

Address = tuple[Any, ...]
"""What a socket calls a sender: host and port come first."""


@dataclass(frozen=True, slots=True)
class OscAudioConfig:
    """Where audio over OSC is listened for, and what there is to be had.

    Attributes
    ----------
    spec
        The session's stream.
    stems
        Name and channels of each stem, as the engine lays them out.
    bind
        Address of the interface, as a number.
    port
        UDP port, 0 for one that the system chooses.
    token
        What peers of other machines have to say; needed where ``bind`` is open to them.
    """

    spec: StreamSpec
    stems: tuple[tuple[str, int], ...] = ()
    bind: str = "127.0.0.1"
    port: int = 0
    token: str = ""

    def __post_init__(self) -> None:
        check_entrance(self.bind, self.token)
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port}: a UDP port is 1 to 65535, or 0 to have one chosen")

    @property
    def most_delay(self) -> int:
        """The longest delay a peer may ask for, in frames."""
        return MOST_DELAY_SECONDS * self.spec.samplerate


@dataclass(frozen=True, slots=True)
class Hello:
    """What a peer asks for; :meth:`read` checks it."""

    id: int
    samplerate: int
    blocksize: int
    inputs: int
    want: str
    delay: int
    form: str
    token: str

    @classmethod
    def read(cls, arguments: tuple[Value, ...]) -> Hello:
        """Return what the arguments of a hello say.

        Raises
        ------
        PacketError
            If they are none.
        """
        if not 6 <= len(arguments) <= 8:
            raise PacketError(
                f"{HELLO} has {len(arguments)} arguments; it takes id, samplerate, blocksize, inputs, want, delay, "
                "and where they are needed form and token"
            )
        id, samplerate, blocksize, inputs, delay = (whole(arguments[at], HELLO) for at in (0, 1, 2, 3, 5))
        want = arguments[4]
        form = arguments[6] if len(arguments) > 6 else "blob"
        token = arguments[7] if len(arguments) > 7 else ""
        if not (isinstance(want, str) and isinstance(form, str) and isinstance(token, str)):
            raise PacketError(f"{HELLO}: want, form and token are words")
        if not -(1 << 31) <= id < 1 << 31:
            raise PacketError(f"{HELLO}: the id is a number of 32 bits")
        return cls(id, samplerate, blocksize, inputs, want, delay, form, token)

    def check(self, config: OscAudioConfig) -> None:
        """Refuse what this session cannot do, in one sentence.

        Raises
        ------
        PacketError
            With that sentence.
        """
        spec = config.spec
        if self.samplerate != spec.samplerate:
            raise PacketError(
                f"samplerate={self.samplerate}: this session runs at {spec.samplerate} Hz; set both to one rate"
            )
        if self.inputs != spec.inputs:
            raise PacketError(
                f"inputs={self.inputs}: this session hears {spec.inputs} channels; send so many, or change its inputs"
            )
        if self.want not in WANTS:
            raise PacketError(f"want={self.want[:20]!r}: mix, stems or all can be had")
        if self.form not in FORMS:
            raise PacketError(f"form={self.form[:20]!r}: blob or floats can be had")
        if not LEAST_BLOCK <= self.blocksize <= MOST_FRAMES:
            raise PacketError(f"blocksize={self.blocksize}: {LEAST_BLOCK} to {MOST_FRAMES} frames; 256 is usual")
        widest = max(channels for _, channels in self.streams(config))
        size = 5 if self.form == "floats" else 4  # a float argument has its type tag
        room = (MOST_BYTES - HEAD_BYTES - 4) // (size * max(widest, self.inputs))
        if self.blocksize > room:
            raise PacketError(
                f"blocksize={self.blocksize}: with {widest} channels a packet holds {room} frames at most; did you "
                f"mean {1 << (room.bit_length() - 1)}?"
            )
        if not 0 <= self.delay <= config.most_delay:
            raise PacketError(
                f"delay={self.delay}: 0 to {config.most_delay} frames; a bar of 4/4 at 120 bpm has "
                f"{2 * spec.samplerate}"
            )

    def streams(self, config: OscAudioConfig) -> list[tuple[str, int]]:
        """Return name and channels of what goes out."""
        mix, stems = [(MIX, config.spec.outputs)], list(config.stems)
        return {"mix": mix, "stems": stems or mix, "all": stems + mix}[self.want]


class Course:
    """The peer's frames on the session's grid, from one start or jump of its count to the next: in and out.

    Parameters
    ----------
    spec, hello
        The session's stream, and what the peer asks for.
    arena
        Memory laid out by :func:`realtime.io.layout` and :func:`realtime.engine.engine_layout`.
    rings
        Where each stream out is read.
    mixed_ahead
        Frames beyond the lead that the engine mixes ahead already.

    Attributes
    ----------
    clock, grid, jitter
        When a frame of the peer was due; what it is in the session; what has come. The last two are ``None`` until
        the clock is known.
    newest
        End of the newest block, in frames of the peer.
    senders
        One for each stream out.
    mixed_ahead
        What the engine is asked for now.
    lost, starved
        Frames that were not acknowledged when they were due, and times that was so; frames and times that nothing was
        mixed when they were.
    """

    def __init__(
        self, spec: StreamSpec, hello: Hello, arena: Arena, rings: list[AudioRing], mixed_ahead: int
    ) -> None:
        self.clock = BlockClock(spec.samplerate)
        self.grid: Grid | None = None
        self.jitter: JitterBuffer | None = None
        self.newest = 0
        self.trip = RoundTrip()
        self.senders: list[Sender] = []
        self.mixed_ahead = mixed_ahead
        self.lost = self.starved = self.lost_frames = self.starved_frames = 0
        self._spec, self._hello, self._rings = spec, hello, rings
        self._n = hello.blocksize
        self._input, self._stream = arena.ring("io.input"), arena.status("stream.status")
        self._departing = Departing(arena.ring("io.out"))
        self._arrived: dict[int, list[int]] = {}  # by sequence: streams that came, least margin
        self._settled = 0  # sequence of which it is to be said next what became of it
        self._was = 0  # what became of the one before
        self._stray_frame, self._strays = 0, 0

    # In

    def take(self, packet: AudioPacket, frame: int, time_ns: int) -> bool:
        """Take a block that begins at ``frame`` of the peer; return whether it is news: it may come from long ago."""
        before, end = self.newest, frame + len(packet.block)
        if self.jitter is not None:
            became = self.jitter.put(packet.sequence, frame, packet.block, time_ns)
            if became == STRAY:
                near = abs(frame - self._stray_frame) <= self._spec.samplerate
                self._strays, self._stray_frame = self._strays + 1 if near else 1, frame
            if became in (STRAY, TWICE):
                return False
        self._strays = 0
        self.newest = max(before, end)
        return self.newest > before

    @property
    def jumped(self) -> bool:
        """Whether the peer's count has gone elsewhere."""
        return self._strays >= _STRAYS

    def hear(self, time_ns: int) -> None:
        """Hand on what is there, or has been waited for long enough."""
        if self.jitter is None or self.grid is None:
            return
        made_up = 0
        while made_up < _FILLED_AT_ONCE:
            frame, lost = self.jitter.next, self.jitter.lost
            block = self.jitter.take(time_ns)
            if block is None:
                return
            made_up += self.jitter.lost - lost
            first = self.grid.session(frame) - self._spec.latency
            start = max(first, self._input.written, 0)
            if start < first + len(block):
                self._input.write(start, block[start - first :])

    # The grid

    def follow(self, time_ns: int) -> bool:
        """Look at both clocks; return whether the peer's has moved."""
        moved = self.clock.observe(self.newest, time_ns)
        stream = self._stream.read()
        if self.grid is None and stream["time_ns"] and self.clock.settled:
            self._lay_grid(stream)
        if self.grid is not None:
            behind = self.now(time_ns) + self._hello.delay - stream["frame"]
            if self.mixed_ahead < self._hello.delay:
                reached = behind + 2 * self._n >= self._hello.delay
                self.mixed_ahead = self._hello.delay if reached else max(self.mixed_ahead, behind)
        return moved

    def _lay_grid(self, stream: dict[str, Any]) -> None:
        """Tie the peer's newest frame to where the engine's clock stands; further back for more to be mixed ahead.

        What it is ahead already is kept, and mixing stands still until a shorter delay is reached.
        """
        rate, elapsed_ns = self._spec.samplerate, self.clock.time_ns(self.newest) - stream["time_ns"]
        told = stream["frame"] + frames_in(elapsed_ns, rate)
        at = told - max(0, self._hello.delay - self.mixed_ahead)
        self.mixed_ahead = min(self.mixed_ahead, self._hello.delay)
        self.grid = Grid(self.newest, at, rate, rate)
        self.jitter = JitterBuffer(rate, self._spec.inputs, self._n, self.newest, self.clock)
        soonest = at + 2 * self._n + rate // 200  # what is due before it can be there is nobody's
        first = max(0, self.newest + max(told, soonest, 0) - at) // self._n
        self._settled = first
        self._departing.skip(max(0, self.start(first)))
        self.senders = [Sender(first, self.trip) for _ in self._rings]

    def start(self, sequence: int) -> int:
        """Session frame at which a packet begins."""
        assert self.grid is not None
        return self.grid.session_frame + sequence * self._n - self.grid.device_frame

    def now(self, time_ns: int) -> int:
        """Session frame that sounds at the peer now."""
        assert self.grid is not None
        elapsed_ns = min(time_ns - self.clock.time_ns(self.newest), SECOND_NS)
        return self.grid.session(self.newest + max(0, frames_in(elapsed_ns, self._spec.samplerate)))

    # Out

    def due(self, time_ns: int) -> Iterable[tuple[int, int]]:
        """Yield what is to be sent now: the index of a stream, and a sequence."""
        if self.grid is None:
            return
        now, stream = self.now(time_ns), self._stream.read()
        useful = self._sequence(now) + 1
        most = max(1, _TURN_SENT // max(1, len(self.senders)))
        for index, (sender, ring) in enumerate(zip(self.senders, self._rings, strict=True)):
            ready = self._sequence(ring.written)
            if stream["stopped"] and ring.written >= stream["mixed"] and self.start(ready) < ring.written:
                ready += 1  # the last one is filled up with silence
            for sequence in sender.due(ready, useful, time_ns, most):
                if not sender.acknowledges:
                    self._note(sequence, self.start(sequence) - now)
                yield index, sequence

    def read(self, index: int, sequence: int) -> Block:
        """Return the sound of a packet."""
        start = self.start(sequence)
        return self._rings[index].read(start, start + self._n)

    def acknowledge(self, index: int, end: int, missing: list[int], time_ns: int) -> None:
        """Take note of what has come; ``PacketError`` if it cannot have."""
        now = self.now(time_ns)
        if not self.acknowledged:
            self._arrived.clear()  # until now what was sent was taken for arrived
            for sender in self.senders:
                sender.acknowledges = True
        for sequence in self.senders[index].acknowledge(end, missing, time_ns):
            self._note(sequence, max(0, self.start(sequence) - now))

    def settle(self, time_ns: int) -> None:
        """Write down what became of the packets that are over."""
        if self.grid is None:
            return
        now, stream = self.now(time_ns), self._stream.read()
        grace = frames_in(min(self.trip.patience_ns, 100_000_000), self._spec.samplerate)
        over = self._sequence(now - grace)
        while self._settled < over:
            self._settle(self._settled, stream)
            self._settled += 1
        for sender in self.senders:
            sender.drop(self._settled)
        self._departing.settle(now)

    def _settle(self, sequence: int, stream: dict[str, Any]) -> None:
        came, margin = self._arrived.pop(sequence, (0, 0))
        end = self.start(sequence) + self._n
        was, self._was = self._was, 0
        if came >= len(self.senders):
            self._departing.hand(end, max(0, margin))
        elif self.start(sequence) >= stream["mixed"] and (stream["stopped"] or not stream["mixed"]):
            self._departing.skip(end)
        elif any(sender.was_late(sequence) for sender in self.senders):
            self._was = LOST_LATE
            self.starved += was != LOST_LATE
            self.starved_frames += self._n
            self._departing.lose(end, LOST_LATE)
        else:
            self._was = LOST_EMPTY
            self.lost += was != LOST_EMPTY
            self.lost_frames += self._n
            self._departing.lose(end, LOST_EMPTY)

    def fill(self, time_ns: int) -> int:
        """Frames that are whole at the peer and wait there for their time."""
        if self.grid is None or not self.senders:
            return 0
        return max(0, self.start(min(sender.whole for sender in self.senders)) - self.now(time_ns))

    @property
    def acknowledged(self) -> bool:
        """Whether the peer has acknowledged anything."""
        return any(sender.acknowledges for sender in self.senders)

    @property
    def gone_out(self) -> bool:
        """Whether the session is over and all of it has been heard."""
        stream = self._stream.read()
        return bool(stream["stopped"]) and self.grid is not None and self.start(self._settled) >= stream["mixed"]

    @property
    def lost_range(self) -> tuple[int, int]:
        """The session frames that were lost last."""
        return self._departing.lost

    def _sequence(self, session_frame: int) -> int:
        """Return the sequence of the packet that a session frame is in."""
        assert self.grid is not None
        return (session_frame - self.grid.session_frame + self.grid.device_frame) // self._n

    def _note(self, sequence: int, margin: int) -> None:
        came, least = self._arrived.get(sequence, (0, margin))
        self._arrived[sequence] = [came + 1, min(least, margin)]


class Peer:
    """Who streams: what was agreed, and what is counted over all its courses."""

    def __init__(self, address: Address, hello: Hello, streams: list[tuple[str, int]], time_ns: int) -> None:
        self.address, self.hello, self.streams = address, hello, streams
        self.stream_in = (1 + secrets.randbelow(30_000)) * 128  # so nothing of an earlier connection fits
        self.course: Course | None = None
        self.last_ns = time_ns
        self.newest = self.old = 0  # frame that has come; packets in a row that are from before it
        self.starts = 0
        self.start_ns = self.report_ns = 0
        self.packets = TokenBucket(
            4.0 * hello.samplerate / hello.blocksize + _PEER_SLACK * len(streams), hello.samplerate // LEAST_BLOCK
        )

    @property
    def name(self) -> str:
        """Return host and port."""
        return f"{self.address[0]}:{self.address[1]}"

    def stream_out(self, index: int) -> int:
        """Number of a stream out."""
        return self.stream_in + 1 + index

    def index(self, stream: int) -> int:
        """Return the index of a stream out; ``PacketError`` if it is none of this connection."""
        index = stream - self.stream_in - 1
        if not 0 <= index < len(self.streams):
            raise PacketError(f"stream {stream} is none of this connection's")
        return index
