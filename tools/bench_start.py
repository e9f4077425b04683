"""Suite ``start``: how long until the engine mixes, a model serves, and something is heard.

Every figure is the shipped path's: a session that plays live is started as ``sideman play`` starts it, and its shared
memory is watched. Starting is mostly reading and running files, so the control is ``python -c "import numpy"``, timed
in between: where that alone takes half of what is allowed, or has to wait for a processor, a goal that is missed says
nothing about us.
"""

from __future__ import annotations

import compileall
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from bench_core import first_audio_seconds, timed, write_live_session
from live import NO_JACK, corpus_agent, jack_server
from rows import Options, Row

SUITE = "start"
ROOT = Path(__file__).resolve().parent.parent
ENGINE_SECONDS, MODEL_SECONDS, SOUND_SECONDS = 0.3, 1.0, 1.0
BUSY = 1.3
"""A control that took so many times its processor's time had to wait for one: the machine is busy."""
LOOK_SECONDS = 0.0005
PATIENCE_SECONDS = 20.0


def rows(options: Options) -> Iterator[Row]:
    """Yield the suite's rows."""
    runs, few = (5, 2) if options.quick else (20, 20)
    for room in ("realtime", "bridge"):  # as after the first start; some environments forbid Python to do so itself
        compileall.compile_dir(ROOT / room, quiet=1)
    with tempfile.TemporaryDirectory(prefix="sideman-bench-") as name, jack_server("sideman-bench-first") as server:
        folder = Path(name)
        session = write_model_session(folder, "system" if server else "null")
        engine, model, control = [], [], []
        for _ in range(runs):
            control.append(Control())
            mixed, armed = start_seconds(session)
            engine.append(mixed)
            model.append(armed)
        yield row("engine ready", engine, ENGINE_SECONDS, control, "from its spawn to its first mixed block")
        yield row(
            "a CPU model armed", model, MODEL_SECONDS, control,
            "from its worker's spawn, with a corpus agent, timed and admitted",
        )  # fmt: skip
        if not server:
            yield Row(SUITE, "first sound of play", None, "s", f"<= {SOUND_SECONDS:g}", None, NO_JACK)
        else:
            # a metronome in 32nds, for ever: whenever the ear is connected, it hears at once
            ticking = write_live_session(folder, bpm=400, meter="32/32")
            first = [first_audio_seconds(ticking, folder / f"first-{index}") for index in range(few)]
            yield row("first sound of play", first, SOUND_SECONDS, control, "from the command to the server's port")
        seconds = [one.seconds for one in control]
        yield Row(SUITE, "control: import numpy", statistics.median(seconds), "s", "", None, spread(seconds))


class Control:
    """One run of the control: seconds it took, and how many times its processor's time that was."""

    def __init__(self) -> None:
        before = os.times()
        self.seconds = timed([sys.executable, "-c", "import numpy"])
        after = os.times()
        used = after.children_user - before.children_user + after.children_system - before.children_system
        self.waited = self.seconds / used if used else 1.0  # where children's time is not told, nothing is excused


def row(name: str, seconds: list[float], goal: float, control: list[Control], what: str) -> Row:
    """Make a row of the median of a few runs."""
    value = statistics.median(seconds)
    ok: bool | None = value <= goal
    took = statistics.median(one.seconds for one in control)
    waited = statistics.median(one.waited for one in control)
    reason = f"{what}; {spread(seconds)}; control {took:.3f} s, {waited:.1f} x its processor's time"
    if not ok and (took > goal / 2 or waited > BUSY):
        ok, reason = None, reason + ": the machine is too slow or too busy"
    return Row(SUITE, name, value, "s", f"<= {goal:g}", ok, reason)


def spread(seconds: list[float]) -> str:
    """Say how far apart the runs were."""
    return f"median of {len(seconds)}, {min(seconds):.3f} to {max(seconds):.3f}"


def write_model_session(folder: Path, device: str) -> Path:
    """Write a session of one agent: the built-in bass, that hears through the network ``onset``."""
    from bridge.demo import build_corpora

    build_corpora(folder / "demo-corpora")
    path = folder / "model.toml"
    path.write_text(f"""
[stream]
device = {json.dumps(device)}
samplerate = 48000
inputs = [1]
[transport]
bpm = 112
{corpus_agent("bass", folder / "demo-corpora" / "bass", 'model = "onset"')}
""")
    return path


def start_seconds(session: Path) -> tuple[float, float]:
    """Start a session; return the seconds from the engine's spawn to its first block, and the worker's to armed."""
    from bridge.app import Live
    from bridge.session import Session

    with spawns_noted() as spawned:
        live = Live(Session.load(session), None, lambda text: None)
        watch = Watch(live)
        with live:
            until = time.monotonic() + PATIENCE_SECONDS
            while not watch.done() and time.monotonic() < until and live.poll():
                time.sleep(0.01)
    worker = next((at for name, at in spawned.items() if name.startswith("agent bass")), 0)
    return watch.mixed_seconds(spawned.get("engine", 0)), watch.armed_seconds(worker)


@contextmanager
def spawns_noted() -> Iterator[dict[str, int]]:
    """Note when each process of a session is spawned, by name: monotonic ns."""
    from bridge.children import Children

    spawned: dict[str, int] = {}
    spawn: Callable[..., Any] = Children.spawn

    def noted(self: Children, name: str, *arguments: Any) -> Any:
        spawned.setdefault(name, time.monotonic_ns())
        return spawn(self, name, *arguments)

    with mock.patch.object(Children, "spawn", noted):
        yield spawned


class Watch:
    """Looks at a session's memory, on a thread of its own, until the engine mixes and the agent is armed."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._mixed_ns = self._armed_ns = 0
        self._until = time.monotonic() + PATIENCE_SECONDS
        threading.Thread(target=self._look, daemon=True).start()

    def done(self) -> bool:
        """Whether both have happened."""
        return bool(self._mixed_ns and self._armed_ns)

    def mixed_seconds(self, since_ns: int) -> float:
        """Seconds to the first block; infinite if there was none."""
        return (self._mixed_ns - since_ns) / 1e9 if self._mixed_ns else float("inf")

    def armed_seconds(self, since_ns: int) -> float:
        """Seconds until the agent served; infinite if it never did."""
        return (self._armed_ns - since_ns) / 1e9 if self._armed_ns else float("inf")

    def _look(self) -> None:
        from realtime.seat import STATE_ARMED

        while not hasattr(self._live, "arena") and time.monotonic() < self._until:
            time.sleep(LOOK_SECONDS)
        arena = self._live.arena
        place, worker = arena["place"], arena.status("bass.worker0")
        while not self.done() and time.monotonic() < self._until:
            now = time.monotonic_ns()
            if not self._mixed_ns and place[0]:
                self._mixed_ns = now
            if not self._armed_ns and worker.read()["state"] == STATE_ARMED:
                self._armed_ns = now
            time.sleep(LOOK_SECONDS)
