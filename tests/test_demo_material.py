"""The built-in music: the shipped files are what the score says, and the session files agree with both."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from bridge.session import Session
from realtime.clock import Meter, TempoMap

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "bridge" / "demo"
CORPORA: list[dict[str, Any]] = tomllib.loads((DEMO / "corpora.toml").read_text("utf-8"))["corpora"]
NAMES = ("player", "bass", "marimba", "drums")


@pytest.fixture(scope="module")
def score() -> ModuleType:
    """Return tools/make_demo.py, which is a script and no package's module."""
    import sys

    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "tools" / "make_demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_demo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def audio_of(name: str) -> npt.NDArray[np.float32]:
    audio: npt.NDArray[np.float32] = soundfile.read(DEMO / f"{name}.flac", dtype="float32")[0]
    return audio


def part_of(score: ModuleType, name: str) -> Any:
    return next(part for part in score.parts() if part.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_file_is_what_the_score_renders_to(score: ModuleType, name: str) -> None:
    frames = 5 * 48000
    rendered = part_of(score, name).sound(frames)[:, 0]
    half_a_step = 2.0**-score.KEPT_BITS
    assert np.abs(rendered).max() > 0.02
    assert np.abs(rendered - audio_of(name)[:frames]).max() <= half_a_step + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_sound_and_ends_on_a_bar_line(score: ModuleType, name: str) -> None:
    info = soundfile.info(DEMO / f"{name}.flac")
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 48000, 1)
    part = part_of(score, name)
    assert info.frames == part.tempi.bar_frame(part.bars)
    audio = audio_of(name)
    assert 10 ** (-12 / 20) < np.abs(audio).max() < 10 ** (-5 / 20)
    assert abs(audio.mean()) < 2e-4
    assert np.abs(audio[-240:]).max() < 0.01  # nothing is cut off


def test_the_audio_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.glob("*.flac")) <= 4_000_000


def test_the_session_is_the_score_the_player_played(score: ModuleType) -> None:
    session = Session.load(DEMO / "session.toml")
    player = part_of(score, "player")
    tempi = session.tempo_map(48000)
    assert [tempi.bar_frame(k) for k in range(40)] == [player.tempi.bar_frame(k) for k in range(40)]
    assert [entry.split() for entry in session.transport.chart] == score.chords()
    assert len(session.transport.chart) == player.bars
    assert len(session.agents) >= 2


def test_the_player_rests_for_two_bars(score: ModuleType) -> None:
    tempi, audio = part_of(score, "player").tempi, audio_of("player")
    bars = [audio[tempi.bar_frame(k) : tempi.bar_frame(k + 1)] for k in range(30)]
    heard = [float(np.sqrt(np.mean(bar**2))) for bar in bars]
    assert [k for k in range(30) if heard[k] < 0.02 * max(heard)] == [20, 21]


@pytest.mark.parametrize("file", ["session.toml", "live.toml"])
def test_every_corpus_of_a_session_is_described(file: str) -> None:
    session = Session.load(DEMO / file)
    described = {f"corpora/{corpus['name']}" for corpus in CORPORA}
    named = {agent.corpus for agent in session.agents if agent.kind == "corpus"}
    assert len(named) >= 2
    assert named <= described


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: str(corpus["name"]))
def test_a_corpus_lies_on_the_grid_its_facts_say(corpus: dict[str, Any]) -> None:
    """Each bar starts with an attack: far more energy in the 10 ms after its line than before."""
    assert corpus["licence"] == "CC0-1.0"
    for file in corpus["files"]:
        audio = audio_of(Path(file).stem)
        start = round(corpus["downbeat_seconds"] * 48000)
        tempi = TempoMap.steady(48000, corpus["bpm"], Meter.parse(corpus["meter"]), start)
        lines = [tempi.bar_frame(k) for k in range(200) if tempi.bar_frame(k) < len(audio)]
        assert tempi.bar_frame(len(lines)) == len(audio)
        rises = [np.sum(audio[f : f + 480] ** 2) / (np.sum(audio[f - 480 : f] ** 2) + 1e-9) for f in lines[1:]]
        assert np.quantile(rises, 0.1) > 10 ** (6 / 10)
        assert np.abs(audio[:480]).max() > 0.01


def test_one_corpus_keeps_the_performances_tempo_and_one_does_not() -> None:
    bpm = Session.load(DEMO / "session.toml").transport.bpm
    assert {corpus["bpm"] == bpm for corpus in CORPORA} == {True, False}


def test_the_licence_names_every_recording() -> None:
    text = (DEMO / "LICENSE.md").read_text("utf-8")
    assert "CC0-1.0" in text
    assert all(path.name in text for path in DEMO.glob("*.flac"))


def test_a_slip_in_the_score_is_named(score: ModuleType) -> None:
    with pytest.raises(ValueError, match="bar 2 has 15 sixteenths"):
        score.line("D4:16\nD4:8 E4:7", [(2, 0.5, 0.5)])
    with pytest.raises(ValueError, match="'H4' is no note"):
        score.line("H4:16", [(1, 0.5, 0.5)])
    with pytest.raises(ValueError, match="3 of them"):
        list(score.strikes("5.."))
    assert [score.pitch(name) for name in ("C4", "Bb3", "C#4", "A1")] == [60, 58, 61, 33]
