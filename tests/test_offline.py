"""Replaying a take that somebody else made: what makes no sense is one sentence, never another error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from fakes import tones

from bridge.offline import render, replay
from bridge.session import Session

RATE = 16000
ECHO = f'[stream]\nsamplerate = {RATE}\n[transport]\nbpm = 240\n[[agents]]\nname = "echo"\nkind = "echo"\n'


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("take")
    soundfile.write(folder / "player.wav", tones(2 * RATE, RATE, [220, 330]), RATE)
    return render(Session.parse(ECHO), folder / "player.wav", folder / "take").folder


def edited(take: Path, out: Path, edit: Callable[[list[dict[str, Any]]], object]) -> Path:
    """Return a copy of a take whose lines were edited."""
    shutil.copytree(take, out)
    lines = [json.loads(line) for line in (out / "take.jsonl").read_text().splitlines()]
    edit(lines)
    (out / "take.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def engine(change: Callable[[dict[str, Any]], object]) -> Callable[[list[dict[str, Any]]], object]:
    return lambda lines: change(lines[0]["engine"])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (engine(lambda e: e["parts"][0].update(grid_beats="1/1000000000")), "its grid of agent 'echo' in beats is"),
        (
            engine(lambda e: e["parts"][0]["agent"].update(channels=10**9)),
            "its channels of agent 'echo' is 10000000",
        ),
        (engine(lambda e: e["spec"].update(outputs=10**12)), "its outputs is 1000000000000; 1 to 64 are allowed"),
        (engine(lambda e: e["spec"].update(samplerate=0)), "its samplerate is 0"),
        (engine(lambda e: e.update(longest_span_seconds=1e300)), "its longest span in seconds is 1e+300"),
        (engine(lambda e: e["tempo_map"]["timelines"][0].update(tempo="1/1000")), "its tempo is Fraction(1, 1000)"),
        (engine(lambda e: e["tempo_map"].update(timelines=[])), "cannot be replayed"),
        (engine(lambda e: e.update(parts=e["parts"] * 40)), "cannot be replayed"),
        (engine(lambda e: e.update(seed=[])), "cannot be replayed: EngineConfig.seed: found []"),
        (engine(lambda e: e["parts"][0]["agent"].update(kind="corpus")), "cannot be replayed"),
        (engine(lambda e: e["parts"][0]["agent"].update(options={"x": 1})), "cannot be replayed: agent 'echo'"),
        (
            lambda lines: next(line for line in lines if line["type"] == "request").update(context_end=10**9),
            "was asked for bar 1 with what was heard up to frame 1000000000, and the take has 32000",
        ),
        (lambda lines: lines[0].update(samplerate=44100), "found 16000 Hz, 1 channels, expected 44100 Hz"),
        (lambda lines: lines[0].pop("engine"), "its first line has no engine"),
    ],
)
def test_a_take_that_makes_no_sense_is_refused_in_words(
    take: Path, tmp_path: Path, edit: Callable[[list[dict[str, Any]]], object], words: str
) -> None:
    folder = edited(take, tmp_path / "edited", edit)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refused:
        replay(folder, tmp_path / "again")
    assert words in str(refused.value)
    assert str(folder) in str(refused.value)


def test_who_is_at_work_is_told_when_it_is_another(take: Path, tmp_path: Path) -> None:
    told: list[str] = []
    done = replay(take, tmp_path / "again", doing=told.append)
    assert told == [str(take), "agent 'echo'"]
    assert done.stems == {"echo": "identical"}


@pytest.mark.parametrize("kind", ["bridge.recorder:TakeWriter", "antigravity:x", "os:system", "choir"])
def test_a_take_names_no_class_of_its_own(take: Path, tmp_path: Path, kind: str) -> None:
    folder = edited(take, tmp_path / "edited", engine(lambda e: e["parts"][0]["agent"].update(kind=kind)))
    with pytest.raises(ValueError, match=r"is of kind .*there are corpus, echo"):
        replay(folder, tmp_path / "again")


def test_who_played_in_a_lighter_way_is_replayed_in_that_way(take: Path, tmp_path: Path) -> None:
    command = {"do": "lighter", "target": "echo", "name": json.dumps({"nothing": 1})}
    line = {"type": "command", "frame": 0, "command": command}
    folder = edited(take, tmp_path / "edited", lambda lines: lines.insert(3, line))
    with pytest.raises(ValueError, match="takes no 'nothing'"):
        replay(folder, tmp_path / "again")
