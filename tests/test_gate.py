"""The gate: whatever a file does to the child that opens it, the bridge has a sentence and a new child."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import tones

from bridge import app, gate
from bridge.gate import SENTENCE_CHARS, Gate, GateError, Sparing, Wish, _Stops, time_for
from bridge.offline import Rendered
from bridge.recorder import TakeReader
from bridge.session import MODELS, Session

ONSET = str(MODELS / "onset")
RATE = 16000
ECHO = f'[stream]\nsamplerate = {RATE}\n[transport]\nbpm = 240\n[[agents]]\nname = "echo"\nkind = "echo"\n'


@pytest.fixture(scope="module")
def open_gate() -> Iterator[Gate]:
    with Gate() as found:
        yield found


def model(open_gate: Gate, folder: str = ONSET, **options: Any) -> dict[str, Any]:
    return open_gate.ask("model", folder, folder=folder, provider="cpu", **({"seconds": 60.0} | options))


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two minutes of sound: enough for something to happen in."""
    path = tmp_path_factory.mktemp("player") / "player.wav"
    soundfile.write(path, np.tile(tones(RATE, RATE, [220, 330]), (120, 1)), RATE)
    return path


def test_a_model_is_described_by_a_child(open_gate: Gate) -> None:
    told = model(open_gate)
    assert (told["name"], told["samplerate"], told["provider"]) == ("onset", 48000, "cpu")
    child = open_gate.pid
    assert child not in (None, os.getpid())
    model(open_gate)
    assert open_gate.pid == child, "one child opens many"


def test_a_refusal_comes_through_word_for_word(open_gate: Gate, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"\A{tmp_path}/card.toml: no such file; a model is a folder"):
        model(open_gate, str(tmp_path))


def test_what_the_system_refuses_stays_an_error_of_the_system(open_gate: Gate, tmp_path: Path, player: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as refused:
        build(open_gate, player, tmp_path / "file" / "corpus")
    assert str(tmp_path / "file") in str(refused.value.filename)


def build(open_gate: Gate, player: Path, out: Path, **options: Any) -> dict[str, Any]:
    return open_gate.ask("build", out, seconds=None, files=[str(player)], out=str(out), meter="4/4", **options)


def test_a_corpus_is_built_and_described(open_gate: Gate, tmp_path: Path, player: Path) -> None:
    said: list[float] = []
    built = build(open_gate, player, tmp_path / "out", bpm="240", hear=lambda told: said.append(told["share"]))
    assert said[-1] == 1
    found = open_gate.ask("corpus", tmp_path / "out", seconds=60.0, folder=str(tmp_path / "out"), verify=True)
    assert found == built
    assert (found["units"], found["tempo"], found["meter"]) == (480, "240", "4/4")


# --- a child that does not survive ---


def test_a_child_that_dies_is_told_and_replaced(tmp_path: Path, player: Path) -> None:
    with app.gate() as dying:

        def hear(said: dict[str, Any]) -> None:
            if said.get("done"):
                os.kill(dying.pid or 0, signal.SIGKILL)

        session = Session.parse(ECHO).toml()
        with pytest.raises(GateError, match="was ended by signal 9 \\(SIGKILL\\)") as refused:
            dying.ask("render", "a session", seconds=None, hear=hear, session=session, path=None,
                      source=str(player), out=str(tmp_path / "take"), blocksize=1024)  # fmt: skip
        assert not refused.value.late
        assert dying.deaths == 1
        assert model(dying)["name"] == "onset"


def test_a_child_that_died_in_between_is_replaced() -> None:
    with Gate() as dying:
        model(dying)
        before = dying.pid
        os.kill(before or 0, signal.SIGKILL)
        assert model(dying)["name"] == "onset"
        assert dying.pid != before


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process as POSIX can")
def test_a_child_that_hangs_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with Gate() as hanging:
        model(hanging)
        before = hanging.pid
        os.kill(before or 0, signal.SIGSTOP)
        monkeypatch.setattr(gate, "IMPORT_SECONDS", 0.2)
        with pytest.raises(
            GateError, match=rf"{ONSET}: it was not opened within 0.2 s, so it is not used"
        ) as refused:
            model(hanging)
        assert refused.value.late
        monkeypatch.undo()
        assert model(hanging)["name"] == "onset"
        assert hanging.pid != before


def test_a_file_that_takes_too_long_is_given_up(open_gate: Gate) -> None:
    model(open_gate)
    with pytest.raises(GateError, match="it was not opened within 1e-06 s"):
        model(open_gate, seconds=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_a_file_that_takes_all_memory_is_refused(tmp_path: Path) -> None:
    for path in Path(ONSET).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "model.onnx").open("r+b") as file:
        file.truncate((2 << 30) - 2)  # sparse: it takes no room on the disk
    with Gate(memory_bytes=1 << 30) as narrow:
        with pytest.raises(ValueError, match=f"{tmp_path}: there is not enough memory for it"):
            model(narrow, str(tmp_path))
        assert model(narrow)["name"] == "onset"


def test_an_error_that_nobody_foresaw_is_a_sentence(open_gate: Gate) -> None:
    with pytest.raises(GateError, match="a folder: it cannot be used, because of an error that nobody") as refused:
        open_gate.ask("model", "a folder", folder=3, provider="cpu", seconds=60.0)
    assert refused.value.unforeseen


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "done", "value": [1]},
        {"kind": "done", "value": None},
        {"kind": "system", "value": ["x", 1]},
        {"kind": "system", "value": None},
        {"kind": "other", "value": {}},
        {"kind": None, "value": {}},
    ],
)
def test_an_answer_that_makes_no_sense_counts_as_none(message: dict[str, Any]) -> None:
    with pytest.raises(gate._Gone):
        gate._answer(message, "a file")


def test_what_comes_out_can_be_printed() -> None:
    with pytest.raises(ValueError, match=r"\Aone line \[31mred x+\.\.\.\Z") as refused:
        gate._answer({"kind": "refused", "value": "one\nline\x1b[31mred \u202e" + "x" * 5000}, "a file")
    assert len(str(refused.value)) == SENTENCE_CHARS
    assert str(refused.value).isprintable()


# --- whole performances ---


def test_a_render_in_a_child_is_the_same_take(tmp_path: Path, player: Path, open_gate: Gate) -> None:
    from bridge import offline

    session = Session.parse(ECHO)
    made: list[int] = []
    here = offline.render(session, player, tmp_path / "here")
    there = app.render(open_gate, session, player, tmp_path / "there", progress=lambda done, total: made.append(done))
    assert there.frames == here.frames == made[-1] == 120 * RATE
    assert there.faults == ()
    for name in ("input.wav", "mix.wav", "stems/echo.wav"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    takes = [TakeReader(tmp_path / place) for place in ("here", "there")]
    assert takes[0].header == takes[1].header
    assert len({tuple(line["type"] for line in take.lines) for take in takes}) == 1
    again = app.replay(open_gate, tmp_path / "there", tmp_path / "again")
    assert again.stems == {"echo": "identical"}


def test_the_death_of_a_render_names_who_was_at_work_and_what_is_kept(tmp_path: Path, player: Path) -> None:
    with app.gate() as dying:

        def kill(done: int, total: int) -> None:
            if done:
                os.kill(dying.pid or 0, signal.SIGKILL)

        sentence = (
            r"the process of this render was ended by signal 9 \(SIGKILL\); the last at work was agent 'echo'; "
        )
        with pytest.raises(ValueError, match=f"{sentence}{tmp_path}/take keeps what was made up to then"):
            app.render(dying, Session.parse(ECHO), player, tmp_path / "take", progress=kill)
        with pytest.raises(ValueError, match="a take"):  # what was there before is not said to be kept
            app.render(dying, Session.parse(ECHO), player, tmp_path / "take")


def test_what_was_rendered_travels_as_json() -> None:
    rendered = Rendered(Path("take"), 3, 0.5, RATE, "full", True, ("one", "two"), {"keys": "identical"}, ("three",))
    assert Rendered.heard(rendered.told()) == rendered


def test_progress_is_passed_on_sparingly() -> None:
    told: list[int] = []
    progress = Sparing(lambda done, total: told.append(done), every_seconds=3600)
    for done in range(1, 101):
        progress(done, 100)
    assert told == [1, 100]


def test_large_files_may_take_longer(tmp_path: Path) -> None:
    assert time_for(tmp_path / "none") == gate.OPEN_SECONDS
    with (tmp_path / "long").open("wb") as file:
        file.truncate(500_000_000)
    assert time_for(tmp_path) == gate.OPEN_SECONDS + 10


# --- Ctrl-C ---


def press(number: int = signal.SIGINT) -> None:
    """Press Ctrl-C, as this process hears it."""
    signal.raise_signal(number)


def test_a_wish_raises_nothing_until_it_is_repeated() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Wish() as wish:
        assert not wish.felt
        press()
        assert wish.felt
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows holds no signals back")
def test_a_stop_waits_until_it_can_be_heeded_and_meets_only_its_own_task() -> None:
    handler, held = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, set())
    try:
        stops = _Stops()
        stops.turn_to(1)
        stops.ask(1)  # while the task imports
        with pytest.raises(KeyboardInterrupt):
            stops.let_through()
        with pytest.raises(KeyboardInterrupt):
            stops.again()  # it was lost, for all that is known
        stops.again()
        stops.hold()
        stops.ask(1)  # too late
        stops.turn_to(2)
        stops.let_through()
        stops.hold()
        stops.ask(3)  # before its question is looked at
        stops.turn_to(3)
        with pytest.raises(KeyboardInterrupt):
            stops.let_through()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="looks at processes as Linux shows them")
def test_a_child_is_born_deaf_to_ctrl_c() -> None:
    with Gate() as born:
        born.start()
        for _ in range(20):  # from before its first instruction on
            status = Path(f"/proc/{born.pid}/status").read_text()
            masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
            assert int(masks["SigBlk"], 16) & 1 << signal.SIGINT - 1
            os.kill(born.pid or 0, signal.SIGINT)
            time.sleep(0.02)
        assert model(born)["name"] == "onset"
        assert born.deaths == 0


def test_ctrl_c_before_a_child_has_begun_ends_its_task(tmp_path: Path, player: Path) -> None:
    with app.gate() as begun:
        begun.start("bridge.offline")
        start = begun.start

        def pressed(*modules: str) -> None:
            press()  # while it is asked
            start(*modules)

        begun.start = pressed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            app.render(begun, Session.parse(ECHO), player, tmp_path / "take")
        assert begun.deaths == 0
    assert not (tmp_path / "take").exists()
