"""What a take was like, in words: a table for the terminal, a page of figures beside the picture.

All of it is made from the take on disk alone, so it can be made again at any time, after a crash too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bridge.figures import Part, clock, length, summarise, tempi
from bridge.ledger import HOPS, RUNGS, Course, Margins, account_words, cause_words, courses
from bridge.margins import draw_margins, worth_drawing
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
    parts = summarise(take)
    result.caption = f"{_legend(take)} {_MARGIN}"
    if not all(part.course.account.whole for part in parts):
        result.caption += " " + " ".join(account_words([part.course for part in parts]))
    if realtime_factor is not None:
        result.caption = f"Rendered {realtime_factor:.1f} times as fast as it sounds. {result.caption}"
    heads = ["agent", "bars", "spans", *map(str, _shown_rungs(take)), "rest", "margin\nmin ms", "\nmedian"]
    for head in (*heads, "units", "dis-\ntinct", "stret-\nched", "peak\ndBFS"):
        result.add_column(head, justify="left" if head == "agent" else "right", no_wrap=True)
    for part in parts:
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
    rungs = [str(part.course.rungs[rung]) for rung in (*_shown_rungs(take), 0)]
    units = [str(len(part.units)), str(len(set(part.units))), str(part.stretched)]
    return [part.agent, str(part.course.bars), str(len(part.spans)), *rungs, *_margins(part), *units, _peak(part)]


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
    lines += _time(take, [part.course for part in parts])
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
        times, frames = Counter[str](), Counter[str]()
        for xrun in take.xruns:
            times[xrun.cause] += 1
            frames[xrun.cause] += xrun.frames
        causes = [
            f"{_times(count)} {cause or 'an xrun'}" + (f" ({frames[cause]:,} frames)" if frames[cause] else "")
            for cause, count in times.most_common()
        ]
        told = ", ".join(causes)
        troubles.append(f"{told[0].upper()}{told[1:]}.")
    holes = [pad for pad in take.pads if pad.start + pad.frames < take.frames]
    if holes:
        seconds = sum(pad.frames for pad in holes) / take.samplerate / len({pad.file for pad in holes})
        troubles.append(
            f"The disk was too slow: about {seconds:.1f} s could not be kept and are silent in the take's files, the "
            f"first of it at {clock(min(pad.start for pad in holes) / take.samplerate)}."
        )
    return [line for trouble in troubles for line in (f"> {trouble}", "")]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _agent_table(take: TakeReader, parts: Sequence[Part]) -> list[list[str]]:
    rungs = [f"rung {rung}" for rung in _shown_rungs(take)]
    margins = ["margin min (ms)", "median (ms)"]
    units = ["units", "distinct", "stretched"]
    head = ["agent", "bars", "spans", *rungs, "rests", *margins, *units, "peak (dBFS)"]
    return [head, *(_row(take, part) for part in parts)]


# How the time went


def _time(take: TakeReader, found: Sequence[Course]) -> list[str]:
    """Tell what played and why, and how much time there was to spare; short where all went well."""
    if not any(course.spans for course in found):
        return []
    lines = ["## How the time went", "", *account_words(found), ""]
    if all(course.well for course in found):
        lines += ["All went well: every span was played by its final answer, and every answer was there in time.", ""]
    else:
        lines += [*_grid(_rung_table(found)), "", _RUNG_NOTE, ""]
        causes = _cause_table(found)
        lines += [*_grid(causes), ""] if len(causes) > 1 else []
        lines += _events(take, found)
    margins = _margin_table(found)
    if len(margins) > 1:
        lines += [*_grid(margins), "", _margin_note(found), ""]
    if (take.folder / MARGINS).is_file():
        lines += [f"![Time to spare]({MARGINS})", ""]
    return lines


MARGINS = "margins.png"
_RUNG_NOTE = (
    "Shares are of the spans in which the agent did not rest. A late final is a final answer that was asked for and "
    "was not there when its span had to be decided; what played instead is in the other columns."
)


def _rung_table(found: Sequence[Course]) -> list[list[str]]:
    shown = [rung for rung in RUNGS if rung]
    rows = [["agent", *(RUNGS[rung] for rung in shown), "late finals", "in 1,000 bars", "new workers"]]
    for course in found:
        playing = sum(course.rungs[rung] for rung in shown)
        late = f"{course.late_finals:,} of {course.finals:,}"
        per_1000 = f"{course.late_per_1000_bars:.1f}"
        shares = [_share(course.rungs[rung], playing) for rung in shown]
        rows.append([course.agent, *shares, late, per_1000, str(course.respawns)])
    return rows


def _share(part: int, whole: int) -> str:
    """Return a share in percent that never rounds something to nothing, nor all but something to all."""
    if not part:
        return "-"
    percent = 100 * part / whole
    if part == whole:
        return "100 %"
    return "< 0.1 %" if percent < 0.1 else f"{min(percent, 99.9):.1f} %"


def _cause_table(found: Sequence[Course]) -> list[list[str]]:
    rows = [["agent", "why it was not the final answer", "spans"]]
    for course in found:
        common = course.causes.most_common()
        rows += [[course.agent, cause_words(cause), f"{count:,}"] for cause, count in common[:_MOST_CAUSES]]
        if rest := sum(count for _, count in common[_MOST_CAUSES:]):
            rows.append([course.agent, f"{len(common) - _MOST_CAUSES} more reasons", f"{rest:,}"])
    return rows


_MOST_CAUSES = 12


def _events(take: TakeReader, found: Sequence[Course]) -> list[str]:
    """Tell of quarantines, and of answers that nobody waited for."""
    lines = []
    for course in found:
        if course.quarantined is not None:
            when = clock(max(0, course.quarantined) / take.samplerate)
            lines.append(
                f"{course.agent} was put in quarantine at {when}: its worker had failed again and again, so its part "
                "fades out and it is asked no more."
            )
        if away := course.away_ms:
            lines.append(
                f"{course.agent}: a new worker was on duty {median(away):.0f} ms after the old one was found to be "
                f"lost (median of {len(away)}; {max(away):.0f} ms at most)."
            )
        if course.deserted:
            lines.append(
                f"{course.agent} lost its worker {_times(course.deserted)}, and none was there in its place."
            )
        if course.strays:
            lines.append(f"{course.agent} sent {course.strays:,} answers that nobody waited for any more.")
    return [text for line in lines for text in (line, "")]


def _margin_table(found: Sequence[Course]) -> list[list[str]]:
    hops = _hops(found)
    rows = [["agent", *(f"{hop} (ms)" for hop in hops), "late"]]
    for course in found:
        margins = [course.margins(hop) for hop in hops]
        if any(margin.count for margin in margins):
            late = ", ".join(f"{m.late:,} {hop}" for hop, m in zip(hops, margins, strict=True) if _counts(hop, m))
            rows.append([course.agent, *map(_three, margins), late or "-"])
    return rows


def _hops(found: Sequence[Course]) -> list[str]:
    return [hop for hop in HOPS if any(course.hops.get(hop) for course in found)]


def _counts(hop: str, margins: Margins) -> bool:
    """Whether lateness at a hop is lateness: hearing a little less than there was is not."""
    return margins.late > 0 and hop != "heard"


def _three(margins: Margins) -> str:
    """Return median, first percentile and worst."""
    if not margins.count:
        return "-"
    if margins.median_ms is None or margins.p1_ms is None or margins.worst_ms is None:
        return "never"
    return f"{round(margins.median_ms)} / {round(margins.p1_ms)} / {round(margins.worst_ms)}"


def _margin_note(found: Sequence[Course]) -> str:
    said = "; ".join(f"*{hop}*: {HOPS[hop]}" for hop in _hops(found))
    return (
        "Time to spare at each step of a span, in milliseconds: the median, what 99 of 100 spans had at least, and "
        f"the worst; negative is late. {said[0].upper() + said[1:]}."
    )


def _fallbacks(parts: Sequence[Part]) -> list[str]:
    """List the spans that were not played by their final clip, rests left out."""
    fallen = sorted((span for part in parts for span in part.course.fallen), key=lambda s: s.start)
    if not fallen:
        return []
    came = {
        s.key: f"{1000 * (part.joined[s.key] - s.start) / part.course.samplerate:.0f} ms"
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
            cause_words(s.cause),
            came.get(s.key, "-"),
        ]
        for s in fallen[:_MOST_FALLBACKS]
    ]
    lines = ["## Fallbacks", "", *_grid([["bar", "beat", "agent", "rung", "cause", "joined after"], *rows]), ""]
    if (more := len(fallen) - _MOST_FALLBACKS) > 0:
        lines += [f"And {more:,} more; each has its line in `{LOG}`.", ""]
    return lines


_MOST_FALLBACKS = 200


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
    """Write the pictures and ``report.md`` into the take's folder; return the paths of the arrangement and the page.

    ``margins.png`` is drawn only where it says something: live, or where not all went well.
    """
    picture, page = take.folder / "arrangement.png", take.folder / "report.md"
    draw(take, picture)
    found = courses(take)
    if worth_drawing(found):
        draw_margins(take, found, take.folder / MARGINS)
    else:
        (take.folder / MARGINS).unlink(missing_ok=True)
    page.write_text(markdown(take, realtime_factor), encoding="utf-8")
    return picture, page
