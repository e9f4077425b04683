"""A peer of audio over OSC to learn from: it streams what it hears, and gets every stem back whole, to the bit.

It needs NumPy, ``struct`` and a socket, and of sideman only how packets look. :class:`Client` knows the whole
protocol and neither clock nor socket: whoever has a callback that is given a block asks it for a packet to send, and
for the sound that is due. :class:`UdpClient` gives it a socket; run as a program it plays a file::

    python -m bridge.oscclient in.wav out.wav --port 9010              # the mix
    python -m bridge.oscclient in.wav out.wav --port 9010 --want all   # out.wav and out-NAME.wav for each stem

``out.wav`` is as long as ``in.wav``, frame for frame: frame n of it sounds while frame n of ``in.wav`` is played.

What a peer has to do, in order:

1. Say hello, until a welcome and as many streams as it names have come.
2. Send a block at the pace of its own clock, numbered, from any frame on, without end.
3. When ``start`` has come, note which sequence is the first.
4. Keep what comes by its frame; every 5 to 20 ms say for each stream up to where packets have come, and which lack.
5. Play a block when its own count is at the block's frame.
6. If no report has come for a second, say hello again.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bridge.audiopackets import (
    ACK,
    BYE,
    ERROR,
    HELLO,
    IN,
    MOST_BYTES,
    REFUSED,
    REPORT,
    REPORT_FIELDS,
    START,
    STREAM,
    WELCOME,
    AudioPacket,
    Block,
    pack,
    pack_audio,
    pack_floats,
    unpack,
)
from bridge.packets import Message, PacketError

HELLO_SECONDS = 0.1
ACK_SECONDS = 0.005
SILENT_SECONDS = 1.2
MOST_MISSING = 64
KEPT_SECONDS = 20.0
"""Sound that lies ready, or was not asked for, for longer than this is let go."""
_SECOND_NS = 10**9


class Inbox:
    """One stream that comes in: packets in any order, some of them lost; what is there, what lacks.

    Parameters
    ----------
    name, channels, blocksize
        Of the stream.
    keep
        Packets that are kept at most.

    Attributes
    ----------
    first
        Sequence of the first packet, -1 while it is not known.
    end
        All that have come are before this one.
    duplicates, strays
        Packets that came twice, or are no packets of this stream.
    """

    def __init__(self, name: str, channels: int, blocksize: int, keep: int = 8192) -> None:
        self.name, self.channels = name, channels
        self.first, self.end = -1, 0
        self.duplicates = self.strays = 0
        self._n, self._keep = blocksize, keep
        self._packets: dict[int, Block] = {}
        self._over = 0  # packets before this one are not wanted any more

    def begin(self, first: int) -> None:
        """Note which packet is the first; a later one begins anew, and what lacked before does not come any more."""
        if first > self.first:
            self.first, self._over = first, max(self._over, first)
            self.end = max(self.end, first)

    def put(self, packet: AudioPacket) -> None:
        """Take a packet."""
        sequence = packet.sequence
        fits = packet.block.shape == (self._n, self.channels) and packet.frame in (-1, sequence * self._n)
        if not fits or sequence >= max(self.end, self._over) + self._keep:
            self.strays += 1
        elif sequence in self._packets or sequence < self._over:
            self.duplicates += 1
        else:
            self._packets[sequence] = packet.block
            self.end = max(self.end, sequence + 1)

    def missing(self) -> list[int]:
        """Return the first that lack, :data:`MOST_MISSING` and one more at most."""
        found: list[int] = []
        for sequence in range(self._over, self.end):
            if sequence not in self._packets:
                found.append(sequence)
                if len(found) > MOST_MISSING:
                    break
        return found

    def acknowledgement(self) -> tuple[int, list[int]] | None:
        """Return what is to be said of this stream: ``end`` and what lacks before it; ``None`` before it began."""
        if self.first < 0:
            return None
        missing = self.missing()
        if len(missing) > MOST_MISSING:
            return missing[-1], missing[:-1]
        return self.end, missing

    def read(self, frame: int, frames: int) -> tuple[Block, int]:
        """Return ``(frames, channels)`` from ``frame`` of this peer's count on, and how many of them lack.

        Before the first packet silence is what is there, and does not lack.
        """
        sound, lacking = np.zeros((frames, self.channels), np.float32), 0
        for sequence in range(frame // self._n, (frame + frames - 1) // self._n + 1):
            begin = sequence * self._n
            first, last = max(frame, begin), min(frame + frames, begin + self._n)
            block = self._packets.get(sequence)
            if block is not None:
                sound[first - frame : last - frame] = block[first - begin : last - begin]
            elif 0 <= self.first <= sequence:
                lacking += last - first
        return sound, lacking

    def let_go(self, frame: int) -> None:
        """Forget what is before ``frame``: it is not asked for again."""
        over = frame // self._n
        for sequence in range(max(self._over, over - self._keep), over):
            self._packets.pop(sequence, None)
        self._over = max(self._over, over)


class Client:
    """The protocol of a peer; neither clock nor socket. One thread.

    Parameters
    ----------
    samplerate, inputs, blocksize
        Of what it streams; every block has ``blocksize`` frames.
    want
        ``"mix"``, ``"stems"`` or ``"all"``.
    delay
        Frames that sound is to be here earlier than the session's lead makes it.
    form
        How blocks travel: ``"blob"`` or ``"floats"``.
    token
        What a session on another machine wants to hear.
    id
        New at each start; chance by default.

    Attributes
    ----------
    frame
        This peer's own count: frames sent.
    inboxes
        The streams out, by number, once they are known.
    report
        What sideman reported last, by name.
    refused
        Why there is no welcome, a sentence.
    errors
        Sentences about packets of ours.
    start
        ``(frame here, frame of the session)``, the same moment; ``None`` before it is known.
    """

    def __init__(
        self,
        samplerate: int = 48_000,
        inputs: int = 1,
        blocksize: int = 256,
        *,
        want: str = "mix",
        delay: int = 0,
        form: str = "blob",
        token: str = "",
        id: int | None = None,
    ) -> None:
        self.samplerate, self.inputs, self.blocksize = samplerate, inputs, blocksize
        self.frame = 0
        self.inboxes: dict[int, Inbox] = {}
        self.report: dict[str, int] = {}
        self.refused = ""
        self.errors: list[str] = []
        self.start: tuple[int, int] | None = None
        self.id = random.randrange(1, 1 << 24) if id is None else id
        self._hello = pack(HELLO, self.id, samplerate, blocksize, inputs, want, delay, form, token)
        self._pack = pack_floats if form == "floats" else pack_audio
        self._stream_in, self._awaited = -1, -1
        self._sequence = 0
        self._hello_ns = self._ack_ns = self._heard_ns = -(1 << 62)

    @property
    def welcome(self) -> bool:
        """Whether it has been let in and knows every stream."""
        return self._awaited >= 0 and len(self.inboxes) == self._awaited

    def send(self, block: Block) -> bytes | None:
        """Return the packet of the next block, ``(blocksize, inputs)``; ``None`` while nobody has let us in.

        To be called for every block, sent or not: it counts this peer's frames.
        """
        packet = None
        if self.welcome:
            packet = self._pack(IN, self._stream_in, self._sequence, self.frame, block)
        self._sequence += 1
        self.frame += len(block)
        return packet

    def skip(self, blocks: int) -> None:
        """Count blocks that this peer has no sound for, because its own sound card lost them."""
        self._sequence += blocks
        self.frame += blocks * self.blocksize

    def due(self, time_ns: int) -> list[bytes]:
        """Return what else is to be sent now: a hello, or acknowledgements. To be called every few milliseconds."""
        silent = time_ns - self._heard_ns > SILENT_SECONDS * _SECOND_NS
        if (not self.welcome or silent) and time_ns - self._hello_ns >= HELLO_SECONDS * _SECOND_NS:
            self._hello_ns = time_ns
            return [self._hello]
        if self.welcome and time_ns - self._ack_ns >= ACK_SECONDS * _SECOND_NS:
            self._ack_ns = time_ns
            said = ((stream, inbox.acknowledgement()) for stream, inbox in self.inboxes.items())
            return [pack(ACK, stream, what[0], *what[1]) for stream, what in said if what is not None]
        return []

    def take(self, packet: bytes, time_ns: int) -> None:
        """Take a packet from sideman; what cannot be understood is left."""
        try:
            found = unpack(packet)
        except PacketError:
            return
        if isinstance(found, AudioPacket):
            inbox = self.inboxes.get(found.stream)
            if inbox is not None:
                self._heard_ns = time_ns
                inbox.put(found)
        else:
            self._take_message(found, time_ns)

    def _take_message(self, message: Message, time_ns: int) -> None:
        address, arguments = message.address, message.arguments
        match address, arguments:
            case _ if address == WELCOME and len(arguments) == 6 and arguments[0] == self.id:
                stream, streams = arguments[1], arguments[5]
                if isinstance(stream, int) and isinstance(streams, int):
                    self._enter(stream, streams)
            case _ if address == STREAM and len(arguments) == 3:
                stream, channels, name = arguments
                if isinstance(stream, int) and isinstance(channels, int) and isinstance(name, str):
                    self._learn(stream, channels, name)
            case _ if address == START and len(arguments) == 4 and arguments[0] == self._stream_in:
                _, first, here, there = arguments
                if isinstance(first, int) and isinstance(here, int) and isinstance(there, int):
                    self.start = (here, there)
                    for inbox in self.inboxes.values():
                        inbox.begin(first)
            case _ if address == REPORT and len(arguments) == 1 + len(REPORT_FIELDS):
                numbers = [value if isinstance(value, int) else 0 for value in arguments[1:]]
                self.report = dict(zip(REPORT_FIELDS, numbers, strict=True))
            case _ if address == REFUSED and len(arguments) == 2 and arguments[0] == self.id:
                self.refused = str(arguments[1])
            case _ if address == ERROR and len(arguments) == 1:
                self.errors = [*self.errors[-99:], str(arguments[0])]
            case _ if address == BYE:
                self._awaited = -1
        if address in (WELCOME, START, REPORT):
            self._heard_ns = time_ns

    def _enter(self, stream: int, streams: int) -> None:
        """Note that we are let in; another number than before means that sideman has begun anew."""
        self.refused = ""
        if stream != self._stream_in:
            self.inboxes.clear()
            self.start = None
        self._stream_in, self._awaited = stream, streams

    def _learn(self, stream: int, channels: int, name: str) -> None:
        known = 0 < stream - self._stream_in <= self._awaited and 1 <= channels <= 64
        if known and stream not in self.inboxes:
            keep = round(KEPT_SECONDS * self.samplerate) // self.blocksize
            self.inboxes[stream] = Inbox(name, channels, self.blocksize, keep)

    def bye(self) -> bytes:
        """Return the packet that ends the connection."""
        return pack(BYE, self.id)

    def receive(self, frame: int, frames: int) -> dict[str, tuple[Block, int]]:
        """Return for each stream, by name, the sound at ``frame`` and how many of its frames lack; then let go of it.

        What is asked for twice is silence. Play it when this peer's count is at ``frame``.
        """
        sound = {inbox.name: inbox.read(frame, frames) for inbox in self.inboxes.values()}
        for inbox in self.inboxes.values():
            inbox.let_go(frame + frames)
        return sound


class UdpClient:
    """A :class:`Client` with a socket.

    Parameters
    ----------
    client
        What is said.
    port, host
        Where sideman listens for audio over OSC.
    """

    def __init__(self, client: Client, port: int, host: str = "127.0.0.1") -> None:
        self.client = client
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.connect(address)

    def send(self, block: Block) -> None:
        """Stream the next block."""
        packet = self.client.send(block)
        if packet is not None:
            self._put(packet)

    def serve(self) -> None:
        """Take what has come, send what is due. To be called every few milliseconds."""
        with contextlib.suppress(OSError):  # nothing more has come, or nobody listens yet
            while True:
                self.client.take(self._socket.recv(MOST_BYTES), time.monotonic_ns())
        for packet in self.client.due(time.monotonic_ns()):
            self._put(packet)

    def close(self) -> None:
        """Say goodbye."""
        self._put(self.client.bye())
        self._socket.close()

    def _put(self, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # what is lost is asked for again
            self._socket.send(packet)


# ---- as a program ----------------------------------------------------------------------------------------------


def read_wav(path: Path) -> tuple[Block, int]:
    """Return the sound of a WAV file, ``(frames, channels)``, and its rate in Hz: 16, 24, 32 bits or float32.

    Raises
    ------
    ValueError
        If it is none.
    """
    data = path.read_bytes()
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError(f"{path} is no WAV file")
    at, kind, channels, rate, bits = 12, 0, 0, 0, 0
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
            kind = struct.unpack_from("<H", body, 24)[0] if kind == 0xFFFE and len(body) >= 26 else kind
        elif name == b"data" and channels:
            return _samples(path, body, kind, bits).reshape(-1, channels), rate
        at += 8 + size + size % 2
    raise ValueError(f"{path} has no sound in it")


def _samples(path: Path, body: bytes, kind: int, bits: int) -> Block:
    if (kind, bits) == (3, 32):
        return np.frombuffer(body[: len(body) // 4 * 4], "<f4").astype(np.float32)
    if (kind, bits) == (1, 16):
        return (np.frombuffer(body[: len(body) // 2 * 2], "<i2") / np.float32(1 << 15)).astype(np.float32)
    if (kind, bits) == (1, 32):
        return (np.frombuffer(body[: len(body) // 4 * 4], "<i4") / float(1 << 31)).astype(np.float32)
    if (kind, bits) == (1, 24):
        three = np.frombuffer(body[: len(body) // 3 * 3], np.uint8).reshape(-1, 3)
        four = np.concatenate([np.zeros((len(three), 1), np.uint8), three], axis=1)
        return (four.reshape(-1).view("<i4") / float(1 << 31)).astype(np.float32)
    raise ValueError(f"{path} has {bits} bits of format {kind}; 16, 24 and 32 bits and float32 are read")


def write_wav(path: Path, sound: Block, samplerate: int) -> None:
    """Write ``(frames, channels)`` as a float32 WAV file."""
    data, channels = np.ascontiguousarray(sound, "<f4").tobytes(), sound.shape[1]
    head = struct.pack("<HHIIHH", 3, channels, samplerate, 4 * channels * samplerate, 4 * channels, 32)
    chunks = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def play_file(
    udp: UdpClient,
    sound: Block,
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, Block], int]:
    """Stream ``sound`` at the pace of the wall clock; return what came back, by name, and how many frames lacked.

    It is as long as ``sound``; frame n of it sounds while frame n of ``sound`` is played.
    """
    client, n = udp.client, udp.client.blocksize
    begun_ns, lacking = clock(), 0
    found: dict[str, Block] = {}
    for at in range(0, len(sound), n):
        while clock() < begun_ns + (at + n) * _SECOND_NS // client.samplerate:
            udp.serve()
            sleep(0.001)
        for name, (block, lost) in client.receive(at, n).items():
            kept = found.setdefault(name, np.zeros((len(sound), block.shape[1]), np.float32))
            kept[at : at + n] = block[: len(sound) - at]
            lacking += lost
        block = sound[at : at + n]
        udp.send(np.concatenate([block, np.zeros((n - len(block), sound.shape[1]), np.float32)]))
    return found, lacking


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a file to a session; 0 if all came back whole."""
    parser = argparse.ArgumentParser(prog="python -m bridge.oscclient", description="Streams a file to sideman.")
    parser.add_argument("sound", type=Path, help="WAV file that sideman hears")
    parser.add_argument("out", type=Path, help="WAV file for what comes back; -NAME is put behind it for each stem")
    parser.add_argument("--port", type=int, required=True, help="UDP port of audio over OSC")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--want", choices=("mix", "stems", "all"), default="mix")
    parser.add_argument("--blocksize", type=int, default=256, help="frames in a packet")
    parser.add_argument(
        "--delay", type=int, default=-1, help="frames of head start; a quarter of a second by default"
    )
    parser.add_argument("--token", default="")
    given = parser.parse_args(arguments)
    try:
        sound, rate = read_wav(given.sound)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    delay = rate // 4 if given.delay < 0 else given.delay
    client = Client(rate, sound.shape[1], given.blocksize, want=given.want, delay=delay, token=given.token)
    udp = UdpClient(client, given.port, given.host)
    try:
        found, lacking = play_file(udp, sound)
    finally:
        udp.close()
    for name, stem in found.items():
        write_wav(given.out if name == "mix" else given.out.with_stem(f"{given.out.stem}-{name}"), stem, rate)
    if not found:
        print(client.refused or f"nobody answered on {given.host}:{given.port}", file=sys.stderr)
        return 1
    print(f"{', '.join(found)}: {lacking} frames lack; {client.report}")
    return int(lacking > 0)


if __name__ == "__main__":
    raise SystemExit(main())
