from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import features
from realtime.features import CHROMA, LOUDNESS, ONSET, TIMBRE, FeatureStream, analyse, chord_chroma, summarise
from realtime.protocols import HOP_FRAMES, Block

RATE = 48000
NOISE = (np.random.default_rng(3).standard_normal((300 * HOP_FRAMES, 2)) * 0.1).astype(np.float32)


def sine(hz: float, seconds: float = 1.0, level: float = 0.5, samplerate: int = RATE) -> Block:
    t = np.arange(int(seconds * samplerate)) / samplerate
    return (level * np.sin(2 * np.pi * hz * t))[:, None].astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 140), min_size=1, max_size=6))
def test_streamed_equals_whole_bit_for_bit(cuts: list[int]) -> None:
    hops = min(300, sum(cuts))
    whole = FeatureStream(RATE).process(NOISE[: hops * HOP_FRAMES])
    stream, at, rows = FeatureStream(RATE), 0, []
    for cut in cuts:
        end = min(300, at + cut)
        if end > at:
            rows.append(stream.process(NOISE[at * HOP_FRAMES : end * HOP_FRAMES]))
        at = end
    assert np.array_equal(np.concatenate(rows), whole)


def test_one_hop_at_a_time_equals_the_file() -> None:
    stream = FeatureStream(RATE)
    rows = [stream.process(NOISE[at : at + HOP_FRAMES]) for at in range(0, len(NOISE), HOP_FRAMES)]
    assert np.array_equal(np.concatenate(rows), analyse(NOISE, RATE))


@pytest.mark.parametrize("hops", [1, 2, 7])
def test_state_carries_on(hops: int) -> None:
    first, second = FeatureStream(RATE), FeatureStream(RATE)
    first.process(NOISE[: hops * HOP_FRAMES])
    second.restore(first.state())
    following = NOISE[hops * HOP_FRAMES : (hops + 5) * HOP_FRAMES]
    assert np.array_equal(first.process(following), second.process(following))


@pytest.mark.parametrize("samplerate", [22050, 44100, 48000, 96000])
@pytest.mark.parametrize(("hz", "pitch_class"), [(261.63, 0), (440.0, 9), (880.0, 9), (987.77, 11), (1480.0, 6)])
def test_chroma_names_the_pitch_class(hz: float, pitch_class: int, samplerate: int) -> None:
    row = analyse(sine(hz, samplerate=samplerate), samplerate)[30]
    assert row[CHROMA].argmax() == pitch_class
    assert row[CHROMA].sum() == pytest.approx(1, abs=1e-4)


def test_loudness_is_rms_in_db() -> None:
    assert analyse(sine(1000.0, level=0.5), RATE)[40, LOUDNESS] == pytest.approx(-9.03, abs=0.2)
    assert analyse(np.zeros((4096, 1), np.float32), RATE)[:, LOUDNESS].max() == pytest.approx(features.SILENCE_DB)


def test_silence_has_no_chroma_timbre_or_onset() -> None:
    rows = analyse(np.zeros((8192, 3), np.float32), RATE)
    assert not rows[:, CHROMA].any()
    assert np.abs(rows[:, TIMBRE]).max() < 1e-4
    assert not rows[:, ONSET].any()


def test_timbre_tells_bright_from_dark_at_any_level() -> None:
    dark, bright, soft = (
        analyse(sine(hz, level=level), RATE)[40] for hz, level in [(150, 0.5), (5000, 0.5), (150, 0.1)]
    )
    assert np.linalg.norm(dark[TIMBRE] - bright[TIMBRE]) > 4 * np.linalg.norm(dark[TIMBRE] - soft[TIMBRE])


def test_onset_is_where_the_note_starts() -> None:
    audio = np.concatenate((np.zeros((10 * HOP_FRAMES, 1), np.float32), sine(500.0)))
    rows = analyse(audio, RATE)
    assert rows[:, ONSET].argmax() in (10, 11)


def test_summary_of_a_change_of_pitch_takes_the_right_half() -> None:
    audio = np.concatenate((sine(261.63), sine(392.0)))
    rows, delay = analyse(audio, RATE), FeatureStream(RATE).delay_hops
    middle = RATE // HOP_FRAMES
    assert summarise(rows, 0, middle, delay)[CHROMA].argmax() == 0
    assert summarise(rows, middle, 2 * middle, delay)[CHROMA].argmax() == 7


def test_summary_weighs_by_amplitude() -> None:
    audio = np.concatenate((sine(261.63, level=0.5), sine(392.0, level=0.005)))
    summary = summarise(analyse(audio, RATE), 0, len(audio) // HOP_FRAMES, 4)
    assert summary[CHROMA].argmax() == 0
    assert summary[LOUDNESS] == pytest.approx(-12, abs=0.3)


@pytest.mark.parametrize(
    ("symbol", "notes"),
    [("C", {0, 4, 7}), ("F#m7", {6, 9, 1, 4}), ("Bb", {10, 2, 5}), ("C/E", {0, 4, 7}), ("Dm/C", {2, 5, 9, 0}),
     ("Gsus4", {7, 0, 2}), ("Bø", {11, 2, 5, 9}), ("Ebmaj7", {3, 7, 10, 2})],
)  # fmt: skip
def test_chords(symbol: str, notes: set[int]) -> None:
    chroma = chord_chroma(symbol)
    assert chroma is not None
    assert set(np.flatnonzero(chroma)) == notes
    assert chroma.sum() == pytest.approx(1)


def test_no_chord_and_unreadable_chord() -> None:
    assert chord_chroma("N.C.") is None
    for wrong in ("H7", "Cfoo", "m7", "C/x"):
        with pytest.raises(ValueError, match="cannot be read"):
            chord_chroma(wrong)


def test_a_partial_hop_is_refused() -> None:
    with pytest.raises(ValueError, match="512"):
        FeatureStream(RATE).process(np.zeros((700, 1), np.float32))
    with pytest.raises(ValueError, match="kHz"):
        FeatureStream(48)
