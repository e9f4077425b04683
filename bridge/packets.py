"""Open Sound Control packets, read strictly: whatever bytes arrive, messages come of it or one clear sentence.

A packet is a message or a bundle of packets (Open Sound Control 1.0 and the types of 1.1, opensoundcontrol.org). The
check *is* the parser, in one pass over the bytes: to know where a packet ends, every argument has to be looked at,
and two readers of the same bytes would sooner or later disagree about them. So python-osc never sees what came from
the network (a bundle of 20 bytes holds its parser up for ever, and what it raises is not always its own error). It
builds what goes out, and tests hold it against this.

What is refused: a size that is 0, no multiple of 4 or above :data:`MOST_BYTES`; elements of a bundle that are empty,
odd or reach out of it; bundles more than :data:`MOST_DEPTH` deep; addresses that are not ASCII or are patterns; types
nobody knows; strings and blobs that do not end inside the packet, or are not padded with zeros; arrays that are not
closed; and too much of anything. Time and memory are linear in the size of the packet. Any thread.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

MOST_BYTES = 8192
"""A longer packet is no control message. Sound has a socket and a layout of its own."""
MOST_DEPTH = 4
"""Bundles in bundles, and arrays in arrays."""
MOST_MESSAGES = 64
"""In one packet, all its bundles together."""
MOST_ARGUMENTS = 128
"""Of one message, those in arrays included."""
MOST_ADDRESS_CHARS = 255
IMMEDIATELY = 1
"""The time tag that means "now"."""

Value: TypeAlias = "int | float | str | bytes | bool | tuple[Value, ...] | None"

_BUNDLE = b"#bundle\0"
_HEAD_BYTES = 16  # of a bundle: its name and its time
_UNIX_SECONDS = 2_208_988_800  # from 1900 to 1970
_SECOND_NS = 10**9
_ADDRESS = re.compile(rb"/[^\x00-\x20#*,?\[\]{}\x7f-\xff]*")
_PATTERN = re.compile(rb"[*?\[\]{}]")
_INT, _TIME = struct.Struct(">i"), struct.Struct(">Q")
_NUMBERS = {
    ord("i"): _INT,
    ord("h"): struct.Struct(">q"),
    ord("f"): struct.Struct(">f"),
    ord("d"): struct.Struct(">d"),
    ord("t"): _TIME,
    ord("r"): struct.Struct(">I"),
}
_CONSTANTS: dict[int, Value] = {ord("T"): True, ord("F"): False, ord("N"): None, ord("I"): True}
_OPEN, _CLOSE = ord("["), ord("]")


class PacketError(ValueError):
    """Bytes that are no packet, in one sentence."""


class Message(NamedTuple):
    """One message.

    Attributes
    ----------
    address
        ASCII, begins with a slash.
    arguments
        ``i``, ``h``, ``r`` and ``t`` become int, ``f`` and ``d`` float, ``s``, ``S`` and ``c`` str, ``b`` and ``m``
        bytes, ``T`` and ``I`` (a press) True, ``F`` False, ``N`` None, an array a tuple. Floats may be NaN or
        infinite.
    tags
        The types as they were sent.
    time
        Time tag (NTP, 32 bits of seconds and 32 of fractions) of the bundle it came in, :data:`IMMEDIATELY` outside
        of bundles and for 0, which some send for it. In a bundle inside a later one, that of the later.
    """

    address: str
    arguments: tuple[Value, ...] = ()
    tags: str = ""
    time: int = IMMEDIATELY


def parse(packet: bytes) -> tuple[Message, ...]:
    """Return the messages of a packet in order; an empty bundle has none.

    Raises
    ------
    PacketError
        And nothing else, whatever the bytes are. One bad element spoils the whole packet: nothing of it is done.
    """
    size = len(packet)
    if not size:
        raise PacketError("the packet is empty; a message begins with its address")
    if size > MOST_BYTES:
        raise PacketError(f"the packet is longer than {MOST_BYTES} bytes, the most a control message may have")
    if size % 4:
        raise PacketError(f"the packet is {size} bytes long; OSC packets are multiples of 4, so was it cut off?")
    found: list[Message] = []
    _element(packet, 0, size, IMMEDIATELY, 1, found)
    return tuple(found)


def unix_ns(time: int) -> int:
    """Return a time tag as nanoseconds since 1970; tags count from 1968 to 2104, as NTP has it (RFC 4330, 3)."""
    seconds, fraction = time >> 32, time & 0xFFFFFFFF
    if seconds < 2**31:
        seconds += 2**32
    return (seconds - _UNIX_SECONDS) * _SECOND_NS + ((fraction * _SECOND_NS) >> 32)


def time_tag(unix_time_ns: int) -> int:
    """Return the time tag of a time in nanoseconds since 1970; :func:`unix_ns` undoes it to the nanosecond."""
    seconds, rest_ns = divmod(unix_time_ns, _SECOND_NS)
    fraction = -(-(rest_ns << 32) // _SECOND_NS)  # rounded up, as the way back rounds down
    return ((seconds + _UNIX_SECONDS) << 32 | fraction) & 0xFFFFFFFFFFFFFFFF


def _element(packet: bytes, at: int, end: int, time: int, depth: int, found: list[Message]) -> None:
    """Read what lies in ``[at, end)``, both multiples of 4, ``at < end``: a bundle or a message."""
    if packet.startswith(_BUNDLE, at, end):
        _bundle(packet, at, end, time, depth, found)
    elif len(found) == MOST_MESSAGES:
        raise PacketError(f"more than {MOST_MESSAGES} messages in one packet; send them in several")
    else:
        found.append(_message(packet, at, end, time))


def _bundle(packet: bytes, at: int, end: int, time: int, depth: int, found: list[Message]) -> None:
    if depth > MOST_DEPTH:
        raise PacketError(f"bundles are nested more than {MOST_DEPTH} deep")
    if end - at < _HEAD_BYTES:
        raise PacketError(f"the bundle at byte {at} has no time; it takes 8 bytes after its name")
    time = max(time, _TIME.unpack_from(packet, at + len(_BUNDLE))[0])
    at += _HEAD_BYTES
    while at < end:
        size: int = _INT.unpack_from(packet, at)[0]
        at += 4
        if size <= 0 or size % 4 or size > end - at:
            allowed = f"it takes a multiple of 4 above 0, and {end - at} are left"
            raise PacketError(f"the element at byte {at} says that it is {size} bytes long; {allowed}")
        _element(packet, at, at + size, time, depth + 1, found)
        at += size


def _message(packet: bytes, at: int, end: int, time: int) -> Message:
    if packet[at] != ord("/"):
        raise PacketError(f"what begins at byte {at} is neither an address, which begins with /, nor a bundle")
    address, at = _string(packet, at, end, "the address")
    if len(address) > MOST_ADDRESS_CHARS:
        raise PacketError(f"an address of {len(address)} characters; {MOST_ADDRESS_CHARS} are allowed")
    if not _ADDRESS.fullmatch(address):
        if _PATTERN.search(address):
            raise PacketError("the address is a pattern (* ? [ ] { }); give each address by itself")
        raise PacketError("the address has a character that is no printable ASCII, or a space, # or comma")
    name = address.decode("ascii")
    if at == end:
        return Message(name, (), "", time)  # older senders leave out the types where there are no arguments
    if packet[at] != ord(","):
        raise PacketError(f"after the address come the types, which begin with a comma; byte {at} is another")
    tags, at = _string(packet, at, end, "the types")
    arguments, at = _arguments(packet, at, end, tags)
    if at != end:
        raise PacketError(f"{end - at} bytes are left over after the last argument; do the types fit the arguments?")
    return Message(name, arguments, tags[1:].decode("ascii"), time)


def _arguments(packet: bytes, at: int, end: int, tags: bytes) -> tuple[tuple[Value, ...], int]:
    """Return the arguments that the types promise, and where they end."""
    if len(tags) - 1 > MOST_ARGUMENTS:
        raise PacketError(f"{len(tags) - 1} arguments; {MOST_ARGUMENTS} are allowed")
    values: list[Value] = []
    outer: list[list[Value]] = []  # what was begun before an array that is not closed yet
    for tag in tags[1:]:
        if tag in _NUMBERS:
            number = _NUMBERS[tag]
            if end - at < number.size:
                raise PacketError(f"an argument of type {chr(tag)} reaches beyond the end of its message")
            values.append(number.unpack_from(packet, at)[0])
            at += number.size
        elif tag in _CONSTANTS:
            values.append(_CONSTANTS[tag])
        elif tag in _SIZED:
            value, at = _SIZED[tag](packet, at, end)
            values.append(value)
        elif tag == _OPEN:
            if len(outer) == MOST_DEPTH:
                raise PacketError(f"arrays are nested more than {MOST_DEPTH} deep")
            outer.append(values)
            values = []
        elif tag == _CLOSE and outer:
            outer[-1].append(tuple(values))
            values = outer.pop()
        else:
            raise PacketError(f"an argument of type {chr(tag)!r}; known are i f s b h d t c r m S T F N I and [ ]")
    if outer:
        raise PacketError("an array is not closed by ]")
    return tuple(values), at


def _string(packet: bytes, at: int, end: int, what: str) -> tuple[bytes, int]:
    """Return the string at ``at``, and where what follows begins."""
    stop = packet.find(b"\0", at, end)
    if stop < 0:
        raise PacketError(f"{what} that begins at byte {at} has no end; a string ends with a zero")
    after = (stop + 4) & ~3
    _check_padding(packet, stop, after, what)
    return packet[at:stop], after


def _check_padding(packet: bytes, stop: int, after: int, what: str) -> None:
    if any(packet[stop:after]):
        raise PacketError(f"{what} that ends at byte {stop} is not padded with zeros up to a multiple of 4")


def _text(packet: bytes, at: int, end: int) -> tuple[Value, int]:
    text, at = _string(packet, at, end, "a string")
    try:
        return text.decode("utf-8"), at
    except UnicodeDecodeError:
        raise PacketError("a string is neither ASCII nor UTF-8") from None


def _blob(packet: bytes, at: int, end: int) -> tuple[Value, int]:
    if end - at < 4:
        raise PacketError("a blob has no length")
    size: int = _INT.unpack_from(packet, at)[0]
    at += 4
    after = at + ((size + 3) & ~3)
    if size < 0 or after > end:
        raise PacketError(f"a blob says that it is {size} bytes long; {end - at} are left in its message")
    _check_padding(packet, at + size, after, "a blob")
    return packet[at : at + size], after


def _character(packet: bytes, at: int, end: int) -> tuple[Value, int]:
    code = _four(packet, at, end)
    if any(code[:3]) or code[3] > 126:
        raise PacketError("a character (type c) is no ASCII")
    return chr(code[3]), at + 4


def _midi(packet: bytes, at: int, end: int) -> tuple[Value, int]:
    return _four(packet, at, end), at + 4


def _four(packet: bytes, at: int, end: int) -> bytes:
    if end - at < 4:
        raise PacketError("an argument of type c or m reaches beyond the end of its message")
    return packet[at : at + 4]


_SIZED: dict[int, Callable[[bytes, int, int], tuple[Value, int]]] = {
    ord("s"): _text,
    ord("S"): _text,
    ord("b"): _blob,
    ord("c"): _character,
    ord("m"): _midi,
}
