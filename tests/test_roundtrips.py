"""Round trips that are kept: what a session takes, what a damaged file costs, that a file is whole or the old one."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import roundtrips
from bridge.roundtrips import Calibration, choose, keep, load, state_file

CARD = "Scarlett 2i2 USB: Audio (hw:1,0), ALSA"
JACK = "system, JACK Audio Connection Kit"
ONE = Calibration(CARD, CARD, 48_000, 128, 517, 517.25, 48_000, 130, 260, "2026-11-20 18:30")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sideman" / roundtrips.NAME


def chosen(file: Path, device: str = "scarlett", latency: int = 0, offset: int = 0, blocksize: int = 128,
           samplerate: int = 48_000, names: tuple[str, str] | None = (CARD, CARD)) -> roundtrips.Chosen:  # fmt: skip
    def found() -> tuple[str, str]:
        if names is None:
            raise ValueError("there is no such device")
        return names

    return choose(
        device, latency=latency, offset=offset, samplerate=samplerate, blocksize=blocksize, names=found, file=file
    )


def test_what_was_kept_is_read_back(file: Path) -> None:
    other = replace(ONE, device=JACK, input_device='a "quoted" \\ name\twith Ünicode, ALSA')
    assert load(file) == []
    assert keep(ONE, file) == ""
    keep(other, file)
    assert load(file) == [ONE, other]


def test_a_new_one_takes_the_place_of_the_old_one(file: Path) -> None:
    longer = replace(ONE, blocksize=256, frames=900, exact_frames=900.0)
    for entry in (ONE, longer, replace(ONE, frames=530)):
        keep(entry, file)
    assert load(file) == [longer, replace(ONE, frames=530)]


def test_a_session_takes_the_one_that_fits(file: Path) -> None:
    keep(ONE, file)
    keep(replace(ONE, blocksize=256, frames=900), file)
    keep(replace(ONE, samplerate=44_100, frames=480), file)
    assert (chosen(file).frames, chosen(file).calibration) == (517, ONE)
    assert chosen(file, blocksize=256).frames == 900
    assert chosen(file, samplerate=44_100).frames == 480
    assert chosen(file).sentence == "as calibrated on 2026-11-20 18:30"


def test_a_session_takes_none_that_does_not_fit(file: Path) -> None:
    keep(ONE, file)
    strange = chosen(file, names=(CARD, JACK))
    assert (strange.frames, strange.calibration) == (0, None)
    assert "not calibrated: `sideman calibrate`" in strange.sentence
    assert "with blocks of 128, and the session's have 64" in chosen(file, blocksize=64).sentence


def test_a_figure_in_the_session_is_the_sessions(file: Path) -> None:
    keep(ONE, file)
    assert chosen(file, latency=700).frames == 700
    assert chosen(file, latency=700, offset=-20).frames == 680
    both = chosen(file, offset=13)
    assert both.frames == 530
    assert "+13 by stream.latency_offset" in both.sentence
    assert both.calibration == ONE


@pytest.mark.parametrize(("latency", "offset"), [(0, -518), (100, -101), (192_000, 1)])
def test_a_sum_that_is_no_latency_is_refused(file: Path, latency: int, offset: int) -> None:
    keep(ONE, file)
    with pytest.raises(ValueError, match=r"stream.latency_offset is .* the wrong sign"):
        chosen(file, latency=latency, offset=offset)


def test_a_device_that_is_not_there_yet_is_the_only_one_it_can_be(file: Path) -> None:
    keep(ONE, file)
    keep(replace(ONE, device=JACK, input_device=JACK, frames=256), file)
    waited = chosen(file, names=None)
    assert waited.frames == 517
    assert "not there yet" in waited.sentence
    assert chosen(file, "", names=None).frames == 0  # the default could be either


def test_nobody_looks_for_devices_where_nothing_is_kept(file: Path) -> None:
    def never() -> tuple[str, str]:
        raise AssertionError

    keep(replace(ONE, samplerate=96_000), file)
    for latency in (0, 300):
        found = choose("", latency=latency, offset=0, samplerate=48_000, blocksize=128, names=never, file=file)
        assert found.frames == latency


def test_a_device_in_another_state_is_doubted() -> None:
    now = {"samplerate": 48_000, "latency_in": 130, "latency_out": 260}
    assert ONE.doubt(now) == ""
    doubt = ONE.doubt(now | {"latency_out": 1024})
    assert "(48000 Hz, 130 frames in, 260 out; now 48000 Hz, 130 frames in, 1024 out)" in doubt
    assert "`sideman calibrate`" in doubt


WHOLE = """version = 1
[[round_trips]]
device = "a, b"
input_device = "a, b"
samplerate = 48000
blocksize = 128
frames = 300
exact_frames = 300.1
device_samplerate = 48000
latency_in = 0
latency_out = 512
made = "2026-11-20 18:30"
"""


def refusal(file: Path) -> str:
    """Return the sentence with which a file is refused, "" for one that is read."""
    try:
        load(file)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("version = 1", "version = 2", "version = 2; it must be 1; was it written by another sideman?"),
        ("version = 1", "", "version = None"),
        ("frames = 300\n", "frames = -1\n", "frames = -1; it must be a whole number from 0 to 192000"),
        ("frames = 300\n", "", "frames is missing"),
        ("frames = 300.1", "frames = nan", "exact_frames = nan"),
        ('device = "a, b"\nin', "device = 3\nin", "device = 3; it must be a text"),
        ("blocksize = 128", "blocksize = true", "blocksize = True"),
        ("made", "maid", "made is missing"),
        ("[[round_trips]]", "[round_trips]", "an array of 0 to 200 tables"),
        ("version = 1", "version = = 1", "Invalid value"),
        ("a, b", "\udcff", "no text in UTF-8"),
    ],
)
def test_a_damaged_file_is_one_sentence_and_ignored(file: Path, old: str, new: str, words: str) -> None:
    damaged = WHOLE.replace(old, new).encode("utf-8", "surrogateescape")
    file.parent.mkdir(parents=True)
    file.write_bytes(damaged)
    said = refusal(file)
    assert words in said
    assert str(file) in said
    assert "\n" not in said
    ignored = chosen(file, offset=7)
    assert ignored.frames == 7
    assert "ignored until `sideman calibrate`" in ignored.sentence
    assert "set aside as calibration.toml.unread" in keep(ONE, file)
    assert load(file) == [ONE]
    assert file.with_name("calibration.toml.unread").read_bytes() == damaged


@given(st.binary(max_size=400))
def test_whatever_is_in_the_file_is_read_or_one_sentence(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / roundtrips.NAME
        file.write_bytes(content)
        assert "\n" not in refusal(file)


def test_a_file_that_is_too_long_or_no_file_is_refused(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(b"#" * (roundtrips.MAX_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        load(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"cannot be read|something else"):
        load(file)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(ONE, file)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keep(replace(ONE, frames=1), file)
    assert load(file) == [ONE]
    assert os.listdir(file.parent) == [roundtrips.NAME]


def test_the_list_is_bounded(file: Path) -> None:
    file.parent.mkdir(parents=True)
    roundtrips._write(file, [replace(ONE, device=f"card {number}") for number in range(roundtrips.MOST_ENTRIES)])
    keep(replace(ONE, device="the last"), file)
    names = [entry.device for entry in load(file)]
    assert len(names) == roundtrips.MOST_ENTRIES
    assert (names[0], names[-1]) == ("card 1", "the last")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these have folders of their own")
def test_the_state_folder_is_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_file() == tmp_path / ".local" / "state" / "sideman" / "calibration.toml"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_file() == tmp_path / ".local" / "state" / "sideman" / "calibration.toml"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    assert state_file() == tmp_path / "elsewhere" / "sideman" / "calibration.toml"
