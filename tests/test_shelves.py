"""The session's folders, seen by somebody who may name things and no paths."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from fakes import tones
from hypothesis import given
from hypothesis import strategies as st

from bridge.recorder import TakeWriter
from bridge.session import Session
from bridge.shelves import FACTS, ITEMS, SHELVES, ShelfError, below, shelf
from realtime.corpus import build

RATE = 16000
SESSION = """
[session]
name = "evening"
[transport]
bpm = 97.5
meter = "7/8"
[[agents]]
name = "bass"
kind = "echo"
"""


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Return a session with a folder of its own."""
    (tmp_path / "band.toml").write_text(SESSION)
    return Session.load(tmp_path / "band.toml")


def take(folder: Path, frames: int = 100, *, closed: bool = True) -> Path:
    header = {"samplerate": RATE, "lead": 0, "latency": 0, "seed": 1}
    writer = TakeWriter(folder, header, [("bass", 1)], 1, 2)
    if closed:
        writer.close(frames)
    return folder


# Names


def test_a_name_is_that_of_something_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "takes").mkdir()
    (tmp_path / "takes" / "Übung 1").mkdir()
    assert below(tmp_path / "takes", "Übung 1") == tmp_path / "takes" / "Übung 1"


@pytest.mark.parametrize(
    "name",
    [
        "..", ".", "", "../x", "x/../x", "/etc", "a/b", "a\\b", "C:x", "x:y", ".hidden", "x\0y", "x\ny", " x", "x.",
        "x" * 200, "~", "*", "\ud800",
    ],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "takes").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "takes" / ".hidden").mkdir()
    with pytest.raises(ShelfError):
        below(tmp_path / "takes", name)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "takes").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "takes" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "takes" / "ring").symlink_to("ring")
    for name in ("link", "ring"):
        with pytest.raises(ShelfError, match="links are not followed"):
            below(tmp_path / "takes", name)


@given(st.text(max_size=40))
def test_whatever_the_name_it_stays_in_the_folder_or_is_refused(name: str) -> None:
    folder = Path(__file__).resolve().parent
    try:
        found = below(folder, name)
    except ShelfError:
        return
    assert found.resolve().parent == folder


# What lies there


def test_nothing_lies_in_an_empty_folder_and_a_missing_thing_is_said(session: Session) -> None:
    assert [shelf(session, kind) for kind in ("corpora", "takes")] == [[], []]
    for kind in SHELVES:
        with pytest.raises(ShelfError, match="there is no 'nothing'"):
            shelf(session, kind, "nothing")


def test_takes_are_listed_the_newest_first_with_what_they_are(session: Session, tmp_path: Path) -> None:
    take(tmp_path / "takes" / "first")
    take(tmp_path / "takes" / "second", closed=False)
    os.utime(tmp_path / "takes" / "first" / "take.jsonl", ns=(1, 10**18))
    found = shelf(session, "takes")
    assert [item.name for item in found] == ["second", "first"]
    recorded, seconds, samplerate, stems, whole = shelf(session, "takes", "first")[0].facts
    assert str(recorded).startswith("2001-09-0")
    assert (seconds, samplerate, stems, whole) == (100 / RATE, RATE, 1, True)
    assert found[0].facts[1:] == (0.0, RATE, 1, False)


def test_a_take_that_is_none_says_so(session: Session, tmp_path: Path) -> None:
    good = take(tmp_path / "takes" / "good")
    head = (good / "take.jsonl").read_text().split("\n")[0]
    for number, text in enumerate(
        ["", "[" * 100_000, '{"type": "end"}', '{"type":"take","samplerate":0,"stems":[]}']
    ):
        folder = tmp_path / "takes" / f"bad{number}"
        folder.mkdir()
        (folder / "take.jsonl").write_text(text)
    (tmp_path / "takes" / "odd").mkdir()
    end = json.dumps({"type": "end", "frames": 1e300, "stems": {}})
    (tmp_path / "takes" / "odd" / "take.jsonl").write_text(f"{head}\n{end}\n")
    found = {item.name: item.facts for item in shelf(session, "takes")}
    assert found["odd"][1:] == (0.0, RATE, 1, False)
    for number in range(4):
        assert "first line" in str(found[f"bad{number}"][0])
        assert found[f"bad{number}"][1:] == (0.0, 0, 0, False)


def test_only_so_many_are_listed(session: Session, tmp_path: Path) -> None:
    for number in range(ITEMS + 5):
        folder = tmp_path / "takes" / f"take-{number}"
        folder.mkdir(parents=True)
        (folder / "take.jsonl").write_text("{}")
    assert len(shelf(session, "takes")) == ITEMS


def test_a_folder_behind_a_link_is_not_listed(session: Session, tmp_path: Path) -> None:
    take(tmp_path / "elsewhere" / "secret")
    (tmp_path / "takes").mkdir()
    (tmp_path / "takes" / "secret").symlink_to(tmp_path / "elsewhere" / "secret")
    (tmp_path / "takes" / "half").mkdir()
    (tmp_path / "takes" / "half" / "take.jsonl").symlink_to(tmp_path / "elsewhere" / "secret" / "take.jsonl")
    assert shelf(session, "takes") == []
    item = shelf(session, "takes", "half")[0]
    assert item.facts[1:] == (0.0, 0, 0, False)


def test_sessions_beside_this_one_are_listed_with_what_is_wrong_with_them(session: Session, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[transport]\nbpm = 0\n")
    (tmp_path / "notes.txt").write_text("no session")
    found = {item.name: item.facts for item in shelf(session, "sessions")}
    assert found["band.toml"] == ("evening", 97.5, "7/8", 1)
    assert "bpm" in str(found["bad.toml"][0])
    assert set(found) == {"band.toml", "bad.toml"}


def test_corpora_are_listed_from_their_descriptions(session: Session, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "notes.wav", tones(4 * RATE, RATE, [220, 330, 440, 550]), RATE, subtype="FLOAT")
    build([tmp_path / "notes.wav"], tmp_path / "corpora" / "bass", bpm=120)
    shutil.copytree(tmp_path / "corpora" / "bass", tmp_path / "corpora" / "broken")
    (tmp_path / "corpora" / "broken" / "corpus.toml").write_text("name = 7\n")
    found = {item.name: item.facts for item in shelf(session, "corpora")}
    assert found["bass"] == (8, "beat", 120.0, 4.0, "unknown")
    assert found["broken"][0] == 0
    assert "missing" in str(found["broken"][1])


def test_models_are_listed_from_their_cards(session: Session) -> None:
    found = {item.name: item.facts for item in shelf(session, "models")}
    assert found["onset"][1:3] == ("onset detection", 48000)


def test_each_shelf_says_what_its_facts_are(session: Session, tmp_path: Path) -> None:
    take(tmp_path / "takes" / "one")
    for kind in SHELVES:
        for item in shelf(session, kind):
            assert len(item.facts) == len(FACTS[kind])
