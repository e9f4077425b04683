"""Replaying a take that somebody else made: what makes no sense is one sentence, never another error."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import tones

from bridge.offline import OFFLINE_BLOCKSIZE, read_take, render, replay
from bridge.recorder import TakeReader
from bridge.session import Session
from realtime.agents.echo import EchoAgent
from realtime.protocols import Clip, SpanRequest

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


@pytest.mark.parametrize("pressed", [1, 2])
def test_an_interrupted_render_ends_in_one_frame_and_replays(tmp_path: Path, pressed: int) -> None:
    """Ctrl-C comes in the middle of a block; pressed again, it does not wait for the block's end."""
    soundfile.write(tmp_path / "player.wav", tones(8 * RATE, RATE, [220, 330]), RATE)
    session, made = Session.parse(ECHO), 0

    class Stopping(EchoAgent):
        def play(self, request: SpanRequest) -> Clip | None:
            nonlocal made
            made += 1
            if made == 5:
                for _ in range(pressed):
                    signal.raise_signal(signal.SIGINT)
            return super().play(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("realtime.agents.echo.EchoAgent", Stopping)
        stopped = render(session, tmp_path / "player.wav", tmp_path / "take")
    assert stopped.interrupted
    assert 0 < stopped.frames < 8 * RATE
    take = TakeReader(tmp_path / "take")
    assert take.pads == []
    assert stopped.frames % OFFLINE_BLOCKSIZE == 0
    player = soundfile.read(tmp_path / "player.wav", dtype="float32", always_2d=True)[0]
    assert np.array_equal(np.concatenate(list(take.input())), player[: take.frames])
    for name in ("input.wav", "mix.wav", "stems/echo.wav"):
        assert soundfile.info(tmp_path / "take" / name).frames == stopped.frames
    again = replay(tmp_path / "take", tmp_path / "again")
    assert (again.stems, again.notes) == ({"echo": "identical"}, ())


def test_a_log_that_is_cut_is_said_to_be_so(take: Path, tmp_path: Path) -> None:
    def cut(lines: list[dict[str, Any]]) -> None:
        del lines[next(i for i, line in enumerate(lines) if line["type"] == "reply") :]

    done = replay(edited(take, tmp_path / "edited", cut), tmp_path / "again")
    assert done.stems == {"echo": "different"}
    assert re.fullmatch(
        r"echo is different from frame \d+ \(\d\.\d s\) on; were lines taken out of the log\?", done.notes[0]
    )
    assert re.search(r"edited/take.jsonl stops after \d+ lines, at frame \d+ \(\d\.\d s\) of 32000", done.notes[1])


def test_a_stem_that_was_changed_since_is_not_called_identical(take: Path, tmp_path: Path) -> None:
    folder = edited(take, tmp_path / "edited", lambda lines: None)
    sound = soundfile.read(folder / "stems" / "echo.wav", dtype="float32", always_2d=True)[0]
    sound[RATE] += 0.5
    soundfile.write(folder / "stems" / "echo.wav", sound, RATE, subtype="FLOAT")
    done = replay(folder, tmp_path / "again")
    assert done.stems == {"echo": "changed"}
    assert done.notes == (f"{folder}/stems/echo.wav was changed since it was recorded",)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda lines: lines[1].update(tempo="1000000000"), "the tempo of bar 1: its tempo is 1000000000.0; 20 to"),
        (engine(lambda e: e["tempo_map"]["timelines"][0].update(tempo="1000000000")), "its tempo is Fraction(10000"),
        (lambda lines: lines[0].update(samplerate=16000000), "found 16000 Hz"),
    ],
)
def test_a_take_that_nobody_can_have_played_is_not_read(
    take: Path, tmp_path: Path, edit: Callable[[list[dict[str, Any]]], object], words: str
) -> None:
    folder = edited(take, tmp_path / "edited", edit)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refused:
        read_take(folder)
    assert words in str(refused.value)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("{ taboo = 1 }", "agents.echo.lighter[2]: agent 'echo': the kind echo takes no 'taboo'"),
        ('{ model = "onste" }', "agents.echo.lighter[2].model: there is no folder"),
    ],
)
def test_a_lighter_way_that_cannot_be_used_is_refused(take: Path, tmp_path: Path, way: str, words: str) -> None:
    session = Session.parse(f'{ECHO}lighter = [{{ model = "" }}, {way}]\n')
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refused:
        render(session, take / "input.wav", tmp_path / "take")
    assert words in str(refused.value)
    assert "lighter[2]" in str(refused.value)
    assert not (tmp_path / "take").exists()
