"""What a terminal shows of a session that plays: the place, each agent's state, spans and level, what was counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bridge.app import Live, Status

CELLS, FLOOR_DB, FALL_DB = 12, -48.0, 3.0
"""A meter's width, the level of its left end, and how far it falls from one look to the next."""
RUNGS = {1: "final", 2: "early", 4: "repeat", 5: "silent", 0: "rest"}
"""The columns: how many spans were played by the final answer, by the early one, by the last good bar again, ..."""
WORDS = {-1: "waits", 0: "rests", 1: "plays", 2: "plays", 3: "goes on", 4: "repeats", 5: "silent"}
"""What an agent whose worker is ready does now, by the rung that sounds."""


class View:
    """Turns looks at a session into something to read. One thread."""

    def __init__(self, live: Live) -> None:
        self._lead = live.config.spec.lead
        self._samplerate = live.config.spec.samplerate
        self._tempo_map = live.config.tempo_map
        self._title = live.session.session.name
        self._held_db = dict.fromkeys(live.names, FLOOR_DB)

    def line(self, status: Status) -> str:
        """Return the place, each agent's state and the counters, in a line."""
        agents = ", ".join(f"{agent} {_word(status, agent)}" for agent in status.rungs)
        return f"{self._place(status)}; {agents}; {self._counters(status)}"

    def table(self, status: Status) -> RenderableType:
        """Return the same with a row for each agent: state, spans by rung, level."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("agent")
        table.add_column("now", min_width=8)
        for heading in RUNGS.values():
            table.add_column(heading, justify="right")
        table.add_column("level", min_width=CELLS)
        table.add_column("dB", justify="right", min_width=4)
        for agent, row in status.rungs.items():
            level_db = self._level_db(agent, status.peaks[agent])
            counts = [str(row[rung]) for rung in RUNGS]
            decibels = f"{level_db:.0f}" if level_db > FLOOR_DB else "-"
            table.add_row(Text(agent), _word(status, agent), *counts, _meter(level_db), decibels)
        head = Text.assemble((f"{self._title}  ", "bold"), f"{self._place(status)}  {self._dots(status)}")
        return Group(head, table, Text(f"{self._counters(status)}   Ctrl-C ends", style="dim"))

    def _place(self, status: Status) -> str:
        seconds = status.frame // self._samplerate
        clock = f"{seconds // 60}:{seconds % 60:02d}"
        bar = f"bar {status.bar + 1}" if status.bar >= 0 else "count-in"
        return f"{clock}  {bar}, beat {status.beat + 1}"

    def _dots(self, status: Status) -> str:
        beats = math.ceil(self._tempo_map.bar_beats(status.bar))
        return " ".join("\u25cf" if beat == status.beat else "\u25cb" for beat in range(min(16, beats)))

    def _counters(self, status: Status) -> str:
        xruns = status.device["xruns"] + status.stream["underruns"]
        faults = sum(row[7] for row in status.rungs.values())
        return f"lead {self._lead}   xruns {xruns}   late frames {status.stream['late_frames']}   faults {faults}"

    def _level_db(self, agent: str, peak: float) -> float:
        """Return a level that rises at once and falls slowly, so that an eye can follow it."""
        level_db = 20 * math.log10(peak) if peak > 0 else FLOOR_DB
        self._held_db[agent] = max(FLOOR_DB, level_db, self._held_db[agent] - FALL_DB)
        return self._held_db[agent]


def _word(status: Status, agent: str) -> str:
    rung, state = status.rungs[agent][6], status.states[agent]
    return WORDS.get(rung, f"rung {rung}") if state == "armed" else state


def _meter(level_db: float) -> str:
    cells = round(CELLS * min(1.0, 1 - level_db / FLOOR_DB))
    return "\u2588" * cells + "\u2591" * (CELLS - cells)
