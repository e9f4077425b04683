"""The onset detector finds attacks where they are, at any rate, and forgets what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realtime.listener import OnsetDetector
from realtime.protocols import HOP_FRAMES, Block

ONSET = Path(__file__).parents[1] / "exported_models" / "onset"


def plucks(samplerate: int, times: list[float], seconds: float = 3.0) -> Block:
    """Return decaying harmonic tones that start at the given times (seconds), ``(frames, 1)``."""
    audio = np.zeros(int(seconds * samplerate) // HOP_FRAMES * HOP_FRAMES)
    for time in times:
        start = round(time * samplerate)
        t = np.arange(min(len(audio) - start, samplerate // 2)) / samplerate
        audio[start : start + len(t)] += sum(np.sin(2 * np.pi * 220 * n * t) / n for n in range(1, 8)) * np.exp(
            -t / 0.1
        )
    return (0.3 * audio[:, None]).astype(np.float32)


def heard(detector: OnsetDetector, audio: Block, first: int = 0) -> list[float]:
    return [detector.hear(audio[k : k + HOP_FRAMES], first + k) for k in range(0, len(audio), HOP_FRAMES)]


TIMES = [0.3, 0.8, 1.05, 1.3, 1.55, 2.3]


@pytest.mark.parametrize("samplerate", [22050, 44100, 48000, 96000])
def test_every_attack_is_found_where_it_is(samplerate: int) -> None:
    detector = OnsetDetector(ONSET, samplerate)
    probabilities = heard(detector, plucks(samplerate, TIMES))
    found = np.array(detector.onsets(0, 3 * samplerate)) / samplerate
    assert len(found) == len(TIMES)
    assert np.abs(found - TIMES).max() < 0.020
    assert all(0 <= p <= 1 for p in probabilities)


def test_frames_are_the_sessions_own() -> None:
    at_zero, later = OnsetDetector(ONSET, 44100), OnsetDetector(ONSET, 44100)
    audio = plucks(44100, TIMES)
    heard(at_zero, audio)
    heard(later, audio, first=512_000)
    assert later.onsets(0, 1 << 40) == [512_000 + onset for onset in at_zero.onsets(0, 1 << 40)]


def test_activity_counts_onsets_per_beat() -> None:
    detector = OnsetDetector(ONSET, 48000)
    heard(detector, plucks(48000, TIMES))
    assert detector.activity(0, 144_000, beats=6) == 1.0
    assert detector.activity(36_000, 84_000, beats=2) == 2.0  # 0.75 s to 1.75 s: four of them
    assert detector.activity(120_000, 144_000) == 0.0
    assert detector.onsets(36_000, 84_000) == detector.onsets(0, 144_000)[1:5]


def test_channels_are_averaged() -> None:
    mono, stereo = OnsetDetector(ONSET, 48000), OnsetDetector(ONSET, 48000)
    audio = plucks(48000, TIMES)
    assert heard(mono, audio) == heard(stereo, np.repeat(audio, 2, axis=1))


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("samplerate", [44100, 48000])
def test_a_bad_hop_does_not_deafen_it(poison: float, samplerate: int) -> None:
    detector = OnsetDetector(ONSET, samplerate)
    bad = np.zeros((HOP_FRAMES * 4, 1), np.float32)
    bad[HOP_FRAMES, 0] = poison
    assert np.isfinite(heard(detector, bad)).all()
    heard(detector, plucks(samplerate, [1.0]), first=len(bad))
    onsets = np.array(detector.onsets(len(bad) + samplerate // 2, 1 << 40)) - len(bad)
    assert len(onsets) == 1
    assert abs(onsets[0] / samplerate - 1.0) < 0.020


def test_after_a_gap_it_begins_anew_and_keeps_what_it_found() -> None:
    detector = OnsetDetector(ONSET, 48000)
    audio = plucks(48000, TIMES)
    heard(detector, audio)
    before = detector.onsets(0, 144_000)
    heard(detector, audio, first=480_000)
    assert detector.onsets(0, 480_000) == before
    assert [o - 480_000 for o in detector.onsets(480_000, 1 << 40)] == before


def test_reset_forgets_everything() -> None:
    detector = OnsetDetector(ONSET, 48000)
    audio = plucks(48000, TIMES)
    first = heard(detector, audio)
    detector.reset()
    assert detector.onsets(0, 1 << 40) == []
    assert heard(detector, audio) == first


def test_what_it_cannot_take_is_named() -> None:
    detector = OnsetDetector(ONSET, 48000)
    with pytest.raises(ValueError, match=r"a hop of shape \(100, 1\); the detector takes \(512, channels\)"):
        detector.hear(np.zeros((100, 1), np.float32), 0)
    with pytest.raises(ValueError, match="both lengths must be above 0"):
        detector.activity(10, 10)
    with pytest.raises(ValueError, match="both lengths must be above 0"):
        detector.activity(0, 10, beats=0)


def test_a_model_for_another_task_is_refused(tmp_path: Path) -> None:
    for path in ONSET.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card = (ONSET / "card.toml").read_text()
    (tmp_path / "card.toml").write_text(card.replace('task = "onset detection"', 'task = "chroma"'))
    with pytest.raises(ValueError, match="the card's task is 'chroma'; an onset detector needs 'onset detection'"):
        OnsetDetector(tmp_path, 48000)
