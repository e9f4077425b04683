"""What an ONNX file may hold, read from its bytes before ONNX Runtime sees any of them.

A model may come from a stranger, and a graph can crash the runtime (a chain of 3,000 functions overflows its stack),
keep it busy for ever (``Loop``), reach outside the file (external data) or bring native code (``EPContext``). So the
protobuf is walked here, by the field numbers of onnx.proto, and everything not named in the tables below is refused:
what the runtime is given is what was looked at. Neither the onnx package nor the runtime takes part.

The walk is bounded by the limits below, whatever the bytes are: it takes microseconds for a field, and weights are
measured without being read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NODES = 10_000
FIELDS = 1_000_000
"""A field costs the walk a microsecond or two; a node has about twenty."""
GRAPH_DEPTH = 4
"""The graph itself, and branches of ``If`` in branches of ``If``."""
GRAPHS = 256
NAME_BYTES = 1000
TEXT_BYTES = 1 << 16
"""Exporters keep a stack trace with every node."""
RANK = 16
ELEMENTS = 1 << 31
NUMBER = 1 << 31
"""Attributes count kernels, axes and steps; two further values mean "to the end", see ``_ENDS``."""
_ENDS = (2**63 - 1, -(2**63))

_STANDARD = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitShift
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im
    Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT DeformConv
    DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
    InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix
    Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization
    RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RotaryEmbedding Round STFT Scatter ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample
    Where Xor
"""
_MICROSOFT = """
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ConvTransposeWithDynamicPads DequantizeLinear
    DynamicQuantizeLSTM DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation Gelu
    GemmFastGelu GroupNorm GroupQueryAttention LayerNormalization MatMulInteger16 MatMulIntegerToFloat MatMulNBits
    MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat
    QLinearGlobalAveragePool QLinearMul QLinearReduceMean
    QOrderedMatMul QuantizeLinear QuantizeWithOrder QuickGelu RotaryEmbedding SimplifiedLayerNormalization
    SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu
"""
OPERATORS = {
    "": frozenset(_STANDARD.split()),
    "ai.onnx": frozenset(_STANDARD.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
}
"""Operators by domain: what inference needs. Left out are loops (no bound), sequences, text, images, chance (a take
could not be replayed), training, trees, and whatever carries compiled code."""
_WHY_NOT = {
    "EPContext": "it has an EPContext node, which is somebody's compiled code; export plain operators",
    **dict.fromkeys(
        ("Loop", "Scan", "SequenceMap"),
        "it has a loop ({op}), whose length nobody can bound; unroll it, or step the model from outside",
    ),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
        "it draws random numbers ({op}), so a take could not be replayed; give them to it as an input",
    ),
}
_NOT_ONNX = "it is no ONNX file: its bytes are no protobuf"
_CUT = "it is no whole ONNX file: it ends early; was it copied completely?"
_EXTERNAL = "it keeps weights outside the file (external data); export one file with everything in it"

Part = tuple[int, int]
"""First byte of a part of the file, and the byte after its last."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field is written: its wire type; whether it may come often; numbers that come often may be packed."""

    wire: int
    often: bool = False


_ONE, _MANY = _Field(_BYTES), _Field(_BYTES, True)
_INT, _INTS = _Field(_VARINT), _Field(_VARINT, True)
_MESSAGES: dict[str, dict[int, _Field]] = {
    "model": {1: _INT, 2: _ONE, 3: _ONE, 4: _ONE, 5: _INT, 6: _ONE, 7: _ONE, 8: _MANY, 14: _MANY, 20: _MANY,
              25: _MANY},
    "opset": {1: _ONE, 2: _INT},
    "entry": {1: _ONE, 2: _ONE},
    "graph": {1: _MANY, 2: _ONE, 5: _MANY, 10: _ONE, 11: _MANY, 12: _MANY, 13: _MANY, 14: _MANY, 15: _MANY,
              16: _MANY},
    "annotation": {1: _ONE, 2: _MANY},
    "node": {1: _MANY, 2: _MANY, 3: _ONE, 4: _ONE, 5: _MANY, 6: _ONE, 7: _ONE, 8: _ONE, 9: _MANY},
    "attribute": {1: _ONE, 2: _Field(_FOUR), 3: _INT, 4: _ONE, 5: _ONE, 6: _ONE, 7: _Field(_FOUR, True), 8: _INTS,
                  9: _MANY, 10: _MANY, 11: _MANY, 13: _ONE, 14: _ONE, 15: _MANY, 20: _INT, 21: _ONE, 22: _ONE,
                  23: _MANY},
    "tensor": {1: _INTS, 2: _INT, 3: _ONE, 4: _Field(_FOUR, True), 5: _INTS, 6: _MANY, 7: _INTS, 8: _ONE, 9: _ONE,
               10: _Field(_EIGHT, True), 11: _INTS, 12: _ONE, 13: _MANY, 14: _INT, 16: _MANY},
    "value": {1: _ONE, 2: _ONE, 3: _ONE, 4: _MANY},
    "type": {1: _ONE, 6: _ONE},
    "tensor type": {1: _INT, 2: _ONE},
    "shape": {1: _MANY},
    "dimension": {1: _INT, 2: _ONE, 3: _ONE},
}  # fmt: skip
"""Fields of onnx.proto by message. One that is not here is refused, as is one that comes twice and may not: a reader
may merge the two into something that was never looked at."""

_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
         17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4}  # fmt: skip
"""Bits of an element, by ``TensorProto.DataType``; text and complex numbers are not here."""
_TYPED = {1: 4, 11: 10, 7: 7, 12: 11, 13: 11}
"""The field that holds elements of a type where they are not raw; all others are in 5."""
_SLOTS = {4: 4, 10: 8}
"""Bytes of a packed element in the fields whose elements all have the same size."""


def check_model(model: bytes) -> None:
    """Refuse a model that is not plain inference within its own bytes, without loading it.

    Parameters
    ----------
    model
        The whole file. Give these very bytes to the runtime, not the file again.

    Raises
    ------
    ValueError
        With words that begin with "it": bytes that are no ONNX file or an ORT-format one, an operator that is not in
        :data:`OPERATORS`, a function, external data, weights of another size than they say, sizes past a limit.
    """
    if model[4:8] == b"ORTM":
        raise ValueError("it is in ORT format, which cannot be checked; export it as ONNX")
    _Walk(model).model()


class _Walk:
    """One walk through one model; counts what is limited in all."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields = self._nodes = self._graphs = 0

    # -- messages, from the outside in --

    def model(self) -> None:
        found = self._read("model", (0, len(self._data)))
        if 7 not in found:
            raise ValueError("it is no ONNX file: there is no graph in it")
        if 25 in found:
            raise ValueError("it has functions of its own; export it with them inlined")
        if 20 in found:
            raise ValueError("it has parts for training; export it for inference")
        self._texts(found, 2, 3, 4, 6)
        self._entries(found.get(14, ()))
        for part in found.get(8, ()):
            self._names(self._read("opset", part), 1)
        self._graph(found[7][0], depth=1)

    def _graph(self, part: Part, depth: int) -> None:
        self._graphs += 1
        if depth > GRAPH_DEPTH or self._graphs > GRAPHS:
            raise ValueError(f"its graphs are nested more than {GRAPH_DEPTH} deep, or are more than {GRAPHS}")
        found = self._read("graph", part)
        if 15 in found:
            raise ValueError("it has sparse weights; export them dense")
        self._names(found, 2)
        self._texts(found, 10)
        self._entries(found.get(16, ()))
        for part in found.get(5, ()):
            self._tensor(part)
        for number in (11, 12, 13):
            for part in found.get(number, ()):
                self._value(part)
        for part in found.get(14, ()):
            annotation = self._read("annotation", part)
            self._names(annotation, 1)
            self._entries(annotation.get(2, ()))
        self._nodes += len(found.get(1, ()))
        if self._nodes > NODES:
            raise ValueError(f"it has more than {NODES} nodes, which is the limit; is it meant for real time?")
        for part in found.get(1, ()):
            self._node(part, depth=depth)

    def _node(self, part: Part, depth: int) -> None:
        found = self._read("node", part)
        op, domain = self._name(found, 4), self._name(found, 7)
        if op not in OPERATORS.get(domain, ()):
            said = f"{domain}:{op}" if domain else op
            words = _WHY_NOT.get(op, "it has an operator {op!r}, which is not among those allowed here")
            raise ValueError(words.format(op=said[:100]))
        self._names(found, 1, 2, 3, 8)
        self._texts(found, 6)
        self._entries(found.get(9, ()))
        for part in found.get(5, ()):
            self._attribute(part, op=op, depth=depth)

    def _attribute(self, part: Part, op: str, depth: int) -> None:
        found = self._read("attribute", part)
        if found.keys() & {11, 14, 15, 21, 22, 23} or (6 in found and op != "If"):
            raise ValueError(f"its {op} node has an attribute of a kind that is not allowed here")
        self._names(found, 1)
        self._texts(found, 4, 9, 13)
        for number in (*found.get(3, ()), *self._numbers(found.get(8, ()))):
            if abs(signed := _signed(number)) > NUMBER and signed not in _ENDS:
                raise ValueError(f"its {op} node has an attribute of {signed}; {NUMBER} is the limit")
        for part in (*found.get(5, ()), *found.get(10, ())):
            self._tensor(part)
        for part in found.get(6, ()):
            self._graph(part, depth=depth + 1)

    def _tensor(self, part: Part) -> None:
        found = self._read("tensor", part)
        if 13 in found or found.get(14, [0]) != [0]:
            raise ValueError(_EXTERNAL)
        name = self._name(found, 8)
        self._texts(found, 12)
        self._entries(found.get(16, ()))
        (kind,) = found.get(2, [0])
        if kind not in _BITS or 3 in found or 6 in found:
            raise ValueError(f"its tensor {name[:60]!r} is of a type ({kind}) that is not allowed here")
        elements = self._elements(list(self._numbers(found.get(1, ()))), f"tensor {name[:60]!r}")
        held = found.keys() & {4, 5, 7, 9, 10, 11}
        if held - {9, _TYPED.get(kind, 5)} or len(held) > 1:
            raise ValueError(f"its tensor {name[:60]!r} holds its elements in the wrong place")
        wanted = -(-elements * _BITS[kind] // 8) if 9 in held else elements
        if 5 in held and _BITS[kind] == 4:
            wanted = -(-elements // 2)
        size = sum(self._count(number, found[number]) for number in held)
        if size != wanted:
            raise ValueError(f"its tensor {name[:60]!r} says it has {elements} elements and does not hold just these")

    def _value(self, part: Part) -> None:
        """Check a name with its type: a tensor, and a shape that is not absurd."""
        found = self._read("value", part)
        name = self._name(found, 1)
        self._texts(found, 3)
        self._entries(found.get(4, ()))
        for part in found.get(2, ()):
            for inner in self._read("type", part).get(1, ()):
                for shape in self._read("tensor type", inner).get(2, ()):
                    self._shape(shape, name=name)

    def _shape(self, part: Part, name: str) -> None:
        found = [self._read("dimension", each) for each in self._read("shape", part).get(1, ())]
        for dimension in found:
            self._names(dimension, 2, 3)
        self._elements([dimension.get(1, [1])[0] for dimension in found], repr(name[:60]))

    def _elements(self, dims: Sequence[int], what: str) -> int:
        """Return the product of dimensions, each as its varint stands in the file."""
        if len(dims) > RANK or any(_signed(n) < 0 for n in dims) or (elements := math.prod(dims)) > ELEMENTS:
            shown = [_signed(n) for n in dims[:RANK]]
            raise ValueError(f"its {what} has the shape {shown}; up to {RANK} axes, {ELEMENTS} elements are allowed")
        return elements

    # -- fields --

    def _entries(self, parts: Sequence[Part]) -> None:
        """Check pairs of texts."""
        for part in parts:
            self._texts(self._read("entry", part), 1, 2)

    def _texts(self, found: dict[int, list[Any]], *numbers: int) -> None:
        for number in numbers:
            for low, high in found.get(number, ()):
                if high - low > TEXT_BYTES:
                    raise ValueError(f"it has a text of {high - low} bytes; {TEXT_BYTES} is the limit")

    def _names(self, found: dict[int, list[Any]], *numbers: int) -> None:
        for number in numbers:
            for part in found.get(number, ()):
                self._decoded(part)

    def _name(self, found: dict[int, list[Any]], number: int) -> str:
        return self._decoded(found[number][0]) if number in found else ""

    def _decoded(self, part: Part) -> str:
        """Return a name: short, and text that can be shown."""
        low, high = part
        if high - low <= NAME_BYTES:
            try:
                return self._data[low:high].decode()
            except UnicodeDecodeError:
                pass
        raise ValueError(f"it has a name that is no text of up to {NAME_BYTES} bytes")

    def _numbers(self, parts: Sequence[Any]) -> Sequence[int]:
        """Return varints that stand alone or packed."""
        numbers: list[int] = []
        for part in parts:
            if isinstance(part, int):
                numbers.append(part)
                continue
            at, end = part
            self._count_fields(end - at)
            while at < end:
                number, at = _varint(self._data, at, end)
                numbers.append(number)
        return numbers

    def _count(self, number: int, parts: Sequence[Any]) -> int:
        """Count the elements of a tensor in one field, or its bytes where they are raw; looks at no weight."""
        total = 0
        for part in parts:
            if isinstance(part, int):
                total += 1
                continue
            low, high = part
            if number in (5, 7, 11):  # an element ends at a byte without the high bit
                total += int(np.count_nonzero(np.frombuffer(self._data, np.uint8, high - low, low) < 128))
            elif number == 9:
                total += high - low
            else:
                whole, rest = divmod(high - low, _SLOTS[number])
                total += whole if not rest else -ELEMENTS
        return total

    def _count_fields(self, more: int = 1) -> None:
        self._fields += more
        if self._fields > FIELDS:
            raise ValueError(f"it has more than {FIELDS} fields; it is too intricate to be checked")

    def _read(self, message: str, part: Part) -> dict[int, list[Any]]:
        """Return the fields of one message by number: varints as numbers, anything else as first and last byte."""
        data, known, (at, end) = self._data, _MESSAGES[message], part
        found: dict[int, list[Any]] = {}
        while at < end:
            self._count_fields()
            tag, at = _varint(data, at, end)
            number, wire = tag >> 3, tag & 7
            value: Any
            if wire == _VARINT:
                value, at = _varint(data, at, end)
            else:
                if wire == _BYTES:
                    size, at = _varint(data, at, end)
                elif wire in (_EIGHT, _FOUR):
                    size = 8 if wire == _EIGHT else 4
                else:
                    raise ValueError(_NOT_ONNX)
                value = (at, at + size)
                at += size
            if at > end:
                raise ValueError(_CUT)
            field = known.get(number)
            packed = field is not None and field.often and field.wire != _BYTES and wire == _BYTES
            if field is None or not (wire == field.wire or packed):
                raise ValueError(f"it is no ONNX file of a known kind: a {message} has an unknown field {number}")
            if number not in found:
                found[number] = [value]
            elif field.often:
                found[number].append(value)
            else:
                raise ValueError(f"it is no plain ONNX file: a {message} has field {number} twice")
        return found


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            if value >= 1 << 64:
                break
            return value, at
        if shift >= 70:
            break
    raise ValueError(_CUT if at >= end else _NOT_ONNX)


def _signed(number: int) -> int:
    """Return a varint as the 64-bit integer with a sign that it stands for."""
    return number - (1 << 64) if number >> 63 else number
