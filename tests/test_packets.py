"""OSC packets: whatever the bytes are, messages or one sentence; what python-osc builds is read as it was meant."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pythonosc.osc_message_builder import OscMessageBuilder
from pythonosc.osc_packet import OscPacket

from bridge.packets import (
    IMMEDIATELY,
    MOST_ARGUMENTS,
    MOST_BYTES,
    MOST_MESSAGES,
    Message,
    PacketError,
    parse,
    time_tag,
    unix_ns,
)

PING = b"/ping\0\0\0,\0\0\0"


def built(address: str, *arguments: Any) -> bytes:
    builder = OscMessageBuilder(address)
    for argument in arguments:
        builder.add_arg(argument)
    packet: bytes = builder.build().dgram
    return packet


def bundled(*packets: bytes, tag: int = IMMEDIATELY) -> bytes:
    return b"#bundle\0" + struct.pack(">Q", tag) + b"".join(struct.pack(">i", len(p)) + p for p in packets)


# What is read


def test_every_type_is_read_as_it_was_sent() -> None:
    packet = (
        b"/all\0\0\0\0,ihfdtsSbcrmTFNI[i[s]]\0\0"
        + struct.pack(">iqfdQ", -1, 2**40, 0.5, 1e300, 2**63)
        + b"text\0\0\0\0Sym\0"
        + struct.pack(">i", 5)
        + b"bytes\0\0\0"
        + b"\0\0\0c\x01\x02\x03\x04\x90\x3c\x40\x00"
        + struct.pack(">i", 7)
        + b"in\0\0"
    )
    (one,) = parse(packet)
    assert one.address == "/all"
    assert one.arguments == (
        -1, 2**40, 0.5, 1e300, 2**63, "text", "Sym", b"bytes", "c", 0x01020304, b"\x90\x3c\x40\x00",
        True, False, None, True, (7, ("in",)),
    )  # fmt: skip
    assert one.tags == "ihfdtsSbcrmTFNI[i[s]]"


def test_what_has_no_types_has_no_arguments() -> None:
    assert parse(b"/old\0\0\0\0") == (Message("/old"),)
    assert parse(PING) == (Message("/ping"),)


def test_a_bundle_gives_its_messages_in_order_and_its_time() -> None:
    late, early = 5 << 32, 2 << 32
    packet = bundled(PING, bundled(built("/in", 1), tag=early), bundled(built("/later", 2), tag=9 << 32), tag=late)
    assert [(one.address, one.time) for one in parse(packet)] == [("/ping", late), ("/in", late), ("/later", 9 << 32)]
    assert parse(bundled()) == ()


ARGUMENTS = st.lists(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.floats(width=32),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
        st.binary(min_size=1, max_size=20),
        st.booleans(),
        st.none(),
        st.lists(st.integers(-5, 5), min_size=1, max_size=3),
    ),
    max_size=12,
)
ADDRESSES = st.text(st.sampled_from("abcXYZ019_-.!~/"), max_size=30).map(lambda text: "/" + text)


@given(ADDRESSES, ARGUMENTS)
def test_what_python_osc_builds_is_read_as_it_was_meant(address: str, arguments: list[Any]) -> None:
    (one,) = parse(built(address, *arguments))
    expected = [tuple(value) if isinstance(value, list) else value for value in arguments]
    assert one.address == address
    assert len(one.arguments) == len(expected)
    for found, meant in zip(one.arguments, expected, strict=True):
        both_nan = isinstance(found, float) and isinstance(meant, float) and math.isnan(found) and math.isnan(meant)
        assert both_nan or (found == meant and type(found) is type(meant))


# Whatever the bytes are


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_one_sentence(packet: bytes) -> None:
    look(packet)


@given(
    st.binary(max_size=40), st.sampled_from([b"#bundle\0", b"/a\0\0,", b"#bundle\0\0\0\0\0\0\0\0\1", b"/a\0\0,i\0\0"])
)
def test_any_bytes_after_a_good_beginning_too(rest: bytes, beginning: bytes) -> None:
    look(beginning + rest)
    look((beginning + rest)[: (len(beginning) + len(rest)) // 4 * 4])


WHOLE = bundled(
    built("/stem/gain", -3.5, "bass", 7, True),
    bundled(built("/blob", b"twelve bytes", [1, 2]), PING),
    built("/sideman/tempo", 97.25),
)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.integers(0, len(WHOLE)), st.integers(0, 3))
def test_a_whole_packet_with_bytes_changed_cut_or_doubled(at: int, byte: int, end: int, more: int) -> None:
    changed = WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :]
    look(changed)
    look(changed[:end])
    look(changed[: end // 4 * 4])
    look(changed + changed[4 * more :])


def outcome(packet: bytes) -> tuple[str, tuple[Message, ...]]:
    try:
        return "", parse(packet)
    except PacketError as error:
        return str(error), ()


def look(packet: bytes) -> None:
    sentence, messages = outcome(packet)
    if sentence:
        assert 10 < len(sentence) < 200
        assert sentence.isprintable()
        return
    assert len(messages) <= MOST_MESSAGES
    for one in messages:
        assert one.address.isascii()
        assert one.address.isprintable()
        assert len(one.arguments) <= len(one.tags)
    if messages:
        other = OscPacket(packet)  # what we let through does not hold python-osc up either, and says the same
        assert sorted(m.message.address for m in other.messages) == sorted(one.address for one in messages)


# What is refused, and how


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (b"", "the packet is empty"),
        (b"/ping\0\0", "7 bytes long; OSC packets are multiples of 4"),
        (b"/" + b"a" * MOST_BYTES + b"\0\0\0", f"longer than {MOST_BYTES} bytes"),
        (b"ping\0\0\0\0", "byte 0 is neither an address"),
        (b"\xff\xff\xff\xff", "byte 0 is neither an address"),
        (b"/pin", "the address that begins at byte 0 has no end"),
        (b"/a\0x", "not padded with zeros"),
        (b"/a\xe9\0", "no printable ASCII"),
        (b"/a b\0\0\0\0", "no printable ASCII, or a space"),
        (b"/a*\0", "is a pattern"),
        (b"/{a,b}\0\0", "is a pattern"),
        (b"/" + b"a" * 300 + b"\0\0\0", "301 characters; 255 are allowed"),
        (b"/a\0\0abc\0", "begin with a comma; byte 4"),
        (b"/a\0\0,iii", "the types that begins at byte 4 has no end"),
        (b"/a\0\0,i\0\0", "type i reaches beyond the end"),
        (b"/a\0\0,d\0\0\0\0\0\0", "type d reaches beyond the end"),
        (b"/a\0\0,i\0\0\0\0\0\1\0\0\0\2", "4 bytes are left over"),
        (b"/a\0\0,x\0\0", "type 'x'; known are"),
        (b"/a\0\0,]\0\0", "type ']'"),
        (b"/a\0\0,[\0\0", "not closed"),
        (b"/a\0\0,[[[[[]]]]]\0", "arrays are nested more than 4 deep"),
        (b"/a\0\0,s\0\0abcd", "a string that begins at byte 8 has no end"),
        (b"/a\0\0,s\0\0", "a string that begins at byte 8 has no end"),
        (b"/a\0\0,s\0\0\xff\xff\0\0", "neither ASCII nor UTF-8"),
        (b"/a\0\0,b\0\0", "a blob has no length"),
        (b"/a\0\0,b\0\0\0\0\0\5aaaa", "a blob says that it is 5 bytes long; 4 are left"),
        (b"/a\0\0,b\0\0\xff\xff\xff\xff", "a blob says that it is -1 bytes long"),
        (b"/a\0\0,b\0\0\x7f\xff\xff\xff", "a blob says that it is 2147483647 bytes long"),
        (b"/a\0\0,b\0\0\0\0\0\1aaaa", "not padded with zeros"),
        (b"/a\0\0,c\0\0\0\0\1\0", "no ASCII"),
        (b"/a\0\0,m\0\0", "type c or m reaches beyond"),
        (b"#bundle\0\0\0\0\0", "the bundle at byte 0 has no time"),
        (b"#bundle\0" + bytes(8) + b"\xff\xff\xff\xfc", "says that it is -4 bytes long"),
        (b"#bundle\0" + bytes(8) + bytes(4), "says that it is 0 bytes long"),
        (b"#bundle\0" + bytes(8) + struct.pack(">i", 6) + PING, "says that it is 6 bytes long"),
        (b"#bundle\0" + bytes(8) + struct.pack(">i", 64) + PING, "12 are left"),
        (bundled(bundled(bundled(bundled(bundled())))), "bundles are nested more than 4 deep"),
        (bundled(*[PING] * (MOST_MESSAGES + 1)), f"more than {MOST_MESSAGES} messages"),
    ],
)
def test_what_is_wrong_is_said(packet: bytes, words: str) -> None:
    with pytest.raises(PacketError) as caught:
        parse(packet)
    assert words in str(caught.value)


def test_four_deep_and_the_most_of_everything_are_taken() -> None:
    assert len(parse(bundled(bundled(bundled(bundled(PING)))))) == 1
    assert len(parse(bundled(*[PING] * MOST_MESSAGES))) == MOST_MESSAGES
    tags = b"," + b"T" * MOST_ARGUMENTS
    packet = b"/a\0\0" + tags + bytes(4 - len(tags) % 4)
    assert parse(packet)[0].arguments == (True,) * MOST_ARGUMENTS
    with pytest.raises(PacketError, match=f"{MOST_ARGUMENTS + 1} arguments"):
        parse(packet.replace(b",T", b",TT", 1)[: len(packet)])


def test_one_bad_element_spoils_the_whole_bundle() -> None:
    with pytest.raises(PacketError):
        parse(bundled(PING, b"/bad\0\0\0\0,i\0\0"))


# Time


@given(st.integers(-61_505_152 * 10**9, 4_233_462_144 * 10**9 - 1))
def test_a_time_tag_is_undone_to_the_nanosecond(time_ns: int) -> None:
    assert unix_ns(time_tag(time_ns)) == time_ns


def test_time_tags_are_those_of_ntp() -> None:
    assert time_tag(0) == 2_208_988_800 << 32
    assert unix_ns((2_208_988_800 << 32) | 0x80000000) == 500_000_000
    assert unix_ns(0) == (2**32 - 2_208_988_800) * 10**9  # 2036, when the seconds begin anew
