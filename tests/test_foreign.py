"""Other people's files: limits of a process, bounded reading, and thousands of ways in which a file can be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import foreign
from realtime.foreign import Table, npy_array, npy_header, open_inside, parse_toml, read_inside, shown
from tools import mutants

ROOT = Path(__file__).resolve().parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="these limits hold on Linux")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


# --- limits ---


@LINUX
def test_a_process_that_wants_too_much_memory_does_not_get_it() -> None:
    ended = python(
        "import numpy, realtime.foreign as f\n"
        "assert f.limit_process(1 << 30) == {'core', 'files', 'written', 'memory'}\n"
        "numpy.ones(1 << 20)\n"
        "try: numpy.ones(1 << 28)\n"
        "except MemoryError: print('refused')\n"
        "f.lift_memory_limit()\n"
        "numpy.empty(1 << 28)\n"
    )
    assert (ended.stdout, ended.returncode) == ("refused\n", 0), ended.stderr


@LINUX
def test_a_process_that_works_without_end_is_ended_unless_the_limit_was_lifted() -> None:
    limit = "import time, realtime.foreign as f\nf.limit_process(cpu_seconds=0.2)\n"
    spin = limit + "{}\nwhile time.process_time() < 1.6: pass"
    assert python(spin.format("")).returncode == -24  # SIGXCPU
    assert python(spin.format("f.lift_cpu_limit()")).returncode == 0


@LINUX
def test_a_process_can_neither_fill_the_disk_nor_open_files_without_end(tmp_path: Path) -> None:
    ended = python(
        "import realtime.foreign as f\n"
        "f.limit_process(written_bytes=1000, open_files=20)\n"
        f"file = open({str(tmp_path / 'file')!r}, 'wb', buffering=0)\n"
        "print(file.write(bytes(1000)))\n"
        "for act in (lambda: file.write(b'x'), lambda: [open('/dev/null') for _ in range(30)]):\n"
        "    try: act()\n"
        "    except OSError as error: print(type(error).__name__)\n"
    )
    assert ended.stdout == "1000\nOSError\nOSError\n", ended.stderr


def test_where_there_are_no_limits_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_resource", lambda: None)
    assert foreign.limit_process(1, 1) == frozenset()
    assert not foreign.limit_cpu(1)
    foreign.lift_cpu_limit()
    foreign.lift_memory_limit()


def test_the_allowance_is_a_share_of_the_memory_there_is() -> None:
    assert foreign.memory_allowance(0.0) == 1 << 30
    assert foreign.memory_allowance(0.5) <= max(1 << 30, foreign.memory_allowance(1.0) // 2 + 1)


# --- opening ---


def test_a_file_of_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("below/file")
    assert read_inside(tmp_path, "below/file", 7, "") == b"content"
    assert read_inside(tmp_path, "link", 7, "") == b"content"


def test_what_is_no_file_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "ring").symlink_to("ring")
    (folder / "below").mkdir()
    os.mkfifo(folder / "pipe")
    for name, sentence in {
        "../secret": "is a link that leads out of its folder",
        "out": "is a link that leads out of its folder",
        "device": "is a link that leads out of its folder",
        "ring": "cannot be read",
        "gone": "no such file; the hint",
        "pipe": "no such file, but something else of that name; the hint",
        "below": "below",
        "gone/file": "no such file",
        "x" * 300: "cannot be read",
    }.items():
        with pytest.raises(ValueError, match=sentence) as refused:
            open_inside(folder, name, "the hint")
        assert "\n" not in str(refused.value)


def test_a_file_longer_than_its_limit_is_refused_without_being_read(tmp_path: Path) -> None:
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="larger than 10 bytes, which is the limit"):
        read_inside(tmp_path, "long", 10, "")


# --- tables ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = " + "[" * 90_000, "nested too deeply"),
        ("a." * 20_000 + "a = 1", "more than 100 dots (in line 1)"),
        ("\n" + "[" + '"\u2028".' * 5000 + "b]", "more than 100 dots (in line 2)"),
        ("x = " + "9" * 5000, "a number of more than 4300 digits"),
        ("x = [" + "1," * 500_000 + "]", "more than 100000 values"),
        ("[a]\n" * 100_001, "more than 100000 values"),
        ("x = 1979-02-30", "Invalid date"),
        ("x = ", "at end of document"),
    ],
)
def test_toml_that_is_none_or_takes_long_is_refused_at_once(text: str, words: str) -> None:
    begin = time.process_time()
    with pytest.raises(foreign.TomlError, match=words.replace("(", r"\(").replace(")", r"\)")):
        parse_toml(text)
    assert time.process_time() - begin < 5, "the longest of these took a minute and more"


def test_dots_in_a_comment_are_no_key() -> None:
    assert parse_toml("# " + "." * 500 + "\na.b = 1") == {"a": {"b": 1}}


@given(st.text(max_size=200))
def test_no_text_crashes_the_reader_of_tables(text: str) -> None:
    with suppress(foreign.TomlError):
        assert isinstance(parse_toml(text), dict)


def test_anything_can_be_shown_in_a_sentence() -> None:
    values: tuple[object, ...] = (
        10**5000,
        -(10**5000),
        "x\n" * 100,
        [[]] * 1000,
        {"a": 1},
        [10**5000],
        float("nan"),
        None,
    )
    for value in values:
        assert len(shown(value)) <= 60
        assert shown(value).isprintable()


def test_a_value_nested_without_end_can_be_shown() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in shown(deep)


def test_a_table_hands_out_each_key_once_and_refuses_the_rest() -> None:
    table = Table({"name": "x", "count": 10**400, "more": 1}, "it")
    assert table.text("name") == "x"
    assert table.maybe_text("none") is None
    with pytest.raises(ValueError, match="it: count = a number of more than 40 digits; it must be a whole number"):
        table.whole("count", 0, 9)
    with pytest.raises(ValueError, match="it: unknown key 'more'; known are count, name, none"):
        table.done()


# --- arrays ---


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "i4", "u1", "?", "f2"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_an_array_comes_back_as_numpy_saved_it(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    np.save(tmp_path / "a.npy", array)
    content = (tmp_path / "a.npy").read_bytes()
    assert npy_header(content)[:2] == (shape, array.dtype)
    np.testing.assert_array_equal(npy_array(content), array)


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    """Return the bytes of a .npy header."""
    padded = (text + " " * 200)[:117] + "\n"
    return b"\x93NUMPY" + version + len(padded).to_bytes(2, "little") + padded.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no .npy file"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", b"\x02\x00"), "npy version"),
        (header("{'descr': '<f4', 'fortran_order': True, 'shape': (3,), }"), "plain array"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"), "object, which are no numbers"),
        (header("{'descr': '>f4', 'fortran_order': False, 'shape': (3,), }"), "no numbers"),
        (header("{'descr': '|V9', 'fortran_order': False, 'shape': (3,), }"), "no numbers"),
        (header("{'descr': '<f9', 'fortran_order': False, 'shape': (3,), }"), "no kind of number"),
        (header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }"), "plain array"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"), "plain array"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'),), }"), "plain array"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1), }"), "9 axes"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }"), "holds 0 bytes"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "plain array"),
    ],
)
def test_an_array_that_is_no_plain_one_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        npy_array(content)


@given(st.binary(max_size=120))
def test_no_header_crashes_the_reader_of_arrays(tail: bytes) -> None:
    with suppress(ValueError):
        npy_array(b"\x93NUMPY\x01\x00v\x00" + tail)


# --- mutants ---


def test_a_mutant_is_the_same_for_the_same_seed_and_leaves_the_rest_whole(tmp_path: Path) -> None:
    material = mutants.Material(tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kinds = set()
    for seed in range(60):
        first = material.mutant(seed)
        once = {path: path.read_bytes() for path in whole if path.is_file()}
        again = material.mutant(seed)
        assert (first.kind, first.change, once) == (
            again.kind,
            again.change,
            {path: path.read_bytes() for path in whole if path.is_file()},
        )
        assert len([path for path, content in whole.items() if once.get(path) != content]) <= 2
        kinds.add(first.kind)
    assert kinds == {"model", "graph", "card", "golden", "corpus", "session", "take"}


def test_hundreds_of_damaged_and_hostile_files_are_refused_in_words() -> None:
    tally = mutants.run(200, seed=1)
    assert tally.tried.total() == 200
    assert (tally.ended, tally.unforeseen, tally.unclear) == ([], [], [])
    assert 0 < tally.opened.total() < 100, "some do no harm, most are refused"


def test_a_sentence_that_says_nothing_is_found(tmp_path: Path) -> None:
    mutant = mutants.Mutant("card", 1, "", tmp_path / "model", lambda gate: None)
    assert mutants.unclear(f"{tmp_path}/model: name is missing", mutant) == ""
    where = f"{tmp_path}/model"
    shown_badly = (f"{where}\nis", f"{where}: " + "x" * 1001, f"Traceback (most recent call last): {where}")
    for sentence in ("", "ValueError", "KeyError: ", "name is missing", *shown_badly):
        assert mutants.unclear(sentence, mutant), sentence


def test_the_rows_count_what_was_met(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = mutants.Tally()
    mutant = mutants.Mutant("card", 1, "cut", Path("model"), lambda gate: None)
    for meeting in (
        mutants.Meeting("", 0.1),
        mutants.Meeting("model: name is missing", 0.1),
        mutants.Meeting("model: late", 1.1, died=True),
        mutants.Meeting("model: odd", 0.1, unforeseen=True),
        mutants.Meeting("", 0.1, ended="KeyError: 'x'"),
    ):
        tally.add(mutant, meeting)
    monkeypatch.setattr(mutants, "run", lambda count, seed: tally)
    rows = mutants.mutant_rows(5)
    assert [(row.value, row.ok) for row in rows] == [(5, True), (1, False), (1, False), (1, False), (1, None)]
