"""What a take was like, in words: a table for the terminal, a page of figures beside the picture.

All of it is made from the take on disk alone, so it can be made again at any time, after a crash too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bridge.figures import RUNGS, Part, length, summarise, tempi
from bridge.picture import draw
from bridge.recorder import LOG, MIX, TakeReader

if TYPE_CHECKING:
    from rich.table import Table

# --- the terminal ---


def table(take: TakeReader, realtime_factor: float | None = None) -> Table:
    """Return a table for the terminal: one row per agent, what the columns mean in its caption."""
    from rich import box
    from rich.table import Table

    result = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        title=f"{take.folder.name}: {length(take)}",
        title_justify="left",
        caption_justify="left",
    )
    result.caption = f"{_legend(take)} {_MARGIN}"
    if realtime_factor is not None:
        result.caption = f"Rendered {realtime_factor:.1f} times as fast as it sounds. {result.caption}"
    heads = ["agent", "bars", "spans", *map(str, _shown_rungs(take)), "rest", "margin\nmin ms", "\nmedian"]
    for head in (*heads, "units", "dis-\ntinct", "stret-\nched", "peak\ndBFS"):
        result.add_column(head, justify="left" if head == "agent" else "right", no_wrap=True)
    for part in summarise(take):
        result.add_row(*_row(take, part))
    return result


_MARGIN = "Margin: how long before it was needed an answer was there."


def _legend(take: TakeReader) -> str:
    """Say what the columns of the rungs count."""
    names = ", ".join(f"{rung} {RUNGS[rung]}" for rung in _shown_rungs(take))
    return f"Spans by what played: {names}."


def _shown_rungs(take: TakeReader) -> list[int]:
    """Rungs 1, 2, 4 and 5 always; 3, the corpus's, where it was needed."""
    return [rung for rung in RUNGS if rung in (1, 2, 4, 5) or (rung == 3 and any(s.rung == 3 for s in take.spans))]


def _row(take: TakeReader, part: Part) -> list[str]:
    rungs = [str(part.rungs[rung]) for rung in (*_shown_rungs(take), 0)]
    units = [str(len(part.units)), str(len(set(part.units))), str(part.stretched)]
    return [part.agent, str(part.bars), str(len(part.spans)), *rungs, *_margins(part), *units, _peak(part)]


def _margins(part: Part) -> tuple[str, str]:
    if not part.margins_ms:
        return "-", "-"
    return f"{min(part.margins_ms):.0f}", f"{median(part.margins_ms):.0f}"


def _peak(part: Part) -> str:
    if part.peak_db is None:
        return "no file"
    return "silent" if math.isinf(part.peak_db) else f"{part.peak_db:.1f}"


# --- the page ---


def markdown(take: TakeReader, realtime_factor: float | None = None) -> str:
    """Return the report of a take as Markdown: what was played, what was late, which files there are."""
    parts = summarise(take)
    lines = [f"# {take.folder.name}", "", f"{length(take)}, {tempi(take)}.", ""]
    if (take.folder / "arrangement.png").is_file():
        lines += ["![The arrangement](arrangement.png)", ""]
    lines += _troubles(take)
    lines += ["## Agents", "", *_grid(_agent_table(take, parts)), ""]
    lines += [f"{_legend(take)} {_MARGIN}", ""]
    if realtime_factor is not None:
        lines += [f"Rendered at {realtime_factor:.1f} times real time.", ""]
    lines += _fallbacks(parts)
    if take.end is not None and take.end.counters:
        rows = [[name, str(value)] for name, value in take.end.counters.items()]
        lines += ["## Counters", "", *_grid([["counter", "value"], *rows]), ""]
    lines += ["## Files", "", *_grid(_file_table(take))]
    return "\n".join(lines) + "\n"


def _troubles(take: TakeReader) -> list[str]:
    troubles = [take.fault] if take.fault else []
    if take.end is None:
        troubles.append("The take has no last line: the recording was cut off, and ends with its shortest file.")
    if take.xruns:
        frames = sum(xrun.frames for xrun in take.xruns)
        troubles.append(f"{len(take.xruns)} xruns, {frames} frames in all.")
    return [line for trouble in troubles for line in (f"> {trouble}", "")]


def _agent_table(take: TakeReader, parts: Sequence[Part]) -> list[list[str]]:
    rungs = [f"rung {rung}" for rung in _shown_rungs(take)]
    margins = ["margin min (ms)", "median (ms)"]
    units = ["units", "distinct", "stretched"]
    head = ["agent", "bars", "spans", *rungs, "rests", *margins, *units, "peak (dBFS)"]
    return [head, *(_row(take, part) for part in parts)]


def _fallbacks(parts: Sequence[Part]) -> list[str]:
    """List the spans that were not played by their final clip, rests left out."""
    fallen = [span for part in parts for span in part.spans if span.rung > 1]
    if not fallen:
        return []
    came = {
        s.key: f"{1000 * (part.joined[s.key] - s.start) / part.samplerate:.0f} ms"
        for part in parts
        for s in part.spans
        if s.key in part.joined
    }
    rows = [
        [
            str(s.bar + 1),
            str(s.beat + 1),
            s.agent,
            f"{s.rung} {RUNGS.get(s.rung, '?')}",
            s.cause or "-",
            came.get(s.key, "-"),
        ]
        for s in sorted(fallen, key=lambda s: s.start)
    ]
    return ["## Fallbacks", "", *_grid([["bar", "beat", "agent", "rung", "cause", "joined after"], *rows]), ""]


def _file_table(take: TakeReader) -> list[list[str]]:
    names = ["input.wav", *(f"stems/{name}.wav" for name in take.stems), MIX, LOG]
    hashes = take.end.stems if take.end is not None else {}
    rows = [["file", "MB", "sha256 of its samples"]]
    for name in names:
        path = take.folder / name
        size = f"{path.stat().st_size / 1e6:.2f}" if path.is_file() else "missing"
        digest = hashes.get(path.stem, "") if name.startswith("stems/") else ""
        rows.append([f"`{name}`", size, f"`{digest}`" if digest else "-"])
    return rows


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out as a Markdown table; the first is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def write(take: TakeReader, realtime_factor: float | None = None) -> tuple[Path, Path]:
    """Write ``arrangement.png`` and ``report.md`` into the take's folder and return their paths."""
    picture, page = take.folder / "arrangement.png", take.folder / "report.md"
    draw(take, picture)
    page.write_text(markdown(take, realtime_factor), encoding="utf-8")
    return picture, page
