"""Audio over OSC: packets, waiting and concealing, sending until it is there, a whole session on a bad network."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audiopackets import (
    ACK,
    ADDRESSES,
    BYE,
    ERROR,
    HEAD_BYTES,
    HELLO,
    IN,
    MOST_BYTES,
    OUT,
    REFUSED,
    REPORT,
    REPORT_FIELDS,
    START,
    STREAM,
    WELCOME,
    AudioPacket,
    pack,
    pack_audio,
    pack_floats,
    unpack,
    whole,
)
from bridge.guard import GuardError
from bridge.jitter import (
    FIRST_WAIT_NS,
    KEPT,
    LATE,
    MARGIN_NS,
    MOST_WAIT_NS,
    STRAY,
    TWICE,
    Continuation,
    JitterBuffer,
    Wait,
)
from bridge.oscaudio import FIELDS, OscAudioLoop
from bridge.oscpeer import Address, Hello, OscAudioConfig
from bridge.packets import Message, PacketError
from bridge.resend import RoundTrip, Sender
from realtime.io import BlockClock
from realtime.protocols import Block, StreamSpec
from realtime.stream import FAILED, LOST_EMPTY, LOST_LATE, RUNNING, SECOND_NS, STARTING, Departures
from tools.oscnet import MS, PEER, Network, Rig, codec_microseconds, live_input, stems_whole, tell

RATE, N = 48_000, 128
BLOCK_NS = N * SECOND_NS // RATE
PERFECT = {"loss": 0.0, "reorder": 0.0, "duplicate": 0.0, "replay": 0.0, "damage": 0.0, "jitter_ns": 0}


def noise(frames: int, channels: int = 1, seed: int = 0) -> Block:
    return np.random.default_rng(seed).normal(size=(frames, channels)).astype(np.float32)


# ---- packets ---------------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**31 - 1)
AUDIO = st.tuples(
    st.sampled_from([IN, OUT]), st.integers(0, 2**24 - 1), NUMBERS, st.integers(-1, 2**53 - 1),
    st.integers(1, 300), st.integers(1, 8), st.integers(0, 99),
)  # fmt: skip


def bits(block: Block) -> bytes:
    return np.ascontiguousarray(block).tobytes()


@given(AUDIO, st.booleans())
def test_a_block_comes_out_as_it_went_in_to_the_bit(
    what: tuple[str, int, int, int, int, int, int], floats: bool
) -> None:
    address, stream, sequence, frame, frames, channels, seed = what
    block = np.frombuffer(np.random.default_rng(seed).bytes(4 * frames * channels), np.float32)  # NaNs among them
    block = block.reshape(frames, channels)
    packs = pack_floats if floats else pack_audio
    packet = packs(address, stream, sequence, frame, block)
    found = unpack(packet)
    assert isinstance(found, AudioPacket)
    assert len(packet) % 4 == 0
    told = frame if frame < 2**31 or not floats else -1
    assert (found.address, found.stream, found.sequence, found.frame) == (address, stream, sequence, told)
    assert found.block.shape == block.shape
    if not floats:  # turning the order of bytes round may quieten a signalling NaN
        assert bits(found.block) == bits(block)
    else:
        assert np.array_equal(found.block, block, equal_nan=True)


def test_the_layout_is_the_documented_one() -> None:
    block = np.array([[1.0, -2.0]], np.float32)
    packet = pack_audio(IN, 7, 8, 1 << 40, block)
    assert packet == (
        b"/sideman/audio/in\0\0\0" + b",iihib\0\0" + struct.pack(">iiqi", 7, 8, 1 << 40, 2) + struct.pack(">i", 8)
        + struct.pack("<2f", 1.0, -2.0)
    )  # fmt: skip
    assert len(packet) - 8 == HEAD_BYTES
    assert pack_floats(OUT, 7, 8, 9, block).startswith(
        b"/sideman/audio/out\0\0,iiiiff\0" + struct.pack(">4i", 7, 8, 9, 2)
    )


@pytest.mark.parametrize("tags", ["iiii", "ffff", "ifhd"])
def test_other_programs_write_numbers_as_they_can(tags: str) -> None:
    kinds = {"i": "i", "f": "f", "h": "q", "d": "d"}
    head = struct.pack(">" + "".join(kinds[tag] for tag in tags), 3, 4, 5, 2)
    blob = struct.pack(">i", 16) + struct.pack("<4f", 1, 2, 3, 4)
    for end, data in (("b", blob), ("ffff", struct.pack(">4f", 1, 2, 3, 4))):
        types = f",{tags}{end}".encode()
        packet = b"/sideman/audio/in\0\0\0" + types + bytes(4 - len(types) % 4) + head + data
        found = unpack(packet)
        assert isinstance(found, AudioPacket)
        assert (found.stream, found.sequence, found.frame) == (3, 4, 5)
        assert found.block.tolist() == [[1, 2], [3, 4]]


@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.text("abc /", max_size=9), st.binary(max_size=9)),
                max_size=20))  # fmt: skip
def test_a_message_comes_out_as_it_went_in(arguments: list[int | str | bytes]) -> None:
    found = unpack(pack(ACK, *arguments))
    assert isinstance(found, Message)
    assert (found.address, list(found.arguments)) == (ACK, arguments)


@settings(max_examples=400)
@given(st.data())
def test_whatever_bytes_come_there_is_a_packet_or_a_sentence(data: st.DataObject) -> None:
    block = noise(4, 2)
    good = data.draw(st.sampled_from([pack_audio(IN, 1, 2, 3, block), pack_floats(IN, 1, 2, 3, block), b"",
                                      pack(HELLO, 1, 48_000, 128, 1, "mix", 0)]))  # fmt: skip
    spoiled = bytearray(good)
    for _ in range(data.draw(st.integers(0, 6))):
        if spoiled:
            spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    spoiled = spoiled[: data.draw(st.integers(0, len(spoiled)))] + data.draw(st.binary(max_size=12))
    try:
        found = unpack(bytes(spoiled))
    except PacketError as error:
        sentence = str(error)
    else:
        sentence = "it was understood"
        assert isinstance(found, (AudioPacket, Message))
        if isinstance(found, AudioPacket):
            assert 1 <= found.block.shape[1] <= 64
            assert min(found.stream, found.sequence, found.frame + 1) >= 0
    assert sentence.isprintable()
    assert len(sentence) < 300


GOOD = pack_audio(IN, 1, 2, 3, noise(2, 1))


@pytest.mark.parametrize(
    ("packet", "sentence"),
    [
        (GOOD[:-4], "8 bytes of sound are announced, and the packet has 4 for it"),
        (pack_audio(IN, 1, 2, -2, noise(2)), "they count from 0"),
        (pack_audio(IN, 1 << 24, 2, 3, noise(2)), "they count from 0"),
        (GOOD[:44] + struct.pack(">i", 65) + GOOD[48:], "65 channels"),
        (GOOD[:44] + struct.pack(">i", 3) + GOOD[48:], "whole frames of 3 channels"),
        (pack_audio(IN, 1, 2, 3, noise(0)), "1 to 8192 whole frames"),
        (pack(IN, 1, 2, 3, 1), "then a blob or each sample as a float"),
        (pack(IN, 1, 2, "three", 1, b""), "then a blob or each sample as a float"),
        (pack(IN, 1, 2.5, 3, 1, bytes(8)), "2.5 where a whole number is needed"),
        (pack(IN, 1, math.nan, 3, 1, bytes(8)), "nan where a whole number is needed"),
        (pack(IN, 1, 2, 3, 1, bytes(6)), "6 bytes of sound are announced"),
        (b"/sideman/audio/in\0\0\0,iiiib\0\0", "ends within its arguments"),
        (b"/sideman/audio/in\0\0\0", "then a blob"),
        (GOOD[:20] + b",iiii" + b"f" * 7 + b"\0" * 4 + bytes(MOST_BYTES), "a multiple of 4, up to"),
        (b"", "empty"),
    ],
)
def test_a_bad_packet_is_told_in_a_sentence(packet: bytes, sentence: str) -> None:
    with pytest.raises(PacketError, match=sentence):
        unpack(packet)


def test_bundles_are_refused() -> None:
    one = pack(BYE, 1)
    bundle = b"#bundle\0" + struct.pack(">Q", 1) + 2 * (struct.pack(">i", len(one)) + one)
    with pytest.raises(PacketError, match="each is a packet of its own"):
        unpack(bundle)


@pytest.mark.parametrize("value", [True, None, "1", b"1", math.inf, 0.5, (1,)])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(PacketError):
        whole(value, "x")  # type: ignore[arg-type]


def test_the_table_names_every_address_once() -> None:
    addresses = [address for address, *_ in ADDRESSES]
    assert sorted(addresses) == sorted({HELLO, WELCOME, STREAM, REFUSED, BYE, START, ACK, REPORT, ERROR, IN, OUT})


# ---- waiting and concealing ------------------------------------------------------------------------------------


class Feed:
    """Blocks of a signal on their way into a buffer, whose clock has seen ``frame`` at time 0."""

    def __init__(self, signal: Block, frame: int = 96_000) -> None:
        self.clock = BlockClock(RATE)
        for block in range(40):
            self.clock.observe(frame - (40 - block) * N, self.at(block - 40))
        self.clock.observe(frame, self.at(0))
        self.buffer = JitterBuffer(RATE, signal.shape[1], N, frame, self.clock)
        self.signal, self.frame = signal, frame
        self.out: list[Block] = []

    @staticmethod
    def at(block: float) -> int:
        return 10 * SECOND_NS + round(block * BLOCK_NS)

    def put(self, block: int, late_ns: int = 0) -> str:
        """Let block number ``block`` come, so late."""
        sound = self.signal[block * N : (block + 1) * N]
        time_ns = self.at(block + 1) + late_ns
        return self.buffer.put(block, self.frame + block * N, sound, time_ns)

    def take(self, time_ns: int) -> None:
        while (block := self.buffer.take(time_ns)) is not None:
            self.out.append(block)

    @property
    def heard(self) -> Block:
        return np.concatenate(self.out)


def test_while_nothing_is_missing_nothing_waits_and_every_bit_is_kept() -> None:
    feed = Feed(noise(50 * N, 2))
    for block in range(50):
        assert feed.put(block) == KEPT
        feed.take(feed.at(block + 1))
        assert len(feed.heard) == (block + 1) * N
    assert bits(feed.heard) == bits(feed.signal)
    assert feed.buffer.lost == feed.buffer.concealed_frames == 0


def test_what_comes_in_another_order_is_put_in_order() -> None:
    feed = Feed(noise(8 * N))
    for block in (1, 0, 3, 2, 7, 6, 5, 4):
        assert feed.put(block) == KEPT
        feed.take(feed.at(block + 1))
    assert bits(feed.heard) == bits(feed.signal)


def test_what_comes_twice_late_or_from_elsewhere_is_told_apart() -> None:
    feed = Feed(noise(20 * N))
    assert feed.put(0) == KEPT
    assert feed.put(0) == TWICE
    feed.take(feed.at(1))
    assert feed.put(0) == TWICE
    feed.take(feed.at(2) + FIRST_WAIT_NS + MS)
    assert feed.put(1, late_ns=FIRST_WAIT_NS + 2 * MS) == LATE
    assert feed.buffer.put(900, feed.frame + 2 * RATE, feed.signal[:N], feed.at(3)) == STRAY
    assert feed.buffer.put(901, 0, feed.signal[:N], feed.at(3)) == STRAY
    assert (feed.buffer.twice, feed.buffer.late, feed.buffer.strays, feed.buffer.lost) == (2, 1, 2, 1)


def test_a_missing_block_is_waited_for_exactly_as_long_as_was_measured() -> None:
    feed = Feed(noise(20 * N))
    feed.put(0)
    feed.take(feed.at(1))
    for block in range(2, 20):
        feed.put(block)
    due = feed.at(2) + feed.buffer.wait.wait_ns
    feed.take(due - 2)
    assert len(feed.heard) == N
    feed.take(due + 2)
    assert len(feed.heard) == 20 * N
    assert bits(feed.heard[2 * N :]) == bits(feed.signal[2 * N :])  # what came is not touched
    assert (feed.buffer.lost, feed.buffer.concealed_frames, feed.buffer.joined_frames) == (1, N, 0)


def test_the_wait_follows_the_jitter_and_is_bounded() -> None:
    wait, chance = Wait(), random.Random(5)
    for _ in range(600):
        wait.observe(chance.randrange(3 * MS))
    assert 2.9 * MS + MARGIN_NS < wait.wait_ns < 3 * MS + MARGIN_NS
    for _ in range(600):
        wait.observe(chance.randrange(30 * MS))
    assert 29 * MS < wait.wait_ns < 30 * MS + MARGIN_NS
    for _ in range(600):
        wait.observe(chance.randrange(3 * MS))
    assert wait.wait_ns < 3 * MS + MARGIN_NS
    for _ in range(600):
        wait.observe(SECOND_NS)
    assert wait.wait_ns == MOST_WAIT_NS


def test_one_straggler_is_not_what_is_waited_for_ever_after() -> None:
    wait = Wait()
    for late in range(512):
        wait.observe(150 * MS if late == 300 else 1 * MS)
    assert wait.wait_ns == pytest.approx(2 * MS, abs=MS)


def bend(sound: npt.NDArray[np.floating]) -> float:
    """Return the largest second difference: a click is where it is far larger than in the sound itself."""
    return float(np.abs(np.diff(sound.astype(np.float64), 2, axis=0)).max())


def tones(frames: int, *hz: float) -> Block:
    at = np.arange(frames)
    sound = sum(0.6 / len(hz) * np.sin(2 * np.pi * each * at / RATE) for each in hz)
    return np.asarray(sound, np.float32)[:, None]


SOUNDS: dict[str, Callable[[], Block]] = {
    "a tone": lambda: tones(200 * N, 440.0),
    "a chord": lambda: tones(200 * N, 196.0, 246.9, 1174.7),
    "high": lambda: tones(200 * N, 5000.0, 7321.0),
    "noise": lambda: 0.1 * noise(200 * N),
}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("missing", [[60], [60, 61], [60, 62, 64], list(range(60, 66)), list(range(60, 100))])
@pytest.mark.parametrize("burst", [False, True])
def test_what_stands_in_for_lost_sound_does_not_click(name: str, missing: list[int], burst: bool) -> None:
    """With a burst nothing that follows is there yet when the wait is over: it has to join by itself."""
    feed = Feed(SOUNDS[name]())
    for block in range(160):
        if block not in missing:
            feed.put(block)
        if burst and block in missing:
            feed.take(feed.at(block + 1) + feed.buffer.wait.wait_ns + MS // 4)
        elif not missing[0] <= block <= missing[-1]:
            feed.take(feed.at(block + 1))
    heard, lost = feed.heard[: 160 * N], len(missing)
    assert feed.buffer.concealed_frames >= lost * N
    assert bend(heard) < 1.25 * bend(feed.signal)
    assert np.abs(heard).max() < 1.6 * np.abs(feed.signal).max()
    assert bits(heard[: 60 * N]) == bits(feed.signal[: 60 * N])
    if not burst:
        last = (missing[-1] + 1) * N
        assert bits(heard[last + N :]) == bits(feed.signal[last + N : 160 * N])


def test_a_tone_goes_on_as_if_nothing_had_been_lost() -> None:
    feed = Feed(tones(100 * N, 220.0, 277.2))
    for block in range(100):
        if block != 50:
            feed.put(block)
    feed.take(feed.at(100))
    assert np.abs(feed.heard - feed.signal).max() < 0.01
    assert bits(np.delete(feed.heard, np.s_[50 * N : 51 * N], axis=0)) == bits(
        np.delete(feed.signal, np.s_[50 * N : 51 * N], axis=0)
    )


def test_long_losses_fade_to_silence_and_cost_no_more() -> None:
    feed = Feed(tones(100 * N, 440.0))
    for block in range(50):
        feed.put(block)
    feed.take(feed.at(300))
    gone = feed.heard[50 * N :]
    assert len(gone) == 250 * N - FIRST_WAIT_NS * RATE // SECOND_NS // N * N or len(gone) > 200 * N
    assert np.abs(gone[: N // 2]).max() > 0.5
    assert not gone[2400:].any()


@pytest.mark.parametrize("poison", [math.nan, math.inf, 3e38])
def test_sound_that_is_no_sound_is_survived(poison: float) -> None:
    heard = noise(1024)
    heard[1000:1010] = poison
    made = Continuation(heard, RATE)
    with np.errstate(over="ignore", invalid="ignore"):
        over = made.go_over(N, heard[-N:])
        on = made.go_on(N)
    assert over.shape == on.shape == (N, 1)
    if not math.isfinite(poison):
        assert np.isfinite(over).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60 * MS), st.booleans()), max_size=80),
    st.integers(1, 2 * N),
)
def test_whatever_comes_sound_is_placed_and_none_is_handed_on_twice(
    arrivals: list[tuple[int, int, bool]], odd: int
) -> None:
    feed = Feed(noise(41 * N))
    came = sorted((feed.at(block + 1) + late, block, cut) for block, late, cut in arrivals)
    for time_ns, block, cut in came:
        sound = feed.signal[block * N : (block + 1) * N]
        sound = sound[: max(1, odd % N)] if cut else sound
        feed.buffer.put(block, feed.frame + block * N, sound, time_ns)
        feed.take(time_ns)
    feed.take(feed.at(41) + SECOND_NS)
    heard = feed.heard
    assert len(heard) == feed.buffer.next - feed.frame >= 41 * N
    made_up = np.count_nonzero((heard[: 41 * N] != feed.signal).any(axis=1))
    assert made_up <= feed.buffer.concealed_frames + feed.buffer.joined_frames


def test_who_floods_the_buffer_does_not_fill_memory() -> None:
    feed = Feed(noise(N))
    for at in range(5000):
        feed.buffer.put(at, feed.frame + 1000 + 7 * at, feed.signal[:3], feed.at(0))
    assert len(feed.buffer._waiting) <= 1024


# ---- sending until it is there ---------------------------------------------------------------------------------


def test_everything_is_sent_once_to_who_does_not_acknowledge() -> None:
    sender = Sender(5, RoundTrip())
    assert sender.due(9, 5, 0, 99) == [5, 6, 7, 8]
    for now in range(0, 3 * SECOND_NS, 10 * MS):
        assert sender.due(9, 5, now, 99) == []
    assert (sender.sent, sender.resent) == (4, 0)


def test_what_is_asked_for_is_sent_again_and_what_is_on_its_way_is_not() -> None:
    trip = RoundTrip()
    sender = Sender(0, trip)
    sender.acknowledges = True
    assert sender.due(4, 0, 0, 99) == [0, 1, 2, 3]
    assert sender.acknowledge(3, [1], 4 * MS) == [0, 2]
    assert trip.mean_ns == 4 * MS
    assert sender.due(4, 0, 4 * MS, 99) == [1]
    assert sender.acknowledge(4, [1], 5 * MS) == [3]
    assert sender.due(4, 0, 5 * MS, 99) == []  # a millisecond later it may still be under way
    assert sender.acknowledge(4, [1], 8 * MS) == []
    assert sender.due(4, 0, 8 * MS, 99) == [1]
    assert sender.acknowledge(4, [], 12 * MS) == [1]
    assert sender.whole == 4


def test_what_nobody_speaks_of_is_sent_again_ever_less_often() -> None:
    sender = Sender(0, RoundTrip())
    sender.acknowledges = True
    sent = [now for now in range(0, 2 * SECOND_NS, MS) if sender.due(1, 0, now, 99)]
    gaps = np.diff(sent)
    assert len(sent) == 6
    assert (gaps[1:] >= gaps[:-1]).all()
    assert gaps[0] == pytest.approx(50 * MS, abs=2 * MS)
    assert gaps[-1] < SECOND_NS


def test_what_is_over_is_not_sent_and_not_sent_again() -> None:
    sender = Sender(0, RoundTrip())
    sender.acknowledges = True
    assert sender.due(4, 0, 0, 99) == [0, 1, 2, 3]
    sender.acknowledge(4, [0, 1, 2, 3], 100 * MS)
    assert sender.due(4, 2, 100 * MS, 99) == [2, 3]
    sender.drop(4)
    assert sender.given_up == 4
    assert sender.due(20, 10, 200 * MS, 99) == list(range(10, 20))
    assert [sender.was_late(sequence) for sequence in (4, 9, 10)] == [True, True, False]


def test_no_more_go_out_at_once_than_may_and_what_is_asked_for_comes_first() -> None:
    sender = Sender(0, RoundTrip())
    sender.acknowledges = True
    sender.due(6, 0, 0, 6)
    sender.acknowledge(6, [0, 1, 2], 100 * MS)
    assert sender.due(100, 0, 100 * MS, 4) == [0, 1, 2, 6]
    assert sender.due(100, 0, 100 * MS, 4) == [7, 8, 9, 10]


@pytest.mark.parametrize(("end", "missing"), [(5, []), (3, [3]), (3, [7])])
def test_an_acknowledgement_of_what_was_not_sent_is_refused(end: int, missing: list[int]) -> None:
    sender = Sender(0, RoundTrip())
    sender.due(4, 0, 0, 99)
    with pytest.raises(PacketError):
        sender.acknowledge(end, missing, MS)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.6))
def test_whatever_is_lost_all_of_it_comes(seed: int, loss: float) -> None:
    chance, sender = random.Random(seed), Sender(3, RoundTrip())
    sender.acknowledges = True
    there: set[int] = set()
    for turn in itertools.count():
        assert turn < 20_000
        now = turn * MS
        there.update(sequence for sequence in sender.due(60, 3, now, 8) if chance.random() >= loss)
        if turn % 5 == 0 and chance.random() >= loss and there:
            end = max(there) + 1
            sender.acknowledge(end, [sequence for sequence in range(3, end) if sequence not in there], now)
        if sender.whole == 60:
            break
    assert there == set(range(3, 60))
    assert sender.given_up == 0


# ---- a session -------------------------------------------------------------------------------------------------


def test_stems_come_whole_and_to_the_bit_over_a_bad_network() -> None:
    with Rig() as rig:
        rig.play(6)
        assert rig.network.lost > 0.04 * rig.network.sent
        assert rig.played > 3 * 5 * RATE
        assert (rig.missing, rig.wrong) == (0, 0)
        counts = rig.counts()
        assert counts["given_up"] == 0
        assert counts["resent"] > 0.04 * counts["sent"]
        assert rig.status()["xruns"] == rig.status()["starved"] == 0


def test_live_input_waits_two_blocks_beyond_the_jitter_at_most_and_does_not_click() -> None:
    figures = live_input(6)
    assert figures["added_blocks_worst"] <= 2
    assert 3 < figures["lost_percent"] < 8
    assert figures["concealed_frames"] > 1000
    assert figures["roughness"] < 1.2


def test_the_figures_can_be_had_by_a_bench() -> None:
    figures = stems_whole(2)
    assert (figures["missing_frames"], figures["wrong_frames"], figures["given_up"]) == (0, 0, 0)
    assert set(codec_microseconds(times=10)) == {"pack_us", "unpack_us"}


@pytest.mark.parametrize("form", ["blob", "floats"])
@pytest.mark.parametrize("blocksize", [64, 300])
def test_what_is_heard_is_what_was_played_to_the_bit(form: str, blocksize: int) -> None:
    def signal(frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return tell(frames, 9, 1)[:, 0]

    spec = StreamSpec(RATE, inputs=2, outputs=2, blocksize=128, lead=1024, latency=300)
    with Rig(Network(**PERFECT), spec=spec, signal=signal, form=form, blocksize=blocksize) as rig:  # type: ignore[arg-type]
        band = rig.play(3)
        assert (rig.missing, rig.wrong) == (0, 0)
        assert rig.client.start is not None
        heard, (here, there) = np.concatenate(band.input), rig.client.start
        at = np.arange(RATE, 2 * RATE)
        expected = tell(at - there + here + spec.latency, 9, 1)
        assert heard.shape[1] == 2
        assert np.array_equal(heard[at], np.repeat(expected, 2, axis=1))


def test_sound_is_there_the_lead_and_the_delay_ahead() -> None:
    for delay in (0, 24_000, 96_000):
        with Rig(Network(**PERFECT), delay=delay) as rig:  # type: ignore[arg-type]
            rig.play(4 + delay / RATE)
            assert rig.status()["xruns"] == 0
            departures = Departures(rig.arena)
            margin = departures.of(round((3 + delay / RATE) * RATE))
            assert margin is not None
            assert rig.spec.lead + delay - 800 < margin < rig.spec.lead + delay + 3 * N
            assert rig.status()["extra_lead"] == delay


def test_a_delay_is_reached_without_mixing_in_a_hurry() -> None:
    """The engine mixes at its pace; it is the loudspeaker that waits."""
    with Rig(delay=48_000) as rig:
        mixed: list[tuple[int, int]] = []
        look, stream = rig.loop.turn, rig.arena.status("stream.status")

        def turn(time_ns: int) -> None:
            mixed.append((time_ns, stream.read()["mixed"]))
            look(time_ns)

        rig.loop.turn = turn  # type: ignore[method-assign]
        rig.play(4)
    since = [(time_ns, frames) for time_ns, frames in mixed if frames > 2048]
    for (before_ns, before), (after_ns, after) in zip(since, since[20:], strict=False):
        passed = (after_ns - before_ns) * RATE / SECOND_NS
        assert after - before <= passed + 5 * N


def test_what_became_of_every_frame_is_written_down() -> None:
    network = Network(**PERFECT)  # type: ignore[arg-type]
    with Rig(network, delay=0) as rig:
        begun = rig.now_ns
        dropped = (begun + 2 * SECOND_NS, begun + 2 * SECOND_NS + 60 * MS)
        send = network.send

        def lossy(packet: bytes, to: Address, now_ns: int) -> None:
            if to != PEER or not dropped[0] <= now_ns < dropped[1]:
                send(packet, to, now_ns)

        network.send = lossy  # type: ignore[method-assign]
        rig.play(4)
        departures, status = Departures(rig.arena), rig.status()
        became = [departures.of(frame) for frame in range(RATE, 3 * RATE, 16)]
        lost = [frame for frame in became if frame == LOST_EMPTY]
        assert all(margin is not None for margin in became)
        assert 60 <= len(lost) <= 220  # 60 ms, and what could not be sent again in time
        assert status["xruns"] == 1
        assert status["lost_frames"] == pytest.approx(16 * len(lost), abs=2 * N)
        assert status["lost_end"] - status["lost_start"] == status["lost_frames"]
        assert rig.missing > 0
        assert rig.wrong == 0


def test_an_engine_that_is_late_is_told_from_a_network_that_loses() -> None:
    with Rig(Network(**PERFECT), delay=0) as rig:  # type: ignore[arg-type]
        tick, begun = rig.tick, rig.now_ns
        held: list[int] = []
        sleep = rig._sleep

        def doze(seconds: float) -> None:
            sleep(seconds)
            if not held and rig.now_ns > begun + 2 * SECOND_NS:
                held.append(rig.now_ns)
                for _ in range(100):
                    tick()

        rig._sleep = doze  # type: ignore[method-assign]
        rig.play(4)
        status = rig.status()
        assert (status["starved"], status["xruns"]) == (1, 0)
        assert status["starved_frames"] > 60 * RATE // 1000
        became = [Departures(rig.arena).of(frame) for frame in range(RATE, 3 * RATE, 16)]
        assert LOST_LATE in became
        assert rig.wrong == 0


def test_the_peers_clock_is_the_sessions_while_it_streams() -> None:
    """A sound card that runs 300 ppm fast makes 300 ppm more music, and nothing is lost for it."""
    with Rig(drift_ppm=300) as rig:
        rig.play(8)
        assert (rig.missing, rig.wrong) == (0, 0)
        assert rig.status()["starved"] == 0
        assert rig.seconds() < 8.6
        assert rig.counts()["strays"] < 30


def test_a_peer_that_falls_silent_is_waited_for_while_the_bars_go_on() -> None:
    with Rig() as rig:
        rig.silent_from_ns, rig.silent_to_ns = rig.now_ns + 2 * SECOND_NS, rig.now_ns + 4 * SECOND_NS
        states = []
        look = rig.loop.turn

        def turn(time_ns: int) -> None:
            look(time_ns)
            states.append(rig.status()["state"])

        rig.loop.turn = turn  # type: ignore[method-assign]
        rig.play(7)
        assert [state for state, _ in itertools.groupby(states)][:4] == [STARTING, RUNNING, FAILED, STARTING]
        assert rig.seconds() < 8
        assert rig.wrong == 0
        assert rig.played > 3 * 4 * RATE
        assert any("has stopped streaming" in text for text in rig.texts)
        assert rig.status()["epoch"] == 2


def test_a_count_that_jumps_is_followed_after_a_moment() -> None:
    for jump in (400_000 // N * N, -40_000 // N * N):
        with Rig() as rig:
            rig.jump, rig.jump_at = jump, 3 * RATE
            rig.client.frame = 1_000_000 // N * N
            rig.client.skip(0)
            rig.jump_at = rig.client.frame + 2 * RATE
            band = rig.play(6)
            assert rig.wrong == 0
            assert band.mixed >= 6 * RATE
            if jump > 0:
                assert any("has jumped" in text for text in rig.texts)
                assert rig.status()["epoch"] == 2


def test_a_process_that_follows_another_goes_on_counting_and_the_peer_comes_back() -> None:
    with Rig() as rig:
        replaced: list[int] = []
        tick = rig.tick

        def replace() -> None:
            tick()
            if not replaced and rig.seconds() > 2.5:
                replaced.append(rig.counts()["sent"])
                rig.loop = rig.new_loop()

        rig.tick = replace  # type: ignore[method-assign]
        rig.play(8)
        assert replaced[0] > 0
        assert rig.counts()["sent"] > 1.5 * replaced[0]
        assert rig.counts()["peers"] == 2
        assert rig.wrong == 0
        assert rig.status()["epoch"] == 2


def test_a_session_without_a_peer_goes_on() -> None:
    with Rig(Network(loss=1.0)) as rig:
        band = rig.play(3)
        assert band.stopped
        assert rig.status()["state"] == FAILED
        assert rig.texts == ["nobody streams yet; the bars go on, and a peer may come at any time"]


def test_a_peer_that_never_acknowledges_is_sent_everything_once() -> None:
    with Rig(Network(**PERFECT)) as rig:  # type: ignore[arg-type]
        due = rig.client.due
        rig.client.due = lambda time_ns: [packet for packet in due(time_ns) if not packet.startswith(ACK.encode())]  # type: ignore[method-assign]
        rig.play(3)
        assert (rig.missing, rig.wrong) == (0, 0)
        assert rig.counts()["resent"] == 0
        assert rig.status()["xruns"] == 0
        margin = Departures(rig.arena).of(2 * RATE)
        assert margin is not None
        assert margin > 0


# ---- who may, and what ------------------------------------------------------------------------------------------


class Desk:
    """A loop to talk to, without a band."""

    def __init__(self, token: str = "", bind: str = "127.0.0.1") -> None:
        self.rig = Rig(Network(**PERFECT))  # type: ignore[arg-type]
        self.now_ns = self.rig.now_ns
        self.said: list[tuple[Message | AudioPacket, Address]] = []
        config = OscAudioConfig(self.rig.spec, self.rig.stems, bind=bind, token=token)
        self.loop = OscAudioLoop(config, self.rig.arena, self._note, self.now_ns)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *error: object) -> None:
        self.rig.__exit__()

    def _note(self, packet: bytes, address: Address) -> None:
        self.said.append((unpack(packet), address))

    def say(self, packet: bytes, sender: Address = PEER) -> list[tuple[str, tuple[object, ...]]]:
        """Return what is answered, by address and arguments."""
        self.said.clear()
        self.now_ns += MS
        self.loop.take(packet, sender, self.now_ns)
        return [(found.address, found.arguments) for found, _ in self.said if isinstance(found, Message)]

    def hello(
        self, *changed: int | float | str, sender: Address = PEER, id: int = 7
    ) -> list[tuple[str, tuple[object, ...]]]:
        given: list[int | float | str] = [id, RATE, N, 1, "stems", 0, "blob", ""]
        given[1 : 1 + len(changed)] = changed
        return self.say(pack(HELLO, *given), sender)

    def counts(self) -> dict[str, int]:
        return {**self.loop._counts}

    def texts(self) -> list[str]:
        found = []
        while (text := self.rig.arena.records("io.text").take()) is not None:
            found.append(text.decode())
        return found


def test_hello_is_answered_with_what_there_is() -> None:
    with Desk() as desk:
        (_, welcome), *streams = desk.hello(RATE, N, 1, "all", 960)
        id, stream, *rest = welcome
        assert isinstance(stream, int)
        assert (id, rest) == (7, [1024, 0, 960, 3])
        assert streams == [
            (STREAM, (stream + 1, 1, "bass")), (STREAM, (stream + 2, 2, "keys")), (STREAM, (stream + 3, 2, "mix")),
        ]  # fmt: skip
        assert desk.hello(RATE, N, 1, "all", 960)[0] == (WELCOME, welcome)  # asked again, answered again
        assert desk.counts()["peers"] == 1
        (text,) = desk.texts()
        assert text.endswith("in blocks of 128 frames, and is sent bass, keys, mix 41 ms before it sounds")


def test_whole_numbers_may_come_as_floats_and_words_may_be_left_out() -> None:
    with Desk() as desk:
        assert desk.say(pack(HELLO, 7.0, 48_000.0, 128.0, 1.0, "mix", 0.0))[0][0] == WELCOME


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ((44_100,), "this session runs at 48000 Hz"),
        ((RATE, 15), "16 to 8192 frames"),
        ((RATE, 8193), "16 to 8192 frames"),
        ((RATE, 8192), "with 2 channels a packet holds 8181 frames at most; did you mean 4096?"),
        ((RATE, N, 2), "this session hears 1 channels"),
        ((RATE, N, 1, "drums"), "mix, stems or all"),
        ((RATE, N, 1, "mix", -1), "0 to 768000 frames; a bar of 4/4 at 120 bpm has 96000"),
        ((RATE, N, 1, "mix", 10**9), "0 to 768000 frames"),
        ((RATE, N, 1, "mix", 0, "mp3"), "blob or floats"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(changed: tuple[int | str, ...], sentence: str) -> None:
    with Desk() as desk:
        ((address, arguments),) = desk.hello(*changed)
        assert address == REFUSED
        assert arguments[0] == 7
        assert sentence in str(arguments[1])
        assert desk.counts()["refused"] == 1
        (text,) = desk.texts()
        assert sentence in text


@pytest.mark.parametrize(
    "arguments",
    [(), (1, 2, 3), (7, RATE, N, 1, 5, 0), (7, RATE, 0.5, 1, "mix", 0), (1 << 40, RATE, N, 1, "mix", 0),
     (7, math.nan, N, 1, "mix", 0), (7, RATE, N, 1, "mix", 0, "blob", 3)],
)  # fmt: skip
def test_a_hello_that_is_none_is_answered_with_an_error(arguments: tuple[int | float | str, ...]) -> None:
    with Desk() as desk:
        ((address, _),) = desk.say(pack(HELLO, *arguments))
        assert address == ERROR
        assert desk.counts()["malformed"] == 1


def test_one_streams_at_a_time_and_one_that_is_gone_makes_room() -> None:
    other = ("127.0.0.1", 6000)
    with Desk() as desk:
        stream = desk.hello()[0][1][1]
        assert isinstance(stream, int)
        desk.say(pack_audio(IN, stream, 0, 0, noise(N)))
        ((address, arguments),) = desk.hello(sender=other)
        assert address == REFUSED
        assert "127.0.0.1:5000 streams already" in str(arguments[1])
        desk.now_ns += 2 * SECOND_NS
        assert desk.hello(sender=other)[0][0] == WELCOME
        assert desk.hello(id=8, sender=other)[0][0] == WELCOME  # it was started anew


def test_other_machines_say_the_token() -> None:
    with pytest.raises(GuardError, match="no token"):
        OscAudioConfig(StreamSpec(RATE), bind="0.0.0.0")
    with pytest.raises(ValueError, match="a UDP port"):
        OscAudioConfig(StreamSpec(RATE), port=70_000)
    stranger = ("192.168.1.9", 5000)
    with Desk(token="open sesame", bind="0.0.0.0") as desk:
        assert desk.hello(sender=stranger)[0][0] == REFUSED
        assert desk.hello(RATE, N, 1, "mix", 0, "blob", "open sesam", sender=stranger)[0][0] == REFUSED
        assert desk.say(b"rubbish!", stranger) == []  # who is not known is not even told of his mistakes
        assert desk.say(pack_audio(IN, 1, 0, 0, noise(N)), stranger) == []
        assert desk.hello(RATE, N, 1, "mix", 0, "blob", "open sesame", sender=stranger)[0][0] == WELCOME


def test_sound_of_strangers_and_of_earlier_connections_is_not_heard() -> None:
    with Desk() as desk:
        old = desk.hello()[0][1][1]
        new = desk.hello(id=8)[0][1][1]
        assert isinstance(old, int)
        assert isinstance(new, int)
        assert old != new
        desk.say(pack_audio(IN, old, 0, 0, noise(N)))
        assert desk.say(pack_audio(IN, new, 0, 0, noise(N)), ("127.0.0.1", 77)) == [(ERROR, ("say hello first",))]
        assert desk.counts()["strays"] == 2
        assert desk.rig.status()["epoch"] == 0
        desk.say(pack_audio(IN, new, 0, 0, noise(N)))
        assert desk.rig.status()["epoch"] == 1


@pytest.mark.parametrize(
    ("packet", "sentence"),
    [
        (pack_audio(IN, 0, 0, 0, noise(N, 2)), "2 channels; hello said 128 of 1"),
        (pack_audio(IN, 0, 0, 0, noise(N + 1)), "129 frames"),
        (pack(ACK, 0), "it takes stream, end"),
        (pack(ACK, 0, 3.5), "whole number"),
        (pack("/sideman/audio/dance"), "is no address of audio over OSC"),
        (pack(WELCOME, 1), "is no address of audio over OSC"),
        (b"/x\0\0,b\0\0\x7f\xff\xff\xff", "blob"),
    ],
)
def test_a_bad_packet_is_one_line_in_the_log_one_to_the_sender_and_counted(packet: bytes, sentence: str) -> None:
    with Desk() as desk:
        stream = desk.hello()[0][1][1]
        assert isinstance(stream, int)
        desk.texts()
        packet = (
            packet[:28] + struct.pack(">i", stream) + packet[32:] if packet[:20].startswith(IN.encode()) else packet
        )
        answers = [desk.say(packet) for _ in range(50)]
        ((address, (said,)),) = answers[0]
        assert address == ERROR
        assert sentence in str(said)
        assert answers[1:] == [[]] * 49
        assert desk.counts()["malformed"] == 50
        (text,) = desk.texts()
        assert sentence in text


def test_a_flood_is_not_read_and_the_peer_is_heard() -> None:
    with Desk() as desk:
        stream = desk.hello()[0][1][1]
        assert isinstance(stream, int)
        for _ in range(5000):
            desk.loop.take(b"/flood\0\0,\0\0\0", ("127.0.0.1", 66), desk.now_ns)
        assert desk.counts()["limited"] > 4900
        desk.say(pack_audio(IN, stream, 0, 0, noise(N)))
        assert desk.rig.status()["epoch"] == 1
        for sequence in range(100_000):
            desk.loop.take(pack_audio(IN, stream, 0, 0, noise(4)), PEER, desk.now_ns + sequence)
        assert desk.counts()["limited"] > 90_000


ARGUMENT = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(width=32), st.text("ab", max_size=3), st.binary(max_size=9)
)
MESSAGE = st.tuples(st.sampled_from([ACK, HELLO, BYE, IN, OUT, START]), st.lists(ARGUMENT, max_size=9))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), MESSAGE), max_size=12))
def test_nothing_that_comes_raises(packets: list[bytes | tuple[str, list[int | float | str | bytes]]]) -> None:
    with DESK as desk:
        stream = desk.hello(id=random.randrange(1 << 20))[0][1][1]
        assert isinstance(stream, int)
        for packet in packets:
            if isinstance(packet, tuple):
                packet = pack(packet[0], *(stream if value == 0 else value for value in packet[1]))
            desk.now_ns += MS
            desk.loop.take(packet, PEER, desk.now_ns)
            desk.loop.turn(desk.now_ns)


class _Shared(Desk):
    """One desk for many examples: laying out its memory takes longer than they do."""

    def __init__(self) -> None:
        self._made = False

    def __enter__(self) -> Desk:
        if not self._made:
            super().__init__()
            self._made = True
        self.now_ns += 2 * SECOND_NS
        return self

    def __exit__(self, *error: object) -> None:
        self.texts()

    def end(self) -> None:
        if self._made:
            self.rig.__exit__()


DESK = _Shared()


@pytest.fixture(scope="module", autouse=True)
def _end_of_the_shared_desk() -> object:
    yield
    DESK.end()


def test_goodbye_makes_room_and_is_answered() -> None:
    with Desk() as desk:
        desk.hello()
        assert desk.say(pack(BYE, 7)) == [(BYE, (7,))]
        assert desk.say(pack(BYE, 7)) == [(ERROR, ("say hello first",))]
        assert desk.hello(sender=("127.0.0.1", 6000))[0][0] == WELCOME
        desk.said.clear()
        desk.loop.close()
        assert [found.address for found, _ in desk.said] == [BYE]


def test_a_report_tells_what_its_fields_say() -> None:
    with Rig() as rig:
        rig.play(4)
        report, counts = rig.client.report, rig.counts()
        assert tuple(report) == REPORT_FIELDS
        assert report["lead"] == 1024
        assert report["delay"] == 12_000
        assert 0 < report["sent"] <= counts["sent"]
        assert report["round_trip_us"] > 3000
        assert report["wait_frames"] > report["jitter_frames"] > 0
        assert set(counts) == set(FIELDS)


def test_a_hello_says_all_that_it_asks_for() -> None:
    hello = Hello.read((7, RATE, N, 1, "stems", 3))
    assert hello == Hello(7, RATE, N, 1, "stems", 3, "blob", "")
    config = OscAudioConfig(StreamSpec(RATE, outputs=2), (("bass", 1),))
    assert hello.streams(config) == [("bass", 1)]
    assert Hello.read((7, RATE, N, 1, "stems", 3)).streams(OscAudioConfig(StreamSpec(RATE))) == [("mix", 2)]
