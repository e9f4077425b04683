"""The benchmark's own metrics: what is planted is found, what is clean stays clean."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realtime import soundfiles
from realtime.clock import Meter, TempoMap

TOOLS = Path(__file__).resolve().parent.parent / "tools"
PERIOD_NS = 128 * 10**9 // 48000


@pytest.fixture(scope="module")
def core() -> Any:
    """Return the suite ``core``, imported as its runner imports it."""
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("bench_core")
    finally:
        sys.path.remove(str(TOOLS))


def test_a_click_one_frame_off_is_found_and_none_is_found_on_the_grid(core: Any) -> None:
    beats = core.beat_frames(TempoMap.steady(44100, "133.7", Meter(7, 8)), 400_000)
    assert len(beats) == 23
    assert core.grid_error(np.asarray(beats), beats) == 0
    moved = np.asarray(beats)
    moved[7] += 1
    assert core.grid_error(moved, beats) == 1
    assert core.grid_error(np.asarray([*beats, beats[3] + 4000]), beats) >= 4000, "a click too many"
    assert core.grid_error(np.delete(np.asarray(beats), 5), beats) > 1000, "one too few"
    assert core.grid_error(np.asarray([]), beats) > 10**6


def table(late: dict[int, int], empty: dict[int, int]) -> Any:
    """Return a control's table of a minute: lateness in ns by period, and where an empty ring was counted."""
    rows = np.zeros((22_500, 7), np.int64)
    rows[:, 0] = np.arange(len(rows)) * PERIOD_NS
    for at, lateness in late.items():
        rows[at, 1] = lateness
    for at, count in empty.items():
        rows[at:, 2] += count
    return rows


def test_an_empty_ring_is_excused_only_by_a_control_that_was_late_while_it_ran_down(core: Any) -> None:
    lead = 1024
    assert core.judge(table({}, {}), lead) == (0, 0, 0.0)
    events, ours, _ = core.judge(table({}, {5000: 1}), lead)
    assert (events, ours) == (1, 1)
    events, ours, late = core.judge(table({4998: 3 * PERIOD_NS}, {5000: 1}), lead)
    assert (events, ours) == (1, 0)
    assert late == pytest.approx(1 / 22_500)
    for far in (4000, 5100):
        assert core.judge(table({far: 30 * PERIOD_NS}, {5000: 1}), lead)[:2] == (1, 1), "late, but not then"
    assert core.judge(table({4998: PERIOD_NS // 2}, {5000: 1}), lead)[:2] == (1, 1), "not late enough"


def test_a_click_that_came_back_at_another_distance_is_found(core: Any, tmp_path: Path) -> None:
    def takes(name: str, ways: list[int]) -> Path:
        sent, came = np.zeros((2, 400_000, 1), np.float32)
        for index, way in enumerate(ways):
            sent[20_000 * (index + 1)] = came[20_000 * (index + 1) + way] = 0.9
        (tmp_path / name / "stems").mkdir(parents=True)
        soundfiles.write(tmp_path / name / "stems" / "second.wav", sent, 48000, "FLOAT")
        soundfiles.write(tmp_path / name / "input.wav", came, 48000, "FLOAT")
        return tmp_path / name

    assert core.looped_error(takes("same", [900] * 15)) == (0, 15)
    assert core.looped_error(takes("other", [900] * 10 + [901] + [900] * 4)) == (1, 15)


def test_a_stem_moved_by_one_frame_is_told_from_one_in_its_place(core: Any, tmp_path: Path) -> None:
    from bridge.offline import render
    from bridge.session import Session
    from realtime.corpus import build

    chance = np.random.default_rng(1)
    noise = chance.normal(0, 0.1, (4 * 44100, 1)).astype(np.float32)
    soundfiles.write(tmp_path / "noise.wav", noise, 44100, "FLOAT")
    build([tmp_path / "noise.wav"], tmp_path / "corpus", bpm=120, labels=4)
    session = Session.parse(core.session_text(tmp_path / "corpus", 44100, "120", "4/4"))
    take = render(session, tmp_path / "noise.wav", tmp_path / "take").folder
    wrong, units = core.units_elsewhere(take, 44100)
    assert (wrong, units > 4) == (0, True)
    assert (core.wrong_lengths(take), core.silent_bars(take)) == (0, 0)

    stem, _ = soundfiles.read(take / "stems" / "click.wav")
    soundfiles.write(take / "stems" / "click.wav", np.roll(stem, 1, axis=0), 44100, "FLOAT")
    assert core.units_elsewhere(take, 44100) == (units, units)
    soundfiles.write(take / "stems" / "click.wav", stem[:-1] * 0, 44100, "FLOAT")
    assert core.wrong_lengths(take) == 1


def test_a_suite_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / "bench.py"), "cores"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no suite 'cores'; there are core" in done.stderr


def test_a_row_travels_as_json(core: Any) -> None:
    row = core.row("name", np.int64(3), "frames", "0", np.bool_(False))
    assert json.loads(json.dumps([row.value, row.ok])) == [3.0, False]
