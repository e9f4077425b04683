from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.protocols import Block
from realtime.stretch import fit

RATE, ATTACK = 48000, 1200


def sine(frames: int, channels: int = 1) -> Block:
    t = np.arange(frames) / RATE
    return np.repeat((0.5 * np.sin(2 * np.pi * 441 * t))[:, None], channels, axis=1).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30000), st.integers(1, 40000), st.integers(1, 3))
def test_any_length_is_met_exactly(length: int, frames: int, channels: int) -> None:
    fitted = fit(sine(length, channels), frames, ATTACK, RATE)
    assert fitted.shape == (frames, channels)
    assert fitted.dtype == np.float32
    assert np.isfinite(fitted).all()


@pytest.mark.parametrize("frames", [12500, 20000, 23000, 24001, 30000, 47000])
def test_a_click_stays_one_click_on_its_frame(frames: int) -> None:
    audio = np.zeros((24000, 1), np.float32)
    audio[0] = 1
    fitted = fit(audio, frames, ATTACK, RATE)
    assert fitted[0, 0] == 1
    assert np.abs(fitted[1:]).max() < 1e-4


@pytest.mark.parametrize("frames", [15000, 23000, 30000])
def test_the_attack_is_kept_sample_for_sample(frames: int) -> None:
    audio = sine(24000) * np.exp(-np.arange(24000) / 9000, dtype=np.float32)[:, None]
    assert np.array_equal(fit(audio, frames, ATTACK, RATE)[:ATTACK], audio[:ATTACK])


@pytest.mark.parametrize(("frames", "lowest"), [(14000, 0.19), (22000, 0.3), (26000, 0.3), (40000, 0.19)])
def test_pitch_and_level_stay_to_the_end(frames: int, lowest: float) -> None:
    """The mirrored end may cancel by 5 dB at the limits of the ratio, by 1.5 dB where tempi are near."""
    fitted = fit(sine(24000), frames, ATTACK, RATE)[:, 0]
    spectrum = np.abs(np.fft.rfft(fitted * np.hanning(frames)))
    assert spectrum.argmax() * RATE / frames == pytest.approx(441, abs=3)
    for part in np.split(fitted[: frames // 480 * 480], frames // 480):
        assert lowest < np.sqrt((part**2).mean()) < 0.42  # 0.354 where nothing fades


def test_same_length_is_untouched_and_a_copy() -> None:
    audio = sine(5000)
    fitted = fit(audio, 5000, ATTACK, RATE)
    assert np.array_equal(fitted, audio)
    assert fitted is not audio


def test_same_bits_every_time() -> None:
    noise = np.random.default_rng(1).standard_normal((20000, 2)).astype(np.float32)
    assert np.array_equal(fit(noise, 23456, ATTACK, RATE), fit(noise, 23456, ATTACK, RATE))


def test_beyond_the_limits_it_cuts_or_pads_with_a_fade() -> None:
    audio = sine(24000)
    cut, padded = fit(audio, 8000, ATTACK, RATE), fit(audio, 60000, ATTACK, RATE)
    assert np.array_equal(cut[:7760], audio[:7760])
    assert cut[-1] == 0
    assert np.array_equal(padded[:23760], audio[:23760])
    assert padded[23999] == 0
    assert not padded[24000:].any()
