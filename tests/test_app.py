"""A session as a whole: rendered from a file, replayed from its take, played live on no device."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import tones

from bridge import offline
from bridge.app import Live, engine_config, lighter_ways
from bridge.offline import FileInput, render, replay, verdicts
from bridge.recorder import TakeReader
from bridge.session import AgentTable, Session
from bridge.wav import WavWriter
from realtime.buffers import AudioRing
from realtime.corpus import build
from realtime.engine import Command, EngineConfig
from realtime.protocols import Block
from realtime.runner import RingHeard

RATE = 16000
BAND = """
[session]
seed = 3
[stream]
samplerate = {rate}
device = "null"
[transport]
bpm = 240
chart = ["C", "-"]
[mixer]
monitor = true
[[agents]]
name = "keys"
kind = "corpus"
corpus = "{corpus}"
[[agents]]
name = "echo"
kind = "echo"
listens = "keys"
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpus of sixteen beats, at a tempo that has to be stretched."""
    folder = tmp_path_factory.mktemp("app")
    soundfile.write(folder / "notes.wav", tones(4 * RATE, RATE, [220, 277, 330, 440] * 4), RATE, subtype="FLOAT")
    build([folder / "notes.wav"], folder / "corpus", bpm=230)
    return folder / "corpus"


def band(corpus: Path, rate: int = RATE) -> Session:
    return Session.parse(BAND.format(rate=rate, corpus=corpus))


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a performance of 2.2 seconds: an odd number of frames."""
    path = tmp_path_factory.mktemp("player") / "player.wav"
    soundfile.write(path, tones(35201, RATE, [330, 220, 294, 247]), RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def take(corpus: Path, player: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered take."""
    return render(band(corpus), player, tmp_path_factory.mktemp("render") / "take").folder


def stems(folder: Path) -> dict[str, Block]:
    take = TakeReader(folder)
    return {name: take.stem(name) for name in take.stems}


# Input


@pytest.mark.parametrize(("rate", "session_rate"), [(16000, 16000), (44100, 16000), (8000, 48000)])
def test_a_file_is_heard_the_same_however_it_is_asked_for(tmp_path: Path, rate: int, session_rate: int) -> None:
    audio = np.concatenate([tones(90001, rate, [220, 330]), tones(90001, rate, [440, 550])], axis=1)
    soundfile.write(tmp_path / "in.wav", audio, rate, subtype="FLOAT")
    read = {}
    for blocksize in (7777, 100000):
        heard = FileInput(tmp_path / "in.wav", session_rate, (2, 1))
        blocks = [heard.read(blocksize) for _ in range(-(-heard.frames // blocksize) + 1)]
        assert not len(blocks[-1])
        read[blocksize] = np.concatenate(blocks)
        heard.close()
    assert np.array_equal(read[7777], read[100000])
    assert abs(len(read[7777]) - round(90001 * session_rate / rate)) <= 1
    if rate == session_rate:
        assert np.array_equal(read[7777], audio[:, [1, 0]])


def test_a_checked_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    audio = tones(200000, RATE, [220])
    soundfile.write(tmp_path / "in.wav", audio, RATE, subtype="FLOAT")
    heard, told = FileInput(tmp_path / "in.wav", RATE, (1,)), []
    heard.check(lambda done, total: told.append((done, total)))
    assert told[-1] == (200000, 200000)
    assert np.array_equal(heard.read(200000), audio)
    heard.close()


# Render


@pytest.mark.parametrize(
    ("rate", "frames", "session_rate"), [(44100, 30011, 16000), (16000, 1, 16000), (8000, 7777, 11025)]
)
def test_stems_are_as_long_as_the_input(
    corpus: Path, tmp_path: Path, rate: int, frames: int, session_rate: int
) -> None:
    soundfile.write(tmp_path / "in.wav", tones(frames, rate, [220]), rate)
    done = render(band(corpus, session_rate), tmp_path / "in.wav", tmp_path / "take")
    expected = max(1, round(frames * session_rate / rate))
    assert done.frames == expected
    for path in [*(tmp_path / "take" / "stems").iterdir(), tmp_path / "take" / "mix.wav"]:
        assert (soundfile.info(path).frames, soundfile.info(path).samplerate) == (expected, session_rate)


@pytest.mark.parametrize("blocksize", [1, 64, 65, 300, 8192])
def test_the_block_size_changes_nothing(
    corpus: Path, player: Path, take: Path, tmp_path: Path, blocksize: int
) -> None:
    done = render(band(corpus), player, tmp_path / "take", blocksize=blocksize)
    assert done.frames == 35201
    for name in ("stems/keys.wav", "stems/echo.wav", "mix.wav"):
        assert (tmp_path / "take" / name).read_bytes() == (take / name).read_bytes()


def test_a_render_sounds_from_the_first_downbeat_of_its_chart(take: Path) -> None:
    found = stems(take)
    assert np.abs(found["keys"][RATE // 8 : RATE]).max() > 0.05
    assert not found["echo"][: RATE - RATE // 100].any()  # it has heard nothing in bar 1
    assert np.abs(found["echo"][RATE:]).max() > 0.05
    reader = TakeReader(take)
    assert [span.start for span in reader.spans if span.agent == "keys"] == [0, RATE, 2 * RATE]
    assert {span.rung for span in reader.spans if span.agent == "keys"} == {1}


def test_the_seed_is_heard(corpus: Path, player: Path, take: Path, tmp_path: Path) -> None:
    session = band(corpus)
    other = session.model_copy(update={"session": session.session.model_copy(update={"seed": 4})})
    render(other, player, tmp_path / "other")
    render(session, player, tmp_path / "same")
    assert np.array_equal(stems(tmp_path / "same")["keys"], stems(take)["keys"])
    logged = [TakeReader(folder).header["engine"]["seed"] for folder in (tmp_path / "other", take)]
    assert logged == [4, 3]


def test_commands_count_at_their_frame_and_are_replayed(corpus: Path, player: Path, tmp_path: Path) -> None:
    script = ((20000, Command("mute", "keys", value=1.0)),)
    render(band(corpus), player, tmp_path / "take", script=script)
    mix = soundfile.read(tmp_path / "take" / "mix.wav", dtype="float32", always_2d=True)[0]
    again = replay(tmp_path / "take", tmp_path / "again")
    assert (again.folder / "mix.wav").read_bytes() == (tmp_path / "take" / "mix.wav").read_bytes()
    render(band(corpus), player, tmp_path / "plain")
    plain = soundfile.read(tmp_path / "plain" / "mix.wav", dtype="float32", always_2d=True)[0]
    assert np.array_equal(mix[:20000], plain[:20000])
    assert not np.array_equal(mix[20000:], plain[20000:])


def test_whatever_breaks_a_render_what_there_is_is_kept(
    corpus: Path, player: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = FileInput.read, iter(range(100))

    def pulled(self: FileInput, frames: int) -> Block:
        if next(calls) == 20:
            raise ValueError("the disk was pulled out")
        return read(self, frames)

    monkeypatch.setattr(FileInput, "read", pulled)
    with pytest.raises(ValueError, match="pulled out"):
        render(band(corpus), player, tmp_path / "take")
    kept = TakeReader(tmp_path / "take")
    assert kept.end is not None
    assert kept.frames == 20 * offline.OFFLINE_BLOCKSIZE


def test_a_render_that_cannot_be_kept_stops(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "in.wav", np.zeros((30 * RATE, 1), np.float32), RATE)
    write = WavWriter._write_at

    def full(self: WavWriter, position: int, data: bytes | bytearray) -> None:
        if position > 4 * 4 * RATE:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, position, data)

    monkeypatch.setattr(WavWriter, "_write_at", full)
    made: list[int] = []
    done = render(echo(corpus), tmp_path / "in.wav", tmp_path / "take", progress=lambda at, total: made.append(at))
    assert "the disk is full" in done.fault
    assert RATE < done.frames < 3 * RATE  # the mix has two channels, and was full first
    assert max(made) < 4 * RATE


# Replay


def test_a_replay_is_bit_identical_without_the_stems(take: Path, tmp_path: Path) -> None:
    copy = tmp_path / "take"
    shutil.copytree(take, copy)
    shutil.rmtree(copy / "stems")
    (copy / "mix.wav").unlink()
    replay(copy, tmp_path / "again")
    for name in ("stems/keys.wav", "stems/echo.wav", "mix.wav"):
        assert (tmp_path / "again" / name).read_bytes() == (take / name).read_bytes()
    assert verdicts(TakeReader(copy), TakeReader(tmp_path / "again")) == {"keys": "identical", "echo": "identical"}


def test_one_logged_unit_changed_by_hand_is_heard(take: Path, tmp_path: Path) -> None:
    copy = tmp_path / "take"
    shutil.copytree(take, copy)
    lines = [json.loads(line) for line in (copy / "take.jsonl").read_text().splitlines()]
    replies = [line for line in lines if line["type"] == "reply" and line["agent"] == "keys"]
    reply = next(line for line in replies if (line["bar"], line["attempt"]) == (1, 1))
    piece = reply["origin"]["pieces"][0]
    other = (piece["unit"] + 5) % 16
    reference = np.load(_corpus_of(lines) / "units" / "start.npy")
    piece |= {"unit": other, "source_frame": int(reference[other])}
    (copy / "take.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    replay(copy, tmp_path / "again")
    assert verdicts(TakeReader(copy), TakeReader(tmp_path / "again"))["keys"] == "different"
    before, after = stems(take)["keys"], stems(tmp_path / "again")["keys"]
    assert np.array_equal(before[: RATE - RATE // 50], after[: RATE - RATE // 50])
    assert not np.array_equal(before[RATE : RATE + RATE // 8], after[RATE : RATE + RATE // 8])


def _corpus_of(lines: list[dict[str, object]]) -> Path:
    header: dict[str, object] = lines[0]
    session = Session.parse(str(header["session"]))
    return session.corpus_path(session.agent("keys"))


# Live


class Said:
    """Keeps what a session tells."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.warned: list[str] = []


def play(
    session: Session, folder: Path | None, until: Callable[[Live], bool], said: Said, seconds: float = 10
) -> Live:
    """Play until something is true."""
    end = time.monotonic() + seconds
    with Live(session, folder, said.told.append, warn=said.warned.append, lead=1024) as live:
        while live.poll() and not until(live):
            assert time.monotonic() < end, (live.status(), said.warned)
            time.sleep(0.02)
    return live


def after(frames: int) -> Callable[[Live], bool]:
    return lambda live: live.status().frame >= frames


def played(agent: str, spans: int) -> Callable[[Live], bool]:
    """Return whether an agent has played so many spans on the first rungs."""
    return lambda live: sum(live.status().ledger[agent][rung] for rung in ("final", "speculative")) >= spans


def test_a_live_take_is_whole_and_replays_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    said = Said()
    live = play(band(corpus), tmp_path / "take", played("keys", 1), said)
    assert said.warned == []
    assert not live.failed
    take = TakeReader(tmp_path / "take")
    assert take.end is not None
    assert take.frames == live.closed_frames
    assert np.abs(take.stem("keys")).max() > 0.05
    for name in ("input.wav", "mix.wav", "stems/keys.wav", "stems/echo.wav"):
        assert soundfile.info(tmp_path / "take" / name).frames == take.frames
    shutil.move(tmp_path / "take" / "stems", tmp_path / "stems")
    replay(tmp_path / "take", tmp_path / "again")
    for name in ("keys", "echo"):
        assert (tmp_path / "again" / "stems" / f"{name}.wav").read_bytes() == (
            tmp_path / "stems" / f"{name}.wav"
        ).read_bytes()


def test_a_worker_hears_ahead_only_what_its_next_request_may_know() -> None:
    inputs, stem = AudioRing.private(4000, 1), AudioRing.private(4000, 1)
    heard = RingHeard(inputs, {"keys": stem})
    inputs.write(0, np.zeros((1000, 1), np.float32))
    stem.write(0, np.zeros((900, 1), np.float32))
    assert heard.settled("keys", 256) == 644  # a request made now is made at frame 900, and knows 256 frames less
    stem.write(900, np.zeros((1100, 1), np.float32))
    assert heard.settled("keys", 256) == 1000


def test_an_agent_without_its_corpus_says_so_and_the_others_play(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "corpus.toml").unlink()
    said = Said()
    text = BAND.format(rate=RATE, corpus=tmp_path / "corpus").replace('"keys"\n\n', '"input"\n')
    states: dict[str, str] = {}

    def both(live: Live) -> bool:
        states.update(live.status().states)
        return bool(said.warned) and states["echo"] == "armed" and live.status().frame > RATE

    live = play(Session.parse(text), tmp_path / "take", both, said)
    assert [text.count("agent 'keys': ") for text in said.warned] == [1]
    assert "is no corpus" in said.warned[0]
    assert states == {"keys": "failed", "echo": "armed"}
    assert live.failed
    assert {span.agent for span in TakeReader(tmp_path / "take").spans} >= {"echo"}


def test_a_lead_that_could_only_run_empty_is_refused_before_anything_starts(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stream\.lead is 511.* 512 frames or more"):
        Live(band(corpus), tmp_path / "take", print, lead=511)
    assert Live(band(corpus), tmp_path / "take", print, lead=512).config.spec.lead == 512
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_folder_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"agents\.keys\.corpus: .* does not exist"):
        Live(band(tmp_path / "nothing"), tmp_path / "take", print)
    assert list(tmp_path.iterdir()) == []


def test_a_take_that_cannot_be_kept_ends_the_session_at_once(corpus: Path, take: Path) -> None:
    said = Said()
    live = play(echo(corpus), take, lambda live: False, said)
    assert len(said.warned) == 1
    assert "already holds a take" in said.warned[0]
    assert live.failed


def echo(corpus: Path) -> Session:
    """Return a session of the echo alone, which starts fast."""
    head, _, _ = BAND.partition("[[agents]]")
    return Session.parse(head.format(rate=RATE) + '[[agents]]\nname = "echo"\nkind = "echo"\n')


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("recorder", "the recorder was killed by signal 9"),
        ("agent echo", "the process of agent 'echo' was killed by signal 9"),
        ("engine", "the engine was killed by signal 9"),
    ],
)
def test_a_process_that_is_killed_is_told_and_the_take_is_kept(
    corpus: Path, tmp_path: Path, name: str, words: str
) -> None:
    said = Said()
    killed: list[int] = []

    def kill(live: Live) -> bool:
        path = tmp_path / "take" / "input.wav"
        heard = path.stat().st_size // 4 if path.is_file() else 0
        if not killed and live.status().states["echo"] == "armed" and heard > RATE // 2:
            os.kill(live.pids()[name], signal.SIGKILL)
            killed.append(live.status().frame)
        return bool(said.warned) and name != "engine" and live.status().frame > killed[0] + RATE // 2

    live = play(echo(corpus), tmp_path / "take", kill, said)
    assert len(said.warned) == 1
    assert said.warned[0].startswith(words)
    assert live.failed
    kept = TakeReader(tmp_path / "take")
    assert kept.frames >= RATE // 2
    assert (kept.end is None) == (name == "recorder")
    again = replay(tmp_path / "take", tmp_path / "again")
    assert again.frames == kept.frames
    assert verdicts(kept, TakeReader(again.folder)) == {"echo": "identical"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows knows no limit of file size")
def test_a_disk_that_fills_up_while_playing_is_told_and_the_music_goes_on(corpus: Path, tmp_path: Path) -> None:
    import resource

    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux limits another process")
    said = Said()
    full: list[int] = []

    def fill(live: Live) -> bool:
        path = tmp_path / "take" / "input.wav"
        if not full and path.is_file() and path.stat().st_size > 16000:
            limit = path.stat().st_size + 8000
            resource.prlimit(live.pids()["recorder"], resource.RLIMIT_FSIZE, (limit, limit))
            full.append(live.status().frame)
        return bool(said.warned) and live.status().frame > full[0] + RATE // 2

    live = play(echo(corpus), tmp_path / "take", fill, said)
    assert len(said.warned) == 1
    assert "recording stopped" in said.warned[0]
    assert "make room" in said.warned[0]
    assert live.failed
    kept = TakeReader(tmp_path / "take")
    assert kept.frames >= 1000
    assert replay(tmp_path / "take", tmp_path / "again").frames == kept.frames


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("young", [True, False])
def test_whoever_is_killed_together_the_memory_goes_with_them_and_nothing_is_said(
    corpus: Path, tmp_path: Path, young: bool
) -> None:
    (tmp_path / "echo.toml").write_text(echo(corpus).toml())
    command = [sys.executable, "-m", "bridge", "play", str(tmp_path / "echo.toml"), "--out", str(tmp_path / "take")]
    session = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    proc, held, end = Path(f"/proc/{session.pid}"), set[str](), time.monotonic() + 60
    while len((proc / "task" / str(session.pid) / "children").read_text().split()) < (3 if young else 5):
        assert time.monotonic() < end, "the janitor, the tracker and the engine are there first"
        assert session.poll() is None
        time.sleep(0.001)
    held = set(re.findall(r"/dev/shm/(?:sideman|sem)\S+", (proc / "maps").read_text()))
    os.killpg(session.pid, signal.SIGKILL)
    assert len(held) >= 2, "memory, and a semaphore"
    assert session.communicate()[1] == b""
    while any(Path(name).exists() for name in held):
        assert time.monotonic() < end, held
        time.sleep(0.01)


def test_memory_that_does_not_fit_is_refused_before_it_is_touched(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no file system of shared memory here")
    monkeypatch.setattr("bridge.app.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 10_000_000))
    with pytest.raises(ValueError, match=r"10 MB of shared memory are free, this session needs \d+ MB.*--shm-size"):
        play(echo(corpus), None, lambda live: True, Said())


# What a session becomes


def config_of(text: str, *, live: bool = False) -> EngineConfig:
    session = Session.parse(text)
    return engine_config(session, session.spec(512), live=live)


def test_the_stem_of_a_stereo_corpus_is_stereo(tmp_path: Path) -> None:
    audio = np.concatenate([tones(32000, RATE, [220, 330]), tones(32000, RATE, [440, 550])], axis=1)
    soundfile.write(tmp_path / "wide.wav", audio, RATE)
    build([tmp_path / "wide.wav"], tmp_path / "corpus", bpm=120)
    agent = f'[[agents]]\nname = "wide"\nkind = "corpus"\ncorpus = "{tmp_path / "corpus"}"\n'
    assert config_of(agent).parts[0].agent.channels == 2
    assert config_of(agent + "channels = 1\n").parts[0].agent.channels == 1
    (tmp_path / "corpus" / "corpus.toml").write_text("no toml")
    assert config_of(agent).parts[0].agent.channels == 1, "the agent's worker will say what is wrong"


class WithLighter(AgentTable):
    """An agent's entry that lists lighter ways to play."""

    lighter: tuple[dict[str, Any], ...] = ()


def test_a_lighter_way_is_the_entry_with_what_it_says_instead(corpus: Path, tmp_path: Path) -> None:
    session = band(corpus)
    shutil.copytree(corpus, tmp_path / "small")
    ways = ({"continuity": 0.5}, {"corpus": str(tmp_path / "small"), "continuity": 0.1})
    entry = session.agents[0].model_dump() | {"lighter": ways, "options": {"continuity": 0.9, "stretch": True}}
    first, second = lighter_ways(session, WithLighter(**entry))
    assert first.words == "continuity = 0.5"
    assert first.options == {"continuity": 0.5, "stretch": True, "corpus": str(corpus), "channels": 1}
    assert second.words == f"corpus = {tmp_path / 'small'} and continuity = 0.1"
    assert second.options["corpus"] == str(tmp_path / "small")
    assert lighter_ways(session, session.agents[1]) == ()


def test_a_monitor_that_cannot_be_routed_is_refused_before_anything_starts() -> None:
    text = "[stream]\ninputs = [1, 2, 3]\n[mixer]\nmonitor = true\n"
    with pytest.raises(ValueError, match="3 channels to 2 outputs"):
        config_of(text)


def test_live_the_first_bar_comes_after_the_count_in_or_when_it_is_told_to() -> None:
    text = "[stream]\nsamplerate = 16000\n[transport]\nbpm = 120\ncount_in_bars = 1\n"
    assert config_of(text, live=True).tempo_map.bar_frame(0) == 32000
    assert config_of(text + "downbeat_seconds = 0.5\n", live=True).tempo_map.bar_frame(0) == 8000
    assert config_of(text).tempo_map.bar_frame(0) == 0


def test_a_downbeat_before_the_file_starts_leaves_out_the_bars_that_are_over() -> None:
    config = config_of("[transport]\nbpm = 120\ndownbeat_seconds = -5.0\n")
    assert config.first_bar == 2
    assert config.tempo_map.bar_frame(3) == 48000


def test_a_port_of_osc_that_is_taken_is_said_before_anything_rolls(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        text = f'[stream]\ndevice = "null"\n[osc]\non = true\nport = {port}\n[[agents]]\nname = "a"\nkind = "echo"\n'
        live = Live(Session.parse(text), tmp_path / "take", lambda said: None, lead=1024)
        with pytest.raises(ValueError, match=f"port {port}: .*; is another sideman running"):
            live.__enter__()
    assert not (tmp_path / "take").exists()
