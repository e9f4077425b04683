"""The metrics of gaps and clicks: what is planted is found, what is clean stays clean.

None of the material here was used to set them. False alarms are counted per join where the materials are known, else
per 20 ms of clean sound; a planted step is -40 to 0 dB of the local peak, of random size, sign and place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.demo import HERE
from realtime import soundfiles
from realtime.buffers import crossfade, join_frames
from realtime.protocols import Block

TOOLS = Path(__file__).resolve().parent.parent / "tools"
Chance = np.random.Generator
Material = Callable[[Chance, int, int, int], Block]


def load(name: str) -> Any:
    """Import a tool as its runner does: its folder stands first on the path."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


continuity = load("continuity")
DEMO = {name: soundfiles.read(HERE / f"{name}.flac")[0] for name in ("bass", "drums", "marimba", "player")}


def noise(chance: Chance, frames: int, samplerate: int, channels: int) -> Block:
    return chance.normal(0, 0.1, (frames, channels)).astype(np.float32)


def tones(chance: Chance, frames: int, samplerate: int, channels: int) -> Block:
    """Return four steady partials a channel, none above what counts as smooth."""
    t = np.arange(frames)[:, None, None] / samplerate
    pitch = chance.uniform(50, min(1000, samplerate / continuity.SMOOTH_PART), (1, channels, 4))
    partials = chance.uniform(0.03, 0.2, pitch.shape) * np.sin(
        2 * np.pi * (pitch * t + chance.uniform(0, 1, pitch.shape))
    )
    sound: Block = partials.sum(axis=2).astype(np.float32)
    return sound


def silence(chance: Chance, frames: int, samplerate: int, channels: int) -> Block:
    return np.zeros((frames, channels), np.float32)


def stem(name: str) -> Material:
    """Return excerpts of one of the demo's stems, whatever the rate: for a metric that is a change of pitch."""

    def excerpt(chance: Chance, frames: int, samplerate: int, channels: int) -> Block:
        starts = chance.integers(0, len(DEMO[name]) - frames, channels)
        return np.stack([DEMO[name][start : start + frames, 0] for start in starts], axis=1)

    return excerpt


MATERIALS: dict[str, Material] = {"noise": noise, "tones": tones, "silence": silence} | {
    name: stem(name) for name in DEMO
}


def joined(outgoing: Block, incoming: Block, at: int, join: int) -> Block:
    """Join two materials as a voice does."""
    sound = incoming.copy()
    sound[: at - join] = outgoing[: at - join]
    sound[at - join : at] = crossfade(outgoing[at - join : at], incoming[at - join : at])
    return sound


def plant(chance: Chance, sound: Block, at: int, samplerate: int) -> bool:
    """Add a step that fades away within 100 ms, in one channel; False where there is nothing to add it to."""
    reach = round(0.01 * samplerate)
    peak = float(np.abs(sound[max(0, at - reach) : at + reach + 1]).max())
    if peak < 1e-3:
        return False
    tail = len(sound[at : at + round(0.1 * samplerate)])
    size = chance.choice([-1, 1]) * peak * 10 ** (chance.uniform(-40, 0) / 20)
    sound[at : at + tail, chance.integers(sound.shape[1])] += size * np.cos(np.linspace(0, np.pi / 2, tail)) ** 2
    return True


# Gaps


def test_a_gap_is_64_silent_frames_where_there_should_be_sound() -> None:
    sound = np.full((1000, 2), 0.1, np.float32)
    due = np.ones(1000, np.bool_)
    for frames in (1, 63):
        heard = sound.copy()
        heard[300 : 300 + frames] = 0
        assert continuity.gaps(heard, due) == []
    for start, frames in ((0, 64), (300, 64), (300, 200), (936, 64)):
        heard = sound.copy()
        heard[start : start + frames] = 1e-5
        assert continuity.gaps(heard, due) == [continuity.Gap(start, frames)]
        assert continuity.gaps(heard, sound) == [continuity.Gap(start, frames)], "the material itself is as good"
        assert continuity.gaps(heard, heard) == [], "silence that was scheduled"
    heard[936:, 1] = 0.1
    assert continuity.gaps(heard, due) == [], "one of two channels sounds"
    assert len(continuity.gaps(np.full((100, 1), np.nan, np.float32), np.ones(100, np.bool_))) == 1
    assert continuity.gaps(sound[:10], due[:10]) == []


def test_quiet_is_not_silent_and_silent_is_not_quiet() -> None:
    due = np.ones(100, np.bool_)
    assert continuity.gaps(np.full((100, 1), 10 ** (-89 / 20), np.float32), due) == []
    assert continuity.gaps(np.full((100, 1), 10 ** (-91 / 20), np.float32), due) == [continuity.Gap(0, 100)]


@given(st.lists(st.tuples(st.integers(1, 150), st.booleans()), min_size=1, max_size=20), st.integers(1, 2))
def test_gaps_are_what_counting_frame_by_frame_finds(runs: list[tuple[int, bool]], channels: int) -> None:
    sounding = np.concatenate([np.full(frames, sounds) for frames, sounds in runs])
    audio = np.repeat(sounding[:, None], channels, axis=1).astype(np.float32)
    expected, position = [], 0
    for frames, sounds in merged(runs):
        if not sounds and frames >= 64:
            expected.append(continuity.Gap(position, frames))
        position += frames
    assert continuity.gaps(audio, np.ones(len(audio), np.bool_)) == expected


def merged(runs: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """Make one run of neighbours of a kind."""
    found: list[tuple[int, bool]] = []
    for frames, sounds in runs:
        if found and found[-1][1] == sounds:
            found[-1] = (found[-1][0] + frames, sounds)
        else:
            found.append((frames, sounds))
    return found


def test_two_that_do_not_lie_side_by_side_are_refused() -> None:
    with pytest.raises(ValueError, match="scheduled has 99 frames and audio 100"):
        continuity.gaps(np.zeros((100, 1), np.float32), np.ones(99, np.bool_))
    block = np.zeros((100, 1), np.float32)
    with pytest.raises(ValueError, match="all three cover the same frames"):
        continuity.join_clicks(block, block, block[:-1], 0, 50, 48000)
    with pytest.raises(ValueError, match="at 32000 or more"):
        continuity.smooth_clicks(block, 8000)


# Clicks between known materials

RATES = (8000, 22050, 44100, 48000, 96000)
PAIRS = [
    ("noise", "noise"), ("tones", "tones"), ("noise", "tones"), ("silence", "noise"), ("bass", "silence"),
    ("bass", "bass"), ("drums", "drums"), ("drums", "player"), ("marimba", "bass"), ("player", "marimba"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_known_materials_show_every_step_and_no_other(first: str, second: str) -> None:
    chance = np.random.default_rng([len(first), len(second), 7])
    planted = found = clean = wrong = cut = cuts = 0
    for trial in range(110):
        rate, channels = RATES[trial % len(RATES)], 1 + trial % 2
        join = join_frames(rate)
        frames = 6 * join
        outgoing = MATERIALS[first](chance, frames, rate, channels)
        incoming = MATERIALS[second](chance, frames, rate, channels)
        at = int(chance.integers(2 * join, 4 * join))
        lawful = joined(outgoing, incoming, at, join)
        clean += 1
        wrong += bool(continuity.join_clicks(lawful, outgoing, incoming, at - join, at, rate))
        hit = int(chance.integers(join, 5 * join))
        sound = lawful.copy()
        if plant(chance, sound, hit, rate):
            planted += 1
            clicks = continuity.join_clicks(sound, outgoing, incoming, at - join, at, rate)
            found += any(abs(click.frame - hit) <= 2 * join for click in clicks)
        hard = np.concatenate([outgoing[:at], incoming[at:]])
        step = np.abs(incoming[at - 8 : at + 8] - outgoing[at - 8 : at + 8]).max()
        if step > 0.1 * np.abs(hard[at - join : at + join]).max() > 1e-4:
            cuts += 1
            cut += bool(continuity.join_clicks(hard, outgoing, incoming, at - join, at, rate))
    assert wrong <= 0.001 * clean
    assert planted > 45
    assert found >= 0.99 * planted
    assert cuts > 20
    assert cut >= 0.99 * cuts, "joins without a crossfade"


def test_uncut_material_is_clean_and_a_lost_frame_is_a_click() -> None:
    sound = DEMO["player"][48000:96000]
    assert continuity.join_clicks(sound, sound, sound, 0, 0, 48000) == []
    lost = np.concatenate([sound[:20000], sound[20001:], sound[-1:]])
    assert continuity.join_clicks(lost, sound, sound, 0, 0, 48000)
    broken = sound.copy()
    broken[30000] = np.nan
    assert continuity.join_clicks(broken, sound, sound, 0, 0, 48000)[0].frame == 30000
    assert continuity.join_clicks(broken, sound, sound, 29900, 30380, 48000)[0].frame == 30000


# Clicks in smooth material


@pytest.mark.parametrize("rate", [32000, 44100, 48000, 96000])
def test_smooth_material_shows_every_step_and_no_join(rate: int) -> None:
    chance, join = np.random.default_rng(rate), join_frames(rate)
    planted = found = clean = wrong = 0
    for trial in range(50):
        outgoing, incoming = (tones(chance, 30 * join, rate, 1 + trial % 2) for _ in range(2))
        at = int(chance.integers(5 * join, 25 * join))
        other = silence(chance, len(outgoing), rate, outgoing.shape[1]) if trial % 5 == 0 else incoming
        sound = joined(outgoing, other, at, join)
        clean += len(sound) // (2 * join)
        wrong += len(continuity.smooth_clicks(sound, rate))
        hit = int(chance.integers(2 * join, 28 * join))
        if plant(chance, sound, hit, rate):
            planted += 1
            found += any(abs(click.frame - hit) <= 4 for click in continuity.smooth_clicks(sound, rate))
    assert wrong <= 0.001 * clean
    assert planted > 40
    assert found >= 0.99 * planted


def test_smooth_material_that_is_cut_off_or_damaged_is_found() -> None:
    chance = np.random.default_rng(3)
    sound = tones(chance, 48000, 48000, 1)
    for damage in (0.0, np.nan, np.inf):
        broken = sound.copy()
        broken[20000:20100] = damage
        assert [click for click in continuity.smooth_clicks(broken, 48000) if 19990 < click.frame < 20110]


# Clicks in material of which nothing is known


def rates(name: str, samplerate: int) -> tuple[float, float, float]:
    """Return the false share of 20 ms windows, and the shares found below and above -20 dB."""
    chance = np.random.default_rng(11)
    frames = 8 * samplerate
    sound = MATERIALS[name](chance, frames, samplerate, 1)
    window = samplerate // 50
    clean = DEMO[name][:, :1] if name in DEMO else sound
    wrong = len({click.frame // window for click in continuity.clicks(clean, samplerate)})
    places = np.arange(samplerate // 4, frames - samplerate // 4, samplerate // 5)
    places = places + chance.integers(0, samplerate // 20, len(places))
    small: list[bool] = []
    large: list[bool] = []
    for repeat in range(2):
        broken = sound.copy()
        peaks = [float(np.abs(sound[at - window // 2 : at + window // 2 + 1]).max()) for at in places]
        sizes = chance.uniform(-40, 0, len(places))
        for at, peak, size in zip(places, peaks, sizes, strict=True):
            tail = samplerate // 10
            fall: npt.NDArray[np.float64] = np.cos(np.linspace(0, np.pi / 2, tail)) ** 2
            broken[at : at + tail, 0] += chance.choice([-1, 1]) * peak * 10 ** (size / 20) * fall
        hits = np.asarray([click.frame for click in continuity.clicks(broken, samplerate)] or [-(10**9)])
        for at, peak, size in zip(places, peaks, sizes, strict=True):
            if peak > 1e-3:
                (small if size < -20 else large).append(bool(np.abs(hits - at).min() <= 24))
        places = places + repeat
    return wrong / (len(clean) // window), float(np.mean(small)), float(np.mean(large))


@pytest.mark.parametrize(
    ("name", "samplerate", "small", "large"),
    [
        ("tones", 8000, 0.99, 0.99),
        ("tones", 48000, 0.99, 0.99),
        ("tones", 22050, 0.99, 0.99),
        ("bass", 48000, 0.95, 0.99),
        ("marimba", 48000, 0.60, 0.95),
        ("player", 48000, 0.90, 0.97),
        ("drums", 48000, 0.30, 0.75),  # what lies below a hi-hat stays there
        ("noise", 48000, 0.00, 0.00),
    ],
)
def test_unknown_material_shows_what_stands_out_of_it(name: str, samplerate: int, small: float, large: float) -> None:
    wrong, found_small, found_large = rates(name, samplerate)
    assert wrong <= 0.001
    assert (found_small >= small, found_large >= large) == (True, True), (found_small, found_large)


def test_an_attack_is_no_click() -> None:
    chance, at = np.random.default_rng(5), 24000
    ringing = np.exp(-np.arange(24000) / 4800)
    for attack in (
        0.5 * chance.normal(size=24000) * ringing,
        0.8 * np.sin(2 * np.pi * 180 * np.arange(24000) / 48000) * ringing
        + 0.1 * chance.normal(size=24000) * ringing,
    ):
        sound = 0.001 * chance.normal(size=(48000, 1))
        sound[at:, 0] += attack
        assert continuity.clicks(sound.astype(np.float32), 48000) == []
