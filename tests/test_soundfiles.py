from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realtime import soundfiles
from realtime.soundfiles import SoundFile

RATE = 44100
TIME = np.arange(30000)[:, None] / RATE
SOUND = (0.4 * np.sin(2 * np.pi * np.array([440.0, 621.7]) * TIME)).astype(np.float32)


def written(path: Path, subtype: str | None = None) -> Path:
    soundfiles.write(path, SOUND, RATE, subtype)
    return path


def cut_off(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [("wav", "FLOAT", 0), ("wav", "PCM_16", 4e-5), ("flac", "PCM_24", 2e-7), ("aiff", "PCM_24", 2e-7),
     ("ogg", None, 0.05), ("mp3", None, 0.15)],
)  # fmt: skip
def test_every_format_is_read_whole(tmp_path: Path, suffix: str, subtype: str | None, error: float) -> None:
    audio, samplerate = soundfiles.read(written(tmp_path / f"a.{suffix}", subtype))
    assert samplerate == RATE
    assert audio.shape == SOUND.shape
    assert audio.dtype == np.float32
    assert np.abs(audio - SOUND).max() <= error


def test_sixty_four_channels_and_one_frame(tmp_path: Path) -> None:
    wide = (np.arange(64)[None] / 64).astype(np.float32)
    soundfiles.write(tmp_path / "wide.wav", wide, 8000, "FLOAT")
    audio, samplerate = soundfiles.read(tmp_path / "wide.wav")
    assert np.array_equal(audio, wide)
    assert samplerate == 8000


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_any_stretch_can_be_read_with_zeros_outside(tmp_path: Path, suffix: str) -> None:
    whole, _ = soundfiles.read(written(tmp_path / f"a.{suffix}"))
    with SoundFile(tmp_path / f"a.{suffix}") as file:
        assert file.info.frames == 30000
        assert np.array_equal(file.read(29990, 30010), np.concatenate((whole[29990:], np.zeros((10, 2), np.float32))))
        assert np.array_equal(file.read(-5, 7), np.concatenate((np.zeros((5, 2), np.float32), whole[:7])))
        assert np.array_equal(file.read(1234, 2345), whole[1234:2345])
        assert not file.read(40000, 40010).any()


def test_info(tmp_path: Path) -> None:
    found = soundfiles.info(written(tmp_path / "a.wav", "PCM_16"))
    assert (found.frames, found.samplerate, found.channels, found.format, found.subtype) == (
        30000, RATE, 2, "WAV", "PCM_16",
    )  # fmt: skip
    assert found.seconds == pytest.approx(30000 / RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_truncated_files_are_told(tmp_path: Path, suffix: str, share: float) -> None:
    path = cut_off(written(tmp_path / f"a.{suffix}"), share)
    with pytest.raises(ValueError, match=r"a\.\w+ (is truncated: .*whole file is needed|cannot be .* malformed)"):
        soundfiles.read(path)


def test_a_writer_that_never_came_back_to_its_header_is_not_truncated(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", "PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    assert len(soundfiles.read(path)[0]) == 30000


@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_the_first_bad_frame_is_named(tmp_path: Path, value: float, name: str) -> None:
    audio = SOUND.copy()
    audio[12345, 1] = value
    audio[20000, 0] = np.nan
    soundfiles.write(tmp_path / "bad.wav", audio, RATE, "FLOAT")
    with pytest.raises(ValueError, match=rf"bad\.wav: frame 12345 is {name};"):
        soundfiles.read(tmp_path / "bad.wav")
    with SoundFile(tmp_path / "bad.wav") as file:
        assert np.array_equal(file.read(0, 12345), audio[:12345])
        with pytest.raises(ValueError, match="frame 12345"):
            file.read(12000, 13000)


def test_huge_finite_values_are_no_infinity(tmp_path: Path) -> None:
    audio = np.full((10, 1), 3e38, dtype=np.float32)
    soundfiles.write(tmp_path / "loud.wav", audio, RATE, "FLOAT")
    assert np.array_equal(soundfiles.read(tmp_path / "loud.wav")[0], audio)


def test_what_is_no_sound_file_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello " * 100)
    soundfiles.write(tmp_path / "none.wav", np.zeros((0, 1), np.float32), RATE)
    for name, reason in {
        "missing.wav": "no such file",
        "": "is a folder",
        "empty.wav": "0 bytes",
        "text.wav": "cannot be read as sound",
        "none.wav": "0 frames",
    }.items():
        with pytest.raises(ValueError, match=reason) as caught:
            soundfiles.info(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unusual_rate_is_refused(tmp_path: Path) -> None:
    soundfiles.write(tmp_path / "slow.wav", SOUND, 100)
    with pytest.raises(ValueError, match="100 frames per second; 4000 to 768000"):
        soundfiles.info(tmp_path / "slow.wav")


def test_channels_are_fitted_to_a_stem() -> None:
    audio = np.array([[1, 3], [2, 4]], np.float32)
    assert soundfiles.fit_channels(audio, 2) is audio
    assert soundfiles.fit_channels(audio, 1).tolist() == [[2], [3]]
    assert soundfiles.fit_channels(audio, 3).tolist() == [[1, 3, 1], [2, 4, 2]]
    assert soundfiles.fit_channels(audio[:, :1], 2).tolist() == [[1, 1], [2, 2]]
