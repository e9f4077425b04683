from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.clock import Meter, TempoMap
from realtime.mixer import SEGMENT_FRAMES, Metronome, Mixer, Monitor, Strip
from realtime.protocols import Block, StreamSpec

SAMPLERATE = 8000
RAMP = 160  # 20 ms
MAP = TempoMap.steady(SAMPLERATE, 400, Meter(3, 8), downbeat=1900)  # a click every 600 frames, count-in before 1900
ONE = StreamSpec(SAMPLERATE, inputs=1, outputs=1)
TWO = StreamSpec(SAMPLERATE, inputs=1, outputs=2)


def render(
    mixer: Mixer,
    stems: Sequence[Block],
    dry: Block | None = None,
    cuts: Iterable[int] = (),
    tempo_map: TempoMap = MAP,
    start: int = 0,
    outputs: int = 2,
) -> Block:
    """Mix everything, cut after each of ``cuts`` (frames from the start)."""
    cuts = sorted(cuts)
    frames = len(stems[0]) if stems else len(dry) if dry is not None else cuts[-1]
    sound = side_by_side(mixer, stems, frames)
    out = np.full((frames, outputs), np.nan, np.float32)
    at = 0
    for cut in [*cuts, frames]:
        block = slice(at, cut)
        mixer.mix(start + at, cut - at, sound[block], None if dry is None else dry[block], tempo_map, out[block])
        at = cut
    return out


def side_by_side(mixer: Mixer, stems: Sequence[Block], frames: int) -> Block:
    """Lay stems into one block as the engine's ring does."""
    width = sum(stem.shape[1] for stem in stems)
    sound = np.zeros((frames, max(mixer.columns.width, width)), np.float32)
    for stem, first in zip(stems, mixer.columns.first, strict=False):
        sound[:, first : first + stem.shape[1]] = stem
    return sound if width <= mixer.columns.width else sound[:, :width]


def noise(frames: int, channels: int, seed: int, level: float = 0.3) -> Block:
    return (level * np.random.default_rng(seed).standard_normal((frames, channels))).astype(np.float32)


def level(value: float, frames: int = 1000, channels: int = 1) -> Block:
    return np.full((frames, channels), value, np.float32)


# -- the same frames, the same bits, however they are divided

FRAMES = 9000
LAYOUT = (
    Strip("keys", 1, pan=-0.4, outputs=(0, 1)),
    Strip("drums", 2, gain_db=6.0, pan=0.2, outputs=(0, 1)),
    Strip("strings", 3, outputs=(1, 2, 3)),
    Strip("choir", 2, outputs=(3, 0)),
    Strip("bass", 2, outputs=(2,)),
    Strip("horn", 1, outputs=(1, 4)),
)
SPEC = StreamSpec(SAMPLERATE, inputs=3, outputs=5)
STEMS = [noise(FRAMES, strip.channels, seed) for seed, strip in enumerate(LAYOUT)]
STEMS[1][700:705] = np.nan
STEMS[1][1024, 1] = np.inf
STEMS[3][6000:] = 0
DRY = noise(FRAMES, 3, 99)
for _stem in (*STEMS, DRY):
    _stem[3000:6000] *= 0.1  # time for the limiter to let go


def everything(changes: Sequence[tuple[str, str, object, int]] = ()) -> Mixer:
    mixer = Mixer(
        SPEC,
        LAYOUT,
        Metronome(on=True, gain_db=-3, outputs=(4,)),
        Monitor(inputs=(2, 0), outputs=(0, 1)),
    )
    for setter, name, value, at_frame in changes:
        getattr(mixer, f"set_{setter}")(name, value, at_frame)
    return mixer


CHANGES: list[tuple[str, str, object, int]] = [
    ("gain", "keys", -6.0, 300),
    ("gain", "keys", 3.0, 381),  # in the middle of that ramp
    ("pan", "drums", -1.0, 512),
    ("mute", "monitor", True, 1023),
    ("solo", "strings", True, 2000),
    ("solo", "bass", True, 2100),
    ("solo", "strings", False, 4500),
    ("gain", "metronome", 0.0, 4500),
    ("solo", "bass", False, 5000),
    ("gain", "horn", -math.inf, 8700),
]
WHOLE = render(everything(CHANGES), STEMS, DRY, outputs=5)


def test_scene_exercises_the_limiter_and_the_guard() -> None:
    mixer = everything(CHANGES)
    render(mixer, STEMS, DRY, outputs=5)
    assert 100 < mixer.limited_frames < FRAMES / 2
    assert dict(zip(mixer.names, mixer.nan_frames, strict=True))["drums"] == 6
    assert np.ptp(WHOLE, axis=0).min() > 0.5


@pytest.mark.parametrize("blocksize", [1, 64, 65, 300, 512, 8192])
def test_block_size_does_not_change_a_bit(blocksize: int) -> None:
    mixer = everything(CHANGES)
    out = render(mixer, STEMS, DRY, range(blocksize, FRAMES, blocksize), outputs=5)
    assert out.tobytes() == WHOLE.tobytes()
    whole = everything(CHANGES)
    render(whole, STEMS, DRY, outputs=5)
    assert mixer.limited_frames == whole.limited_frames
    np.testing.assert_array_equal(mixer.nan_frames, whole.nan_frames)


change = st.one_of(
    st.tuples(st.just("gain"), st.sampled_from(everything().names), st.floats(-30, 6), st.integers(0, 4000)),
    st.tuples(st.just("pan"), st.sampled_from(everything().names), st.floats(-1, 1), st.integers(0, 4000)),
    st.tuples(st.just("mute"), st.sampled_from(everything().names), st.booleans(), st.integers(0, 4000)),
    st.tuples(st.just("solo"), st.sampled_from(everything().names), st.booleans(), st.integers(0, 4000)),
)


@settings(deadline=None, max_examples=60)
@given(
    cuts=st.sets(st.one_of(st.integers(1, 3999), st.integers(1, 7).map(lambda n: n * SEGMENT_FRAMES)), max_size=40),
    changes=st.lists(change, max_size=12),
    start=st.integers(-5000, 5000),
)
def test_any_division_gives_the_same_bits(
    cuts: set[int], changes: list[tuple[str, str, object, int]], start: int
) -> None:
    moved = [(setter, name, value, at_frame + start) for setter, name, value, at_frame in changes]
    stems, dry = [stem[:4000] for stem in STEMS], DRY[:4000]
    whole = render(everything(moved), stems, dry, start=start, outputs=5)
    divided = render(everything(moved), stems, dry, cuts, start=start, outputs=5)
    assert divided.tobytes() == whole.tobytes()


def test_changes_may_be_announced_late() -> None:
    """A setter called between two blocks does the same as one called at the start."""
    early = Mixer(ONE, [Strip("a", 1, outputs=(0,))])
    early.set_gain("a", -6, 500)
    late = Mixer(ONE, [Strip("a", 1, outputs=(0,))])
    out = np.zeros((1000, 1), np.float32)
    stem = noise(1000, 1, 1, 0.1)
    sound = side_by_side(late, [stem], 1000)
    late.mix(0, 450, sound[:450], None, MAP, out[:450])
    late.set_gain("a", -6, 500)
    late.mix(450, 550, sound[450:], None, MAP, out[450:])
    assert out.tobytes() == render(early, [stem], outputs=1).tobytes()


def test_after_a_jump_all_is_as_at_the_start() -> None:
    """What the limiter, the delay and the clicks held belongs to the place that was left."""
    used = everything()
    render(used, STEMS, DRY, outputs=5)
    for start in (-700, 8 * SEGMENT_FRAMES + 450):
        jumped = render(used, STEMS, DRY, start=start, outputs=5)
        assert jumped.tobytes() == render(everything(), STEMS, DRY, start=start, outputs=5).tobytes()


def test_a_change_for_the_past_begins_at_once() -> None:
    mixer = Mixer(ONE, [Strip("a", 1, outputs=(0,))])
    render(mixer, [level(0.5)], outputs=1)
    mixer.set_mute("a", True, 10)
    out = render(mixer, [level(0.5)], start=1000, outputs=1)
    assert out[0, 0] == 0.5
    assert out[RAMP, 0] == 0
    assert out[RAMP - 1, 0] > 0


# -- routing, pan, mute, solo


@given(pan=st.floats(-1, 1))
def test_mono_is_panned_with_equal_power(pan: float) -> None:
    left, right = render(Mixer(TWO, [Strip("a", 1, pan=pan)]), [level(0.5, 4)])[0] / 0.5
    assert left**2 + right**2 == pytest.approx(1, abs=1e-6)
    assert (left < right) == (pan > 1e-9) or abs(pan) < 1e-6


@pytest.mark.parametrize(
    ("channels", "pan", "expected"),
    [
        (1, -1, (1, 0)),
        (1, 0, (math.sqrt(0.5), math.sqrt(0.5))),
        (1, 1, (0, 1)),
        (2, -1, (1, 0)),
        (2, 0, (1, 1)),
        (2, 0.5, (math.sqrt(0.5), 1)),
        (2, 1, (0, 1)),
    ],
)
def test_pan_and_balance(channels: int, pan: float, expected: tuple[float, float]) -> None:
    out = render(Mixer(TWO, [Strip("a", channels, pan=pan)]), [level(0.25, 8, channels)])
    np.testing.assert_allclose(out[0], np.array(expected) * 0.25, rtol=1e-7)
    assert all((factor == 0) == (sample == 0) for factor, sample in zip(expected, out[0], strict=True))


@pytest.mark.parametrize(
    ("channels", "outputs", "expected"),
    [
        (1, (3,), [0, 0, 0, 1, 0, 0, 0]),
        (2, (5,), [0, 0, 0, 0, 0, 1.5, 0]),  # the mean of 1 and 2
        (4, (6,), [0, 0, 0, 0, 0, 0, 2.5]),
        (2, (1, 0), [2, 1, 0, 0, 0, 0, 0]),
        (2, (1, 2), [0, 1, 2, 0, 0, 0, 0]),
        (3, (6, 0, 1), [2, 3, 0, 0, 0, 0, 1]),
        (7, (0, 1, 2, 3, 4, 5, 6), [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_channels_go_where_they_are_sent(channels: int, outputs: tuple[int, ...], expected: list[float]) -> None:
    stem = np.tile(np.arange(1, channels + 1, dtype=np.float32) * np.float32(0.1), (20, 1))
    mixer = Mixer(StreamSpec(SAMPLERATE, outputs=7), [Strip("a", channels, outputs=outputs)])
    out = render(mixer, [stem], outputs=7)
    np.testing.assert_allclose(out, np.tile(np.array(expected) * 0.1, (20, 1)), rtol=1e-6)


def test_many_strips_are_summed() -> None:
    for count in (1, 2, 3, 17, 31):
        strips = [Strip(f"s{index}", 1, outputs=(index % 2,)) for index in range(count)]
        stems = [noise(100, 1, index, 0.01) for index in range(count)]
        out = render(Mixer(TWO, strips), stems)
        np.testing.assert_allclose(out[:, :1], np.sum(stems[::2], axis=0), atol=1e-6)
        np.testing.assert_allclose(out[:, 1:], np.sum(stems[1::2], axis=0) if count > 1 else 0, atol=1e-6)


@pytest.mark.parametrize("cuts", [[], [100, 150, 700]])
def test_outputs_that_nothing_goes_to_are_silent(cuts: list[int]) -> None:
    mixer = Mixer(StreamSpec(SAMPLERATE, outputs=5), [Strip("a", 1, outputs=(2,)), Strip("b", 1, outputs=(2, 4))])
    out = render(mixer, [noise(1000, 1, 1), noise(1000, 1, 2)], cuts=cuts, outputs=5)
    assert not out[:, [0, 1, 3]].any()
    assert out[:, [2, 4]].any(axis=1).all()


def test_gain_is_in_db() -> None:
    mixer = Mixer(ONE, [Strip("a", 1, gain_db=-20, outputs=(0,)), Strip("b", 1, gain_db=-math.inf, outputs=(0,))])
    np.testing.assert_allclose(render(mixer, [level(0.5), level(0.5)], outputs=1), 0.05, rtol=1e-6)


def test_zero_db_is_the_stem_itself() -> None:
    stem = noise(1000, 1, 5, 0.1)
    assert render(Mixer(ONE, [Strip("a", 1, outputs=(0,))]), [stem], outputs=1).tobytes() == stem.tobytes()


@pytest.mark.parametrize(
    ("muted", "soloed", "sounding"),
    [
        ("", "", "abc"),
        ("b", "", "ac"),
        ("", "b", "b"),
        ("", "ab", "ab"),
        ("b", "ab", "a"),  # mute beats solo
        ("b", "b", ""),
        ("", "m", "abc"),  # the monitor is no soloist
    ],
)
def test_mute_and_solo(muted: str, soloed: str, sounding: str) -> None:
    strips = [Strip(name, 1, outputs=(index,)) for index, name in enumerate("abc")]
    spec = StreamSpec(SAMPLERATE, inputs=1, outputs=5)
    metronome, monitor = Metronome(on=True, gain_db=0, outputs=(4,)), Monitor(outputs=(3,))
    held = [replace(strip, mute=strip.name in muted, solo=strip.name in soloed) for strip in strips]
    set_later = Mixer(spec, strips, metronome, monitor)
    for name in "abcm":
        full = "monitor" if name == "m" else name
        if name in muted:
            set_later.set_mute(full, True, 0)
        if name in soloed:
            set_later.set_solo(full, True, 0)
    for mixer in (Mixer(spec, held, metronome, monitor), set_later):
        out = render(mixer, [level(0.5, 4000)] * 3, level(0.25, 4000), outputs=5)
        assert "".join(name for name, sample in zip("abc", out[RAMP], strict=False) if sample == 0.5) == sounding
        assert np.count_nonzero(out[RAMP, :3]) == len(sounding)
        assert out[RAMP, 3] == 0.25
        assert out[:, 4].max() > 0.5


# -- ramps


@given(
    first=st.floats(-30, 0),
    second=st.floats(-30, 0),
    third=st.floats(-30, 0),
    at=st.integers(0, 400),
    later=st.integers(0, 300),
)
def test_gain_ramps_are_straight_and_never_step(
    first: float, second: float, third: float, at: int, later: int
) -> None:
    mixer = Mixer(ONE, [Strip("a", 1, gain_db=first, outputs=(0,))])
    mixer.set_gain("a", second, at)
    mixer.set_gain("a", third, at + later)
    out = render(mixer, [level(0.5)], outputs=1)[:, 0]
    a, b, c = (np.float32(10 ** (gain_db / 20)) for gain_db in (first, second, third))
    frames = np.arange(1000)
    expected = a + (b - a) * np.clip((frames - at) / RAMP, 0, 1)
    turn = expected[at + later]
    if b != c:  # the same target again changes nothing
        tail = frames > at + later
        expected[tail] = (turn + (c - turn) * np.clip((frames - at - later) / RAMP, 0, 1))[tail]
    np.testing.assert_allclose(out, expected * 0.5, atol=2e-7)
    assert np.all(out[: at + 1] == a * np.float32(0.5))
    assert np.all(out[at + later + RAMP :] == c * np.float32(0.5))
    assert np.abs(np.diff(out)).max() <= 0.5 * max(abs(a - b), abs(c - turn)) / RAMP + 1e-6


def test_full_pan_and_mute_ramps() -> None:
    mixer = Mixer(TWO, [Strip("a", 1, pan=-1)])
    mixer.set_pan("a", 1, 100)
    mixer.set_mute("a", True, 500)
    out = render(mixer, [level(0.5)])
    assert np.abs(np.diff(out, axis=0)).max() <= 0.5 / RAMP + 1e-7
    assert out[100].tolist() == [0.5, 0]
    assert out[100 + RAMP].tolist() == [0, 0.5]
    assert out[499].tolist() == [0, 0.5]
    assert np.all(out[500 + RAMP :] == 0)


# -- limiter

CEILING = np.float32(10 ** (-0.3 / 20))


@settings(deadline=None)
@given(loudness=st.floats(-1, 30).map(lambda power: 10**power), seed=st.integers(0, 99))
def test_limiter_never_exceeds_the_ceiling(loudness: float, seed: int) -> None:
    out = render(Mixer(TWO, [Strip("a", 2)]), [noise(2000, 2, seed, loudness)])
    assert np.abs(out).max() <= CEILING


def test_limiter_leaves_alone_what_is_not_too_loud() -> None:
    stem = np.clip(noise(3000, 2, 3, 10), -CEILING, CEILING)
    mixer = Mixer(TWO, [Strip("a", 2)])
    assert render(mixer, [stem]).tobytes() == stem.tobytes()
    assert mixer.limited_frames == 0


def recursion(wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The limiter as it is written down: one frame after the other."""
    falling = math.exp(-1 / (0.050 * SAMPLERATE))
    reduction, held = np.zeros(len(wanted)), 0.0
    for frame, value in enumerate(wanted):
        held = max(value, held * falling)
        reduction[frame] = held
    return reduction


def test_limiter_attacks_at_once_and_lets_go_in_50_ms() -> None:
    stem = np.column_stack([level(0.5, 4000), level(-0.25, 4000)])
    stem[[700, 701, 1023, 2900], 0] = (4, -5, 1.5, 2)
    mixer = Mixer(TWO, [Strip("a", 2)])
    out = render(mixer, [stem], cuts=[701, 1000, 1100])
    peaks = np.abs(stem).max(axis=1).astype(np.float64)
    gain = 1 - recursion(1 - np.minimum(1, CEILING / peaks))
    np.testing.assert_allclose(out, stem * gain[:, np.newaxis], atol=1e-6)
    assert mixer.limited_frames == 4
    assert gain[700 + 400] == pytest.approx(1 - (1 - gain[701]) * math.exp(-399 / 400), abs=1e-9)


def test_limiter_lets_go_entirely() -> None:
    stem = level(0.5, 9000)
    stem[100] = 2
    mixer = Mixer(ONE, [Strip("a", 1, outputs=(0,))])
    out = render(mixer, [stem], outputs=1)
    assert out[200, 0] < 0.45
    assert np.all(out[7500:] == 0.5)
    assert not mixer._limiter.wanted(9000, 0.5)  # and costs nothing any more


def test_each_pair_has_its_own_limiter_and_its_channels_one() -> None:
    quiet, loud = noise(3000, 2, 1, 0.1), noise(3000, 2, 2, 3.0)
    loud[:, 1] = loud[:, 0] * np.float32(0.25)
    spec = StreamSpec(SAMPLERATE, outputs=4)
    strips = [Strip("quiet", 2, outputs=(0, 1)), Strip("loud", 2, outputs=(2, 3))]
    out = render(Mixer(spec, strips), [quiet, loud], outputs=4)
    assert out[:, :2].tobytes() == quiet.tobytes()  # the path through the limiter gives the bits of the path around
    np.testing.assert_allclose(out[:, 3], out[:, 2] * 0.25, rtol=1e-5, atol=1e-7)  # the image stays


def test_sums_beyond_float32_stay_finite() -> None:
    strips = [Strip("a", 1, gain_db=20, outputs=(0,)), Strip("b", 1, gain_db=20, outputs=(0,))]
    out = render(Mixer(ONE, strips), [level(3e38), level(-3e38)], outputs=1)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= CEILING


# -- NaN guard


@given(
    bad=st.dictionaries(
        st.tuples(st.integers(0, 999), st.integers(0, 1)), st.sampled_from([math.nan, math.inf, -math.inf])
    ),
    cuts=st.sets(st.integers(1, 999), max_size=5),
)
def test_non_finite_samples_become_zero_and_are_counted(bad: dict[tuple[int, int], float], cuts: set[int]) -> None:
    stem, other = noise(1000, 2, 7, 0.01), noise(1000, 1, 8, 0.01)
    clean = stem.copy()
    for place, value in bad.items():
        stem[place], clean[place] = value, 0
    strips = [Strip("other", 1), Strip("a", 2)]
    mixer = Mixer(TWO, strips)
    out = render(mixer, [other, stem], cuts=cuts)
    assert out.tobytes() == render(Mixer(TWO, strips), [other, clean], cuts=cuts).tobytes()
    assert mixer.nan_frames.tolist() == [0, len({frame for frame, _ in bad})]


def test_guard_covers_the_dry_input_and_mono_stems_on_two_outputs() -> None:
    mixer = Mixer(TWO, [Strip("a", 1)], monitor=Monitor())
    dry = level(0.1, 100)
    dry[5] = np.nan
    stem = level(0.1, 100)
    stem[7:9] = np.inf
    out = render(mixer, [stem], dry)
    assert dict(zip(mixer.names, mixer.nan_frames, strict=True)) == {"a": 2, "monitor": 1}
    assert np.isfinite(out).all()


# -- metronome


def click_frames(out: Block) -> tuple[list[int], list[int]]:
    """Where accented and plain clicks start; nothing else in a click at 0 dB has these levels."""
    return np.flatnonzero(out == 1).tolist(), np.flatnonzero(out == np.float32(0.7)).tolist()


def expected_clicks(tempo_map: TempoMap, bars: range, end: int) -> tuple[list[int], list[int]]:
    accents, beats = [], []
    for bar in bars:
        meter = tempo_map.at_beat(tempo_map.downbeat(bar)).meter
        frames = [
            tempo_map.frame_at(tempo_map.downbeat(bar) + Fraction(4 * index, meter.unit))
            for index in range(meter.count)
        ]
        accents += [frame for frame in frames[:1] if 0 <= frame < end]
        beats += [frame for frame in frames[1:] if 0 <= frame < end]
    return accents, beats


def odd_map(samplerate: int) -> TempoMap:
    """7/8 with a count-in that begins inside a bar, a ramp, 3/4, 5/16, and a tempo that is no round number."""
    tempo_map = TempoMap.steady(samplerate, "93.7", Meter(7, 8), downbeat=samplerate * 3 + 17)
    tempo_map = tempo_map.ramped(tempo_map.downbeat(1), 5, Fraction(171))
    tempo_map = tempo_map.changed(tempo_map.downbeat(3), meter=Meter(3, 4))
    tempo_map = tempo_map.ramped(tempo_map.downbeat(4), 3, Fraction(1, 3) + 80)
    return tempo_map.changed(tempo_map.downbeat(6), meter=Meter(5, 16))


@pytest.mark.parametrize("samplerate", [8000, 11025, 44100])
@pytest.mark.parametrize("blocksize", [127, 1000, 100_000])
def test_clicks_start_on_the_beat_to_the_frame(samplerate: int, blocksize: int) -> None:
    tempo_map, frames = odd_map(samplerate), 15 * samplerate
    mixer = Mixer(StreamSpec(samplerate, outputs=1), [], Metronome(on=True, gain_db=0, outputs=(0,)), ceiling_db=0)
    out = render(mixer, [], None, [*range(blocksize, frames, blocksize), frames], tempo_map, outputs=1)[:, 0]
    accents, beats = click_frames(out)
    assert (accents, beats) == expected_clicks(tempo_map, range(-9, 40), frames)
    assert len(accents) >= 8
    first = min(accents + beats)
    assert np.all(out[:first] == 0)
    assert np.count_nonzero(out) <= len(accents + beats) * round(0.030 * samplerate)  # clicks are short


def metronome_clicks(metronome: Metronome, change: Callable[[Mixer], None] = lambda mixer: None) -> list[int]:
    """Starts of the clicks in 4000 frames of MAP: at 100, 700, 1300 before bar 0, then 1900, 2500, 3100, 3700."""
    mixer = Mixer(ONE, [], replace(metronome, gain_db=0, outputs=(0,)), ceiling_db=0)
    change(mixer)
    accents, beats = click_frames(render(mixer, [], None, [4000], outputs=1)[:, 0])
    return sorted(accents + beats)


def test_count_in_and_switch() -> None:
    count_in, bars = [100, 700, 1300], [1900, 2500, 3100, 3700]
    assert metronome_clicks(Metronome()) == count_in
    assert metronome_clicks(Metronome(on=True)) == count_in + bars
    assert metronome_clicks(Metronome(on=True, count_in=False)) == bars
    assert metronome_clicks(Metronome(count_in=False)) == []
    assert metronome_clicks(Metronome(), lambda mixer: mixer.set_metronome(True, 2500)) == count_in + bars[1:]
    assert metronome_clicks(Metronome(on=True), lambda mixer: mixer.set_metronome(False, 2501)) == count_in + bars[:2]


def test_downbeats_are_accented_only_if_asked() -> None:
    for accent, accents in ((True, [100, 1900, 3700]), (False, [])):
        mixer = Mixer(ONE, [], Metronome(on=True, accent=accent, gain_db=0, outputs=(0,)), ceiling_db=0)
        assert click_frames(render(mixer, [], None, [4000], outputs=1)[:, 0])[0] == accents


def test_metronome_follows_a_new_map() -> None:
    slow = TempoMap.steady(SAMPLERATE, 120, Meter(4, 4))  # a click every 4000 frames
    fast = slow.changed(Fraction(2), Fraction(240))
    mixer = Mixer(ONE, [], Metronome(on=True, gain_db=0, outputs=(0,)), ceiling_db=0)
    out, none = np.zeros((20_000, 1), np.float32), side_by_side(mixer, [], 100)
    for at in range(0, 20_000, 100):
        mixer.mix(at, 100, none, None, slow if at < 4100 else fast, out[at : at + 100])
    accents, beats = click_frames(out[:, 0])
    assert (accents, beats) == ([0, 12_000], [4000, 8000, 10_000, 14_000, 16_000, 18_000])
    np.testing.assert_array_equal(out[4000:4300], out[8000:8300])  # a tail outlives the change of map


# -- dry input


@pytest.mark.parametrize("blocksize", [37, 512, 3000])
def test_dry_input_goes_through_as_it_is(blocksize: int) -> None:
    dry = noise(3000, 3, 4, 0.1)
    spec = StreamSpec(SAMPLERATE, inputs=3, outputs=2)
    mixer = Mixer(spec, [], monitor=Monitor(inputs=(2, 0)))
    out = render(mixer, [], dry, range(blocksize, 3000, blocksize))
    np.testing.assert_array_equal(out, dry[:, [2, 0]])


def test_no_input_is_silence() -> None:
    mixer = Mixer(ONE, [], monitor=Monitor(outputs=(0,)))
    out, none = np.zeros((200, 1), np.float32), side_by_side(mixer, [], 200)
    mixer.mix(0, 200, none, level(0.5, 200), MAP, out)
    assert np.all(out == 0.5)
    mixer.mix(200, 200, none, None, MAP, out)
    assert not out.any()


# -- misuse


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Strip("a", 3), "3 channels to 2 outputs"),
        (lambda: Strip("a", 1, outputs=(0, 1, 2)), "1 channels to 3 outputs"),
        (lambda: Strip("a", 0), "channels=0"),
        (lambda: Strip("a", 1, pan=50), "per cent"),
        (lambda: Strip("a", 1, gain_db=math.nan), "gain_db=nan"),
        (lambda: Strip("a", 1, gain_db=math.inf), "gain_db=inf"),
        (lambda: Strip("a", 1, outputs=()), "outputs=[]"),
        (lambda: Strip("a", 2, outputs=(1, 1)), "each output once"),
        (lambda: Strip("a", 1, outputs=(-1, 0)), "counted from 0"),
        (lambda: Mixer(TWO, [Strip("a", 2, outputs=(1, 2))]), "did you count from 1"),
        (lambda: Mixer(TWO, [Strip("a", 1), Strip("a", 1)]), "two strips are called 'a'"),
        (lambda: Mixer(TWO, [Strip("monitor", 1)], monitor=Monitor()), "two strips are called 'monitor'"),
        (lambda: Mixer(TWO, [], monitor=Monitor(inputs=(1,))), "inputs=[1]"),
        (lambda: Mixer(TWO, [], Metronome(outputs=(2,))), "strip 'metronome': output 2"),
        (lambda: Mixer(TWO, [], ceiling_db=1), "ceiling_db=1"),
        (lambda: Mixer(TWO, [Strip("a", 1)]).set_gain("b", 0, 0), "no strip is called 'b'"),
        (lambda: Mixer(TWO, [Strip("a", 1)]).set_gain("a", 99, 0), "gain_db=99"),
        (lambda: Mixer(TWO, [Strip("a", 1)]).set_pan("a", -2, 0), "pan=-2"),
        (lambda: Mixer(TWO, [Strip("a", 1)]).set_metronome(True, 0), "no metronome"),
        (lambda: render(Mixer(TWO, [Strip("a", 1)]), [level(0, 9, 3)]), "axes"),
        (lambda: render(Mixer(TWO, [], monitor=Monitor()), [], level(0, 9, 2)), "the stream's is (9, 1)"),
    ],
)
def test_misuse_is_refused_with_a_sentence(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        build()
    assert sentence in str(refused.value)


def test_nothing_at_all_is_silence() -> None:
    mixer = Mixer(TWO, [])
    assert not render(mixer, [], None, [700]).any()
