"""Suite ``core``: is it on the grid, is it the same twice, is it quick, does it survive its devices."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from live import (
    LIVE_LEAD,
    MOST_LATE,
    NO_JACK,
    PERIOD_NS,
    SAMPLERATE,
    busy_threads,
    controlled,
    corpus_agent,
    jack_server,
    judge,
    live_text,
    longest_turn_seconds,
    start_jack,
    wait_for,
)
from rows import Options, Row

SUITE = "core"


def rows(options: Options) -> Iterator[Row]:
    """Yield the suite's rows."""
    with tempfile.TemporaryDirectory(prefix="sideman-bench-") as name:
        folder = Path(name)
        yield from grid_rows(folder, options)
        yield from identity_rows(folder, options)
        yield from material_rows(folder, options)
        yield from speed_rows(folder, options)
        yield from start_rows(folder, options)
        yield from live_rows(folder, options)
        yield from restart_rows(folder, options)
        yield from model_rows()


def row(name: str, value: float, unit: str, goal: str, ok: bool | None, reason: str = "") -> Row:
    """Make a row of this suite."""
    return Row(SUITE, name, float(value), unit, goal, None if ok is None else bool(ok), reason)


def unmeasured(name: str, unit: str, goal: str, reason: str) -> Row:
    """Make a row for what cannot be measured here."""
    return Row(SUITE, name, None, unit, goal, None, reason)


# Material


def click_corpus(folder: Path, bpm: str, samplerate: int, beats: int = 32) -> Path:
    """Build a corpus of single-frame clicks, one a beat, no two alike in level."""
    from realtime.clock import TempoMap
    from realtime.corpus import build
    from realtime.soundfiles import write

    grid = TempoMap.steady(samplerate, bpm)
    audio = np.zeros((grid.frame_at(Fraction(beats)), 1), np.float32)
    for beat in range(beats):
        audio[grid.frame_at(Fraction(beat)), 0] = 0.5 + 0.4 * (beat * 7 % beats) / beats
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "clicks.wav", audio, samplerate, "FLOAT")
    build([folder / "clicks.wav"], folder / "corpus", bpm=bpm)
    return folder / "corpus"


def session_text(corpus: Path, samplerate: int, bpm: str, meter: str, changes: str = "", more: str = "") -> str:
    """Return a session with one corpus agent that plays from a chart."""
    return f"""
[stream]
samplerate = {samplerate}
outputs = 2
[transport]
bpm = "{bpm}"
meter = "{meter}"
chart = ["C"]
{changes}
{corpus_agent("click", corpus, more)}
"""


def write_noise(path: Path, seconds: float, samplerate: int) -> Path:
    """Write a quiet noise, something to play against."""
    from realtime.soundfiles import write

    noise = np.random.default_rng(1).normal(0, 0.05, (round(seconds * samplerate), 1)).astype(np.float32)
    write(path, noise, samplerate, "FLOAT")
    return path


# The grid, on the WAV

GRIDS = [
    (44100, "60", "4/4", ""),
    (48000, "97.3", "3/4", ""),
    (47999, "120", "7/8", ""),
    (96000, "133.7", "4/4", ""),
    (22050, "240", "3/4", ""),
    (48000, "200", "7/8", "[[transport.changes]]\nbar = 3\nbpm = 81\n[[transport.changes]]\nbar = 5\nmeter = '4/4'"),
    (44100, "60", "4/4", "[[transport.changes]]\nbar = 2\nbpm = 240\nramp_beats = 9"),
    (32000, "240", "4/4", "[[transport.changes]]\nbar = 3\nbpm = 61.5\nramp_beats = 12\n"
                          "[[transport.changes]]\nbar = 7\nbpm = 150\nmeter = '3/4'"),
]  # fmt: skip


def grid_rows(folder: Path, options: Options) -> Iterator[Row]:
    """Clicks of a corpus, re-ordered and stretched, against the tempo map: on the stem's WAV."""
    from bridge.offline import render
    from bridge.session import Session
    from realtime.soundfiles import read

    corpora = {rate: click_corpus(folder / f"clicks-{rate}", "120", rate) for rate in {grid[0] for grid in GRIDS}}
    worst, expected, found_clicks = 0, 0, 0
    for index, (rate, bpm, meter, changes) in enumerate(GRIDS):
        session = Session.parse(session_text(corpora[rate], rate, bpm, meter, changes))
        seconds = 5 if options.quick else 40
        out = folder / f"grid-{index}"
        render(session, write_noise(folder / f"noise-{index}.wav", seconds, rate), out)
        stem, _ = read(out / "stems" / "click.wav")
        beats = beat_frames(session.tempo_map(rate), len(stem))
        clicks = np.flatnonzero(np.abs(stem[:, 0]) > 0.3)
        expected, found_clicks = expected + len(beats), found_clicks + len(clicks)
        worst = max(worst, grid_error(clicks, beats))
        shutil.rmtree(out)
    what = f"{expected} beats in {len(GRIDS)} grids, 60 to 240 bpm, ramps, 3/4 4/4 7/8, 22050 to 96000 Hz"
    yield row("downbeat error", worst, "frames", "0", worst == 0 and expected == found_clicks, what)


def beat_frames(tempo_map: Any, frames: int) -> list[int]:
    """Return the frame of every whole beat of every bar, from the tempo map alone."""
    beats, bar = [], 0
    while tempo_map.bar_frame(bar) < frames:
        start, beat = tempo_map.downbeat(bar), Fraction(0)
        while beat < tempo_map.bar_beats(bar):
            beats.append(tempo_map.frame_at(start + beat))
            beat += 1
        bar += 1
    return [beat for beat in beats if beat < frames]


def grid_error(clicks: Any, beats: list[int]) -> int:
    """Return the largest distance from a beat to its click and from a click to its beat."""
    if not len(clicks) or not beats:
        return 1 << 30
    from_beats = max(int(np.abs(clicks - beat).min()) for beat in beats)
    grid = np.asarray(beats)
    return max(from_beats, *(int(np.abs(grid - click).min()) for click in clicks))


# The same twice


def identity_rows(folder: Path, options: Options) -> Iterator[Row]:
    """Block sizes, replay, and a replay of a changed log, on the built-in band."""
    from bridge.demo import demo_session
    from bridge.offline import render, replay
    from realtime.soundfiles import read, write

    session, player = demo_session(folder / "demo-corpora")
    audio, rate = read(player)
    seconds, short = (8, 1) if options.quick else (30, 4)
    write(folder / "player.wav", audio[: seconds * rate], rate, "FLOAT")
    takes = {}
    for blocksize in (64, 65, 300, 8192):
        takes[blocksize] = folder / f"block-{blocksize}"
        render(session, folder / "player.wav", takes[blocksize], blocksize=blocksize)
    write(folder / "short.wav", audio[: short * rate], rate, "FLOAT")
    for blocksize in (1, 64):
        takes[-blocksize] = folder / f"short-{blocksize}"
        render(session, folder / "short.wav", takes[-blocksize], blocksize=blocksize)
    different = sum(not same_stems(takes[64], takes[size]) for size in (65, 300, 8192))
    different += not same_stems(takes[-64], takes[-1])
    yield row("takes that differ by block size 1 64 65 300 8192", different, "takes", "0", different == 0)

    take, kept = takes[64], folder / "kept"
    shutil.move(take / "stems", kept)
    replay(take, folder / "replayed")
    same = same_files(kept, folder / "replayed" / "stems")
    yield row("stems that differ on replay, stems deleted", float(not same), "takes", "0", same)

    change_one_unit(take / "take.jsonl")
    replay(take, folder / "changed")
    changed = not same_files(kept, folder / "changed" / "stems")
    yield row("a unit changed in the log changes the sound", float(changed), "takes", "1", changed)


def same_stems(take: Path, other: Path) -> bool:
    """Whether two takes have the same stems, to the bit."""
    return same_files(take / "stems", other / "stems")


def same_files(folder: Path, other: Path) -> bool:
    """Whether the WAVs of two folders hold the same samples."""
    from realtime.soundfiles import read

    names = sorted(path.name for path in folder.glob("*.wav"))
    return bool(names) and all(np.array_equal(read(folder / name)[0], read(other / name)[0]) for name in names)


def change_one_unit(log: Path) -> None:
    """Let one unit of a log come from elsewhere in its source."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    finals = (line for line in lines if line["type"] == "reply" and line["origin"] and line["bar"] == 3)
    piece = next(line for line in finals if line["agent"] == "bass" and line["attempt"] == 1)["origin"]["pieces"][0]
    piece["source_frame"] += 48000
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


# Real recordings


def material_rows(folder: Path, options: Options) -> Iterator[Row]:
    """One stem as input, a corpus of another song: lengths, silence, and every unstretched unit found in its stem."""
    wanted = {"eif_francium": "128", "eif_lithium": "124", "muldjord_armygeddon": "170"}
    pairs = [("other bars", 0)] if options.quick else [("another song", 1), ("other bars", 0)]
    songs = [] if options.material is None else [song for song in wanted if (options.material / song).is_dir()]
    if not songs or options.material is None:
        for name in (
            "unstretched units found elsewhere",
            "stems of another length",
            "silent bars while the input plays",
        ):
            yield unmeasured(name, "", "0", "no recordings: give --material FOLDER")
        return
    lags, lengths, silent, units = 0, 0, 0, 0
    for index, song in enumerate(songs):
        for label, ahead in pairs:
            source = songs[(index + ahead) % len(songs)]
            take, session_rate = render_material(options.material, song, source, wanted, folder, label)
            wrong, found = units_elsewhere(take, session_rate)
            lags, units = lags + wrong, units + found
            lengths += wrong_lengths(take)
            silent += silent_bars(take)
    note = f"{units} unstretched units in {len(pairs) * len(songs)} takes of {', '.join(songs)}"
    yield row("unstretched units found elsewhere", lags, "units", "0", lags == 0 and units > 0, note)
    yield row("stems of another length", lengths, "stems", "0", lengths == 0)
    yield row("silent bars while the input plays", silent, "bars", "0", silent == 0)


def render_material(
    material: Path, song: str, source: str, bpms: dict[str, str], folder: Path, label: str
) -> tuple[Path, int]:
    """Render one stem of ``song`` against a corpus of all the other stems of ``source``."""
    from bridge.offline import render
    from bridge.session import Session, override
    from realtime.corpus import build

    stems = sorted((material / song).glob("*.flac"))
    played = next((stem for stem in stems if stem.stem in ("drums", "guitar")), stems[0])
    files = [stem for stem in sorted((material / source).glob("*.flac")) if stem.name != played.name]
    corpus = folder / f"corpus-{source}-{played.stem}"
    if not corpus.exists():
        build(files, corpus, bpm=bpms[source])
    text = session_text(corpus, 44100, bpms[song], "4/4").replace('chart = ["C"]', "")
    out = folder / f"take-{song}-{label.replace(' ', '-')}"
    render(override(Session.parse(text), bpm=bpms[song]), played, out)
    return out, 44100


def units_elsewhere(take: Path, samplerate: int) -> tuple[int, int]:
    """Correlate each unstretched unit's source with the stem; return how many peak elsewhere, and of how many."""
    from bridge.recorder import TakeReader
    from realtime.buffers import join_frames
    from realtime.corpus import load
    from realtime.soundfiles import read

    reader = TakeReader(take)
    corpus = load(Path(reader.header["engine"]["parts"][0]["agent"]["options"]["corpus"]))
    stem = read(take / "stems" / "click.wav")[0][:, 0].astype(np.float64)
    replies = {(r.bar, r.beat, r.attempt): r for r in reader.replies}
    wrong = found = 0
    for span in reader.spans:
        reply = replies.get((span.bar, span.beat, span.attempt)) if span.rung in (1, 2) else None
        for piece in reply.origin.pieces if reply is not None and reply.origin is not None else ():
            start = span.start + piece.at
            frames = min(piece.frames - join_frames(samplerate), 8192)  # the end is the next unit's crossfade
            if piece.stretched or frames < 1000 or start - 200 < 0 or start + frames + 200 > len(stem):
                continue
            source = corpus.read(corpus.index_of(piece.source), piece.source_frame, 0, frames, samplerate)
            sound = source.mean(axis=1).astype(np.float64)
            if np.sqrt(np.mean(sound**2)) < 1e-3:
                continue  # nothing there to find
            window = stem[start - 200 : start + frames + 200]
            energy = np.convolve(window**2, np.ones(frames), "valid")
            likeness = np.correlate(window, sound, "valid") / np.sqrt(np.maximum(energy, 1e-12))
            lag = int(np.argmax(likeness)) - 200
            wrong, found = wrong + (lag != 0), found + 1
    return wrong, found


def wrong_lengths(take: Path) -> int:
    """Count the stems that are not exactly as long as the input."""
    from realtime.soundfiles import info

    frames = info(take / "input.wav").frames
    return sum(info(stem).frames != frames for stem in (take / "stems").glob("*.wav"))


def silent_bars(take: Path) -> int:
    """Count bars, from the third on, in which the input plays and a stem does not."""
    from bridge.recorder import TakeReader
    from realtime.soundfiles import read

    reader = TakeReader(take)
    tempo_map, count = reader.tempo_map, 0
    heard, stem = read(take / "input.wav")[0], read(take / "stems" / "click.wav")[0]
    bar = 2
    while tempo_map.bar_frame(bar + 1) <= len(stem):
        cut = slice(tempo_map.bar_frame(bar), tempo_map.bar_frame(bar + 1))
        before = slice(tempo_map.bar_frame(bar - 1), tempo_map.bar_frame(bar))
        plays = all(np.sqrt(np.mean(heard[part] ** 2)) > 3e-3 for part in (before, cut))
        count += bool(plays and np.sqrt(np.mean(stem[cut] ** 2)) < 1e-4)
        bar += 1
    return count


# Speed


def speed_rows(folder: Path, options: Options) -> Iterator[Row]:
    """A corpus agent over half an hour of material, on one core."""
    from bridge.demo import HERE, demo_session
    from bridge.offline import render
    from bridge.session import Session
    from realtime.corpus import build
    from realtime.soundfiles import read, write

    demo_session(folder / "demo-corpora")
    minutes = 6 if options.quick else 30
    parts = [read(HERE / name)[0] for name in ("bass.flac", "marimba.flac", "player.flac")]
    lap = np.concatenate([part[: 48000 * 60] for part in parts])
    write(folder / "lap.flac", lap, SAMPLERATE)
    files = []
    for number in range(minutes // 3):
        files.append(folder / f"lap-{number}.flac")
        shutil.copy(folder / "lap.flac", files[-1])
    begin = time.perf_counter()
    build(files, folder / "long", bpm="112")
    building = time.perf_counter() - begin
    session = Session.parse(session_text(folder / "long", SAMPLERATE, "116", "4/4").replace('chart = ["C"]', ""))
    with one_core() as where:
        rendered = render(session, HERE / "player.flac", folder / "speed")
    factor = rendered.realtime_factor
    yield row(f"offline, one corpus agent, {minutes}-minute corpus", factor, "x", ">= 20", factor >= 20, where)
    speed = 60 * minutes / building
    yield row("building that corpus", speed, "x", ">= 20", speed >= 20, "the issue gives no goal; that of rendering")


@contextmanager
def one_core() -> Iterator[str]:
    """Stay on one core meanwhile, where the system can be told."""
    if not hasattr(os, "sched_setaffinity"):
        yield "on any core: this system pins nothing"
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield "pinned to one core"
    finally:
        os.sched_setaffinity(0, cores)


# Starting


def start_rows(folder: Path, options: Options) -> Iterator[Row]:
    """How long imports, help and the first sound take."""
    python, sideman = sys.executable, str(Path(sys.executable).with_name("sideman"))
    runs = 3 if options.quick else 20
    for name, command in (
        ("import realtime.engine", [python, "-c", "import realtime, realtime.engine"]),
        ("sideman --help", [sideman, "--help"]),
    ):
        seconds = statistics.median(timed(command) for _ in range(runs))
        yield row(name, seconds, "s", "<= 0.3", seconds <= 0.3, f"median of {runs}")
    name, goal = "first audio of play", "<= 1"
    with jack_server("sideman-bench-start") as server:
        if not server:
            yield unmeasured(name, "s", goal, NO_JACK)
            return
        # a metronome in 32nds, for ever: whenever the ear is connected, it hears at once
        session = write_live_session(folder, bpm=400, meter="32/32")
        runs = 2 if options.quick else 20
        first = [first_audio_seconds(session, folder / f"first-{index}") for index in range(runs)]
        seconds = statistics.median(first)
        yield row(name, seconds, "s", goal, seconds <= 1, f"median of {runs}, at the server's port, JACK dummy")


def timed(command: list[str]) -> float:
    """Run a command; return its seconds."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def first_audio_seconds(session: Path, out: Path) -> float:
    """Start ``sideman play`` and listen at its port; return the seconds to its first sample that is not zero."""
    import jack

    client, heard = jack.Client("sideman-bench-ear"), threading.Event()
    port = client.inports.register("in")

    @client.set_process_callback
    def process(frames: int) -> None:
        if not heard.is_set() and port.get_array().any():
            heard.set()

    sideman = str(Path(sys.executable).with_name("sideman"))
    with client:
        begin = time.perf_counter()
        played = subprocess.Popen(
            [sideman, "play", str(session), "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while time.perf_counter() - begin < 20 and not heard.wait(0.002):
                for source in client.get_ports("PortAudio.*", is_audio=True, is_output=True):
                    if source not in client.get_all_connections(port):
                        with suppress(jack.JackError):
                            client.connect(source, port)
            seconds = time.perf_counter() - begin
        finally:
            played.terminate()  # as good as Ctrl-C, which a shell's background jobs do not get
            played.wait(20)
    return seconds


def write_live_session(folder: Path, clicks: bool = False, bpm: int = 112, meter: str = "4/4") -> Path:
    """Write a session for the live rows: the built-in bass, and clicks (unstretched) or the built-in drums."""
    from bridge.demo import demo_session

    demo_session(folder / "demo-corpora")
    second = click_corpus(folder / "clicks-live", "112", SAMPLERATE) if clicks else folder / "demo-corpora" / "drums"
    path = folder / ("live-clicks.toml" if clicks else "live.toml")
    text = live_text(
        "count_in_bars = 1",
        f"[metronome]\non = {'false' if clicks else 'true'}\noutputs = [2]",
        corpus_agent("second", second, "outputs = [1]"),
        corpus_agent("bass", folder / "demo-corpora" / "bass", "outputs = [2]"),
        bpm=bpm,
        meter=meter,
    )
    path.write_text(text)
    return path


# Live


def live_rows(folder: Path, options: Options) -> Iterator[Row]:
    """Two agents, two busy threads in the bridge, minutes of it; the clicks are looped back from out to in."""
    minutes = 1 / 12 if options.quick else 10
    names = ("attributable empty rings", "grid error, live, looped back")
    with jack_server("sideman-bench-live") as server:
        if not server:
            for name in names:
                yield unmeasured(name, "", "0", NO_JACK)
            return
        from bridge.app import Live
        from bridge.session import Session

        out, said = folder / "live-take", []
        session = Session.load(write_live_session(folder, clicks=True))
        with Live(session, out, said.append, lead=LIVE_LEAD) as live:
            loop_back(live)
            with busy_threads(2), controlled(live, 60 * minutes, folder) as table:
                until = time.monotonic() + 60 * minutes + 1
                while time.monotonic() < until and live.poll():
                    time.sleep(0.1)
                found = table()
            realtime, lead = live.realtime, live.config.spec.lead
        empty, attributable, late = judge(found, lead)
        ok: bool | None = attributable == 0
        reason = (
            f"{empty} in all, {minutes:g} min, lead {lead}, 2 agents, control late in {100 * late:.2f} % of periods"
        )
        if not realtime or late > MOST_LATE:
            ok, reason = None, reason + "; " + ("no realtime rights" if not realtime else "the machine is too noisy")
        yield row(names[0], attributable, "rings", "0", ok, reason)
        error, clicks = looped_error(out)
        yield row(names[1], error, "frames", "0", error == 0 and clicks > 0, f"{clicks} clicks, out to in")


def loop_back(live: Any) -> None:
    """Connect the first output to the first input as soon as the ports are there."""
    import jack

    client = jack.Client("sideman-bench-patch", no_start_server=True)
    with client:
        for _ in range(400):
            sources = client.get_ports("PortAudio.*", is_audio=True, is_output=True)
            targets = client.get_ports("PortAudio.*", is_audio=True, is_input=True)
            if sources and targets and live.status().device["state"] == 1:
                for old in client.get_all_connections(targets[0]):
                    client.disconnect(old, targets[0])
                client.connect(sources[0], targets[0])
                return
            time.sleep(0.02)


def looped_error(take: Path) -> tuple[int, int]:
    """Compare the clicks that came back with those that were sent: spread of the way's length, and how many."""
    from realtime.soundfiles import read

    sent = np.flatnonzero(np.abs(read(take / "stems" / "second.wav")[0][:, 0]) > 0.3)
    came = np.flatnonzero(np.abs(read(take / "input.wav")[0][:, 0]) > 0.2)
    sent = sent[sent > (came[0] if len(came) else 0) - 4 * SAMPLERATE]
    if len(came) < 2 or len(sent) < 2:
        return 1 << 30, 0
    ways = []
    for click in came:
        before = sent[sent <= click]
        if len(before):
            ways.append(int(click - before[-1]))
    usual = int(np.median(ways))
    return max(abs(way - usual) for way in ways), len(ways)


def restart_rows(folder: Path, options: Options) -> Iterator[Row]:
    """Kill the audio server while the band plays, start it again, look at the clock and the sound."""
    names = ("sound after the server is back", "clock error over a server's death", "engine stalls meanwhile")
    with jack_server("sideman-bench-kill") as server:
        if not server:
            for name in names:
                yield unmeasured(name, "", "", NO_JACK)
            return
        from bridge.app import Live
        from bridge.session import Session

        session = Session.load(write_live_session(folder))
        with Live(session, None, lambda text: None, lead=LIVE_LEAD) as live:
            wait_for(live, lambda: live.status().device["state"] == 1)
            alone = 1.0 if options.quick else 3.0
            with controlled(live, 3 * alone + 3, folder) as table:
                time.sleep(alone)
                server.kill()
                server.wait()
                time.sleep(alone)
                begun_ns = time.monotonic_ns()
                again = start_jack("sideman-bench-kill")
                ready_ns = time.monotonic_ns()
                found = table()
            if again is not None:
                again.terminate()
                again.wait()
        epochs = found[:, 6]
        back = found[(epochs > epochs[0]) & (found[:, 0] > begun_ns), 0]
        seconds = (back[0] - ready_ns) / 1e9 if len(back) else float("inf")
        yield row(names[0], max(0.0, seconds), "s", "<= 2", seconds <= 2, "from the moment the server can be reached")
        clock = found[:, 4] - (found[:, 5] - found[0, 5]) * SAMPLERATE / 1e9 - found[0, 4]
        error_ms = 1000 * float(np.abs(clock[-200:] - np.median(clock[:200])).max()) / SAMPLERATE
        yield row(
            names[1], error_ms, "ms", "<= 3", error_ms <= 3, "session frames against the wall clock; a period is 2.7"
        )
        stalls = int((np.diff(found[:, 5]) > LIVE_LEAD * 10**9 // SAMPLERATE).sum())
        late = float((found[:, 1] > PERIOD_NS).mean())
        ok = True if stalls == 0 else (None if late > MOST_LATE else False)
        longest = 1000 * longest_turn_seconds(found)
        yield row(names[2], stalls, "stalls", "0", ok, f"turns longer than the lead; longest {longest:.1f} ms")


# Models


def model_rows() -> Iterator[Row]:
    """How long a step of each exported model takes on this machine; a GPU's only where there is one."""
    from bridge.session import MODELS
    from realtime.inference import Model

    for card in sorted(MODELS.glob("*/card.toml")):
        for provider in ("cpu", "cuda", "tensorrt"):
            name = f"{card.parent.name} on {provider}, p99 of a step"
            try:
                model = Model.open(card.parent, provider=provider)
            except ValueError as error:
                yield unmeasured(name, "ms", "< a hop", str(error).splitlines()[0][:120])
                continue
            budget_ms = 1000 * model.card.hop / model.card.samplerate
            state = model.start()
            inputs = {
                tensor.name: tensor.outside(np.zeros(tensor.shape, tensor.dtype)) for tensor in model.card.inputs
            }
            times = []
            for _ in range(2000):
                begin = time.perf_counter()
                state.step(inputs)
                times.append(1000 * (time.perf_counter() - begin))
            value = float(np.percentile(times, 99))
            yield row(name, value, "ms", f"< {budget_ms:.1f}", value < budget_ms, "a hop's length; 2000 steps")
