"""The laws of the architecture, checked by walking the source; each check is itself shown to find what it looks for.

A check takes a file's place and text and returns sentences, one for each breach. So it runs on the tree, and on a
line of source that breaks the law.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("realtime", "bridge", "tools")
Check = Callable[[str, ast.Module], list[str]]

FORBIDDEN = {
    "realtime": {
        "bridge",
        "tools",
        "tests",
        "torch",
        "mido",
        "rtmidi",
        "pedalboard",
        "pythonosc",
        "jack",
        "link",
        "starlette",
        "uvicorn",
    },
    "bridge": {"tools", "tests", "torch"},
    "tools": {"tests"},
}
"""What a room may not import."""

WRAPPERS = {
    "sounddevice": {"realtime/devices.py"},
    "rtmixer": {"realtime/devices.py"},
    "onnxruntime": {"realtime/inference.py"},
    "mido": {"bridge/midi.py"},
    "rtmidi": {"bridge/midi.py"},
    "pedalboard": {"bridge/plugins.py"},
    "pythonosc": {"bridge/osc.py"},
    "jack": {"bridge/jackclock.py"},
    "link": {"bridge/link.py"},
}
"""Packages that one file each wraps, imported where they are first used."""

LATE = {
    *WRAPPERS,
    "soundfile",
    "soxr",
    "python_stretch",
    "faiss",
    "matplotlib",
    "tomlkit",
    "rich",
    "starlette",
    "uvicorn",
}
"""Packages that no module of realtime or bridge imports before it needs them (the command's own files may)."""

HEAVY = ("sounddevice", "rtmixer", "onnxruntime", "matplotlib", "soundfile", "torch")
TRANSPOSERS = {"realtime/inference.py", "bridge/plugins.py", "realtime/stretch.py", "realtime/mixer.py"}
"""The mixer's own memory lies channel by channel, which makes a block cost half; what goes in and out does not."""
COMMAND = {"bridge/__main__.py", "bridge/cli.py"}
BUILDER = "bridge/app.py"
HELD = {"Process", "Popen", "socket", "create_connection", "ProcessPoolExecutor", "Pool", "Manager"}
"""Calls that start a process or open a socket."""

SUBPROCESS = {"realtime/devices.py", "bridge/children.py", BUILDER, *COMMAND}
"""Files that may run another program: the device list, which may hang; the janitor, which outlives all; the tools."""

ENGINE = {
    f"realtime/{name}.py"
    for name in ("clock", "protocols", "messages", "buffers", "engine", "scheduler", "mixer", "voice", "port", "seat")
}
"""What the engine's interpreter consists of: it opens no file, no socket, no device."""


def sources(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield every module of the rooms: its place in the tree and its syntax."""
    for room in rooms:
        for file in sorted((ROOT / room).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every module that is imported anywhere in a tree, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield ".", node.lineno
            else:
                yield node.module or "", node.lineno
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported: nothing inside a function or for types only."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        waiting += inner
        waiting += [
            s for child in ast.iter_child_nodes(node) if isinstance(child, ast.ExceptHandler) for s in child.body
        ]
        if not inner:
            yield node


def called(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the last name of everything that is called in a tree, with its line."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            if isinstance(call.func, ast.Name):
                yield call.func.id, call.lineno
            elif isinstance(call.func, ast.Attribute):
                yield call.func.attr, call.lineno


# -- the checks ----------------------------------------------------------------------------------------------------


def check_rooms(place: str, tree: ast.Module) -> list[str]:
    """Law 1: who may import whom."""
    room = place.split("/")[0]
    found = [
        f"{place}:{line} imports {name}" for name, line in imports(tree) if name.split(".")[0] in FORBIDDEN[room]
    ]
    return found + [f"{place}:{line} imports by a relative path" for name, line in imports(tree) if name == "."]


def check_late(place: str, tree: ast.Module) -> list[str]:
    """Law 3: each wrapped package in its one file, and only when it is first used."""
    found = []
    for name, line in imports(tree):
        homes = WRAPPERS.get(name.split(".")[0])
        if homes is not None and place not in homes:
            found.append(f"{place}:{line} imports {name}, which is wrapped by {', '.join(homes)}")
    if place not in COMMAND:
        for statement in at_import(tree):
            for name, line in imports(statement):
                if name.split(".")[0] in LATE:
                    found.append(f"{place}:{line} imports {name} before it is used")
    return found


def check_axes(place: str, tree: ast.Module) -> list[str]:
    """Law 5: axes are swapped in three files."""
    if place in TRANSPOSERS:
        return []
    swaps = {"T", "mT", "transpose", "swapaxes", "moveaxis", "rollaxis", "permute_dims", "matrix_transpose"}
    return [
        f"{place}:{node.lineno} swaps axes by .{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in swaps
    ]


def check_evaluation(place: str, tree: ast.Module) -> list[str]:
    """Law 6: nothing that was read is run."""
    banned = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.jit"}
    found = [f"{place}:{line} imports {name}" for name, line in imports(tree) if name in banned]
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec", "compile")
        ):
            found.append(f"{place}:{node.lineno} calls {node.func.id}")
        if isinstance(node, ast.Attribute) and node.attr == "jit" and ast.unparse(node.value) == "torch":
            found.append(f"{place}:{node.lineno} uses torch.jit")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            found.append(f"{place}:{node.lineno} calls torch.load, which unpickles")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(f"{place}:{node.lineno} allows pickle")
    return found


def check_engine(place: str, tree: ast.Module) -> list[str]:
    """Design 2: the engine opens no socket, no file, no device."""
    if place not in ENGINE:
        return []
    closed = {
        "socket",
        "subprocess",
        "soundfile",
        "pathlib",
        "tempfile",
        "sounddevice",
        "rtmixer",
        "realtime.inference",
    }
    found = [f"{place}:{line} imports {name}" for name, line in imports(tree) if name in closed]
    loaded = {(*name.split(".")[:2], line) for node in at_import(tree) for name, line in imports(node) if "." in name}
    found += [
        f"{place}:{line} loads realtime.{module}, which is no part of the engine"
        for room, module, line in sorted(loaded)
        if room == "realtime" and f"realtime/{module}.py" not in ENGINE
    ]
    return found + [f"{place}:{line} opens something" for name, line in called(tree) if name in {"open", "fdopen"}]


def check_programs(place: str, tree: ast.Module) -> list[str]:
    """Law 2: other programs are run where a table says so."""
    if place in SUBPROCESS or place.startswith("tools/"):
        return []
    shells = {"os.system", "os.popen", "os.fork", "os.posix_spawn", "os.execv", "os.startfile"}
    found = [f"{place}:{line} imports {name}" for name, line in imports(tree) if name == "subprocess"]
    return found + [
        f"{place}:{node.lineno} calls {ast.unparse(node.func)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in shells
    ]


def check_docstrings(place: str, tree: ast.Module) -> list[str]:
    """Every public class, function and method of the real-time room says what it does."""
    found = [] if ast.get_docstring(tree) else [f"{place} has no docstring"]
    waiting: list[tuple[str, ast.AST]] = [("", node) for node in tree.body]
    while waiting:
        inside, node = waiting.pop(0)
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        if any(ast.unparse(mark).endswith((".setter", "overload")) for mark in node.decorator_list):
            continue
        if not ast.get_docstring(node):
            found.append(f"{place}:{node.lineno} {inside}{node.name} has no docstring")
        if isinstance(node, ast.ClassDef):
            waiting += [(f"{inside}{node.name}.", child) for child in node.body]
    return found


def holders(tree: ast.Module) -> set[str]:
    """Return the public classes and functions of a module that start a process or open a socket."""
    named = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return {node.name for node in named if any(name in HELD for name, _ in called(node))}


def check_builders(modules: dict[str, ast.Module]) -> list[str]:
    """Law 2: only one file builds what holds processes or sockets; a wrapper's own file may."""
    homes = {name: place for place, tree in modules.items() if place != BUILDER for name in holders(tree)}
    return [
        f"{place}:{line} builds {name}, which holds a process or a socket; only {BUILDER} does"
        for place, tree in modules.items()
        for name, line in called(tree)
        if name in homes and place not in (homes[name], BUILDER)
    ]


def check_paths(place: str, text: str) -> list[str]:
    """Return the lines that name a folder of somebody's machine."""
    machine = re.compile(
        r"(?<![\w.~}])/(?:" + "|".join(("work", "root", "home", "Users")) + r")(?:/[\w.-]|(?![\w/-]))"
    )
    return [
        f"{place}:{n} names {m[0]}" for n, line in enumerate(text.splitlines(), 1) for m in machine.finditer(line)
    ]


def tree_block(readme: str) -> str:
    """Return the README's fenced block that shows the tree."""
    blocks = [block for block in re.findall(r"```[^\n]*\n(.*?)```", readme, re.DOTALL) if "realtime/" in block]
    return max(blocks, key=len, default="")


def check_tree(block: str, files: list[str]) -> list[str]:
    """Compare the README's tree with the files there are: each is named once, and nothing else is."""
    named = re.findall(r"[\w.-]+\.(?:py|txt|toml)\b", block)
    expected = {Path(file).name for file in files}
    missing = [f"{file} is not in the README's tree" for file in files if Path(file).name not in named]
    return missing + [
        f"the README's tree names {name}, which is not there"
        for name in named
        if name.endswith(".py") and name not in expected
    ]


# -- the tree keeps them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "rooms"),
    [
        (check_rooms, ROOMS),
        (check_late, ("realtime", "bridge")),
        (check_axes, ("realtime", "bridge")),
        (check_evaluation, ROOMS),
        (check_engine, ("realtime",)),
        (check_programs, ROOMS),
        (check_docstrings, ("realtime",)),
    ],
)
def test_the_source_keeps_the_law(check: Check, rooms: tuple[str, ...]) -> None:
    modules = list(sources(*rooms))
    assert len(modules) >= 3
    assert [breach for place, tree in modules for breach in check(place, tree)] == []


def test_only_one_file_builds_what_holds_processes() -> None:
    assert check_builders(dict(sources("realtime", "bridge"))) == []


def test_the_engine_consists_of_files_that_are_there() -> None:
    there = {place for place, _ in sources("realtime", "bridge")}
    assert there >= ENGINE | {"realtime/io.py", "realtime/inference.py", "realtime/stretch.py"}


WATCH = """
import importlib, os, sys
root, prefixes, news = sys.argv[1], tuple(sys.argv[2].split(",")), []

def watch(event, args):
    if event in ("socket.__new__", "socket.connect", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        news.append(event)
    elif event == "open" and isinstance(args[0], (str, bytes)):
        path, mode = os.fsdecode(args[0]), args[1] or ""
        writes = set(mode) & set("wax+") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        ours = os.path.abspath(path).startswith(root + os.sep) and os.sep + ".venv" + os.sep not in path
        if (writes or ours) and not path.endswith((".py", ".pyc")) and ".pyc." not in path:
            news.append(f"open {path} {mode}")

sys.addaudithook(watch)
for folder, _, files in os.walk(root):
    place = os.path.relpath(folder, root).split(os.sep)
    for name in sorted(files):
        if name.endswith(".py") and place[0] in prefixes and name != "__main__.py":
            importlib.import_module(".".join([*place, name[:-3]]).removesuffix(".__init__"))
print("\\n".join(news))
print("modules:", *sorted(sys.modules))
"""


def imported(*rooms: str) -> tuple[list[str], set[str]]:
    """Import every module of the rooms in a fresh interpreter; return what was opened, and what was loaded."""
    command = [sys.executable, "-c", WATCH, str(ROOT), ",".join(rooms)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    opened, _, loaded = done.stdout.rpartition("modules:")
    return opened.split("\n")[:-1] if opened.strip() else [], set(loaded.split())


def test_importing_realtime_opens_nothing_and_loads_nothing_heavy() -> None:
    opened, loaded = imported("realtime")
    assert opened == []
    assert {"realtime.clock", "realtime.engine", "realtime.io", "realtime.inference"} <= loaded
    assert loaded.isdisjoint(HEAVY)
    assert not [name for name in loaded if name.split(".")[0] in ("bridge", "tools")]


def test_importing_the_bridge_opens_nothing_and_loads_nothing_heavy() -> None:
    opened, loaded = imported("bridge")
    assert opened == []
    assert "bridge.session" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_readme_shows_the_tree() -> None:
    block = tree_block((ROOT / "README.md").read_text(encoding="utf-8"))
    assert block, "README.md shows no tree: a fenced block with a line for each file"
    files = [place for place, _ in sources(*ROOMS)]
    assert check_tree(block, [*files, "tools/constraints.txt"]) == []


def tracked() -> list[Path]:
    """Return the files of the project: what git knows, or what lies outside hidden and built folders."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [file for room in (*ROOMS, "tests") for file in (ROOT / room).rglob("*") if file.is_file()]


def test_no_file_names_a_machines_folder() -> None:
    texts = []
    for file in tracked():
        try:
            texts.append((file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")))
        except UnicodeDecodeError:  # a recording, a model
            continue
    assert len(texts) >= 5
    assert [breach for place, text in texts for breach in check_paths(place, text)] == []


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "tools/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        need = Requirement(text)
        pin = pins.get(need.name.lower().replace("_", "-"))
        assert pin is not None, f"{need.name} has no pin: make lock"
        assert need.specifier.contains(pin), f"{need} is pinned to {pin}: make lock"


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "GNU GENERAL PUBLIC LICENSE" in text
    assert "Version 3, 29 June 2007" in text
    assert len(text) > 34_000


# -- the checks find what they look for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "place", "source", "breach"),
    [
        (check_rooms, "realtime/a.py", "import bridge", "imports bridge"),
        (check_rooms, "realtime/a.py", "from bridge.session import Session", "imports bridge.session"),
        (check_rooms, "realtime/a.py", "def f():\n    import torch.nn", "imports torch.nn"),
        (check_rooms, "realtime/a.py", "from . import bridge", "relative path"),
        (check_rooms, "bridge/a.py", "from tools import bench", "imports tools"),
        (check_late, "realtime/a.py", "def f():\n    import sounddevice", "wrapped by realtime/devices.py"),
        (check_late, "realtime/devices.py", "import sounddevice", "before it is used"),
        (check_late, "realtime/devices.py", "try:\n    import rtmixer\nfinally:\n    pass", "before it is used"),
        (check_late, "realtime/a.py", "class A:\n    import soundfile", "before it is used"),
        (check_late, "realtime/a.py", "if True:\n    from soxr import resample", "before it is used"),
        (check_axes, "realtime/a.py", "y = x.T", "swaps axes by .T"),
        (check_axes, "bridge/a.py", "y = np.transpose(x)", "swaps axes by .transpose"),
        (check_axes, "realtime/a.py", "y = x.swapaxes(0, 1)", "swaps axes"),
        (check_evaluation, "tools/a.py", "import pickle", "imports pickle"),
        (check_evaluation, "tools/a.py", "from pickle import loads", "imports pickle"),
        (check_evaluation, "bridge/a.py", "eval(text)", "calls eval"),
        (check_evaluation, "bridge/a.py", "exec(text)", "calls exec"),
        (check_evaluation, "tools/a.py", "torch.jit.script(m)", "torch.jit"),
        (check_evaluation, "tools/a.py", "torch.load(f)", "unpickles"),
        (check_evaluation, "realtime/a.py", "np.load(f, allow_pickle=True)", "allows pickle"),
        (check_engine, "realtime/engine.py", "import socket", "imports socket"),
        (check_engine, "realtime/mixer.py", "def f():\n    open('x')", "opens something"),
        (check_engine, "realtime/port.py", "from realtime.runner import AGENTS", "loads realtime.runner"),
        (check_programs, "bridge/osc.py", "import subprocess", "imports subprocess"),
        (check_programs, "realtime/a.py", "os.system('ls')", "calls os.system"),
        (check_docstrings, "realtime/a.py", '"""A."""\ndef f(): ...', ":2 f has no docstring"),
        (
            check_docstrings,
            "realtime/a.py",
            '"""A."""\nclass A:\n    """B."""\n    def f(self): ...',
            "A.f has no docstring",
        ),
        (check_docstrings, "realtime/a.py", "x = 1", "realtime/a.py has no docstring"),
    ],
)
def test_a_breach_is_found(check: Check, place: str, source: str, breach: str) -> None:
    found = check(place, ast.parse(source))
    assert len(found) == 1 or check in (check_rooms, check_evaluation, check_late)
    assert any(breach in sentence for sentence in found)


@pytest.mark.parametrize(
    ("check", "place", "source"),
    [
        (check_rooms, "realtime/a.py", "import numpy, realtime.clock"),
        (check_rooms, "bridge/a.py", "from realtime.clock import Meter"),
        (check_late, "realtime/devices.py", "def f():\n    import sounddevice"),
        (check_late, "realtime/devices.py", "class A:\n    def f(self):\n        import rtmixer"),
        (check_late, "bridge/a.py", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
        (check_axes, "realtime/stretch.py", "y = x.T"),
        (check_evaluation, "bridge/a.py", "re.compile('x')\nmodel.eval()\nnp.load(f, allow_pickle=False)"),
        (check_engine, "realtime/corpus.py", "open('x')"),
        (check_engine, "realtime/port.py", "from realtime.seat import SLOTS"),
        (check_engine, "realtime/engine.py", "def f():\n    from realtime.stream import NullStream"),
        (check_programs, "realtime/devices.py", "import subprocess"),
        (
            check_docstrings,
            "realtime/a.py",
            '"""A."""\ndef _f(): ...\nclass A:\n    """B."""\n    def __len__(self): ...',
        ),
    ],
)
def test_what_is_lawful_passes(check: Check, place: str, source: str) -> None:
    assert check(place, ast.parse(source)) == []


def test_a_second_builder_is_found() -> None:
    wrapper = "class Worker:\n    def start(self):\n        self.child = context.Process(target=f)"
    use = "def f():\n    return worker.Worker()"
    modules = {"realtime/worker.py": ast.parse(wrapper), "bridge/app.py": ast.parse(use)}
    assert check_builders(modules) == []
    modules["realtime/engine.py"] = ast.parse(use)
    assert "realtime/engine.py:2 builds Worker" in check_builders(modules)[0]


def test_a_machines_path_is_found() -> None:
    for folder in ("work", "root", "home"):
        assert check_paths("a.md", f"see /{folder}/me/x") == [f"a.md:1 names /{folder}/m"]
        assert check_paths("a.md", f"cd /{folder}") == [f"a.md:1 names /{folder}"]
    assert check_paths("a.md", "homework/work/x, /homely, /workers, ~/home/x, '/home/', https://x.org/root/y") == []


def test_a_file_that_the_readme_forgets_is_found() -> None:
    readme = "# x\n```bash\nmake\n```\n```\nrealtime/\n  clock.py   time\n  gone.py  what was\n```\n"
    found = check_tree(tree_block(readme), ["realtime/clock.py", "realtime/engine.py"])
    assert found == [
        "realtime/engine.py is not in the README's tree",
        "the README's tree names gone.py, which is not there",
    ]
    assert tree_block("# nothing") == ""


def test_an_open_at_import_is_found(tmp_path: Path) -> None:
    room = tmp_path / "realtime"
    room.mkdir()
    (room / "__init__.py").write_text("", encoding="utf-8")
    (room / "rude.py").write_text("import socket\nsocket.socket()\nopen(__file__ + '.log', 'w')\n", encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, sys.argv[1])\n" + WATCH,
        str(tmp_path),
        "realtime",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "socket.__new__" in done.stdout
    assert "rude.py.log w" in done.stdout
