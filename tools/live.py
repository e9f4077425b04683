"""What the benchmarks of live sessions share: their text, an audio server of their own, a control, an orderly end."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

PERIOD_FRAMES, SAMPLERATE = 128, 48000
PERIOD_NS = PERIOD_FRAMES * 10**9 // SAMPLERATE
LIVE_LEAD = 1024
CONTROL_PRIORITY = 60
MOST_LATE = 0.01
"""Where the control is late in a larger share of its periods, the machine is too noisy to judge by."""
NO_JACK = "no JACK server could be started here (jackd2, libportaudio2 and the package JACK-Client are needed)"


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Have SIGTERM unwind the stack as Ctrl-C does, so that whatever was started is ended. Main thread."""

    def leave(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows is the clearing up
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# The session


def live_text(*tables: str, seed: int = 3, device: str = "system", bpm: int = 112, meter: str = "4/4") -> str:
    """Return a session over four chords, one input, two outputs; ``tables`` may begin with more of transport."""
    first = f"""
[session]
seed = {seed}
[stream]
device = {json.dumps(device)}
samplerate = {SAMPLERATE}
blocksize = {PERIOD_FRAMES}
inputs = [1]
outputs = 2
[transport]
bpm = {bpm}
meter = "{meter}"
chart = ["Dm7", "Am7", "Bbmaj7", "C7"]
"""
    return first + "\n".join(tables)


def corpus_agent(name: str, corpus: Path, *keys: str) -> str:
    """Return the table of an agent that plays from a corpus."""
    lines = [f'name = "{name}"', 'kind = "corpus"', f"corpus = {json.dumps(str(corpus))}", *keys]
    return "\n".join(["[[agents]]", *lines, ""])


# The audio server


@contextmanager
def jack_server(name: str) -> Iterator[subprocess.Popen[bytes] | None]:
    """Run a JACK server of its own name with the dummy backend; yield None where there is none."""
    before = os.environ.get("JACK_DEFAULT_SERVER")
    os.environ |= {"JACK_DEFAULT_SERVER": name, "JACK_NO_AUDIO_RESERVATION": "1", "JACK_NO_START_SERVER": "1"}
    server = start_jack(name)
    try:
        yield server
    finally:
        if server is not None and server.poll() is None:
            server.terminate()
            server.wait(5)
        os.environ.pop("JACK_DEFAULT_SERVER")
        if before is not None:
            os.environ["JACK_DEFAULT_SERVER"] = before


def start_jack(name: str) -> subprocess.Popen[bytes] | None:
    """Start a server and wait until it can be reached; None where it cannot."""
    jackd = shutil.which("jackd")
    try:
        import jack
    except (ImportError, OSError):
        return None
    if jackd is None:
        return None
    from realtime.rights import realtime_rights

    rights = ["-R", "-P", "70"] if realtime_rights() else ["-r"]
    command = [jackd, "-n", name, *rights, "-d", "dummy", "-r", str(SAMPLERATE), "-p", str(PERIOD_FRAMES)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    jack.set_error_function(lambda text: None)  # that there is none yet
    try:
        for _ in range(100):
            with suppress(jack.JackError):
                jack.Client("sideman-bench-probe", no_start_server=True).close()
                return server
            time.sleep(0.05)
    except BaseException:
        server.kill()
        raise
    server.kill()
    return None


# The control


def control(handle: Any, seconds: float, path: str) -> None:
    """Be the control: wake every period above everyone, note how late, and what the device and the engine counted.

    Rows of the file: time (ns), lateness (ns), device's empty rings, engine's, session frame, its time (ns), opened.
    """
    from realtime.buffers import Arena
    from realtime.rights import use_realtime

    arena = Arena.attach(handle)
    device, stream = arena.status("io.status"), arena.status("stream.status")
    use_realtime(CONTROL_PRIORITY)
    count = round(seconds * 10**9 / PERIOD_NS)
    table = np.zeros((count, 7), np.int64)
    due = time.monotonic_ns()
    for line in table:
        due += PERIOD_NS
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        now = time.monotonic_ns()
        io, engine = device.read(), stream.read()
        empty = io["xruns"] + io["starved"]
        line[:] = (now, now - due, empty, engine["underruns"], engine["frame"], engine["time_ns"],
                   io["epoch"] if io["state"] == 1 else 0)  # fmt: skip
        due = max(due, now - PERIOD_NS)  # a stall is one lateness, not many
    np.save(path, table)


@contextmanager
def controlled(live: Any, seconds: float, folder: Path) -> Iterator[Callable[[], Any]]:
    """Run a control beside a session; yield what returns its table once it is done."""
    path = str(folder / "control.npy")
    process = multiprocessing.get_context("spawn").Process(
        target=control, args=(live.arena.handle, seconds, path), daemon=True
    )
    process.start()

    def table() -> Any:
        process.join(seconds + 30)
        return np.load(path)

    try:
        yield table
    finally:
        process.kill()
        process.join()


def judge(table: Any, lead: int) -> tuple[int, int, float]:
    """Return empty rings, those of them that the control does not excuse, and the control's late share.

    An empty ring is excused if the control woke more than a period late while the ring ran down: within the lead
    before it, or in the period in which it was seen.
    """
    window_ns = lead * 10**9 // SAMPLERATE + 2 * PERIOD_NS
    late = table[:, 1] > PERIOD_NS
    events = np.flatnonzero(np.diff(table[:, 2]) + np.diff(table[:, 3]) > 0) + 1
    attributable = 0
    for event in events:
        near = (table[:, 0] >= table[event, 0] - window_ns) & (table[:, 0] <= table[event, 0] + PERIOD_NS)
        attributable += not late[near].any()
    return len(events), attributable, float(late.mean())


def longest_turn_seconds(table: Any) -> float:
    """Return the longest time between two of the engine's turns."""
    steps = np.diff(table[:, 5])
    return float(steps.max()) / 1e9 if len(steps) else 0.0


# Beside a session


@contextmanager
def busy_threads(count: int) -> Iterator[None]:
    """Keep pure-Python threads busy in this process."""
    ending = threading.Event()

    def spin() -> None:
        number = 0
        while not ending.is_set():
            number = (number * 31 + 7) % 1000003

    threads = [threading.Thread(target=spin, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def wait_for(live: Any, condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Look after a session until something holds; return whether it does."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until or not live.poll():
            return condition()
        time.sleep(0.02)
    return True
