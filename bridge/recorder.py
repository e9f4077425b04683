"""A take on disk: what was played, what was answered, and every decision in between.

A take is a folder::

    input.wav            what the player sent
    stems/<agent>.wav    what each agent played, before the fader
    mix.wav              the main outputs as they were sent
    take.jsonl           one JSON object a line: the take, then tempi, requests, replies, spans, outs, ..., the end

All sound is float32 at the session's rate, sample-aligned from frame 0. :class:`TakeWriter` writes it while the music
plays and never gets in its way; :class:`TakeReader` reads it, whole or after a crash, for replay and for reports.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bridge.wav import FLUSH_SECONDS, WavWriter, check_format
from realtime.clock import Anchor, Locate, Meter, TempoChange, TempoMap, Timeline
from realtime.messages import Json, decode, encode, field_names, from_json, to_bytes
from realtime.protocols import Action, Block, Origin, Span

VERSION = 1
INPUT, MIX, STEMS, LOG = "input.wav", "mix.wav", "stems", "take.jsonl"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_RESERVED = re.compile(r"(?i)con|prn|aux|nul|(com|lpt)[0-9]")  # no file on Windows may have these names
_READ_FRAMES = 1 << 16
_PAD_FRAMES = 1 << 16


def check_stem_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be file names everywhere.

    Raises
    ------
    ValueError
        Naming the stem and what is allowed.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
            raise ValueError(
                f"stem {name!r}: its name becomes a file name, so it is 1 to 64 of the letters a to z, A to Z, "
                "digits, - and _, begins with a letter or digit, and is no device name such as CON"
            )
        if name.lower() in seen:
            twin = seen[name.lower()]
            raise ValueError(f"stems {twin!r} and {name!r} would share a file; give every agent a name of its own")
        seen[name.lower()] = name


# --- the lines of take.jsonl ---


@dataclass(frozen=True, slots=True)
class StemLine:
    """One stem of the header."""

    name: str
    channels: int


@dataclass(frozen=True, slots=True)
class TakeLine:
    """The first line: what the session was. More fields may stand beside these; see ``TakeReader.header``."""

    version: int
    samplerate: int
    inputs: int
    outputs: int
    stems: tuple[StemLine, ...]
    lead: int = 0
    latency: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TempoLine:
    """From ``beat`` of ``bar``, which lies at ``frame``, this tempo and meter hold; ``None`` keeps the old one.

    One that was ``announced`` while the music played, at that frame, was made by hand; the others were planned.
    """

    frame: int
    bar: int
    beat: Fraction = Fraction(0)
    tempo: Fraction | None = None
    meter: Meter | None = None
    ramp_beats: int = 0
    announced: int | None = None

    @property
    def change(self) -> TempoChange:
        """What was wished."""
        return TempoChange(self.bar, self.beat, self.tempo, self.meter, self.ramp_beats)

    def applied(self, tempo_map: TempoMap) -> TempoMap:
        """Return the map with this in it."""
        return self.change.applied(tempo_map)


@dataclass(frozen=True, slots=True)
class RequestLine:
    """An agent was asked for a span; ``posted`` is the frame at which it was.

    ``attempt`` 0 is speculative, 1 final, 2 a continuation: "carry on from there, in case the final does not come".
    """

    agent: str
    attempt: int
    bar: int
    beat: Fraction
    beats: Fraction
    start: int
    frames: int
    posted: int
    context_end: int

    @property
    def span(self) -> Span:
        """The span that was asked for."""
        return Span(self.bar, self.beat, self.beats)


@dataclass(frozen=True, slots=True)
class ReplyLine:
    """An agent answered at frame ``arrived``; no ``origin`` is a rest, or a ``fault`` where that is not empty."""

    agent: str
    attempt: int
    bar: int
    beat: Fraction
    arrived: int
    compute_seconds: float = 0.0
    fault: str = ""
    lead_in: int = 0
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class SpanLine:
    """What sounded in a span, and why: rung 1 to 5 of the ladder, 0 for a rest.

    ``hops`` is the span's way through the engine: ``"heard"``, ``"request"``, ``"ready"``, ``"mixed"``, each with the
    frame that was wanted and the actual one (``None`` where it never came). Its last hop, out of the device, is an
    :class:`OutLine`. Takes of before have ``margin_frames``, that of ``"ready"``, alone.
    """

    agent: str
    bar: int
    beat: Fraction
    beats: Fraction
    start: int
    frames: int
    rung: int
    cause: str = ""
    attempt: int | None = None
    deadline: int | None = None
    arrived: int | None = None
    margin_frames: int | None = None
    origin: Origin | None = None
    hops: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, Fraction]:
        """What makes a span one of its kind: agent, bar, beat."""
        return self.agent, self.bar, self.beat


@dataclass(frozen=True, slots=True)
class OutLine:
    """What became of a span's first frame: out of the device at ``actual``, in its place, or lost (``None``).

    ``margin_frames`` is what lay in the device's ring before it when it got there; ``cause`` says why it was lost.
    """

    agent: str
    bar: int
    beat: Fraction
    wanted: int
    actual: int | None = None
    margin_frames: int | None = None
    cause: str = ""

    @property
    def key(self) -> tuple[str, int, Fraction]:
        """The span it belongs to, as :attr:`SpanLine.key`."""
        return self.agent, self.bar, self.beat


@dataclass(frozen=True, slots=True)
class RetimeLine:
    """A change of tempo or meter inside a span that sounds gave it another length, as known at frame ``decided``."""

    agent: str
    bar: int
    beat: Fraction
    start: int
    frames: int
    decided: int = 0

    @property
    def key(self) -> tuple[str, int, Fraction]:
        """The span it belongs to, as :attr:`SpanLine.key`."""
        return self.agent, self.bar, self.beat


@dataclass(frozen=True, slots=True)
class JoinLine:
    """A clip that came late was joined inside its span: it sounds from ``frame`` on, in its true place."""

    agent: str
    bar: int
    beat: Fraction
    attempt: int
    frame: int
    arrived: int | None = None

    @property
    def key(self) -> tuple[str, int, Fraction]:
        """The span it belongs to, as :attr:`SpanLine.key`."""
        return self.agent, self.bar, self.beat


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """From ``frame`` on an agent is given so many frames for an answer, by what its answers took (seconds).

    Of few answers the slow end may have been written down as less than the middle; it is never read as that.
    """

    agent: str
    frame: int
    budget_frames: int
    p50_seconds: float = 0.0
    p99_seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "p99_seconds", max(self.p50_seconds, self.p99_seconds))


@dataclass(frozen=True, slots=True)
class ArmedLine:
    """An agent's worker came on duty: number ``generation``, from 0; each but the first took over from a lost one."""

    agent: str
    frame: int
    generation: int = 0
    budget_frames: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """Something else became of an agent's worker: ``event`` is ``"lost"`` when ``generation`` was to take over.

    ``cause`` says in words why, where it is known: "killed by signal 9", "no sign of life for 1.0 s".
    """

    agent: str
    frame: int
    generation: int
    event: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class LocateLine:
    """From session bar ``bar``, which starts at ``frame``, the song goes on from ``song_bar``.

    ``loop_bars`` above 0: it goes round after so many bars. ``as_written``: as planned, whatever was set by hand.
    """

    frame: int
    bar: int
    song_bar: int
    loop_bars: int = 0
    as_written: bool = False

    @property
    def change(self) -> Locate:
        """What was wished."""
        return Locate(self.bar, self.song_bar, self.loop_bars, self.as_written)

    def applied(self, tempo_map: TempoMap) -> TempoMap:
        """Return the map with this in it."""
        return self.change.applied(tempo_map)


@dataclass(frozen=True, slots=True)
class AnchorLine:
    """From session bar ``bar``, which starts at ``frame``, another leads, and there it is bar ``song_bar``.

    Nothing before frame ``earliest`` could be moved any more.
    """

    frame: int
    earliest: int
    bar: int
    song_bar: int
    anchor: Anchor

    def applied(self, tempo_map: TempoMap) -> TempoMap:
        """Return the map with this in it."""
        return tempo_map.anchored(self.anchor, self.earliest)[0]


@dataclass(frozen=True, slots=True)
class XrunLine:
    """Frames that the device lost, or played without having any."""

    frame: int
    frames: int
    cause: str = ""


@dataclass(frozen=True, slots=True)
class PadLine:
    """Zeros that were put in a file: at its end, to make all files equally long, or where sound could not be kept."""

    file: str
    start: int
    frames: int


@dataclass(frozen=True, slots=True)
class EndLine:
    """The last line of a take that was closed: hashes of the stems' samples, counters, and what went wrong."""

    frames: int
    stems: dict[str, str]
    counters: dict[str, object] = field(default_factory=dict)
    fault: str = ""


# --- writing ---


class TakeWriter:
    """Writes one take while it is played.

    Parameters
    ----------
    folder
        Made if it is not there; one that holds a take is refused.
    header
        What the first line says of the session: ``samplerate``, and as many more fields as wished (``lead``,
        ``latency``, ``seed``, ...).
    stems
        Name and channel count of each, in order.
    inputs, outputs
        Channel counts of the input and of the mix.
    flush_seconds
        Most sound that a kill can cost.

    Attributes
    ----------
    fault
        Empty while all is well; else one sentence: which file, why, how much is kept, what to do.

    Raises
    ------
    ValueError
        Before the music: the folder holds a take or cannot be made, a stem's name is no file name. Later only for a
        block of the wrong shape, an unknown stem or a line that JSON cannot carry; never for the disk's sake.

    Notes
    -----
    Any one thread, the recorder's. If a file cannot grow, the take ends there: nothing more is recorded, all that
    was written stays readable, and the music plays on.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        header: Mapping[str, object],
        stems: Sequence[tuple[str, int]],
        inputs: int,
        outputs: int,
        *,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.folder = Path(folder)
        self.fault = ""
        check_stem_names([name for name, _ in stems])
        line = _first_line(header, stems, inputs, outputs)
        self._samplerate = int(line["samplerate"])
        channels = {INPUT: inputs, **{stem_file(name): width for name, width in stems}, MIX: outputs}
        for width in channels.values():
            check_format(self._samplerate, width)
        _make_folder(self.folder)
        with contextlib.ExitStack() as undo:
            undo.callback(_remove_empty, self.folder, channels)
            try:
                self._log = undo.enter_context(_Lines(self.folder / LOG))
                self._files = {
                    name: undo.enter_context(
                        WavWriter(self.folder / name, self._samplerate, width, flush_seconds=flush_seconds)
                    )
                    for name, width in channels.items()
                }
                self._log.write(line)
            except OSError as problem:
                raise ValueError(f"{self.folder}: no take can be written here, because {_reason(problem)}") from None
            undo.pop_all()

    @property
    def frames(self) -> int:
        """Frames that all files hold, safe from a kill."""
        return min(file.frames for file in self._files.values())

    def input(self, block: Block) -> None:
        """Append to ``input.wav``; shape ``(frames, inputs)``."""
        self._write(INPUT, block)

    def stem(self, name: str, block: Block) -> None:
        """Append to a stem; shape ``(frames, channels)``."""
        if stem_file(name) not in self._files:
            known = ", ".join(sorted(Path(file).stem for file in self._files if file.startswith(STEMS)))
            raise ValueError(f"stem {name!r} is not of this take; its stems are: {known or 'none'}")
        self._write(stem_file(name), block)

    def mix(self, block: Block) -> None:
        """Append to ``mix.wav``; shape ``(frames, outputs)``."""
        self._write(MIX, block)

    def log(self, line: Mapping[str, object]) -> None:
        """Append one line to ``take.jsonl``. Fractions, meters and our dataclasses are encoded on the way."""
        if not self.fault:
            self._guarded(LOG, lambda: self._log.write(line))

    def close(self, frames: int = 0, counters: Mapping[str, object] | None = None) -> int:
        """Bring all files to equal length, write the last line, close; return that length in frames.

        Files shorter than ``frames``, or than the longest of them, are padded with zeros, and a line says so.
        After a fault nothing is padded: the length is that of the shortest file.
        """
        if self._log.closed:
            return self.frames
        self._each(WavWriter.flush)
        if not self.fault:
            self._pad(max([frames, *(file.frames for file in self._files.values())]))
        self._each(WavWriter.close)
        end = EndLine(self.frames, self._hashes(), dict(counters or {}), self.fault)
        with self._log, contextlib.suppress(OSError):
            self._log.write({"type": "end", **encode(end)})
        return self.frames

    def __enter__(self) -> TakeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, file: str, block: Block) -> None:
        if not self.fault:
            self._guarded(file, lambda: self._files[file].write(block))

    def _guarded(self, file: str, act: Callable[[], None]) -> None:
        """Run ``act``; an error of the disk ends the recording and is remembered, not raised."""
        try:
            act()
        except OSError as problem:
            if not self.fault:
                self._stop(file, problem)

    def _each(self, act: Callable[[WavWriter], None]) -> None:
        for name, file in self._files.items():
            self._guarded(name, partial(act, file))

    def _stop(self, file: str, problem: OSError) -> None:
        self.fault = f"{self.folder / file}: recording stopped, because {_reason(problem)}"
        self._each(WavWriter.flush)
        self.fault += (
            f"; the first {self.frames} frames ({self.frames / self._samplerate:.1f} s) of the take are kept and "
            "readable; make room, or record the next take in a folder on another disk"
        )
        with contextlib.suppress(OSError):
            self._log.write({"type": "fault", "file": file, "frames": self.frames, "fault": self.fault})

    def _pad(self, frames: int) -> None:
        for name, file in self._files.items():
            start, missing = file.frames, frames - file.frames
            if missing > 0:
                self.log({"type": "pad", **encode(PadLine(name, start, missing))})
                for length in _portions(missing, _PAD_FRAMES):
                    self._write(name, np.zeros((length, file.channels), np.float32))
        self._each(WavWriter.flush)

    def _hashes(self) -> dict[str, str]:
        """Hash of each stem over the take's length: known already where the stem is just as long."""
        hashes = {}
        for name, file in self._files.items():
            if name.startswith(STEMS):
                hashes[Path(name).stem] = file.sha256() if file.frames == self.frames else self._hash_again(file)
        return hashes

    def _hash_again(self, file: WavWriter) -> str:
        """Read a stem that a fault left longer than the take; empty if the disk does not give it back."""
        kept = _Sound(file.path, file.samplerate, file.channels)
        try:
            return _hash_of(kept.blocks(self.frames, _READ_FRAMES))
        except (ValueError, RuntimeError):
            return ""


def _first_line(
    header: Mapping[str, object], stems: Sequence[tuple[str, int]], inputs: int, outputs: int
) -> dict[str, Any]:
    """Put the first line together, and see that a reader will take it."""
    line: dict[str, Any] = {
        "type": "take",
        "version": VERSION,
        **header,
        "inputs": inputs,
        "outputs": outputs,
        "stems": [StemLine(name, channels) for name, channels in stems],
    }
    _known_part(TakeLine, encode(line), "header of a new take: ")
    return line


def _make_folder(folder: Path) -> None:
    taken = next((name for name in (LOG, INPUT, MIX, STEMS) if (folder / name).exists()), None)
    if taken:
        raise ValueError(f"{folder} already holds a take ({taken}); choose another folder, or move that one away")
    try:
        (folder / STEMS).mkdir(parents=True)
    except OSError as problem:
        raise ValueError(f"{folder}: no take can be written here, because {_reason(problem)}") from None


def _remove_empty(folder: Path, files: Iterable[str]) -> None:
    """Take back a take that never began."""
    for name in (LOG, *files):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    for empty in (folder / STEMS, folder):
        with contextlib.suppress(OSError):
            empty.rmdir()


def stem_file(name: str) -> str:
    return f"{STEMS}/{name}.wav"


def _portions(total: int, most: int) -> Iterator[int]:
    """Split ``total`` into parts of at most ``most``."""
    for start in range(0, total, most):
        yield min(most, total - start)


_REASONS = {  # by name: not every system has every number
    "ENOSPC": "the disk is full",
    "EDQUOT": "the disk quota is used up",
    "EFBIG": "the file may not grow further (a limit of this disk or of ulimit -f)",
    "EIO": "the disk reports an error",
    "EROFS": "the disk is read-only",
    "EACCES": "writing there is not permitted",
    "EEXIST": "there is a file of that name",
    "ENOTDIR": "a file is in the place of a folder",
}


def _reason(problem: OSError) -> str:
    name = errno.errorcode.get(problem.errno or 0, "")
    return _REASONS.get(name) or problem.strerror or str(problem)


class _Lines:
    """An append-only file of JSON lines, each written whole by one call; a line that does not fit is taken back."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def write(self, line: Mapping[str, object]) -> None:
        rest = memoryview(to_bytes(line) + b"\n")
        start = self._file.seek(0, os.SEEK_END)
        try:
            while rest:  # once, unless the disk is full: then the second call says so
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- reading ---

Line = TypeVar("Line")


class TakeReader:
    """Reads a take, whole or cut short by a crash.

    Parameters
    ----------
    folder
        The take. ``take.jsonl`` and ``input.wav`` must be there; stems and mix may be missing, as a replay makes
        them again, and are missed only when they are asked for.

    Attributes
    ----------
    header
        The first line as it stands, with all its fields.
    samplerate, inputs, outputs, lead, latency, seed
        The session's, from the header.
    stems
        Channel count by name, in order.
    frames
        Length of the take: that of its shortest file. Everything is read up to here.
    lines
        Every line as a dict, also of types this version does not know.
    requests, replies, spans, joins, retimes, outs, budgets, armed, workers, actions, xruns, pads
        The lines of one type, in order, as records. A take of an older sideman has none of the newer types.
    tempo, locates, anchors
        Likewise: what became of musical time.
    end
        The last line, ``None`` after a crash.
    truncated
        Whether the last line was cut off in the middle, and left out.

    Raises
    ------
    ValueError
        One sentence: the folder is no take or is of another version, a file is missing or is not what ``take.jsonl``
        says, a line (by number) is not JSON or has a wrong field.

    Notes
    -----
    Any one thread. Files are open only while they are read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._numbered, self.truncated = _read_lines(self.folder)
        self.lines = [line for _, line in self._numbered]
        self.header = self._checked_header()
        take = self._records("take", TakeLine)[0]
        self.samplerate, self.inputs, self.outputs = take.samplerate, take.inputs, take.outputs
        self.lead, self.latency, self.seed = take.lead, take.latency, take.seed
        self.stems = {stem.name: stem.channels for stem in take.stems}
        try:
            check_stem_names([stem.name for stem in take.stems])
        except ValueError as problem:
            raise ValueError(f"{self.folder / LOG}: {problem}") from None
        self.tempo = self._records("tempo", TempoLine)
        self.requests = self._records("request", RequestLine)
        self.replies = self._records("reply", ReplyLine)
        self.spans = self._records("span", SpanLine)
        self.joins = self._records("join", JoinLine)
        self.retimes = self._records("retime", RetimeLine)
        self.outs = self._records("out", OutLine)
        self.budgets = self._records("budget", BudgetLine)
        self.armed = self._records("armed", ArmedLine)
        self.workers = self._records("worker", WorkerLine)
        self.locates = self._records("locate", LocateLine)
        self.anchors = self._records("anchor", AnchorLine)
        self._by_hand = self._made_by_hand()
        self.actions = self._records("action", Action)
        self.xruns = self._records("xrun", XrunLine)
        self.pads = self._records("pad", PadLine)
        ends = self._records("end", EndLine)
        self.end = ends[-1] if ends else None
        self._sounds = self._expected_sounds()
        self.frames = self._shortest()

    @property
    def fault(self) -> str:
        """What ended the recording early, as the writer said it; empty if nothing did or a crash left no word."""
        texts = [str(line.get("fault", "")) for line in self.lines if line.get("type") in ("fault", "end")]
        return next(filter(None, texts), "")

    @property
    def tempo_map(self) -> TempoMap:
        """The tempo map of the take, put together from its tempo lines."""
        if not self.tempo or self.tempo[0].tempo is None:
            raise ValueError(f"{self.folder / LOG} has no tempo line to begin with; its bar lines are unknown")
        first, tempo = self.tempo[0], self.tempo[0].tempo
        meter = first.meter or Meter()
        downbeat = first.bar * meter.beats
        start = Timeline(
            self.samplerate, tempo, meter, Fraction(first.frame), downbeat + first.beat, first.bar, downbeat
        )
        tempo_map = TempoMap((start,))
        for planned in self.tempo[1:]:
            if planned.announced is None:
                tempo_map = planned.change.applied(tempo_map)
        if not self._by_hand:
            return tempo_map
        tempo_map = tempo_map.as_session()
        for line in self._by_hand:
            tempo_map = line.applied(tempo_map)
        return tempo_map

    def _made_by_hand(self) -> list[TempoLine | LocateLine | AnchorLine]:
        """Return what was announced while the music played, in the order in which it was."""
        found: list[TempoLine | LocateLine | AnchorLine] = []
        tempi, locates, anchors = iter(self.tempo), iter(self.locates), iter(self.anchors)
        for line in self.lines:
            if line.get("type") == "tempo" and (tempo := next(tempi)).announced is not None:
                found.append(tempo)
            elif line.get("type") == "locate":
                found.append(next(locates))
            elif line.get("type") == "anchor":
                found.append(next(anchors))
        return found

    def has(self, stem: str) -> bool:
        """Whether the sound of a stem is there."""
        return self._sound(stem_file(stem)).path.is_file()

    def input(self, blocksize: int = _READ_FRAMES) -> Iterator[Block]:
        """Yield ``input.wav`` in blocks of ``blocksize`` frames (the last may be shorter), ``(frames, inputs)``."""
        return self._sound(INPUT).blocks(self.frames, blocksize)

    def mix(self, blocksize: int = _READ_FRAMES) -> Iterator[Block]:
        """Yield ``mix.wav`` in blocks, ``(frames, outputs)``."""
        return self._sound(MIX).blocks(self.frames, blocksize)

    def stem_blocks(self, name: str, blocksize: int = _READ_FRAMES) -> Iterator[Block]:
        """Yield a stem in blocks, ``(frames, channels)``."""
        return self._sound(stem_file(name)).blocks(self.frames, blocksize)

    def stem(self, name: str, start: int = 0, frames: int | None = None) -> Block:
        """Return frames of a stem from ``start`` on, by default all, ``(frames, channels)``."""
        stop = self.frames if frames is None else min(self.frames, start + frames)
        if not 0 <= start <= self.frames:
            raise ValueError(f"start={start}: the take {self.folder} has frames 0 to {self.frames}")
        return self._sound(stem_file(name)).read(start, max(0, stop - start))

    def stem_hash(self, name: str) -> str:
        """Return the hash of a stem's samples as they lie on disk; ``end.stems`` has it as it was recorded."""
        return _hash_of(self.stem_blocks(name))

    def _checked_header(self) -> dict[str, Any]:
        where = self.folder / LOG
        header = self.lines[0] if self.lines else {}
        if header.get("type") != "take":
            raise ValueError(f"{where} does not begin with the line of a take; was it written by another program?")
        if header.get("version") != VERSION:
            raise ValueError(
                f"{where} is of version {header.get('version')!r}; this sideman reads version {VERSION}: "
                "use the sideman that recorded it, or a newer one"
            )
        return header

    def _records(self, kind: str, record: type[Line]) -> list[Line]:
        return [
            _known_part(record, line, f"{self.folder / LOG}, line {number}, ")
            for number, line in (_clocked(self._numbered) if kind in _UNDATED else self._numbered)
            if line.get("type") == kind
        ]

    def _expected_sounds(self) -> dict[str, _Sound]:
        widths = {INPUT: self.inputs, **{stem_file(n): width for n, width in self.stems.items()}, MIX: self.outputs}
        return {name: _Sound(self.folder / name, self.samplerate, width) for name, width in widths.items()}

    def _sound(self, name: str) -> _Sound:
        if name not in self._sounds:
            known = ", ".join(self.stems) or "none"
            raise ValueError(f"stem {Path(name).stem!r} is not of the take {self.folder}; its stems are: {known}")
        return self._sounds[name]

    def _shortest(self) -> int:
        lengths = [sound.frames() for name, sound in self._sounds.items() if name == INPUT or sound.path.is_file()]
        return min([*lengths, *([max(0, self.end.frames)] if self.end else [])])


def _read_lines(folder: Path) -> tuple[list[tuple[int, dict[str, Any]]], bool]:
    """Return the numbered lines of ``take.jsonl``, and whether a last, unfinished one was left out."""
    try:
        return _lines_of(folder, folder / LOG)
    except MemoryError:
        size = (folder / LOG).stat().st_size
        raise ValueError(
            f"{folder / LOG}: its {size / 1e6:.0f} MB are more than there is memory for; was it damaged?"
        ) from None


def _lines_of(folder: Path, path: Path) -> tuple[list[tuple[int, dict[str, Any]]], bool]:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ValueError(f"{folder}: found {found}, expected the folder of a take; is the path right?")
    if not path.is_file():
        raise ValueError(f"{folder} is no take: it has no {LOG}; give the folder that sideman recorded into")
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise ValueError(f"{path} cannot be read, because {_reason(problem)}") from None
    *whole, rest = data.split(b"\n")
    numbered = [(number, _parse(text, path, number)) for number, text in enumerate(whole, 1) if text.strip()]
    if not rest.strip():
        return numbered, False
    try:
        return [*numbered, (len(whole) + 1, _parse(rest, path, len(whole) + 1))], False
    except ValueError:  # a kill in the middle of a line: what is whole counts
        return numbered, True


_UNDATED = ("armed", "budget", "worker")
_COMING = ("tempo", "locate", "anchor")
"""Lines that tell of what is to come."""


def _clocked(numbered: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give lines that do not say when they were written the frame of the last one before them that does."""
    clock = 0
    for number, line in numbered:
        told = (line.get(key) for key in ("frame", "decided", "arrived", "posted"))
        at = next((frame for frame in told if type(frame) is int), None)
        if line.get("type") in _UNDATED:
            yield number, {"frame": clock, **line}
        elif at is not None and line.get("type") not in _COMING:
            clock = max(clock, at)


def _parse(text: bytes, path: Path, number: int) -> dict[str, Any]:
    line = from_json(text, f"{path}, line {number}")
    if not isinstance(line, dict) or not isinstance(line.get("type"), str):
        raise ValueError(f'{path}, line {number}: expected an object with a "type"; was it edited by hand?')
    return line


def _known_part(record: type[Line], line: Any, where: str) -> Line:
    """Decode the fields that this version knows; later ones may have added more."""
    known: dict[str, Json] = {name: line[name] for name in field_names(record) if name in line}
    try:
        return decode(record, known)
    except ValueError as problem:
        raise ValueError(f"{where}{problem}") from None


@dataclass(frozen=True, slots=True)
class _Sound:
    """One WAV file of the take, opened only while it is read."""

    path: Path
    samplerate: int
    channels: int

    def frames(self) -> int:
        with self._open() as file:
            return int(file.frames)

    def blocks(self, frames: int, most: int) -> Iterator[Block]:
        with self._open() as file:
            for length in _portions(frames, most):
                yield file.read(length, dtype="float32", always_2d=True)

    def read(self, start: int, frames: int) -> Block:
        with self._open() as file:
            file.seek(start)
            block: Block = file.read(frames, dtype="float32", always_2d=True)
            return block

    def _open(self) -> Any:
        import soundfile

        if not self.path.is_file():
            raise ValueError(f"{self.path} is missing; a take keeps it there, was it moved or deleted?")
        try:
            file = soundfile.SoundFile(self.path)
        except soundfile.SoundFileError as problem:
            text = str(problem).rstrip(".")
            raise ValueError(
                f"{self.path} is no sound file that can be read ({text}); was it cut or replaced?"
            ) from None
        found = f"{file.samplerate} Hz, {file.channels} channels"
        expected = f"{self.samplerate} Hz, {self.channels} channels"
        if found != expected:
            file.close()
            raise ValueError(f"{self.path}: found {found}, expected {expected} as in {LOG}; was the file exchanged?")
        return file


def _hash_of(blocks: Iterator[Block]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(np.ascontiguousarray(block, dtype="<f4").tobytes())
    return digest.hexdigest()
