"""Levels as anyone reads them from the rings: against the sums as they are written in books, and what is lost."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import NoiseAgent, Rig

from realtime import meters as metering
from realtime.buffers import Arena, ArenaHandle, AudioRing, StemRings, ring_layout, stem_columns, stems_layout
from realtime.clock import TempoMap
from realtime.engine import Memory
from realtime.meters import Level, Levels, Meters
from realtime.mixer import Mixer, Monitor, Strip
from realtime.protocols import Block, StreamSpec

SAMPLERATE = 8000
SHORTEST = 320  # 40 ms
MAP = TempoMap.steady(SAMPLERATE, 120)
CEILING = 10 ** (-0.3 / 20)


class Sound:
    """Rings, and an engine that writes them as it is told."""

    def __init__(
        self, widths: Mapping[str, int], inputs: int = 1, outputs: int = 2, frames: int = 10 * SAMPLERATE
    ) -> None:
        self.widths = dict(widths)
        self.memory = Memory(
            AudioRing.private(frames, inputs), StemRings.private(frames, widths), AudioRing.private(frames, outputs)
        )

    def play(self, stems: Sequence[Block], heard: Block | None, mix: Block) -> None:
        """Write the next frames of everything; without ``heard`` nothing is heard yet."""
        memory, band = self.memory, self.memory.band
        if heard is not None:
            memory.inputs.write(memory.inputs.written, heard)
        start, end = band.written, band.written + len(mix)
        band.begin(end)
        for first, stem in zip(stem_columns(list(self.widths.values())).first, stems, strict=True):
            band.sound[np.arange(start, end) % band.capacity, first : first + stem.shape[1]] = stem
        band.finish(end)
        memory.mix.write(start, mix)

    def play_level(self, value: float, frames: int) -> None:
        """Write as many frames of one value everywhere."""
        inputs, outputs = self.memory.inputs.channels, self.memory.mix.channels
        stems = [level(value, frames, width) for width in self.widths.values()]
        self.play(stems, level(value, frames, inputs), level(value, frames, outputs))


def level(value: float, frames: int, channels: int = 1) -> Block:
    return np.full((frames, channels), value, np.float32)


def noise(frames: int, channels: int, seed: int, loudness: float = 0.3) -> Block:
    return (loudness * np.random.default_rng(seed).standard_normal((frames, channels))).astype(np.float32)


def defined(block: Block) -> Level:
    """Peak and RMS of ``(frames, channels)`` by definition; what is not finite is 0."""
    sound = np.where(np.isfinite(block), block, 0).astype(np.float64)
    return Level(float(np.abs(sound).max()), math.sqrt(float(np.mean(sound**2))))


def everything(levels: Levels) -> list[tuple[float, float]]:
    return [(row.peak, row.rms) for row in [*levels.stems.values(), levels.input, *levels.outputs]]


def same(levels: Levels, expected: Sequence[Level]) -> None:
    """Check that all peaks are the same to the bit, and RMS within float32's rounding."""
    found = everything(levels)
    assert [peak for peak, _ in found] == [one.peak for one in expected]
    np.testing.assert_allclose([rms for _, rms in found], [one.rms for one in expected], rtol=3e-7)


# -- what they say


def test_levels_are_those_since_the_last_look() -> None:
    sound = Sound({"a": 1, "b": 2})
    meters = Meters(sound.memory, SAMPLERATE)
    spec = StreamSpec(SAMPLERATE)
    mixer = Mixer(spec, [Strip("a", 1, gain_db=-20), Strip("b", 2, mute=True)], monitor=Monitor())
    sine = (0.5 * np.sin(2 * np.pi * np.arange(8000) / 80)).astype(np.float32)[:, np.newaxis]
    both = np.column_stack([level(0.25, 8000), level(-0.75, 8000)])
    out = np.zeros((8000, 2), np.float32)
    mixer.mix(0, 8000, np.hstack([both, sine, level(0, 8000)]), level(0, 8000), MAP, out)
    sound.play([sine, both], level(0, 8000), out)
    levels = meters.read()
    assert list(levels.stems) == ["a", "b"]
    peak = 0.05 * math.sqrt(0.5)
    expected: list[tuple[float, float]] = [
        (0.5, 0.5 * math.sqrt(0.5)),  # before the fader
        (0.75, math.sqrt((0.25**2 + 0.75**2) / 2)),  # though it is muted
        (0, 0),
        (peak, peak * math.sqrt(0.5)),
        (peak, peak * math.sqrt(0.5)),
    ]
    np.testing.assert_allclose(everything(levels), expected, rtol=1e-5)
    sound.play_level(0, SHORTEST)
    assert not any(peak or rms for peak, rms in everything(meters.read()))


def test_outputs_are_metered_after_the_limiter_and_each_for_itself() -> None:
    sound = Sound({"a": 1}, outputs=3)
    meters = Meters(sound.memory, SAMPLERATE)
    mixer = Mixer(StreamSpec(SAMPLERATE, outputs=3), [Strip("a", 1, outputs=(2,))])
    stem, out = level(4, 1000), np.zeros((1000, 3), np.float32)
    mixer.mix(0, 1000, np.hstack([stem, level(0, 1000)]), None, MAP, out)
    sound.play([stem], None, out)
    levels = meters.read()
    assert levels.stems == {"a": Level(4, 4)}
    assert levels.outputs[:2] == (Level(), Level())
    np.testing.assert_allclose((levels.outputs[2].peak, levels.outputs[2].rms), CEILING, rtol=1e-6)


def test_what_the_engine_plays_is_what_is_metered() -> None:
    rig = Rig({"a": NoiseAgent(), "b": NoiseAgent()}, monitor=Monitor())
    rate, heard = rig.spec.samplerate, noise(rig.spec.samplerate * 4, 1, 5, 0.1)
    meters = Meters(rig.memory, rate)
    rig.run(rate * 3, heard)
    before = rig.engine.mixed
    meters.read()
    mix = rig.run(rate * 3 + rate // 2, heard)
    stems = [rig.stem(name)[before:] for name in ("a", "b")]
    assert all(stem.any() for stem in stems)
    parts = (*stems, heard[before : rig.engine.heard], mix[:, :1], mix[:, 1:])
    same(meters.read(), [defined(part) for part in parts])


@given(
    widths=st.lists(st.sampled_from([1, 1, 2, 2, 3, 7, 64]), max_size=9),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    steps=st.lists(st.integers(SHORTEST, 3000), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=40)
def test_any_band_any_stretch_and_anywhere_in_the_ring(
    widths: list[int], inputs: int, outputs: int, steps: list[int], seed: int
) -> None:
    sound = Sound({f"s{index}": width for index, width in enumerate(widths)}, inputs, outputs, frames=4000)
    meters = Meters(sound.memory, SAMPLERATE)
    chance = np.random.default_rng(seed)
    for frames in steps:
        signals = [noise(frames, width, seed + width, 10 ** chance.uniform(-5, 1)) for width in [*widths, inputs]]
        mix = noise(frames, outputs, seed)
        for signal in [*signals, mix]:
            bad = chance.integers(0, signal.size, chance.integers(0, 3))
            signal.reshape(-1)[bad] = chance.choice([np.nan, np.inf, -np.inf], len(bad))
        sound.play(signals[:-1], signals[-1], mix)
        same(meters.read(), [defined(signal) for signal in (*signals, *np.split(mix, outputs, axis=1))])


def test_what_is_not_finite_counts_as_0_and_nothing_else_does() -> None:
    sound = Sound({"a": 2, "b": 1})
    meters = Meters(sound.memory, SAMPLERATE)
    broken, fine = level(0.5, 1000, 2), level(-0.25, 1000)
    broken[::2, 0] = np.nan
    broken[10], broken[20, 1] = np.inf, -np.inf
    sound.play([broken, fine], level(np.nan, 1000), level(3e38, 1000, 2))
    same(meters.read(), [defined(part) for part in (broken, fine, level(0, 9), level(3e38, 9), level(3e38, 9))])


def test_a_band_of_nobody_is_metered_too() -> None:
    sound = Sound({})
    meters = Meters(sound.memory, SAMPLERATE)
    assert meters.read() == Levels({}, Level(), (Level(), Level()))
    sound.play_level(0.5, 1000)
    assert meters.read() == Levels({}, Level(0.5, 0.5), (Level(0.5, 0.5), Level(0.5, 0.5)))


# -- when they say it


def test_before_anything_is_played_all_is_silent() -> None:
    sound = Sound({"a": 1})
    sound.play_level(0.9, 5000)  # before anyone looked
    assert not any(peak or rms for peak, rms in everything(Meters(sound.memory, SAMPLERATE).read()))


def test_who_looks_again_at_once_is_told_the_same() -> None:
    sound = Sound({"a": 1})
    meters = Meters(sound.memory, SAMPLERATE)
    sound.play_level(0.5, SHORTEST)
    first = meters.read()
    assert everything(first) == [(0.5, 0.5)] * 4
    sound.play_level(0.9, SHORTEST - 1)
    assert meters.read() == first
    sound.play_level(0.25, 1)
    assert {peak for peak, _ in everything(meters.read())} == {float(np.float32(0.9))}  # it was not passed over


def test_the_input_has_frames_of_its_own() -> None:
    """The engine hears and mixes in turns: what is new of one need not be of the other."""
    sound = Sound({"a": 1})
    meters = Meters(sound.memory, SAMPLERATE)
    sound.play([level(0.5, 1000)], None, level(0.25, 1000, 2))
    levels = meters.read()
    assert (levels.stems["a"].peak, levels.input.peak) == (0.5, 0)
    sound.memory.inputs.write(0, level(0.75, 1000))
    later = meters.read()
    assert later.input == Level(0.75, 0.75)
    assert (later.stems, later.outputs) == (levels.stems, levels.outputs)


def test_after_a_long_time_the_last_second_is_looked_at_and_no_more() -> None:
    sound = Sound({"a": 1, "b": 2})
    meters = Meters(sound.memory, SAMPLERATE)
    sound.play_level(0.9, 5 * SAMPLERATE)
    sound.play_level(0.5, SAMPLERATE)
    assert everything(meters.read()) == [(0.5, 0.5)] * 5


def test_a_look_costs_the_same_however_long_ago_the_last_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    read, sound = AudioRing.read_into, Sound({"a": 1, "b": 2}, outputs=64)
    meters = Meters(sound.memory, SAMPLERATE)
    asked: list[int] = []

    def counted(ring: AudioRing, start: int, out: Block) -> int:
        asked.append(out.size)
        return read(ring, start, out)

    monkeypatch.setattr(AudioRing, "read_into", counted)
    for seconds in (2, 9, 40):
        sound.play_level(0.5, seconds * SAMPLERATE)
        meters.read()
        assert sum(asked) == SAMPLERATE * (1 + 4 + 64)  # the stems are one ring, of an even width
        assert max(asked) <= metering.CHUNK_SAMPLES
        asked.clear()


# -- who reads them


def test_what_the_engine_overwrites_meanwhile_is_left_out() -> None:
    """A look that was held up for as long as the rings are: the beginning of what it reads is of the future."""
    sound = Sound({"a": 1}, frames=SAMPLERATE)
    meters = Meters(sound.memory, SAMPLERATE)
    sound.play_level(0.9, 3000)
    sound.play_level(0.25, 5000)
    memory = sound.memory
    memory.band.begin(8000 + 3500)
    memory.inputs._index[1] = memory.mix._index[1] = 8000 + 3500  # the writer is in the middle of its next block
    assert everything(meters.read()) == [(0.25, 0.25)] * 4  # neither the peak that is gone nor its zeros
    sound.play_level(0.5, 1000)
    memory.band.begin(30_000)
    memory.inputs._index[1] = memory.mix._index[1] = 30_000  # all of it
    assert everything(meters.read()) == [(0, 0)] * 4


def test_another_process_reads_what_this_one_plays() -> None:
    widths = {"a": 1, "b": 2}
    arena = Arena.create({
        **ring_layout("input", SAMPLERATE, 1), **ring_layout("mix", SAMPLERATE, 2),
        **stems_layout("stem", SAMPLERATE, widths),
    })  # fmt: skip
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    reader = spawn.Process(target=look, args=(arena.handle, there))
    try:
        reader.start()
        assert here.poll(30)
        assert here.recv() == "ready"
        sound = Sound(widths)
        sound.memory = Memory(arena.ring("input"), arena.stems("stem"), arena.ring("mix"))
        signals = [noise(2000, width, width) for width in (1, 2, 3, 4)]
        sound.play(signals[:2], signals[2][:, :1], signals[3][:, :2])
        here.send("look")
        assert here.poll(30)
        parts = (*signals[:2], signals[2][:, :1], signals[3][:, :1], signals[3][:, 1:2])
        same(here.recv(), [defined(part) for part in parts])
    finally:
        reader.join(10)
        if reader.is_alive():
            reader.kill()
        arena.close()
        arena.unlink()


def look(handle: ArenaHandle, pipe: Any) -> None:
    """Be the other process."""
    arena = Arena.attach(handle)
    meters = Meters(Memory(arena.ring("input"), arena.stems("stem"), arena.ring("mix")), SAMPLERATE)
    pipe.send("ready")
    pipe.recv()
    pipe.send(meters.read())


def test_of_two_threads_one_waits_for_the_other_and_both_are_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Sound({"a": 1})
    meters = Meters(sound.memory, SAMPLERATE)
    sound.play_level(0.5, 1000)
    read, inside, go = AudioRing.read_into, threading.Event(), threading.Event()
    told: list[Levels] = []

    def held_up(ring: AudioRing, start: int, out: Block) -> int:
        inside.set()
        assert go.wait(30)
        return read(ring, start, out)

    monkeypatch.setattr(AudioRing, "read_into", held_up)
    threads = [threading.Thread(target=lambda: told.append(meters.read())) for _ in range(2)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    threads[1].join(0.1)  # it would be back by now, with what was before, if it did not wait
    go.set()
    for thread in threads:
        thread.join(30)
    assert [everything(levels) for levels in told] == [[(0.5, 0.5)] * 4] * 2
