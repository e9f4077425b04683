"""The reference peer: what it keeps and asks for, its words, its files; and over real sockets, to the bit."""

from __future__ import annotations

import multiprocessing
import random
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import oscclient
from bridge.audiopackets import (
    ACK,
    BYE,
    ERROR,
    HELLO,
    IN,
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
    unpack,
)
from bridge.oscaudio import layout, run_oscaudio
from bridge.oscclient import MOST_MISSING, Client, Inbox, UdpClient, main, play_file, read_wav, write_wav
from bridge.oscpeer import OscAudioConfig
from bridge.packets import Message
from realtime import io
from realtime.buffers import Arena, ring_layout, stems_layout
from realtime.protocols import StreamSpec
from realtime.stream import SECOND_NS, DeviceStream
from tools.oscnet import MS, Band, tell

N = 64


def packet(sequence: int, channels: int = 1, frames: int = N) -> AudioPacket:
    block = np.full((frames, channels), sequence, np.float32)
    return AudioPacket(OUT, 5, sequence, sequence * N, block)


# ---- what it keeps and asks for --------------------------------------------------------------------------------


def test_nothing_is_said_before_the_first_is_known() -> None:
    inbox = Inbox("bass", 1, N)
    inbox.put(packet(12))
    assert inbox.acknowledgement() is None
    inbox.begin(10)
    assert inbox.acknowledgement() == (13, [10, 11])
    for sequence in (10, 11):
        inbox.put(packet(sequence))
    assert inbox.acknowledgement() == (13, [])


def test_what_lacks_is_asked_for_a_bounded_number_at_a_time() -> None:
    inbox = Inbox("bass", 1, N)
    inbox.begin(0)
    inbox.put(packet(500))
    end, missing = inbox.acknowledgement() or (0, [])
    assert missing == list(range(MOST_MISSING))
    assert end == MOST_MISSING  # what lies behind that is not spoken of yet


def test_sound_is_read_by_its_frame_and_what_lacks_is_counted() -> None:
    inbox = Inbox("bass", 1, N)
    inbox.begin(2)
    for sequence in (2, 4):
        inbox.put(packet(sequence))
    sound, lacking = inbox.read(N, 4 * N)
    assert lacking == N  # the packet before the first is nobody's
    assert sound[::N, 0].tolist() == [0, 2, 0, 4]
    sound, lacking = inbox.read(2 * N + 10, 20)
    assert (lacking, set(sound[:, 0])) == (0, {2})


def test_what_is_over_is_forgotten_and_not_asked_for() -> None:
    inbox = Inbox("bass", 1, N)
    inbox.begin(0)
    for sequence in (0, 3, 5):
        inbox.put(packet(sequence))
    inbox.let_go(4 * N)
    assert inbox.acknowledgement() == (6, [4])
    inbox.put(packet(2))
    assert inbox.duplicates == 1
    assert not inbox.read(0, 4 * N)[0].any()


def test_packets_that_do_not_fit_or_are_too_far_ahead_are_left() -> None:
    inbox = Inbox("bass", 1, N, keep=100)
    inbox.begin(0)
    for wrong in (packet(1, channels=2), packet(1, frames=N - 1), packet(100),
                  AudioPacket(OUT, 5, 1, 3, np.zeros((N, 1), np.float32))):  # fmt: skip
        inbox.put(wrong)
    assert (inbox.strays, inbox.end) == (4, 0)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(20)), st.integers(0, 2**32))
def test_in_whatever_order_it_comes_all_of_it_is_there(order: list[int], seed: int) -> None:
    inbox, chance = Inbox("bass", 1, N), random.Random(seed)
    inbox.begin(0)
    for sequence in order:
        for _ in range(chance.randrange(1, 3)):
            inbox.put(packet(sequence))
    sound, lacking = inbox.read(0, 20 * N)
    assert lacking == 0
    assert np.array_equal(sound[:, 0], np.repeat(np.arange(20), N))
    assert inbox.acknowledgement() == (20, [])


# ---- its words -------------------------------------------------------------------------------------------------


def said(packets: list[bytes]) -> list[tuple[str, tuple[object, ...]]]:
    return [(found.address, found.arguments) for found in map(unpack, packets) if isinstance(found, Message)]


def let_in(client: Client, streams: int = 1, time_ns: int = 0) -> None:
    client.take(pack(WELCOME, client.id, 128, 1024, 0, 0, streams), time_ns)
    for stream in range(streams):
        client.take(pack(STREAM, 129 + stream, 1, f"stem {stream}"), time_ns)


def test_hello_is_said_until_every_stream_is_known() -> None:
    client = Client(48_000, 1, N, want="stems", delay=5, id=3)
    assert said(client.due(0)) == [(HELLO, (3, 48_000, N, 1, "stems", 5, "blob", ""))]
    assert client.due(50 * MS) == []
    client.take(pack(WELCOME, 4, 128, 1024, 0, 0, 1), 60 * MS)  # not meant for us
    client.take(pack(WELCOME, 3, 128, 1024, 0, 0, 2), 60 * MS)
    client.take(pack(STREAM, 129, 1, "bass"), 60 * MS)
    client.take(pack(STREAM, 900, 1, "stranger"), 60 * MS)
    assert not client.welcome
    assert len(client.due(120 * MS)) == 1
    assert client.send(np.zeros((N, 1), np.float32)) is None
    client.take(pack(STREAM, 130, 2, "keys"), 130 * MS)
    assert client.welcome
    assert client.due(140 * MS) == []  # there is nothing to acknowledge yet
    packet = client.send(np.zeros((N, 1), np.float32))
    assert packet is not None
    found = unpack(packet)
    assert isinstance(found, AudioPacket)
    assert (found.address, found.stream, found.sequence, found.frame) == (IN, 128, 1, N)


def test_what_came_is_acknowledged_and_what_lacks_is_named() -> None:
    client = Client(48_000, 1, N, id=3)
    let_in(client, 2)
    client.take(pack(START, 128, 7, 7 * N, 1000), 0)
    client.take(pack_audio(OUT, 129, 8, 8 * N, np.zeros((N, 1), np.float32)), 0)
    assert client.start == (7 * N, 1000)
    assert said(client.due(10 * MS)) == [(ACK, (129, 9, 7)), (ACK, (130, 7))]
    assert client.due(12 * MS) == []


def test_who_is_silent_is_greeted_again_and_one_who_began_anew_is_listened_to() -> None:
    client = Client(48_000, 1, N, id=3)
    let_in(client)
    client.take(pack(REPORT, 128, *range(len(REPORT_FIELDS))), SECOND_NS)
    assert client.report["sent"] == REPORT_FIELDS.index("sent")
    assert not any(address == HELLO for address, _ in said(client.due(2 * SECOND_NS)))
    assert said(client.due(3 * SECOND_NS))[0][0] == HELLO
    client.take(pack(WELCOME, 3, 256, 1024, 0, 0, 1), 3 * SECOND_NS)
    assert not client.inboxes
    client.take(pack(STREAM, 257, 1, "bass"), 3 * SECOND_NS)
    assert client.welcome
    client.take(pack(BYE, 3), 3 * SECOND_NS)
    assert not client.welcome


def test_why_it_is_not_let_in_and_what_was_wrong_is_kept() -> None:
    client = Client(48_000, 1, N, id=3)
    client.take(pack(REFUSED, 3, "no"), 0)
    client.take(pack(ERROR, "what?"), 0)
    assert (client.refused, client.errors) == ("no", ["what?"])


@settings(max_examples=200)
@given(st.lists(st.one_of(st.binary(max_size=40), st.tuples(
    st.sampled_from([WELCOME, STREAM, START, REPORT, REFUSED, ERROR, BYE, OUT]),
    st.lists(st.one_of(st.integers(-9, 300), st.floats(width=32), st.text("ab", max_size=3)), max_size=6),
)), max_size=9))  # fmt: skip
def test_nothing_that_comes_raises(packets: list[bytes | tuple[str, list[int | float | str]]]) -> None:
    client = Client(48_000, 1, N, id=3)
    let_in(client)
    for number, packet in enumerate(packets):
        client.take(packet if isinstance(packet, bytes) else pack(packet[0], *packet[1]), number * MS)
        client.due(number * MS)
    client.receive(0, N)


# ---- its files -------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    sound = tell(np.arange(100), 3, 2)
    write_wav(tmp_path / "a.wav", sound, 44_100)
    found, rate = read_wav(tmp_path / "a.wav")
    assert rate == 44_100
    assert np.array_equal(found, sound)


@pytest.mark.parametrize(("bits", "kind"), [(16, 1), (24, 1), (32, 1), (24, 0xFFFE)])
def test_whole_numbers_are_read(tmp_path: Path, bits: int, kind: int) -> None:
    values = [0, 1 << (bits - 2), -(1 << (bits - 1))]
    body = b"".join(value.to_bytes(bits // 8, "little", signed=True) for value in values)
    fmt = struct.pack("<HHIIHH", kind, 1, 48_000, 48_000 * bits // 8, bits // 8, bits)
    fmt += struct.pack("<HHIH", 22, bits, 0, 1) + bytes(14) if kind == 0xFFFE else b""
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(body)) + body
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    sound, _ = read_wav(tmp_path / "a.wav")
    assert sound[:, 0].tolist() == [0, 0.5, -1]


@pytest.mark.parametrize("data", [b"", b"RIFF....WAVE", b"RIFF....WAVEfmt \4\0\0\0abcd", b"fLaC"])
def test_what_is_no_file_of_sound_is_told(tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.wav"):
        read_wav(tmp_path / "a.wav")
    assert main([str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--port", "9"]) == 2
    assert "a.wav" in capsys.readouterr().err


# ---- over real sockets -----------------------------------------------------------------------------------------

SPEC = StreamSpec(48_000, inputs=1, outputs=2, blocksize=128, lead=2048)
STEMS = (("bass", 1), ("keys", 2))
SECONDS = 6


class Session:
    """The process of audio over OSC, as it is in a session, and a band on a thread in the place of an engine."""

    def __init__(self) -> None:
        frames = 20 * SPEC.samplerate
        self.arena = Arena.create(
            {
                **io.layout(SPEC),
                **layout(),
                **ring_layout("mix", frames, SPEC.outputs),
                **stems_layout("stem", frames, dict(STEMS)),
            }
        )
        config = OscAudioConfig(SPEC, STEMS)
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=run_oscaudio, args=(self.arena.handle, config), daemon=True)
        self.process.start()
        self.band = Band(self.arena, STEMS, SPEC.outputs, SECONDS * SPEC.samplerate)
        stream = DeviceStream(SPEC, self.arena, patience_seconds=30)
        self.thread = threading.Thread(target=stream.run, args=(self.band,), daemon=True)
        self.thread.start()

    @property
    def port(self) -> int:
        """The port it chose."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if port := int(self.arena.status("oscaudio.status").read()["port"]):
                return port
            time.sleep(0.01)
        raise AssertionError("the process opened no port")

    def end(self) -> None:
        self.band.stopped = True
        self.arena.status("io.control").publish(stop=1)
        self.process.join(10)
        self.process.kill()
        self.thread.join(10)
        self.arena.close()
        self.arena.unlink()


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.end()


def test_over_real_sockets_sound_goes_both_ways_to_the_bit(session: Session, tmp_path: Path) -> None:
    """Two seconds of delay, so that no other work on this machine decides whether a packet is in time."""
    sound = tell(np.arange(4 * SPEC.samplerate), 9, 1)
    client = Client(SPEC.samplerate, 1, 256, want="all", delay=2 * SPEC.samplerate)
    udp = UdpClient(client, session.port)
    try:
        found, lacking = play_file(udp, sound)
        start, report = client.start, client.report
    finally:
        udp.close()
    assert start is not None
    assert lacking == 0
    assert report["given_up"] == 0
    here, there = start
    first = max(inbox.first for inbox in client.inboxes.values()) * client.blocksize
    assert len(sound) - first > SPEC.samplerate
    for stream, (name, channels) in enumerate((("mix", 2), *STEMS)):
        at = np.arange(first, len(sound))
        assert np.array_equal(found[name][at], tell(at - here + there, stream, channels)), name
    heard = np.concatenate(session.band.input)[:, 0]
    counts = session.arena.status("oscaudio.status").read()
    frames = np.arange(len(heard)) - there + here
    came = (frames >= 0) & (frames < len(sound)) & (heard != 0)
    wrong = np.count_nonzero(heard[came] != sound[frames[came], 0])
    assert np.count_nonzero(came) > SPEC.samplerate
    assert wrong <= counts["concealed_frames"] + counts["joined_frames"]


def test_the_program_plays_a_file(session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav(tmp_path / "in.wav", tell(np.arange(3 * SPEC.samplerate), 9, 1), SPEC.samplerate)
    files = [str(tmp_path / "in.wav"), str(tmp_path / "out.wav")]
    assert main([*files, "--port", str(session.port), "--want", "all", "--delay", "96000"]) == 0
    for name, channels in (("out", 2), ("out-bass", 1), ("out-keys", 2)):
        sound, rate = read_wav(tmp_path / f"{name}.wav")
        assert (sound.shape, rate) == ((3 * SPEC.samplerate, channels), SPEC.samplerate)
    assert "0 frames lack" in capsys.readouterr().out


def test_the_program_says_why_nothing_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav(tmp_path / "in.wav", np.zeros((2400, 1), np.float32), 48_000)
    assert main([str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--port", "9"]) == 1
    assert "nobody answered on 127.0.0.1:9" in capsys.readouterr().err


def test_it_needs_nothing_but_numpy() -> None:
    """It is what people copy: of sideman it takes how packets look, and nothing else."""
    source = Path(oscclient.__file__).read_text(encoding="utf-8")
    taken = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert {name for name in taken if name.startswith(("bridge", "realtime"))} == {
        "bridge.audiopackets",
        "bridge.packets",
    }
