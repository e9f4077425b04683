"""Takes: written while the music plays, read after any end."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import RATE as RIG_RATE
from rigs import ClickAgent, Rig

from bridge.recorder import TakeReader, TakeWriter, check_stem_names
from bridge.wav import WavWriter
from realtime.clock import Anchor, Meter, TempoChange
from realtime.engine import Command
from realtime.messages import encode
from realtime.protocols import Block, Origin, Piece

RATE = 1000
HEADER: dict[str, object] = {"samplerate": RATE, "lead": 64, "latency": 3, "seed": 7, "title": "a test"}
STEMS = [("keys", 1), ("bass-2", 2)]
ORIGIN = Origin("corpus", "eif", "abc", (Piece("a.flac", 0, 400, 0, 400, 7),))
LINES: list[dict[str, object]] = [
    {"type": "tempo", "frame": 10, "bar": 0, "beat": "0", "tempo": "120", "meter": "4/4", "ramp_beats": 0},
    {"type": "request", "agent": "keys", "attempt": 1, "bar": 0, "beat": "0", "beats": "4",
     "start": 10, "frames": 2000, "posted": 0, "context_end": 0},
    {"type": "reply", "agent": "keys", "attempt": 1, "bar": 0, "beat": "0", "arrived": 5, "compute_seconds": 0.25,
     "fault": "", "lead_in": 8, "origin": ORIGIN, "later": "a field of a later version"},
    {"type": "span", "agent": "keys", "bar": 0, "beat": "0", "beats": "4", "start": 10, "frames": 2000, "rung": 1,
     "cause": "", "attempt": 1, "deadline": 2, "arrived": 5, "margin_frames": -3},
    {"type": "tempo", "frame": 2010, "bar": 1, "beat": "0", "tempo": "60", "meter": "3/4", "ramp_beats": 0},
    {"type": "action", "frame": 12, "agent": "keys", "name": "density", "value": 0.5},
    {"type": "xrun", "frame": 20, "frames": 64, "cause": "output underflow"},
    {"type": "weather", "rain": True},
]  # fmt: skip


def noise(frames: int, channels: int, seed: int = 1) -> Block:
    return np.random.default_rng(seed).standard_normal((frames, channels)).astype(np.float32)


def sha256(block: Block) -> str:
    return hashlib.sha256(np.ascontiguousarray(block).tobytes()).hexdigest()


def record(folder: Path, frames: int = 3000, block: int = 128, close: bool = True) -> TakeWriter:
    """Write a small whole take."""
    take = TakeWriter(folder, HEADER, STEMS, 1, 2)
    for line in LINES:
        take.log(line)
    for start in range(0, frames, block):
        stop = min(frames, start + block)
        take.input(noise(frames, 1)[start:stop])
        take.stem("keys", noise(frames, 1, 2)[start:stop])
        take.stem("bass-2", noise(frames, 2, 3)[start:stop])
        take.mix(noise(frames, 2, 4)[start:stop])
    if close:
        assert take.close(frames, {"xruns": 1, "late_clips": 0}) == frames
    return take


def edit(folder: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = folder / "take.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_a_take_comes_back_as_it_was_written(tmp_path: Path) -> None:
    writer = record(tmp_path / "take")
    assert writer.fault == ""
    take = TakeReader(tmp_path / "take")
    assert (take.samplerate, take.inputs, take.outputs, take.lead, take.latency, take.seed) == (RATE, 1, 2, 64, 3, 7)
    assert take.header["title"] == "a test"
    assert take.stems == dict(STEMS)
    assert take.frames == 3000
    assert not take.truncated
    assert take.fault == ""
    np.testing.assert_array_equal(np.concatenate(list(take.input(700))), noise(3000, 1))
    np.testing.assert_array_equal(np.concatenate(list(take.mix(701))), noise(3000, 2, 4))
    np.testing.assert_array_equal(take.stem("bass-2"), noise(3000, 2, 3))
    np.testing.assert_array_equal(take.stem("keys", 100, 50), noise(3000, 1, 2)[100:150])
    np.testing.assert_array_equal(take.stem("keys", 2990, 50), noise(3000, 1, 2)[2990:])
    assert [len(block) for block in take.input(700)] == [700, 700, 700, 700, 200]


def test_the_lines_come_back_as_records(tmp_path: Path) -> None:
    record(tmp_path / "take")
    take = TakeReader(tmp_path / "take")
    assert [line["type"] for line in take.lines] == ["take", *(str(line["type"]) for line in LINES), "end"]
    assert take.lines[4] == encode(LINES[3])
    (reply,), (span,), (request,) = take.replies, take.spans, take.requests
    assert (reply.origin, reply.lead_in, reply.compute_seconds) == (ORIGIN, 8, 0.25)
    assert span.key == ("keys", 0, Fraction(0))
    assert (span.rung, span.margin_frames, span.beats) == (1, -3, Fraction(4))
    assert request.span.beats == 4
    assert (take.actions[0].value, take.xruns[0].frames) == (0.5, 64)
    assert take.end is not None
    assert take.end.counters == {"xruns": 1, "late_clips": 0}


def test_of_few_answers_the_slow_end_is_not_read_as_less_than_the_middle(tmp_path: Path) -> None:
    with TakeWriter(tmp_path / "take", HEADER, STEMS, 1, 2) as writer:
        line = {"type": "budget", "agent": "keys", "frame": 9, "budget_frames": 120}
        writer.log({**line, "p50_seconds": 0.2, "p99_seconds": 0.1})
        writer.log({**line, "p50_seconds": 0.1, "p99_seconds": 0.2})
    budgets = TakeReader(tmp_path / "take").budgets
    assert [(budget.p50_seconds, budget.p99_seconds) for budget in budgets] == [(0.2, 0.2), (0.1, 0.2)]


def test_the_ledgers_lines_come_back_as_records(tmp_path: Path) -> None:
    place = {"agent": "keys", "bar": 1, "beat": "1/2"}
    lines: list[dict[str, object]] = [
        {"type": "tempo", "frame": 0, "bar": 0, "tempo": "120", "meter": "4/4"},
        {"type": "armed", "agent": "keys", "budget_frames": 90, "generation": 0, "warm_up_runs": 4},
        {"type": "span", **place, "beats": "1", "start": 2250, "frames": 500, "rung": 3, "decided": 2240,
         "hops": {"ready": [2240, None], "mixed": [2240, 2000]}},
        {"type": "retime", **place, "beats": "1", "start": 2250, "frames": 700, "decided": 2300},
        {"type": "budget", "agent": "keys", "budget_frames": 120, "p50_seconds": 0.1, "p99_seconds": 0.2},
        {"type": "out", **place, "wanted": 2250, "actual": None, "cause": "no device was there"},
        {"type": "worker", "agent": "keys", "frame": 2900, "generation": 1, "event": "lost", "requests": 2},
        {"type": "locate", "frame": 4000, "announced": 2950, "late": False, "bar": 2, "song_bar": 7, "loop_bars": 4,
         "as_written": False},
    ]  # fmt: skip
    with TakeWriter(tmp_path / "take", HEADER, STEMS, 1, 2) as writer:
        for line in lines:
            writer.log(line)
    take = TakeReader(tmp_path / "take")
    (out,), (span,), (retime,), (locate,) = take.outs, take.spans, take.retimes, take.locates
    assert out.key == span.key == retime.key == ("keys", 1, Fraction(1, 2))
    assert (out.wanted, out.actual, out.cause) == (2250, None, "no device was there")
    assert span.hops == {"ready": (2240, None), "mixed": (2240, 2000)}
    assert (retime.frames, locate.song_bar, locate.loop_bars) == (700, 7, 4)
    assert [(line.frame, line.budget_frames) for line in take.armed] == [(0, 90)]
    assert [(line.frame, line.budget_frames) for line in take.budgets] == [(2300, 120)]
    assert [(line.frame, line.generation, line.event) for line in take.workers] == [(2900, 1, "lost")]
    assert [take.tempo_map.song_bar(bar) for bar in range(8)] == [0, 1, 7, 8, 9, 10, 7, 8]


def test_the_tempo_map_is_that_of_the_take(tmp_path: Path) -> None:
    record(tmp_path / "take")
    tempo_map = TakeReader(tmp_path / "take").tempo_map
    assert [tempo_map.bar_frame(bar) for bar in (0, 1, 2)] == [10, 2010, 5010]
    assert tempo_map.at_frame(2500).meter == Meter(3, 4)


def test_the_map_of_a_take_follows_who_led_it(tmp_path: Path) -> None:
    rig = Rig(
        {"a": ClickAgent()},
        script=[
            (RIG_RATE, Command("anchor", anchor=Anchor(7000, 12, Fraction(97), Meter(7, 8)))),
            (5 * RIG_RATE, Command("tempo", change=TempoChange(5, tempo=Fraction(140)))),
            (9 * RIG_RATE, Command("anchor", anchor=Anchor(500, -1, Fraction(120)))),
        ],
    )
    rig.run(14 * RIG_RATE)
    played = rig.engine.transport.map
    with TakeWriter(tmp_path / "take", HEADER | {"samplerate": RIG_RATE}, STEMS, 1, 2) as writer:
        writer.log({"type": "tempo", "frame": 0, "bar": 0, "tempo": "120", "meter": "4/4"})
        for line in rig.log:
            if line["type"] in ("tempo", "anchor"):
                writer.log(line)
    take = TakeReader(tmp_path / "take")
    assert [line.song_bar for line in take.anchors] == [line["song_bar"] for line in rig.lines("anchor")]
    for bar in range(12):
        assert take.tempo_map.bar_frame(bar) == played.bar_frame(bar)
        assert take.tempo_map.song_bar(bar) == played.song_bar(bar)


def test_the_last_line_holds_the_hash_of_every_stem(tmp_path: Path) -> None:
    record(tmp_path / "take")
    take = TakeReader(tmp_path / "take")
    assert take.end is not None
    assert take.end.stems == {"keys": sha256(noise(3000, 1, 2)), "bass-2": sha256(noise(3000, 2, 3))}
    assert {name: take.stem_hash(name) for name in take.stems} == take.end.stems


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.tuples(*[st.integers(0, 900)] * 4),
    block=st.integers(1, 400),
    frames=st.integers(0, 1000),
)
def test_files_end_equally_long_and_say_what_was_added(
    tmp_path_factory: pytest.TempPathFactory, lengths: tuple[int, int, int, int], block: int, frames: int
) -> None:
    folder = tmp_path_factory.mktemp("takes") / "take"
    writer = TakeWriter(folder, HEADER, STEMS, 1, 2)
    put = [writer.input, lambda b: writer.stem("keys", b), lambda b: writer.stem("bass-2", b), writer.mix]
    sounds = [noise(length, width) for length, width in zip(lengths, (1, 1, 2, 2), strict=True)]
    for sound, write in zip(sounds, put, strict=True):
        for start in range(0, len(sound), block):
            write(sound[start : start + block])
    total = writer.close(frames)
    assert total == max(frames, *lengths)
    take = TakeReader(folder)
    assert take.frames == total
    files = ["input.wav", "stems/keys.wav", "stems/bass-2.wav", "mix.wav"]
    for name, sound in zip(files, sounds, strict=True):
        read = soundfile.read(folder / name, dtype="float32", always_2d=True)[0]
        np.testing.assert_array_equal(read[: len(sound)], sound)
        assert len(read) == total
        assert not read[len(sound) :].any()
    added = {pad.file: (pad.start, pad.frames) for pad in take.pads}
    assert added == {n: (k, total - k) for n, k in zip(files, lengths, strict=True) if k < total}
    assert take.end is not None
    assert take.end.stems["keys"] == take.stem_hash("keys")


# --- ends of other kinds ---

KILLED = """
import sys, numpy as np
from bridge.recorder import TakeWriter
take = TakeWriter(sys.argv[1], {"samplerate": 48000}, [("keys", 1), ("bass", 2)], 1, 2)
ramp = np.arange(1 << 22, dtype=np.float32)[:, None]
for bar, at in enumerate(range(0, len(ramp) - 512, 512)):
    block = ramp[at : at + 512]
    take.input(block); take.stem("keys", block); take.stem("bass", np.hstack([block, -block]))
    take.mix(np.hstack([block, block]))
    take.log({"type": "xrun", "frame": at, "frames": bar, "cause": "x" * (bar % 300)})
    if bar == 400:
        print("rolling", flush=True)
"""


def test_a_kill_leaves_a_take_that_reads(tmp_path: Path) -> None:
    folder = tmp_path / "take"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"rolling\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    take = TakeReader(folder)
    assert take.end is None
    assert take.frames >= 400 * 512 - (12_000 + 512)
    ramp = np.arange(take.frames, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(np.concatenate(list(take.input())), ramp)
    np.testing.assert_array_equal(take.stem("keys"), ramp)
    np.testing.assert_array_equal(take.stem("bass"), np.hstack([ramp, -ramp]))
    assert take.stem_hash("keys") == sha256(ramp)
    lengths = [soundfile.info(path).frames for path in folder.rglob("*.wav")]
    assert len(lengths) == 4
    assert max(lengths) - min(lengths) <= 12_000 + 512  # a flush interval, to the next whole block
    assert [line.frame for line in take.xruns] == list(range(0, 512 * len(take.xruns), 512))
    assert len(take.xruns) >= 400


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path, cut: int) -> None:
    record(tmp_path / "take")
    edit(tmp_path / "take", lambda lines: [*lines[:-1], lines[-1][: -1 - cut]])
    take = TakeReader(tmp_path / "take")
    assert take.truncated
    assert take.end is None
    assert len(take.spans) == 1


def test_a_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    record(tmp_path / "take")
    edit(tmp_path / "take", lambda lines: [*lines[:-1], lines[-1].rstrip(b"\n")])
    take = TakeReader(tmp_path / "take")
    assert not take.truncated
    assert take.end is not None


LIMITED = """
import resource, sys, numpy as np
from bridge.recorder import TakeWriter
take = TakeWriter(sys.argv[1], {"samplerate": 1000}, [("keys", 1), ("bass", 2)], 1, 1)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
ramp = np.arange(10_000, dtype=np.float32)[:, None]
for at in range(0, 10_000, 100):
    block = ramp[at : at + 100]
    take.input(block); take.stem("keys", block); take.stem("bass", np.hstack([block, -block])); take.mix(block)
    take.log({"type": "xrun", "frame": at, "frames": 1, "cause": "x" * int(sys.argv[3])})
print(take.close(10_000, {"xruns": 0}))
print(take.fault)
"""


@pytest.mark.parametrize(("limit", "text", "culprit"), [(20_011, 1, "bass.wav"), (20_011, 1500, "take.jsonl")])
def test_when_a_file_cannot_grow_the_take_ends_and_stays_readable(
    tmp_path: Path, limit: int, text: int, culprit: str
) -> None:
    folder = tmp_path / "take"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(limit), str(text)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    frames, fault = int(done.stdout.splitlines()[0]), done.stdout.splitlines()[1]
    assert culprit in fault
    assert "may not grow further" in fault
    assert f"the first {frames} frames ({frames / 1000:.1f} s)" in fault
    assert "make room" in fault
    take = TakeReader(folder)
    assert 0 < take.frames == frames < 10_000
    ramp = np.arange(frames, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(np.concatenate(list(take.input())), ramp)
    np.testing.assert_array_equal(take.stem("bass"), np.hstack([ramp, -ramp]))
    if culprit == "bass.wav":  # there was room for the last words
        assert take.fault == fault
        assert take.end is not None
        assert take.end.frames == frames
        assert take.end.stems == {"keys": sha256(ramp), "bass": sha256(np.hstack([ramp, -ramp]))}
        assert soundfile.info(folder / "stems/keys.wav").frames >= frames
    else:
        assert not take.truncated
        assert [line.frame for line in take.xruns] == list(range(0, 100 * len(take.xruns), 100))


def test_a_full_disk_at_the_start_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.name == "mix.wav":
            raise OSError(28, "No space left on device")
        return WavWriter(path, *arguments, **keywords)

    monkeypatch.setattr("bridge.recorder.WavWriter", full)
    with pytest.raises(ValueError, match=r"take: no take can be written here, because the disk is full"):
        TakeWriter(tmp_path / "take", HEADER, STEMS, 1, 2)
    assert not (tmp_path / "take").exists()


def test_after_a_fault_the_music_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = record(tmp_path / "take", 3000, close=False)

    def fail(data: bytearray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(take._files["stems/keys.wav"], "_append", fail)
    for _ in range(10):
        take.stem("keys", noise(100, 1))
        take.input(noise(100, 1))
        take.log({"type": "xrun", "frame": 0, "frames": 1})
    assert "keys.wav: recording stopped, because the disk is full; the first 28" in take.fault
    kept = take.close(4000)
    assert 2750 <= kept < 3000
    read = TakeReader(tmp_path / "take")
    assert read.frames == kept
    assert read.fault == take.fault
    assert read.end is not None
    assert read.end.stems["bass-2"] == read.stem_hash("bass-2") == sha256(noise(3000, 2, 3)[:kept])
    assert not read.pads


# --- refusals ---


@pytest.mark.parametrize("leftover", ["take.jsonl", "input.wav", "stems", "mix.wav"])
def test_a_take_is_never_overwritten(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).mkdir()
    with pytest.raises(ValueError, match=f"already holds a take \\({leftover}\\); choose another folder"):
        TakeWriter(tmp_path, HEADER, STEMS, 1, 2)


def test_a_folder_with_other_files_is_taken(tmp_path: Path) -> None:
    (tmp_path / "session.toml").write_text("")
    record(tmp_path)
    assert TakeReader(tmp_path).frames == 3000


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "take").write_text("")
    with pytest.raises(ValueError, match="no take can be written here, because a file is in the place of a folder"):
        TakeWriter(tmp_path / "take", HEADER, STEMS, 1, 2)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a.b", "../x", "é", "CON", "lpt1", "-a", "a" * 65, "a b", "a\n"])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="its name becomes a file name"):
        TakeWriter(tmp_path / "take", HEADER, [(name, 1)], 1, 2)
    assert not (tmp_path / "take").exists()


def test_names_that_differ_in_case_only_are_refused() -> None:
    check_stem_names(["Keys", "bass"])
    for twins in (["Keys", "keys"], ["keys", "keys"]):
        with pytest.raises(ValueError, match="would share a file"):
            check_stem_names(twins)


@pytest.mark.parametrize(
    ("header", "inputs", "sentence"),
    [
        ({}, 1, "header of a new take: TakeLine.samplerate: missing"),
        ({"samplerate": "48k"}, 1, "TakeLine.samplerate: found '48k'"),
        ({"samplerate": 0}, 1, "samplerate=0"),
        ({"samplerate": 48000}, 0, "channels=0"),
    ],
)
def test_a_header_that_says_nothing_is_refused(
    tmp_path: Path, header: dict[str, object], inputs: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        TakeWriter(tmp_path / "take", header, STEMS, inputs, 2)
    assert not (tmp_path / "take").exists()


def test_misuse_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with TakeWriter(tmp_path / "take", HEADER, STEMS, 1, 2) as take:
        with pytest.raises(ValueError, match="stem 'drums' is not of this take; its stems are: bass-2, keys"):
            take.stem("drums", noise(1, 1))
        with pytest.raises(ValueError, match=r"expected \(frames, 2\)"):
            take.mix(noise(1, 1))
        with pytest.raises(ValueError, match="gain: found nan"):
            take.log({"type": "reply", "gain": float("nan")})


def rewrite(index: int, **fields: object) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        line = {**json.loads(lines[index]), **fields}
        lines[index] = json.dumps({k: v for k, v in line.items() if v is not ...}).encode() + b"\n"
        return lines

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rewrite(0, version=2), r"is of version 2; this sideman reads version 1"),
        (rewrite(0, version=...), r"is of version None"),
        (rewrite(0, type="song"), r"does not begin with the line of a take"),
        (lambda lines: [], r"does not begin with the line of a take"),
        (rewrite(0, samplerate=...), r"line 1, TakeLine\.samplerate: missing"),
        (rewrite(0, stems=[{"name": "../x", "channels": 1}]), r"stem '\.\./x': its name becomes a file name"),
        (rewrite(0, samplerate=44100), r"input\.wav: found 1000 Hz, 1 channels, expected 44100 Hz, 1 channels"),
        (rewrite(3, origin={"kind": "corpus", "pieces": [7]}), r"line 4, ReplyLine\.origin\.pieces\[0\]: found 7"),
        (rewrite(4, rung="one"), r"line 5, SpanLine\.rung: found 'one', expected an integer"),
        (rewrite(4, type=5), r"line 5: expected an object with a \"type\""),
        (lambda lines: [*lines[:2], b"{oops\n", *lines[2:]], r"line 3: not JSON"),
        (lambda lines: [*lines[:2], b"\xff\n", *lines[2:]], r"line 3: not JSON"),
        (lambda lines: [*lines[:2], b"[" * 99_999 + b"\n", *lines[2:]], r"line 3: not JSON"),
        (lambda lines: [*lines[:2], b"[1]\n", *lines[2:]], r"line 3: expected an object"),
    ],
)
def test_a_log_that_does_not_read_is_one_sentence(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], sentence: str
) -> None:
    record(tmp_path / "take")
    edit(tmp_path / "take", change)
    with pytest.raises(ValueError, match=sentence) as error:
        TakeReader(tmp_path / "take")
    assert "\n" not in str(error.value)


def test_folders_that_are_no_takes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no-such: found nothing, expected the folder of a take"):
        TakeReader(tmp_path / "no-such")
    with pytest.raises(ValueError, match=r"is no take: it has no take\.jsonl"):
        TakeReader(tmp_path)
    record(tmp_path / "take")
    with pytest.raises(ValueError, match=r"found a file, expected the folder"):
        TakeReader(tmp_path / "take" / "input.wav")
    (tmp_path / "take" / "input.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"input\.wav is no sound file that can be read"):
        TakeReader(tmp_path / "take")
    (tmp_path / "take" / "input.wav").unlink()
    with pytest.raises(ValueError, match=r"input\.wav is missing"):
        TakeReader(tmp_path / "take")


def test_deleted_stems_are_missed_only_when_asked_for(tmp_path: Path) -> None:
    """A replay makes them again."""
    record(tmp_path / "take")
    (tmp_path / "take/stems/keys.wav").unlink()
    (tmp_path / "take/mix.wav").unlink()
    take = TakeReader(tmp_path / "take")
    assert take.frames == 3000
    assert (take.has("keys"), take.has("bass-2")) == (False, True)
    with pytest.raises(ValueError, match=r"keys\.wav is missing"):
        take.stem("keys")
    with pytest.raises(ValueError, match=r"stem 'drums' is not of the take .*; its stems are: keys, bass-2"):
        take.stem("drums")
    with pytest.raises(ValueError, match="start=3001"):
        take.stem("bass-2", 3001)
