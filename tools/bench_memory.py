"""Suite ``memory``: half an hour of a band, what each process holds, and whether a model that is nearly late ever is.

One session plays: a corpus agent, and an agent that works at a network for 68 % of its budget, at 240 bpm in 4/4, so
that half an hour is 1,800 bars. Every ten seconds each process is looked at. What counts is anonymous memory, which
is its alone: the rings are shared and reserved at the start. From minute 10 on it is to stay as it is; the difference
of the medians at both ends is judged, and a line fitted to all samples is printed beside it.

It needs nobody to look on: ``sideman bench memory --json FILE`` writes its file at the end. While it runs its take
needs 2 GB of disk.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from live import (
    LIVE_LEAD,
    PERIOD_FRAMES,
    SAMPLERATE,
    controlled,
    corpus_agent,
    jack_server,
    live_text,
    wait_for,
)
from rows import Options, Row

SUITE = "memory"
BPM, BAR_SECONDS = 240, 1.0
LONG, SHORT = 30 * 60.0, 24.0
SETTLED_SHARE = 1 / 3
"""Of the run: before that, caches fill."""
SAMPLE_SECONDS, SHORT_SAMPLE_SECONDS = 10.0, 1.0
GROWTH_KB, BLOCKS_GROWTH = 256.0, 16.0
FLAT_BLOCKS = 100_000
ENDS = 5
"""Samples whose median is taken at each end."""
BUDGET_SECONDS, SHARE = 0.2, 0.68
MOST_SHARE = 0.70
LATE_IN, LATE_AT_MOST = 1_000, 1.0
BUSY_CONTROL = 0.001

Look = tuple[float, float]


def rows(options: Options) -> Iterator[Row]:
    """Yield the suite's rows."""
    if not Path("/proc/self/smaps_rollup").exists():
        yield Row(SUITE, "growth of each process", None, "kB", f"<= {GROWTH_KB:g}", None, "only Linux tells it")
        return
    seconds = SHORT if options.quick else LONG
    with tempfile.TemporaryDirectory(prefix="sideman-bench-") as name:
        run = play(Path(name), seconds, SHORT_SAMPLE_SECONDS if options.quick else SAMPLE_SECONDS)
    yield from growth_rows(run, options.quick)
    yield blocks_row(run, options.quick)
    yield late_row(run, options.quick)


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen of a session.

    Attributes
    ----------
    where
        What it played to.
    seconds
        How long the band played, all armed.
    memory
        By process: ``(seconds, kB)`` of each look.
    blocks
        ``(blocks mixed, blocks of memory that Python has allocated)`` of the engine; empty where it does not tell.
    finals, late
        Final answers asked of the model, and those of them that came late.
    compute_seconds
        How long each of its final answers took.
    control_late
        In which share of periods a process above all others woke late.
    """

    where: str
    seconds: float
    memory: dict[str, list[Look]]
    blocks: list[Look]
    finals: int
    late: int
    compute_seconds: list[float]
    control_late: float


def growth_rows(run: Run, quick: bool) -> Iterator[Row]:
    """Yield a row for each process."""
    begin = SETTLED_SHARE * run.seconds
    span = (
        f"minutes {begin / 60:.0f} to {run.seconds / 60:.0f}" if not quick else f"{begin:.0f} to {run.seconds:.0f} s"
    )
    for name, looks in sorted(run.memory.items()):
        settled = [look for look in looks if look[0] >= begin]
        if len(settled) < 2 * ENDS:
            yield Row(
                SUITE, f"growth of {name}", None, "kB", f"<= {GROWTH_KB:g}", None, "it was not there long enough"
            )
            continue
        value = growth(settled)
        reason = (
            f"{span}, {run.where}; it holds {settled[-1][1] / 1024:.1f} MB; a line through {len(settled)} looks says "
            f"{slope(settled) * 1200:+.0f} kB in 20 minutes"
        )
        ok = None if quick else value <= GROWTH_KB
        yield Row(SUITE, f"growth of {name}", value, "kB", f"<= {GROWTH_KB:g}", ok, reason + too_short(quick))


def blocks_row(run: Run, quick: bool) -> Row:
    """Return how many more blocks of memory the engine has allocated in 100,000 blocks of sound."""
    name, goal = f"allocated blocks of the engine in {FLAT_BLOCKS:,} blocks", f"<= {BLOCKS_GROWTH:g}"
    settled = run.blocks[int(SETTLED_SHARE * len(run.blocks)) :]
    if len(settled) < 2 * ENDS:
        return Row(SUITE, name, None, "blocks", goal, None, "the engine does not publish them")
    value = slope(settled) * FLAT_BLOCKS
    mixed = settled[-1][0] - settled[0][0]
    spread = np.ptp([held for _, held in settled])
    reason = f"a line through {len(settled)} looks over {mixed:.0f} blocks of sound; they differ by {spread:.0f}"
    return Row(
        SUITE, name, value, "blocks", goal, None if quick else value <= BLOCKS_GROWTH, reason + too_short(quick)
    )


def late_row(run: Run, quick: bool) -> Row:
    """Return how many final answers of the model were late, in 1,000 bars."""
    name, goal = f"late finals in {LATE_IN:,} bars, p99 <= {MOST_SHARE:.0%} of the budget", f"<= {LATE_AT_MOST:g}"
    if not run.finals or not run.compute_seconds:
        return Row(SUITE, name, None, "finals", goal, None, "no final answer was seen")
    p50, p99 = (float(np.percentile(run.compute_seconds, share)) for share in (50, 99))
    value = run.late * LATE_IN / run.finals
    ok: bool | None = value <= LATE_AT_MOST
    reason = (
        f"{run.late} of {run.finals}; it took {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms = "
        f"{p99 / BUDGET_SECONDS:.0%} of {1e3 * BUDGET_SECONDS:.0f} ms; "
        f"control late in {run.control_late:.2%} of periods"
    )
    if quick:
        ok, reason = None, reason + too_short(quick)
    elif p99 > MOST_SHARE * BUDGET_SECONDS:
        ok, reason = None, reason + "; its p99 was beyond that, so nothing is said"
    elif not ok and run.control_late > BUSY_CONTROL:
        ok, reason = None, reason + "; the machine is too noisy"
    return Row(SUITE, name, value, "finals", goal, ok, reason)


def too_short(quick: bool) -> str:
    """Say that a quick run says little."""
    return "; too short to judge: it takes half an hour" if quick else ""


def growth(looks: list[Look]) -> float:
    """Return the difference of the medians at both ends."""
    return float(np.median([y for _, y in looks[-ENDS:]]) - np.median([y for _, y in looks[:ENDS]]))


def slope(looks: list[Look]) -> float:
    """Return the slope of a line fitted to all looks."""
    x, y = (np.array(column) for column in zip(*looks, strict=True))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(float((x * x).sum()), 1e-12))


def anonymous_kb(pid: int) -> float | None:
    """Return what a process holds for itself, in kB; ``None`` where it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
    return float(found["Anonymous"]) + float(found.get("Swap", 0))


def play(folder: Path, seconds: float, every_seconds: float) -> Run:
    """Let the band play, and look at it."""
    from bridge.app import Live
    from bridge.session import Session

    out = folder / "take"
    memory: dict[str, list[Look]] = defaultdict(list)
    blocks: list[Look] = []
    with jack_server("sideman-bench-memory") as server:
        device = "system" if server else "null"
        live = Live(Session.load(write_session(folder, device)), out, lambda text: None, lead=LIVE_LEAD)
        live.config = with_model(live.config)
        with live:
            wait_for(live, lambda: set(live.status().states.values()) == {"armed"}, 60)
            with controlled(live, seconds, folder) as table:
                before, begun = live.status().ledger["model"], time.monotonic()
                while (now := time.monotonic() - begun) < seconds and live.poll():
                    look(live, now, memory, blocks)
                    while time.monotonic() - begun < now + every_seconds and live.poll():
                        time.sleep(0.1)
                played, after = time.monotonic() - begun, live.status().ledger["model"]
                late = table()[:, 1] > PERIOD_FRAMES * 10**9 // SAMPLERATE
    return Run(
        "JACK dummy" if server else "no device",
        played,
        dict(memory),
        blocks,
        after["finals"] - before["finals"],
        after["late_finals"] - before["late_finals"],
        final_seconds(out / "take.jsonl", "model"),
        float(late.mean()),
    )


def look(live: Any, now: float, memory: dict[str, list[Look]], blocks: list[Look]) -> None:
    """Look at every process once."""
    pids = live.pids() | {"bridge": os.getpid()}
    for name, pid in pids.items():
        if (held := anonymous_kb(pid)) is not None:
            memory[name].append((now, held))
    try:
        told = live.arena.status("engine.status").read()
    except KeyError:
        return
    blocks.append((live.status().frame / PERIOD_FRAMES, float(told["allocated_blocks"])))


def write_session(folder: Path, device: str) -> Path:
    """Write a session of two corpus agents, of which the second becomes the model's."""
    from bridge.demo import build_corpora

    build_corpora(folder / "demo-corpora")
    agents = [corpus_agent(name, folder / "demo-corpora" / "bass") for name in ("bass", "model")]
    path = folder / "memory.toml"
    path.write_text(live_text(*agents, seed=5, device=device, bpm=BPM))
    return path


def with_model(config: Any) -> Any:
    """Return an engine's configuration whose second agent works at a network for most of its budget."""
    from bridge.session import MODELS

    bass, model = config.parts
    options = {"model": str(MODELS / "onset"), "work_seconds": SHARE * BUDGET_SECONDS, "channels": 1}
    agent = replace(
        model.agent, kind="bench_agents:ModelAgent", channels=1, options=options, budget_seconds=BUDGET_SECONDS
    )
    strip = replace(model.strip, channels=1)
    return replace(config, parts=(bass, replace(model, agent=agent, strip=strip)))


def final_seconds(log: Path, agent: str) -> list[float]:
    """Return how long each final answer of an agent took, from a take's lines."""
    found = []
    with log.open(encoding="utf-8") as lines:
        for text in lines:
            if '"reply"' in text:
                line = json.loads(text)
                if line.get("agent") == agent and line.get("attempt") == 1 and not line.get("fault"):
                    found.append(float(line["compute_seconds"]))
    return found
