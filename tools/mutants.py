"""Damaged and hostile files, made from whole ones by chance: what the bridge has to refuse in words, and outlive.

A mutant is a whole model, card, corpus, session or take with something in it changed: bytes flipped, cut, spliced;
lengths and counts that lie; fields of the protobuf, keys of the TOML and JSON, headers of the arrays exchanged for
values that nobody expects. Where a hash guards what was changed it is mostly made right again, as whoever means harm
would. The same seed gives the same mutant. :func:`run` opens them as the bridge does, at its gate.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import random
import re
import shutil
import struct
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]

from bridge import app, offline  # noqa: E402
from bridge.gate import SENTENCE_CHARS, Gate, GateError  # noqa: E402
from bridge.session import Session  # noqa: E402
from realtime import corpus as corpora  # noqa: E402
from realtime.onnxfile import OPERATORS  # noqa: E402
from tools.rows import Row  # noqa: E402

RATE = 16000
ALLOWED_SECONDS = 1.0
CONTROL_EVERY = 20
CONTROL_SECONDS = 0.2
"""A whole model takes a twentieth of this on a machine that has nothing else to do."""
GATE_MEMORY_BYTES = 1 << 30
MODEL = ROOT / "exported_models" / "onset"
BARE = re.compile(r"^(?:[\w.]*(?:Error|Exception|Exit|Interrupt|Warning))?:?\s*$|Traceback")
"""What is no sentence: nothing, the name of an exception alone, a traceback."""

Tree = list[Any] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed file, and how the bridge meets it.

    Attributes
    ----------
    kind, seed, change
        What it was, and what was done to it; ``change`` is for people.
    path
        What a sentence about it may name: the file or folder that the bridge was given.
    meet
        Opens it, as the bridge would.
    """

    kind: str
    seed: int
    change: str
    path: Path
    meet: Callable[[Gate], object]


@dataclass(slots=True)
class Tally:
    """What became of many mutants."""

    tried: Counter[str] = field(default_factory=Counter)
    opened: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)
    control: list[float] = field(default_factory=list)  # seconds that a whole model took, now and then
    slowest_seconds: float = 0.0
    slowest: str = ""
    seconds: float = 0.0

    def add(self, mutant: Mutant, meeting: Meeting) -> None:
        """Count one."""
        what = f"{mutant.kind} {mutant.seed} ({mutant.change})"
        self.tried[mutant.kind] += 1
        self.opened[mutant.kind] += not (meeting.said or meeting.ended)
        if meeting.ended:
            self.ended.append(f"{what}: {meeting.ended}")
        if meeting.died:
            self.died.append(f"{what}: {meeting.said}")
        if meeting.unforeseen:
            self.unforeseen.append(f"{what}: {meeting.said}")
        if meeting.seconds > ALLOWED_SECONDS:
            self.late.append(f"{what}: {meeting.seconds:.2f} s, {meeting.said[:200]!r}")
        if meeting.said and (fault := unclear(meeting.said, mutant)):
            self.unclear.append(f"{what}: {meeting.said[:300]!r} {fault}")
        if meeting.seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest = meeting.seconds, what


# --- changing bytes ---

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
_COUNTS = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 2)


def change_bytes(chance: random.Random, content: bytes) -> tuple[bytes, str]:
    """Damage bytes as transport, disks and people do; return what came of it, and what was done."""
    data = bytearray(content)
    at = chance.randrange(max(1, len(data)))
    length = min(len(data) - at, int(2 ** chance.uniform(0, 12)))
    what = chance.choice(("flip", "set", "cut", "drop", "insert", "repeat", "swap", "number", "many"))
    if what == "flip" and data:
        data[at] ^= 1 << chance.randrange(8)
    elif what == "set" and data:
        data[at] = chance.choice(_INTERESTING)
    elif what == "cut":
        del data[at:]
    elif what == "drop":
        del data[at : at + length]
    elif what == "insert":
        data[at:at] = chance.randbytes(length)
    elif what == "repeat":
        data[at:at] = data[at : at + length] * chance.randint(1, 4)
    elif what == "swap":
        other = chance.randrange(max(1, len(data)))
        data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    elif what == "number" and len(data) >= 4:
        at = min(at, len(data) - 4)
        data[at : at + 4] = struct.pack(chance.choice(("<I", ">I")), chance.choice(_COUNTS))
    else:
        for _ in range(chance.randint(2, 64)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data), f"{what} at byte {at}"


def change_header(chance: random.Random, content: bytes, most: int = 128) -> tuple[bytes, str]:
    """Damage the first bytes, where lengths and counts stand."""
    changed, what = change_bytes(chance, content[:most])
    return changed + content[most:], f"header: {what}"


# --- changing trees: TOML and JSON ---


def _values(chance: random.Random) -> Any:
    """Return a value that nobody expects."""
    return chance.choice(
        (
            0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.0, -0.0, 1e-320, 1e308, -1e308,
            math.inf, -math.inf, math.nan, True, False, "", " ", "x" * 5000, "\u202e\u0000\n", "../../x", "/dev/zero",
            "1e999999999", "1/0", "0/0", "9" * 5000, "-", "nan", "4/4", "999999999/1", "120", "input.wav", "%s%n",
            "a.b", [], {}, [[]], [{}], [[[[[[]]]]]], [1] * 3000, {"a": {"b": {"c": 1}}}, {"x" * 500: 1},
            ["a", 1, None], 65, 1025, 0.5,
        )
    )  # fmt: skip


def _places(tree: Tree) -> Iterator[tuple[Tree, Any]]:
    """Yield every place in a tree: what holds it, and its key or index."""
    items: list[tuple[Any, Any]] = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    for key, inner in items:
        yield tree, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def change_tree(chance: random.Random, tree: Tree) -> str:
    """Change one place of a tree, in place; return what was done."""
    places = list(_places(tree))
    if not places:
        return "nothing"
    holder, key = chance.choice(places)
    what = chance.choice(("value", "value", "value", "delete", "rename", "move", "deepen", "grow", "number"))
    inner = holder[key]
    if what == "delete":
        del holder[key]
    elif what == "rename" and isinstance(holder, dict):
        holder[chance.choice((key + "x", "", key.upper(), "type", "name", "\u0000"))] = holder.pop(key)
    elif what == "move":
        other, place = chance.choice(places)
        if place in other if isinstance(other, dict) else place < len(other):
            other[place] = json.loads(json.dumps(inner, default=str))
    elif what == "deepen":
        for _ in range(chance.choice((1, 10, 60, 350))):
            inner = [inner]
        holder[key] = inner
    elif what == "grow" and isinstance(inner, list) and inner:
        holder[key] = inner * chance.choice((2, 40, 300))
    elif what == "number" and isinstance(inner, (int, float)) and not isinstance(inner, bool):
        holder[key] = chance.choice((inner + 1, -inner, inner * 2, inner * 10**6, inner / 3, inner * 2**40))
    else:
        what, holder[key] = "value", _values(chance)
    return f"{what} at {str(key)[:40]!r}"


def toml(tree: dict[str, Any]) -> str:
    """Write a tree as TOML, whatever is in it: what TOML cannot say is left out."""
    lines = [f"{_key(name)} = {_inline(value)}" for name, value in tree.items() if _is_plain(value)]
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += ["", f"[{_key(name)}]", *(f"{_key(k)} = {_inline(v)}" for k, v in value.items())]
        elif not _is_plain(value):
            for table in value:
                lines += ["", f"[[{_key(name)}]]", *(f"{_key(k)} = {_inline(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _is_plain(value: Any) -> bool:
    tables = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    return not isinstance(value, dict) and not tables


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _inline(name)


def _inline(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"0x{value:x}" if value >= 10**300 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(_inline(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    return json.dumps(str(value))


def change_toml(chance: random.Random, content: bytes) -> tuple[bytes, str]:
    """Change the text, the tree, or the order of lines of a TOML file."""
    way = chance.random()
    if way < 0.2:
        return change_bytes(chance, content)
    if way < 0.3:
        return _changed_text(chance, content.decode())
    tree = tomllib.loads(content.decode())
    try:
        done = [change_tree(chance, tree) for _ in range(chance.choice((1, 1, 1, 2, 5)))]
        return toml(tree).encode(), "; ".join(done)
    except RecursionError:  # it grew too deep for us to write
        return _changed_text(chance, content.decode())


def _changed_text(chance: random.Random, text: str) -> tuple[bytes, str]:
    """Return text that is hard on a parser."""
    what = chance.choice(("brackets", "dots", "digits", "lines", "tables", "quotes", "same", "nul"))
    at = chance.randrange(len(text))
    more = {
        "brackets": "\nx = " + "[" * chance.choice((100, 100_000)),
        "dots": "\n" + "a." * chance.choice((50, 20_000)) + "a = 1\n",
        "digits": "\nx = " + "9" * chance.choice((400, 100_000)) + "\n",
        "lines": text[at:].partition("\n")[2],
        "tables": "\n[[agents]]\n" * chance.choice((3, 50_000)),
        "quotes": '"""',
        "same": text,
        "nul": "\x00\ufeff",
    }[what]
    at = text.rfind("\n", 0, at) + 1
    return (text[:at] + more + text[at:]).encode()[:1_100_000], what


# --- changing protobuf ---


@dataclass(slots=True)
class _Node:
    """One field of a protobuf message: its number, wire type, and value or fields."""

    number: int
    wire: int
    value: Any


_INSIDE = {
    "model": {7: "graph", 8: "opset", 14: "entry"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
    "value": {2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {2: "shape"},
    "shape": {1: "dimension"},
}


def parse_model(data: bytes, message: str = "model") -> list[_Node]:
    """Return the fields of an ONNX file as a tree."""
    nodes, at = [], 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            nodes.append(_Node(number, wire, value))
            continue
        size = {1: 8, 5: 4}.get(wire)
        if size is None:
            size, at = _read_varint(data, at)
        inside, part = _INSIDE.get(message, {}).get(number), data[at : at + size]
        nodes.append(_Node(number, wire, parse_model(part, inside) if inside and wire == 2 else part))
        at += size
    return nodes


def write_model(nodes: list[_Node]) -> bytes:
    """Return a tree of fields as bytes."""
    out = bytearray()
    for node in nodes:
        out += _varint(node.number << 3 | node.wire)
        if node.wire == 0:
            out += _varint(node.value % 2**64)
        else:
            content = write_model(node.value) if isinstance(node.value, list) else node.value
            out += content if node.wire in (1, 5) else _varint(len(content)) + content
    return bytes(out)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _lists(nodes: list[_Node]) -> Iterator[list[_Node]]:
    yield nodes
    for node in nodes:
        if isinstance(node.value, list):
            yield from _lists(node.value)


_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 63, 1000, 2**16, 2**26, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_OPERATORS = (b"Loop", b"If", b"Scan", b"EPContext", b"Resize", b"Conv", b"ConvTranspose", b"Pad", b"Tile",
              b"Expand", b"Gather", b"Slice", b"Reshape", b"Einsum", b"LSTM", b"MaxPool", b"Range", b"TopK", b"Cast",
              b"ConstantOfShape", b"OneHot", b"CumSum", b"DFT", b"STFT", b"Col2Im", b"Split", b"")  # fmt: skip


def change_model(chance: random.Random, content: bytes) -> tuple[bytes, str]:
    """Change fields of an ONNX file, knowing what they are."""
    if chance.random() < 0.25:
        return change_bytes(chance, content)
    nodes = parse_model(content)
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        lists = [fields for fields in _lists(nodes) if fields]
        fields = chance.choice(lists)
        index = chance.randrange(len(fields))
        done.append(_change_field(chance, lists, fields, index))
    return write_model(nodes), "; ".join(done)


def _change_field(chance: random.Random, lists: list[list[_Node]], fields: list[_Node], index: int) -> str:
    node = fields[index]
    what = chance.choice(("value", "value", "value", "operator", "delete", "twice", "number", "move", "wire"))
    if what == "delete":
        del fields[index]
    elif what == "twice":
        fields.insert(index, node)
    elif what == "number":
        node.number = chance.choice((node.number + 1, max(1, node.number - 1), 13, 14, 20, 25, 100, 2**28))
    elif what == "move":
        other = chance.choice(lists)
        other.insert(chance.randrange(len(other) + 1), copy.deepcopy(chance.choice(chance.choice(lists))))
    elif what == "wire" and not isinstance(node.value, list):
        node.wire, node.value = (2, b"\x01") if node.wire == 0 else (0, 1)
    elif what == "operator":
        ops = [field for part in lists for field in part if field.number == 4 and isinstance(field.value, bytes)]
        chosen = chance.choice(ops) if ops else node
        if isinstance(chosen.value, bytes):
            chosen.value = chance.choice(_OPERATORS)
    elif node.wire == 0:
        node.value = chance.choice(_NUMBERS)
    elif isinstance(node.value, bytes):
        if node.wire == 2 and len(node.value) % 8 == 0 and 0 < len(node.value) <= 64 and chance.random() < 0.7:
            places = len(node.value) // 8  # an int64 tensor: a shape, an axis, where a slice ends
            numbers = list(struct.unpack(f"<{places}q", node.value))
            numbers[chance.randrange(places)] = chance.choice((0, -1, 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)))
            node.value = struct.pack(f"<{places}q", *numbers)
        elif node.wire == 2:
            node.value, _ = change_bytes(chance, node.value)
        else:
            node.value = chance.choice((bytes(len(node.value)), b"\xff" * len(node.value)))
    return f"{what} of field {node.number}"


# --- graphs that are right in form, and ask for anything ---

_WORDS = ("", "ij,jk->ik", "i->", "...->", "i" * 40 + "->i", "linear", "cubic", "nearest", "reflect", "wrap", "edge",
          "SAME_UPPER", "VALID", "NOTSET", "bidirectional", "add", "asymmetric", "floor", "DCR", "zeros")  # fmt: skip
_KINDS = {"tensor(float)": 1, "tensor(int64)": 7, "tensor(int32)": 6, "tensor(bool)": 9, "tensor(uint8)": 2,
          "tensor(int8)": 3}  # fmt: skip
_CARD = """
name = "graph"
version = "1"
task = "nothing"
licence = "CC0"
sha256 = "SHA256"
samplerate = 16000
hop = 16
latency = 0
receptive_field = 16
tolerance = 1e6

[[inputs]]
name = "x"
shape = [1, 4, 4]
dtype = "float32"
unit = "1"
axes = ["a", "b", "c"]

[[outputs]]
name = "y"
shape = [1]
dtype = "float32"
unit = "1"
axes = ["a"]

[[data]]
name = "none"
licence = "CC0"
note = "made by chance"

[[metrics]]
name = "none"
value = 0
unit = "1"
command = "none"
"""


@cache
def _schemas() -> dict[tuple[str, str], Any]:
    """Return ONNX Runtime's own description of every operator, the newest of each that opset 18 has."""
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    found: dict[tuple[str, str], Any] = {}
    for schema in sorted(runtime.get_all_operator_schema(), key=lambda schema: schema.since_version):
        if schema.since_version <= 18:
            found[schema.domain, schema.name] = schema
    return found


def random_graph(chance: random.Random) -> tuple[bytes, str]:
    """Return a model of one operator, whose inputs are of types that it takes, and hold anything.

    Its sum is the output, so that whatever it is, it is run.
    """
    domain = chance.choice(("", "", "", "com.microsoft"))
    op = chance.choice(sorted(op for op in OPERATORS[domain] if (domain, op) in _schemas()))
    schema = _schemas()[domain, op]
    constants, inputs = [], []
    for place in range(chance.randint(schema.min_input, min(schema.max_input, schema.min_input + 3))):
        kinds = [
            kind for name, kind in _KINDS.items() if name in schema.inputs[min(place, len(schema.inputs) - 1)].types
        ]
        kind = chance.choice(kinds[:1] * 4 + kinds) if kinds else 1
        inputs.append("x" if kind == 1 and chance.random() < 0.4 else f"c{place}")
        constants.append(_random_tensor(chance, f"c{place}", kind))
    attributes = [
        _random_attribute(chance, name, str(attribute.type).rpartition(".")[2])
        for name, attribute in sorted(schema.attributes.items())
        if attribute.required or chance.random() < 0.4
    ]
    one = _tensor("one", 7, (1,), struct.pack("<q", 1))
    outputs = ["o", *(f"o{n}" for n in range(1, schema.min_output))]
    nodes = [
        _node(op, inputs, outputs, domain, [attribute for attribute in attributes if attribute]),
        _node("Cast", ["o"], ["f"], "", [_attribute("to", 3, 1)]),
        _node("ReduceSum", ["f"], ["s"], "", [_attribute("keepdims", 3, 0)]),
        _node("Reshape", ["s", "one"], ["y"], "", []),
    ]
    graph = [_Node(1, 2, node) for node in nodes] + [_Node(2, 2, b"g")]
    graph += [_Node(5, 2, tensor) for tensor in (*constants, one)]
    graph += [_Node(11, 2, _value("x", (1, 4, 4))), _Node(12, 2, _value("y", (1,)))]
    opsets = [[_Node(1, 2, b""), _Node(2, 0, 18)], [_Node(1, 2, b"com.microsoft"), _Node(2, 0, 1)]]
    model = [_Node(1, 0, 10), *(_Node(8, 2, opset) for opset in opsets), _Node(7, 2, graph)]
    return write_model(model), f"a graph with {domain}:{op}"


def _node(op: str, inputs: list[str], outputs: list[str], domain: str, attributes: list[list[_Node]]) -> list[_Node]:
    texts = [_Node(number, 2, name.encode()) for number, names in ((1, inputs), (2, outputs)) for name in names]
    return [
        *texts,
        _Node(4, 2, op.encode()),
        _Node(7, 2, domain.encode()),
        *(_Node(5, 2, each) for each in attributes),
    ]


def _attribute(name: str, number: int, value: Any) -> list[_Node]:
    """Return an attribute whose value is in field ``number`` of its message."""
    kinds = {2: 1, 3: 2, 4: 3, 5: 4, 7: 6, 8: 7}
    values = value if number in (7, 8) else [value]
    wire = {2: 5, 3: 0, 4: 2, 5: 2, 7: 5, 8: 0}[number]
    return [_Node(1, 2, name.encode()), *(_Node(number, wire, each) for each in values), _Node(20, 0, kinds[number])]


def _random_attribute(chance: random.Random, name: str, kind: str) -> list[_Node]:
    """Return an attribute of a kind by its name in the schema; none for kinds that are not allowed anyway."""
    numbers = (0, 1, 1, 2, 3, 4, -1, -2, 16, 100, 2**20, 2**31 - 1, -(2**31) + 1, 2**63 - 1)
    floats = [struct.pack("<f", value) for value in (0, 1, -1, 0.5, 1e30, math.inf, math.nan)]
    plain = numbers if chance.random() < 0.4 else (0, 1, 1, 2, 3)
    values: dict[str, tuple[int, Any]] = {
        "FLOAT": (2, chance.choice(floats)),
        "INT": (3, chance.choice(plain)),
        "STRING": (4, chance.choice(_WORDS).encode()),
        "TENSOR": (5, _random_tensor(chance, "", chance.choice((1, 7)))),
        "FLOATS": (7, [chance.choice(floats) for _ in range(chance.randrange(6))]),
        "INTS": (8, [chance.choice(plain) for _ in range(chance.choice((1, 1, 2, 2, 4, 3, 0, 8)))]),
    }
    return _attribute(name, *values[kind]) if kind in values else []


def _tensor(name: str, kind: int, dims: tuple[int, ...], raw: bytes) -> list[_Node]:
    return [*(_Node(1, 0, n) for n in dims), _Node(2, 0, kind), _Node(8, 2, name.encode()), _Node(9, 2, raw)]


_ELEMENTS: dict[int, tuple[str, tuple[float, ...]]] = {
    1: ("f", (0.0, 1.0, -1.0, 0.5, 1e30, math.inf, math.nan)),
    2: ("B", (0, 1, 127, 255)),
    3: ("b", (0, 1, -128, 127)),
    6: ("i", (0, 1, -1, 2, 2**31 - 1, -(2**31))),
    7: ("q", (0, 1, -1, 2, 4, 16, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))),
    9: ("B", (0, 1)),
}


def _random_tensor(chance: random.Random, name: str, kind: int) -> list[_Node]:
    dims = tuple(chance.choice((0, 1, 1, 2, 3, 4, 4, 8)) for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 3, 4))))
    form, values = _ELEMENTS[kind]
    if kind == 7 and chance.random() < 0.6:
        values = (0, 1, 1, 2, 3, 4, -1)
    count = math.prod(dims)
    return _tensor(name, kind, dims, struct.pack(f"<{count}{form}", *(chance.choice(values) for _ in range(count))))


def _value(name: str, dims: tuple[int, ...]) -> list[_Node]:
    shape = [_Node(1, 2, [_Node(1, 0, n)]) for n in dims]
    return [_Node(1, 2, name.encode()), _Node(2, 2, [_Node(1, 2, [_Node(1, 0, 1), _Node(2, 2, shape)])])]


# --- whole files, and mutants of them ---

SESSION = """
[session]
name = "mutant"
seed = 3

[stream]
device = "null"
samplerate = 16000
blocksize = 128
inputs = [1]
outputs = 4
lead = 512
latency = 64

[transport]
bpm = "240/1"
meter = "4/4"
count_in_bars = 1
downbeat_seconds = 0.25
chart = ["C Am", "-", "G7 F"]

[[transport.changes]]
bar = 2
beat = "1/2"
bpm = 200
ramp_beats = 4

[[transport.changes]]
bar = 4
meter = "3/4"

[mixer]
monitor = true
monitor_gain_db = -6.0
monitor_outputs = [3, 4]
ceiling_db = -1.0

[metronome]
on = true
outputs = [4]
gain_db = -12.0

[[agents]]
name = "keys"
kind = "corpus"
corpus = "corpus"
grid_beats = 1
pan = -0.5
budget_seconds = 0.1
options = { taboo = 8, max_continuity = 4 }

[[agents]]
name = "echo"
kind = "echo"
listens = "keys"
follows = ["keys"]
gain_db = -3.0
outputs = [2]

[take]
folder = "takes"
record = true
"""


class Material:
    """Whole files in a folder, and what makes mutants of them. One thread.

    Parameters
    ----------
    folder
        An empty one. A mutant lies in it until the next is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: dict[Path, bytes] = {}
        self._changed: set[Path] = set()
        self._new_take = 0
        shutil.copytree(MODEL, folder / "model")
        (folder / "graph").mkdir()
        (folder / "graph" / "model.onnx").touch()
        (folder / "graph" / "card.toml").write_text(_CARD)
        steps = np.random.default_rng(1).normal(0, 1, (2, 1, 4, 4)).astype(np.float32)
        np.savez(folder / "graph" / "golden.npz", **{"input.x": steps, "output.y": steps[:, 0, 0, :1]})  # type: ignore[arg-type]
        self._player(folder / "player.wav")
        corpora.build([folder / "player.wav", folder / "player.flac"], folder / "corpus", bpm=240, labels=4)
        (folder / "session.toml").write_text(SESSION)
        here, steady = f'corpus = "{folder / "corpus"}"', '[[transport.changes]]\nbar = 4\nmeter = "3/4"\n'
        (folder / "played.toml").write_text(SESSION.replace('corpus = "corpus"', here).replace(steady, ""))
        offline.render(Session.load(folder / "played.toml"), folder / "player.wav", folder / "take")
        for path in folder.rglob("*"):
            if path.is_file():
                self._whole[path] = path.read_bytes()
        self._makers: dict[str, Callable[[random.Random], tuple[str, Path, Callable[[Gate], object]]]] = {
            "model": self._model,
            "graph": self._graph,
            "card": self._card,
            "golden": self._golden,
            "corpus": self._corpus,
            "session": self._session,
            "take": self._take,
        }

    def _player(self, path: Path) -> None:
        import soundfile

        at = np.arange(3 * RATE // 2) / RATE
        notes = np.sin(2 * np.pi * 220 * 2 ** (np.floor(at * 8) / 12) * at) * np.exp(-8 * (at * 8 % 1))
        for file in (path, path.with_suffix(".flac")):
            soundfile.write(file, (0.5 * notes).astype(np.float32), RATE)

    def mutant(self, seed: int) -> Mutant:
        """Put a mutant in place of a whole file; whatever was changed before is whole again."""
        for path in self._changed:
            if path.is_symlink() or not path.is_file():
                _remove(path)
            path.write_bytes(self._whole[path])
        self._changed.clear()
        chance = random.Random(seed)
        weights = {"model": 20, "graph": 20, "card": 14, "golden": 4, "corpus": 16, "session": 14, "take": 12}
        kind = chance.choices(list(weights), list(weights.values()))[0]
        change, path, meet = self._makers[kind](chance)
        return Mutant(kind, seed, change, path, meet)

    def _write(self, path: Path, content: bytes) -> None:
        self._changed.add(path)
        path.write_bytes(content)

    def _replace(self, chance: random.Random, path: Path) -> str | None:
        """Now and then make a file something else: nothing, a folder, a link, a pipe."""
        what = chance.choice(("gone", "folder", "link out", "link to itself", "device", "empty"))
        if chance.random() > 0.03:
            return None
        self._changed.add(path)
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what == "link out":
            path.symlink_to(ROOT / "README.md")
        elif what == "link to itself":
            path.symlink_to(path.name)
        elif what == "device":
            path.symlink_to("/dev/zero")
        elif what == "empty":
            path.touch()
        return f"{path.name}: {what}"

    # -- one kind each --

    def _model(self, chance: random.Random) -> tuple[str, Path, Callable[[Gate], object]]:
        folder = self.folder / "model"
        path = folder / "model.onnx"
        change = self._replace(chance, path)
        if change is None:
            content, change = change_model(chance, self._whole[path])
            self._write(path, content)
            if chance.random() < 0.97:
                self._sign_model(folder, content)
        return change, folder, self._open_model

    def _sign_model(self, folder: Path, content: bytes) -> None:
        card = self._whole[folder / "card.toml"].decode()
        signed = re.sub(r'sha256 = "\w+"', f'sha256 = "{hashlib.sha256(content).hexdigest()}"', card)
        self._write(folder / "card.toml", signed.encode())

    def _graph(self, chance: random.Random) -> tuple[str, Path, Callable[[Gate], object]]:
        folder = self.folder / "graph"
        content, change = random_graph(chance)
        self._write(folder / "model.onnx", content)
        self._sign_model(folder, content)
        return change, folder, lambda gate: gate.ask("model", folder, folder=str(folder), provider="cpu")

    def _card(self, chance: random.Random) -> tuple[str, Path, Callable[[Gate], object]]:
        path = self.folder / "model" / "card.toml"
        change = self._replace(chance, path)
        if change is None:
            content, change = change_toml(chance, self._whole[path])
            self._write(path, content)
        return change, self.folder / "model", self._open_model

    def _golden(self, chance: random.Random) -> tuple[str, Path, Callable[[Gate], object]]:
        path = self.folder / "model" / "golden.npz"
        change = self._replace(chance, path)
        if change is None:
            content, change = (change_bytes, change_header)[chance.random() < 0.5](chance, self._whole[path])
            self._write(path, content)
        return change, self.folder / "model", self._open_model

    def _open_model(self, gate: Gate) -> object:
        folder = str(self.folder / "model")
        return gate.ask("model", folder, folder=folder, provider="cpu")

    def _corpus(self, chance: random.Random) -> tuple[str, Path, Callable[[Gate], object]]:
        folder = self.folder / "corpus"
        part = chance.choice(("description", "array", "array", "audio", "audio"))
        below = {"description": "corpus.toml", "array": "units/*.npy", "audio": "audio/*"}[part]
        path = chance.choice(sorted(p for p in self._whole if p.relative_to(folder.parent).match(f"corpus/{below}")))
        if (change := self._replace(chance, path)) is None:
            whole = self._whole[path]
            if part == "description":
                content, change = change_toml(chance, whole)
            elif part == "array" and chance.random() < 0.4:
                content, change = _change_array(chance, whole)
            else:
                content, change = (change_bytes, change_header)[chance.random() < 0.6](chance, whole)
            self._write(path, content)
            if part != "description" and chance.random() < 0.97:
                self._sign(folder / "corpus.toml", path, content)
        change = f"{path.name}: {change}"
        if chance.random() < 0.15:  # an agent plays from it
            return f"{change}, played", folder, self._play
        return change, folder, lambda gate: gate.ask("corpus", folder, folder=str(folder), verify=True)

    def _sign(self, description: Path, path: Path, content: bytes) -> None:
        """Make the hashes of a corpus right again."""
        before, text = self._whole[path], self._whole[description].decode()
        text = text.replace(hashlib.sha256(before).hexdigest(), hashlib.sha256(content).hexdigest())
        if path.parent.name == "audio":
            tables = text.split("[[sources]]")
            for index, table in enumerate(tables):
                if f'file = "{path.name}"' in table:
                    tables[index] = re.sub(r"size_bytes = \d+", f"size_bytes = {len(content)}", table)
            text = "[[sources]]".join(tables)
        self._write(description, text.encode())

    def _play(self, gate: Gate) -> object:
        text, player = (self.folder / "played.toml").read_text(), str(self.folder / "player.wav")
        return self._performed(
            gate, "render", self.folder / "corpus", session=text, path=None, source=player, blocksize=1024
        )

    def _session(self, chance: random.Random) -> tuple[str, Path, Callable[[Gate], object]]:
        path = self.folder / "session.toml"
        if (change := self._replace(chance, path)) is None:
            content, change = change_toml(chance, self._whole[path])
            self._write(path, content)

        def load(gate: Gate) -> object:
            session = Session.load(path)
            app.engine_config(session, session.spec(), live=True)
            return Session.parse(session.toml())

        return change, path, load

    def _take(self, chance: random.Random) -> tuple[str, Path, Callable[[Gate], object]]:
        folder = self.folder / "take"
        log = chance.random() < 0.75
        path = folder / "take.jsonl" if log else chance.choice([folder / "input.wav", *(folder / "stems").iterdir()])
        if (change := self._replace(chance, path)) is None:
            whole = self._whole[path]
            if log and chance.random() < 0.75:
                content, change = _change_lines(chance, whole)
            else:
                content, change = (change_bytes, change_header)[not log and chance.random() < 0.6](chance, whole)
            self._write(path, content)
        change = f"{path.name}: {change}"
        if chance.random() < 0.4:
            return change, folder, lambda gate: gate.ask("take", folder, folder=str(folder))
        return f"{change}, replayed", folder, lambda gate: self._performed(gate, "replay", folder, folder=str(folder))

    def _performed(self, gate: Gate, task: str, about: Path, **arguments: Any) -> object:
        """Have something played within the time of an opening: it is a second and a half of music."""
        out = self.folder / "out"
        try:
            return gate.ask(task, about, out=str(out), **arguments)
        finally:
            shutil.rmtree(out, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _change_array(chance: random.Random, content: bytes) -> tuple[bytes, str]:
    """Change what an array holds, or what its header says of it; it is well made all the same."""
    array = np.frombuffer(content[128:], re.search(rb"'descr': '([^']+)'", content)[1].decode()).copy()  # type: ignore[index]
    shape = tuple(int(n) for n in re.search(rb"'shape': \(([^)]*)\)", content)[1].split(b",") if n.strip())  # type: ignore[index]
    array = array.reshape(shape)
    what = chance.choice(("one", "all", "fewer", "more", "type", "axes", "says"))
    value = chance.choice((0, -1, 2**31 - 1, 1e30, math.nan, math.inf, 1000))
    kept = value if array.dtype.kind == "f" else int(np.clip(np.nan_to_num(value), -(2**31), 2**31 - 1))
    if what == "one":
        array.flat[chance.randrange(array.size)] = kept
    elif what == "all":
        array[...] = kept
    elif what == "fewer":
        array = array[: chance.randrange(len(array))]
    elif what == "more":
        array = np.concatenate([array] * chance.randint(2, 50))
    elif what == "type":
        array = array.astype(chance.choice(("f8", "f2", "i8", "u1", "S4", "?")))
    elif what == "axes":
        array = array.reshape(-1, 1)
    import io

    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    made = out.getvalue()
    if what == "says":
        lie = chance.choice(
            (b"(9999999999,)", b"(-1,)", b"((((((((", b"(1e9,)", b"()", b"(0,)", b"(2, 3, 4, 5, 6, 7, 8, 9, 1)")
        )
        header = re.sub(rb"\([^)]*\)", lie, made[:128])[:128].ljust(128)
        made = header + made[128:]
    return made, f"array: {what}"


def _deep(levels: int) -> bytes:
    return b'{"type": "request", "agent": ' + b"[" * levels + b"]" * levels + b"}"


_RUBBISH = (b"{", b"[" * 100_000, b"null", b"\xff\xfe", b'{"type": 1}', b"", b"1" * 5000, _deep(300), _deep(960))


def _change_lines(chance: random.Random, content: bytes) -> tuple[bytes, str]:
    """Change a line of a take, most often the first: its keys and values, or where it stands."""
    lines = content.splitlines()
    done = []
    for _ in range(chance.choice((1, 1, 1, 3))):
        at = 0 if chance.random() < 0.5 else chance.randrange(len(lines))
        what = chance.choice(("tree", "tree", "tree", "tree", "delete", "twice", "swap", "rubbish"))
        if what == "tree":
            try:
                tree = json.loads(lines[at])
            except (ValueError, RecursionError):
                continue
            if not isinstance(tree, (dict, list)):
                continue
            with suppress(RecursionError):  # it may grow too deep for us to write
                what = change_tree(chance, tree)
                lines[at] = json.dumps(tree).encode()
        elif what == "delete" and len(lines) > 1:
            del lines[at]
        elif what == "twice":
            lines.insert(at, lines[at])
        elif what == "swap":
            other = chance.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines[at] = chance.choice(_RUBBISH)
        done.append(f"{what} in line {at + 1}")
    return b"\n".join(lines) + b"\n", "; ".join(done)


# --- meeting them ---


def unclear(sentence: str, mutant: Mutant) -> str:
    """Say what is wrong with a sentence that refuses a mutant; empty if nothing is."""
    if BARE.search(sentence):
        return "says nothing"
    if "\n" in sentence or len(sentence) > SENTENCE_CHARS or not sentence.isprintable():
        return "is not one line of up to 1000 characters that can be shown"
    named = (str(mutant.path), mutant.path.name, "agent ", "corpus.toml", "take.jsonl", "the take")
    return "" if any(name in sentence for name in named) else "names neither file nor agent"


@dataclass(frozen=True, slots=True)
class Meeting:
    """How the bridge met a mutant.

    Attributes
    ----------
    said
        The sentence that refused it; empty if it was opened.
    seconds
        How long that took.
    died, unforeseen
        Whether the child died of it, or met an error that nobody has put into words.
    ended
        An error that the command does not turn into a sentence: it would have ended the bridge.
    """

    said: str
    seconds: float
    died: bool = False
    unforeseen: bool = False
    ended: str = ""


def meet(gate: Gate, mutant: Mutant) -> Meeting:
    """Open a mutant as the bridge would."""
    begin = time.perf_counter()
    said, died, unforeseen, ended = "", False, False, ""
    try:
        mutant.meet(gate)
    except GateError as error:
        said, died, unforeseen = str(error), not error.unforeseen, error.unforeseen
    except (ValueError, OSError) as error:  # what the command turns into a sentence
        said = str(error)
    except Exception as error:  # noqa: BLE001 - that there is none is what is shown
        ended = f"{type(error).__name__}: {error}"
    return Meeting(said, time.perf_counter() - begin, died, unforeseen, ended)


def run(count: int, seed: int = 1, tell: Callable[[Tally], None] = lambda tally: None, gates: int = 2) -> Tally:
    """Make and meet ``count`` mutants, from ``seed`` on, at as many gates side by side."""
    tally, begin = Tally(), time.perf_counter()
    seeds, lock = iter(range(seed, seed + count)), threading.Lock()

    def work() -> None:
        with tempfile.TemporaryDirectory() as scratch, Gate(GATE_MEMORY_BYTES) as gate:
            material = Material(Path(scratch))
            gate.start("bridge.offline", "bridge.recorder", "realtime.inference", "onnxruntime", "soundfile")
            whole = Mutant("model", 0, "", MODEL, lambda gate: gate.ask(
                "model", MODEL, seconds=60.0, folder=str(MODEL), provider="cpu"
            ))  # fmt: skip
            whole.meet(gate)
            while True:
                with lock:
                    mutant_seed = next(seeds, None)
                if mutant_seed is None:
                    return
                mutant = material.mutant(mutant_seed)
                meeting = meet(gate, mutant)
                control = None
                if mutant_seed % CONTROL_EVERY == 0:
                    whole.meet(gate)  # the first time a new child would import what it needs
                    control = meet(gate, whole).seconds
                with lock:
                    tally.add(mutant, meeting)
                    tally.control += [] if control is None else [control]
                    tell(tally)

    with ThreadPoolExecutor(gates) as pool:
        for work_done in [pool.submit(work) for _ in range(gates)]:
            work_done.result()
    tally.seconds = time.perf_counter() - begin
    return tally


def mutant_rows(count: int, seed: int = 1) -> list[Row]:
    """Return the rows of the benchmark: how many mutants were met, and what became of the bridge."""
    tally = run(count, seed)
    tried, refused = tally.tried.total(), tally.tried.total() - tally.opened.total()
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(tally.tried.items()))
    bad = [*tally.unforeseen, *tally.unclear]
    return [
        Row("faults", "mutants met", tried, "1", f">= {count}", tried >= count, kinds),
        Row("faults", "mutants, deaths of bridge or engine", len(tally.ended), "1", "0", not tally.ended,
            " | ".join(tally.ended[:2]) or f"{refused} refused, the rest opened"),
        _late_row(tally),
        Row("faults", "mutants, refused without a clear sentence", len(bad), "1", "0", not bad, " | ".join(bad[:2])),
        Row("faults", "mutants, children of the gate that died in the bridge's place", len(tally.died), "1",
            "any", None, "a number to know, not to reach: " + (" | ".join(tally.died[:2]) or "none")),
    ]  # fmt: skip


def _late_row(tally: Tally) -> Row:
    """Return the row of what took too long; where whole files took long as well, it was the machine."""
    worst = max(tally.control, default=0.0)
    ok = not tally.late or (None if worst > CONTROL_SECONDS else False)
    said = f"the slowest took {tally.slowest_seconds:.2f} s: {tally.slowest}; a whole model {worst:.2f} s at most"
    return Row("faults", "mutants, answered later than in 1 s", len(tally.late), "1", "0", ok, said)


def main() -> None:
    """Run from the command line, for a closer look."""
    parser = argparse.ArgumentParser(description="Open damaged and hostile files at the bridge's gate.")
    parser.add_argument("count", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def tell(tally: Tally) -> None:
        if tally.tried.total() % 1000 == 0:
            bad = len(tally.late) + len(tally.unclear) + len(tally.unforeseen) + len(tally.ended)
            print(f"{tally.tried.total()}: {len(tally.died)} children died, {bad} to look at", flush=True)

    tally = run(options.count, options.seed, tell)
    for name in ("ended", "late", "unforeseen", "unclear", "died"):
        for sentence in getattr(tally, name):
            print(f"  {name}: {sentence[:600]}")
    for kind, tried in sorted(tally.tried.items()):
        print(f"{kind:8} tried {tried}, opened {tally.opened[kind]}")
    pace = 60 * tally.tried.total() / tally.seconds
    print(f"{pace:.0f} a minute; the slowest took {tally.slowest_seconds:.2f} s: {tally.slowest}")
    print(f"a whole model took {max(tally.control, default=0):.2f} s at most")


if __name__ == "__main__":
    main()
