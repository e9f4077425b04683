"""The command as a stranger meets it: a slip ends in one sentence and code 2, a Ctrl-C or a kill in a whole take."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import tones

from bridge.children import signals_held
from bridge.cli import IMPORTING_SECONDS, INTERRUPTED, run
from bridge.gate import Answer, Call, Gate, Hear, _answer, _outcome
from bridge.recorder import TakeReader
from bridge.session import Session
from realtime.clock import Meter
from realtime.protocols import Block

RATE = 16000
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name))
ROOT = Path(__file__).resolve().parent.parent
SESSION = """\
[session]
name = "Test"
[stream]
samplerate = 16000
device = "null"
[transport]
bpm = 240
chart = ["C", "G7"]
"""
ECHO = '[[agents]]\nname = "echo"\nkind = "echo"\n'
KEYS = '[[agents]]\nname = "keys"\nkind = "corpus"\ncorpus = "corpus"\n'


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus, sessions and good and bad sound files. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("room")
    notes = tones(4 * RATE, RATE, [220, 277, 330, 440] * 4)
    player = tones(3 * RATE // 2, RATE, [330, 220, 294])
    soundfile.write(folder / "notes.wav", notes, RATE, subtype="FLOAT")
    soundfile.write(folder / "player.wav", player, RATE, subtype="FLOAT")
    call("corpus", "build", folder / "notes.wav", "--bpm", "240", "--out", folder / "corpus")
    (folder / "session.toml").write_text(SESSION + KEYS + ECHO)
    (folder / "echo.toml").write_text(SESSION + ECHO)
    (folder / "two.toml").write_text(SESSION.replace("[transport]", "inputs = [1, 2]\n[transport]") + ECHO)
    (folder / "typo.toml").write_text(SESSION.replace("bpm", "bmp") + ECHO)
    (folder / "gone.toml").write_text(
        SESSION + KEYS.replace('"corpus"\n', '"corpsu"\n', 2).replace("corpsu", "corpus", 1)
    )
    _bad_sounds(folder, player)
    return folder


def _bad_sounds(folder: Path, player: Block) -> None:
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        bad = player.copy()
        bad[RATE] = value
        soundfile.write(folder / f"{name}.wav", bad, RATE, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros_like(player), RATE)
    whole = (folder / "player.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This is no sound.\n" * 9)


def call(*arguments: object) -> int:
    """Run a command in this process and return its exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    try:
        run([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


class HereGate(Gate):
    """A gate whose child is this process: quick, and a test can change what happens in it."""

    def start(self, *modules: str) -> None:
        """Start nothing."""

    def ask(
        self,
        task: str,
        about: str | os.PathLike[str],
        *,
        seconds: float | None = None,
        hear: Hear = lambda said: None,
        stoppable: bool = False,
        **arguments: Any,
    ) -> Answer:
        """Do the task, and pass on what it says."""
        ours, theirs = multiprocessing.Pipe()
        kind, value = _outcome(Call(theirs, 1, None), {"task": task, "arguments": arguments})
        theirs.close()
        while ours.poll():
            try:
                said = json.loads(ours.recv_bytes())
            except EOFError:
                break
            if said["kind"] == "said":
                hear(said["value"])
        return _answer({"kind": kind, "value": json.loads(json.dumps(value))}, str(about))


@pytest.fixture
def sideman(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return what runs a command in this process, with all that it has the gate do."""
    monkeypatch.setattr("bridge.app.gate", HereGate)

    def command(*arguments: object) -> Ended:
        capsys.readouterr()
        code = call(*arguments)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return command


def refused(ended: Ended, *words: str) -> None:
    """Check that a command ended in one sentence that holds ``words``, and code 2."""
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith("sideman: ")
    for word in words:
        assert word in ended.err


# What cannot be used


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nan.wav", ("frame 16000 is nan", "finite")),
        ("inf.wav", ("frame 16000 is inf", "finite")),
        ("cut.wav", ("truncated", "copy or download it again")),
        ("empty.wav", ("0 bytes", "WAV, FLAC")),
        ("text.wav", ("cannot be read as sound", "WAV, FLAC")),
        ("missing.wav", ("no such file", "spelling")),
        ("corpus", ("is a folder",)),
        ("n" * 300, ("name is too long",)),
    ],
)
def test_a_bad_sound_is_refused_in_a_sentence(
    sideman: Command, room: Path, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    out = tmp_path / "take"
    refused(sideman("render", room / "echo.toml", "--input", room / name, "--out", out), str(room / name), *words)
    assert not out.exists()
    refused(sideman("corpus", "build", room / name, "--out", out), str(room / name), *words)
    assert list(tmp_path.iterdir()) == []


def test_silence_is_no_corpus_but_may_be_played(sideman: Command, room: Path, tmp_path: Path) -> None:
    silent = room / "silent.wav"
    refused(sideman("corpus", "build", silent, "--out", tmp_path / "corpus"), str(silent), "silent", "-70 dB")
    out = tmp_path / "take"
    assert sideman("render", room / "session.toml", "--input", silent, "--out", out, "--no-report").code == 0
    assert TakeReader(out).frames == 3 * RATE // 2


@pytest.mark.parametrize(
    ("session", "words"),
    [
        ("typo.toml", ("transport.bmp is not known", 'did you mean "bpm"')),
        ("gone.toml", ("agents.keys.corpus", "does not exist", "sideman corpus build")),
        ("two.toml", ("1 channel", "input 2", "stream.inputs")),
        ("nothing.toml", ("does not exist",)),
        ("corpus", ("is a folder", "one TOML file")),
        ("empty.wav", ("empty (0 bytes)",)),
        ("player.wav", ("UTF-8",)),
    ],
)
def test_a_bad_session_is_refused_in_a_sentence(
    sideman: Command, room: Path, tmp_path: Path, session: str, words: tuple[str, ...]
) -> None:
    out = tmp_path / "take"
    refused(sideman("render", room / session, "--input", room / "player.wav", "--out", out), *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bpm", "1000"), ("--bpm", "1000", "20 to 400")),
        (("--meter", "4"), ("--meter", "4/4")),
        (("--downbeat", "nan"), ("--downbeat", "-60 to 36000")),
        (("--seed", "-1"), ("--seed", "from 0")),
        (("--blocksize", "0"), ("--blocksize 0", "1 to 8192")),
    ],
)
def test_an_option_out_of_range_is_refused_in_a_sentence(
    sideman: Command, room: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    where = ("--input", room / "player.wav", "--out", tmp_path / "take")
    refused(sideman("render", room / "echo.toml", *where, *options), *words)
    assert not (tmp_path / "take").exists()


def test_a_corpus_that_changed_is_refused(sideman: Command, room: Path, tmp_path: Path) -> None:
    assert sideman("corpus", "build", room / "notes.wav", "--bpm", "240", "--out", tmp_path / "corpus").code == 0
    (tmp_path / "session.toml").write_text(SESSION + KEYS)
    audio = tmp_path / "corpus" / "audio" / "notes.wav"
    data = bytearray(audio.read_bytes())
    data[-9] ^= 1
    audio.write_bytes(data)
    words = (str(audio), "has changed since the corpus was built", "again")
    refused(sideman("corpus", "info", tmp_path / "corpus"), *words)
    render = ("render", tmp_path / "session.toml", "--input", room / "player.wav", "--out", tmp_path / "take")
    refused(sideman(*render), *words)
    audio.unlink()
    refused(sideman(*render), str(audio), "is missing")
    assert not (tmp_path / "take").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--meter", "x"), ("'x'", "4/4")),
        (("--bpm", "fast"), ("'fast'", "quarter notes per minute")),
        (("--units", "bar"), ("--units 'bar'", "beat or onset")),
        (("--labels", "0"), ("--labels 0", "1 to 1024")),
        (("--units", "beat"), ("--units beat", "give --bpm")),
    ],
)
def test_a_bad_way_to_cut_is_refused(
    sideman: Command, room: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(sideman("corpus", "build", room / "notes.wav", "--out", tmp_path / "c", *options), *words)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(sideman: Command, room: Path, tmp_path: Path) -> None:
    out = tmp_path / "take"
    render = ("render", room / "echo.toml", "--input", room / "player.wav", "--no-report", "--out")
    assert sideman(*render, out).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused(sideman(*render, out), str(out), "already holds a take", "another folder")
    refused(sideman("replay", out, "--out", out), "already holds a take")
    for again in (("play", room / "echo.toml", "--seconds", "0.3"), ("demo", "--no-play")):
        ended = sideman(*again, "--out", out)
        refused(ended, "already holds a take")
        assert ended.out == ""  # before anything sounds
    refused(sideman(*render, room / "player.wav"), "file is in the place of a folder")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    refused(sideman("corpus", "build", room / "notes.wav", "--out", out), "is no corpus", "new folder")
    refused(sideman("session", "new", room / "echo.toml"), "exists", "another name")


@pytest.mark.parametrize("what", ["nothing", "player.wav", "corpus"])
def test_what_is_no_take_is_not_replayed(sideman: Command, room: Path, what: str) -> None:
    refused(sideman("replay", room / what), str(room / what), "take")


def test_a_take_from_elsewhere_is_refused(sideman: Command, room: Path, tmp_path: Path) -> None:
    render = ("render", room / "echo.toml", "--input", room / "player.wav", "--no-report", "--out", tmp_path / "take")
    assert sideman(*render).code == 0
    log = tmp_path / "take" / "take.jsonl"
    first, *rest = log.read_text().splitlines()
    header = json.loads(first)
    del header["engine"]
    log.write_text("\n".join([json.dumps(header), *rest]))
    refused(sideman("replay", tmp_path / "take"), "has no engine", "another program")
    assert not (tmp_path / "take" / "replay").exists()


def test_where_nothing_can_be_written_it_is_said(sideman: Command, room: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    refused(sideman("render", room / "echo.toml", "--input", room / "player.wav", "--out", below), str(below))
    refused(sideman("corpus", "build", room / "notes.wav", "--out", below), str(below))
    refused(sideman("demo", "--no-play", "--out", below), str(below))
    refused(sideman("session", "new", below / "session.toml"), str(below))


def test_the_demo_for_a_device_names_the_command_that_builds_its_corpora(sideman: Command) -> None:
    refused(sideman("play", ROOT / "bridge" / "demo" / "live.toml"), "corpora/bass", "sideman demo --live")


def test_what_the_demo_cannot_heed_is_refused(sideman: Command, tmp_path: Path) -> None:
    refused(sideman("demo", "--out", tmp_path / "take", "--device", "x"), "--device", "--live")
    assert not (tmp_path / "take").exists()


def test_a_length_or_lead_that_cannot_be_is_refused(sideman: Command, room: Path) -> None:
    refused(sideman("play", room / "echo.toml", "--lead", "-1"), "--lead -1", "65536")
    refused(sideman("play", room / "echo.toml", "--seconds", "nan"), "--seconds nan")


def test_memory_that_is_not_there_is_a_sentence(
    sideman: Command, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bridge.offline.render", full)
    render = ("render", room / "echo.toml", "--input", room / "player.wav", "--out", tmp_path / "take")
    refused(sideman(*render), "not enough memory")


# What can be used


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "channels", "frames"),
    [
        ("wav", "PCM_16", 44100, 1, 20000),
        ("wav", "PCM_24", 48000, 2, 20001),
        ("wav", "FLOAT", 192000, 1, 70001),
        ("wav", "PCM_16", 8000, 1, 3999),
        ("wav", "PCM_16", 11025, 64, 5000),
        ("wav", "FLOAT", 16000, 1, 1),
        ("wav", "FLOAT", 44100, 1, 1),
        ("wav", "FLOAT", 16000, 1, 128),
        ("flac", "PCM_24", 96000, 8, 30011),
        ("aiff", "PCM_16", 44100, 1, 12345),
        ("ogg", None, 44100, 2, 20000),
        ("mp3", None, 44100, 1, 20000),
    ],
)
def test_any_format_rate_and_length_is_played_with(
    sideman: Command,
    room: Path,
    tmp_path: Path,
    suffix: str,
    subtype: str | None,
    rate: int,
    channels: int,
    frames: int,
) -> None:
    audio = np.repeat(tones(frames, rate, [220]), channels, axis=1)
    soundfile.write(tmp_path / f"in.{suffix}", audio, rate, subtype=subtype)
    out = tmp_path / "take"
    done = sideman("render", room / "echo.toml", "--input", tmp_path / f"in.{suffix}", "--out", out, "--no-report")
    assert (done.code, done.err) == (0, "")
    expected = max(1, round(soundfile.info(tmp_path / f"in.{suffix}").frames * RATE / rate))
    for name in ("input.wav", "mix.wav", "stems/echo.wav"):
        assert soundfile.info(out / name).frames == expected
    heard = soundfile.read(out / "input.wav", dtype="float32")[0]
    if frames > 5000:
        truth = np.sin(2 * np.pi * 220 * np.arange(expected) / RATE)
        assert abs(np.corrcoef(heard[500:3000], truth[500:3000])[0, 1]) > 0.7


def test_a_session_is_written_built_rendered_and_replayed(sideman: Command, room: Path, tmp_path: Path) -> None:
    session, take = tmp_path / "new" / "session.toml", tmp_path / "take"
    written = sideman("session", "new", session, "--corpus", room / "corpus", "--bpm", "240")
    assert written.code == 0
    assert f"sideman play {session}" in written.out
    done = sideman("render", session, "--input", room / "player.wav", "--out", take)
    assert (done.code, done.err) == (0, "")
    assert "corpus" in done.out
    assert "arrangement.png" in done.out
    assert (take / "report.md").stat().st_size > 0
    again = sideman("replay", take)
    assert (again.code, again.err) == (0, "")
    assert "corpus: identical" in again.out
    assert sideman("corpus", "info", room / "corpus").out.startswith(
        "corpus: 16 units by the beat, 4.0 s, 240 bpm, 4/4"
    )


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("{ taboo = 'x' }", "agents.keys.lighter[1]: agent 'keys': option taboo is 'x'; it takes a whole number"),
        ("{ tabu = 4 }", "agents.keys.lighter[1]: agent 'keys': the kind corpus takes no 'tabu'"),
        ("{ corpus = 'none' }", "agents.keys.lighter[1].corpus: "),
    ],
)
def test_a_lighter_way_that_cannot_be_used_is_refused_before_it_is_needed(
    sideman: Command, room: Path, tmp_path: Path, way: str, words: str
) -> None:
    session, take = tmp_path / "session.toml", tmp_path / "take"
    keys = KEYS.replace('"corpus"\n', f'"{room}/corpus"\n').replace(f'kind = "{room}/corpus"', 'kind = "corpus"')
    session.write_text(f"{SESSION}{keys}lighter = [{way}]\n")
    refused(sideman("render", session, "--input", room / "player.wav", "--out", take), str(session), words)
    refused(sideman("play", session, "--out", take), str(session), words)
    assert not take.exists()


@pytest.fixture(scope="module")
def echo_take(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small take, for copies of it to be damaged."""
    folder = tmp_path_factory.mktemp("echo") / "take"
    assert call("render", room / "echo.toml", "--input", room / "player.wav", "--out", folder, "--no-report") == 0
    return folder


def damaged(take: Path, out: Path, edit: Callable[[list[dict[str, Any]]], object]) -> Path:
    """Return a copy of a take whose lines were edited."""
    shutil.copytree(take, out)
    lines = [json.loads(line) for line in (out / "take.jsonl").read_text().splitlines()]
    edit(lines)
    (out / "take.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def test_a_take_is_drawn_again(sideman: Command, echo_take: Path, tmp_path: Path) -> None:
    take = damaged(echo_take, tmp_path / "take", lambda lines: None)
    shown = sideman("report", take)
    assert (shown.code, shown.err) == (0, "")
    assert "echo" in shown.out
    assert f"picture in {take / 'arrangement.png'}" in shown.out
    assert (take / "report.md").stat().st_size > 0


def test_a_damaged_take_is_not_drawn(
    sideman: Command, echo_take: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = damaged(echo_take, tmp_path / "fast", lambda lines: lines[1].update(tempo="1000000000"))
    refused(sideman("report", fast), f"{fast}/take.jsonl", "its tempo is 1000000000", "20 to 400 are allowed")

    def too_much(path: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", too_much)
    refused(sideman("report", echo_take), f"{echo_take}/take.jsonl", "more than there is memory for")


def test_a_replay_that_is_different_ends_with_code_1(sideman: Command, echo_take: Path, tmp_path: Path) -> None:
    def cut(lines: list[dict[str, Any]]) -> None:
        del lines[next(i for i, line in enumerate(lines) if line["type"] == "reply") :]

    again = sideman("replay", damaged(echo_take, tmp_path / "cut", cut))
    assert again.code == 1
    assert "echo: different" in again.out
    assert "take.jsonl stops after" in again.err


def test_a_new_session_has_the_tempo_of_its_corpus_and_names_that_fit(
    sideman: Command, room: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "a" / "slow bass!", tmp_path / "b" / "slow bass!", tmp_path / "input"]
    for folder, grid in zip(folders, ((), ("--bpm", "200", "--meter", "3/4"), ("--bpm", "240")), strict=True):
        assert sideman("corpus", "build", room / "notes.wav", *grid, "--out", folder).code == 0
    given = [word for folder in folders for word in ("--corpus", folder)]
    assert sideman("session", "new", tmp_path / "new.toml", *given).code == 0
    session = Session.load(tmp_path / "new.toml")
    assert session.transport.bpm == 200
    assert session.transport.meter == Meter(3, 4)
    assert "bpm = 200 " in (tmp_path / "new.toml").read_text()
    assert [agent.name for agent in session.agents] == ["slow-bass", "slow-bass-2", "input-2"]
    assert [session.corpus_path(agent) for agent in session.agents] == [folder.resolve() for folder in folders]
    assert sideman("session", "new", tmp_path / "own.toml", *given, "--bpm", "90").code == 0
    assert Session.load(tmp_path / "own.toml").transport.bpm == 90


def test_what_an_agent_fails_at_is_told(
    sideman: Command, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of ideas")

    monkeypatch.setattr("realtime.agents.echo.EchoAgent.play", broken)
    done = sideman(
        "render", room / "echo.toml", "--input", room / "player.wav", "--out", tmp_path / "take", "--no-report"
    )
    assert done.code == 0
    assert re.fullmatch(
        r"sideman: agent 'echo' failed \d times, first in bar \d: RuntimeError: out of ideas\n", done.err
    )


# Help


def commands() -> list[list[str]]:
    return [
        [], ["demo"], ["render"], ["replay"], ["report"], ["play"], ["devices"], ["models"], ["bench"], ["corpus"],
        ["corpus", "build"], ["corpus", "info"], ["session"], ["session", "new"],
    ]  # fmt: skip


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself(sideman: Command, command: list[str]) -> None:
    ended = sideman(*command, "--help")
    assert ended.code == 0
    assert ended.out.startswith(" ".join(["Usage: sideman", *command]))
    text = ended.out.partition("Options:")[0]
    assert len(text.split()) > 8, "no sentence says what it does"
    assert not re.search(r"--[a-z]+ <", ended.out), "an option's value is named by a type"
    assert max(map(len, ended.out.splitlines())) <= 80


def test_the_help_of_the_bench_names_every_suite(sideman: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    suites = list(importlib.import_module("bench").suites())
    named = f"The suites are {', '.join(suites[:-1])} and {suites[-1]};"
    assert named in " ".join(sideman("bench", "--help").out.split())


@pytest.mark.parametrize("arguments", [["render"], ["nosuch"], ["render", "--nope"], ["play", "--bpm"]])
def test_usage_errors_end_with_code_2(sideman: Command, arguments: list[str]) -> None:
    ended = sideman(*arguments)
    assert ended.code == 2
    assert "Error: " in ended.err
    assert "Traceback" not in ended.err


def test_help_loads_nothing_heavy() -> None:
    heavy = ("numpy", "rich.console", "pydantic", "soundfile", "matplotlib")
    script = (
        "import sys\nfrom bridge.cli import run\ntry:\n    run(['--help'])\n"
        f"except SystemExit:\n    print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# Signals


class Process:
    """A command in a process, and a process group, of its own."""

    def __init__(self, arguments: Sequence[object], limit_bytes: int | None = None) -> None:
        def limit() -> None:
            import resource

            if limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        self._child = subprocess.Popen(
            [sys.executable, "-m", "bridge", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=limit,
        )
        self.pid = self._child.pid

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for something to happen while the command runs."""
        wait(lambda: true() or self._child.poll() is not None)
        assert self._child.poll() is None, self._child.communicate()

    def family(self) -> list[int]:
        """Return the ids of its own children."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def memory(self) -> list[Path]:
        """Return the files behind its shared memory."""
        maps = Path(f"/proc/{self.pid}/maps").read_text()
        return [Path(name) for name in sorted(set(re.findall(r"/dev/shm/sideman-\w+", maps)))]

    def signal(self, number: int) -> None:
        """Send a signal to the command alone."""
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to its group, as a terminal does."""
        os.killpg(self.pid, number)

    def end(self) -> Ended:
        """Wait for its end."""
        out, err = self._child.communicate(timeout=20)
        return Ended(self._child.returncode, out, err)

    def close(self) -> None:
        """Leave nothing behind, whatever the test has found."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Return what starts a command in a process of its own."""
    started: list[Process] = []

    def command(*arguments: object, limit_bytes: int | None = None) -> Process:
        started.append(Process(arguments, limit_bytes))
        return started[-1]

    yield command
    for process in started:
        process.close()


def wait(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is true."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_sound(take: Path, seconds: float) -> Callable[[], bool]:
    """Return whether the input of a take is so long already."""
    path = take / "input.wav"
    return lambda: path.is_file() and path.stat().st_size > 4 * seconds * RATE


@pytest.fixture(scope="module")
def long_player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ten minutes of sound: enough to be interrupted in."""
    path = tmp_path_factory.mktemp("long") / "long.wav"
    soundfile.write(path, np.tile(tones(RATE, RATE, [220, 330]), (600, 1)), RATE)
    return path


def test_ctrl_c_while_rendering_and_replaying_keeps_the_take(
    start: Callable[..., Process], room: Path, long_player: Path, tmp_path: Path
) -> None:
    take, again = tmp_path / "take", tmp_path / "again"
    for folder, command in (
        (take, ("render", room / "echo.toml", "--input", long_player, "--out", take, "--no-report")),
        (again, ("replay", take, "--out", again)),
    ):
        process = start(*command)
        process.until(has_sound(folder, 20 if folder is take else 2))
        process.signal_group(signal.SIGINT)
        ended = process.end()
        assert ended.code == 130
        assert re.fullmatch(r"sideman: stopped; \d+\.\d s are kept in .*\n", ended.err)
        kept = TakeReader(folder)
        assert kept.end is not None
        assert 2 * RATE <= kept.frames < 600 * RATE
        assert kept.stem_hash("echo") == kept.end.stems["echo"]
    assert TakeReader(again).frames < TakeReader(take).frames


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no such timer")
def test_ctrl_c_in_an_import_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pressed_in_import.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    whole = False

    def app(arguments: object, prog_name: str) -> None:
        nonlocal whole
        whole = importlib.import_module("pressed_in_import").whole
        with signals_held():  # a child is being born
            time.sleep(5 * IMPORTING_SECONDS)
            whole = whole and bool(signal.sigpending())
        time.sleep(60)

    monkeypatch.setattr("bridge.cli.app", app)
    assert call() == INTERRUPTED
    assert whole


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 0.9, 1.2])
def test_ctrl_c_at_any_moment_ends_a_render_in_order(
    start: Callable[..., Process], room: Path, long_player: Path, tmp_path: Path, seconds: float
) -> None:
    """Wherever it comes, in Python's start, an import or the music: the moments are only spread, not counted on."""
    take = tmp_path / "take"
    process = start("render", room / "echo.toml", "--input", long_player, "--out", take, "--no-report")
    time.sleep(seconds)
    process.signal_group(signal.SIGINT)
    ended = process.end()
    assert ended.code in (130, -signal.SIGINT), ended  # the second: before there was any Python
    assert "Exception" not in ended.err
    if take.exists():
        kept = TakeReader(take)
        assert kept.end is not None
        assert kept.pads == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes as Linux shows them")
def test_a_render_whose_command_is_killed_closes_its_take_and_ends(
    start: Callable[..., Process], room: Path, long_player: Path, tmp_path: Path
) -> None:
    take = tmp_path / "take"
    process = start("render", room / "echo.toml", "--input", long_player, "--out", take, "--no-report")
    process.until(has_sound(take, 20))
    process.signal_group(signal.SIGKILL)
    wait(lambda: (take / "take.jsonl").read_text().rstrip().endswith("}") and TakeReader(take).end is not None)
    assert 20 * RATE <= TakeReader(take).frames < 600 * RATE


def test_ctrl_c_while_building_leaves_nothing(
    start: Callable[..., Process], long_player: Path, tmp_path: Path
) -> None:
    process = start("corpus", "build", long_player, "--out", tmp_path / "corpus")
    process.until(lambda: any(tmp_path.iterdir()))
    process.signal_group(signal.SIGINT)
    ended = process.end()
    assert (ended.code, ended.err) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_during_the_demo(start: Callable[..., Process], tmp_path: Path) -> None:
    process = start("demo", "--no-play", "--out", tmp_path / "demo")
    process.until(lambda: (tmp_path / "demo").exists())
    process.signal_group(signal.SIGINT)
    ended = process.end()
    assert (ended.code, ended.err) == (130, "")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("how", ["ctrl-c", "hang-up", "kill", "kill the group"])
def test_however_playing_ends_the_take_is_whole_and_nothing_is_left(
    start: Callable[..., Process], sideman: Command, room: Path, tmp_path: Path, how: str
) -> None:
    take = tmp_path / "take"
    process = start("play", room / "echo.toml", "--out", take, "--no-report")
    process.until(has_sound(take, 0.5))
    family, memory = process.family(), process.memory()
    assert len(family) >= 4  # engine, recorder, agent, resource tracker
    assert memory
    act = {
        "ctrl-c": lambda: process.signal_group(signal.SIGINT),
        "hang-up": lambda: process.signal_group(signal.SIGHUP),
        "kill": lambda: process.signal(signal.SIGKILL),
        "kill the group": lambda: process.signal_group(signal.SIGKILL),
    }
    act[how]()
    ended = process.end()
    if how.startswith("kill"):
        assert ended.code == -signal.SIGKILL
    else:
        assert (ended.code, ended.err) == (0, "")
        assert "s kept" in ended.out
        assert "echo" in ended.out
    assert "Traceback" not in ended.err
    wait(lambda: not any(map(alive, family)), 10)
    wait(lambda: not any(path.exists() for path in memory), 2)
    kept = TakeReader(take)
    assert kept.end is not None
    assert kept.frames > RATE // 2
    for name in ("input.wav", "mix.wav", "stems/echo.wav"):
        assert soundfile.info(take / name).frames == kept.frames
    again = sideman("replay", take)
    assert (again.code, again.err) == (0, "")
    assert "echo: identical" in again.out


def test_what_was_played_is_kept_shown_and_drawn(
    sideman: Command, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []

    def write(take: TakeReader, realtime_factor: float | None = None) -> tuple[Path, Path]:
        drawn.append(take.folder)
        return take.folder / "arrangement.png", take.folder / "report.md"

    monkeypatch.setattr("bridge.report.write", write)
    played = sideman("play", room / "echo.toml", "--out", tmp_path / "take", "--seconds", "0.3", "--lead", "512")
    assert (played.code, played.err) == (0, "")
    assert played.out.startswith("Test: 16000 Hz, blocks of 128, lead 512 frames (32 ms), ")
    assert re.search(r"take: 0\.\d s kept", played.out)
    assert "echo" in played.out
    assert "arrangement.png" in played.out
    assert drawn == [tmp_path / "take"]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no limit of file size")
def test_a_disk_that_is_full_ends_the_take_and_keeps_it(
    start: Callable[..., Process], room: Path, long_player: Path, tmp_path: Path
) -> None:
    take = tmp_path / "take"
    render = ("render", room / "echo.toml", "--input", long_player, "--out", take)
    ended = start(*render, limit_bytes=300_000).end()
    refused(Ended(ended.code, "", ended.err), str(take), "recording stopped", "make room")
    kept = TakeReader(take)
    assert kept.frames > RATE
    assert soundfile.info(take / "stems" / "echo.wav").frames >= kept.frames
    ended = start("corpus", "build", long_player, "--out", tmp_path / "corpus", limit_bytes=300_000).end()
    refused(Ended(ended.code, "", ended.err), str(tmp_path / "corpus.building"), "may not grow further")
    assert not (tmp_path / "corpus").exists()
