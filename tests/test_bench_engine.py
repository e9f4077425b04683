"""The benchmark of the engine: its stand-ins answer as workers do, and its measure of growth finds what is kept."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realtime.buffers import Arena
from realtime.engine import shared_engine
from realtime.scheduler import LEDGER

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """Return the suite ``engine``, imported as its runner imports it."""
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("bench_engine")
    finally:
        sys.path.remove(str(TOOLS))


def test_every_span_of_the_band_that_is_timed_is_asked_for_and_answered_in_time(bench: Any) -> None:
    config = bench.band(3)
    arena = Arena.create(bench.layout(config))
    try:
        engine = shared_engine(arena, config, [get_context("spawn").Semaphore(0) for _ in config.parts])
        stands = [bench.Stand(arena, part.agent.name, seed) for seed, part in enumerate(config.parts)]
        sound = np.zeros((bench.PERIOD_FRAMES, 1), np.float32)
        for _ in range(4 * bench.BAR_BLOCKS):
            engine.hear(sound)
            out = engine.mix(bench.PERIOD_FRAMES)
            for stand in stands:
                while stand.answer():
                    pass
        assert 0.01 < np.abs(out).max() < 1
        for part in engine.parts:
            figures = dict(zip(LEDGER, part.ledger(), strict=True))
            assert figures["final"] >= 3
            assert (figures["faults"], figures["late_finals"]) <= (0, 1), "the first bar begins with the session"
    finally:
        arena.close()
        arena.unlink()


def test_what_is_kept_for_ever_counts_as_growth_and_what_comes_and_goes_does_not(bench: Any) -> None:
    chance, bars = np.random.default_rng(1), np.arange(90)
    coming_and_going = 1000 + chance.integers(-20, 20, 90)
    assert abs(bench.growth(coming_and_going)) < 0.1
    assert bench.growth(coming_and_going + 3 * bars) == pytest.approx(3, abs=0.2)
    assert abs(bench.growth(coming_and_going + 500 * (bars == 70))) < 0.1
