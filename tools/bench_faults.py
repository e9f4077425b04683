"""Suite ``faults``: processes that really die, hang and go mad, while the band plays on the wall clock.

Three ways to make trouble: workers are killed at random for half an hour over a sound device, with a control beside;
each other fault is done once, to a worker, the recorder, the engine or the bridge, and what is left is looked at; and
files are damaged by the thousands. What the same faults do to the music, to the frame, is the suite ``ladder``'s.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import continuity
import live as harness
import numpy as np
from rows import Options, Row
from troubles import TROUBLES

SUITE = "faults"
KILL_SECONDS = 5.0
SPARE_SHARE = 0.2
"""Of the kills: so often it strikes one that stands by."""
BUDGET_SECONDS, BUDGET_SHARE = 0.3, 0.7
P50_SECONDS, P99_SECONDS = 0.5, 1.5
REPLAY_SECONDS = 600.0
"""A replay is cut off after so long; what it has made by then is compared."""
LOOK_SECONDS = 60
MUTANTS, MUTANTS_QUICK = 20_000, 250
RUNGS = {0: "rest", 1: "final", 2: "speculative", 3: "continuation", 4: "last good bar", 5: "fade"}
REST, FINAL, SPECULATIVE, FADE = 0, 1, 2, 5


def rows(options: Options) -> Iterator[Row]:
    """Yield the suite's rows."""
    with harness.ended_in_order(), tempfile.TemporaryDirectory(prefix="sideman-bench-") as name:
        folder = Path(name)
        yield from kill_rows(folder, options)
        yield from trouble_rows(folder, options)
        yield from bridge_rows(folder)
        yield from mutant_rows(MUTANTS_QUICK if options.quick else MUTANTS)


def row(name: str, value: float, unit: str, goal: str, ok: bool | None, reason: str = "") -> Row:
    """Make a row of this suite."""
    return Row(SUITE, name, float(value), unit, goal, None if ok is None else bool(ok), reason)


def played_on(fault: str, flaws: Sequence[str], what: str) -> Row:
    """Make the row of a fault that was done once."""
    reason = "; ".join(flaws) if flaws else what
    return row(f"{fault}: played on", not flaws, "of 1", "1", not flaws, reason)


LOSSES = ("dropped_log_lines", "damaged_log_lines", "recorder_lost_frames")
"""What a take may not have counted."""


# What is judged: pure functions of what a take and a session tell


def first_good(spans: Sequence[Any]) -> int:
    """Return where among an agent's spans, in order, the first is that it played; their number if there is none."""
    good = (index for index, span in enumerate(spans) if span.rung not in (REST, FADE))
    return next(good, len(spans))


def fades(spans: Sequence[Any]) -> list[Any]:
    """Return an agent's spans that are gaps by the ladder: faded after its first good bar, and not left out."""
    return [span for span in spans[first_good(spans) :] if span.rung == FADE and span.cause != "quarantined"]


def unexplained(spans: Sequence[Any]) -> list[Any]:
    """Return the spans that went down the ladder and do not say why."""
    return [span for span in spans if span.rung >= SPECULATIVE and not span.cause]


def missing(spans: Sequence[Any]) -> int:
    """Count the frames between an agent's first and last span that belong to none of them, or to two."""
    ends = [span.start + span.frames for span in spans]
    return sum(abs(after.start - end) for after, end in zip(spans[1:], ends, strict=False))


def of_agent(spans: Sequence[Any], agent: str) -> list[Any]:
    """Return one agent's spans in order."""
    return sorted((span for span in spans if span.agent == agent), key=lambda span: span.start)


def shares(spans: Sequence[Any]) -> dict[int, float]:
    """Return the share of spans on each rung, counted from each agent's first good one on, in percent."""
    count: Counter[int] = Counter()
    for agent in {span.agent for span in spans}:
        own = of_agent(spans, agent)
        count.update(span.rung for span in own[first_good(own) :])
    return {rung: 100 * count[rung] / count.total() for rung in sorted(RUNGS)} if count else {}


def take_flaws(take: Any, lengths: Mapping[str, int], closed: bool) -> list[str]:
    """Say what is wrong with a take: ``lengths`` are its files' frames; ``closed`` if somebody was there to close it.

    A recorder that was killed leaves files that differ by what one write holds; all others are of one length.
    """
    flaws = []
    if take.truncated and closed:
        flaws.append("its last line is cut off")
    if closed and take.end is None:
        flaws.append("it was not closed")
    if closed and len(set(lengths.values())) > 1:
        flaws.append(f"its files differ in length: {dict(lengths)}")
    if take.end is not None and set(lengths.values()) != {take.end.frames}:
        flaws.append(f"its last line says {take.end.frames} frames, its files have {sorted(set(lengths.values()))}")
    if lost := [pad for pad in take.pads if pad.file != "input.wav" or pad.start + pad.frames < take.frames]:
        flaws.append(f"{len(lost)} stretches of sound were lost")  # the last of the input was never asked for
    counted = take.end.counters if take.end is not None else {}
    flaws += [f"{name} is {counted[name]}" for name in LOSSES if counted.get(name)]
    if not take.spans:
        flaws.append("it has no span")
    return flaws


@dataclass(frozen=True, slots=True)
class Expected:
    """What has to come of a fault: how the supervisor calls it, and whether the agent plays again after it."""

    causes: tuple[str, ...]
    again: bool = True


EXPECTED = {
    "loop": Expected(("hang",)),
    # The limit may stop it, or the watch; on a busy machine it grows slowly, and answers nothing meanwhile.
    "memory": Expected(("memory", "faulty", "exit", "hang", "slow")),
    "raises": Expected(("faulty",)),
    "nan": Expected(("faulty",)),
    "length": Expected(("faulty",)),
    "checksum": Expected(("faulty",)),
    "abort": Expected(("exit",)),
    "slow": Expected(("slow",)),
    "record-stopped": Expected(("hang",)),
    "record-killed": Expected(("exit",)),
    "state-stopped": Expected(("stopped",)),
    "strikes": Expected(("exit",), again=False),
    "stopped": Expected(("stopped", "hang")),  # in the middle of an answer, or between two
}
"""Faults of one worker: those an agent does itself, and SIGSTOP from outside."""


def worker_flaws(spans: Sequence[Any], struck_bar: int, causes: Sequence[str], expected: Expected) -> list[str]:
    """Say what went wrong about an agent whose process was struck in a bar: ``causes`` are those of its respawns."""
    flaws = []
    before = [span for span in spans if span.bar < struck_bar]
    if first_good(before) == len(before):
        flaws.append("it had not played before it was struck")
    if frames := missing(spans):
        flaws.append(f"{frames} frames belong to no span, or to two")
    if gaps := fades(spans):
        flaws.append(f"{len(gaps)} spans faded, the first in bar {gaps[0].bar + 1}")
    if silent := unexplained(spans):
        flaws.append(f"{len(silent)} spans do not say why, the first in bar {silent[0].bar + 1}")
    if expected.again and not any(cause in expected.causes for cause in causes):
        flaws.append(f"replaced for {list(causes)}, expected {' or '.join(expected.causes)}")
    last = spans[-3:]
    if expected.again and not any(span.rung == FINAL for span in last):
        flaws.append(f"it does not play again: rungs {[span.rung for span in last]}")
    if not expected.again and not (last and all(span.cause == "quarantined" for span in last)):
        flaws.append("it was not quarantined")
    return flaws


def quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return median and 99th percentile, the latter by the nearest rank: of few values, the largest."""
    if not seconds:
        return math.inf, math.inf
    ordered = sorted(seconds)
    return ordered[(len(ordered) - 1) // 2], ordered[math.ceil(0.99 * len(ordered)) - 1]


@dataclass(frozen=True, slots=True)
class Kill:
    """One process that was killed: who it was, when (monotonic nanoseconds), and whether another stood by for it."""

    name: str
    time_ns: int
    warm: bool = True


@dataclass(frozen=True, slots=True)
class Replacements:
    """What came of the kills of those on duty.

    Attributes
    ----------
    warm, cold
        Seconds from detection to duty: where a spare stood by, and where it was still loading or was hit as well.
    noticed
        Seconds from kill to detection.
    lost
        Kills that nobody came after.
    """

    warm: list[float]
    cold: list[float]
    noticed: list[float]
    lost: int


def replacements(kills: Sequence[Kill], respawns: Sequence[Any]) -> Replacements:
    """Match kills with respawns. Who is killed again while it is being replaced has one respawn for both."""
    found = Replacements([], [], [], 0)
    hit: dict[int, list[Kill]] = {}
    lost = 0
    for kill in kills:
        role, _, agent = kill.name.partition(" ")
        later = (at for at, one in enumerate(respawns) if one.agent == agent and one.armed_ns >= kill.time_ns)
        respawn = next(later, None)
        if respawn is not None and (role == "agent" or respawns[respawn].detected_ns <= kill.time_ns):
            hit.setdefault(respawn, []).append(kill)
        lost += respawn is None and role == "agent"
    for at, struck in sorted(hit.items()):
        one = respawns[at]
        (found.warm if len(struck) == 1 and struck[0].warm else found.cold).append(one.seconds)
        found.noticed.append((one.detected_ns - struck[0].time_ns) / 1e9)
    return replace(found, lost=lost)


def tone_flaws(blocks: Iterator[Any], samplerate: int, begin: int, end: int) -> tuple[int, int]:
    """Count gaps and clicks in a stem that holds a tone without end from ``begin`` to ``end``, minute by minute."""
    gaps = clicks = at = 0
    overlap = samplerate // 4
    before = None
    for block in blocks:
        sound = block if before is None else np.concatenate([before, block])
        start = at + len(block) - len(sound)
        low, high = max(begin, start), min(end, at + len(block))
        if high - low > overlap:
            part = sound[low - start : high - start]
            from_frame = 0 if before is None or low == begin else overlap // 2  # else it was looked at before
            until = len(part) if high == end else len(part) - overlap // 2
            due = np.ones(len(part), bool)
            gaps += sum(from_frame <= gap.frame < until for gap in continuity.gaps(part, due))
            clicks += sum(from_frame <= click.frame < until for click in continuity.smooth_clicks(part, samplerate))
        at += len(block)
        before = sound[-overlap:]
    return gaps, clicks


# Takes


def look_at_take(folder: Path, closed: bool = True) -> tuple[Any, list[str]]:
    """Open a take; return it, and what is wrong with it."""
    from bridge.recorder import TakeReader

    take = TakeReader(folder)
    files = [folder / "input.wav", folder / "mix.wav", *sorted((folder / "stems").glob("*.wav"))]
    lengths = {file.name: frames_in(file) for file in files}
    flaws = take_flaws(take, lengths, closed)
    if len(lengths) != 2 + len(take.stems):
        flaws.append(f"it has {len(lengths)} files, expected {2 + len(take.stems)}")
    return take, flaws


def frames_in(file: Path) -> int:
    """Return the length of a sound file, 0 if it has none."""
    from realtime.soundfiles import info

    try:
        return info(file).frames
    except ValueError:
        return 0


def replayed(take: Any, out: Path, seconds: float = REPLAY_SECONDS) -> tuple[list[str], int]:
    """Play a take again for so long at most; return the stems that differ, and how many frames were compared."""
    from bridge.offline import replay
    from bridge.recorder import TakeReader

    end = time.monotonic() + seconds

    def enough(done: int, total: int) -> None:
        if time.monotonic() > end and done < total:
            raise KeyboardInterrupt  # as a user would end it: what was made is kept

    done = replay(take.folder, out, progress=enough, own=True)
    if done.interrupted and time.monotonic() < end:
        raise KeyboardInterrupt  # that was the user
    return different_stems(take, TakeReader(out), done.frames), done.frames


def replay_flaws(take: Any, out: Path) -> list[str]:
    """Say what is wrong with a short take's replay."""
    different, frames = replayed(take, out)
    flaws = [f"stem {name} differs on replay" for name in different]
    return flaws if frames == take.frames else [*flaws, f"{frames} of {take.frames} frames were replayed"]


def different_stems(take: Any, again: Any, frames: int) -> list[str]:
    """Return the names of the stems whose first frames are not the same in two takes, to the bit."""
    step = LOOK_SECONDS * take.samplerate
    return [
        name
        for name in take.stems
        if any(
            not np.array_equal(
                take.stem(name, at, min(step, frames - at)), again.stem(name, at, min(step, frames - at))
            )
            for at in range(0, frames, step)
        )
    ]


# Kills, over a sound device

KILL_NAMES = (
    "empty rings, attributable", "killed workers without successor", "respawn from the spare, p50",
    "respawn from the spare, p99", "spans faded after the first good bar", "spans that do not say why",
    "gaps in the tone on the WAV", "flaws of the take", "stems that differ on replay",
)  # fmt: skip


def kill_rows(folder: Path, options: Options) -> Iterator[Row]:
    """A corpus agent and a network at 70 % of its budget; every five seconds a random worker is killed."""
    seconds = 10.0 if options.quick else 1800.0
    why_not, found = harness.NO_JACK, None
    with harness.jack_server("sideman-bench-faults") as server:
        if server is not None:
            found = play_under_kills(live_band(folder), folder, seconds)
            why_not = f"the band was not ready within {READY_SECONDS:.0f} s; {' | '.join(found.said[:2])}"
    if found is None or not found.kills:
        for name in KILL_NAMES:
            yield Row(SUITE, name, None, "", "0", None, why_not)
        return
    yield from ring_rows(found)
    yield from respawn_rows(found)
    yield from take_rows(found, folder / "replayed")
    for take in (found.take, folder / "replayed"):
        shutil.rmtree(take)  # half an hour is some gigabytes


@dataclass(frozen=True, slots=True)
class Killing:
    """What came of a session whose workers were killed."""

    take: Path
    table: Any
    kills: tuple[Kill, ...]
    respawns: tuple[Any, ...]
    realtime: bool
    lead: int
    minutes: float
    said: tuple[str, ...]


def live_band(folder: Path) -> Any:
    """Return the session: the built-in bass, and a network that works for most of its budget."""
    from bridge.demo import demo_session
    from bridge.session import MODELS, Session

    demo_session(folder / "demo-corpora")
    bass = harness.corpus_agent("bass", folder / "demo-corpora" / "bass")
    model = f'[[agents]]\nname = "model"\nkind = "echo"\nbudget_seconds = {BUDGET_SECONDS}\n'
    session = Session.parse(harness.live_text(bass, model))
    work = {"model": str(MODELS / "onset"), "work_seconds": BUDGET_SHARE * BUDGET_SECONDS}
    return with_agents(session, model=("bench_agents:ModelAgent", work))


def with_agents(session: Any, memory_mb: int = 0, **agents: tuple[str, dict[str, Any]]) -> Any:
    """Return a session in which some agents are of kinds that no session file may name."""
    more = {"memory_mb": memory_mb} if memory_mb else {}
    changed = tuple(
        agent.model_copy(update={"kind": agents[agent.name][0], "options": agents[agent.name][1], **more})
        if agent.name in agents
        else agent
        for agent in session.agents
    )
    return session.model_copy(update={"agents": changed})


def play_under_kills(session: Any, folder: Path, seconds: float) -> Killing:
    """Play for so long and kill as the seed says; return what was seen."""
    from bridge.app import Live

    chance, kills, said = np.random.default_rng(3), [], []
    with Live(session, folder / "take", said.append, lead=harness.LIVE_LEAD, warn=said.append) as live:
        harness.wait_for(live, lambda: is_ready(live) or left_out(live), READY_SECONDS)
        seconds *= is_ready(live)
        with harness.controlled(live, seconds, folder) as table:
            begin = time.monotonic()
            due = begin + KILL_SECONDS / 2
            while time.monotonic() < begin + seconds and live.poll():
                if time.monotonic() >= due:
                    due += KILL_SECONDS
                    kills += kill_one(live, chance)
                time.sleep(0.05)
            found = table()
        time.sleep(P99_SECONDS)  # the last successor may still be on its way
        live.poll()
        realtime, lead, respawns = live.realtime, live.config.spec.lead, tuple(live.respawns)
    return Killing(folder / "take", found, tuple(kills), respawns, realtime, lead, seconds / 60, tuple(said))


def is_ready(live: Any) -> bool:
    """Whether every agent serves and another of each stands by."""
    return set(live.status().states.values()) == {"armed"} and all(stands_by(live, name) for name in live.names)


def left_out(live: Any) -> bool:
    """Whether somebody was refused, who will never be ready."""
    return not {"loading", "measured", "armed", "gone"}.issuperset(live.status().states.values())


def stands_by(live: Any, agent: str) -> bool:
    """Whether an agent's spare is loaded."""
    from realtime.seat import STATE_MEASURED

    spare = live.pids().get(f"spare {agent}")
    blocks = [live.arena.status(f"{agent}.worker{parity}").read() for parity in (0, 1)]
    return any(block["pid"] == spare and block["state"] == STATE_MEASURED for block in blocks)


def kill_one(live: Any, chance: np.random.Generator) -> list[Kill]:
    """Kill a random worker; return whom, nobody if there is none."""
    pids = live.pids()
    role = "spare " if chance.random() < SPARE_SHARE else "agent "
    names = sorted(name for name in pids if name.startswith(role))
    if not names:
        return []
    name = names[int(chance.integers(len(names)))]
    warm = stands_by(live, name.partition(" ")[2])
    now = time.monotonic_ns()
    os.kill(pids[name], signal.SIGKILL)
    return [Kill(name, now, warm)]


def ring_rows(found: Killing) -> Iterator[Row]:
    """Yield what became of the device's ring."""
    empty, attributable, late = harness.judge(found.table, found.lead)
    ok: bool | None = attributable == 0
    on_duty = sum(kill.name.startswith("agent ") for kill in found.kills)
    reason = (
        f"{found.minutes:.2g} min, lead {found.lead}, {len(found.kills)} kills, {on_duty} of them on duty, "
        f"control late in {100 * late:.2f} % of periods"
    )
    if not found.realtime or late > harness.MOST_LATE:
        ok, reason = (
            None,
            reason + "; " + ("no realtime rights" if not found.realtime else "the machine is too noisy"),
        )
    yield row("empty rings, attributable", attributable, "rings", "0", ok, reason)
    yield row("empty rings, all", empty, "rings", "", None)
    turn = 1000 * harness.longest_turn_seconds(found.table)
    yield row("longest turn of the engine", turn, "ms", "", None, f"the lead is {found.lead / 48:.1f} ms")


def respawn_rows(found: Killing) -> Iterator[Row]:
    """Yield how long successors took."""
    done = replacements(found.kills, found.respawns)
    causes = Counter(one.cause for one in found.respawns)
    told = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    yield row("killed workers without successor", done.lost, "workers", "0", done.lost == 0, f"respawns: {told}")
    p50, p99 = quantiles(done.warm)
    worst = f"{len(done.warm)} of them; slowest {max(done.warm, default=math.inf):.3f} s"
    yield row("respawn from the spare, p50", p50, "s", f"<= {P50_SECONDS:g}", p50 <= P50_SECONDS)
    yield row("respawn from the spare, p99", p99, "s", f"<= {P99_SECONDS:g}", p99 <= P99_SECONDS, worst)
    slowest = max(done.cold, default=0.0)
    yield row("respawn where none stood by yet, slowest", slowest, "s", "", None, f"{len(done.cold)} of them")
    middle, most = quantiles(done.noticed)
    yield row("from a kill to its detection, p99", most, "s", "", None, f"p50 {middle:.3f} s")


def take_rows(found: Killing, out: Path) -> Iterator[Row]:
    """Yield what the take tells: rungs, gaps, and whether it is whole and the same again."""
    take, flaws = look_at_take(found.take)
    for rung, share in shares(take.spans).items():
        yield row(f"spans on rung {rung} ({RUNGS[rung]})", share, "%", "", None)
    own = [of_agent(take.spans, agent) for agent in take.stems]
    gaps = sum(len(fades(spans)) for spans in own)
    silent = [span for spans in own for span in unexplained(spans)]
    causes = Counter(span.cause for span in take.spans if span.rung >= SPECULATIVE)
    told = ", ".join(f"{count} {cause}" for cause, count in causes.most_common(5))
    yield row("spans faded after the first good bar", gaps, "spans", "0", gaps == 0, f"of {len(take.spans)}")
    yield row("spans that do not say why", len(silent), "spans", "0", not silent, told)
    lost = sum(missing(spans) for spans in own)
    yield row("frames that belong to no span", lost, "frames", "0", lost == 0)
    tones = of_agent(take.spans, "model")
    begin, end = tones[min(first_good(tones), len(tones) - 1)].start, take.frames - take.samplerate // 4
    blocks = take.stem_blocks("model", LOOK_SECONDS * take.samplerate)
    holes, clicks = tone_flaws(blocks, take.samplerate, begin, end)
    yield row("gaps in the tone on the WAV", holes, "gaps", "0", holes == 0)
    yield row("clicks in the tone on the WAV", clicks, "clicks", "0", clicks == 0)
    yield row("flaws of the take", len(flaws), "flaws", "0", not flaws, "; ".join(flaws))
    different, frames = replayed(take, out)
    minutes = frames / take.samplerate / 60
    yield row(
        "stems that differ on replay", len(different), "stems", "0", not different,
        f"the first {minutes:.1f} of {take.frames / take.samplerate / 60:.1f} min; {', '.join(different)}",
    )  # fmt: skip


# Faults done once

GROUPS = (
    ("slow", "loop", "raises", "nan", "abort", "record-stopped", "strikes"),
    ("memory", "stopped", "length", "checksum", "record-killed", "state-stopped"),
)
"""Who plays together: enough for a crowd, few enough for two cores."""
QUICK = ("loop", "raises", "abort", "record-stopped", "strikes", "stopped", "checksum")
"""What a quick run looks at: one of each kind, and none that takes long."""
PAUSE_BARS = 1
"""Between one agent's trouble and the next one's."""
READY_SECONDS, RECOVERY_SECONDS, NOTICE_SECONDS = 60.0, 20.0, 5.0
MEMORY_MB = 400
BARS_BEFORE, BARS_AFTER = 4, 4

Ending = Callable[[Any, list[str]], list[str]]
"""What is done to a session at its end: takes it and what it says, returns what is wrong."""


def trouble_rows(folder: Path, options: Options) -> Iterator[Row]:
    """Every trouble that a worker can have, one after the other; in the end the recorder dies, or the engine."""
    endings: tuple[tuple[str, Ending, bool], ...] = (
        ("recorder, killed", without_recorder, False),
        ("engine, killed", without_engine, True),
    )
    for group, (ending, end, closed) in zip(GROUPS, endings, strict=True):
        names = [name for name in group if name in QUICK or not options.quick]
        out = folder / f"without-{ending.partition(',')[0]}"
        session = trouble_band(folder, names)
        found = play_with_troubles(session, out, folder, names, end)
        take, flaws = look_at_take(out, closed)
        yield from worker_rows(take, found, names)
        flaws += found.flaws + replay_flaws(take, folder / f"{out.name}-again")
        what = f"{seconds_of(take)} kept; said: {found.said[-1] if found.said else 'nothing'}"
        yield played_on(ending, flaws, what)


@dataclass(frozen=True, slots=True)
class Troubled:
    """What came of a session with troubles.

    Attributes
    ----------
    struck, causes
        In which bar each trouble came, and the causes of its respawns; none where the band was not ready in time.
    late_frames
        Frames that the engine was late with.
    flaws
        What was wrong in the end.
    said, why_not
        What the session said, and why the band was not ready.
    """

    struck: Mapping[str, int]
    causes: Mapping[str, list[str]]
    late_frames: int
    flaws: list[str]
    said: list[str]
    why_not: str


def worker_rows(take: Any, found: Troubled, names: Sequence[str]) -> Iterator[Row]:
    """Yield what became of each agent of a band, and of the one that had no trouble."""
    for name in names:
        if not found.struck:
            yield Row(SUITE, f"worker, {name}: played on", None, "of 1", "1", None, found.why_not)
            continue
        spans, bar = of_agent(take.spans, agent_name(name)), found.struck[name]
        flaws = worker_flaws(spans, bar, found.causes[name], EXPECTED[name])
        rungs = "".join(str(span.rung) for span in spans if span.bar >= bar)
        yield played_on(f"worker, {name}", flaws, f"{', '.join(found.causes[name])}; rungs from there on {rungs}")
    others = of_agent(take.spans, "witness")
    beside = [span for span in others[first_good(others) :] if span.rung > SPECULATIVE]
    yield row(
        "spans of an agent beside them below rung 2", len(beside), "spans", "0", not beside and bool(others),
        f"of {len(others)}; {found.late_frames} frames were due before they were mixed, without a control",
    )  # fmt: skip


def agent_name(trouble: str) -> str:
    """Return the name of the agent that has a trouble."""
    return f"a-{trouble}"


def trouble_band(folder: Path, names: Sequence[str]) -> Any:
    """Return a session without a device, in short bars: one agent a trouble, and one that has none."""
    from bridge.session import Session

    agents = [*map(agent_name, names), "witness"]
    tables = "".join(f'[[agents]]\nname = "{agent}"\nkind = "echo"\n' for agent in agents)
    text = f'[stream]\ndevice = "null"\n[transport]\nbpm = 320\nmeter = "2/4"\n{tables}'
    kinds = {agent: ("troubles:TroubledAgent", {"trouble": str(folder / f"{agent}.trouble")}) for agent in agents}
    return with_agents(Session.parse(text), MEMORY_MB, **kinds)


def play_with_troubles(session: Any, out: Path, folder: Path, names: Sequence[str], end: Ending) -> Troubled:
    """Play, let one trouble after the other come, wait until everybody plays again, then do what ends it."""
    from bridge.app import Live

    said: list[str] = []
    struck: dict[str, int] = {}
    why_not = ""
    with Live(session, out, said.append) as live:
        harness.wait_for(live, lambda: is_ready(live) or left_out(live), READY_SECONDS)
        if is_ready(live):
            first = live.status().bar + 3
            struck = {name: first + PAUSE_BARS * index for index, name in enumerate(names)}
            for name in TROUBLES.keys() & struck.keys():
                (folder / f"{agent_name(name)}.trouble").write_text(f"{name} {struck[name]}")
            if "stopped" in struck:
                harness.wait_for(live, lambda: live.status().bar >= struck["stopped"], READY_SECONDS)
                os.kill(live.pids()[f"agent {agent_name('stopped')}"], signal.SIGSTOP)
            harness.wait_for(live, lambda: all(is_over(live, name) for name in names), RECOVERY_SECONDS)
            last = live.status().bar + BARS_AFTER
            harness.wait_for(live, lambda: live.status().bar >= last, RECOVERY_SECONDS)
        else:
            harness.wait_for(live, lambda: live.status().bar >= BARS_BEFORE, READY_SECONDS)
            why_not = (
                f"the band was not ready within {READY_SECONDS:.0f} s; {said[0] if said else 'nothing was said'}"
            )
        late_frames = int(live.status().stream["late_frames"])
        causes = {name: [one.cause for one in live.respawns if one.agent == agent_name(name)] for name in names}
        flaws = end(live, said)
        begin = time.monotonic()
    if (seconds := time.monotonic() - begin) > NOTICE_SECONDS:
        flaws.append(f"to close took {seconds:.1f} s")
    return Troubled(struck, causes, late_frames, flaws, said, why_not)


def is_over(live: Any, trouble: str) -> bool:
    """Whether an agent has played again since it was replaced, or was left out where that was expected."""
    agent = agent_name(trouble)
    if not EXPECTED[trouble].again:
        return bool(live.status().states[agent] == "quarantined")
    return any(one.agent == agent for one in live.respawns) and live.status().ledger[agent]["good"] >= 4


def without_recorder(live: Any, said: list[str]) -> list[str]:
    """Kill the recorder: it is said, and the music goes on."""
    frame = live.status().frame
    os.kill(live.pids()["recorder"], signal.SIGKILL)
    killed = time.monotonic()
    flaws = []
    if not harness.wait_for(live, lambda: any("recorder" in sentence for sentence in said), NOTICE_SECONDS):
        flaws.append("not a word was said")
    time.sleep(1.0)
    pace = (live.status().frame - frame) / (time.monotonic() - killed) / live.config.spec.samplerate
    if not (live.poll() and 0.8 < pace < 1.2):
        flaws.append(f"the music went on at {pace:.2f} times its pace")
    return flaws


def without_engine(live: Any, said: list[str]) -> list[str]:
    """Kill the engine: it is said, the session ends."""
    os.kill(live.pids()["engine"], signal.SIGKILL)
    ended = not harness.wait_for(live, lambda: False, NOTICE_SECONDS) and not live.poll()
    flaws = [] if ended else ["the session does not end"]
    return flaws if any("engine" in sentence for sentence in said) else [*flaws, "not a word was said"]


def seconds_of(take: Any) -> str:
    """Return a take's length in words."""
    return f"{take.frames / take.samplerate:.1f} s"


def quiet_session(folder: Path) -> Path:
    """Write a session without a device, in bars of half a second, as anybody could play it."""
    from bridge.demo import demo_session

    demo_session(folder / "demo-corpora")
    path = folder / "quiet.toml"
    path.write_text(f"""
[stream]
device = "null"
[transport]
bpm = 240
meter = "2/4"
chart = ["Dm7", "Am7"]
[metronome]
on = true
{harness.corpus_agent("bass", folder / "demo-corpora" / "bass")}
[[agents]]
name = "echo"
kind = "echo"
listens = "bass"
""")
    return path


def bridge_rows(folder: Path) -> Iterator[Row]:
    """Kill the bridge of ``sideman play``: a fade at the next bar, a closed take, no process and no memory left."""
    out = folder / "no-bridge"
    command = [str(Path(sys.executable).with_name("sideman")), "play", str(quiet_session(folder)), "--out", str(out)]
    bridge = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: set[int] = set()
    flaws = []
    try:
        if not until(lambda: played(out / "take.jsonl") >= 2 * BARS_BEFORE, READY_SECONDS):
            flaws.append("the band never played")
        family, memory = descendants(bridge.pid), shared_memory(bridge.pid)
        bridge.kill()
        bridge.wait()
        killed = time.monotonic()
        if not until(lambda: not any(map(is_alive, family)), NOTICE_SECONDS):
            flaws.append(f"{sum(map(is_alive, family))} of {len(family)} processes are left")
        if not until(lambda: not any(path.exists() for path in memory), NOTICE_SECONDS):
            flaws.append(f"shared memory is left: {', '.join(path.name for path in memory if path.exists())}")
        seconds = time.monotonic() - killed
    finally:
        for pid in [bridge.pid] * (bridge.poll() is None) + [pid for pid in family if is_alive(pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        bridge.wait()
    if not family or not memory:
        flaws.append(
            f"{len(family)} processes and {len(memory)} pieces of shared memory were seen, so nothing is shown"
        )
    take, more = look_at_take(out)
    more += replay_flaws(take, folder / "no-bridge-again") + end_flaws(take)
    yield played_on(
        "bridge, killed", flaws + more,
        f"all {len(family)} processes gone after {seconds:.1f} s, {seconds_of(take)} kept",
    )  # fmt: skip


def end_flaws(take: Any) -> list[str]:
    """Say what is wrong with the end of a take that nobody asked for: it is on a bar line, and faded out before."""
    flaws = []
    bar = take.tempo_map.moment(take.frames).bar
    line = min((take.tempo_map.bar_frame(near) for near in (bar, bar + 1)), key=lambda at: abs(at - take.frames))
    if abs(line - take.frames) > 1:
        flaws.append(f"it ends {take.frames - line} frames from a bar line")
    last = np.concatenate(list(take.mix()))[-16:]
    if np.abs(last).max(initial=0) > 10 ** (-60 / 20):
        flaws.append("it was not faded out")
    return flaws


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds; return whether it does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return condition()
        time.sleep(0.02)
    return True


def played(log: Path) -> int:
    """Return how many spans a take that is being written has with the agent's final answer."""
    return log.read_text().count('"rung":1,') if log.exists() else 0


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be buried does not."""
    return state_and_parent(pid)[0] not in ("", "Z", "X")


def state_and_parent(pid: int) -> tuple[str, int]:
    """Return the state of a process, as the system calls it, and its parent's id."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "", 0
    return state, int(parent)


def descendants(pid: int) -> set[int]:
    """Return the ids of a process's children, and theirs."""
    parents = {int(path.name): state_and_parent(int(path.name))[1] for path in Path("/proc").glob("[0-9]*")}
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def shared_memory(pid: int) -> set[Path]:
    """Return the named memory that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if "/dev/shm/" in line}


# Files


def mutant_rows(count: int) -> Iterator[Row]:
    """Damaged and hostile files, by the thousands."""
    import mutants

    try:
        yield from mutants.mutant_rows(count)
    except AssertionError as death:
        yield row("mutants, deaths of bridge or engine", 1, "1", "0", False, str(death))
