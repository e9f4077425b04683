"""What `sideman` understands on the command line, and the words it answers with.

Whatever is wrong with what a user gave arrives here as a :class:`ValueError` of one sentence; it is printed, and the
exit code is 2. What is needed by one command only is imported there: `sideman --help` has to be quick.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bridge.app import Live
    from bridge.gate import Gate
    from bridge.offline import Rendered
    from bridge.session import Session

app = typer.Typer(
    name="sideman",
    help="A musical partner in real time: it listens, keeps the bar and answers on the downbeat.",
    epilog="Start with `sideman demo`. With recordings of your own: `sideman corpus build`, `sideman session new`, "
    "`sideman play`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: it takes a third of the time
)
corpus_app = typer.Typer(
    help="Make a corpus, recordings that agents re-order, or look into one.", no_args_is_help=True
)
session_app = typer.Typer(help="Write a session file to start from.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")
app.add_typer(session_app, name="session")

SessionFile = Annotated[Path, typer.Argument(metavar="SESSION", help="The session: a session.toml.")]
Bpm = Annotated[
    str | None,
    typer.Option("--bpm", metavar="BPM", help="Tempo in quarter notes per minute, such as 128, 92.5 or 240/7."),
]
MeterOption = Annotated[
    str | None, typer.Option("--meter", metavar="METER", help="Time signature, such as 4/4, 3/4 or 7/8.")
]
Downbeat = Annotated[
    float | None,
    typer.Option("--downbeat", metavar="SECONDS", help="Where in the recording the first downbeat is."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="NUMBER", help="The same number, the same choices; another, others."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="Part of the sound device's name (see `sideman devices`); null for no sound."
    ),
]
Lead = Annotated[
    int,
    typer.Option("--lead", metavar="FRAMES", help="How far ahead to mix; more is safer, 0 measures this machine."),
]
Seconds = Annotated[
    float, typer.Option("--seconds", metavar="SECONDS", help="Stop after so long; 0 plays until Ctrl-C.")
]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Draw the arrangement and write a report.")]

DIFFERENT, MISUSED, INTERRUPTED = 1, 2, 130
IMPORTING_SECONDS = 0.01
REPORT_SECONDS = 20.0
STATUS_SECONDS = 60.0
"""How often a session that plays says where it is, where there is no terminal to show it all the time."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake ends in one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may hold anything
    for name in ("SIGTERM", "SIGHUP"):  # being told to go, or the terminal being closed, is a Ctrl-C
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app(arguments, prog_name="sideman")
    except OSError as problem:
        _refuse(_disk_words(problem))
    except MemoryError:
        _refuse("there is not enough memory for this; close other programs, or give shorter material")
    except ValueError as mistake:
        _refuse(str(mistake))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
        sys.exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise a Ctrl-C; in the middle of an import, where it can be lost, try again a moment later."""
    at = frame
    while at is not None and hasattr(signal, "setitimer"):
        if at.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))  # which may be held, or heard
            signal.setitimer(signal.ITIMER_REAL, IMPORTING_SECONDS)  # by another by then
            return
        at = at.f_back
    raise KeyboardInterrupt


def _refuse(sentence: str) -> None:
    complain(sentence)
    sys.exit(MISUSED)


_SLIPS = {  # by the name of the error: not every system has every number
    "ENOSPC": "the disk is full; make room, or choose a folder on another disk",
    "EDQUOT": "the disk quota is used up; make room, or choose a folder on another disk",
    "EFBIG": "it may not grow further (a limit of this disk or of ulimit -f); choose a folder on another disk",
    "EROFS": "its disk is read-only; choose a folder on another disk",
    "EACCES": "that is not permitted; choose a place where you may read and write",
    "EPERM": "that is not permitted; choose a place where you may read and write",
    "ENAMETOOLONG": "its name is too long; choose a shorter one",
    "ENOTDIR": "a file stands where a folder is needed; is the path right?",
    "EISDIR": "it is a folder, but a file is needed; is the path right?",
    "ENOENT": "there is no such file or folder, and none can be made; is the path right?",
    "EEXIST": "it exists already; choose another name",
    "EMFILE": "too many files are open; raise `ulimit -n`",
}


def _disk_words(problem: OSError) -> str:
    """Say in one sentence what the system refused, of which file, and what helps."""
    import errno

    reason = _SLIPS.get(errno.errorcode.get(problem.errno or 0, ""), problem.strerror or str(problem))
    return f"{problem.filename2 or problem.filename or 'a file'}: {reason}"  # of two, the second is written


# Making takes


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder for the take; demo-take if not given.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Play with the band yourself, on a sound device.")] = False,
    play: Annotated[
        bool, typer.Option("--play/--no-play", help="Let the mix be heard, if there is a device.")
    ] = True,
    device: DeviceOption = None,
    lead: Lead = 0,
    seconds: Seconds = 0.0,
) -> None:
    """Render the built-in performance with its band, draw it and play it; --live: you are the performer.

    The folder is left with a stem for each instrument, the mix, a picture of who played what and when, and a report.
    """
    from bridge.demo import demo_session

    if not live and (device is not None or lead or seconds):
        raise ValueError("--device, --lead and --seconds are for playing live: add --live, or leave them out")
    folder = out or free_folder(Path("demo-take"))
    _refuse_taken(folder)
    with bar("building the corpora") as progress:
        session, player = demo_session(
            folder / "corpora",
            lambda share, what: progress(round(1000 * share), 1000),
            "live.toml" if live else "session.toml",
        )
    if live:
        _play(_on_device(session, device), folder, lead, seconds)
        return
    with _gate("bridge.offline") as gate:
        rendered = _render(gate, session, player, folder)
    _report(rendered)
    if play:
        _play_mix(folder)


@app.command()
def render(
    session: SessionFile,
    source: Annotated[
        Path,
        typer.Option("--input", metavar="FILE", help="The recording to play with: WAV, FLAC, AIFF, OGG or MP3."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for the take; nothing in it is overwritten.")
    ],
    bpm: Bpm = None,
    meter: MeterOption = None,
    downbeat: Downbeat = None,
    seed: Seed = None,
    blocksize: Annotated[
        int, typer.Option(metavar="FRAMES", help="Frames computed at a time; the sound does not depend on it.")
    ] = 1024,
    report: Report = True,
) -> None:
    """Play a session with a recording as the player, exactly as it would be played live.

    Each agent's stem is as long as the recording, and starts with it.
    """
    if not 1 <= blocksize <= 8192:
        raise ValueError(f"--blocksize {blocksize}: a block has 1 to 8192 frames; 1024 is a good size for files")
    with _gate("bridge.offline") as gate:
        rendered = _render(gate, _session(session, bpm, meter, downbeat, seed), source, out, blocksize)
    _report(rendered, draw=report)


@app.command()
def replay(
    take: Annotated[Path, typer.Argument(metavar="TAKE", help="Folder of a take.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder for the new take; TAKE/replay if not given."),
    ] = None,
) -> None:
    """Make the sound of a take again from its input and its log, bit for bit.

    The old stems are not read for it, only compared in the end: if one is different, the exit code is 1. The corpora
    must be where they were.
    """
    from bridge import app

    folder = out or free_folder(take / "replay")
    with _gate("bridge.offline") as gate, bar("replaying") as progress:
        rendered = app.replay(gate, take, folder, progress=progress)
    for name, verdict in rendered.stems.items():
        say(f"  {name}: {verdict}")
    say(f"{folder}: {rendered.realtime_factor:.0f} x real time")
    _tell((*rendered.faults, *rendered.notes))
    _end(rendered)
    if any(verdict in ("different", "changed") for verdict in rendered.stems.values()):
        raise typer.Exit(DIFFERENT)


@app.command("report")
def report_again(
    take: Annotated[Path, typer.Argument(metavar="TAKE", help="Folder of a take.")],
) -> None:
    """Draw a take and write its report again: what was played, and how the time went."""
    from rich.console import Console

    from bridge.gate import time_for

    with _gate("bridge.offline") as gate, bar("drawing") as progress:
        gate.ask("take", take, seconds=REPORT_SECONDS + time_for(take), folder=str(take))
        progress(0, 1)
        seconds = REPORT_SECONDS + 20 * time_for(take)
        drawn = gate.ask("report", take, seconds=seconds, folder=str(take), columns=_wide(Console()).width)
    for line in drawn["table"].splitlines():
        say("".join(c for c in line if c.isprintable()))
    say(f"stems in {take / 'stems'}, picture in {drawn['picture']}")


@app.command()
def play(
    session: SessionFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder for the take; one named by date and time if not given."),
    ] = None,
    bpm: Bpm = None,
    meter: MeterOption = None,
    downbeat: Annotated[
        float | None,
        typer.Option("--downbeat", metavar="SECONDS", help="When bar 1 starts, in place of the count-in."),
    ] = None,
    seed: Seed = None,
    device: DeviceOption = None,
    lead: Lead = 0,
    seconds: Seconds = 0.0,
    report: Report = True,
) -> None:
    """Play live: sideman listens, keeps the bar and answers. Ctrl-C ends, and keeps the take."""
    played = _on_device(_session(session, bpm, meter, downbeat, seed), device)
    _play(played, _take_folder(played, out), lead, seconds, report)


# Looking around


@app.command()
def osc() -> None:
    """List the OSC addresses of a session that plays (`on = true` in [osc]), as Markdown."""
    from bridge.osctable import markdown

    typer.echo(markdown())


@app.command()
def devices() -> None:
    """List the sound devices that a session can name."""
    from realtime.devices import list_devices

    found = list_devices()
    for device in found:
        say(f"  {device.name}, {device.api}: {device.inputs} in, {device.outputs} out, {device.samplerate:g} Hz")
    if not found:
        say("no sound device; connect one, or start an audio server (JACK, PipeWire), and try again")


@app.command()
def calibrate(
    session: Annotated[
        Path | None,
        typer.Argument(metavar="SESSION", help="Measure with its device, rate and block; usual ones if not given."),
    ] = None,
    device: DeviceOption = None,
    output: Annotated[int, typer.Option("--output", metavar="N", help="Output to play on, from 1.")] = 1,
    source: Annotated[
        int | None,
        typer.Option("--input", metavar="N", help="The device's input to listen to; the session's if not given."),
    ] = None,
    level: Annotated[
        float, typer.Option("--level", metavar="DB", help="How loud the chirp is, in decibels below full scale.")
    ] = -18.0,
    takes: Annotated[int, typer.Option("--takes", metavar="NUMBER", help="How often the device is opened anew.")] = 3,
) -> None:
    """Measure how long sound takes from the output back to the input, and keep it for sessions with that device.

    Connect the output to the input with a cable, or put the microphone before the loudspeaker: a short sweep is
    played some times. A session whose latency is 0 then shifts what it hears by what was measured.
    """
    from bridge import app
    from bridge.roundtrips import state_file
    from bridge.session import Session

    measured = _on_device(Session.load(session) if session else Session(), device)
    if source is not None:
        if not 1 <= source <= 64:
            raise ValueError(f"--input {source}: a device's inputs count from 1 to 64")
        stream = measured.stream.model_copy(update={"inputs": (source,)})
        measured = measured.model_copy(update={"stream": stream})
    found, note = app.calibrate(measured, say, level_db=level, takes=takes, output=output)
    ms = 1000 * found.frames / found.samplerate
    what = f"'{found.device}' at {found.samplerate} Hz in blocks of {found.blocksize}"
    say(f"{what}: {found.frames} frames ({ms:.2f} ms), measured {found.exact_frames:.2f}")
    if note:
        complain(note)
    say(f"kept in {state_file()}; sessions with latency = 0 use it from now on")


@app.command()
def models(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="One model's folder; all built-in ones if not given.")
    ] = None,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="What to run them on: auto, cpu, cuda or tensorrt.")
    ] = "auto",
) -> None:
    """Check the neural models: run each once, compare with what it should give, and say what it runs on."""
    from bridge.gate import GPU_SECONDS, time_for
    from bridge.session import MODELS

    folders = [folder] if folder else sorted(card.parent for card in MODELS.glob("*/card.toml"))
    with _gate() as gate:
        for each in folders:
            seconds = time_for(each) + (GPU_SECONDS if provider != "cpu" else 0)
            model = gate.ask("model", each, seconds=seconds, folder=str(each), provider=provider)
            what = f"{model['name']} {model['version']}: {model['task']}"
            say(f"  {what}; {model['samplerate']} Hz, runs on {model['provider']}")
    if not folders:
        say(f"no models in {MODELS}")


@corpus_app.command("build")
def corpus_build(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Recordings: WAV, FLAC, AIFF, OGG or MP3.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder of the corpus.")],
    bpm: Bpm = None,
    meter: MeterOption = None,
    downbeat: Annotated[
        float,
        typer.Option("--downbeat", metavar="SECONDS", help="Where in each file the first downbeat is."),
    ] = 0.0,
    units: Annotated[
        str,
        typer.Option(metavar="KIND", help="Cut by beat, by onset, or auto: by beat if --bpm is given."),
    ] = "auto",
    labels: Annotated[
        int, typer.Option(metavar="NUMBER", help="How many kinds of sound the units are sorted into.")
    ] = 16,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the corpus; its folder's if not given.")] = "",
    licence: Annotated[
        str, typer.Option(metavar="TEXT", help="What the material may be used for, in your words.")
    ] = "unknown",
) -> None:
    """Cut recordings into short units and describe how each sounds, so that an agent can re-order them.

    A corpus that is in the folder already is replaced.
    """
    if units not in ("auto", "beat", "onset"):
        raise ValueError(f"--units {units!r}: cut by beat or onset, or auto: by beat if --bpm is given")
    if units == "beat" and bpm is None:
        raise ValueError("--units beat: to cut by the beat, give --bpm, the tempo of the recordings; or cut by onset")
    if not 1 <= labels <= 1024:
        raise ValueError(f"--labels {labels}: the units are sorted into 1 to 1024 kinds of sound; 16 is usual")

    with _gate() as gate, bar("building") as progress:
        corpus = gate.ask(
            "build",
            out,
            seconds=None,
            hear=lambda said: progress(round(1000 * said["share"]), 1000),
            stoppable=True,
            files=[str(file) for file in files],
            out=str(out),
            name=name,
            bpm=bpm,
            meter=meter or "4/4",
            downbeat_seconds=str(downbeat),
            segmentation=units,
            labels=labels,
            licence=licence,
        )
    say(f"{out}: {corpus['units']} units by the {corpus['segmentation']}, {corpus['seconds']:.1f} s of sound")


@corpus_app.command("info")
def corpus_info(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a corpus.")],
) -> None:
    """Say what is in a corpus, and check that its recordings are as they were when it was built."""
    from bridge.gate import time_for

    with _gate() as gate:
        corpus = gate.ask("corpus", folder, seconds=time_for(folder), folder=str(folder), verify=True)
    tempo = f"{float(Fraction(corpus['tempo'])):g} bpm, {corpus['meter']}" if corpus["tempo"] else "no tempo"
    cut = f"{corpus['units']} units by the {corpus['segmentation']}"
    say(f"{corpus['name']}: {cut}, {corpus['seconds']:.1f} s, {tempo}")
    say(f"  licence: {corpus['licence']}; labels: {corpus['labels']}; digest {corpus['digest'][:12]}")
    for file, frames, samplerate, channels in corpus["sources"]:
        say(f"  {file}: {frames / samplerate:.1f} s, {samplerate} Hz, {_count(channels, 'channel')}")


@session_app.command("new")
def session_new(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; session.toml if not given.")] = Path(
        "session.toml"
    ),
    corpus: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="A corpus to play with; once for each agent.")
    ] = None,
    bpm: Bpm = None,
    meter: MeterOption = None,
) -> None:
    """Write a session.toml to start from, with a note beside every key.

    Tempo and meter are those of the first corpus cut by the beat, unless they are given.
    """
    import os

    from bridge.session import AgentTable, Session

    if path.exists():
        raise ValueError(f"{path} exists; a new session does not overwrite anything; choose another name")
    agents: list[AgentTable] = []
    grid: dict[str, str | float] = {}
    for folder in corpus or []:
        if not (folder / "corpus.toml").is_file():
            raise ValueError(f"{folder} is no corpus (it has no corpus.toml); make one with `sideman corpus build`")
        grid = grid or _corpus_grid(folder)
        relative = os.path.relpath(folder.resolve(), path.resolve().parent)
        name = _agent_name(folder.resolve().name, {agent.name.lower() for agent in agents})
        agents.append(AgentTable(name=name, kind="corpus", corpus=relative))
    grid |= {key: value for key, value in (("bpm", bpm), ("meter", meter)) if value is not None}
    if str(grid.get("bpm", "")).isdecimal():
        grid["bpm"] = int(grid["bpm"])
    text = Session.template(agents, **grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    say(f"{path}: edit it, then `sideman play {path}`, or `sideman render {path} --input FILE --out FOLDER`")


def _corpus_grid(folder: Path) -> dict[str, str | float]:
    """Return tempo and meter that a corpus was played in; nothing for one cut by the onset."""
    from bridge.gate import time_for

    with _gate() as gate:
        found = gate.ask("corpus", folder, seconds=time_for(folder), folder=str(folder), verify=False)
    return {"bpm": found["tempo"], "meter": found["meter"]} if found["tempo"] else {}


def _agent_name(folder: str, taken: set[str]) -> str:
    """Make a name that a session takes, and that no other agent has, of a folder's."""
    import re

    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder).strip("-")[:28] or "corpus"
    found, number = name, 2
    while found.lower() in taken | {"input"}:
        found, number = f"{name}-{number}", number + 1
    return found


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure this machine: `sideman bench [SUITE] [--quick] [--json FILE]`.

    The suites are core, engine, ladder, faults, drift, memory, start and bridge; all of them if none is named.
    --quick takes less than a minute for each. ok says whether a figure reaches its goal.
    """
    import subprocess

    tool = Path(__file__).resolve().parent.parent / "tools" / "bench.py"
    raise typer.Exit(subprocess.run([sys.executable, str(tool), *context.args], check=False).returncode)


# Saying things


def say(text: str) -> None:
    """Print one line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(sentence: str) -> None:
    """Print one sentence about what is wrong, on one line of the error output."""
    sys.stderr.write(f"sideman: {' '.join(sentence.split())}\n")
    sys.stderr.flush()


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; nothing where there is none, or before half a second has passed."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console, begin = Console(stderr=True), time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, visible=False)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=time.monotonic() - begin > 0.5)

        yield update


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _wide(console: Console) -> Console:
    """Return a console wide enough for a table where nobody has set a width: a file, a pipe."""
    if not console.is_terminal:
        console.width = max(console.width, 110)
    return console


# Doing things


def free_folder(folder: Path) -> Path:
    """Return ``folder``, or the first of ``folder-2``, ``folder-3``, ... that does not exist."""
    found, number = folder, 2
    while found.exists():
        found, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return found


def _refuse_taken(folder: Path | None) -> None:
    """Refuse the folder of a take before anything is built or sounds; writing it is refused again by the recorder."""
    if folder is not None and (folder / "take.jsonl").exists():
        raise ValueError(f"{folder} already holds a take (take.jsonl); choose another folder, or move that one away")


def _session(path: Path, bpm: str | None, meter: str | None, downbeat: float | None, seed: int | None) -> Session:
    from bridge.session import Session, override

    session = override(Session.load(path), bpm=bpm, meter=meter, downbeat_seconds=downbeat, seed=seed)
    missing = [agent.corpus for agent in session.agents if agent.corpus and not session.locate(agent.corpus).is_dir()]
    if missing and path.resolve().parent == Path(__file__).resolve().parent / "demo":
        raise ValueError(
            f"{path}: its corpora (the first is {missing[0]}) are not built where it lies; `sideman demo` builds and "
            "renders them, `sideman demo --live` plays with them"
        )
    return session


def _on_device(session: Session, device: str | None) -> Session:
    if device is None:
        return session
    return session.model_copy(update={"stream": session.stream.model_copy(update={"device": device})})


def _take_folder(session: Session, out: Path | None) -> Path | None:
    if not session.take.record:
        return None
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    return out or free_folder(session.locate(session.take.folder) / stamp)


def _gate(*modules: str) -> Gate:
    """Return a gate whose child is on its way: it imports ``modules`` while the session is read here."""
    from bridge import app

    gate = app.gate()
    gate.start(*modules)
    return gate


def _render(gate: Gate, session: Session, source: Path, out: Path, blocksize: int = 1024) -> Rendered:
    from bridge import app

    with bar("rendering") as progress:
        return app.render(gate, session, source, out, blocksize=blocksize, progress=progress)


def _report(rendered: Rendered, draw: bool = True) -> None:
    """Print the table of a take, draw it, and say where everything is."""
    _show(rendered.folder, rendered.realtime_factor, draw and not rendered.fault)
    _tell(rendered.faults)
    _end(rendered)


def _show(folder: Path, realtime_factor: float | None, draw: bool) -> None:
    from rich.console import Console

    from bridge import report
    from bridge.recorder import TakeReader

    take = TakeReader(folder)
    _wide(Console()).print(report.table(take, realtime_factor))
    where = f"stems in {folder / 'stems'}"
    if draw:
        with bar("drawing") as progress:
            progress(0, 1)
            try:
                picture, _ = report.write(take, realtime_factor)
            except OSError as problem:
                problem.filename = problem.filename or str(folder / "arrangement.png")
                raise
        where += f", picture in {picture}"
    say(where)


def _tell(faults: Sequence[str]) -> None:
    """Say what agents failed at: their stems went down the ladder, and whoever listens should know why."""
    for sentence in faults:
        complain(sentence)


def _end(rendered: Rendered) -> None:
    if rendered.fault:
        raise ValueError(rendered.fault)
    if rendered.interrupted:
        complain(f"stopped; {rendered.frames / rendered.samplerate:.1f} s are kept in {rendered.folder}")
        raise typer.Exit(INTERRUPTED)


def _play_mix(folder: Path) -> None:
    from realtime.devices import DeviceError, list_devices, play_sound
    from realtime.soundfiles import read

    try:
        if not any(device.outputs for device in list_devices()):
            return
        say("playing the mix; Ctrl-C stops")
        play_sound(*read(folder / "mix.wav"))
    except DeviceError:
        return  # nothing to hear it on: the files are there
    except KeyboardInterrupt:
        return


# Playing live


def _play(session: Session, folder: Path | None, lead: int, seconds: float, draw: bool = True) -> None:
    """Play until Ctrl-C; then close the take and show it."""
    from bridge.app import Live

    if not 0 <= lead <= 65536:
        raise ValueError(f"--lead {lead}: 0 (chosen now) to 65536 frames are mixed ahead; 512 is usual")
    if not seconds >= 0:
        raise ValueError(f"--seconds {seconds:g}: give a length, or 0 to play until Ctrl-C")
    _refuse_taken(folder)
    if any(agent.lighter for agent in session.agents):
        _check_ways(session)
    live = Live(session, folder, say, lead=lead, warn=complain)
    spec = live.config.spec
    ahead = f"lead {spec.lead} frames ({1000 * spec.lead / spec.samplerate:.0f} ms)"
    rights = "with realtime rights" if live.realtime else "without realtime rights"
    say(f"{session.session.name}: {spec.samplerate} Hz, blocks of {spec.blocksize}, {ahead}, {rights}")
    if live.latency.sentence:
        say(f"what is heard is shifted by {live.latency.frames} frames: {live.latency.sentence}")
    with live:
        if _is_mute(live):
            complain("no sound goes in or out; bars are counted on, and sound starts when the device is there")
        with suppress(KeyboardInterrupt):
            _follow(live, seconds)
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # closing the take is quick, and not to be cut off
    signal.signal(signal.SIGINT, heard)
    if folder is not None and live.closed_frames is not None:
        say(f"{folder}: {live.closed_frames / spec.samplerate:.1f} s kept")
        _show(folder, None, draw=draw)
    if live.failed:
        raise typer.Exit(MISUSED)


def _check_ways(session: Session) -> None:
    """Refuse lighter ways to play that cannot be used, before there is anything to be made lighter."""
    from bridge.gate import GPU_SECONDS

    with _gate("bridge.offline") as gate:
        path = session.path and str(session.path)
        gate.ask("ways", path or "the session", seconds=GPU_SECONDS, session=session.toml(), path=path)


def _is_mute(live: Live) -> bool:
    """Whether there is to be sound, but the device cannot be opened."""
    from bridge.session import NO_DEVICE
    from realtime.stream import FAILED

    return live.session.stream.device != NO_DEVICE and live.status().device["state"] == FAILED


def _follow(live: Live, seconds: float) -> None:
    """Watch a session until it ends: all the time on a terminal, a line a minute in a log."""
    from rich.console import Console
    from rich.live import Live as Screen

    from bridge.screen import View

    console, view, spoken = Console(), View(live), time.monotonic()
    with Screen(console=console, auto_refresh=False, transient=True) as screen:
        while live.poll():
            status, now = live.status(), time.monotonic()
            if seconds and status.frame >= seconds * live.config.spec.samplerate:
                return
            if console.is_terminal:
                screen.update(view.table(status), refresh=True)
            elif now - spoken > STATUS_SECONDS:
                spoken = now
                say(view.line(status))
            time.sleep(0.1)
