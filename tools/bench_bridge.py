"""Suite ``bridge``: hostile OSC, audio over a bad network, others' clocks, a DAW that comes back, the round trip.

What can be had in virtual time is: packets are made by chance from a seed (``osc_mutants``), networks too
(``oscnet``), and so are DAWs that die and return (``relock``). On the wall clock there is a flood through the socket
of a session that plays (``flood``), a session that follows a DAW's MIDI clock through JACK while the DAW hears its
clicks (``jackdaw``), two processes of Link in a network of their own (``clocks``), and a loop of JACK whose length is
measured. Real DAWs are for the tests (``pytest -m peers``).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import flood
import live as harness
import numpy as np
import osc_mutants
import oscnet
import relock
from bench_memory import ENDS, GROWTH_KB, Look, anonymous_kb, growth
from jackdaw import ON_GRID_MS, Performance, followed, performed
from live import LIVE_LEAD, MOST_LATE, NO_JACK, SAMPLERATE, jack_server, live_text
from rows import Options, Row

SUITE = "bridge"
SECOND_NS = 10**9
ROOT = Path(__file__).resolve().parent.parent


def rows(options: Options) -> Iterator[Row]:
    """Yield the suite's rows."""
    with harness.ended_in_order(), tempfile.TemporaryDirectory(prefix="sideman-bench-") as name:
        folder = Path(name)
        with link_beside(options.quick) as link:
            yield from fuzz_rows(options.quick)
            yield from network_rows(options.quick)
            yield from link()
        yield from relock_rows(options.quick)
        yield from flood_rows(folder, options.quick)
        yield from midi_rows(folder, options.quick)
        yield from calibration_rows(folder, options.quick)


def row(name: str, value: float, unit: str, goal: str, ok: bool | None, reason: str = "") -> Row:
    """Make a row of this suite."""
    return Row(SUITE, name, float(value), unit, goal, None if ok is None else bool(ok), reason)


def unmeasured(name: str, unit: str, goal: str, reason: str) -> Row:
    """Make the row of a figure that cannot be had here."""
    return Row(SUITE, name, None, unit, goal, None, reason)


# -- OSC: mutants ----------------------------------------------------------------------------------------------------

PACKETS, PACKETS_QUICK = 1_000_000, 50_000
HANG_SECONDS = 1.0
"""A packet that takes more of a processor's time is one that hangs."""
LIMIT_SECONDS, LIMIT_EACH_SECONDS = 60.0, 0.005
"""A run that takes longer hangs, whatever it says: it is ended."""
LOOK_SECONDS = 0.25
SETTLED_SHARE, JUDGED_SECONDS = 1 / 3, 10.0
MOST_BLOCKS = 1_000


def fuzz_rows(quick: bool) -> Iterator[Row]:
    """Send mutants through the server; in a child, so that one that hangs is ended, and its memory is its own."""
    count = PACKETS_QUICK if quick else PACKETS
    result, looks = watched(be_fuzzed, (count,), LIMIT_SECONDS + LIMIT_EACH_SECONDS * count)
    yield from judged_fuzz(result, looks, count)


def be_fuzzed(count: int) -> dict[str, Any]:
    """Return what became of so many mutants, and of a flood of as many in virtual time."""
    return {"fuzz": asdict(osc_mutants.fuzz(count)), "flood": asdict(osc_mutants.flood(count))}


def watched(work: Callable[..., Any], arguments: tuple[Any, ...], limit_seconds: float) -> tuple[Any, list[Look]]:
    """Have a child do some work; return its answer, ``None`` if it has none in time, and what it held meanwhile."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_answer, args=(theirs, work, arguments), daemon=True)
    child.start()
    theirs.close()
    begun, looks, answer = time.monotonic(), [], None
    try:
        ours.recv()  # it has imported what it needs
        begun = time.monotonic()
        while not ours.poll(LOOK_SECONDS) and time.monotonic() - begun < limit_seconds:
            held = anonymous_kb(child.pid or 0)
            if held is not None:
                looks.append((time.monotonic() - begun, held))
        answer = ours.recv() if ours.poll() else None
    except EOFError:
        pass  # it has died: no answer
    finally:
        child.kill()
        child.join()
        ours.close()
    return answer, looks


def _answer(pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send("begun")
    pipe.send(work(*arguments))


def judged_fuzz(result: Any, looks: Sequence[Look], count: int) -> Iterator[Row]:
    """Yield the rows of a run of mutants; ``result`` is ``None`` where it was not ended by itself."""
    hangs, uncaught = f"hangs in {count:,} mutated packets", "uncaught exceptions meanwhile"
    if result is None:
        yield row(hangs, 1, "hangs", "0", False, "the run had to be ended, or its process died")
        yield unmeasured(uncaught, "errors", "0", "it did not end")
        return
    fuzz, virtual = result["fuzz"], result["flood"]
    slowest = fuzz["slowest_seconds"]
    what = f"the slowest took {1e3 * slowest:.1f} ms; {count / fuzz['seconds']:,.0f} a second, made and read"
    yield row(hangs, slowest > HANG_SECONDS, "hangs", "0", slowest <= HANG_SECONDS, what)
    errors = len(fuzz["uncaught"]) + fuzz["counted"]["faults"] + virtual["counted"]["faults"]
    first = f"; the first: {fuzz['uncaught'][0][:200]}" if fuzz["uncaught"] else ""
    what = f"{fuzz['replies']:,} replies, {fuzz['errors']:,} errors and {fuzz['reports']:,} reports went back"
    yield row(uncaught, errors, "errors", "0", errors == 0, what + first)
    unreadable = fuzz["unreadable"]
    yield row("answers that are no OSC", unreadable, "packets", "0", unreadable == 0)
    blocks = fuzz["blocks_grown"]
    yield row(
        "memory blocks left by the second half", blocks, "blocks", f"<= {MOST_BLOCKS:,}", blocks <= MOST_BLOCKS,
        f"of Python's allocator; a flood of as many left {virtual['blocks_grown']}",
    )  # fmt: skip
    yield growth_row("growth of the fuzzed process", looks)
    share = virtual["of_the_known"]
    yield row(
        "of one who is known, read in a flood", share, "share", "1", share == 1,
        f"virtual time, {virtual['senders']:,} senders, 100,000 a second; {virtual['lines']} lines in the log",
    )  # fmt: skip


def growth_row(name: str, looks: Sequence[Look]) -> Row:
    """Make the row of what a process holds more at the end, from a third of the time on; ``looks``: seconds, kB."""
    goal = f"<= {GROWTH_KB:g}"
    end = looks[-1][0] if looks else 0.0
    settled = [look for look in looks if look[0] >= SETTLED_SHARE * end]
    if len(settled) < 2 * ENDS:
        return unmeasured(name, "kB", goal, "it was not there long enough, or only Linux tells")
    value = growth(settled)
    said = f"from {settled[0][0]:.0f} to {end:.0f} s; it holds {settled[-1][1] / 1024:.1f} MB"
    if end < JUDGED_SECONDS:
        return row(name, value, "kB", goal, None, f"{said}; too short to judge")
    return row(name, value, "kB", goal, value <= GROWTH_KB, said)


# -- OSC: a flood through the socket ---------------------------------------------------------------------------------

FLOOD_SECONDS, FLOOD_SECONDS_QUICK = 30.0, 4.0
KEPT_SHARE = 0.99
ANSWER_SECONDS = 1.0


def flood_rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Flood a session that plays."""
    yield from judged_flood(flood.flooded(folder, FLOOD_SECONDS_QUICK if quick else FLOOD_SECONDS))


def judged_flood(done: flood.Flooded) -> Iterator[Row]:
    """Yield the rows of a flood."""
    rate = done.sent / done.seconds
    kept = rate >= KEPT_SHARE * flood.PER_SECOND
    where = "JACK dummy" if done.jack else "no device"
    what = f"for {done.seconds:.0f} s from {flood.SOCKETS} ports at {done.priority}, 2 agents, {where}"
    if done.unread is not None:
        what += f"; {done.sent - done.unread:,} reached the session, the others the system dropped"
    if not kept:
        what += "; this machine sends no faster beside a session"
    yield row("flood: packets sent a second", rate, "packets/s", f"{flood.PER_SECOND:,}", kept or None, what)
    name, goal = "flood: attributable empty rings", "0"
    if not done.jack:
        yield unmeasured(name, "rings", goal, NO_JACK)
    else:
        ok: bool | None = done.attributable == 0
        what = f"{done.empty} in all, lead {LIVE_LEAD}, control late in {done.control_late:.2%} of periods"
        if not done.realtime or done.control_late > MOST_LATE:
            ok = None
            what += "; " + ("the machine is too noisy" if done.realtime else "no realtime rights")
        yield row(name, done.attributable, "rings", goal, ok, what)
    yield growth_row("flood: growth of the bridge", done.looks)
    unforeseen = [text for text in done.said if "nobody has foreseen" in text or "it goes on" in text]
    what = f"{len(done.said)} sentences in the log" + (f"; {unforeseen[0][:200]}" if unforeseen else "")
    yield row("flood: uncaught exceptions", len(unforeseen), "errors", "0", not unforeseen, what)
    what = f"a friend's questions during it: {done.answered} of {done.asked} answered"
    yield row(
        "flood: until a friend is answered after it", done.after_seconds, "s", f"<= {ANSWER_SECONDS:g}",
        done.after_seconds <= ANSWER_SECONDS, what,
    )  # fmt: skip


# -- audio over OSC --------------------------------------------------------------------------------------------------

NETWORK_SECONDS, NETWORK_SECONDS_QUICK = 60.0, 5.0
NETWORKS, NETWORKS_QUICK = 3, 1
MOST_BLOCKS_LATE = 2


def network_rows(quick: bool) -> Iterator[Row]:
    """Send a band's stems and a player's sound over bad networks, in virtual time."""
    seconds = NETWORK_SECONDS_QUICK if quick else NETWORK_SECONDS
    seeds = range(1, 1 + (NETWORKS_QUICK if quick else NETWORKS))
    stems = [oscnet.stems_whole(seconds, bad_network(seed)) for seed in seeds]
    inputs = [oscnet.live_input(seconds, bad_network(seed)) for seed in seeds]
    yield from judged_network(stems, inputs)


def bad_network(seed: int, blocksize: int = 128) -> oscnet.Network:
    """Return a network that loses 5 %, has 5 % overtaken by the next block, and jitters by 3 ms."""
    hold_ns = blocksize * SECOND_NS // SAMPLERATE * 5 // 4
    return oscnet.Network(loss=0.05, reorder=0.05, jitter_ns=3 * oscnet.MS, hold_ns=hold_ns, seed=seed)


def judged_network(stems: Sequence[dict[str, float]], inputs: Sequence[dict[str, float]]) -> Iterator[Row]:
    """Yield the rows of what came through."""
    frames, lost = sum(one["frames"] for one in stems), max(one["lost_percent"] for one in stems)
    missing, wrong = (sum(one[key] for one in stems) for key in ("missing_frames", "wrong_frames"))
    what = f"of {frames:,.0f}; up to {lost:.1f} % lost, 5 % overtaken, 3 ms jitter, doubled, replayed and cut ones"
    what += f"; {max(one['resent_percent'] for one in stems):.0f} % sent again"
    yield row("stems over OSC: missing frames", missing, "frames", "0", missing == 0 and frames > 0, what)
    yield row("stems over OSC: wrong frames", wrong, "frames", "0", wrong == 0 and frames > 0)
    worst = max(one["added_blocks_worst"] for one in inputs)
    waits = max(one["wait_ms"] for one in inputs)
    lost = max(one["lost_percent"] for one in inputs)
    what = f"beyond delay and jitter, blocks of 128; p99 {max(one['added_blocks_p99'] for one in inputs):.2f}"
    yield row(
        "live input over OSC: added delay, worst", worst, "blocks", f"<= {MOST_BLOCKS_LATE}",
        worst <= MOST_BLOCKS_LATE, f"{what}; {lost:.1f} % lost, a jitter buffer of {waits:.1f} ms",
    )  # fmt: skip
    rough = max(one["roughness"] for one in inputs)
    yield row(
        "live input over OSC: roughness",
        rough,
        "times",
        "",
        None,
        "its bend by that of what was played: 1 is no click",
    )


# -- Link ------------------------------------------------------------------------------------------------------------

LINK_SECONDS, LINK_SECONDS_QUICK = 30.0, 3.0
PHASE_MS = 1.0
LINK_NAMES = ("Link: tempo equal", "Link: phase between two processes, p99")


@contextmanager
def link_beside(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    """Yield what yields Link's rows. In a quick run two processes play while something else is measured."""
    why = link_missing()
    if why or not quick:
        yield lambda: judged_link(None if why else linked(LINK_SECONDS), why)
        return
    with tempfile.TemporaryDirectory(prefix="sideman-bench-") as name:
        file = Path(name) / "link.json"
        process = start_link(LINK_SECONDS_QUICK, file)
        try:
            yield lambda: judged_link(ended_link(process, file, LINK_SECONDS_QUICK), "", "beside the fuzz")
        finally:
            process.kill()
            process.wait()


def linked(seconds: float) -> dict[str, Any] | None:
    """Have two processes in a session of Link, in a network of their own; ``None`` if they came to nothing."""
    with tempfile.TemporaryDirectory(prefix="sideman-bench-") as name:
        file = Path(name) / "link.json"
        process = start_link(seconds, file)
        try:
            return ended_link(process, file, seconds)
        finally:
            process.kill()
            process.wait()


def link_missing() -> str:
    """Say what is not here for Link, ``""`` if all of it is."""
    from importlib.util import find_spec

    if find_spec("link") is None:
        return "the package LinkPython-extern is not installed"
    alone = shutil.which("unshare")
    if alone is None or subprocess.run([alone, "-n", "true"], capture_output=True, check=False).returncode:
        return "no network of its own can be made here (unshare -n): it would lead whoever is on this one"
    return ""


def start_link(seconds: float, file: Path) -> subprocess.Popen[bytes]:
    """Start the two; they write their figures to a file."""
    script = 'ip link set lo up 2>/dev/null; exec "$0" -m tools.clocks link --seconds "$1" --json "$2"'
    command = ["unshare", "-n", "sh", "-c", script, sys.executable, str(seconds), str(file)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ended_link(process: subprocess.Popen[bytes], file: Path, seconds: float) -> dict[str, Any] | None:
    """Wait for the figures."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds + 60)
    if process.poll() != 0 or not file.exists():
        return None
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return figures


def judged_link(figures: dict[str, Any] | None, why: str, beside: str = "") -> Iterator[Row]:
    """Yield the rows of two processes of Link."""
    goals = ("1", f"<= {PHASE_MS:g}")
    if figures is None:
        for name, unit, goal in zip(LINK_NAMES, ("of 1", "ms"), goals, strict=True):
            yield unmeasured(name, unit, goal, why or "the two processes came to nothing")
        return
    equal = figures["tempo_equal"] and figures["playing_equal"]
    what = f"{figures['bpm']} bpm set by one, {figures['tempo']:g} seen by the other; start and stop in common"
    yield row(LINK_NAMES[0], equal, "of 1", goals[0], equal, what)
    p99, late = figures["phase_p99_ms"], figures["control_p99_ms"]
    ok: bool | None = p99 <= PHASE_MS
    what = (
        f"p50 {figures['phase_p50_ms']:.3f}, worst {figures['phase_max_ms']:.3f}, {figures['samples']:,} samples; "
        f"control: a sleep ended {late:.3f} ms late (p99); two readings of one phase {figures['reading_p99_ms']:.3f}"
    )
    if not ok and late > PHASE_MS:
        ok, what = None, what + "; the machine is too noisy"
    yield row(LINK_NAMES[1], p99, "ms", goals[1], ok, what + (f"; {beside}" if beside else ""))


# -- a DAW that dies and returns -------------------------------------------------------------------------------------

CASES, CASES_QUICK = 100, 1
MOST_BARS = 1


def relock_rows(quick: bool) -> Iterator[Row]:
    """Let DAWs of every kind die in mid-song and come back, in virtual time."""
    yield from judged_relock(relock.relock(CASES_QUICK if quick else CASES))


def judged_relock(figures: relock.Figures) -> Iterator[Row]:
    """Yield the rows of many returns: in the song's tempo, which is judged; in another one; and what was misnamed."""
    same = [one for one in figures.returns if one.case.first.tempo == one.case.after.tempo]
    other = [one for one in figures.returns if one.case.first.tempo != one.case.after.tempo]
    for name, found, judged in (("", same, True), (", in another tempo", other, False)):
        if not found:
            continue
        worst = max(one.bars for one in found)
        slow = [one for one in found if one.bars > MOST_BARS]
        elapsed = sorted(one.elapsed_bars for one in found)
        what = f"bar lines that went by; {len(found)} returns, as time {elapsed[len(elapsed) // 2]:.2f} bars (median)"
        what += f" to {elapsed[-1]:.2f}; {len(slow)} took longer{_of_kinds(slow)}"
        goal = f"<= {MOST_BARS}" if judged else ""
        yield row(f"back with a DAW, worst{name}", worst, "bars", goal, worst <= MOST_BARS if judged else None, what)
    wrong = [one for one in figures.returns if one.wrong]
    what = f"{len(figures.returns)} deaths and returns, {len(wrong)} with a wrong one{_of_kinds(wrong)}"
    yield row("back with a DAW: wrong bar numbers", figures.wrong, "bars", "0", figures.wrong == 0, what)
    for kind in dict.fromkeys(one.case.kind for one in figures.returns):
        off_ms = [1e3 * off for one in figures.of_kind(kind) for off in one.off_seconds]
        if off_ms:
            what = f"{len(off_ms)} bar lines, worst {max(off_ms):.2f}"
            yield row(f"bar lines then, p99: {kind}", np.quantile(off_ms, 0.99), "ms", "", None, what)


def _of_kinds(found: Sequence[relock.Return]) -> str:
    kinds = [one.case.kind for one in found]
    said = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    first = f"; the first: seed {found[0].case.seed}" if found else ""
    return f" ({said}{first})" if said else ""


# -- MIDI clock through JACK -----------------------------------------------------------------------------------------

TEMPI = ("97", "120")
ROLL_BARS, ROLL_BARS_QUICK = 8.0, 1.25
PLACES, PLACES_QUICK = (0, 64, 67, 0, 640), (0, 67)
"""Beats of the song from which the DAW rolls: a start, and song positions at a bar line and within a bar."""


def midi_rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Let a session follow a DAW's MIDI clock through JACK."""
    for bpm in TEMPI[:1] if quick else TEMPI:
        done = performed(folder, bpm, PLACES_QUICK if quick else PLACES, ROLL_BARS_QUICK if quick else ROLL_BARS)
        yield from judged_midi(bpm, done)


def judged_midi(bpm: str, done: Performance | None) -> Iterator[Row]:
    """Yield the rows of a session that followed a DAW's MIDI clock."""
    names = (
        f"MIDI clock {bpm}: wrong bar numbers",
        f"MIDI clock {bpm}: bars until the band is in, worst",
        f"MIDI clock {bpm}: clicks beside the DAW's grid, worst",
    )
    goals, units = ("0", f"<= {MOST_BARS}", f"<= {ON_GRID_MS:g}"), ("bars", "bars", "ms")
    found = followed(done) if done is not None else None
    if found is None or found.disturbed == found.rolls:
        why = NO_JACK if found is None else f"JACK missed cycles in each of {found.rolls} rolls: too noisy a machine"
        for name, unit, goal in zip(names, units, goals, strict=True):
            yield unmeasured(name, unit, goal, why)
        return
    rolls = f"{found.rolls - found.disturbed} rolls: start, and song position and continue; JACK dummy"
    if found.disturbed:
        rolls += f"; {found.disturbed} more were left out, as JACK missed cycles in them"
    what = f"{rolls}; {found.first_wrong}" if found.wrong else rolls
    yield row(names[0], found.wrong, units[0], goals[0], found.wrong == 0, what)
    worst = max(found.bars)
    yield row(names[1], worst, units[1], goals[1], worst <= MOST_BARS)
    off = max(found.off_ms, default=math.inf)
    what = f"{len(found.off_ms)} clicks, {found.constant} frames after it by the way through the server"
    what += f"; {found.early} of a first bar lay elsewhere" if found.early else ""
    yield row(names[2], off, units[2], goals[2], off <= ON_GRID_MS, what)


# -- calibration -----------------------------------------------------------------------------------------------------

TAKES, TAKES_QUICK = 3, 1
CLICK_EVERY, OPENING_SECONDS = 12_000, 15.0
LISTENED_SECONDS, LISTENED_SECONDS_QUICK = 10.0, 1.5
EXACT_NAME = "calibration: a click is heard beside its frame"


class Clicks:
    """What a stream drives in place of the engine: a click every so often, and what is heard is kept."""

    def __init__(self, outputs: int, record: Any) -> None:
        self.heard = self.mixed = 0
        self.played = -1
        self.stopped = False
        self._outputs, self._record = outputs, record

    def hear(self, block: Any) -> None:
        """Keep the next input."""
        self._record.write(self.heard, block)
        self.heard += len(block)

    def mix(self, frames: int) -> Any:
        """Return the next output."""
        block = np.zeros((frames, self._outputs), np.float32)
        block[-self.mixed % CLICK_EVERY :: CLICK_EVERY] = 0.5
        self.mixed += frames
        return block


def be_clicks(handle: Any, spec: Any) -> None:
    """Be the process that clicks."""
    from realtime.buffers import Arena
    from realtime.rights import ENGINE_PRIORITY, use_realtime
    from realtime.stream import DeviceStream

    arena = Arena.attach(handle)
    use_realtime(ENGINE_PRIORITY)
    DeviceStream(spec, arena).run(Clicks(spec.outputs, arena.ring("clicks")))


def calibration_rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure a loop of JACK as ``sideman calibrate`` does, and see whether a click then comes back on its frame."""
    from bridge.app import calibrate
    from bridge.session import Session

    if sys.platform != "linux":
        yield unmeasured(EXACT_NAME, "frames", "0", "the loop is made with JACK on Linux")
        return
    with jack_server("sideman-bench-loop") as server, state_in(folder):
        if server is None:
            yield unmeasured(EXACT_NAME, "frames", "0", NO_JACK)
            return
        with looped():
            session = Session.parse(live_text('[[agents]]\nname = "echo"\nkind = "echo"\n'))
            takes = TAKES_QUICK if quick else TAKES
            try:
                found, _ = calibrate(session, lambda text: None, takes=takes)
            except ValueError as problem:
                yield row(EXACT_NAME, math.inf, "frames", "0", False, str(problem))
                return
            spec = replace(session.spec(LIVE_LEAD), latency=found.frames)
            offsets, late = clicks_beside(spec, LISTENED_SECONDS_QUICK if quick else LISTENED_SECONDS)
    yield judged_calibration(found.frames, found.exact_frames, takes, offsets, late)


def judged_calibration(frames: int, exact: float, takes: int, offsets: Sequence[int], late: int) -> Row:
    """Make the row of clicks that came back through a loop whose length is subtracted."""
    what = f"{len(offsets)} clicks, after {takes} takes of chirps found {exact:.2f} frames; JACK dummy"
    if not offsets:
        return unmeasured(EXACT_NAME, "frames", "0", "no click came back")
    worst = max(offsets, key=abs)
    if worst and late:
        return unmeasured(EXACT_NAME, "frames", "0", f"the device was late {late} times; it was {worst} frames")
    return row(EXACT_NAME, worst, "frames", "0", worst == 0, what)


@contextmanager
def state_in(folder: Path) -> Iterator[None]:
    """Have what is kept for this user kept in a folder of ours."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    try:
        yield
    finally:
        os.environ.pop("XDG_STATE_HOME")
        if before is not None:
            os.environ["XDG_STATE_HOME"] = before


@contextmanager
def looped() -> Iterator[None]:
    """Keep the first output of whoever plays joined to his first input, and nothing else to that."""
    import jack

    ending, client = threading.Event(), jack.Client("sideman-bench-patch", no_start_server=True)

    def join() -> None:
        while not ending.wait(0.02):
            with suppress(jack.JackError):  # a port may have gone again
                outs = client.get_ports("PortAudio.*out_0", is_output=True)
                ins = client.get_ports("PortAudio.*in_0", is_input=True)
                if len(outs) == len(ins) == 1 and ins[0] not in client.get_all_connections(outs[0]):
                    for old in client.get_all_connections(ins[0]):
                        client.disconnect(old, ins[0])
                    client.connect(outs[0], ins[0])

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        client.close()


def clicks_beside(spec: Any, seconds: float) -> tuple[list[int], int]:
    """Return by how many frames each click is heard beside its own, and how often the device was late meanwhile."""
    from realtime import io
    from realtime.buffers import Arena, ring_layout
    from realtime.devices import IoConfig
    from realtime.iowatch import DeviceSupervisor

    frames = round(seconds * spec.samplerate)
    arena = Arena.create({**io.layout(spec), **ring_layout("clicks", frames + 4 * spec.samplerate, spec.inputs)})
    device = DeviceSupervisor(arena, IoConfig(spec, "system"))
    engine = multiprocessing.get_context("spawn").Process(target=be_clicks, args=(arena.handle, spec), daemon=True)
    try:
        engine.start()
        device.start()
        record, status = arena.ring("clicks"), arena.status("io.status")
        heard, until = -1, time.monotonic() + seconds + OPENING_SECONDS
        while time.monotonic() < until and not 0 <= heard + frames <= record.written:
            if heard < 0 and status.read()["state"] == 1:
                heard = record.written + spec.samplerate // 2  # it has settled by then
            time.sleep(0.02)
        late = status.read()["xruns"]
        if not 0 <= heard + frames <= record.written:
            return [], late
        sound = record.read(heard, heard + frames)[:, 0]
    finally:
        engine.kill()
        engine.join()
        device.stop()
        arena.close()
        arena.unlink()
    return beside(np.flatnonzero(np.abs(sound) > 0.2) + heard), late


def beside(frames: Any) -> list[int]:
    """Return by how many frames each of some clicks lies beside a multiple of their distance."""
    half = CLICK_EVERY // 2
    return [int((frame + half) % CLICK_EVERY - half) for frame in frames]
