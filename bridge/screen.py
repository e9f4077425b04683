"""What a terminal shows of a session that plays: the place, each agent's state, spans and level, what was counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bridge.app import Live, Status

CELLS, FLOOR_DB, FALL_DB = 6, -48.0, 3.0
"""A meter's width, the level of its left end, and how far it falls from one look to the next."""
NAME_WIDTH = 9
COLUMNS = {
    "final": "final",
    "early": "speculative",
    "goes\non": "continuation",
    "again": "last_bar",
    "si-\nlent": "fade",
    "rest": "rest",
    "late": "late_finals",
}
"""What is counted: spans played by the final answer, by the early one, by a continuation of the last bar, by the last
good bar again, by silence; rests; final answers that were late."""
WORDS = {-1: "waits", 0: "rests", 1: "plays", 2: "plays", 3: "goes on", 4: "repeats", 5: "silent"}
"""What an agent does now, by the rung that sounds."""
STATES = {"loading": "loading", "failed": "failed", "refused": "left out", "quarantined": "quarantine"}
"""What is said instead where its worker is in a state in which it cannot play."""
_EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"


class View:
    """Turns looks at a session into something to read. One thread."""

    def __init__(self, live: Live) -> None:
        self._lead = live.config.spec.lead
        self._samplerate = live.config.spec.samplerate
        self._title = live.session.session.name
        self._held_db = dict.fromkeys(live.names, FLOOR_DB)

    def line(self, status: Status) -> str:
        """Return the place, each agent's state and the counters, in a line."""
        agents = ", ".join(f"{agent} {_word(status, agent)}" for agent in status.ledger)
        return f"{self._place(status)}; {agents}; {self._counters(status)}"

    def table(self, status: Status) -> RenderableType:
        """Return the same with a row for each agent: state, spans by rung, time to spare, workers, level.

        ``spare ms``: how long before it was needed the last answer was there, of the time it is given. ``new``:
        workers that took over from one that was lost.
        """
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
        table.add_column("agent", max_width=NAME_WIDTH, no_wrap=True, overflow="ellipsis")
        table.add_column("now", min_width=len("quarantine"), no_wrap=True)
        for heading in (*COLUMNS, "spare\nof ms", "new"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("level", min_width=CELLS, no_wrap=True)
        for agent, row in status.ledger.items():
            counts = [_count(row[column]) for column in COLUMNS.values()]
            level = _meter(self._level_db(agent, status.peaks[agent]))
            workers = _count(row["generation"]) if row["generation"] > 0 else "-"
            table.add_row(Text(agent), _word(status, agent), *counts, self._spare(row), workers, level)
        head = Text.assemble((f"{self._title}  ", "bold"), f"{self._place(status)}  {self._dots(status)}")
        return Group(head, table, Text(f"{self._counters(status)}   Ctrl-C ends", style="dim"))

    def _spare(self, row: Mapping[str, int]) -> str:
        """Return the margin of the last answer and the budget, in milliseconds; a dash before there is one."""
        if not row["finals"]:
            return "-"
        margin, budget = (1000 * row[column] / self._samplerate for column in ("ready_margin", "budget_frames"))
        if budget >= 1000:
            return f"{margin / 1000:.1f}/{budget / 1000:.1f}s"
        return f"{margin:.0f}/{budget:.0f}"

    def _place(self, status: Status) -> str:
        seconds = status.frame // self._samplerate
        clock = f"{seconds // 60}:{seconds % 60:02d}"
        bar = f"bar {status.song_bar + 1}" if status.song_bar >= 0 else "count-in"
        follows = f"  follows {status.leader}" if status.leader else ""
        return f"{clock}  {bar}, beat {status.beat + 1}{follows}"

    def _dots(self, status: Status) -> str:
        beats = math.ceil(status.meter.beats)
        return " ".join("\u25cf" if beat == status.beat else "\u25cb" for beat in range(min(16, beats)))

    def _counters(self, status: Status) -> str:
        """Return what was counted of the whole: frames lost on the way out, frames and answers late, faults."""
        device, stream, rows = status.device, status.stream, status.ledger.values()
        lost = device["lost_frames"] + device["starved_frames"]
        counted = {
            "lead": self._lead,
            "xruns": device["xruns"] + stream["underruns"],
            "lost frames": lost,
            "late frames": stream["late_frames"],
            "faults": sum(row["faults"] for row in rows),
        }
        return "   ".join(f"{name} {count}" for name, count in counted.items())

    def _level_db(self, agent: str, peak: float) -> float:
        """Return a level that rises at once and falls slowly, so that an eye can follow it."""
        level_db = 20 * math.log10(peak) if peak > 0 else FLOOR_DB
        self._held_db[agent] = max(FLOOR_DB, level_db, self._held_db[agent] - FALL_DB)
        return self._held_db[agent]


def _word(status: Status, agent: str) -> str:
    """Say what an agent does: what sounds of it, or why it cannot play."""
    rung, state = status.ledger[agent]["sounding"], status.states[agent]
    return STATES.get(state) or WORDS.get(rung, f"rung {rung}")


def _count(number: int) -> str:
    """Return a number in four places."""
    return str(number) if number < 10_000 else f"{number // 1000}k"


def _meter(level_db: float) -> str:
    """Return a bar of :data:`CELLS` cells, in eighths of one."""
    eighths = round(8 * CELLS * min(1.0, max(0.0, 1 - level_db / FLOOR_DB)))
    whole, part = divmod(eighths, 8)
    bar = "\u2588" * whole + (_EIGHTHS[part] if part else "")
    return bar + "\u2591" * (CELLS - len(bar))
