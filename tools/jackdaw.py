"""A DAW on a JACK server that sends MIDI clock, a session that follows it, and the clicks that come back to the DAW.

The DAW is one JACK client with a grid of its own: it sends clock from places of its song, and hears when the
session's metronome clicks. The session is started as a user's is; nothing in it knows of the DAW but a port's name.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from live import LIVE_LEAD, SAMPLERATE, jack_server, live_text, wait_for

SECOND_NS = 10**9
BAR_BEATS, TICKS = 4, 24
SESSION_BPM = 110
"""Deliberately another tempo than the DAW's."""
CYCLE_FRAMES = 1024
"""A client that is written in Python misses shorter cycles of JACK's now and then."""
CLICK_LEVEL, CLICK_FRAMES = 0.05, 2000
LOOK_SECONDS = 0.2
ON_GRID_MS, NEAR_BEATS = 1.0, 0.125
LOCKED_SECONDS, KNOWN_SECONDS, PAUSE_SECONDS = 15.0, 2.0, 0.4
FOLLOWING = """
[metronome]
on = true
gain_db = 0.0
outputs = [1]
[[sync.follow]]
kind = "jack-midi"
port = "daw:clock"
[[agents]]
name = "echo"
kind = "echo"
outputs = [2]
budget_seconds = 0.1
"""


class Daw:
    """What a DAW does in each cycle of JACK's: send MIDI clock by its own grid, and listen for clicks.

    Attributes
    ----------
    order
        Beats to roll from, -1 to stop; ``None`` once it is done.
    rolls
        For each roll: beat, frame and host time of its beginning, and the frame of its end.
    clicks
        Frames at which a click began.
    late
        Cycles that JACK says somebody missed.
    """

    def __init__(self, client: Any, bpm: str) -> None:
        self.order: int | None = None
        self.rolls: list[list[int]] = []
        self.clicks: list[int] = []
        self.late: list[int] = []
        self.clock = client.midi_outports.register("clock")
        self.ear = client.inports.register("ear")
        self._client = client
        self._tick = Fraction(60 * SAMPLERATE, TICKS) / Fraction(bpm)
        self._next: int | None = None  # ticks since the roll began

    def __call__(self, frames: int) -> None:
        """Do a cycle's work."""
        self.clock.clear_buffer()
        now = self._client.last_frame_time
        self._listen(now)
        if (order := self.order) is not None:
            self._obey(order, now)
            self.order = None
        while self._next is not None:
            at = self.rolls[-1][1] + round(self._next * self._tick)
            if at >= now + frames:
                return
            self.clock.write_midi_event(max(0, at - now), b"\xf8")
            self._next += 1

    def _obey(self, beat: int, now: int) -> None:
        if beat < 0:
            self._next, self.rolls[-1][3] = None, now
            self.clock.write_midi_event(0, b"\xfc")
            return
        self.rolls.append([beat, now, time.monotonic_ns(), 0])
        self._next = 0
        if beat:
            self.clock.write_midi_event(0, bytes((0xF2, 4 * beat & 0x7F, 4 * beat >> 7)))
        self.clock.write_midi_event(0, b"\xfb" if beat else b"\xfa")

    def _listen(self, now: int) -> None:
        loud = np.flatnonzero(np.abs(self.ear.get_array()) > CLICK_LEVEL)
        if len(loud) and (not self.clicks or now + int(loud[0]) - self.clicks[-1] > CLICK_FRAMES):
            self.clicks.append(now + int(loud[0]))


def be_daw(bpm: str, told: Any) -> None:
    """Be a DAW's process: do what is ordered, connect whoever plays to its ear, and tell in the end."""
    import jack

    jack.set_error_function(lambda text: None)
    jack.set_info_function(lambda text: None)
    client = jack.Client("daw", no_start_server=True)
    client.blocksize = CYCLE_FRAMES  # of the whole server
    daw = Daw(client, bpm)
    client.set_process_callback(daw)
    client.set_xrun_callback(lambda delayed: daw.late.append(client.last_frame_time))
    with client:
        told.send("ready")
        while True:
            if told.poll(LOOK_SECONDS):
                order = told.recv()
                if order is None:
                    break
                daw.order = order
            with suppress(jack.JackError):
                sources = client.get_ports("PortAudio.*out_0", is_audio=True, is_output=True)
                if sources and sources[0] not in client.get_all_connections(daw.ear):
                    client.connect(sources[0], daw.ear)
    told.send({"rolls": daw.rolls, "clicks": daw.clicks, "late": daw.late})


@dataclass(frozen=True, slots=True)
class BarTold:
    """A bar as the engine tells it: its number in the song, when it begins (host time), whether the band rests."""

    song_bar: int
    time_ns: int
    resting: bool


class Grid:
    """Takes in what a session's engine tells of its bars."""

    def __init__(self, live: Any) -> None:
        self.bars: dict[int, BarTold] = {}
        self._grid, self._stream = live.arena.status("engine.grid"), live.arena.status("stream.status")

    def look(self) -> None:
        """Look once; some dozens of times a second."""
        grid, stream = self._grid.read(), self._stream.read()
        if grid["tempo_above"] and stream["time_ns"]:
            time_ns = stream["time_ns"] + (grid["frame"] - stream["frame"]) * SECOND_NS // SAMPLERATE
            # The first word on a bar holds: one that is bent later is told by a line by which it began elsewhere.
            self.bars.setdefault(grid["bar"], BarTold(grid["song_bar"], time_ns, bool(grid["resting"])))

    @property
    def resting(self) -> bool:
        """Whether the band rests now."""
        return bool(self._grid.read()["resting"])


@dataclass(frozen=True, slots=True)
class Performance:
    """What a DAW did, and what it heard of a session that follows it.

    Attributes
    ----------
    bpm
        The DAW's.
    rolls
        Beat, frame and host time (ns) of each beginning, and the frame of the end.
    clicks, late
        Frames of JACK's: of clicks, and of cycles that were missed.
    bars
        What the engine told.
    """

    bpm: str
    rolls: list[list[int]]
    clicks: list[int]
    late: list[int]
    bars: list[BarTold]


def performed(folder: Path, bpm: str, places: Sequence[int], bars: float) -> Performance | None:
    """Have a DAW roll from each of some beats for some bars; ``None`` without a JACK server."""
    from bridge.app import Live
    from bridge.session import Session

    bar_seconds = BAR_BEATS * 60 / float(bpm)
    context = multiprocessing.get_context("spawn")
    with jack_server("sideman-bench-midi") as server:
        if server is None:
            return None
        ours, theirs = context.Pipe()
        daw = context.Process(target=be_daw, args=(bpm, theirs), daemon=True)
        session = Session.parse(live_text(FOLLOWING, bpm=SESSION_BPM)).placed(folder / "midi.toml")
        daw.start()
        try:
            ours.recv()
            with Live(session, None, lambda text: None, lead=LIVE_LEAD) as live:
                grid = Grid(live)
                heard = live.arena.status("jack.state")
                wait_for(live, lambda: bool(heard.read()["connected"]) and grid.resting, LOCKED_SECONDS)
                _look_for(live, grid, KNOWN_SECONDS)  # until JACK's frames and the session's are known to go together
                for beat in places:
                    ours.send(beat)
                    _look_for(live, grid, bars * bar_seconds + 0.25 * bar_seconds)
                    ours.send(-1)
                    _look_for(live, grid, PAUSE_SECONDS)
                ours.send(None)
                facts = ours.recv() if ours.poll(5) else {"rolls": [], "clicks": [], "late": []}
            return Performance(bpm, facts["rolls"], facts["clicks"], facts["late"], list(grid.bars.values()))
        finally:
            daw.kill()
            daw.join()


def _look_for(live: Any, grid: Grid, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and live.poll():
        grid.look()
        time.sleep(0.01)


@dataclass(slots=True)
class Followed:
    """How a session followed a DAW's rolls.

    Attributes
    ----------
    rolls, disturbed
        How many, and those in which a cycle of JACK's was missed: of them nothing counts.
    constant
        Frames by which a click comes after the DAW's grid: the way through the audio server, the same for all.
    off_ms
        By how much each click lies beside it, from where the band is in.
    early
        Clicks of the first bar that lay elsewhere, before that.
    wrong, first_wrong
        Bars that were called wrongly, and the first of them in words.
    bars
        For each roll: bar lines of the DAW's that went by until the band was in.
    """

    rolls: int = 0
    disturbed: int = 0
    constant: int = 0
    off_ms: list[float] = field(default_factory=list)
    early: int = 0
    wrong: int = 0
    first_wrong: str = ""
    bars: list[float] = field(default_factory=list)


def followed(done: Performance) -> Followed:
    """Compare what a session played with the grid of the DAW that it followed."""
    whole = [roll for roll in done.rolls if not any(roll[1] <= frame < roll[3] for frame in done.late)]
    found = Followed(len(done.rolls), len(done.rolls) - len(whole))
    beat = 60 * SAMPLERATE / Fraction(done.bpm)
    heard = [[frame - roll[1] for frame in done.clicks if roll[1] < frame < roll[3]] for roll in whole]
    off = [float(frame - round(frame / beat) * beat) for frames in heard for frame in frames]
    found.constant = round(float(np.median(off))) if off else 0
    for roll, frames in zip(whole, heard, strict=True):
        _judge_roll(found, done, roll, [(frame - found.constant) / beat for frame in frames])
    return found


def _judge_roll(found: Followed, done: Performance, roll: Sequence[int], clicks: Sequence[Fraction]) -> None:
    """Add one roll: clicks in beats since its beginning."""
    beat, begun, begun_ns, ended = roll
    beat_ms = 60_000 / float(Fraction(done.bpm))
    off_ms = [beat_ms * abs(float(at - round(at))) for at in clicks]
    early = [n for n, at in enumerate(clicks) if at < BAR_BEATS - NEAR_BEATS and off_ms[n] > ON_GRID_MS]
    first = early[-1] + 1 if early else 0
    found.early += first
    found.off_ms += off_ms[first:]
    entry = float(clicks[first]) if first < len(clicks) else math.inf
    lines = range(-beat % BAR_BEATS, math.ceil((ended - begun) * 1e3 / SAMPLERATE / beat_ms), BAR_BEATS)
    found.bars.append(sum(line < entry - NEAR_BEATS for line in lines) if math.isfinite(entry) else math.inf)
    length_ns = (ended - begun) * SECOND_NS // SAMPLERATE
    for bar in done.bars:
        since = (bar.time_ns - begun_ns) / 1e6 / beat_ms  # beats
        if not bar.resting and entry - 0.5 <= since and bar.time_ns - begun_ns < length_ns:
            right = round((beat + since) / BAR_BEATS)
            found.wrong += bar.song_bar != right
            if bar.song_bar != right and not found.first_wrong:
                found.first_wrong = f"bar {right + 1} was called {bar.song_bar + 1}, {since:.1f} beats into a roll"
