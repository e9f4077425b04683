"""One stem's sound: the same for any division into blocks, whole attacks, no clicks, clips laid on other beats."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.buffers import crossfade, lane
from realtime.protocols import Block, Clip, Origin
from realtime.voice import Material, Voice, place_clip

JOIN = 16


def noise(seed: int, frames: int, channels: int = 1) -> Block:
    return np.random.default_rng(seed).normal(0, 0.1, (frames, channels)).astype(np.float32)


def sine(frames: int, period: float, phase: float = 0.0) -> Block:
    wave: Block = np.sin(2 * np.pi * np.arange(frames) / period + phase).astype(np.float32)[:, None]
    return wave


def endless(audio: Block, at: int, lead_in: int = JOIN) -> Material:
    return Material(audio, at - lead_in, at - lead_in + len(audio))


def rendered(voice: Voice, frames: int, cuts: list[int] | None = None, start: int = 0) -> Block:
    out = np.full((frames - start, voice.channels), 9, np.float32)
    edges = sorted({start, frames, *(cut for cut in cuts or [] if start < cut < frames)})
    for begin, end in pairwise(edges):
        voice.render(begin, lane(out), begin - start, end - begin)
    return out


# A join is planned before its crossfade begins: (pause before it is planned, frames from there on, material).
joins = st.lists(
    st.tuples(st.integers(0, 40), st.integers(JOIN, 90), st.one_of(st.none(), st.integers(1, 50))), max_size=8
)


@given(plan=joins, cuts=st.lists(st.integers(1, 399), max_size=30), channels=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_what_sounds_does_not_depend_on_the_blocks_nor_on_when_a_join_is_made(
    plan: list[tuple[int, int, int | None]], cuts: list[int], channels: int
) -> None:
    def play(divisions: list[int], prepare: bool = False) -> Block:
        voice, now, parts = Voice(channels, JOIN), 0, []
        for pause, ahead, seed in plan:
            parts.append(rendered(voice, now + pause, divisions, now))
            now += pause
            at = now + ahead
            sound = None if seed is None else noise(seed, seed * 4, channels)
            voice.join(at, None if sound is None else Material(sound, at - len(sound) % 20, at + len(sound) * 3 // 4))
            while prepare and voice.prepare(now):
                pass
        return np.concatenate([*parts, rendered(voice, max(400, now), divisions, now)])

    assert np.array_equal(play(cuts), play([]))
    assert np.array_equal(play(list(range(400))), play([]))
    assert np.array_equal(play(cuts, prepare=True), play([]))


def test_a_crossfade_is_prepared_once_and_not_when_it_has_begun() -> None:
    voice = Voice(1, JOIN)
    assert not voice.prepare(0)
    voice.join(100, endless(noise(1, 300), 100))
    assert not voice.prepare(100 - JOIN + 1)
    assert voice.prepare(100 - JOIN)
    assert not voice.prepare(0)
    voice.join(90, endless(noise(2, 300), 90))
    assert voice.prepare(0), "the join it was made for is no more"


def test_stereo_sound_whose_channels_do_not_lie_side_by_side_is_played_all_the_same() -> None:
    sound = np.asfortranarray(noise(1, 300, 2))
    voice = Voice(2, JOIN)
    voice.join(0, endless(sound, 0, 0))
    assert np.array_equal(rendered(voice, 200), sound[:200])


def test_new_material_is_whole_from_its_first_frame_on() -> None:
    voice, old, new = Voice(1, JOIN), noise(1, 300), noise(2, 300)
    new[:JOIN] = 0
    new[JOIN] = 1  # an attack on the first frame
    voice.join(0, endless(old, 0, 0))
    voice.join(100, endless(new, 100))
    sound = rendered(voice, 200)
    assert np.array_equal(sound[: 100 - JOIN], old[: 100 - JOIN])
    assert np.array_equal(sound[100:], new[JOIN : JOIN + 100])
    assert sound[100, 0] == 1


@given(phase=st.floats(0, 6.28), period=st.floats(40, 200), at=st.integers(JOIN * 20, 800))
@settings(max_examples=60, deadline=None)
def test_no_step_at_a_join_is_much_larger_than_the_sounds_own(phase: float, period: float, at: int) -> None:
    join = 320
    voice = Voice(1, join)
    voice.join(0, endless(sine(2000, 100), 0, 0))
    voice.join(at, endless(sine(2000, period, phase), at, join))
    sound = rendered(voice, 1600)[:, 0]
    own = 2 * np.pi / min(period, 100)  # the steepest step of either sine
    gain = np.pi / 2 / join * 2  # and what the two moving gains add at most
    assert np.abs(np.diff(sound)).max() <= np.sqrt(2) * own + gain


def test_silence_fades_out_before_its_frame_and_sound_fades_in_from_it() -> None:
    voice, sound = Voice(1, JOIN), np.ones((400, 1), np.float32)
    voice.join(0, endless(sound, 0, 0))
    voice.join(100, None)
    voice.join(200, endless(sound, 200))
    out = rendered(voice, 300)[:, 0]
    assert (out[: 100 - JOIN] == 1).all()
    assert (np.diff(out[100 - JOIN : 100]) < 0).all()
    assert not out[100 : 200 - JOIN].any()
    assert (np.diff(out[200 - JOIN : 200]) > 0).all()
    assert (out[200:] == 1).all()


def test_from_silence_to_silence_is_silence() -> None:
    voice = Voice(2, JOIN)
    voice.join(50, None)
    assert not rendered(voice, 100).any()


def test_joins_closer_than_the_crossfade_share_what_room_there_is() -> None:
    voice, sounds = Voice(1, JOIN), [noise(seed, 400) for seed in range(4)]
    for seed, at in enumerate([0, 100, 106, 107]):
        voice.join(at, endless(sounds[seed], at, 0 if at == 0 else JOIN))
    out = rendered(voice, 200)
    assert np.array_equal(out[: 100 - JOIN], sounds[0][: 100 - JOIN])
    assert np.array_equal(out[107:], sounds[3][JOIN : JOIN + 93])
    assert np.array_equal(out[100:106], crossfade(sounds[1][JOIN : JOIN + 6], sounds[2][JOIN - 6 : JOIN]))
    assert np.array_equal(out[106:107], crossfade(sounds[2][JOIN : JOIN + 1], sounds[3][JOIN - 1 : JOIN]))


def test_a_join_replaces_those_planned_from_its_frame_on() -> None:
    voice, kept = Voice(1, JOIN), noise(3, 400)
    voice.join(50, endless(noise(1, 400), 50))
    voice.join(100, endless(noise(2, 400), 100))
    voice.join(50, endless(kept, 50))
    assert np.array_equal(rendered(voice, 300)[50:], kept[JOIN : JOIN + 250])


def test_joins_that_are_dropped_do_not_happen() -> None:
    voice, kept = Voice(1, JOIN), noise(3, 400)
    voice.join(0, endless(kept, 0, 0))
    voice.join(100, None)
    voice.join(200, None)
    voice.drop_from(100)
    assert np.array_equal(rendered(voice, 300), kept[:300])


@pytest.mark.parametrize("at", [92, 95, 99, 100])
def test_a_join_replaced_in_the_middle_of_its_crossfade_gives_way_to_the_new_one(at: int) -> None:
    voice, now, new = Voice(1, JOIN), noise(3, 400), noise(4, 400)
    voice.join(0, endless(now, 0, 0))
    voice.join(100, endless(np.full((400, 1), 1e6, np.float32), 100))
    rendered(voice, 90)
    voice.join(at, endless(new, at))
    out = rendered(voice, 300, start=90)
    assert np.abs(out).max() < 1, "nothing is left of what was replaced"
    assert np.array_equal(out[at - 90 :], new[JOIN : JOIN + 300 - at])


def test_a_join_dropped_in_the_middle_of_its_crossfade_leaves_nothing_for_the_next() -> None:
    voice, now, new = Voice(1, JOIN), noise(3, 400), noise(4, 400)
    voice.join(0, endless(now, 0, 0))
    voice.join(100, endless(noise(5, 400), 100))
    rendered(voice, 90)
    voice.drop_from(100)
    voice.join(150, endless(new, 150))
    out = rendered(voice, 300, start=90)
    assert np.array_equal(out[: 150 - JOIN - 90], now[90 : 150 - JOIN])
    assert np.array_equal(out[60:], new[JOIN : JOIN + 150])


def test_a_join_in_the_past_counts_at_once() -> None:
    voice, sound = Voice(1, JOIN), noise(3, 400)
    rendered(voice, 90)
    voice.join(60, endless(sound, 60))
    assert np.array_equal(rendered(voice, 200, start=90), sound[JOIN + 30 : JOIN + 140])


def test_material_is_silent_outside() -> None:
    audio = noise(1, 20)
    out = np.full((60, 1), 9, np.float32)
    Material(audio, 100, 115).read_into(80, out)
    assert np.array_equal(out[20:35], audio[:15])
    assert not out[:20].any()
    assert not out[35:].any()
    for start in (0, 40, 115, 500):
        Material(audio, 100, 115).read_into(start, out)
        assert not out.any()


LEAD_IN = 4


def clip(beats: list[int], frames: int) -> Clip:
    """Every frame says which beat of the clip it belongs to: 10 in the first, 20 in the second..."""
    audio = np.ones((LEAD_IN + frames, 1), np.float32)
    for number, beat in enumerate(beats):
        audio[LEAD_IN + beat :] = 10 * (number + 1)
    return Clip(audio, LEAD_IN, Origin("test"))


def heard(placed: list[tuple[int, Material]], start: int, frames: int) -> list[int]:
    """Play the placed pieces without a crossfade; return the level at each frame of the span."""
    out = np.zeros((frames, 1), np.float32)
    for index, (at, material) in enumerate(placed):
        end = placed[index + 1][0] if index + 1 < len(placed) else start + frames
        material.read_into(at, out[at - start : end - start])
    return [int(level) for level in out[:, 0]]


def test_a_clip_made_for_these_beats_is_one_piece() -> None:
    [(at, material)] = place_clip(clip([0, 10, 20], 30), [0, 10, 20], 30, 1000, (0, 10, 20), 30)
    assert at == 1000
    assert (material.zero, material.end) == (1000 - LEAD_IN, 1030)


CASES: dict[str, tuple[Any, ...]] = {
    # made for beats, of frames -> goes to beats, of frames: what is heard as (level, frames)
    "shorter beats are cut": ([0, 10, 20], 30, [0, 8, 16], 24, [(10, 8), (20, 8), (30, 8)]),
    "longer beats end in silence": (
        [0, 10, 20], 30, [0, 12, 24], 36, [(10, 10), (0, 2), (20, 10), (0, 2), (30, 10), (0, 2)]
    ),
    "more beats start again": ([0, 10], 20, [0, 10, 20, 30, 40], 50, [(10, 10), (20, 10)] * 2 + [(10, 10)]),
    "fewer beats": ([0, 10, 20, 30], 40, [0, 10, 20], 30, [(10, 10), (20, 10), (30, 10)]),
    "one long beat": ([0, 10], 20, [0], 40, [(10, 10), (0, 30)]),
    "an odd last beat is cut": ([0, 10, 20, 30], 40, [0, 10, 20, 30], 35, [(10, 10), (20, 10), (30, 10), (40, 5)]),
    "an odd last beat of its own": (
        [0, 10, 20, 30], 35, [0, 10, 20, 30], 40, [(10, 10), (20, 10), (30, 10), (40, 5), (0, 5)]
    ),
    "a ramp": ([0, 10, 20], 30, [0, 11, 20], 27, [(10, 10), (0, 1), (20, 9), (30, 7)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_clip_is_laid_beat_by_beat_on_other_beats(case: str) -> None:
    old, old_frames, beats, frames, expected = CASES[case]
    placed = place_clip(clip(old, old_frames), old, old_frames, 1000, beats, frames)
    assert [at for at, _ in placed] == [1000 + beat for beat in beats]
    assert heard(placed, 1000, frames) == [level for level, count in expected for _ in range(count)]


def test_before_each_beat_lies_what_precedes_it_in_the_clip() -> None:
    """The crossfade into a beat is fed from the clip's own past: the lead-in, then the beat before."""
    placed = place_clip(clip([0, 10, 20], 30), [0, 10, 20], 30, 1000, [0, 12, 24], 36)
    out = np.empty((LEAD_IN, 1), np.float32)
    for (at, material), level in zip(placed, [1, 10, 20], strict=True):
        material.read_into(at - LEAD_IN, out)
        assert (out == level).all()
