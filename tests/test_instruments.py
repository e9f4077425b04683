"""The built-in synth: every note on its frame, in tune, without clicks, and the same however it is cut."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.clock import TempoMap
from realtime.instruments import DRUMS, INSTRUMENTS, TAIL_SECONDS, Note, drive, hertz, modes, render, room

NAMES = tuple(INSTRUMENTS)
TUNED = tuple(name for name in NAMES if name != "drums")


def a_note(name: str, velocity: float = 0.8, start: Fraction = Fraction(1), beats: Fraction = Fraction(1)) -> Note:
    return Note({"drums": 38, "bass": 40}.get(name, 60), velocity, start, beats)


def sound_of(note: Note, name: str, tempo_map: TempoMap) -> npt.NDArray[np.float32]:
    return render(name, [note], tempo_map)[:, 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("samplerate", "bpm"), [(48000, 112), (44100, "97.3"), (22050, 61)])
def test_a_note_starts_on_the_frame_of_its_beat(name: str, samplerate: int, bpm: float | str) -> None:
    tempo_map = TempoMap.steady(samplerate, bpm, downbeat=77).ramped(Fraction(4), 3, Fraction(140))
    for start in (Fraction(1, 3), Fraction(5, 2), Fraction(19, 3)):
        out = sound_of(a_note(name, start=start), name, tempo_map)
        assert np.flatnonzero(out)[0] == tempo_map.frame_at(start)


@pytest.mark.parametrize("name", NAMES)
def test_a_note_starts_softly_and_ends_at_zero(name: str) -> None:
    tempo_map = TempoMap.steady(48000, 120)
    out = sound_of(a_note(name, 1.0), name, tempo_map)
    onset = tempo_map.frame_at(Fraction(1))
    last = np.flatnonzero(out)[-1]
    assert abs(out[onset]) < 0.1 * np.abs(out).max()
    assert abs(out[last]) < 1e-5
    assert last < tempo_map.frame_at(Fraction(2)) + TAIL_SECONDS * 48000


@pytest.mark.parametrize("name", TUNED)
def test_letting_a_key_go_makes_no_click(name: str) -> None:
    tempo_map = TempoMap.steady(48000, 120)
    out = sound_of(a_note(name, 1.0), name, tempo_map)
    end = tempo_map.frame_at(Fraction(2))
    bend = np.abs(np.diff(out, 2))
    assert bend[end - 100 : end + 100].max() <= 1.5 * bend[end - 4000 : end - 100].max()


@pytest.mark.parametrize("name", NAMES)
def test_harder_is_louder_and_nothing_is_too_loud(name: str) -> None:
    tempo_map = TempoMap.steady(48000, 112)
    peaks = [np.abs(sound_of(a_note(name, v), name, tempo_map)).max() for v in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert peaks[0] == 0
    assert all(np.diff(peaks) > 0)
    assert 10 ** (-16 / 20) < peaks[-1] < 10 ** (-5 / 20)


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize("pitch", [40, 57, 69, 81])
def test_notes_are_in_tune(name: str, pitch: int) -> None:
    tempo_map = TempoMap.steady(48000, 60)
    out = sound_of(Note(pitch, 0.7, Fraction(0), Fraction(2)), name, tempo_map)
    size = 1 << 19  # 0.09 Hz a bin
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out)), size))
    cents = 1200 * np.log2(np.maximum(np.fft.rfftfreq(size, 1 / 48000), 1.0) / hertz(pitch))
    nearby = np.abs(cents) < 80
    found = cents[nearby][spectrum[nearby].argmax()]
    assert abs(found) < (12 if name == "strings" else 3)  # a section is five players, 13 cents from end to end


@settings(max_examples=25, deadline=None)
@given(start=st.integers(-3000, 90_000), frames=st.integers(0, 40_000), name=st.sampled_from(NAMES))
def test_any_stretch_is_bit_for_bit_the_same_as_in_the_whole(start: int, frames: int, name: str) -> None:
    tempo_map = TempoMap.steady(24000, 112, downbeat=500)
    notes = [a_note(name, 0.5 + 0.05 * k, Fraction(k, 3), Fraction(1, 2 + k)) for k in range(6)]
    whole = render(name, notes, tempo_map, -3000, 140_000)
    alone = render(name, notes, tempo_map, start, frames)
    assert alone.dtype == np.float32
    assert np.array_equal(alone, whole[start + 3000 : start + 3000 + frames])


def test_the_order_of_the_notes_is_of_no_matter() -> None:
    tempo_map = TempoMap.steady(48000, 112)
    notes = [Note(p, 0.6, Fraction(k, 4), Fraction(1)) for k, p in enumerate((60, 64, 67, 71))]
    assert np.array_equal(render("guitar", notes, tempo_map), render("guitar", notes[::-1], tempo_map))


def test_no_notes_are_silence() -> None:
    assert not render("marimba", [], TempoMap.steady(48000, 112), 0, 1000).any()


def test_modes_is_the_sum_of_decaying_sines() -> None:
    frequencies, gains = np.array([100.0, 333.3, 5000.0]), np.array([1.0, -0.5, 0.25])
    decays, phases = np.array([0.5, 0.2, 0.1]), np.array([0.0, 1.0, 2.0])
    t = np.arange(1, 3001)[:, np.newaxis] / 48000
    plain = (gains * np.sin(2 * np.pi * frequencies * t + phases) * 10 ** (-3 * t / decays)).sum(axis=1)
    assert np.allclose(modes(frequencies, gains, decays, 3000, 48000, phases), plain, atol=1e-12)


def test_what_lies_above_the_band_is_left_out() -> None:
    assert not modes(np.array([23_000.0]), np.ones(1), np.ones(1), 1000, 48000).any()


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize("pitch", [79, 91, 96])
def test_high_notes_at_a_low_rate_do_not_alias(name: str, pitch: int) -> None:
    """Once the knock of finger or stick is over, there is nothing below the fundamental."""
    tempo_map = TempoMap.steady(16000, 120)
    out = sound_of(Note(pitch, 1.0, Fraction(0), Fraction(2)), name, tempo_map)
    out = out[1600:8000]
    power = np.abs(np.fft.rfft(out * np.hanning(len(out)))) ** 2
    hz = np.fft.rfftfreq(len(out), 1 / 16000)
    assert power[hz < 0.9 * hertz(pitch)].sum() < 1e-4 * power.sum()


def test_drums_strike_apart_and_no_two_snares_are_quite_the_same() -> None:
    tempo_map = TempoMap.steady(48000, 120)
    sounds = {p: sound_of(Note(p, 0.8, Fraction(0), Fraction(1)), "drums", tempo_map) for p in DRUMS}
    for pitch, sound in sounds.items():
        assert np.abs(sound).max() > 0.02, f"drum {pitch} is not heard"
    other = sound_of(Note(38, 0.8, Fraction(1, 4), Fraction(1)), "drums", tempo_map)
    onset = tempo_map.frame_at(Fraction(1, 4))
    assert not np.array_equal(other[onset : onset + 5000], sounds[38][:5000])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((440, 0.5, 1), "did you give a frequency"),
        ((60, 100, 1), "divided by 127"),
        ((60, 0.5, 0), "longer than nothing"),
    ],
)
def test_a_note_that_cannot_be_is_refused_in_words(values: tuple[int, float, int], words: str) -> None:
    pitch, velocity, beats = values
    with pytest.raises(ValueError, match=words):
        Note(pitch, velocity, Fraction(0), Fraction(beats))


def test_what_there_is_not_is_named_with_what_there_is() -> None:
    tempo_map = TempoMap.steady(48000, 120)
    with pytest.raises(ValueError, match=r"'kazoo' is none of the built-in ones: .*marimba"):
        render("kazoo", [], tempo_map)
    with pytest.raises(ValueError, match="no drum at pitch 60; it has 36"):
        render("drums", [Note(60, 0.5, Fraction(0), Fraction(1))], tempo_map)


def test_a_room_answers_after_the_sound_and_dies_away() -> None:
    click = np.zeros((30_000, 2), np.float32)
    click[1000] = (1.0, -0.5)
    wet = room(click, 48000, seconds=0.5, wet_db=-14.0)
    echo = wet - click
    assert wet.shape == click.shape
    assert np.abs(echo[:1001]).max() < 1e-6
    assert np.allclose(echo[:, 1], -0.5 * echo[:, 0], atol=1e-6)
    assert np.sum(echo[:, 0] ** 2) == pytest.approx(10 ** (-14 / 10), rel=1e-3)
    assert np.abs(echo[23_000:]).max() < 1e-3 * np.abs(echo).max() + 1e-6


def test_drive_keeps_small_sounds_and_bends_large_ones() -> None:
    ramp = np.linspace(-4, 4, 101, dtype=np.float32)[:, np.newaxis]
    assert np.abs(drive(ramp, 6.0)).max() <= 1
    assert np.allclose(drive(ramp * 1e-3, 20.0), ramp * 1e-2, rtol=1e-3)
