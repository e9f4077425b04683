"""Measure this machine: ``sideman bench [SUITE ...] [--quick] [--json FILE] [--material FOLDER]``.

A suite yields rows: suite, name, value, unit, goal, ok. ``ok`` is true, false, or null where the figure cannot be had
here, with the reason. A row measures the shipped path with its defaults; nothing is dropped. Where time is the wall
clock's, a control runs beside it: an idle process above engine and workers, waking as often. What is late while the
control is late too is the machine's, not ours; where the control itself is late too often, ``ok`` is null.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from live import ended_in_order
from rows import Options, Row

Suite = Callable[[Options], Iterator[Row]]


def suites() -> dict[str, Suite]:
    """Return every suite by name."""
    import bench_bridge
    import bench_core
    import bench_drift
    import bench_engine
    import bench_faults
    import bench_ladder
    import bench_memory
    import bench_start

    return {
        "core": bench_core.rows,
        "engine": bench_engine.rows,
        "ladder": bench_ladder.rows,
        "faults": bench_faults.rows,
        "drift": bench_drift.rows,
        "memory": bench_memory.rows,
        "start": bench_start.rows,
        "bridge": bench_bridge.rows,
    }


def machine() -> str:
    """Return one line that says what the figures were measured on."""
    cores, memory_gib = os.cpu_count() or 0, 0.0
    model = platform.processor() or platform.machine()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{cores} x {model}, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {load}"
    )


def shown(row: Row) -> str:
    """Return a row as one line of text."""
    value = "-" if row.value is None else f"{row.value:.4g}"
    verdict = {True: "ok", False: "FAILED", None: "null"}[row.ok]
    reason = f"  ({row.reason})" if row.reason else ""
    return f"{row.suite:6} {row.name:44} {value:>10} {row.unit:10} {row.goal:12} {verdict}{reason}"


def measured(name: str, suite: Suite, options: Options) -> Iterator[Row]:
    """Yield a suite's rows; what ends it early becomes one, so that those before it are not lost."""
    try:
        yield from suite(options)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        yield Row(name, "the suite itself", None, "", "ends", False, f"{type(error).__name__}: {error}")


def main() -> int:
    """Run the suites asked for, all by default; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="sideman bench", description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="which; all if none is named")
    parser.add_argument("--quick", action="store_true", help="at most 40 seconds a suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument(
        "--material", type=Path, metavar="FOLDER", help="recordings: a folder of songs, each of stems"
    )
    options = parser.parse_args()
    known = suites()
    unknown = [name for name in options.suites if name not in known]
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; there are {', '.join(known)}")
    print(machine(), flush=True)
    found: list[Row] = []
    with ended_in_order():
        for name in options.suites or known:
            for row in measured(name, known[name], Options(options.quick, options.material)):
                print(shown(row), flush=True)
                found.append(row)
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(), "rows": [asdict(row) for row in found]}, indent=1) + "\n"
        )
    return int(any(row.ok is False for row in found))


if __name__ == "__main__":
    sys.exit(main())
