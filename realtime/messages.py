"""The words of :mod:`realtime.protocols` as JSON: how requests, clips' metadata and the lines of a take travel.

A frozen dataclass becomes a dict of its fields, a tuple a list, an exact fraction the text ``"n/d"`` (``"n"`` where
it is whole) and a meter the text ``"7/8"``. Fields that are sound or views of memory (``Clip.audio``,
``SpanRequest.heard``) do not travel: they are left out here and handed to :func:`decode` by name. Neither do fields
that lead back to a value of their own class (``TempoMap.stretches``): JSON has no end for those.

The type hints are the format: each class is read once, and the functions made from it are kept. Any thread.

The engine sends some dozens of these a bar and may not take long over any: text is written field by field, without
a tree of dicts in between, and what only passes through stays sealed, as text.
"""

from __future__ import annotations

import json
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, cast, overload

import numpy as np

from realtime.clock import Meter

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Record = TypeVar("Record")


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@overload
def encode(value: Dataclass) -> dict[str, Json]: ...
@overload
def encode(value: object) -> Json: ...
def encode(value: object) -> Json:
    """Turn a value into what JSON can carry.

    Takes our frozen dataclasses, fractions, meters, tuples, lists, dicts with text keys, numbers (NumPy's too),
    text, booleans and ``None``.

    Raises
    ------
    ValueError
        Naming the field whose value cannot travel, what was found and what is expected.
    """
    try:
        return _encode_any(value)
    except _Mismatch as mismatch:
        raise ValueError(mismatch.sentence(type(value).__name__)) from None


def decode(cls: type[Record], data: object, **given: object) -> Record:
    """Make a ``cls`` of what :func:`encode` gave.

    Parameters
    ----------
    cls
        A dataclass.
    data
        A dict, as JSON gave it. A field with a default may be missing; an unknown one is an error.
    **given
        Values of fields that do not travel, for instance ``decode(Clip, data, audio=block)``.

    Raises
    ------
    ValueError
        Naming the field, what was found and what is expected.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{cls.__name__}: found {_shown(data)}, expected an object of its fields")
    try:
        return cast(Record, _plan(cast(Any, cls)).decode({**data}, given))
    except _Mismatch as mismatch:
        raise ValueError(mismatch.sentence(cls.__name__)) from None


def to_bytes(value: object) -> bytes:
    """Encode a value as one line of compact JSON in UTF-8, without the line's end.

    Text that UTF-8 cannot carry (half of a surrogate pair, which JSON can smuggle in) becomes question marks. Raises
    ``ValueError`` as :func:`encode` does.
    """
    try:
        return _text_any(value).encode("utf-8", "replace")
    except _Mismatch as mismatch:
        raise ValueError(mismatch.sentence(type(value).__name__)) from None


def from_bytes(cls: type[Record], data: bytes | bytearray | memoryview, **given: object) -> Record:
    """Make a ``cls`` of what :func:`to_bytes` gave; raises ``ValueError`` as :func:`decode` does."""
    return decode(cls, from_json(bytes(data), cls.__name__), **given)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A value as JSON text, opened by nobody on its way; where it is encoded, that text is put in its place."""

    cls: type
    text: str


def seal(cls: type[Record], data: object) -> Record:
    """Check that parsed JSON is that of a ``cls`` and keep it as text, for who only passes it on.

    What is returned stands in a ``cls``'s place and can do nothing but travel: its fields cannot be read.

    Raises
    ------
    ValueError
        As :func:`decode` does.
    """
    if not _plan(cast(Any, cls)).fits(data):
        decode(cls, data)  # another order, or something missing: it may do all the same
    return cast(Record, Sealed(cls, _compact.encode(data)))


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def from_json(data: bytes, what: str) -> Json:
    """Parse bytes from anywhere; whatever is wrong with them becomes one ``ValueError`` that begins with ``what``."""
    try:
        return cast(Json, json.loads(data.decode("utf-8")))
    except (ValueError, RecursionError) as problem:
        text = str(problem) or type(problem).__name__
        raise ValueError(f"{what}: not JSON ({text}); found {_shown(data)}") from None


def field_names(cls: type) -> tuple[str, ...]:
    """Names of the fields of a dataclass that travel, in order."""
    return tuple(_plan(cls).codecs)


class _Mismatch(Exception):  # noqa: N818 - never leaves this module
    """A value that does not fit; gathers the path to its field on the way up."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = ""

    def inside(self, step: str) -> _Mismatch:
        self.path = step + self.path
        return self

    def sentence(self, root: str) -> str:
        return f"{root}{self.path}: {self.problem}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unfit(value: object, expected: str) -> _Mismatch:
    return _Mismatch(f"found {_shown(value)}, expected {expected}")


# --- one value ---


@dataclass(frozen=True, slots=True)
class _Codec:
    """How one type travels: to JSON, from JSON, its name in an error, and to JSON's text."""

    encode: Callable[[Any], Json]
    decode: Callable[[Any], Any]
    expected: str
    text: Callable[[Any], str]
    plain: type | None = None
    """Values of exactly this type travel as they are, in both directions."""
    fits: Callable[[Any], bool] = lambda value: False
    """Whether JSON can be decoded, as far as a quick look shows; False is no verdict."""


_quoted: Callable[[str], str] = json.encoder.encode_basestring  # the C function, where there is one


def _encode_int(value: Any) -> int:
    if type(value) is int:
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise _unfit(value, _SCALARS[int].expected) from None


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _encode_float(value: Any) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and _finite(value):
        return float(value)
    raise _unfit(value, _SCALARS[float].expected)


def _encode_fraction(value: Any) -> str:
    if isinstance(value, (Fraction, int)) and not isinstance(value, bool):
        return str(value)
    raise _unfit(value, _SCALARS[Fraction].expected)


def _encode_meter(value: Any) -> str:
    if isinstance(value, Meter):
        return str(value)
    raise _unfit(value, _SCALARS[Meter].expected)


def _encode_bool(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise _unfit(value, _SCALARS[bool].expected)


def _encode_str(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise _unfit(value, _SCALARS[str].expected)


def _decode_int(value: Any) -> int:
    if type(value) is int:
        return value
    raise _unfit(value, _SCALARS[int].expected)


def _decode_float(value: Any) -> float:
    if type(value) in (int, float) and _finite(value):
        return float(value)
    raise _unfit(value, _SCALARS[float].expected)


def _decode_bool(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise _unfit(value, _SCALARS[bool].expected)


def _decode_str(value: Any) -> str:
    if type(value) is str:
        return value
    raise _unfit(value, _SCALARS[str].expected)


_FRACTION = re.compile(r"-?[0-9]{1,400}(/[0-9]{1,400})?")


def _decode_fraction(value: Any) -> Fraction:
    if type(value) is int:
        return Fraction(value)
    if type(value) is not str:
        raise _unfit(value, _SCALARS[Fraction].expected)
    return _parse_fraction(value)


@lru_cache(maxsize=1024)  # offsets, lengths and tempi repeat all the time
def _parse_fraction(text: str) -> Fraction:
    if not _FRACTION.fullmatch(text):
        raise _unfit(text, _SCALARS[Fraction].expected)
    numerator, _, denominator = text.partition("/")
    if denominator and not int(denominator):
        raise _unfit(text, _SCALARS[Fraction].expected)
    return Fraction(int(numerator), int(denominator or 1))


def _decode_meter(value: Any) -> Meter:
    if type(value) is not str:
        raise _unfit(value, _SCALARS[Meter].expected)
    try:
        return Meter.parse(value)
    except ValueError as problem:
        raise _Mismatch(str(problem)) from None


_SCALARS: dict[Any, _Codec] = {
    int: _Codec(_encode_int, _decode_int, "an integer", lambda value: repr(_encode_int(value)), int),
    float: _Codec(
        _encode_float, _decode_float, "a finite number", lambda value: repr(_encode_float(value)),
        fits=lambda value: type(value) is float and math.isfinite(value),
    ),
    bool: _Codec(
        _encode_bool, _decode_bool, "true or false", lambda value: "true" if _encode_bool(value) else "false", bool
    ),
    str: _Codec(_encode_str, _decode_str, "text", lambda value: _quoted(_encode_str(value)), str),
    Fraction: _Codec(
        _encode_fraction, _decode_fraction, 'an exact fraction as text, "n/d" or "n"',
        lambda value: f'"{_encode_fraction(value)}"',
    ),
    Meter: _Codec(
        _encode_meter, _decode_meter, 'a meter as text, say "4/4"', lambda value: f'"{_encode_meter(value)}"'
    ),
}  # fmt: skip
_JSON_TEXT: dict[type, Callable[[Any], str]] = {
    str: _quoted,
    int: repr,
    bool: lambda value: "true" if value else "false",
    types.NoneType: lambda value: "null",
    Sealed: lambda value: value.text,
}
"""Text of what needs no second look, by exact type."""


def _encode_any(value: Any) -> Json:
    """Encode by what a value is, where no type hint says what it should be."""
    if type(value) in _JSON_TEXT:
        return cast(Json, value)
    if (codec := _codec_of(value)) is not None:
        return codec.encode(value)
    if isinstance(value, (tuple, list)):
        return _encode_items(value, _encode_any)
    if isinstance(value, Mapping):
        return _encode_entries(value, _encode_any)
    raise _unfit(value, "something JSON can carry")


def _text_any(value: Any) -> str:
    """Write the text of :func:`_encode_any`'s result."""
    text = _JSON_TEXT.get(type(value))
    if text is not None:
        return text(value)
    if (codec := _codec_of(value)) is not None:
        return codec.text(value)
    if isinstance(value, (tuple, list)):
        return _list_text(value, _text_any)
    if isinstance(value, Mapping):
        return _object_text(value, _text_any)
    raise _unfit(value, "something JSON can carry")


def _codec_of(value: Any) -> _Codec | None:
    """Return how a number, a text or a record travels; ``None`` for what holds others, or cannot."""
    cls: Any = type(value)
    if cls in _SCALARS or is_dataclass(cls):
        return _codec(cls)
    for kinds, kind in (
        (str, str), (np.bool_, bool), ((int, np.integer), int), ((float, np.floating), float), (Fraction, Fraction),
    ):  # fmt: skip
        if isinstance(value, kinds):
            return _SCALARS[kind]
    return None


def _list_text(values: Any, text_of: Callable[[Any], str]) -> str:
    texts: list[str] = []
    try:
        for value in values:
            texts.append(text_of(value))  # noqa: PERF401 - its length says which item is wrong
    except _Mismatch as mismatch:
        raise mismatch.inside(f"[{len(texts)}]") from None
    return f"[{','.join(texts)}]"


def _object_text(values: Any, text_of: Callable[[Any], str]) -> str:
    texts: list[str] = []
    for key, value in values.items():
        if not isinstance(key, str):
            raise _unfit(key, "text as a key")
        try:
            texts.append(f"{_quoted(key)}:{text_of(value)}")
        except _Mismatch as mismatch:
            raise mismatch.inside(f".{key}") from None
    return f"{{{','.join(texts)}}}"


def _encode_items(values: Any, encode_item: Callable[[Any], Json]) -> list[Json]:
    encoded: list[Json] = []
    try:
        for value in values:
            encoded.append(encode_item(value))  # noqa: PERF401 - its length says which item is wrong
    except _Mismatch as mismatch:
        raise mismatch.inside(f"[{len(encoded)}]") from None
    return encoded


def _encode_entries(values: Any, encode_item: Callable[[Any], Json]) -> dict[str, Json]:
    encoded: dict[str, Json] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise _unfit(key, "text as a key")
        try:
            encoded[key] = encode_item(value)
        except _Mismatch as mismatch:
            raise mismatch.inside(f".{key}") from None
    return encoded


# --- one type ---


@cache
def _codec(hint: Any) -> _Codec:
    """Return how a type hint travels; ``TypeError`` where it cannot."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if hint is object or hint is Any:
        return _Codec(_encode_any, lambda value: value, "anything", _text_any)
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return _optional(next(_codec(kind) for kind in arguments if kind is not type(None)))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _items(_codec(arguments[0]))
    if origin is dict and arguments[0] is str:
        return _entries(_codec(arguments[1]))
    if is_dataclass(hint) and isinstance(hint, type):
        return _plan(hint).codec()
    raise TypeError(f"{hint}: such a field cannot travel as JSON")


def _optional(inner: _Codec) -> _Codec:
    return _Codec(
        lambda value: None if value is None else inner.encode(value),
        lambda value: None if value is None else inner.decode(value),
        inner.expected + " or null",
        lambda value: "null" if value is None else inner.text(value),
    )


def _items(inner: _Codec) -> _Codec:
    """Tuples of any length."""
    expected = f"a list, each entry {inner.expected}"

    def encode_tuple(value: Any) -> Json:
        if not isinstance(value, (tuple, list)):
            raise _unfit(value, expected)
        return _encode_items(value, inner.encode)

    def decode_tuple(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _unfit(value, expected)
        decoded = []
        try:
            for entry in value:
                decoded.append(inner.decode(entry))  # noqa: PERF401 - its length says which entry is wrong
        except _Mismatch as mismatch:
            raise mismatch.inside(f"[{len(decoded)}]") from None
        return tuple(decoded)

    def tuple_text(value: Any) -> str:
        if not isinstance(value, (tuple, list)):
            raise _unfit(value, expected)
        return _list_text(value, inner.text) if value else "[]"

    def fits(value: Any) -> bool:
        if type(value) is not list:
            return False
        return all(type(entry) is inner.plain or inner.fits(entry) for entry in value)

    return _Codec(encode_tuple, decode_tuple, expected, tuple_text, fits=fits)


def _entries(inner: _Codec) -> _Codec:
    """Dicts with text keys."""
    expected = f"an object, each value {inner.expected}"

    def encode_dict(value: Any) -> Json:
        if not isinstance(value, Mapping):
            raise _unfit(value, expected)
        return _encode_entries(value, inner.encode)

    def decode_dict(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _unfit(value, expected)
        decoded = {}
        for key, entry in value.items():
            try:
                decoded[key] = inner.decode(entry)
            except _Mismatch as mismatch:
                raise mismatch.inside(f".{key}") from None
        return decoded

    def dict_text(value: Any) -> str:
        if not isinstance(value, Mapping):
            raise _unfit(value, expected)
        return _object_text(value, inner.text)

    return _Codec(encode_dict, decode_dict, expected, dict_text)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one dataclass travels: its fields in order, those that stay behind, those that must be there."""

    cls: type
    codecs: dict[str, _Codec]
    stays: frozenset[str]
    required: frozenset[str]
    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]
    """Gets the values of the fields that travel, in order."""
    texts: tuple[tuple[str, Callable[[Any], str]], ...]
    """For each such field what stands before its value, and the way to write that."""
    checks: tuple[tuple[type | None, Callable[[Any], bool]], ...]
    """For each such field the type that passes as it is, and the quick look at another."""
    plain: tuple[type, ...]
    """For each such field the type it mostly comes in."""
    loose: tuple[tuple[int, Callable[[Any], bool]], ...]
    """Those fields of which that type alone says nothing, and how they are looked at."""

    def encode(self, value: Any) -> Any:
        if type(value) is not self.cls:
            return self._sealed(value)
        encoded: dict[str, Json] = {}
        name = ""
        try:
            for name, codec in self.codecs.items():
                encoded[name] = codec.encode(getattr(value, name))
        except _Mismatch as mismatch:
            raise mismatch.inside(f".{name}") from None
        return encoded

    def text(self, value: Any) -> str:
        if type(value) is not self.cls:
            return self._sealed(value).text
        texts: list[str] = []
        try:
            for (before, text_of), field_value in zip(self.texts, self.values(value), strict=True):
                texts.append(before + text_of(field_value))
        except _Mismatch as mismatch:
            raise mismatch.inside(f".{self.names[len(texts)]}") from None
        return f"{{{','.join(texts)}}}"

    def _sealed(self, value: Any) -> Sealed:
        if type(value) is Sealed and value.cls is self.cls:
            return value
        raise _unfit(value, f"a {self.cls.__name__}")

    def decode(self, data: Any, given: Mapping[str, object] = types.MappingProxyType({})) -> Any:
        if type(data) is not dict:
            raise _unfit(data, f"an object with the fields of {self.cls.__name__}")
        values, name = {**given}, ""
        try:
            for name, value in data.items():
                codec = self.codecs[name]
                values[name] = value if type(value) is codec.plain else codec.decode(value)
        except _Mismatch as mismatch:
            raise mismatch.inside(f".{name}") from None
        except KeyError:
            raise _Mismatch(self._unknown(name)) from None
        if not values.keys() >= self.required:
            raise self._missing(next(n for n in (*self.codecs, *self.stays) if n in self.required - values.keys()))
        try:
            return self.cls(**values)
        except ValueError as problem:  # the class's own check
            raise _Mismatch(str(problem)) from None

    def fits(self, data: Any) -> bool:
        if type(data) is not dict or tuple(data) != self.names:
            return False
        values = tuple(data.values())
        if tuple(map(type, values)) == self.plain:  # nearly always: then only some are left to look at
            return all([fits(values[index]) for index, fits in self.loose])
        for value, (plain, fits) in zip(values, self.checks, strict=True):
            if type(value) is not plain and not fits(value):
                return False
        return True

    def _missing(self, name: str) -> _Mismatch:
        if name in self.stays:
            return _Mismatch(f"does not travel; hand it over as decode(..., {name}=...)").inside(f".{name}")
        return _Mismatch(f"missing, expected {self.codecs[name].expected}").inside(f".{name}")

    def _unknown(self, name: str) -> str:
        if name in self.stays:
            return f"found field {name!r}, which does not travel"
        from difflib import get_close_matches

        close = get_close_matches(name, self.codecs, 1)
        slip = f"; did you mean {close[0]!r}?" if close else ""
        return f"found unknown field {name!r}, expected {', '.join(self.codecs)}{slip}"

    def codec(self) -> _Codec:
        expected = f"an object with the fields of {self.cls.__name__}"
        return _Codec(self.encode, self.decode, expected, self.text, fits=self.fits)


@cache
def _plan(cls: type) -> _Plan:
    """Read a dataclass's type hints."""
    if not is_dataclass(cls):
        raise TypeError(f"{cls!r} is no dataclass; only those are decoded")
    hints = typing.get_type_hints(cls)
    own = [f for f in fields(cls) if f.init]
    stays = frozenset(f.name for f in own if _is_memory(hints[f.name]) or cls in _classes_in(hints[f.name], set()))
    required = frozenset(f.name for f in own if f.default is MISSING and f.default_factory is MISSING)
    codecs = {f.name: _codec(hints[f.name]) for f in own if f.name not in stays}
    texts = tuple((f"{_quoted(name)}:", codec.text) for name, codec in codecs.items())
    checks = tuple((codec.plain, codec.fits) for codec in codecs.values())
    plain = tuple(float if hints[name] is float else codec.plain or object for name, codec in codecs.items())
    loose = tuple((at, codec.fits) for at, codec in enumerate(codecs.values()) if codec.plain is None)
    return _Plan(cls, codecs, stays, required, tuple(codecs), _values_of(tuple(codecs)), texts, checks, plain, loose)


def _values_of(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def _is_memory(hint: Any) -> bool:
    """Whether a field holds sound, or a view that only a protocol describes."""
    if typing.get_origin(hint) is np.ndarray or getattr(hint, "_is_protocol", False):
        return True
    return any(_is_memory(kind) for kind in typing.get_args(hint) if isinstance(kind, type))


def _classes_in(hint: Any, found: set[Any]) -> set[Any]:
    """Gather the dataclasses that a type hint leads to."""
    if isinstance(hint, type) and is_dataclass(hint) and hint not in found:
        found.add(hint)
        inner = [kind for name, kind in typing.get_type_hints(hint).items() if name in hint.__dataclass_fields__]
    else:
        inner = list(typing.get_args(hint))
    for kind in inner:
        _classes_in(kind, found)
    return found
