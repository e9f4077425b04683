"""The WAV writer: true at every moment, whatever ends it."""

from __future__ import annotations

import hashlib
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.wav import RIFF_BYTES, WavWriter, wav_header
from realtime.protocols import Block


def noise(frames: int, channels: int, seed: int = 1) -> Block:
    return np.random.default_rng(seed).standard_normal((frames, channels)).astype(np.float32)


def read(path: Path) -> Block:
    block: Block = soundfile.read(path, dtype="float32", always_2d=True)[0]
    return block


def chunks(data: bytes) -> dict[bytes, bytes]:
    """Walk the chunks of a RIFF or RF64 file as the specification says."""
    assert data[8:12] == b"WAVE"
    found: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if size == 0xFFFFFFFF:
            size = struct.unpack_from("<Q", found[b"ds64"], 8)[0]
        found[name] = data[at + 8 : at + 8 + size]
        assert len(found[name]) == size, f"chunk {name!r} claims {size} bytes"
        at += 8 + size + size % 2
    return found


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("samplerate", [8000, 44100, 48000, 192000])
def test_soundfile_reads_back_every_bit(tmp_path: Path, channels: int, samplerate: int) -> None:
    sound = noise(1000, channels)
    sound[3, 0] = 2.5  # float files may exceed full scale
    with WavWriter(tmp_path / "a.wav", samplerate, channels) as writer:
        writer.write(sound)
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (samplerate, channels, 1000, "FLOAT")
    assert info.format == ("WAVEX" if channels > 2 else "WAV")
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), sound)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), max_size=30),
    channels=st.integers(1, 5),
    flush_frames=st.integers(1, 400),
    riff_bytes=st.sampled_from([RIFF_BYTES, 3000]),
)
def test_any_sizes_of_blocks_make_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], channels: int, flush_frames: int, riff_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    sound = noise(sum(sizes), channels)
    with WavWriter(path, 1000, channels, flush_seconds=flush_frames / 1000, riff_bytes=riff_bytes) as writer:
        at = 0
        for size in sizes:
            writer.write(sound[at : at + size])
            at += size
            assert at - writer.frames < flush_frames
            assert soundfile.info(path).frames == writer.frames
    data = path.read_bytes()
    assert chunks(data)[b"data"] == sound.tobytes()
    assert writer.sha256() == hashlib.sha256(sound.tobytes()).hexdigest()
    assert writer.frames == len(sound)
    assert data[:4] == (b"RF64" if len(data) > riff_bytes else b"RIFF")
    if data[:4] == b"RIFF":
        assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8


def test_a_block_may_be_a_view_and_may_be_written_over_afterwards(tmp_path: Path) -> None:
    sound = noise(100, 4)
    expected = sound[::2, 1:3].copy()
    with WavWriter(tmp_path / "a.wav", 48000, 2) as writer:
        writer.write(sound[::2, 1:3])
        sound[:] = 0
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), expected)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_long_file_becomes_rf64_in_place(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "long.wav"
    sound = noise(5000, channels)
    kinds = []
    with WavWriter(path, 48000, channels, flush_seconds=500 / 48000, riff_bytes=8000 * channels) as writer:
        for start in range(0, 5000, 500):
            writer.write(sound[start : start + 500])
            kinds.append(soundfile.info(path).format)
            np.testing.assert_array_equal(read(path), sound[: start + 500])
    assert kinds[0] in ("WAV", "WAVEX")
    assert kinds[-1] == "RF64"
    assert kinds == sorted(kinds, key=lambda kind: kind == "RF64")
    assert struct.unpack("<QQQI", chunks(path.read_bytes())[b"ds64"])[1:3] == (5000 * channels * 4, 5000)


def test_the_real_limit_is_four_gibibytes() -> None:
    frame_bytes, start = 8, len(wav_header(48000, 2, 0))
    last = (RIFF_BYTES - start) // frame_bytes
    below, above = wav_header(48000, 2, last), wav_header(48000, 2, last + 1)
    assert len(below) == len(above) == start
    assert below[:4] == b"RIFF"
    assert struct.unpack_from("<I", below, 4)[0] == start + last * frame_bytes - 8 < 0xFFFFFFFF
    assert above[:4] == b"RF64"
    assert above[12:16] == b"ds64"
    assert struct.unpack_from("<QQQI", above, 20)[1:] == ((last + 1) * frame_bytes, last + 1, 0)


def test_a_sparse_file_beyond_four_gibibytes_reads(tmp_path: Path) -> None:
    path = tmp_path / "huge.wav"
    frames = 2**32 // 8 + 1000
    with open(path, "wb") as file:
        file.write(wav_header(48000, 2, frames))
        file.seek(-8, 2)
        file.truncate(len(wav_header(48000, 2, 0)) + frames * 8)
        file.seek(len(wav_header(48000, 2, 0)) + (frames - 1) * 8)
        file.write(np.array([0.25, -0.5], "<f4").tobytes())
    with soundfile.SoundFile(path) as sound:
        assert (sound.format, sound.frames) == ("RF64", frames)
        sound.seek(frames - 1)
        np.testing.assert_array_equal(sound.read(5, dtype="float32"), [[0.25, -0.5]])


def test_sound_beyond_the_header_is_left_out(tmp_path: Path) -> None:
    """A kill between the sound and the header that describes it."""
    path = tmp_path / "a.wav"
    sound = noise(700, 2)
    with WavWriter(path, 48000, 2) as writer:
        writer.write(sound)
    with open(path, "ab") as file:
        file.write(noise(300, 2).tobytes()[:-3])
    np.testing.assert_array_equal(read(path), sound)


KILLED = """
import sys, numpy as np
from bridge.wav import WavWriter
ramp = np.arange(1 << 22, dtype=np.float32)
writers = [WavWriter(f"{sys.argv[1]}/{i}.wav", 48000, i + 1) for i in range(3)]
at = 0
while True:
    for channels, writer in enumerate(writers, 1):
        writer.write(np.tile(ramp[at : at + 100, None], channels))
    at += 100
    if at == 480_000:
        print("ten seconds", flush=True)
"""


def test_kill_leaves_every_file_whole(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ten seconds\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    sounds = [read(tmp_path / f"{i}.wav") for i in range(3)]
    lengths = [len(sound) for sound in sounds]
    assert min(lengths) >= 480_000 - 12_000
    assert max(lengths) - min(lengths) <= 12_000
    for channels, sound in enumerate(sounds, 1):
        ramp = np.arange(len(sound), dtype=np.float32)
        np.testing.assert_array_equal(sound, np.tile(ramp[:, None], channels))


LIMITED = """
import errno, resource, signal, sys, numpy as np
from bridge.wav import WavWriter
path, channels, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sound = np.random.default_rng(1).standard_normal((4000, channels)).astype(np.float32)
raised = []
writer = WavWriter(path, 1000, channels)
for start in range(0, 4000, 100):
    try:
        writer.write(sound[start : start + 100])
    except OSError as fault:
        raised.append(fault)
writer.close()
assert [fault.errno for fault in raised] == [errno.EFBIG], raised
assert writer.fault is raised[0]
print(writer.frames, writer.sha256())
"""


@pytest.mark.parametrize(("channels", "limit"), [(1, 10_003), (3, 10_007), (2, 500)])
def test_a_file_that_cannot_grow_keeps_whole_frames(tmp_path: Path, channels: int, limit: int) -> None:
    path = tmp_path / "a.wav"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(channels), str(limit)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    frames, digest = done.stdout.split()
    expected = noise(4000, channels)[: int(frames)]
    assert int(frames) == (limit - len(wav_header(1000, channels, 0))) // (4 * channels)
    np.testing.assert_array_equal(read(path), expected)
    assert digest == hashlib.sha256(expected.tobytes()).hexdigest()
    assert path.read_bytes() == wav_header(1000, channels, int(frames)) + expected.tobytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_refuses_the_file_at_once() -> None:
    with pytest.raises(OSError, match="No space left"):
        WavWriter("/dev/full", 48000, 1)


def test_a_failing_disk_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = WavWriter(tmp_path / "a.wav", 1000, 1, flush_seconds=0.1)
    writer.write(noise(100, 1))

    def fail(data: bytearray) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(writer, "_append", fail)
    with pytest.raises(OSError, match="Input/output"):
        writer.write(noise(100, 1))
    writer.write(noise(100, 1))
    writer.close()
    assert writer.frames == 100
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), noise(100, 1))


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (np.zeros(4, np.float32), r"\(4,\)"),
        (np.zeros((4, 1), np.float32), r"\(4, 1\)"),
        (np.zeros((4, 2), np.float64), "float64"),
    ],
)
def test_a_block_of_another_shape_is_refused(tmp_path: Path, block: Any, found: str) -> None:
    with WavWriter(tmp_path / "a.wav", 48000, 2) as writer, pytest.raises(ValueError, match=found):
        writer.write(block)


@pytest.mark.parametrize(("samplerate", "channels"), [(0, 1), (48000, 0), (48000, 48000)])
def test_impossible_formats_are_refused(tmp_path: Path, samplerate: int, channels: int) -> None:
    with pytest.raises(ValueError, match="a WAV file has"):
        WavWriter(tmp_path / "a.wav", samplerate, channels)
    assert not (tmp_path / "a.wav").exists()


def test_closing_twice_and_writing_nothing_are_fine(tmp_path: Path) -> None:
    writer = WavWriter(tmp_path / "a.wav", 48000, 2)
    writer.write(np.zeros((0, 2), np.float32))
    writer.close()
    writer.close()
    assert len(read(tmp_path / "a.wav")) == 0
