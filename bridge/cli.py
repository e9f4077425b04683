"""What `sideman` understands on the command line, and the words it answers with.

Whatever is wrong with what a user gave arrives here as a :class:`ValueError` of one sentence; it is printed, and the
exit code is 2. What is needed by one command only is imported there: `sideman --help` has to be quick.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bridge.app import Live, Rendered
    from bridge.session import Session

app = typer.Typer(
    name="sideman",
    help="A musical partner in real time: it listens, keeps the bar and answers on the downbeat.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
corpus_app = typer.Typer(help="Make and inspect corpora: recordings that agents re-order.", no_args_is_help=True)
session_app = typer.Typer(help="Write session files.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")
app.add_typer(session_app, name="session")

Bpm = Annotated[str | None, typer.Option("--bpm", help="Tempo in quarter notes per minute: 128, 92.5 or 240/7.")]
MeterOption = Annotated[str | None, typer.Option("--meter", help="Meter: 4/4, 3/4, 7/8.")]
Downbeat = Annotated[float | None, typer.Option("--downbeat", help="Seconds from the start to the first downbeat.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Every chance is drawn from it.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the take; one that holds a take is refused.")]

MISUSED, INTERRUPTED = 2, 130


def run() -> None:
    """Run the command; a user's mistake ends in one sentence and exit code 2."""
    try:
        app()
    except ValueError as mistake:
        sys.stderr.write(f"sideman: {mistake}\n")
        sys.exit(MISUSED)
    except KeyboardInterrupt:
        sys.stderr.write("sideman: stopped\n")
        sys.exit(INTERRUPTED)


# Making takes


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the take.")] = None,
    play: Annotated[bool, typer.Option(help="Play the mix where there is a device.")] = True,
) -> None:
    """Render the built-in performance with its band, draw it, and play it where a device exists."""
    from bridge.demo import demo_session

    folder = out or free_folder(Path("demo-take"))
    with bar("building the corpora") as progress:
        session, player = demo_session(folder / "corpora", lambda share, what: progress(round(1000 * share), 1000))
    rendered = _render(session, player, folder)
    _report(rendered)
    if play:
        _play_mix(folder)


@app.command()
def render(
    session: Annotated[Path, typer.Argument(help="session.toml")],
    source: Annotated[Path, typer.Option("--input", help="What the player plays: WAV, FLAC, AIFF, OGG or MP3.")],
    out: Out,
    bpm: Bpm = None,
    meter: MeterOption = None,
    downbeat: Downbeat = None,
    seed: Seed = None,
    blocksize: Annotated[int, typer.Option(help="Frames at a time; the result does not depend on it.")] = 1024,
    report: Annotated[bool, typer.Option(help="Draw the arrangement and write the report.")] = True,
) -> None:
    """Play a session against a recording, exactly as it would be played live, and write the stems."""
    if not 1 <= blocksize <= 8192:
        raise ValueError(f"--blocksize {blocksize}: a block has 1 to 8192 frames; 1024 is a good size for files")
    _report(_render(_session(session, bpm, meter, downbeat, seed), source, out, blocksize), draw=report)


@app.command()
def replay(
    take: Annotated[Path, typer.Argument(help="Folder of a take.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the new take; TAKE/replay if not given.")
    ] = None,
) -> None:
    """Play a take again from its input and its log; its stems are not read, and come out bit for bit."""
    from bridge.app import replay as replay_take
    from bridge.app import verdicts
    from bridge.recorder import TakeReader

    folder = out or free_folder(take / "replay")
    with bar("replaying") as progress:
        rendered = replay_take(take, folder, progress=progress)
    for name, verdict in verdicts(TakeReader(take), TakeReader(folder)).items():
        say(f"  {name}: {verdict}")
    say(f"{folder}: {rendered.realtime_factor:.0f} x real time")
    _end(rendered)


@app.command()
def play(
    session: Annotated[Path, typer.Argument(help="session.toml")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the take; in the session's folder if not given.")
    ] = None,
    bpm: Bpm = None,
    meter: MeterOption = None,
    downbeat: Downbeat = None,
    seed: Seed = None,
    lead: Annotated[int, typer.Option(help="Frames mixed ahead; 0 chooses.")] = 0,
    seconds: Annotated[float, typer.Option(help="Stop after so long; 0 plays until Ctrl-C.")] = 0.0,
) -> None:
    """Play live: listen, keep the bar, answer; Ctrl-C ends and keeps the take."""
    from bridge.app import Live

    played = _session(session, bpm, meter, downbeat, seed)
    folder = _take_folder(played, out)
    live = Live(played, folder, say, lead=lead)
    spec = live.config.spec
    rights = "with realtime rights" if live.realtime else "without realtime rights"
    say(f"{played.session.name}: {spec.samplerate} Hz, blocks of {spec.blocksize}, lead {spec.lead} frames, {rights}")
    with live:
        try:
            _follow(live, seconds)
        except KeyboardInterrupt:
            say("ending; the take is being closed")
    if folder is not None and live.closed_frames is not None:
        say(f"{folder}: {live.closed_frames / spec.samplerate:.1f} s kept")
    if live.failed:
        raise typer.Exit(MISUSED)


# Looking around


@app.command()
def devices() -> None:
    """List the sound devices."""
    from realtime.io import list_devices

    found = list_devices()
    for device in found:
        say(f"  {device.name}, {device.api}: {device.inputs} in, {device.outputs} out, {device.samplerate:g} Hz")
    if not found:
        say("no sound device; connect one, or start an audio server (JACK, PipeWire), and try again")


@app.command()
def models(
    folder: Annotated[Path | None, typer.Argument(help="One model's folder.")] = None,
    provider: Annotated[str, typer.Option(help="auto, cpu, cuda or tensorrt.")] = "auto",
) -> None:
    """Check the models: card, signature, golden run, and what they would run on."""
    from bridge.session import MODELS
    from realtime.inference import Model

    folders = [folder] if folder else sorted(card.parent for card in MODELS.glob("*/card.toml"))
    for each in folders:
        model = Model.open(each, provider=provider)
        card = model.card
        say(f"  {card.name} {card.version}: {card.task}; {card.samplerate} Hz, runs on {model.provider}")
    if not folders:
        say(f"no models in {MODELS}")


@corpus_app.command("build")
def corpus_build(
    files: Annotated[list[Path], typer.Argument(help="Recordings: WAV, FLAC, AIFF, OGG or MP3.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the corpus.")],
    bpm: Bpm = None,
    meter: MeterOption = None,
    downbeat: Annotated[float, typer.Option("--downbeat", help="Seconds to the first downbeat of each file.")] = 0.0,
    units: Annotated[str, typer.Option(help="beat, onset, or auto: by the beat where --bpm is given.")] = "auto",
    labels: Annotated[int, typer.Option(help="How many labels units are sorted into.")] = 16,
    name: Annotated[str, typer.Option(help="Name of the corpus.")] = "",
    licence: Annotated[str, typer.Option(help="What the material may be used for.")] = "unknown",
) -> None:
    """Cut recordings into units and describe them, so that an agent can play them in a new order."""
    from realtime.clock import Meter
    from realtime.corpus import build

    with bar("building") as progress:
        corpus = build(
            files,
            out,
            name=name,
            bpm=bpm,
            meter=Meter.parse(meter) if meter else Meter(),
            downbeat_seconds=str(downbeat),
            segmentation=units,  # type: ignore[arg-type]
            labels=labels,
            licence=licence,
            progress=lambda share, what: progress(round(1000 * share), 1000),
        )
    say(f"{out}: {len(corpus)} units by the {corpus.segmentation}, {corpus.seconds:.1f} s of sound")


@corpus_app.command("info")
def corpus_info(folder: Annotated[Path, typer.Argument(help="Folder of a corpus.")]) -> None:
    """Say what is in a corpus, and check that its recordings are as they were."""
    from realtime.corpus import load

    corpus = load(folder)
    corpus.verify()
    tempo = f"{float(corpus.tempo):g} bpm, {corpus.meter}" if corpus.tempo else "no tempo"
    say(f"{corpus.name}: {len(corpus)} units by the {corpus.segmentation}, {corpus.seconds:.1f} s, {tempo}")
    say(f"  licence: {corpus.licence}; labels: {len(set(corpus.labels.tolist()))}; digest {corpus.digest[:12]}")
    for source in corpus.sources:
        seconds = source.frames / source.samplerate
        say(f"  {source.file}: {seconds:.1f} s, {source.samplerate} Hz, {source.channels} channels")


@session_app.command("new")
def session_new(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("session.toml"),
    corpus: Annotated[list[Path] | None, typer.Option(help="A corpus; one agent for each.")] = None,
    bpm: Bpm = None,
    meter: MeterOption = None,
) -> None:
    """Write an annotated session.toml to start from."""
    import os

    from bridge.session import AgentTable, Session

    if path.exists():
        raise ValueError(f"{path} exists; a new session does not overwrite anything; choose another name")
    agents = []
    for folder in corpus or []:
        if not (folder / "corpus.toml").is_file():
            raise ValueError(f"{folder} is no corpus (it has no corpus.toml); make one with `sideman corpus build`")
        relative = os.path.relpath(folder.resolve(), path.resolve().parent)
        agents.append(AgentTable(name=folder.resolve().name, kind="corpus", corpus=relative))
    grid = {key: value for key, value in (("bpm", bpm), ("meter", meter)) if value}
    path.write_text(Session.template(agents, **grid), encoding="utf-8")
    say(f"{path}: edit it, then `sideman play {path}`, or `sideman render {path} --input FILE --out FOLDER`")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure this machine: `sideman bench [SUITE] [--quick] [--json FILE]`."""
    import subprocess

    tool = Path(__file__).resolve().parent.parent / "tools" / "bench.py"
    raise typer.Exit(subprocess.run([sys.executable, str(tool), *context.args], check=False).returncode)


# Helpers


def say(text: str) -> None:
    """Print one line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; nothing where there is none, or before a second has passed."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console, begin = Console(stderr=True), time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, visible=False)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=time.monotonic() - begin > 0.5)

        yield update


def free_folder(folder: Path) -> Path:
    """Return ``folder``, or the first of ``folder-2``, ``folder-3``, ... that does not exist."""
    found, number = folder, 2
    while found.exists():
        found, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return found


def _session(path: Path, bpm: str | None, meter: str | None, downbeat: float | None, seed: int | None) -> Session:
    from bridge.session import Session, override

    return override(Session.load(path), bpm=bpm, meter=meter, downbeat_seconds=downbeat, seed=seed)


def _take_folder(session: Session, out: Path | None) -> Path | None:
    if not session.take.record:
        return None
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    return out or free_folder(session.locate(session.take.folder) / stamp)


def _render(session: Session, source: Path, out: Path, blocksize: int = 1024) -> Rendered:
    from bridge.app import render as render_session

    with bar("rendering") as progress:
        return render_session(session, source, out, blocksize=blocksize, progress=progress)


def _report(rendered: Rendered, draw: bool = True) -> None:
    from rich.console import Console

    from bridge import report
    from bridge.recorder import TakeReader

    take = TakeReader(rendered.folder)
    Console().print(report.table(take, rendered.realtime_factor))
    if draw:
        with bar("drawing"):
            picture, _ = report.write(take, rendered.realtime_factor)
        say(f"stems in {rendered.folder / 'stems'}, picture in {picture}")
    _end(rendered)


def _end(rendered: Rendered) -> None:
    if rendered.fault:
        raise ValueError(rendered.fault)
    if rendered.interrupted:
        say(f"stopped; {rendered.frames / rendered.samplerate:.1f} s are kept in {rendered.folder}")
        raise typer.Exit(INTERRUPTED)


def _play_mix(folder: Path) -> None:
    from realtime.io import DeviceError, list_devices, play_sound
    from realtime.soundfiles import read

    try:
        if not list_devices():
            return
        say("playing the mix; Ctrl-C stops")
        play_sound(*read(folder / "mix.wav"))
    except DeviceError:
        return  # nothing to hear it on: the files are there
    except KeyboardInterrupt:
        return


def _follow(live: Live, seconds: float) -> None:
    """Watch a session until it ends: one line a second on a terminal, one a minute in a log."""
    from rich.console import Console
    from rich.live import Live as Screen

    console, begin = Console(), time.monotonic()
    with Screen(console=console, refresh_per_second=8, transient=True) as screen:
        while live.poll():
            if seconds and time.monotonic() - begin > seconds:
                return
            if console.is_terminal:
                screen.update(_status_line(live))
            time.sleep(0.1)


def _status_line(live: Live) -> Any:
    status = live.status()
    where = f"bar {status.bar + 1} beat {status.beat + 1}" if status.bar >= 0 else f"count-in {-status.bar}"
    agents = "   ".join(
        f"{name}: {'loading' if not status.armed[name] else _rung_word(row[6])}" for name, row in status.rungs.items()
    )
    xruns = status.device["xruns"] + status.stream["underruns"]
    return f"{where}   {agents}   xruns {xruns}"


def _rung_word(rung: int) -> str:
    words = {-1: "waiting", 0: "rests", 1: "plays", 2: "plays (early)", 4: "repeats", 5: "silent"}
    return words.get(rung, f"rung {rung}")
