"""What a take was like, in words: a table for the terminal, a page of figures beside the picture.

All of it is made from the take on disk alone, so it can be made again at any time, after a crash too.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bridge.figures import Part, clock, length, place, summarise, tempi
from bridge.ledger import (
    HOPS,
    RUNGS,
    Course,
    Event,
    Margins,
    account_words,
    cause_words,
    counted,
    courses,
    is_live,
    is_virtual,
)
from bridge.margins import draw_margins, worth_drawing
from bridge.picture import draw
from bridge.recorder import LOG, MIX, TakeReader, XrunLine

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
    result.caption = _legend(take)
    if not all(part.course.account.whole for part in parts):
        result.caption += " " + " ".join(account_words([part.course for part in parts]))
    if realtime_factor is not None:
        result.caption = f"Rendered {realtime_factor:.1f} times as fast as it sounds. {result.caption}"
    margins = [] if is_virtual(take) else ["margin\nmin ms", "\nmedian"]
    heads = ["agent", "bars", "spans", *map(str, _SHOWN), "rest", *margins]
    for head in (*heads, "units", "dis-\ntinct", "stret-\nched", "peak\ndBFS"):
        result.add_column(head, justify="left" if head == "agent" else "right", no_wrap=True)
    for part in parts:
        result.add_row(*_row(take, part))
    return result


_MARGIN = "Margin: how long before it was needed an answer was there."


def _legend(take: TakeReader) -> str:
    """Say what the columns of the rungs count, and the margins where there are any."""
    names = ", ".join(f"{rung} {RUNGS[rung]}" for rung in _SHOWN)
    return f"Spans by what played: {names}." + ("" if is_virtual(take) else f" {_MARGIN}")


_SHOWN = [rung for rung in RUNGS if rung]
"""Rungs with a column of their own: all that are not rests, whether they were needed or not."""


def _row(take: TakeReader, part: Part) -> list[str]:
    rungs = [str(part.course.rungs[rung]) for rung in (*_SHOWN, 0)]
    units = [str(len(part.units)), str(len(set(part.units))), str(part.stretched)]
    margins = () if is_virtual(take) else _margins(part)
    return [part.agent, str(part.course.bars), str(len(part.spans)), *rungs, *margins, *units, _peak(part)]


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
    lines += [_legend(take), ""]
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
        troubles.append("The take was not closed properly: it has no last line, and ends with its shortest file.")
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
    rungs = [f"rung {rung}" for rung in _SHOWN]
    margins = [] if is_virtual(take) else ["margin min (ms)", "median (ms)"]
    units = ["units", "distinct", "stretched"]
    head = ["agent", "bars", "spans", *rungs, "rests", *margins, *units, "peak (dBFS)"]
    return [head, *(_row(take, part) for part in parts)]


# How the time went


def _time(take: TakeReader, found: Sequence[Course]) -> list[str]:
    """Tell what happened, what played and why, and how much time there was to spare; short where all went well."""
    if not any(course.spans for course in found):
        return []
    happened, well = happenings(take, found), all(course.well for course in found)
    lines = ["## How the time went", ""]
    if happened:
        lines += ["### What happened", "", *(f"- {place(take, told.frame)}: {told.words}" for told in happened), ""]
    lines += [*account_words(found), ""]
    if well:
        begin = "The band itself played as it should" if happened else "All went well"
        lines += [f"{begin}: every span was played by its final answer, and every answer was there in time.", ""]
    else:
        lines += [*_grid(_rung_table(found)), "", _RUNG_NOTE, ""]
        causes = _cause_table(found)
        lines += [*_grid(causes), ""] if len(causes) > 1 else []
        lines += _remarks(found)
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


def _remarks(found: Sequence[Course]) -> list[str]:
    """Tell how long the agents were without a worker, and of answers that nobody waited for."""
    lines = []
    for course in found:
        if len(away := course.away_ms) > 1:
            lines.append(
                f"{course.agent}: a new worker was on duty {median(away):.0f} ms after the old one was found to be "
                f"lost (median of {len(away)}; {max(away):.0f} ms at most)."
            )
        if course.strays:
            lines.append(f"{course.agent} sent {counted(course.strays, 'answer')} that nobody waited for any more.")
    return [text for line in lines for text in (line, "")]


# What happened


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that went otherwise than it should, at a frame, in words."""

    frame: int
    words: str


def happenings(take: TakeReader, found: Sequence[Course]) -> list[Happening]:
    """Return all that went otherwise than it should, in order of time; nothing where all went well."""
    told = [*_endings(take), *_losses(take)]
    for course in found:
        told += [*_workers(course), *_falls(course), *_late(course)]
    return sorted(told, key=lambda happening: happening.frame)


def _endings(take: TakeReader) -> Iterator[Happening]:
    """Tell of a recording or an engine that ended before it was told to."""
    if take.fault:
        yield Happening(take.frames, f"the recording ended early. {take.fault}.")
    elif take.end is None:
        yield Happening(
            take.frames,
            "the take ends here and was not closed properly: the recorder, or everything, was killed. What was "
            "recorded up to here is kept; whether the music went on is not known.",
        )
    elif is_live(take) and not any(line.get("type") == "counters" for line in take.lines):
        yield Happening(
            take.frames,
            "the engine ended early, without being told to and without a last word: the music stopped here.",
        )


def _losses(take: TakeReader) -> Iterator[Happening]:
    """Tell of sound that did not leave the device: the first few places for each cause, the others in a sum."""
    by_cause: defaultdict[tuple[str, bool], list[XrunLine]] = defaultdict(list)
    for xrun in take.xruns:
        by_cause[xrun.cause or "an xrun", xrun.frames > 0].append(xrun)
    for (cause, known), xruns in by_cause.items():
        if not known:
            more = f", on {len(xruns):,} occasions until {place(take, xruns[-1].frame)}"
            yield Happening(xruns[0].frame, cause + (more if len(xruns) > 1 else "") + ".")
            continue
        for xrun in xruns[:_MOST_TOLD]:
            until = place(take, xrun.frame + xrun.frames)
            yield Happening(
                xrun.frame,
                f"{_duration(take, xrun.frames)} of sound did not leave the device, until {until}: {cause}.",
            )
        if more_of_them := xruns[_MOST_TOLD:]:
            lost = _duration(take, sum(xrun.frames for xrun in more_of_them))
            where = f"in {counted(len(more_of_them), 'place')} until {place(take, more_of_them[-1].frame)}"
            yield Happening(more_of_them[0].frame, f"{lost} more did not leave the device, {where}: {cause}.")


_MOST_TOLD = 6


def _duration(take: TakeReader, frames: int) -> str:
    seconds = frames / take.samplerate
    return f"{seconds:.1f} s" if seconds >= 1 else f"{max(0.1, 1000 * seconds):.{0 if seconds >= 0.01 else 1}f} ms"


def _workers(course: Course) -> Iterator[Happening]:
    """Tell what became of an agent's workers: the first few times, the others in a sum."""
    told = list(_gaps(course))
    yield from told[:_MOST_TOLD]
    if more := told[_MOST_TOLD:]:
        yield Happening(more[0].frame, f"{course.agent} lost its worker {_times(len(more))} more.")
        if course.deserted:
            yield more[-1]
    if course.quarantined is not None:
        yield Happening(
            max(0, course.quarantined),
            f"{course.agent} was put in quarantine: its worker had failed again and again, so its part fades out and "
            "it is asked no more.",
        )


def _gaps(course: Course) -> Iterator[Happening]:
    """Yield each time an agent was without a worker, from the one that was lost to the one that took over."""
    lost: list[Event] = []
    for event in course.events:
        if event.what == "lost worker":
            lost.append(event)
        elif event.what == "new worker":
            away = event.frames
            after = "" if away is None else f" {max(1, round(1000 * away / course.samplerate))} ms later"
            first = event.frame - (away or 0)
            yield Happening(first, f"{_lost(course, [*lost, event])}; a new one was on duty{after}.")
            lost = []
    if lost:
        yield Happening(lost[0].frame, f"{_lost(course, lost)}; none came in its place.")


def _lost(course: Course, events: Sequence[Event]) -> str:
    """Say that an agent lost its worker, and how many more before one of them came on duty."""
    causes = ", then ".join(dict.fromkeys(event.cause for event in events if event.cause))
    more = len(events) - 1
    others = f", and {more:,} more that {'was' if more == 1 else 'were'} to take over" if more else ""
    return f"{course.agent} lost its worker" + (f" ({causes})" if causes else "") + others


def _falls(course: Course) -> Iterator[Happening]:
    """Tell where an agent fell back, or that it never played."""
    if course.fallen:
        first, last = course.fallen[0], course.fallen[-1]
        kinds = ", ".join(f"{course.rungs[rung]:,} {RUNGS[rung]}" for rung in _SHOWN[1:] if course.rungs[rung])
        until = f", the last in bar {last.bar + 1}" if last is not first else ""
        words = f"{course.agent} fell back in {counted(len(course.fallen), 'span')}{until}: {kinds}."
        yield Happening(first.start, words)
    elif course.late_finals:
        count = counted(course.late_finals, "final answer")
        yield Happening(course.spans[0].start, f"{count} of {course.agent} came too late.")
    if course.spans and all(span.rung == 0 and span.cause for span in course.spans):
        why = cause_words(course.spans[0].cause)
        yield Happening(course.spans[0].start, f"{course.agent} never played: {why}.")


def _late(course: Course) -> Iterator[Happening]:
    """Tell of spans that began too late for the loudspeaker."""
    for hop, words in (("mixed", "mixed too late"), ("out", "lost on the way out as they began")):
        if late := [step.span for step in course.hops.get(hop, ()) if step.late]:
            verb = "was" if len(late) == 1 else "were"
            said = words.replace("they", "it") if len(late) == 1 else words
            yield Happening(late[0].start, f"{counted(len(late), 'span')} of {course.agent} {verb} {said}.")


def _margin_table(found: Sequence[Course]) -> list[list[str]]:
    hops = _hops(found)
    rows = [["agent", *(f"{hop}, age (ms)" if hop == "heard" else f"{hop} (ms)" for hop in hops), "late"]]
    for course in found:
        margins = [course.margins(hop) for hop in hops]
        if any(margin.count for margin in margins):
            late = ", ".join(f"{m.late:,} {hop}" for hop, m in zip(hops, margins, strict=True) if _counts(hop, m))
            cells = [_three(m, -1 if hop == "heard" else 1) for hop, m in zip(hops, margins, strict=True)]
            rows.append([course.agent, *cells, late or "-"])
    return rows


def _hops(found: Sequence[Course]) -> list[str]:
    """Return the hops to tell of: what was heard only where it was older than hearing itself makes it."""
    return [
        hop
        for hop in HOPS
        if any(course.hops.get(hop) for course in found) and (hop != "heard" or any(map(_deaf, found)))
    ]


def _deaf(course: Course) -> bool:
    """Whether what the agent had heard was ever notably old."""
    worst = course.margins("heard").worst_ms
    return worst is not None and worst <= -_HEARING_MS


_HEARING_MS = 20
"""Hearing goes in hops of its own, so what was heard is always a few milliseconds old."""


def _counts(hop: str, margins: Margins) -> bool:
    """Whether lateness at a hop is lateness: hearing a little less than there was is not."""
    return margins.late > 0 and hop != "heard"


def _three(margins: Margins, sign: int = 1) -> str:
    """Return median, first percentile and worst, an age where ``sign`` is -1."""
    if not margins.count:
        return "-"
    if margins.median_ms is None or margins.p1_ms is None or margins.worst_ms is None:
        return "never"
    return " / ".join(str(sign * round(ms)) for ms in (margins.median_ms, margins.p1_ms, margins.worst_ms))


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
    head = ["bar", "beat", "agent", "rung", "cause", "final answer came in after"]
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
    lines = ["## Fallbacks", "", *_grid([head, *rows]), ""]
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
