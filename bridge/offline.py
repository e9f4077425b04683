"""A session on a virtual clock: rendered from a file, replayed from a take.

The same engine as live, with its agents in this process: what is slow holds the clock instead of being late. The
bridge has this done by a child (:mod:`bridge.gate`), as a session and a take name files of other people.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.app import engine_config, lighter_ways, version
from bridge.gate import Wish
from bridge.session import Session
from bridge.tap import Tap, new_take, take_header
from realtime.clock import FASTEST_BPM, SLOWEST_BPM
from realtime.engine import Command, Engine, EngineConfig, Memory
from realtime.foreign import shown
from realtime.messages import decode
from realtime.protocols import Agent, Block, Origin, SpanRequest, StreamSpec
from realtime.runner import AGENTS, AgentRunner, InlinePort, RingHeard, build_agent
from realtime.scheduler import SUPERSEDED, Reply
from realtime.seat import AgentConfig

if TYPE_CHECKING:
    from bridge.recorder import TakeReader
    from realtime.replay import Script
    from realtime.scheduler import Timing

OFFLINE_LEAD = 1024
OFFLINE_BLOCKSIZE = 1024
OFFLINE_BUDGET_SECONDS = 0.25
"""What an agent is held to take where nothing is measured: so a render does not depend on the machine."""

Progress = Callable[[int, int], None]
"""Takes frames done and frames in all."""
Doing = Callable[[str], None]
"""Takes the name of what is at work now, where that changes: should the process die, it is known of what."""


# Input


class FileInput:
    """A sound file as the session hears it: its channels chosen, at the session's rate, block by block.

    Raises
    ------
    ValueError
        In one sentence, if the file cannot be used or lacks a channel.
    """

    _CHUNK = 1 << 16  # always the same, so that the result does not depend on how it is read

    def __init__(self, path: str | os.PathLike[str], samplerate: int, channels: tuple[int, ...]) -> None:
        from realtime.soundfiles import SoundFile

        self._file = SoundFile(Path(path))
        info = self._file.info
        if max(channels) > info.channels:
            self._file.close()
            has = "1 channel" if info.channels == 1 else f"{info.channels} channels"
            raise ValueError(
                f"{path} has {has}, but the session hears input {max(channels)}; set stream.inputs to channels "
                "that the file has, for instance [1]"
            )
        self._channels = [channel - 1 for channel in channels]
        self._samplerate = samplerate
        self.frames = max(1, round(info.frames * samplerate / info.samplerate))
        self._total, self._at = info.frames, 0
        self._resampler: Any = None
        self._ready: list[Block] = []  # what was made and not handed out yet; the first is begun at `_used`
        self._used = 0

    def check(self, progress: Progress = lambda done, total: None) -> None:
        """Decode the whole file once: what is wrong anywhere in it is found before anything is written.

        Raises
        ------
        ValueError
            If it breaks off, or holds NaN or infinity.
        """
        for start in range(0, self._total, self._CHUNK):
            self._file.read(start, min(self._total, start + self._CHUNK))
            progress(min(self._total, start + self._CHUNK), self._total)

    def read(self, frames: int) -> Block:
        """Return the next ``frames``; fewer, or none, at the end."""
        import numpy as np

        parts = [np.zeros((0, len(self._channels)), np.float32)]
        missing = frames
        while missing and (self._ready or self._at < self._total):
            if not self._ready:
                self._ready.append(self._next_chunk())
                continue
            part = self._ready[0][self._used : self._used + missing]
            parts.append(part)
            missing -= len(part)
            self._used += len(part)
            if self._used == len(self._ready[0]):
                self._ready.pop()
                self._used = 0
        return np.concatenate(parts)

    def _next_chunk(self) -> Block:
        import numpy as np

        end = min(self._total, self._at + self._CHUNK)
        chunk: Block = np.ascontiguousarray(self._file.read(self._at, end)[:, self._channels])
        self._at = end
        rate = self._file.info.samplerate
        if rate == self._samplerate:
            return chunk
        if self._resampler is None:
            import soxr

            self._resampler = soxr.ResampleStream(
                rate, self._samplerate, len(self._channels), dtype="float32", quality="HQ"
            )
        resampled: Block = self._resampler.resample_chunk(chunk, last=end == self._total)
        return resampled

    def close(self) -> None:
        """Close the file."""
        self._file.close()


# On a virtual clock


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a render or a replay left: the take, and how it went.

    Attributes
    ----------
    folder, frames, samplerate
        The take.
    seconds
        Time it took.
    fault
        What ended it early, a sentence.
    interrupted
        Whether somebody stopped it.
    faults
        A sentence for each agent that failed.
    stems
        After a replay, what became of each stem: ``"identical"``, ``"different"``, ``"unknown"``, or ``"changed"``
        where it is as it was recorded, and the file in the take is not.
    notes
        After a replay, sentences about what is different, and from where on.
    """

    folder: Path
    frames: int
    seconds: float
    samplerate: int
    fault: str = ""
    interrupted: bool = False
    faults: tuple[str, ...] = ()
    stems: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def realtime_factor(self) -> float:
        """Seconds of music made in a second."""
        return self.frames / self.samplerate / max(self.seconds, 1e-9)

    def told(self) -> dict[str, Any]:
        """Return all of it as JSON can carry it."""
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def heard(cls, told: dict[str, Any]) -> Rendered:
        """Return what :meth:`told` told."""
        lists = {name: tuple(told[name]) for name in ("faults", "notes")}
        return cls(**{**told, **lists, "folder": Path(told["folder"])})


def inline_band(
    config: EngineConfig,
    make_port: Callable[[AgentRunner, int], InlinePort],
    log: Callable[[dict[str, object]], None],
    timing: Timing | None = None,
    script: tuple[tuple[int, Command], ...] = (),
    doing: Doing = lambda what: None,
) -> Engine:
    """Build an engine whose agents run in this process."""
    turns = _Turns(doing)
    memory = Memory.private(config)
    heard = RingHeard(memory.inputs, memory.stems)
    ports = []
    for part in config.parts:
        turns(part.agent.name)
        runner = _TellingRunner(build_agent(part.agent), part.agent, config.spec, heard, turns)
        budget_seconds = part.agent.budget_seconds or OFFLINE_BUDGET_SECONDS
        ports.append(make_port(runner, round(budget_seconds * config.spec.samplerate)))
    engine = Engine(config, ports, memory, log=log, timing=timing, script=script)
    for port in ports:
        port.now = lambda: engine.mixed
    return engine


class _Turns:
    """Tells whose turn it is, when it is another's."""

    def __init__(self, doing: Doing) -> None:
        self._doing, self._last = doing, ""

    def __call__(self, agent: str) -> None:
        if agent != self._last:
            self._last = agent
            self._doing(f"agent {agent!r}")


class _TellingRunner(AgentRunner):
    """A runner that says when its agent has its turn."""

    def __init__(
        self, agent: Agent, config: AgentConfig, spec: StreamSpec, heard: RingHeard, turns: Callable[[str], None]
    ) -> None:
        super().__init__(agent, config, spec, heard)
        self._turns = turns

    def play(self, request: SpanRequest, origin: Origin | None = None) -> Reply:
        """Play as any runner does."""
        self._turns(self.config.name)
        return super().play(request, origin)


def render(
    session: Session,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    blocksize: int = OFFLINE_BLOCKSIZE,
    script: tuple[tuple[int, Command], ...] = (),
    progress: Progress = lambda done, total: None,
    doing: Doing = lambda what: None,
) -> Rendered:
    """Play a session against a file, as it would be played live, and write the take into ``out``.

    Parameters
    ----------
    session
        The session; its downbeat is that of the file.
    source
        What the player plays: any sound file. The stems are exactly as long, at the session's rate.
    out
        Folder of the take; one that holds a take is refused.
    blocksize
        Frames at a time. The result does not depend on it.
    script
        Commands and the frames at which they count.
    progress
        Called twice for each second of sound.
    doing
        Told what is at work.

    Raises
    ------
    ValueError
        In one sentence, before anything is written, if the session, a corpus or the file cannot be used.
    """
    spec = replace(session.spec(OFFLINE_LEAD), blocksize=blocksize)
    check_lighter(session)
    config = engine_config(session, spec, live=False)
    doing(str(source))
    with contextlib.closing(FileInput(source, session.stream.samplerate, session.stream.inputs)) as audio:
        audio.check(lambda done, total: progress(0, audio.frames))
        lines: list[dict[str, object]] = []
        engine = inline_band(config, InlinePort, lambda line: lines.append(line), script=script, doing=doing)
        take = new_take(Path(out), config, take_header(config, version(), session.toml()))
        return _run(engine, take, lines, audio.read, audio.frames, progress)


def check_lighter(session: Session) -> None:
    """Build each agent in every lighter way to play that its entry lists, as it would be should it come to that.

    Raises
    ------
    ValueError
        In one sentence that names the key, if an option, a model or a corpus cannot be used.
    """
    for agent in session.agents:
        for number, entry in enumerate(agent.lighter, 1):
            key = f"agents.{agent.name}.lighter[{number}]"
            try:
                [way] = lighter_ways(session, agent.model_copy(update={"lighter": (entry,)}))
            except ValueError as error:
                raise ValueError(str(error).replace(f"agents.{agent.name}.", f"{key}.", 1)) from None
            channels = int(way.options["channels"])
            try:
                build_agent(AgentConfig(agent.name, agent.kind, channels, dict(way.options), agent.listens))
            except ValueError as error:
                raise ValueError(f"{session.path or 'the session'}: {key}: {error}") from None


def read_take(folder: str | os.PathLike[str]) -> TakeReader:
    """Read a take of anybody's, and refuse one that nobody can have played.

    Raises
    ------
    ValueError
        In one sentence that names the file.
    """
    from bridge.recorder import LOG, TakeReader

    take = TakeReader(folder)
    log = take.folder / LOG
    if not 8000 <= take.samplerate <= 192_000:
        raise ValueError(f"{log}: its samplerate is {shown(take.samplerate)}; 8000 to 192000 are allowed")
    if "engine" in take.header:
        with _sense_in(log, "read"):
            _check_bounds(decode(EngineConfig, take.header["engine"]), take)
    for line in take.tempo:
        if line.tempo is not None and not SLOWEST_BPM <= line.tempo <= FASTEST_BPM:
            words = f"its tempo is {shown(float(line.tempo))}; {SLOWEST_BPM:g} to {FASTEST_BPM:g} are allowed"
            raise ValueError(f"{log}, the tempo of bar {line.bar + 1}: {words}; was it edited?")
    return take


def replay(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Progress = lambda done, total: None,
    doing: Doing = lambda what: None,
    own: bool = False,
) -> Rendered:
    """Play a take again from its input and its lines, and write it into ``out``.

    Its stems are not read for it; they are compared with the new ones in the end. A take may be anybody's, so it can
    name the kinds of agent that a session can, and no others, unless it is our ``own``: of a benchmark's agents.

    Raises
    ------
    ValueError
        In one sentence, if the take cannot be read, or makes no sense.
    """
    from bridge.recorder import TakeReader
    from realtime.replay import ForcedTiming, ReplayPort, Script

    doing(str(folder))
    take = TakeReader(folder)
    if "engine" not in take.header:
        raise ValueError(f"{take.folder}: its first line has no engine; was it recorded by another program?")
    with _sense_in(take.folder):
        config = decode(EngineConfig, take.header["engine"])
        _check_bounds(config, take)
        if not own:
            _check_kinds(config)
        config = replace(config, spec=replace(config.spec, blocksize=OFFLINE_BLOCKSIZE))
        forced = Script.read(take.lines)
        config = _as_admitted(config, forced)
        _check_requests(take)
        lines: list[dict[str, object]] = []
        engine = inline_band(
            config,
            lambda runner, budget: ReplayPort(runner, forced),
            lambda line: lines.append(line),
            timing=ForcedTiming(forced),
            script=forced.commands,
            doing=doing,
        )
        heard = take.input(OFFLINE_BLOCKSIZE)
        again = new_take(Path(out), config, {key: take.header[key] for key in take.header if key not in _FRESH})
        done = _run(engine, again, lines, lambda frames: next(heard), take.frames, progress)
        if done.interrupted:
            return done
        made = TakeReader(done.folder)
        stems = verdicts(take, made)
        return replace(done, stems=stems, notes=tuple(_differences(take, made, stems)))


def _check_kinds(config: EngineConfig) -> None:
    """Refuse a class of the take's choice: to build one is to run it."""
    for part in config.parts:
        if part.agent.kind not in AGENTS:
            raise ValueError(
                f"its agent {part.agent.name!r} is of kind {shown(part.agent.kind)}; there are "
                f"{', '.join(sorted(AGENTS))}; was it edited?"
            )


def _as_admitted(config: EngineConfig, script: Script) -> EngineConfig:
    """Return the band as it played: an agent that did not fit the machine went on in a lighter way."""
    options = {command.target: json.loads(command.name) for _, command in script.commands if command.do == "lighter"}
    parts = [
        replace(part, agent=replace(part.agent, options=options.get(part.agent.name, part.agent.options)))
        for part in config.parts
    ]
    if not all(isinstance(part.agent.options, dict) for part in parts):
        raise ValueError("a 'lighter' command without a table of options; was it edited?")
    return replace(config, parts=tuple(parts))


def _check_bounds(config: EngineConfig, take: TakeReader) -> None:
    """Refuse what no session can say: a take's first line may be anybody's, and would be worked at for ever."""
    spec, timelines = config.spec, config.tempo_map.timelines
    bounds: list[tuple[str, float | Fraction, float, float]] = [
        *(
            ("samplerate", rate, take.samplerate, take.samplerate)
            for rate in (spec.samplerate, *(timeline.samplerate for timeline in timelines))
        ),
        ("inputs", spec.inputs, 1, 64),
        ("outputs", spec.outputs, 1, 64),
        ("lead", spec.lead, 0, 65_536),
        ("latency", spec.latency, 0, 192_000),
        ("number of agents", len(config.parts), 0, 32),
        ("longest span in seconds", config.longest_span_seconds, 0, 600),
        ("first bar", config.first_bar, -1_000_000, 1_000_000),
        ("monitor's delay", config.monitor_delay_frames, 0, 1_000_000),
        ("number of tempi", len(timelines), 1, 10_000),
        *(("tempo", timeline.tempo, SLOWEST_BPM, FASTEST_BPM) for timeline in timelines),
    ]
    for part in config.parts:
        bounds.append((f"channels of agent {part.agent.name!r}", part.agent.channels, 1, 64))
        if part.grid_beats:
            bounds.append((f"grid of agent {part.agent.name!r} in beats", part.grid_beats, 1 / 8, 128))
    for what, value, least, most in bounds:
        if not least <= value <= most:
            raise ValueError(f"its {what} is {shown(value)}; {least:g} to {most:g} are allowed; was it edited?")


def _check_requests(take: TakeReader) -> None:
    """Refuse requests that knew of the future: an agent would listen to it for ever."""
    for request in take.requests:
        if request.context_end > take.frames + 10 * take.samplerate:
            raise ValueError(
                f"agent {request.agent!r} was asked for bar {request.bar + 1} with what was heard up to frame "
                f"{shown(request.context_end)}, and the take has {take.frames} frames; was it edited?"
            )


@contextlib.contextmanager
def _sense_in(folder: Path, what: str = "replayed") -> Iterator[None]:
    """Put into words what comes of a take whose lines are right one by one and make no sense together."""
    try:
        yield
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder} cannot be {what}: {error}") from None
    except (ArithmeticError, LookupError, TypeError, AttributeError, AssertionError, StopIteration) as error:
        words = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder} cannot be {what}: its lines make no sense together ({type(error).__name__}: {words}); "
            "was it edited, or recorded by another version?"
        ) from None


_FRESH = ("type", "version", "inputs", "outputs", "stems")


def _run(
    engine: Engine,
    take: Any,
    lines: list[dict[str, object]],
    read: Callable[[int], Block],
    frames: int,
    progress: Progress,
) -> Rendered:
    """Drive an engine over ``frames`` of input into a take. Whatever ends it early, what there is is kept."""
    from realtime.stream import OfflineStream

    tap, spec, faults = Tap(take, engine.memory), engine.spec, _Faults()
    every = max(1, spec.samplerate // 2)
    begin, interrupted = time.perf_counter(), False

    def keep() -> None:
        tap.mark()
        while lines:
            faults.see(lines[0])
            take.log(lines[0])
            del lines[0]
        tap.drain()
        engine.stopped = engine.stopped or bool(take.fault)  # what cannot be kept need not be made

    def after_block(done: int) -> None:
        if done // every != (done - spec.blocksize) // every or done == frames:
            keep()
            progress(done, frames)
        engine.stopped = engine.stopped or wish.felt

    with Wish() as wish:  # it ends between two blocks: in the middle, files would differ in what they have of it
        try:
            OfflineStream(spec, read, frames, lambda block: None, after_block).run(engine)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            keep()
            made = take.close(counters=engine.summary())  # up to the last whole block, in all files
    interrupted = interrupted or (wish.felt and made < frames)
    seconds = time.perf_counter() - begin
    return Rendered(take.folder, made, seconds, spec.samplerate, take.fault, interrupted, faults.sentences())


class _Faults:
    """What agents failed at, in words for whoever wonders why a stem went down the ladder."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def see(self, line: Mapping[str, Any]) -> None:
        """Look at a line of the take."""
        if line["type"] == "reply" and line["fault"] and line["fault"] != SUPERSEDED:
            self._count[line["agent"]] = self._count.get(line["agent"], 0) + 1
            self._first.setdefault(line["agent"], f"first in bar {line['bar'] + 1}: {line['fault']}")

    def sentences(self) -> tuple[str, ...]:
        """Return a sentence for each agent that failed."""
        return tuple(
            f"agent {agent!r} failed {count} time{'s' * (count > 1)}, {self._first[agent]}"
            for agent, count in sorted(self._count.items())
        )


def verdicts(original: TakeReader, again: TakeReader) -> dict[str, str]:
    """Say of every stem whether a replay gave the same bits, as :attr:`Rendered.stems` does."""
    whole = original.end is not None and original.end.frames == original.frames
    recorded = original.end.stems if original.end is not None and whole else {}
    found = {}
    for name in original.stems:
        kept = original.stem_hash(name) if original.has(name) else ""
        truth = recorded.get(name) or kept
        if truth != again.stem_hash(name):
            found[name] = "different" if truth else "unknown"
        else:
            found[name] = "identical" if kept in ("", truth) else "changed"
    return found


def _differences(original: TakeReader, again: TakeReader, stems: Mapping[str, str]) -> Iterator[str]:
    """Say in sentences which stems are not as they were, from where on, and what is missing of the take."""
    from bridge.recorder import LOG, stem_file

    recorded = original.end.stems if original.end is not None else {}
    for name, verdict in stems.items():
        file = original.folder / stem_file(name)
        if verdict == "changed" or (
            verdict == "different" and original.has(name) and recorded.get(name, original.stem_hash(name)) !=
            original.stem_hash(name)
        ):  # fmt: skip
            yield f"{file} was changed since it was recorded"
        elif verdict == "different" and (frame := _first_difference(original, again, name)) is not None:
            seconds = frame / original.samplerate
            yield f"{name} is different from frame {frame} ({seconds:.1f} s) on; were lines taken out of the log?"
    if any(verdict in ("different", "changed") for verdict in stems.values()):
        if original.end is None:
            frame = _last_told(original)
            yield (
                f"{original.folder / LOG} stops after {len(original.lines)} lines, at frame {frame} "
                f"({frame / original.samplerate:.1f} s) of {original.frames}; it has no last line"
            )
        elif original.end.frames != original.frames:
            yield f"{original.folder}: {original.end.frames} frames were recorded, its files hold {original.frames}"


def _first_difference(original: TakeReader, again: TakeReader, name: str) -> int | None:
    """Return the first frame of a stem that is different, ``None`` where there is no sound to compare."""
    import numpy as np

    if not original.has(name):
        return None
    at = 0
    for one, other in zip(original.stem_blocks(name), again.stem_blocks(name), strict=False):
        frames = min(len(one), len(other))
        different = np.flatnonzero((one[:frames] != other[:frames]).any(axis=1))
        if len(different):
            return at + int(different[0])
        at += frames
    return at


def _last_told(take: TakeReader) -> int:
    """Return the last frame of which the log tells that it was reached."""
    told = (line.get(key) for line in take.lines for key in ("posted", "arrived") if line["type"] != "span")
    return max((frame for frame in told if type(frame) is int), default=0)
