"""The gate: a child process under limits, in which the bridge has other people's files opened.

Models, corpora, recordings and takes may come from strangers, and the libraries that read them may crash, hang or eat
all memory. So the bridge never opens one itself: it asks the gate, which has a child do it and answer in JSON. A
child that dies, or does not answer in time, costs one refusal in words; the next question gets a new child.

The same child renders and replays: that is the whole engine on a virtual clock, with every file of a session.

What goes over the pipe is JSON, one object a message, never a pickle: what comes back is as foreign as the file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from bridge.children import signals_held
from realtime.foreign import lift_cpu_limit, lift_memory_limit, limit_cpu, limit_process, memory_allowance

Answer = dict[str, Any]
Hear = Callable[[dict[str, Any]], None]

OPEN_SECONDS = 0.9
"""Time in which a file has to be opened and described, apart from the import of libraries; a refusal is there within
a second."""
BYTES_PER_SECOND = 50e6
"""What is hashed or decoded whole gets a second more for so much of it."""
GPU_SECONDS = 120.0
"""A GPU takes seconds to be woken, and TensorRT minutes to build an engine."""
IMPORT_SECONDS = 60.0
STOPPING_SECONDS = 10.0
LISTEN_SECONDS = 0.1
"""How often whoever waits for an answer looks whether Ctrl-C was pressed."""
SENTENCE_CHARS = 1000
MESSAGE_BYTES = 1 << 20


class GateError(ValueError):
    """The child did not survive a file, or did not answer.

    Attributes
    ----------
    how
        What became of it, as in "was killed by signal 11 (SIGSEGV)".
    late
        Whether it was ended for taking too long.
    unforeseen
        Whether it lives, and the error is one that nobody has put into words.
    """

    def __init__(self, words: str, how: str, *, late: bool = False, unforeseen: bool = False) -> None:
        super().__init__(words)
        self.how, self.late, self.unforeseen = how, late, unforeseen


class _Late(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class _Gone(Exception):  # noqa: N818 - never leaves this module
    pass


class Wish:
    """Ctrl-C as a wish, for work that has good moments to end: nothing is raised in the middle of it, as a ``with``.

    So are the signals that the command takes for one. Whoever presses it again does not want to wait: that is raised.
    Threads other than the main one hear no signals, and no wish.

    Attributes
    ----------
    felt
        Whether it was pressed.
    """

    _NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self) -> None:
        self.felt = False
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> Wish:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in self._NAMES if hasattr(signal, name)):
                handler = signal.getsignal(number)
                if callable(handler):  # what is ignored, or left to the system, stays so
                    self._before[number] = handler
                    signal.signal(number, self._feel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _feel(self, number: int, frame: FrameType | None) -> None:
        if self.felt:
            raise KeyboardInterrupt
        self.felt = True


@dataclass(frozen=True, slots=True)
class _Question:
    """What a child is asked, and how its answer is waited for."""

    task: str
    about: str
    seconds: float | None
    hear: Hear
    arguments: dict[str, Any]
    wish: Wish | None = None


class Gate:
    """Has files opened by a child under limits. One thread, the bridge's; a context manager.

    Parameters
    ----------
    memory_bytes
        Most the child may allocate; by default half of the machine's memory.
    """

    def __init__(self, memory_bytes: int = 0) -> None:
        self._memory_bytes = memory_bytes or memory_allowance(0.5)
        self._context = multiprocessing.get_context("spawn")
        self._process: SpawnProcess | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._number, self._began = 0, False
        self.deaths = 0

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, ``None`` while there is none."""
        return self._process.pid if self._process else None

    def start(self, *modules: str) -> None:
        """Have a child born, so that it gets ready while the bridge does something else: it imports ``modules``."""
        if self._process is not None and self._process.is_alive():
            return
        self._bury()
        with signals_held():
            if os.name == "posix":
                resource_tracker.ensure_running()  # else it comes with the child, and lets Ctrl-C through before that
        with signals_held():
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(theirs, self._memory_bytes, modules), name="sideman-gate", daemon=True
            )
            process.start()
            theirs.close()
            self._process, self._pipe = process, ours

    def ask(
        self,
        task: str,
        about: str | os.PathLike[str],
        *,
        seconds: float | None = OPEN_SECONDS,
        hear: Hear = lambda said: None,
        stoppable: bool = False,
        **arguments: Any,
    ) -> Answer:
        """Have a task done and return its answer.

        Parameters
        ----------
        task
            A key of :data:`TASKS`.
        about
            The file or folder in question, for errors.
        seconds
            Time it may take; ``None`` for as long as it likes.
        hear
            Takes what the task says on its way.
        stoppable
            Whether Ctrl-C asks the task to come to an end, which it then answers with, instead of ending the child.
            An answer that does not say that it was ``"interrupted"`` then comes as a ``KeyboardInterrupt``.
        **arguments
            The task's, as JSON can carry them.

        Raises
        ------
        GateError
            If the child dies or is late, or fails in a way that has no words.
        ValueError, OSError, KeyboardInterrupt
            As the task raised it.
        """
        question = _Question(task, str(about), seconds, hear, arguments)
        try:
            if not stoppable:
                return self._asked_twice(question)
            with Wish() as wish:
                answer = self._asked_twice(replace(question, wish=wish))
            if wish.felt and not answer.get("interrupted"):
                raise KeyboardInterrupt
            return answer
        except _Late as late:
            self.deaths += 1
            self._bury()
            words = f"{about}: it was not opened within {late.seconds:g} s, so it is not used"
            how = f"did not answer within {late.seconds:g} s"
            raise GateError(f"{words}; is it damaged, or very large?", how, late=True) from None
        except _Gone:
            how = self._end()
            words = f"{about}: opening it ended the process that looked into it, which {how}, so it is not used"
            raise GateError(f"{words}; is it damaged? get it again from whoever made it", how) from None

    def _asked_twice(self, question: _Question) -> Answer:
        try:
            return self._asked(question)
        except _Gone:
            if self._began:
                raise
            self._end()  # it was dying when it was asked: another is
            if question.wish is not None and question.wish.felt:
                raise KeyboardInterrupt from None
            return self._asked(question)

    def _asked(self, question: _Question) -> Answer:
        self.start()
        self._number, self._began = self._number + 1, False
        self._send({"number": self._number, "task": question.task, "arguments": question.arguments,
                    "seconds": question.seconds})  # fmt: skip
        return _answer(self._last_message(question), question.about)

    def _last_message(self, question: _Question) -> dict[str, Any]:
        """Return what the task ended with; raises ``_Late`` and ``_Gone``."""
        seconds, wish = question.seconds, question.wish
        left, deadline, stopping = IMPORT_SECONDS, time.monotonic() + IMPORT_SECONDS, False
        while True:
            if wish is not None and wish.felt and not stopping:
                self._send({"stop": self._number})
                left, deadline, stopping = STOPPING_SECONDS, time.monotonic() + STOPPING_SECONDS, True
            try:
                message = self._receive(deadline)
            except KeyboardInterrupt:
                self._bury()
                raise
            if message is None:
                if time.monotonic() >= deadline:
                    raise _Late(left)
                continue
            if message["number"] != self._number:
                continue
            if message["kind"] == "begin":
                self._began = True
                if not stopping:
                    left = math.inf if seconds is None else seconds
                    deadline = time.monotonic() + left
            elif message["kind"] == "said":
                question.hear(message["value"])
            else:
                return message

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._bury()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._pipe is not None
        with signals_held(), contextlib.suppress(OSError):  # if it is dead already, that is found out by listening
            self._pipe.send_bytes(json.dumps(message).encode())

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the child's next message, ``None`` where none comes for a moment; raises ``_Gone``."""
        assert self._pipe is not None
        if not self._pipe.poll(min(LISTEN_SECONDS, max(0.0, deadline - time.monotonic()))):
            return None
        with signals_held():  # half a message read would make rubbish of the next
            try:
                message = json.loads(self._pipe.recv_bytes(MESSAGE_BYTES))
            except (EOFError, OSError, ValueError, RecursionError):  # no pipe any more, or nothing that we would say
                raise _Gone from None
        if not isinstance(message, dict) or not message.keys() >= {"number", "kind", "value"}:
            raise _Gone
        return message

    def _end(self) -> str:
        """End the child; return what had become of it."""
        assert self._process is not None
        self._process.join(0.2)  # one that has just died is not always buried yet
        code = self._process.exitcode
        self.deaths += 1
        self._bury()
        if code is None:
            return "had to be ended"
        if code >= 0:
            return f"ended with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        return f"was ended by signal {-code} ({name})"

    def _bury(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(1.0)
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _answer(message: dict[str, Any], about: str) -> Answer:
    """Return the answer that a last message holds, or raise what it tells."""
    kind, value = message["kind"], message["value"]
    if kind == "done" and isinstance(value, dict):
        return value
    if kind == "system" and isinstance(value, list) and len(value) == 4 and isinstance(value[0], int | None):
        number, reason, first, second = value
        raise OSError(number, reason, first, None, second)
    if kind == "interrupted":
        raise KeyboardInterrupt
    if kind == "refused":
        raise ValueError(_sentence(value))
    if kind == "memory":
        raise ValueError(f"{about}: there is not enough memory for it; is it damaged, or very large?")
    if kind == "unforeseen":
        words = f"{about}: it cannot be used, because of an error that nobody has foreseen ({_sentence(value)})"
        raise GateError(f"{words}; is it damaged?", "failed", unforeseen=True)
    raise _Gone


def _sentence(text: object) -> str:
    """Return what came out of the child as one line that can be printed."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= SENTENCE_CHARS else line[: SENTENCE_CHARS - 3] + "..."


# In the child


class Call:
    """One question, as the task that answers it sees it."""

    def __init__(
        self, pipe: Connection[Any, Any], number: int, seconds: float | None, stops: _Stops | None = None
    ) -> None:
        self._pipe, self._number, self._seconds, self._stops = pipe, number, seconds, stops

    def begin(self) -> None:
        """Say that all is imported: from now on the time counts, and the task can be stopped."""
        if self._seconds is not None:
            limit_cpu(2 * self._seconds + 1)  # should the bridge not be there any more to look at its clock
        self.tell("begin", None)
        if self._stops is not None:
            self._stops.let_through()

    def end(self) -> None:
        """Let nothing stop it any more."""
        if self._stops is not None:
            self._stops.hold()

    def say(self, **value: Any) -> None:
        """Tell the bridge something on the way; raises ``KeyboardInterrupt`` if one was lost before."""
        self.tell("said", value)
        if self._stops is not None:
            self._stops.again()

    def tell(self, kind: str, value: Any) -> None:
        """Send one message."""
        with signals_held():
            self._pipe.send_bytes(json.dumps({"number": self._number, "kind": kind, "value": value}).encode())


def _serve(pipe: Connection[Any, Any], memory_bytes: int, modules: tuple[str, ...]) -> None:
    """Be the child: answer questions until the bridge is gone."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpgid(0, 0)
    limit_process(memory_bytes, written_bytes=0)
    with open(os.devnull, "wb") as nowhere:  # what libraries print of a file is nothing to a user; errors are answers
        os.dup2(nowhere.fileno(), 2)
    stops = _Stops()
    questions: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, questions, stops), daemon=True).start()
    for module in modules:
        importlib.import_module(module)
    while True:
        try:
            question = questions.get()
            if question is None:
                return
            stops.turn_to(question["number"])
            call = Call(pipe, question["number"], question["seconds"], stops)
            call.tell(*_outcome(call, question))
            lift_cpu_limit()
        except OSError:
            return  # nobody listens


class _Stops:
    """Stops a task when the bridge says so: a Ctrl-C of the child's own, to its main thread.

    It is held back from the child's birth on, and while something is imported, which it would leave half done, or be
    lost in; a task lets it through once all that is done (:meth:`Call.begin`). It never comes to another task than
    the one it was meant for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = 0
        self._gone = self._raised = False
        self.hold()

    def ask(self, number: int) -> None:
        """Stop a question's task. The listener's thread."""
        with self._lock:
            self._asked = number
            _interrupt()

    def all(self) -> None:
        """Stop whatever is there, and what comes. The listener's thread."""
        with self._lock:
            self._gone = True
            _interrupt()

    def turn_to(self, number: int) -> None:
        """Begin with a question: what is left of those before is dropped."""
        with self._lock:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # also drops what waits to be let through
            signal.signal(signal.SIGINT, self._heard)
            self._raised = False
            if self._gone or self._asked == number:
                _interrupt()

    def let_through(self) -> None:
        """Let the task be stopped from here on; raises ``KeyboardInterrupt`` if it is to be already."""
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def hold(self) -> None:
        """Hold it back from here on."""
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def again(self) -> None:
        """Raise it once more where it was lost: what is raised in a finaliser goes nowhere."""
        raised, self._raised = self._raised, False
        if raised:
            raise KeyboardInterrupt

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._raised = True
        raise KeyboardInterrupt


def _listen(pipe: Connection[Any, Any], questions: queue.SimpleQueue[dict[str, Any] | None], stops: _Stops) -> None:
    """Pass questions on; interrupt the one that is being answered when told to, or when the bridge is gone."""
    while True:
        try:
            message = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            stops.all()  # a take that is being written is closed
            questions.put(None)
            time.sleep(STOPPING_SECONDS)
            os._exit(1)
        if "stop" in message:
            stops.ask(message["stop"])
        else:
            questions.put(message)


def _interrupt() -> None:
    """Be a Ctrl-C to the main thread; unlike ``_thread.interrupt_main`` one that can be held back."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


def _outcome(call: Call, question: dict[str, Any]) -> tuple[str, Any]:
    """Do a task; return what is to be told of its end, whatever that is."""
    end: tuple[str, Any] = "interrupted", None
    try:
        try:
            end = _end_of(call, question)
        finally:
            call.end()
    except KeyboardInterrupt:
        call.end()
    return end


def _end_of(call: Call, question: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "done", TASKS[question["task"]](call, **question["arguments"])
    except MemoryError:
        return "memory", None
    except OSError as problem:
        texts = [None if text is None else str(text) for text in (problem.filename, problem.filename2)]
        return "system", [problem.errno, problem.strerror or str(problem), *texts]
    except ValueError as refusal:
        return "refused", str(refusal)[: 2 * SENTENCE_CHARS]
    except Exception as error:  # noqa: BLE001 - the child is there so that a file may do anything; the bridge says it
        return "unforeseen", f"{type(error).__name__}: {error}"[: 2 * SENTENCE_CHARS]


def _model(call: Call, folder: str, provider: str) -> Answer:
    from realtime.inference import Model, missing_for

    gpu = provider != "cpu" and not missing_for("cuda" if provider == "auto" else provider)
    missing_for("cpu")
    if gpu:
        lift_memory_limit()
    call.begin()
    model = Model.open(folder, provider=provider)
    card = model.card
    return {
        "name": card.name,
        "version": card.version,
        "task": card.task,
        "samplerate": card.samplerate,
        "provider": model.provider,
    }


def _corpus(call: Call, folder: str, verify: bool) -> Answer:
    import soundfile  # noqa: F401 - its import is not the file's time

    from realtime.corpus import load

    call.begin()
    corpus = load(folder)
    if verify:
        corpus.verify()
    return _described(corpus)


def _described(corpus: Any) -> Answer:
    return {
        "name": corpus.name,
        "units": len(corpus),
        "segmentation": corpus.segmentation,
        "seconds": corpus.seconds,
        "tempo": None if corpus.tempo is None else str(corpus.tempo),
        "meter": str(corpus.meter),
        "licence": corpus.licence,
        "labels": len(set(corpus.labels.tolist())),
        "digest": corpus.digest,
        "sources": [[s.file[:200], s.frames, s.samplerate, s.channels] for s in corpus.sources],
    }


def _build(call: Call, files: list[str], out: str, meter: str, **options: Any) -> Answer:
    from realtime.clock import Meter
    from realtime.corpus import build

    call.begin()
    progress = Sparing(lambda share, what: call.say(share=share, what=what))
    return _described(build(files, out, meter=Meter.parse(meter), progress=progress, **options))


def _take(call: Call, folder: str) -> Answer:
    from bridge.offline import read_take

    call.begin()
    take = read_take(folder)
    return {"frames": take.frames, "samplerate": take.samplerate, "stems": take.stems, "lines": len(take.lines)}


def _report(call: Call, folder: str, columns: int) -> Answer:
    import io

    from rich.console import Console

    from bridge import report
    from bridge.offline import read_take

    call.begin()
    take, text = read_take(folder), io.StringIO()
    Console(file=text, width=columns, color_system=None).print(report.table(take))
    try:
        picture, _ = report.write(take)
    except OSError as problem:
        problem.filename = problem.filename or str(take.folder / "arrangement.png")
        raise
    return {"table": text.getvalue(), "picture": str(picture)}


def _ways(call: Call, session: str, path: str | None) -> Answer:
    from bridge.offline import check_lighter
    from bridge.session import Session

    call.begin()
    check_lighter(Session.parse(session, path or "the session").placed(Path(path) if path else None))
    return {}


def _render(call: Call, session: str, path: str | None, source: str, out: str, blocksize: int) -> Answer:
    from bridge import offline
    from bridge.session import Session

    call.begin()
    parsed = Session.parse(session, path or "the session").placed(Path(path) if path else None)
    progress = Sparing(lambda done, total: call.say(done=done, total=total))
    return offline.render(
        parsed, source, out, blocksize=blocksize, progress=progress, doing=lambda what: call.say(doing=what)
    ).told()


def _replay(call: Call, folder: str, out: str) -> Answer:
    from bridge import offline

    call.begin()
    progress = Sparing(lambda done, total: call.say(done=done, total=total))
    return offline.replay(folder, out, progress=progress, doing=lambda what: call.say(doing=what)).told()


class Sparing:
    """Passes progress on a few times a second, and its end."""

    def __init__(self, tell: Callable[[Any, Any], None], every_seconds: float = 0.05) -> None:
        self._tell, self._every, self._last = tell, every_seconds, 0.0

    def __call__(self, done: Any, total: Any) -> None:
        """Take progress."""
        now = time.monotonic()
        if now - self._last >= self._every or done == total:
            self._last = now
            self._tell(done, total)


TASKS: dict[str, Callable[..., Answer]] = {
    "model": _model,
    "corpus": _corpus,
    "build": _build,
    "take": _take,
    "report": _report,
    "ways": _ways,
    "render": _render,
    "replay": _replay,
}
"""What a child can be asked to do."""


def time_for(folder: str | os.PathLike[str]) -> float:
    """Return the seconds that the files of a folder may take to be opened, from their sizes."""
    total = 0
    with contextlib.suppress(OSError):
        for place, _, names in os.walk(folder):
            total += sum(os.lstat(os.path.join(place, name)).st_size for name in names[:10_000])
    return OPEN_SECONDS + total / BYTES_PER_SECOND
