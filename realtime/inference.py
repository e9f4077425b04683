"""Models: a card that says what a network is, a session that is checked against it, a state that is explicit.

A model is a folder::

    card.toml      name, version, sha256, inputs, outputs, states, latency, data, metrics
    model.onnx     one file, fixed shapes, no weights outside it
    golden.npz     inputs, states and outputs of a few steps, from the framework it was trained in

:meth:`Model.open` refuses, by one sentence, a folder in which these three do not agree. :meth:`Model.start` gives a
:class:`ModelState`: every array is laid out there, a step allocates none.

Audio outside this file is ``(frames, channels)``; a tensor whose card names the axes ``channel, frame`` (in this
order, side by side) is transposed here, and only here.

A card and a model may come from a stranger. The card is read with limits; the model's bytes are read once, hashed,
checked (:mod:`realtime.onnxfile`), and those very bytes are given to ONNX Runtime. A hostile graph can still crash or
hang the runtime: so a model is opened in a worker, or in the bridge's gate, under limits (:mod:`realtime.foreign`).
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import importlib.util
import io
import json
import math
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from realtime.foreign import Table, TomlError, npy_array, npy_header, parse_toml, read_inside
from realtime.onnxfile import check_model

Array = npt.NDArray[Any]

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""What is asked of ONNX Runtime for each provider of ours; the first must be the one we get."""
AUTO = ("cuda", "cpu")
"""What ``auto`` tries, in order. TensorRT builds an engine for minutes, so it is used only when asked for."""
DTYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "float64": "tensor(double)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}
"""Element types of a card, and what ONNX Runtime calls them."""
CARD_BYTES = 1 << 20
GOLDEN_BYTES = 64 << 20
MODEL_BYTES = (2 << 30) - 1
"""Limits of the three files; 2 GiB is protobuf's own."""
TENSOR_ELEMENTS = 1 << 26
"""Limit of what one tensor of a card may make us lay out."""

# --------------------------------------------------------------------------------------------------------- cards


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input, output or state: its shape in the model, with a name for every axis and a unit."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: str
    axes: tuple[str, ...]

    @property
    def frame_axis(self) -> int | None:
        """Index of ``channel`` where ``channel, frame`` stand side by side: this pair is swapped outside."""
        for i, pair in enumerate(zip(self.axes, self.axes[1:], strict=False)):
            if pair == ("channel", "frame"):
                return i
        return None

    def outside(self, array: Array) -> Array:
        """View an array of the model's shape as the rest of sideman sees it, frames before channels."""
        axis = self.frame_axis
        return array if axis is None else array.swapaxes(axis, axis + 1)


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that a step takes as input and gives back as output ``output``; zeros before the first step."""

    tensor: Tensor
    output: str


@dataclass(frozen=True, slots=True)
class Data:
    """What a model was trained on, and under which licence that is."""

    name: str
    licence: str
    note: str


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure and the command that made it."""

    name: str
    value: float
    unit: str
    command: str


@dataclass(frozen=True, slots=True)
class Card:
    """What a model says of itself.

    Attributes
    ----------
    name, version, task, licence
        For people and for logs.
    sha256
        Of ``model.onnx``, 64 hexadecimal digits.
    samplerate, hop
        Audio rate (Hz) and frames per step at it.
    latency
        Frames: at stream time t the output is about t - latency.
    receptive_field
        Frames of input that can matter to one output; ``None`` where the state never forgets (``"unbounded"``).
    inputs, outputs, states
        In any order; a state is both an input and an output of the session and is listed only as a state.
    tolerance
        Largest absolute difference from ``golden.npz`` that counts as reproducing it.
    parameters
        Numbers that whoever uses the outputs needs, such as a threshold.
    data, metrics
        Where it comes from and what it is worth.
    """

    name: str
    version: str
    task: str
    licence: str
    sha256: str
    samplerate: int
    hop: int
    latency: int
    receptive_field: int | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[State, ...]
    tolerance: float
    parameters: Mapping[str, float] = field(default_factory=dict)
    data: tuple[Data, ...] = ()
    metrics: tuple[Metric, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a ``card.toml``.

        Raises
        ------
        ValueError
            In one sentence, if the file is missing, larger than 1 MB, or no valid card.
        """
        hint = "a model is a folder with card.toml, model.onnx and golden.npz"
        content = read_inside(path.parent, path.name, CARD_BYTES, hint)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8 text; a card is a TOML file") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, where: str = "card.toml") -> Card:
        """Check the text of a card; ``where`` names it in errors. Raises ``ValueError`` as :meth:`read` does."""
        try:
            table = Table(parse_toml(text), where)
        except TomlError as error:
            raise ValueError(f"{where}: not valid TOML: {error}") from None
        card = cls(
            name=table.text("name"),
            version=table.text("version"),
            task=table.text("task"),
            licence=table.text("licence"),
            sha256=table.digest("sha256"),
            samplerate=table.whole("samplerate", 1, 1_000_000),
            hop=table.whole("hop", 1, 1 << 24),
            latency=table.whole("latency", 0, 1 << 40),
            receptive_field=None
            if table.said("receptive_field", "unbounded")
            else table.whole("receptive_field", 1, 1 << 40),
            inputs=tuple(_tensor(t) for t in table.tables("inputs")),
            outputs=tuple(_tensor(t) for t in table.tables("outputs")),
            states=tuple(State(_tensor(t, done=False), t.last_text("output")) for t in table.tables("states", 0)),
            tolerance=table.number("tolerance", 0, 1e6),
            parameters=table.numbers("parameters"),
            data=tuple(Data(t.text("name"), t.text("licence"), t.last_text("note")) for t in table.tables("data")),
            metrics=tuple(
                Metric(t.text("name"), t.number("value", -math.inf, math.inf), t.text("unit"), t.last_text("command"))
                for t in table.tables("metrics")
            ),
        )
        table.done()
        _check_names(card, where)
        return card


def _tensor(table: Table, done: bool = True) -> Tensor:
    allowed = f"up to 16 whole numbers of 1 or more, {TENSOR_ELEMENTS} elements at most; shapes are fixed"
    shape = table.array("shape", int, allowed)
    if any(n < 1 for n in shape) or math.prod(shape) > TENSOR_ELEMENTS:
        raise table.refused("shape", list(shape), allowed)
    dtype = table.text("dtype")
    if dtype not in DTYPES:
        raise table.refused("dtype", dtype, "one of " + ", ".join(DTYPES))
    axes = table.array("axes", str, "a name for every axis")
    if len(axes) != len(shape):
        raise table.refused("axes", list(axes), f"one name for each of the {len(shape)} axes of the shape")
    tensor = Tensor(table.text("name"), shape, dtype, table.text("unit"), axes)
    if done:
        table.done()
    return tensor


def _check_names(card: Card, where: str) -> None:
    into = [t.name for t in card.inputs] + [s.tensor.name for s in card.states]
    out = [t.name for t in card.outputs] + [s.output for s in card.states]
    for side, names in (("input", into), ("output", out)):
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            raise ValueError(
                f"{where}: {side} {twice[0]!r} is listed twice; a state is listed under states and nowhere else"
            )


# ----------------------------------------------------------------------------------------------------- providers


class ProviderError(ValueError):
    """A provider that cannot be used here, and why."""


def _libraries(provider: str, cuda_major: str) -> tuple[str, ...]:
    """Shared libraries that ONNX Runtime's provider links, by the names its loader asks for."""
    windows = sys.platform == "win32"
    if provider == "tensorrt":
        return ("nvinfer_10.dll", "nvonnxparser_10.dll") if windows else ("libnvinfer.so.10", "libnvonnxparser.so.10")
    if windows:
        return (
            f"cudart64_{cuda_major}.dll",
            f"cublasLt64_{cuda_major}.dll",
            f"cublas64_{cuda_major}.dll",
            "cudnn64_9.dll",
        )
    return (
        f"libcudart.so.{cuda_major}",
        f"libcublasLt.so.{cuda_major}",
        f"libcublas.so.{cuda_major}",
        "libcudnn.so.9",
    )


def missing_for(provider: str) -> str:
    """Say what stands in the way of a provider on this machine; empty if nothing is known to.

    Quick and quiet: ONNX Runtime itself would try, print errors, and go on with the CPU.
    """
    if provider == "cpu":
        return ""
    ort = _onnxruntime()
    if PROVIDERS[provider][0] not in ort.get_available_providers():
        return "the installed onnxruntime was built without it (on Linux and Windows, onnxruntime-gpu has it)"
    gpu = _gpu()
    if not gpu.name:
        return gpu.missing
    cuda_major = str(getattr(ort, "cuda_version", "") or "13").split(".")[0]
    # From NVIDIA's wheels, where they are installed; it prints what it does not find, and we say that better below.
    with redirect_stdout(io.StringIO()), suppress(AttributeError, OSError, RuntimeError):
        ort.preload_dlls()
    wanted = _libraries("cuda", cuda_major) + (_libraries("tensorrt", "") if provider == "tensorrt" else ())
    for library in wanted:
        if not _loads(library):
            extra = "sideman[tensorrt]" if "nv" in library else "onnxruntime-gpu[cuda,cudnn]"
            return f"{library} was not found (pip install '{extra}' brings it)"
    return ""


def _loads(library: str) -> bool:
    """Load a shared library by name, or from the folder of NVIDIA's TensorRT wheel. It stays loaded, for ORT."""
    spec = importlib.util.find_spec("tensorrt_libs") if "nv" in library else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for name in (library, *(str(Path(folder) / library) for folder in folders)):
        with suppress(OSError):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Gpu:
    """The first GPU: its name, compute capability and driver, or what is missing."""

    name: str
    missing: str = ""


def _gpu() -> _Gpu:
    """Ask the NVIDIA driver for its first GPU. Opens no context."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return _Gpu("", f"there is no NVIDIA driver on this machine ({library} was not found)")
    count, version, major, minor = (ctypes.c_int(0) for _ in range(4))
    name = ctypes.create_string_buffer(128)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return _Gpu("", "the NVIDIA driver reports no GPU that can be used")
    cuda.cuDeviceGetName(name, 128, 0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)  # compute capability, major and minor
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    return _Gpu(f"{name.value.decode(errors='replace')} {major.value}.{minor.value} driver {version.value}")


def _onnxruntime() -> Any:
    """Import ONNX Runtime, when first used."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"models need onnxruntime, which cannot be imported: {error}") from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise ValueError(
            "the onnxruntime package is broken: were both onnxruntime and onnxruntime-gpu installed? "
            "Uninstall both, then install one"
        )
    return onnxruntime


# ------------------------------------------------------------------------------------------- TensorRT's engine cache


class EngineCache:
    """Folders of TensorRT engines that this machine built, and can tell from any others.

    An engine is native code: to load one is to run it. So every file that is there after a build is signed
    (HMAC-SHA256) with a key that lies elsewhere and that only this user can read; a file with another or no signature
    is deleted before TensorRT sees the folder, and the engine is built anew. A plain list of checksums would not do:
    whoever brings a foreign engine, in an unpacked archive or a synchronised folder, brings the list as well.
    The file's folder name is signed with it, so that an engine cannot be moved to another model or GPU.

    Parameters
    ----------
    folder
        Where engines are kept, one folder for each model, TensorRT, ONNX Runtime and GPU.
    key_file
        32 random bytes, made when first needed with mode 0600. One that others can read is replaced.
    """

    LIST = "signatures.json"

    def __init__(self, folder: Path, key_file: Path) -> None:
        self._folder = folder
        self._key_file = key_file

    @classmethod
    def default(cls, folder: Path | None = None) -> EngineCache:
        """Return the user's cache; the key lies in the user's state folder even where ``folder`` is given."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return cls(folder or cache / "sideman" / "engines", state / "sideman" / "engine.key")

    def opened(self, *identity: str) -> Path:
        """Return the folder for what ``identity`` names (model hash, versions, GPU), only files we signed in it."""
        name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        folder = self._folder / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        signatures = self._signatures(folder)
        for path in list(folder.iterdir()):
            if path.name == self.LIST:
                continue
            plain = path.is_file() and not path.is_symlink()
            if not plain or not hmac.compare_digest(signatures.get(path.name, ""), self._sign(folder, path)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return folder

    def sign(self, folder: Path) -> None:
        """Sign what TensorRT wrote into a folder of ours."""
        made = {
            p.name: self._sign(folder, p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != self.LIST
        }
        part = folder / (self.LIST + ".part")
        part.write_text(json.dumps(made, indent=1))
        part.replace(folder / self.LIST)

    def _signatures(self, folder: Path) -> dict[str, str]:
        try:
            found = json.loads((folder / self.LIST).read_bytes()[: 1 << 20])
        except (OSError, ValueError, RecursionError):
            return {}
        return (
            {str(k): v for k, v in found.items() if isinstance(v, str) and v.isascii()}
            if isinstance(found, dict)
            else {}
        )

    def _sign(self, folder: Path, path: Path) -> str:
        mac = hmac.new(self._key(), f"{folder.name}\0{path.name}\0".encode(), hashlib.sha256)
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                mac.update(part)
        return mac.hexdigest()

    def _key(self) -> bytes:
        with suppress(OSError):
            private = os.name == "nt" or not self._key_file.stat().st_mode & 0o077
            key = self._key_file.read_bytes()
            if private and len(key) == 32 and not self._key_file.is_symlink():
                return key
            self._key_file.unlink()
        self._key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = os.urandom(32)
        with os.fdopen(os.open(self._key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)
        return key


# --------------------------------------------------------------------------------------------------------- models


class Model:
    """A checked network, ready to be started any number of times. Opened before the stream is, by a worker.

    Use :meth:`open`. ``card`` is what the model says of itself, ``provider`` what it runs on (``cpu``, ``cuda`` or
    ``tensorrt``), ``passed_over`` one sentence for each provider that ``auto`` could not use.
    """

    def __init__(self, card: Card, session: Any, provider: str, passed_over: tuple[str, ...] = ()) -> None:
        self.card = card
        self.session = session
        self.provider = provider
        self.passed_over = passed_over

    @classmethod
    def open(cls, folder: str | Path, provider: str = "auto", cache: Path | None = None) -> Model:
        """Open a model's folder and check its three files against each other.

        Parameters
        ----------
        folder
            With ``card.toml``, ``model.onnx`` and ``golden.npz``.
        provider
            ``"cpu"``, ``"cuda"``, ``"tensorrt"``: this one or an error. ``"auto"``: the first of ``AUTO`` that works
            here; :attr:`provider` says which.
        cache
            Where TensorRT engines are kept; the user's cache folder if not given.

        Raises
        ------
        ValueError
            In one sentence that begins with the folder: a missing or oversized file, a card that is no card or not
            this model's, a wrong hash, external data, an EPContext node, a provider that cannot be had, golden
            values that do not come out.
        """
        folder = Path(folder)
        if provider not in ("auto", *PROVIDERS):
            raise ValueError(f"provider={provider!r}: it must be auto, {', '.join(PROVIDERS)}")
        card = Card.read(folder / "card.toml")
        model = read_inside(folder, "model.onnx", MODEL_BYTES, "export the model again, or copy its whole folder")
        found = hashlib.sha256(model).hexdigest()
        if found != card.sha256:
            raise ValueError(
                f"{folder}: model.onnx has sha256 {found[:12]}..., its card says {card.sha256[:12]}...; "
                "one of the two was changed without the other"
            )
        try:
            check_model(model)
            golden = _Golden.read(folder / "golden.npz", card)
            return cls._first_working(card, model, golden, provider, cache)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    @classmethod
    def _first_working(cls, card: Card, model: bytes, golden: _Golden, asked: str, cache: Path | None) -> Model:
        passed_over: list[str] = []
        for name in AUTO if asked == "auto" else (asked,):
            try:
                session = _session(model, card, name, cache)
                opened = cls(card, session, name, tuple(passed_over))
                _check_signature(card, session)
                golden.check(opened.start())
            except ProviderError as error:
                if asked != "auto":
                    raise
                passed_over.append(str(error))
            else:
                return opened
        raise ValueError("; ".join(passed_over))

    def start(self) -> ModelState:
        """Lay out the memory of one stream and return it, silent."""
        return ModelState(self)


def _session(model: bytes, card: Card, provider: str, cache: Path | None) -> Any:
    """Make a session that runs on ``provider``, or raise :class:`ProviderError`."""
    obstacle = missing_for(provider)
    if obstacle:
        raise ProviderError(f"provider {provider} cannot be used: {obstacle}")
    ort = _onnxruntime()
    engines = EngineCache.default(cache) if provider == "tensorrt" else None
    gpu = "" if provider == "cpu" else _gpu().name
    folder = engines.opened(card.sha256, ort.__version__, _tensorrt_version(), gpu) if engines else None
    try:
        session = ort.InferenceSession(
            model,
            _session_options(ort),
            providers=[(name, _provider_options(name, folder)) for name in PROVIDERS[provider]],
            enable_fallback=0,  # else Python retries with other providers and only prints that it did
        )
    except _runtime_errors(ort) as error:
        kind = ValueError if provider == "cpu" else ProviderError
        raise kind(f"ONNX Runtime cannot load it on {provider}: {_first_line(error)}") from None
    if session.get_providers()[0] != PROVIDERS[provider][0]:
        raise ProviderError(f"provider {provider} was asked for and ONNX Runtime gave {session.get_providers()[0]}")
    _check_assignment(session, provider)
    if engines and folder:
        engines.sign(folder)
    return session


def _session_options(ort: Any) -> Any:
    """Options for short steps of fixed shape beside a real-time thread."""
    options = ort.SessionOptions()
    # One thread: on a small machine two never lower the median and raise the 99th percentile sevenfold.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # A spinning pool burns the core that the engine needs (none should exist with one thread; said all the same).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Fixed shapes: the pattern is planned once, in the first run, and one block of that size serves every run after
    # it. The arena keeps that block, so no step waits for malloc and no memory goes back and forth; what makes an
    # arena grow is shapes that change, and those are refused. (On a small model the median is the same without.)
    options.enable_mem_pattern = True
    options.enable_cpu_mem_arena = True
    # Bytes are taken as ONNX, never sniffed for ORT format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 4  # an error is raised, and told in one sentence: nothing is printed
    # Not set: session.set_denormal_as_zero. It changes the float mode of the calling thread for NumPy too.
    return options


def _provider_options(name: str, engine_folder: Path | None) -> dict[str, str]:
    """Options of one ONNX Runtime provider: full float32, so that golden values come out; bounded memory."""
    if name == "CUDAExecutionProvider":
        return {
            "device_id": "0",
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE may choose another algorithm each time
        }
    if name == "TensorrtExecutionProvider":
        return {
            "device_id": "0",
            "trt_fp16_enable": "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engine_folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(engine_folder),
            "trt_dump_ep_context_model": "0",
        }
    return {}


def _tensorrt_version() -> str:
    """Version of the TensorRT library that is loaded."""
    library = _libraries("tensorrt", "")[0]
    with suppress(OSError, AttributeError):
        return str(ctypes.CDLL(library).getInferLibVersion())
    return "unknown"


def _check_assignment(session: Any, provider: str) -> None:
    """Refuse a session that lists a provider but gives it nothing to do (where ONNX Runtime can tell us)."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if provider == "cpu" or tell is None:
        return
    busy = {part.ep_name for part in tell()}
    if busy and PROVIDERS[provider][0] not in busy:
        raise ProviderError(f"provider {provider} is there but can run none of this model's operators")


def _runtime_errors(ort: Any) -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's exceptions, which share no base class."""
    module = sys.modules[ort.InferenceSession.__module__]
    errors = [e for e in vars(module.C).values() if isinstance(e, type) and issubclass(e, Exception)]
    return (*errors, RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _check_signature(card: Card, session: Any) -> None:
    """Compare the card's tensors with the session's own."""
    states = [s.tensor for s in card.states]
    back = [Tensor(s.output, s.tensor.shape, s.tensor.dtype, "", ()) for s in card.states]
    for side, said, found in (
        ("input", (*card.inputs, *states), session.get_inputs()),
        ("output", (*card.outputs, *back), session.get_outputs()),
    ):
        _compare(side, {t.name: t for t in said}, {a.name: a for a in found})


def _compare(side: str, said: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    for name in found:
        if name not in said:
            raise ValueError(f"the model has an {side} {name!r} that its card does not list")
    for name, tensor in said.items():
        if name not in found:
            raise ValueError(f"the card lists an {side} {name!r} that the model does not have")
        shape = tuple(found[name].shape)
        if not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(
                f"{side} {name!r} of the model has the open shape {list(shape)}; export it with fixed shapes"
            )
        if shape != tensor.shape:
            raise ValueError(
                f"{side} {name!r} has shape {list(shape)} in the model and {list(tensor.shape)} in its card"
            )
        if found[name].type != DTYPES[tensor.dtype]:
            raise ValueError(f"{side} {name!r} is {found[name].type} in the model and {tensor.dtype} in its card")


# ---------------------------------------------------------------------------------------------------------- golden


_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class _Golden:
    """Steps that a model must reproduce. Arrays have a leading axis of steps; states one more step than the rest."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    states: Mapping[str, Array]
    tolerance: float

    @classmethod
    def read(cls, path: Path, card: Card) -> _Golden:
        """Read ``input.NAME``, ``output.NAME`` and ``state.NAME`` of everything in the card, nothing else."""
        content = read_inside(path.parent, path.name, GOLDEN_BYTES, "it holds the steps that a model must reproduce")
        try:
            archive = zipfile.ZipFile(io.BytesIO(content))
            if sum(entry.file_size for entry in archive.infolist()) > GOLDEN_BYTES:
                raise ValueError(f"it unpacks to more than {GOLDEN_BYTES} bytes")
            inputs = {t.name: _npy(archive, f"input.{t.name}", t, 0) for t in card.inputs}
            steps = len(next(iter(inputs.values())))
            if steps < 2:
                raise ValueError(f"it has {steps} steps; it takes at least two to check a state")
            golden = cls(
                inputs,
                {t.name: _npy(archive, f"output.{t.name}", t, 0, steps) for t in card.outputs},
                {s.tensor.name: _npy(archive, f"state.{s.tensor.name}", s.tensor, 1, steps) for s in card.states},
                card.tolerance,
            )
            if any(len(a) != steps for a in inputs.values()):
                raise ValueError("its inputs differ in their number of steps")
        except _UNREADABLE as error:
            raise ValueError(f"golden.npz cannot be used: {_first_line(error)}") from None
        return golden

    def check(self, state: ModelState) -> None:
        """Run the steps; raise ``ValueError`` at the first that differs, ``ProviderError`` where not on the CPU."""
        kind = ValueError if state.provider == "cpu" else ProviderError
        state.restore({name: steps[0] for name, steps in self.states.items()})
        for step in range(len(next(iter(self.inputs.values())))):
            try:
                outputs = state.step_in_model_axes({name: steps[step] for name, steps in self.inputs.items()})
            except _runtime_errors(_onnxruntime()) as error:
                raise kind(f"step {step} of golden.npz fails on {state.provider}: {_first_line(error)}") from None
            wanted = {name: steps[step] for name, steps in self.outputs.items()}
            after = {name: steps[step + 1] for name, steps in self.states.items()}
            for name, found, golden in (
                *((n, outputs[n], w) for n, w in wanted.items()),
                *((n, s, after[n]) for n, s in state.snapshot().items()),
            ):
                apart = float(np.max(np.abs(found.astype(np.float64) - golden.astype(np.float64)), initial=0.0))
                if not apart <= self.tolerance:  # written so that NaN is refused
                    raise kind(
                        f"step {step} on {state.provider} gives {name!r} {apart:.2g} away from golden.npz; "
                        f"the card allows {self.tolerance:g}"
                    )


def _npy(archive: zipfile.ZipFile, name: str, tensor: Tensor, extra: int, steps: int | None = None) -> Array:
    """Read one array of an npz, once its header is found right: a file cannot make us lay out more than the card."""
    try:
        entry = archive.getinfo(name + ".npy")
    except KeyError:
        raise ValueError(f"it has no array {name!r}") from None
    try:
        with archive.open(entry) as file:
            shape, dtype, offset = npy_header(file.read(4106))
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None
    wanted = (steps + extra if steps is not None else shape[0] if shape else 0, *tensor.shape)
    if shape != wanted or dtype != np.dtype(tensor.dtype):
        raise ValueError(f"{name!r} is {dtype} of shape {shape}; the card makes it {tensor.dtype} of shape {wanted}")
    if math.prod(shape) * dtype.itemsize > entry.file_size - offset:
        raise ValueError(f"{name!r} is shorter than its header says")
    with archive.open(entry) as file:
        return npy_array(file.read())


# ---------------------------------------------------------------------------------------------------------- states


class ModelState:
    """One stream through a model: its inputs, outputs and states, laid out once. One thread at a time.

    The states of step k lie in one of two sets of arrays and those of step k + 1 in the other, turn by turn; both
    directions are bound before the first step.
    """

    def __init__(self, model: Model) -> None:
        ort = _onnxruntime()
        card = model.card
        self.provider = model.provider
        self._session = model.session
        self._inputs = {t.name: np.zeros(t.shape, t.dtype) for t in card.inputs}
        self._outputs = {t.name: np.zeros(t.shape, t.dtype) for t in card.outputs}
        self._states = [
            {s.tensor.name: np.zeros(s.tensor.shape, s.tensor.dtype) for s in card.states} for _ in range(2)
        ]
        self._inputs_outside = {t.name: t.outside(self._inputs[t.name]) for t in card.inputs}
        self._outputs_outside = {t.name: t.outside(self._outputs[t.name]) for t in card.outputs}
        device = "cpu" if model.provider == "cpu" else "cuda"
        self._on_device = device != "cpu"
        # On the CPU a value shares the array's memory; on a GPU it is a copy that has to be refreshed.
        value = ort.OrtValue.ortvalue_from_numpy
        self._input_values = {name: value(array, device, 0) for name, array in self._inputs.items()}
        self._output_values = {name: value(array) for name, array in self._outputs.items()}
        self._state_values = [{n: value(a, device, 0) for n, a in states.items()} for states in self._states]
        self._bindings = [self._bound(card, now) for now in (0, 1)]
        self._now = 0

    def _bound(self, card: Card, now: int) -> Any:
        """Bind a step that reads state set ``now`` and writes the other."""
        binding = self._session.io_binding()
        for name, value in (*self._input_values.items(), *self._state_values[now].items()):
            binding.bind_ortvalue_input(name, value)
        for name, value in self._output_values.items():
            binding.bind_ortvalue_output(name, value)
        for state in card.states:
            binding.bind_ortvalue_output(state.output, self._state_values[1 - now][state.tensor.name])
        return binding

    def step(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Advance by one step.

        Parameters
        ----------
        inputs
            An array for every input of the card; ``channel, frame`` axes come as ``(frames, channels)``. Copied.

        Returns
        -------
        Mapping
            Every output, axes likewise. The arrays are the same ones each time: copy what must outlast the next step.

        Raises
        ------
        ValueError
            If inputs are missing, unknown or of another shape.
        """
        self._run(inputs, self._inputs_outside)
        return self._outputs_outside

    def step_in_model_axes(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Advance by one step, nothing transposed: as golden files are written."""
        self._run(inputs, self._inputs)
        return self._outputs

    def _run(self, inputs: Mapping[str, Array], targets: Mapping[str, Array]) -> None:
        _copy(inputs, targets, "input")
        if self._on_device:
            for name, value in self._input_values.items():
                value.update_inplace(self._inputs[name])
        self._session.run_with_iobinding(self._bindings[self._now])
        self._now = 1 - self._now

    def reset(self) -> None:
        """Go back to before the first step: all states zero."""
        self.restore({name: np.zeros_like(array) for name, array in self._states[0].items()})

    def snapshot(self) -> dict[str, Array]:
        """Return a copy of every state, in the model's own axes."""
        if self._on_device:
            return {name: value.numpy() for name, value in self._state_values[self._now].items()}
        return {name: array.copy() for name, array in self._states[self._now].items()}

    def restore(self, states: Mapping[str, Array]) -> None:
        """Go back to a :meth:`snapshot`. Raises ``ValueError`` if it is another model's."""
        _copy(states, self._states[self._now], "state")
        if self._on_device:
            for name, value in self._state_values[self._now].items():
                value.update_inplace(self._states[self._now][name])


def _copy(given: Mapping[str, Array], targets: Mapping[str, Array], what: str) -> None:
    """Copy arrays into place, by name."""
    if given.keys() != targets.keys():
        raise ValueError(f"{what}s {_names(given)} were given; the model takes {_names(targets)}")
    for name, target in targets.items():
        if given[name].shape != target.shape:
            raise ValueError(f"{what} {name!r} has shape {given[name].shape}; the model takes {target.shape}")
        np.copyto(target, given[name], casting="same_kind")


def _names(tensors: Sequence[str] | Mapping[str, Array]) -> str:
    return ", ".join(sorted(tensors)) or "(none)"
