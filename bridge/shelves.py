"""What lies in a session's own folders, for entrances that may name things and no paths.

Corpora, models, sessions and takes are listed with a few facts and named by how they are listed (:func:`below`).
Nothing is opened through a link, nothing is read without a bound, and nothing that is read is run. What cannot be
read is listed with the reason. Reading takes time: not for a thread that has to answer at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

from bridge.recorder import LOG
from bridge.session import MODELS, AgentTable, Session
from realtime.foreign import Table, open_inside, parse_toml, read_inside, shown
from realtime.messages import from_json

SHELVES = ("corpora", "models", "sessions", "takes")
"""What is found in folders."""
ITEMS = 64
"""Most things that a shelf shows."""
ENTRIES = 4096
"""Most entries of a folder that are looked at."""
HEAD_BYTES = TAIL_BYTES = 1 << 20
"""What of a take's log is read to say what it is: its first line and its last. The first holds the whole session."""
DESCRIPTION_BYTES = 1 << 20

Fact: TypeAlias = "str | int | float | bool"


class ShelfError(ValueError):
    """A name that stands for nothing here, in one sentence for who asked."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something on a shelf; which facts there are depends on the shelf, see :data:`FACTS`."""

    name: str
    facts: tuple[Fact, ...]


FACTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "corpora": (
        ("units", "", "how many pieces it is cut into; 0 where its description cannot be read"),
        ("cut", "", "beat or onset, or what is wrong with it"),
        ("tempo", "bpm", "of the recordings, 0 where there is none"),
        ("seconds", "s", "length of the recordings"),
        ("licence", "", "what the material may be used for"),
    ),
    "models": (
        ("version", "", "as its card says; empty where that cannot be read"),
        ("task", "", "what it does, or what is wrong with it"),
        ("samplerate", "Hz", "of the sound it takes"),
        ("licence", "", "what it may be used for"),
    ),
    "sessions": (
        ("title", "", "its name, or what is wrong with it"),
        ("tempo", "bpm", "at the start, 0 where it cannot be read"),
        ("meter", "", "at the start"),
        ("agents", "", "how many"),
    ),
    "takes": (
        ("recorded", "", "when it was last written to, local time"),
        ("seconds", "s", "length; 0 where it was not closed"),
        ("samplerate", "Hz", "of its sound"),
        ("stems", "", "how many agents have one"),
        ("whole", "", "whether it was closed in order"),
    ),
}
"""The facts on each shelf: name, unit, meaning."""


def below(folder: Path, name: str) -> Path:
    """Return the path of what lies in a folder under a name that somebody outside gave.

    It is a plain name of one thing in the folder itself: no way up or down, no drive, no hidden file, no link.

    Raises
    ------
    ShelfError
        In one sentence, whatever is wrong with it.
    """
    odd = not name.isprintable() or any(sign in name for sign in '/\\:*?"<>|') or name != name.strip(" .")
    if not 1 <= len(name) <= 128 or odd:
        raise ShelfError(
            f"{shown(name)} is no name of anything in the session's folders; give one as it is listed, without a path"
        )
    path = folder / name
    with suppress(OSError, ValueError, RuntimeError):
        if not path.is_symlink() and path.resolve(strict=True) == folder.resolve(strict=True) / name:
            return path
    raise ShelfError(f"there is no {shown(name)} in {shown(folder.name)}; links are not followed")


def shelf(session: Session, kind: str, name: str = "") -> list[Item]:
    """Return what a session's folders hold of a kind, newest takes first, the others by name; or the one of a name.

    Raises
    ------
    ShelfError
        In one sentence, where there is none of that name.
    """
    describe = _DESCRIBE[kind]
    if name:
        for folder in _folders(session, kind):
            with suppress(ShelfError):
                return [_described(describe, kind, below(folder, name))]
        known = [path.name for path in _there(session, kind)][:8]
        raise ShelfError(f"there is no {shown(name)} among the {kind}; there are {', '.join(known) or 'none'}")
    return [_described(describe, kind, path) for path in _there(session, kind)]


def _folders(session: Session, kind: str) -> list[Path]:
    """Return the folders in which things of a kind are looked for, each once."""
    beside = session.locate(".")
    found = {
        "corpora": [session.locate("corpora"), *_parents(session, lambda agent: agent.corpus)],
        "models": [MODELS],
        "sessions": [beside],
        "takes": [session.locate(session.take.folder)],
    }[kind]
    return list(dict.fromkeys(found))


def _parents(session: Session, of: Callable[[AgentTable], str]) -> list[Path]:
    return [session.locate(of(agent)).parent for agent in session.agents if of(agent)]


_MARKS = {"corpora": "corpus.toml", "models": "card.toml", "takes": LOG}
"""The file that makes a folder one of its kind; a session is a file itself."""


def _there(session: Session, kind: str) -> list[Path]:
    """Return what there is of a kind, at most :data:`ITEMS`."""
    found = [path for folder in _folders(session, kind) for path in _entries(folder) if _is_one(path, kind)]
    if kind == "takes":
        found.sort(key=_changed_ns, reverse=True)
    else:
        found.sort(key=lambda path: path.name)
    return found[:ITEMS]


def _entries(folder: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        for _, entry in zip(range(ENTRIES), entries, strict=False):
            if not entry.name.startswith(".") and not entry.is_symlink():
                yield Path(entry.path)


def _is_one(path: Path, kind: str) -> bool:
    mark = _MARKS.get(kind)
    if mark is None:
        return path.suffix == ".toml" and path.is_file()
    return (path / mark).is_file() and not (path / mark).is_symlink()


def _changed_ns(path: Path) -> int:
    try:
        return (path / LOG).stat().st_mtime_ns
    except OSError:
        return 0


def _described(describe: Callable[[Path], tuple[Fact, ...]], kind: str, path: Path) -> Item:
    """Describe one thing; what cannot be read says why in its first text."""
    try:
        return Item(path.name, describe(path))
    except (ValueError, OSError, ArithmeticError, MemoryError, RecursionError) as problem:
        return Item(path.name, _unreadable(kind, str(problem)))


def _unreadable(kind: str, why: str) -> tuple[Fact, ...]:
    said = " ".join(why.split())[:200]
    return {
        "corpora": (0, said, 0.0, 0.0, ""),
        "models": ("", said, 0, ""),
        "sessions": (said, 0.0, "", 0),
        "takes": (said, 0.0, 0, 0, False),
    }[kind]


def _corpus(folder: Path) -> tuple[Fact, ...]:
    text = read_inside(folder, "corpus.toml", DESCRIPTION_BYTES, "a corpus has its description there")
    table = Table(parse_toml(text.decode("utf-8")), "corpus.toml")
    cutting = table.table("segmentation")
    bpm = cutting.maybe_text("bpm")
    seconds = sum(
        source.whole("frames", 0, 2**48) / source.whole("samplerate", 1, 10**6)
        for source in table.tables("sources", 1, 2048)
    )
    tempo = float(Fraction(bpm)) if bpm is not None and len(bpm) < 64 and "e" not in bpm.lower() else 0.0
    return table.whole("units", 0, 2**31), cutting.text("kind"), tempo, seconds, table.text("licence")


def _model(folder: Path) -> tuple[Fact, ...]:
    text = read_inside(folder, "card.toml", DESCRIPTION_BYTES, "a model has its card there")
    table = Table(parse_toml(text.decode("utf-8")), "card.toml")
    return table.text("version"), table.text("task"), table.whole("samplerate", 1, 10**6), table.text("licence")


def _session(path: Path) -> tuple[Fact, ...]:
    session = Session.load(path)
    transport = session.transport
    return session.session.name, float(transport.bpm), str(transport.meter), len(session.agents)


def _take(folder: Path) -> tuple[Fact, ...]:
    with open_inside(folder, LOG, "a take has its log there") as log:
        head, size = log.readline(HEAD_BYTES), os.fstat(log.fileno()).st_size
        log.seek(max(0, size - TAIL_BYTES))
        tail = log.read(TAIL_BYTES)
        recorded = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.fstat(log.fileno()).st_mtime))
    take = _line(head, "take")
    samplerate, stems = take.get("samplerate"), take.get("stems")
    if type(samplerate) is not int or not 1 <= samplerate <= 10**6 or not isinstance(stems, list):
        raise ValueError("its first line is not that of a take")
    lines = tail.rstrip(b"\n").rsplit(b"\n", 1)
    end = _line(lines[-1], "end") if tail.endswith(b"\n") else {}
    frames = end.get("frames")
    if type(frames) is not int or not 0 <= frames < 2**48:
        return recorded, 0.0, samplerate, len(stems), False
    return recorded, frames / samplerate, samplerate, len(stems), True


def _line(text: bytes, kind: str) -> dict[str, Any]:
    """Return a line of a take's log if it is of that type, else nothing."""
    try:
        line = from_json(text, LOG)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and line.get("type") == kind else {}


_DESCRIBE: dict[str, Callable[[Path], tuple[Fact, ...]]] = {
    "corpora": _corpus,
    "models": _model,
    "sessions": _session,
    "takes": _take,
}
