"""What this machine lets a process do in time: realtime scheduling, late wake-ups, and the lead that this takes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

IO_PRIORITY, ENGINE_PRIORITY = 30, 20  # below an audio server's; the device before the engine

_T = TypeVar("_T")


def use_realtime(priority: int) -> bool:
    """Put the calling thread under SCHED_FIFO where the system allows it; return whether it does.

    Threads and processes started from it later are not realtime. Linux only: elsewhere the audio thread of the
    host API is privileged by itself, and this returns False.
    """
    if sys.platform != "linux":
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError:
        return False
    return True


def realtime_rights() -> bool:
    """Return whether this process may use realtime scheduling. Tries it on a thread that ends at once."""
    return _on_thread(lambda: use_realtime(1))


def measure_lateness(seconds: float = 0.1) -> float:
    """Return by how many seconds a wake-up after 1 ms was late at worst, with the rights that there are."""

    def measure() -> float:
        use_realtime(ENGINE_PRIORITY)
        worst, until = 0.0, time.monotonic() + seconds
        while (begun := time.monotonic()) < until:
            time.sleep(0.001)
            worst = max(worst, time.monotonic() - begun - 0.001)
        return worst

    return _on_thread(measure)


def choose_lead(realtime: bool, late_seconds: float, samplerate: int = 48_000, blocksize: int = 128) -> int:
    """Return how many frames to mix ahead.

    With realtime rights 512 on a quiet machine (256 with blocks of 64 or less) and 1024 on a loaded one, without
    2048: the least that held in measurements of 10 to 20 s on two saturated cores, at 48 kHz; in proportion at
    other rates. Never less than four blocks. What a device needs beyond that it says itself when it is open.

    Parameters
    ----------
    realtime
        Answer of :func:`realtime_rights`.
    late_seconds
        Answer of :func:`measure_lateness`.
    samplerate, blocksize
        The stream's.
    """
    quiet = realtime and late_seconds < 0.0005
    at_48k = (256 if blocksize <= 64 else 512) if quiet else 1024 if realtime else 2048
    lead = -(-at_48k * max(samplerate, 48_000) // 48_000)
    return max(4, -(-lead // blocksize)) * blocksize


def _on_thread(work: Callable[[], _T]) -> _T:
    results: list[_T] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join()
    return results[0]
