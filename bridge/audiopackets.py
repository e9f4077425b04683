"""Audio and what belongs to it as OSC packets: one place that packs and unpacks, for both ends.

A block of audio is one OSC 1.0 message, never in a bundle::

    /sideman/audio/in  or  /sideman/audio/out    ,iihib
        stream      int32    whose sound it is, as the welcome numbered it
        sequence    int32    counts the packets of a stream
        frame       int64    of the block's first frame, by the peer's own count of frames
        channels    int32    1 to 64
        blob                 frames x channels float32, interleaved, LITTLE-endian

OSC's own numbers are big-endian; a blob is bytes, and these bytes are float32 as nearly every machine has them in
memory. Of this form the head is 52 bytes long, and is read by one call of ``struct``: a general parser takes six
times as long, and one float argument for each sample eighty times.

A program that cannot make such a blob (Pure Data has no way from a float to its bytes) sends the same as numbers:
``,iiii`` or ``,ffff``, then each sample as ``f``, frame by frame. Any of the four numbers may be an ``i``, ``h``,
``f`` or ``d``. Where a frame does not fit into the numbers of a program (float32 counts to 2**24, some six minutes),
it is -1: then the block begins at ``sequence`` times the length of a block.

Everything else is a short message of numbers and strings: see :data:`ADDRESSES`.

Source: OSC 1.0 specification (M. Wright, 2002).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.packets import Message, PacketError, Value, parse

Block = npt.NDArray[np.float32]

IN, OUT = "/sideman/audio/in", "/sideman/audio/out"
HELLO, WELCOME, STREAM, REFUSED, BYE = (
    f"/sideman/audio/{word}" for word in ("hello", "welcome", "stream", "refused", "bye")
)
START, ACK, REPORT, ERROR = (f"/sideman/audio/{word}" for word in ("start", "ack", "report", "error"))

MOST_BYTES = 65_507
"""UDP carries no more; python-osc's servers drop what is longer than 8,192 bytes."""
MOST_CHANNELS = 64
MOST_FRAMES = 8192
MOST_STREAM, MOST_FRAME = 1 << 24, 1 << 53
"""So many a float32 counts, and a double."""
HEAD_BYTES = 52

REPORT_FIELDS = (
    "wait_frames", "jitter_frames", "received", "lost", "concealed_frames", "late", "duplicates", "sent", "resent",
    "given_up", "round_trip_us", "lead", "delay", "latency",
)  # fmt: skip
"""What a report tells after its stream, in this order: how long a missing block is waited for, how much of it is
jitter; packets that came, were lost, and what stands in for them; packets that came too late or twice; packets sent,
sent again and given up; and of what the way of the sound consists."""

ADDRESSES: tuple[tuple[str, str, str, str], ...] = (
    (HELLO, "to sideman", "id, samplerate, blocksize, inputs, want, delay, form, token",
     "asks to stream. id: any number, new at each start of the peer. blocksize: frames in a packet, both ways. want: "
     "mix, stems or all. delay: frames that sound is to be there earlier than the lead makes it, 0 for none. form: "
     "blob or floats, for the packets out. token: left out on the same machine. Repeat it until it is answered"),
    (WELCOME, "to the peer", "id, stream in, lead, latency, delay, streams",
     "what hello asked for is granted: so many streams go out, and a message for each of them follows"),
    (STREAM, "to the peer", "stream, channels, name", "a stream out; its number is this connection's"),
    (REFUSED, "to the peer", "id, sentence", "what hello asked for is not to be had, and why"),
    (IN, "to sideman", "stream, sequence, frame, channels, blob", "a block of live input, at the pace of the peer's "
     "own clock, which becomes the session's"),
    (START, "to the peer", "stream in, first sequence, peer frame, session frame",
     "the streams out begin with this sequence; the two frames are the same moment. Repeated until the first ack"),
    (OUT, "to the peer", "stream, sequence, frame, channels, blob",
     "a block to be played when the peer's own clock is at frame, which is sequence times blocksize"),
    (ACK, "to sideman", "stream, end, then the missing sequences, at most 64",
     "all packets before end are there but those; what is missing is sent again. Every 5 to 20 ms"),
    (REPORT, "to the peer", "stream in, " + ", ".join(REPORT_FIELDS), "twice a second: how the connection stands"),
    (ERROR, "to the peer", "sentence", "what is wrong with a packet; at most one of a kind a second"),
    (BYE, "both ways", "id", "ends the connection"),
)  # fmt: skip
"""Address, direction, arguments, meaning."""


@dataclass(frozen=True, slots=True, eq=False)
class AudioPacket:
    """A block of audio on its way.

    Attributes
    ----------
    address
        :data:`IN` or :data:`OUT`.
    stream, sequence
        As in the packet, 0 or more.
    frame
        0 or more, or -1 where the sequence tells it.
    block
        ``(frames, channels)`` float32, 1 to 8,192 by 1 to 64; of a packet that was read it may be a view of it.
    """

    address: str
    stream: int
    sequence: int
    frame: int
    block: Block


# ---- to bytes --------------------------------------------------------------------------------------------------

_HEAD = struct.Struct(">20s8siiqii")
_TAGS = b",iihib\0\0"
_FIXED = {address.encode().ljust(20, b"\0") + _TAGS: address for address in (IN, OUT)}
_ADDRESSED = {start[:20]: address for start, address in _FIXED.items()}
_START = {address: start for start, address in _FIXED.items()}
_INT32, _INT64 = 1 << 31, 1 << 63


def pack_audio(address: str, stream: int, sequence: int, frame: int, block: Block) -> bytes:
    """Return a block of ``(frames, channels)`` as a packet with a blob, bit for bit."""
    start, data = _START[address], np.ascontiguousarray(block, "<f4").tobytes()
    head = _HEAD.pack(start[:20], start[20:], stream, sequence, frame, block.shape[1], len(data))
    return head + data


def pack_floats(address: str, stream: int, sequence: int, frame: int, block: Block) -> bytes:
    """Return a block as a packet of numbers: for peers that cannot read a blob; a frame beyond int32 becomes -1."""
    tags = _padded(",iiii" + "f" * block.size)
    numbers = struct.pack(">4i", stream, sequence, frame if frame < _INT32 else -1, block.shape[1])
    return _padded(address) + tags + numbers + np.ascontiguousarray(block, ">f4").tobytes()


def pack(address: str, *arguments: int | float | str | bytes) -> bytes:
    """Return a message: integers as ``i`` (``h`` where they are too large), floats as ``f``, strings, blobs."""
    tags, data = ",", b""
    for argument in arguments:
        if isinstance(argument, str):
            tags, data = tags + "s", data + _padded(argument)
        elif isinstance(argument, bytes):
            tags, data = tags + "b", data + struct.pack(">i", len(argument)) + argument + bytes(-len(argument) % 4)
        elif isinstance(argument, float):
            tags, data = tags + "f", data + struct.pack(">f", argument)
        elif -_INT32 <= argument < _INT32:
            tags, data = tags + "i", data + struct.pack(">i", argument)
        else:
            tags, data = tags + "h", data + struct.pack(">q", argument)
    return _padded(address) + _padded(tags) + data


def _padded(text: str) -> bytes:
    data = text.encode("ascii", "replace")
    return data + bytes(4 - len(data) % 4)


# ---- from bytes ------------------------------------------------------------------------------------------------

_NUMBERS = {"i": struct.Struct(">i"), "h": struct.Struct(">q"), "f": struct.Struct(">f"), "d": struct.Struct(">d")}
_ADDRESS_BYTES = 20


def unpack(packet: bytes) -> AudioPacket | Message:
    """Read a packet.

    Raises
    ------
    PacketError
        And nothing else, whatever the bytes are; in one sentence.
    """
    address = _FIXED.get(packet[:28])
    if address is not None and len(packet) >= HEAD_BYTES:
        _, _, stream, sequence, frame, channels, size = _HEAD.unpack_from(packet)
        if size != len(packet) - HEAD_BYTES:
            raise PacketError(_no_room(address, size, len(packet) - HEAD_BYTES))
        return _audio(address, stream, sequence, frame, channels, _samples(packet, "<f4", HEAD_BYTES))
    address = _ADDRESSED.get(packet[:_ADDRESS_BYTES])
    if address is not None:
        return _unpack_audio(packet, address)
    messages = parse(packet)
    if len(messages) != 1:
        raise PacketError(f"a bundle of {len(messages)} messages; here each is a packet of its own")
    return messages[0]


def _unpack_audio(packet: bytes, address: str) -> AudioPacket:
    """Read a block in any of its other forms."""
    if len(packet) % 4 or len(packet) > MOST_BYTES:
        raise PacketError(f"{address}: a packet of {len(packet)} bytes; it is a multiple of 4, up to {MOST_BYTES}")
    stop = packet.find(b"\0", _ADDRESS_BYTES)
    tags = packet[_ADDRESS_BYTES : max(stop, _ADDRESS_BYTES)].decode("latin-1")
    at = _ADDRESS_BYTES + len(tags) + 4 - len(tags) % 4
    kinds, rest = tags[1:5], tags[5:]
    sounds = rest == "b" or (rest and not rest.strip("f"))
    if tags[:1] != "," or len(kinds) < 4 or kinds.strip("ihfd") or not sounds:
        raise PacketError(
            f"{address} takes stream, sequence, frame and channels, then a blob or each sample as a float"
        )
    head: list[int] = []
    for kind in kinds:
        number = _NUMBERS[kind]
        if at + number.size > len(packet):
            raise PacketError(f"{address}: the packet ends within its arguments")
        head.append(whole(number.unpack_from(packet, at)[0], address))
        at += number.size
    size = 4 * len(rest)
    if rest == "b":
        size = _NUMBERS["i"].unpack_from(packet, at)[0] if at + 4 <= len(packet) else -1
        at += 4
    if size != len(packet) - at:
        raise PacketError(_no_room(address, size, max(0, len(packet) - at)))
    stream, sequence, frame, channels = head
    return _audio(address, stream, sequence, frame, channels, _samples(packet, "<f4" if rest == "b" else ">f4", at))


def _no_room(address: str, size: int, room: int) -> str:
    return f"{address}: {size} bytes of sound are announced, and the packet has {room} for it"


def _samples(packet: bytes, kind: str, at: int) -> npt.NDArray[np.float32] | None:
    """Return what is there from ``at`` on, ``None`` where it is no whole number of samples."""
    return None if (len(packet) - at) % 4 else np.frombuffer(packet, kind, -1, at)


def _audio(
    address: str, stream: int, sequence: int, frame: int, channels: int, samples: npt.NDArray[np.float32] | None
) -> AudioPacket:
    """Check and shape what was read."""
    if not 1 <= channels <= MOST_CHANNELS:
        raise PacketError(f"{address}: {channels} channels; 1 to {MOST_CHANNELS} are allowed")
    if not (0 <= stream < MOST_STREAM and 0 <= sequence < _INT32 and -1 <= frame < MOST_FRAME):
        raise PacketError(f"{address}: stream {stream}, sequence {sequence}, frame {frame}; they count from 0")
    if samples is None or samples.size % channels or not 1 <= samples.size // channels <= MOST_FRAMES:
        raise PacketError(
            f"{address}: the sound is not 1 to {MOST_FRAMES} whole frames of {channels} channels of float32"
        )
    return AudioPacket(address, stream, sequence, frame, samples.reshape(-1, channels).astype(np.float32, copy=False))


def whole(value: Value, what: str) -> int:
    """Return an argument as the whole number it is, be it written as a float.

    Raises
    ------
    PacketError
        If it is none.
    """
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PacketError(f"{what}: {repr(value)[:40]} where a whole number is needed")
    return value
