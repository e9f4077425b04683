"""Files that came from somebody else: opened in a process under limits, read with a bound, never through a link.

Whoever opens a model, a corpus, a preset or another's take first calls :func:`limit_process`: then a file that wants
all memory, or never ends, costs that process and nothing else. The process is ended by the system (its CPU time) or
finds no more memory, which Python says as :class:`MemoryError` and a library may answer by aborting; both are the
bridge's to see.

=========== ============================ ==================================================
limit       holds on                     of
=========== ============================ ==================================================
memory      Linux                        what is allocated (``RLIMIT_DATA``): neither mapped files nor shared memory
CPU time    Linux, macOS                 seconds from now on, until it is lifted
files       Linux, macOS                 how many are open, how far one may be written
core dumps  Linux, macOS                 none: writing one would hold up the machine
=========== ============================ ==================================================

Windows has none of them; there the bridge's watch on the clock is what holds.
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
import tomllib
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WRITTEN_BYTES = 64 << 20
"""How long a file may become: such a process writes none, but its error output may go to one."""
OPEN_FILES = 1024

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # else the opening of a pipe waits for someone to write into it


# --- limits of a process ---


def limit_process(
    memory_bytes: int = 0,
    cpu_seconds: float = 0,
    *,
    written_bytes: int = WRITTEN_BYTES,
    open_files: int = OPEN_FILES,
) -> frozenset[str]:
    """Put this process under limits, for good but for CPU time and memory, which can be lifted again.

    Call it early, and with more than one thread as well as with one.

    Parameters
    ----------
    memory_bytes
        Most it may allocate in all, what it has allocated already included; 0 for no limit. Not for a process that
        uses a GPU: the driver reserves address space by the hundred gigabytes.
    cpu_seconds
        CPU time it may use from now on, see :func:`limit_cpu`; 0 for no limit.
    written_bytes
        How far a file may be written; 0 for no limit (a process that builds a corpus, a take, an engine).
    open_files
        How many files may be open.

    Returns
    -------
    frozenset of str
        Which of ``"memory"``, ``"cpu"``, ``"written"``, ``"files"``, ``"core"`` hold now on this system.
    """
    resource = _resource()
    if resource is None:
        return frozenset()
    holds = {
        "core": _soften(resource.RLIMIT_CORE, 0),
        "files": _soften(resource.RLIMIT_NOFILE, open_files),
        "written": bool(written_bytes) and _soften(resource.RLIMIT_FSIZE, written_bytes),
        "memory": bool(memory_bytes) and sys.platform == "linux" and _soften(resource.RLIMIT_DATA, memory_bytes),
        "cpu": bool(cpu_seconds) and limit_cpu(cpu_seconds),
    }
    return frozenset(name for name, held in holds.items() if held)


def limit_cpu(seconds: float) -> bool:
    """Let the system end this process (``SIGXCPU``) once it has used so many seconds more; return whether it will.

    The system counts whole seconds, so it may be one more. Replaces an earlier limit.
    """
    resource = _resource()
    if resource is None:
        return False
    used = resource.getrusage(resource.RUSAGE_SELF)
    return _soften(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))


def memory_allowance(share: float) -> int:
    """Return a share of this machine's memory, or of its container's, in bytes; a gigabyte at least.

    Parameters
    ----------
    share
        0 to 1.
    """
    sizes = [4 << 30]
    if hasattr(os, "sysconf"):
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(1 << 30, round(share * min(sizes)))


def lift_cpu_limit() -> None:
    """Let this process use as much CPU time as it likes: it has opened what it had to open."""
    if (resource := _resource()) is not None:
        _soften(resource.RLIMIT_CPU, resource.RLIM_INFINITY)


def lift_memory_limit() -> None:
    """Let this process allocate as much as there is: it turned out to use a GPU."""
    if (resource := _resource()) is not None and sys.platform == "linux":
        _soften(resource.RLIMIT_DATA, resource.RLIM_INFINITY)


def _resource() -> Any:
    """Return the module of the same name; ``None`` on Windows."""
    try:
        import resource
    except ImportError:
        return None
    return resource


def _soften(limit: int, most: int) -> bool:
    """Set a soft limit, below the hard one, which stays; return whether the system took it."""
    resource = _resource()
    _, hard = resource.getrlimit(limit)
    if hard != resource.RLIM_INFINITY and (most == resource.RLIM_INFINITY or most > hard):
        most = hard
    try:
        resource.setrlimit(limit, (most, hard))
    except (ValueError, OSError):
        return False
    return True


# --- opening ---


def open_inside(folder: Path, name: str, hint: str) -> BufferedReader:
    """Open a file of a folder for reading: a regular one, that lies in the folder itself.

    Parameters
    ----------
    folder, name
        The folder, and the file's path in it.
    hint
        Ends the sentence about a file that is not there.

    Raises
    ------
    ValueError
        In one sentence: missing, a link that leads out of the folder, a device or a pipe, not to be read.

    Notes
    -----
    What matters is what is then read from the file returned: it is checked, hashed and used from there, and never
    opened a second time. A hard link cannot be told from the file itself, and need not be.
    """
    path = folder / name
    try:
        real, home = path.resolve(strict=True), folder.resolve(strict=True)
        if not real.is_relative_to(home):
            raise ValueError(f"{path} is a link that leads out of its folder; put the file itself there")
        file = open(real, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT))  # noqa: SIM115 - returned
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: no such file; {hint}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go round in a ring, until Python 3.12
        reason = getattr(error, "strerror", None) or "its links go round in a ring"
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path}: no such file, but something else of that name; {hint}")
    return file


def read_inside(folder: Path, name: str, limit: int, hint: str) -> bytes:
    """Return the content of a file of a folder, at most ``limit`` bytes; raises as :func:`open_inside` does."""
    with open_inside(folder, name, hint) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{folder / name}: larger than {limit} bytes, which is the limit; is it the right file?")
        try:
            content = file.read(size + 1)
        except OSError as error:
            raise ValueError(f"{folder / name}: cannot be read: {error.strerror}") from None
    if len(content) > size:
        raise ValueError(f"{folder / name}: it is being written; wait until it is whole")
    return content


# --- tables ---

TOML_TOKENS = 100_000
"""Most commas, brackets and signs of equality in a file: a megabyte of nothing else takes a second to read."""
TOML_DOTS = 100
"""Most dots in a line: the time a key takes grows with their square, and 40 kB of them take ten seconds."""


TABLES = 256
"""Most tables of one kind in a card."""


class TomlError(ValueError):
    """A text that is no TOML, in words that begin in the middle of a sentence."""


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML that anybody may have written, in well under a second for a megabyte.

    Raises
    ------
    TomlError
        For any text that is no TOML, or is built to take long.
    """
    if "[" * 100 in text:
        raise TomlError("brackets nested too deeply")
    if sum(text.count(sign) for sign in ",[=") > TOML_TOKENS:
        raise TomlError(f"more than {TOML_TOKENS} values")
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > TOML_DOTS and not line.lstrip().startswith("#"):
            raise TomlError(f"more than {TOML_DOTS} dots (in line {number})")
    try:
        return tomllib.loads(text)
    except RecursionError:
        words = "brackets nested too deeply"
    except tomllib.TOMLDecodeError as error:  # says "(at line 3, column 7)"
        words = " ".join(str(error).split())[:200]
    except ValueError:  # what Python refuses to turn into an int, or a date that there is not
        words = "a number of more than 4300 digits, or a date that does not exist"
    raise TomlError(words)


def shown(value: object, most: int = 60) -> str:
    """Return a value as it may stand in a sentence: on one line, shortened, whatever it is."""
    if isinstance(value, int) and not -(10**40) < value < 10**40:
        return "a number of more than 40 digits"
    if isinstance(value, list | tuple | dict) and len(value) > most:
        return f"{len(value)} values"
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return "something nested too deeply, or too long to be shown"
    return text if len(text) <= most else text[: most - 3] + "..."


class Table:
    """One table of a card or a corpus: hands out each key once, checked, and refuses what is left over.

    Every method raises ``ValueError`` in one sentence: ``where``, the key, what was found, what is allowed.

    Parameters
    ----------
    content
        The table, as :func:`parse_toml` gave it.
    where
        Names it in errors.
    """

    def __init__(self, content: dict[str, Any], where: str) -> None:
        self._content = content
        self._where = where
        self._taken: set[str] = set()

    def _take(self, key: str, kind: type | tuple[type, ...], allowed: str) -> Any:
        self._taken.add(key)
        if key not in self._content:
            raise ValueError(f"{self._where}: {key} is missing; it is {allowed}")
        value = self._content[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.refused(key, value, allowed)
        return value

    def refused(self, key: str, value: object, allowed: str) -> ValueError:
        """Return the error for a value that is not what is allowed."""
        return ValueError(f"{self._where}: {key} = {shown(value)}; it must be {allowed}")

    def text(self, key: str) -> str:
        """Return a text of 1 to 1000 characters."""
        value: str = self._take(key, str, "a text of 1 to 1000 characters")
        if not 1 <= len(value.strip()) <= 1000:
            raise self.refused(key, value, "a text of 1 to 1000 characters")
        return value

    def maybe_text(self, key: str) -> str | None:
        """Return a text, or ``None`` where the key is not there."""
        self._taken.add(key)
        return self.text(key) if key in self._content else None

    def last_text(self, key: str) -> str:
        """Return a text, the last key there may be."""
        value = self.text(key)
        self.done()
        return value

    def said(self, key: str, word: str) -> bool:
        """Whether a key holds just this word."""
        found = self._content.get(key) == word
        if found:
            self._taken.add(key)
        return found

    def digest(self, key: str) -> str:
        """Return a sha256."""
        value = self.text(key)
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise self.refused(key, value, "64 lower-case hexadecimal digits, as sha256sum prints")
        return value

    def whole(self, key: str, least: int, most: int) -> int:
        """Return a whole number in a range."""
        allowed = f"a whole number from {least} to {most}"
        value: int = self._take(key, int, allowed)
        if not least <= value <= most:
            raise self.refused(key, value, allowed)
        return value

    def number(self, key: str, least: float, most: float) -> float:
        """Return a finite number in a range."""
        allowed = f"a finite number from {least:g} to {most:g}" if math.isfinite(least) else "a finite number"
        value = self._take(key, (int, float), allowed)
        if not (abs(value) <= sys.float_info.max and least <= value <= most):
            raise self.refused(key, value, allowed)
        return float(value)

    def numbers(self, key: str) -> dict[str, float]:
        """Return a table of numbers, empty where there is none."""
        self._taken.add(key)
        content = self._content.get(key, {})
        if not isinstance(content, dict):
            raise self.refused(key, content, "a table of numbers")
        table = Table(content, f"{self._where}, {key}")
        return {name: table.number(name, -math.inf, math.inf) for name in content}

    def array(self, key: str, kind: type, allowed: str) -> tuple[Any, ...]:
        """Return an array of up to 16 values of one type."""
        value: list[Any] = self._take(key, list, allowed)
        if len(value) > 16 or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
            raise self.refused(key, value, allowed)
        return tuple(value)

    def tables(self, key: str, least: int = 1, most: int = TABLES) -> list[Table]:
        """Return an array of tables; empty where it may be and there is none."""
        allowed = f"an array of {least} to {most} tables, written [[{key}]]"
        if least == 0 and key not in self._content:
            return []
        value: list[Any] = self._take(key, list, allowed)
        if not least <= len(value) <= most or not all(isinstance(v, dict) for v in value):
            raise self.refused(key, value, allowed)
        return [Table(v, f"{self._where}, {key}[{i}]") for i, v in enumerate(value)]

    def table(self, key: str) -> Table:
        """Return a table in this one."""
        return Table(self._take(key, dict, f"a table, written [{key}]"), f"{self._where}, {key}")

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        unknown = sorted(set(self._content) - self._taken)
        if unknown:
            raise ValueError(
                f"{self._where}: unknown key {shown(unknown[0])}; known are {', '.join(sorted(self._taken))}"
            )


# --- arrays ---

_NPY = re.compile(
    rb"\{'descr': '([<>|=][A-Za-z][0-9]{0,9})', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*[0-9]{0,18})\), \} *\n"
)
_NPY_HEADER_BYTES = 4096


def npy_header(start: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Read the header of a ``.npy`` file as :func:`numpy.save` writes it, by a pattern, so that nothing is evaluated.

    Parameters
    ----------
    start
        The first bytes of the file, 4,106 or all.

    Returns
    -------
    shape, dtype, offset
        Of the array, and where its elements begin.

    Raises
    ------
    ValueError
        If it is another version, no plain array in C order, or no ``.npy`` file.
    """
    import numpy as np  # not above: the bridge reads tables without it

    if start[:6] != b"\x93NUMPY":
        raise ValueError("it is no .npy file")
    if start[6:8] != b"\x01\x00":
        raise ValueError(f"it is npy version {tuple(start[6:8])}; write it with numpy.save")
    size = int.from_bytes(start[8:10], "little")
    found = _NPY.fullmatch(start[10 : 10 + size]) if size <= _NPY_HEADER_BYTES else None
    if found is None:
        raise ValueError("its header is not that of a plain array of numbers in C order")
    try:
        dtype = np.dtype(found[1].decode())
    except TypeError:
        raise ValueError(f"its elements are {found[1].decode()!r}, which is no kind of number") from None
    if dtype.hasobject or dtype.kind not in "biuf" or dtype.byteorder == ">":
        raise ValueError(f"its elements are {dtype}, which are no numbers")
    shape = tuple(int(n) for n in found[2].split(b",") if n.strip())
    if len(shape) > 8:
        raise ValueError(f"it has {len(shape)} axes; 8 are allowed")
    return shape, dtype, 10 + size


def npy_array(content: bytes) -> npt.NDArray[Any]:
    """Return the array that the bytes of a ``.npy`` file hold, read only; raises as :func:`npy_header` does."""
    import numpy as np

    shape, dtype, offset = npy_header(content)
    if math.prod(shape) * dtype.itemsize != len(content) - offset:
        raise ValueError(f"it says {dtype} of shape {shape} and holds {len(content) - offset} bytes")
    return np.frombuffer(content, dtype, offset=offset).reshape(shape)
