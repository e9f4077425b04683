"""Suite ``ladder``: the band never stops. Virtual time, so every figure is exact.

The engine, its ports and the agents' runners are the shipped ones, with the shipped crossfade; workers follow a
script (:mod:`faultport`). Sound is looked at on the stems (:mod:`continuity`), frames on the WAV that the recorder's
writer wrote.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import continuity
import numpy as np
from account import Account
from faults import RandomFaults, no_faults, stalled_from
from rows import Options, Row
from stage import Seat, Stage

from realtime import voice
from realtime.agents.corpus import CorpusAgent
from realtime.agents.echo import EchoAgent
from realtime.buffers import AudioRing, join_frames
from realtime.clock import Locate, Meter, TempoChange, TempoMap
from realtime.engine import Command
from realtime.protocols import Block, Clip, Origin, Piece, Span, SpanRequest, StreamSpec

SUITE = "ladder"
RATE, BPM = 48000, 240
SHARE = 0.2
LOOP_SECONDS, LOOPS = 1, 8
LONGEST_SECONDS = 8
MOST_BARS_ON = 200
"""No conductor lets a song go on for longer without a seek."""
LOOK_SECONDS = 8
FIRST_BAR = 3
"""The echo has heard two whole bars by then, and nobody is asked for a bar that sounds already."""
MARGIN_FRAMES = 2048
COMMON_TIME = Meter()
METERS = ("4/4", "3/4", "7/8", "5/4", "4/4", "6/8")
TEMPI = (150, 187.5, 200, 240, 263.7, 320)
FAST = (240, 263.7, 300, 320, 360, 400)
RUNGS = {1: "final", 2: "speculative", 3: "continuation", 4: "last good bar", 5: "fade", 0: "rest"}


def rows(options: Options) -> Iterator[Row]:
    """Yield the suite's rows."""
    with tempfile.TemporaryDirectory(prefix="sideman-bench-") as name:
        folder = Path(name)
        yield from ladder_rows(folder, options)
        yield from bracket_rows(options)
        yield from stalled_rows(options)
        yield from alignment_rows(folder, options)


def row(name: str, value: float, unit: str, goal: str, ok: bool, reason: str = "") -> Row:
    """Make a row of this suite."""
    return Row(SUITE, name, float(value), unit, goal, bool(ok), reason)


# Agents whose sound is easy to check


@lru_cache(maxsize=4)
def loops(samplerate: int) -> Block:
    """Return steady sounds below 1 kHz, ``(LOOPS, frames)``, each of a whole number of periods to the second."""
    chance = np.random.default_rng(4)
    t = np.arange(LOOP_SECONDS * samplerate) / samplerate
    found = []
    for _ in range(LOOPS):
        base = int(chance.integers(80, 300))
        sound = 0.25 * np.sin(2 * np.pi * base * t) + sum(
            0.05 * np.sin(2 * np.pi * (int(chance.integers(100, 900)) * t + chance.random())) for _ in range(3)
        )
        found.append(np.tile(sound, LONGEST_SECONDS + 2))
    return np.asarray(found, np.float32)


class ToneAgent:
    """Plays one of a few steady sounds in each span: smooth, never silent, and no two joined without a seam."""

    channels = 1
    deaf = True
    """It listens to nothing, so nobody need read to it."""

    def prepare(self, spec: StreamSpec) -> None:
        """Make the sounds."""
        self._rate, self._join = spec.samplerate, join_frames(spec.samplerate)
        self._loops = loops(spec.samplerate)
        self.confirmed = 0

    def hear(self, hop: Block, frame: int) -> None:
        """Hear nothing."""

    def play(self, request: SpanRequest) -> Clip | None:
        """Draw a sound and where it begins; one who follows takes the sound of its leader."""
        sound, begin = request.seed % LOOPS, (request.seed >> 8) % self._rate
        for plan in request.plans:
            sound = int(plan.origin.name.partition("/")[0]) if "/" in plan.origin.name else sound
        return self.realise(request, Origin("tone", f"{sound}/{begin}"))

    def carry_on(self, request: SpanRequest) -> Clip | None:
        """Let the sound go on, in phase."""
        return self.realise(request, request.after) if request.after is not None else None

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        """Cut the sound out of its loop, as the session's clock runs."""
        sound, _, begin = origin.name.partition("/")
        at = (int(begin) + request.start - self._join) % self._rate
        audio = self._loops[int(sound), at : at + self._join + request.frames]
        return Clip(audio[:, None], self._join, origin)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Count."""
        self.confirmed += 1

    def snapshot(self) -> bytes:
        """Return the count."""
        return str(self.confirmed).encode()

    def restore(self, state: bytes) -> None:
        """Go on counting."""
        self.confirmed = int(state)


class ClickAgent(ToneAgent):
    """Plays one marked sample on each beat; its level says which beat of which bar of the song it is."""

    def play(self, request: SpanRequest) -> Clip | None:
        """Put a click on every beat."""
        first = int(request.span.beat)
        pieces = (
            Piece("click", 0, 1, at, 1, gain=click_level(request.song_bar, first + index))
            for index, at in enumerate(request.beat_frames)
        )
        return self.realise(request, Origin("click", pieces=tuple(pieces)))

    def carry_on(self, request: SpanRequest) -> Clip | None:
        """Click on."""
        return self.play(request)

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        """Set the marked samples."""
        audio = np.zeros((request.frames, 1), np.float32)
        for piece in origin.pieces:
            audio[piece.at] = piece.gain  # a beat is never so short that two fall on one frame
        return Clip(audio, 0, origin)


def click_level(bar: int, beat: int) -> float:
    """Return the level of a click: 0.3 to 0.9, different for the beats of 16 bars."""
    return 0.3 + 0.6 * ((bar % 16) * 8 + beat % 8) / 128


def smooth_corpus(folder: Path) -> Path:
    """Build a corpus of smooth sounds, a different one each bar, with soft swells on the beats."""
    from realtime.corpus import build
    from realtime.soundfiles import write

    bars, chance = 24, np.random.default_rng(9)
    beat = RATE * 60 // BPM
    sound = np.concatenate([loops(RATE)[chance.integers(LOOPS), : 4 * beat] for _ in range(bars)])
    fade = np.cos(np.linspace(0, np.pi / 2, 4 * join_frames(RATE)))
    for at in range(4 * beat, len(sound), 4 * beat):  # a bar's end and the next one's beginning
        sound[at - len(fade) : at] *= fade
        sound[at : at + len(fade)] *= fade[::-1]
    swell = 0.8 + 0.2 * np.cos(2 * np.pi * np.arange(len(sound)) / beat)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "smooth.wav", (sound * swell)[:, None].astype(np.float32), RATE, "FLOAT")
    build([folder / "smooth.wav"], folder / "corpus", bpm=BPM)
    return folder / "corpus"


# The grid: what is announced, in time, and where that puts the beats, worked out apart from the engine's clock


@dataclass(frozen=True)
class BarSum:
    """One bar as it is summed up: where its whole beats are and where it ends, exact frames from a beginning."""

    beats: tuple[Fraction, ...]
    end: Fraction


def bars_of(changes: Mapping[int, TempoChange], tempo: Fraction, meter: Meter = COMMON_TIME) -> Iterator[BarSum]:
    """Yield bar by bar where the beats fall, summed up in exact fractions from the changes alone, for ever."""
    frame, beat, bar = Fraction(0), Fraction(0), 0
    tempi: list[tuple[Fraction, Fraction]] = []  # planned: from which beat on, which tempo
    while True:
        change = changes.get(bar)
        if change is not None and change.meter is not None:
            meter = change.meter
        if change is not None and change.tempo is not None:
            at, steps = beat + change.beat, change.ramp_beats
            first = [tempo, *(planned for begin, planned in tempi if begin <= at)][-1]
            tempi = [planned for planned in tempi if planned[0] < at]
            for step in range(steps):
                part = Fraction(2 * step + 1, 2 * steps)
                tempi.append((at + step, (first + (change.tempo - first) * part).limit_denominator(10**6)))
            tempi.append((at + steps, change.tempo))
        start, end, beats = beat, beat + meter.beats, []
        while beat < end:
            while tempi and tempi[0][0] <= beat:
                tempo = tempi.pop(0)[1]
            if (beat - start).denominator == 1:
                beats.append(frame)
            stop = min([end, start + (beat - start).__floor__() + 1, *(begin for begin, _ in tempi[:1])])
            frame += (stop - beat) * 60 * RATE / tempo
            beat = stop
        yield BarSum(tuple(beats), frame)
        bar += 1


def seeking(song: list[BarSum], locates: Mapping[int, Locate]) -> Iterator[tuple[int, BarSum]]:
    """Yield the bars of a session that plays ``song`` here and there: the song's bar, and where its beats fall."""
    frame, bar, place = Fraction(0), 0, 0
    loop: Locate | None = None
    while True:
        if bar in locates:
            place = locates[bar].song_bar
            loop = locates[bar] if locates[bar].loop_bars else None
        begin = song[place].beats[0]
        yield (
            place,
            BarSum(tuple(frame + beat - begin for beat in song[place].beats), frame + song[place].end - begin),
        )
        frame, bar, place = frame + song[place].end - begin, bar + 1, place + 1
        if loop is not None and place == loop.song_bar + loop.loop_bars:
            place = loop.song_bar


def rounded(frame: Fraction) -> int:
    """Round to a frame, a half up."""
    return (2 * frame.numerator + frame.denominator) // (2 * frame.denominator)


class Conductor:
    """The bridge's end: announces something now and then, more than a bar before it counts.

    Parameters
    ----------
    seed
        Draws it all.
    every
        Bars from one to the next, about.
    tempi
        To choose from.
    song_bars
        Length of a planned song in which it seeks and loops; 0: it changes tempo and meter by hand.
    """

    def __init__(self, seed: int, *, every: int = 10, tempi: tuple[float, ...] = TEMPI, song_bars: int = 0) -> None:
        self._chance, self._every, self._tempi, self._song_bars = Random(seed), every, tempi, song_bars
        self._next = FIRST_BAR + 2
        self.stage: Stage | None = None
        self.changes: dict[int, TempoChange] = {}
        self.locates: dict[int, Locate] = {}
        self.announced: Counter[str] = Counter()

    def __call__(self) -> Command | None:
        """Say what is to be announced now."""
        assert self.stage is not None
        engine = self.stage.engine
        bar = engine.transport.map.moment(engine.mixed).bar
        if bar < self._next - 2:
            return None
        at = bar + self._chance.randint(2, 3)
        self._next = at + self._chance.randint(3, 2 * self._every)
        if self._song_bars:
            self.locates[at] = self.locate(at)
            return Command("locate", locate=self.locates[at])
        self.changes[at] = self.change(at)
        return Command("tempo", change=self.changes[at])

    def change(self, bar: int) -> TempoChange:
        """Return a change for a bar."""
        chance = self._chance
        kind = chance.choice(["tempo", "ramp", "meter", "both"])
        self.announced[kind] += 1
        return TempoChange(
            bar,
            Fraction(chance.randint(0, 2) if kind == "tempo" else 0),
            Fraction(str(chance.choice(self._tempi))) if kind != "meter" else None,
            Meter.parse(chance.choice(METERS)) if kind in ("meter", "both") else None,
            chance.randint(1, 12) if kind == "ramp" else 0,
        )

    def locate(self, bar: int) -> Locate:
        """Return a seek or a loop, from a bar on."""
        loop_bars = self._chance.choice([0, 0, 1, 2, 3, 4, 8])
        self.announced["loop" if loop_bars else "seek"] += 1
        return Locate(bar, self._chance.randint(0, self._song_bars - 1), loop_bars)


# Looking at the stems


class StemWatch:
    """Looks a stem over for gaps and clicks as it comes, and says in which spans they lie."""

    def __init__(self, ring: AudioRing, samplerate: int) -> None:
        self._ring, self._rate = ring, samplerate
        self._join = join_frames(samplerate)
        self._starts: deque[int] = deque([-1])
        self._sounds: deque[bool] = deque([False])
        self._checked = 0
        self._played = False
        self.gaps: set[int] = set()
        self.clicks: set[int] = set()
        self.fades = 0
        self.gap_frames = 0
        self.first: list[str] = []

    def span(self, line: Mapping[str, Any]) -> None:
        """Take note of a decision."""
        rung = line["rung"]
        self.fades += rung == 5 and self._played
        self._played = self._played or rung in (1, 2, 3, 4)
        self._starts.append(line["start"])
        self._sounds.append(rung in (1, 2, 3, 4))

    def look(self, upto: int) -> None:
        """Look at what sounds before frame ``upto``, but for a margin that is left for the next time."""
        begin, end = self._checked, upto - MARGIN_FRAMES
        if end <= begin:
            return
        first = max(0, begin - MARGIN_FRAMES)
        audio = self._ring.read(first, upto)
        due = np.zeros(len(audio), np.bool_)
        ends = [*list(self._starts)[1:], 1 << 62]
        goes_on = [*list(self._sounds)[1:], True]
        for sounds, start, end_of, on in zip(self._sounds, self._starts, ends, goes_on, strict=True):
            if sounds:  # what is followed by a rest ends with a fade
                due[max(0, start - first) : max(0, end_of - first - (0 if on else self._join))] = True
        for gap in continuity.gaps(audio, due):
            if begin <= first + gap.frame < end or gap.frame == 0:
                self.gaps.add(self._span_of(first + gap.frame + gap.frames // 2))
                self.gap_frames += gap.frames
                self._note(f"gap at {first + gap.frame}, {gap.frames} frames")
        for click in continuity.smooth_clicks(audio, self._rate):
            if begin <= first + click.frame < end:
                self.clicks.add(self._span_of(first + click.frame + self._join + 64))
                self._note(f"click at {first + click.frame}, {click.size:.3f} of the peak")
        self._checked = end
        while len(self._starts) > 2 and self._starts[1] < end - MARGIN_FRAMES:
            self._starts.popleft()
            self._sounds.popleft()

    def _note(self, text: str) -> None:
        if len(self.first) < 20:
            self.first.append(text)

    def _span_of(self, frame: int) -> int:
        """Return the start of the span that a frame belongs to."""
        return self._starts[max(0, bisect_right(self._starts, frame) - 1)]


@dataclass
class Outcome:
    """What a run came to."""

    stage: Stage
    account: Account
    watches: dict[str, StemWatch]
    bars: int = 0
    mix_frames: int = 0

    @property
    def spans(self) -> int:
        """Spans decided."""
        return sum(self.account.spans.values())

    @property
    def broken(self) -> int:
        """Spans with a gap or a click."""
        return sum(len(watch.gaps | watch.clicks) + watch.fades for watch in self.watches.values())

    def evidence(self) -> str:
        """Return the first of what was found, for whoever looks into it."""
        found = [f"{name}: {text}" for name, watch in self.watches.items() for text in watch.first[:2]]
        return "; ".join([*found, *self.account.unexplained[:2]])


def play(
    seats: list[Seat],
    bars: int,
    *,
    conductor: Conductor | None = None,
    smooth: bool = True,
    listen: Callable[[Stage, int], None] | None = None,
    note: Callable[[Mapping[str, Any]], None] | None = None,
    plan: Mapping[int, TempoChange] | None = None,
    bpm: float | Fraction = BPM,
    **stage: Any,
) -> Outcome:
    """Let a band play for so many bars, looking at every stem and every line of the take as they come.

    Parameters
    ----------
    seats, bars
        Who plays and how long.
    conductor
        Who announces changes.
    smooth
        Whether the stems are looked at for gaps and clicks.
    listen, note
        Called after every block with the stage and the frame up to which it has mixed; with every line of the take.
    plan, bpm
        The song: its changes, and the tempo it begins with.
    """
    lines: list[Callable[[dict[str, Any]], None]] = []

    def log(line: dict[str, Any]) -> None:
        for take in lines:
            take(line)

    song = TempoMap.steady(RATE, bpm)
    for bar in sorted(plan or {}):
        song = plan[bar].applied(song)
    scene = Stage(
        seats, song, log=log, first_bar=FIRST_BAR, longest_span_seconds=LONGEST_SECONDS,
        take_command=conductor or (lambda: None), **stage,
    )  # fmt: skip
    if conductor is not None:
        conductor.stage = scene
    watches = {seat.name: StemWatch(scene.memory.stems[seat.name], RATE) for seat in seats} if smooth else {}
    outcome = Outcome(scene, Account(scene.ports), watches)
    lines.append(outcome.account)

    def watch(line: dict[str, Any]) -> None:
        if line["type"] == "span" and line["agent"] in watches:
            watches[line["agent"]].span(line)

    lines += [watch] if note is None else [watch, note]
    engine, size = scene.engine, scene.spec.blocksize
    source = loops(RATE)[0]
    looked = 0
    while True:
        at = engine.mixed % (LOOP_SECONDS * RATE)
        outcome.mix_frames += len(scene.advance(source[at : at + size, None]))
        if listen is not None:
            listen(scene, engine.mixed)
        if engine.mixed - looked >= LOOK_SECONDS * RATE:
            looked = engine.mixed
            for each in watches.values():
                each.look(looked)
            outcome.bars = engine.transport.map.moment(looked).bar
            if outcome.bars >= bars:
                return outcome


# Rows


SESSIONS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (1, ("lead", "beats", "second", "echo", "corpus")),
    (3, ("lead", "beats", "second", "echo")),
    (6, ("beats", "echo")),
    (40, ("lead", "second")),
    (25, ("lead",)),
    (25, ("echo",)),
)
"""Percent of the bars, and who plays in them: one by the bar, one by the beat, one who follows, one who echoes the
input, one with a corpus."""


def band(names: tuple[str, ...], share: float, corpus: Path | None = None, seed: int = 1) -> list[Seat]:
    """Return some of the seats, struck in ``share`` of their spans."""
    script = RandomFaults(seed, share, RATE) if share else no_faults
    seats = [
        Seat("lead", ToneAgent, script=script),
        Seat("beats", ToneAgent, Fraction(1), script=script),
        Seat("second", ToneAgent, follows=("lead",), script=script),
        Seat("echo", EchoAgent, script=script),
    ]
    if corpus is not None:
        seats.append(Seat("corpus", partial(CorpusAgent, corpus), script=script))
    return [seat for seat in seats if seat.name in names]


def ladder_rows(folder: Path, options: Options) -> Iterator[Row]:
    """Many bars with faults in a fifth of the spans: no gap, no click, nothing unexplained."""
    total = 1500 if options.quick else 100_000
    corpus = smooth_corpus(folder / "smooth")
    spans: Counter[int] = Counter()
    struck: Counter[str] = Counter()
    bars = broken = wrong = joins = late_changes = 0
    evidence = ""
    for number, (share, names) in enumerate(SESSIONS):
        outcome = play(
            band(names, SHARE, corpus, number), -(-total * share // 100),
            conductor=Conductor(number, tempi=FAST), supervised=True,
        )  # fmt: skip
        bars, broken = bars + outcome.bars, broken + outcome.broken
        spans += outcome.account.spans
        wrong, joins = wrong + outcome.account.wrong, joins + outcome.account.joins
        late_changes += outcome.stage.engine.counters["late_changes"]
        for port in outcome.stage.ports.values():
            struck += port.struck
        evidence = evidence or outcome.evidence()
    count = sum(spans.values())
    what = f"{bars} bars, {count} spans, {sum(struck.values())} questions struck in {len(struck)} ways"
    yield row("spans with a gap or a click", broken, "spans", "0", broken == 0, evidence or what)
    yield row("spans whose rung or cause is unexplained", wrong, "spans", "0", wrong == 0, evidence)
    yield row("changes that came too late", late_changes, "changes", "0", late_changes == 0)
    for rung, name in RUNGS.items():
        yield row(f"share of spans: {name}", 100 * spans[rung] / count, "%", "", True, f"{spans[rung]} spans")
    yield row("late answers joined at a beat", joins, "answers", "", True)


@contextmanager
def hard_cuts() -> Iterator[None]:
    """Let every voice cut where it should fade: a planted fault of ours."""
    shipped = voice.crossfade
    voice.crossfade = lambda outgoing, incoming: outgoing
    try:
        yield
    finally:
        voice.crossfade = shipped


def bracket_rows(options: Options) -> Iterator[Row]:
    """The same without faults shows nothing; with hard cuts instead of crossfades it shows them."""
    bars = 60 if options.quick else 1000
    names = ("lead", "beats", "second", "echo")
    clean = play(band(names, 0.0), bars, conductor=Conductor(1))
    quiet = clean.broken + clean.account.wrong + sum(count for rung, count in clean.account.spans.items() if rung > 1)
    yield row("without faults: gaps, clicks, lower rungs", quiet, "spans", "0", quiet == 0, clean.evidence())

    with hard_cuts():
        cut = play(band(names[:3], SHARE), bars)
    share = 100 * sum(len(watch.clicks) for watch in cut.watches.values()) / cut.spans
    yield row("joins without a crossfade are found, spans", share, "%", ">= 50", share >= 50, "the metric's own test")


def stalled_rows(options: Options) -> Iterator[Row]:
    """A day with a model that answers nothing any more after two bars."""
    hours = 0.2 if options.quick else 24
    bars = round(hours * 3600 / 4)
    outcome = play([Seat("model", ToneAgent, script=stalled_from(FIRST_BAR + 2))], bars, bpm=60, blocksize=48000)
    watch = outcome.watches["model"]
    missing = watch.gap_frames
    length = outcome.mix_frames - outcome.stage.engine.mixed
    shares = ", ".join(f"{RUNGS[rung]} {count}" for rung, count in sorted(outcome.account.spans.items()))
    ok = missing == 0 and watch.fades == 0 and length == 0 and not watch.clicks
    what = f"{outcome.mix_frames / RATE / 3600:.2f} h; spans: {shares} {outcome.evidence()}"
    yield row("missing frames, a model stalled for ever", missing, "frames", "0", ok, what)
    yield row("frames of the mix too many or too few", length, "frames", "0", length == 0)


def alignment_rows(folder: Path, options: Options, bars: int = 0) -> Iterator[Row]:
    """Clicks on the WAV against the grid: ramps, meters, seeks, loops; faults, late and overtaken answers."""
    bars = bars or (150 if options.quick else 2500)
    by_hand = Conductor(77, every=6)
    worst, misplaced, beats, joins = aligned(folder, bars, by_hand, {}, lambda: by_hand_grid(by_hand))
    yield row(
        "stem alignment: tempi, ramps, meters by hand, worst", worst, "frames", "0", worst == 0 and beats > bars,
        announced(by_hand, bars, beats, joins),
    )  # fmt: skip
    song_bars = 64
    plan = planned_song(song_bars)
    seeking_about = Conductor(78, every=6, song_bars=song_bars)
    song = list(islice(bars_of(plan, Fraction(BPM)), 2 * MOST_BARS_ON + song_bars))
    worst, misplaced, beats, joins = aligned(
        folder, bars, seeking_about, plan, lambda: seeking(song, seeking_about.locates)
    )
    yield row(
        "stem alignment: seeks and loops in a planned song, worst", worst, "frames", "0", worst == 0 and beats > bars,
        announced(seeking_about, bars, beats, joins),
    )  # fmt: skip
    yield row("answers in time that play another bar of the song", misplaced, "spans", "0", misplaced == 0)


def announced(conductor: Conductor, bars: int, beats: int, joins: int) -> str:
    """Say what a run was made of."""
    changes = ", ".join(f"{count} {kind}" for kind, count in sorted(conductor.announced.items()))
    return f"{beats} beats in {bars} bars on 3 WAVs; {changes}; {joins} late joins"


def by_hand_grid(conductor: Conductor) -> Iterator[tuple[int, BarSum]]:
    """Yield the bars of a session whose song goes straight on."""
    return enumerate(bars_of(conductor.changes, Fraction(BPM)))


def planned_song(bars: int) -> dict[int, TempoChange]:
    """Return the changes of a song that has them everywhere."""
    author = Conductor(5)
    return {bar: author.change(bar) for bar in range(3, bars, 5)}


def overtaking(request: SpanRequest) -> int:
    """Let an answer take from nothing to one and a half spans, whatever the others do."""
    chance = Random(f"{request.agent}/{request.span.bar}/{request.span.beat}/{request.attempt}")
    return int(request.frames * chance.choice([0, 0.02, 0.5, 1.5]) * chance.random())


def aligned(
    folder: Path,
    bars: int,
    conductor: Conductor,
    plan: Mapping[int, TempoChange],
    grid: Callable[[], Iterator[tuple[int, BarSum]]],
) -> tuple[int, int, int, int]:
    """Play clicks into WAVs; return the worst error in frames, spans of another place, beats, and late joins."""
    from bridge.wav import WavWriter
    from realtime.soundfiles import read

    kinds = ("late", "early", "twice", "stall", "kill", "nan")
    seats = [
        Seat("bar", ClickAgent, script=RandomFaults(5, 0.4, RATE, kinds)),
        Seat("beat", ClickAgent, Fraction(1), script=RandomFaults(6, 0.4, RATE, kinds)),
        Seat("overtaken", ClickAgent, delay=overtaking),
    ]
    writers = {seat.name: WavWriter(folder / f"{seat.name}.wav", RATE, 1) for seat in seats}
    in_time: dict[str, list[tuple[int, int, int]]] = {seat.name: [] for seat in seats}
    joins, written = 0, 0

    def record(stage: Stage, upto: int) -> None:
        nonlocal written
        for name, writer in writers.items():
            writer.write(stage.memory.stems[name].read(written, upto))
        written = upto

    def note(line: Mapping[str, Any]) -> None:
        nonlocal joins
        joins += line["type"] == "join"
        if line["type"] == "span" and line["rung"] in (1, 2):
            in_time[line["agent"]].append((line["start"], line["bar"], int(Fraction(line["beat"]))))

    play(seats, bars, conductor=conductor, smooth=False, listen=record, note=note, plan=plan)
    worst = misplaced = beats = 0
    for name, writer in writers.items():
        writer.close()
        stem = read(folder / f"{name}.wav")[0][:, 0]
        clicks = np.flatnonzero(np.abs(stem) > 0.2)
        first = int(clicks[0]) if len(clicks) else 0
        frames, places = [], []
        for place, bar in grid():
            frames += [rounded(beat) for beat in bar.beats]
            places.append(place)
            if frames[-1] >= len(stem):
                break
        expected = [frame for frame in frames if first <= frame < len(stem)]
        worst, beats = max(worst, distance(clicks, expected)), beats + len(expected)
        misplaced += sum(
            abs(stem[start] - click_level(places[bar], beat)) > 1e-3
            for start, bar, beat in in_time[name]
            if start < len(stem)
        )
    return worst, misplaced, beats, joins


def distance(found: Any, expected: list[int]) -> int:
    """Return the largest distance from an expected frame to the nearest found, and the other way round."""
    if not len(found) or not expected:
        return 1 << 30
    return max(_farthest(np.asarray(found), np.asarray(expected)), _farthest(np.asarray(expected), np.asarray(found)))


def _farthest(places: Any, others: Any) -> int:
    """Return the largest distance from one of ``places`` to the nearest of ``others``, both ascending."""
    right = np.clip(np.searchsorted(others, places), 1, max(1, len(others) - 1))
    left = right - 1
    near = np.minimum(np.abs(places - others[left]), np.abs(places - others[np.minimum(right, len(others) - 1)]))
    return int(near.max())
