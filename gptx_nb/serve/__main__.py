"""`python -m gptx_nb.serve HOME FOLDER`: take the place, listen, answer, end when idle. See gptx_nb.inference.Place.

It listens before it imports torch, so that it can be started ahead of need without a wait. All computing happens in one
thread, in the order of the requests. Texts are never logged.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gptx_nb import files, inference
from gptx_nb.errors import GptxError, ModelError, UsageError
from gptx_nb.inference import LARGEST_BODY, Place
from gptx_nb.process import Process
from gptx_nb.run_files import RunFiles
from gptx_nb.runs import Run

if TYPE_CHECKING:
    from gptx_nb.engine.device import Device
    from gptx_nb.engine.predict import Answer, Classifier
    from gptx_nb.engine.writer import Writer
    from gptx_nb.engine.zero_shot import ZeroShot

KEPT_MODELS = 3
GONE = (BrokenPipeError, ConnectionResetError, TimeoutError)  # the client was interrupted, or sends no more
# Seconds; how often it looks whether it has been idle for too long or has lost its place.
WATCH_SECONDS = 0.25


def log(text: str) -> None:
    """Write a line to the log, which is where stderr goes."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {text}\n")
    sys.stderr.flush()


class Refused(Exception):
    """A request that gets an error as its answer: HTTP status, one line, class name of the error for the client."""

    def __init__(self, status: int, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind


class Models:
    """Loaded models, classifiers and writers, the latest used last.

    Every method but `names`, `held` and `folder_of` runs in the computing thread.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._loaded: OrderedDict[tuple[str, int, int, str], Classifier | Writer | ZeroShot] = OrderedDict()

    def names(self) -> list[str]:
        """Return the runs whose models are loaded, as "reviews/3", and base models by name."""
        return [self.called(Path(key[0])) for key in list(self._loaded)]

    def called(self, folder: Path) -> str:
        """Return the run that a model's folder belongs to, as "reviews/3", or the folder's own name."""
        return "/".join(self._run_of(folder).parts[-2:]) if folder.is_relative_to(self._root) else folder.name

    def _run_of(self, folder: Path) -> Path:
        return self._root.joinpath(*folder.relative_to(self._root).parts[:2])

    def held(self) -> int:
        """Return how many bytes the loaded weights take."""
        return sum(each.bytes for each in list(self._loaded.values()))

    def folder_of(self, given: str, step: Any = None) -> Path:
        """Return the model folder of the run directory `given`; refuse all that is not below the home's runs.

        `step`: the model that it had then.
        """
        try:
            # Links are followed before the place is judged.
            run = RunFiles(Path(given))
            then = isinstance(step, int) and not isinstance(step, bool)
            folder = Path(os.path.realpath(run.unfinished(step) if then else run.model))
            inside = folder.is_relative_to(self._root) and len(folder.relative_to(self._root).parts) == 3 + then
            if inside and folder.is_dir():
                return folder
        except (OSError, ValueError):  # no path at all: a zero byte, a name of a mile
            pass
        raise Refused(404, "there is no such run, or it has no model yet", "RunNotFound")

    def classify(self, folder: Path, texts: list[str]) -> tuple[Classifier, Answer]:
        """Return the classifier of `folder` and its answer; loads the model if need be."""
        classifier = self._get(folder)
        return classifier, classifier.classify(texts)

    def extremes(self, folder: Path, count: int) -> dict[str, Any]:
        """Return the rows that the run of a model's folder does best and worst on; see engine/extremes.py."""
        from gptx_nb.engine import examples, extremes
        from gptx_nb.engine.roles import RoleTable
        from gptx_nb.recipe import Recipe

        run = Run(self._run_of(folder))
        recipe = run.recipe()
        if not isinstance(recipe, Recipe):
            raise UsageError(f"{run.name} v{run.version} has learnt from plain text: there are no rows to compare")
        table = examples.load_snapshot(run.data, recipe)
        model = self.writer(folder, None) if isinstance(table, RoleTable) else self._get(folder)
        return extremes.find(table, model, count)

    def _get(self, folder: Path) -> Classifier:
        from gptx_nb.engine.predict import Classifier

        found = self._kept(folder, "", lambda chosen: Classifier.load(folder, chosen))
        assert isinstance(found, Classifier)
        return found

    def writer(self, folder: Path, task: str | None) -> Writer:
        """Return the language model of a run, or of a base model's folder; loads it if need be."""
        from gptx_nb.engine.writer import Writer

        found = self._kept(folder, task or "-", lambda chosen: Writer.load(folder, chosen, task))
        assert isinstance(found, Writer)
        return found

    def base(self, name: str, task: str | None) -> Writer:
        """Return the base model `name` as a writer; finds and loads it if need be."""
        from gptx_nb.engine import models
        from gptx_nb.engine.writer import Writer

        base = models.find(name, None, log)
        if not base.gguf and Path(base.path).is_dir():
            return self.writer(Path(base.path), task)

        def load(chosen: Device) -> Writer:
            return Writer.of(models.load_causal(base), models.load_tokenizer(base), chosen, None, task)

        found = self._kept(Path(base.path) / (base.gguf or ""), task or "-", load)
        assert isinstance(found, Writer)
        return found

    def label(self, asked: dict[str, Any]) -> tuple[list[str], Answer]:
        """Return label names and the answer of a base model, by the words of the labels."""
        from gptx_nb.engine import models
        from gptx_nb.engine.zero_shot import ZeroShot, read_wording

        own = (asked["labels"], asked["prompt"], asked["label_words"], asked["shots"])
        wording = read_wording(*own, texts=asked["beside"], pair=asked["pair"])
        base = models.find(asked["base"], None, log)
        found = self._kept(Path(base.path) / (base.gguf or ""), "labels", lambda chosen: ZeroShot.load(base, chosen))
        assert isinstance(found, ZeroShot)
        return asked["labels"], found.classify(asked["texts"], wording, asked["beside"], asked["pair"])

    def _kept(
        self, folder: Path, task: str, load: Callable[[Device], Classifier | Writer | ZeroShot]
    ) -> Classifier | Writer | ZeroShot:
        # First here, not at the top: the process listens while these seconds pass.
        from gptx_nb.engine import device

        stamp = folder.stat() if folder.exists() else None
        # A run that was removed and made anew is another one.
        key = (str(folder), stamp.st_ino if stamp else 0, stamp.st_mtime_ns if stamp else 0, task)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key]
        # The recipe's GPU may be gone or another one; its wish for the CPU is kept, and that for float32.
        recipe = Run(self._run_of(folder)).recipe() if folder.is_relative_to(self._root) else None
        asked = (recipe.device, recipe.dtype) if recipe else ("auto", "auto")
        chosen = device.choose(*(wish if wish in ("cpu", "float32") else "auto" for wish in asked))
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else 0
        if chosen.memory_free is not None:
            self._make_room(size, (chosen.memory_free + self.held()) // 2)
        else:
            self._make_room(size, None)
        started = time.monotonic()
        model = load(chosen)
        self._loaded[key] = model
        seconds = time.monotonic() - started
        held = f"{model.bytes / 2**20:.0f} MiB on {chosen.device}, {str(model.dtype).removeprefix('torch.')}"
        log(f"loaded {self.names()[-1]}: {held}, in {seconds:.1f} s")
        return model

    def _make_room(self, size: int, limit: int | None) -> None:
        """Unload the models that were not used for longest, so that `size` more bytes stay within `limit`."""
        while self._loaded and (len(self._loaded) >= KEPT_MODELS or (limit is not None and self.held() + size > limit)):
            log(f"unloading {self.names()[0]}")
            self._loaded.popitem(last=False)[1].close()


class Server(ThreadingHTTPServer):
    """Listens on the place's socket. `end` may be called from any thread and does not return."""

    address_family = socket.AF_UNIX
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, place: Place, token: str, limit: float) -> None:
        self.place = place
        self.token = token
        self.models = Models(place.home / "runs")
        self.limit = limit
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="computing")
        self._state = threading.Lock()
        self._active = 0
        self._last = time.monotonic()
        super().__init__(cast(Any, str(place.socket)), Handler)  # typeshed knows addresses of TCP only
        os.chmod(place.socket, 0o600)
        self._inode = place.socket.stat().st_ino

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0  # HTTPServer would look the address up as a host name

    @contextlib.contextmanager
    def working(self) -> Any:
        """Count a request as work: the process does not end while it goes on, and is idle from its end on."""
        with self._state:
            self._active += 1
        try:
            yield
        finally:
            with self._state:
                self._active -= 1
                self._last = time.monotonic()

    def idle(self) -> float:
        """Return for how many seconds there has been no work."""
        with self._state:
            return 0.0 if self._active else time.monotonic() - self._last

    def watch(self) -> None:
        """End the process when it is idle for too long, or when its socket is no longer its own."""
        while True:
            time.sleep(min(WATCH_SECONDS, self.limit))
            with self._state:
                # Judged and acted on under the lock, so that no request begins in between.
                if not self._active and time.monotonic() - self._last >= self.limit:
                    self.end(f"idle for {self.limit:g} s")
                try:
                    mine = self.place.socket.stat().st_ino == self._inode
                except OSError:
                    mine = False
                if not mine and not self._active:
                    self.end("its socket was removed")

    def leave(self) -> None:
        """Put the place's files away: no new request comes in, and clients that are cut off know it was in order."""
        with contextlib.suppress(OSError):
            if self.place.socket.stat().st_ino == self._inode:
                self.place.remove_files()

    def end(self, reason: str) -> None:
        """Leave the place and end the process at once, whatever is being computed."""
        self.leave()
        log(f"ending: {reason}")
        # Threads may be deep in a matrix product: waiting for them could take long, and there is nothing left to save.
        os._exit(0)


class Handler(BaseHTTPRequestHandler):
    """One connection. Every answer is JSON."""

    protocol_version = "HTTP/1.1"
    server_version = "gptx_nb"
    timeout = 60.0  # seconds; a connection on which nothing comes is closed
    server: Server

    def do_GET(self) -> None:
        self._answer({"/v1/health": self._health})

    def do_POST(self) -> None:
        routes = {
            "/v1/classify": self._classify,
            "/v1/extremes": self._extremes,
            "/v1/label": self._label,
            "/v1/free": self._free,
            "/v1/generate": self._generate,
        }
        self._answer(routes)

    def _answer(self, routes: dict[str, Any]) -> None:
        try:
            body = self._body()
            if not secrets.compare_digest(
                self.headers.get("Authorization", "").encode(), f"Bearer {self.server.token}".encode()
            ):
                raise Refused(403, "the token is missing or wrong")
            if self.path not in routes:
                raise Refused(404, f"no such route for {self.command}")
            answer = routes[self.path](body)
            if answer is not None:
                self._send(200, answer)
        except Refused as refused:
            self._send(refused.status, {"error": refused.message, "kind": refused.kind})
        except GptxError as error:
            self._send(422, {"error": str(error), "kind": type(error).__name__})
        except GONE:
            self.close_connection = True
        except Exception as error:
            log(traceback.format_exc().rstrip())
            self._send(500, {"error": f"{type(error).__name__} in the inference process", "kind": None})

    def _body(self) -> bytes:
        """Read the request's body, also of one that will be refused: else its sender would not hear why."""
        given = self.headers.get("Content-Length", "0")
        if not given.isdigit() or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(400, "a request needs a Content-Length")
        if int(given) > LARGEST_BODY:
            self.close_connection = True
            raise Refused(413, f"a request has at most {LARGEST_BODY} bytes")
        return self.rfile.read(int(given))

    def _health(self, body: bytes) -> dict[str, Any]:
        models = self.server.models
        return {
            "pid": os.getpid(),
            "models": models.names(),
            "bytes": models.held(),
            "idle": self.server.idle(),
            "limit": self.server.limit,
        }

    def _free(self, body: bytes) -> dict[str, Any]:
        self.server.leave()  # before the answer: whose client asks again next must not meet this process
        self._send(200, {})
        self.server.end("freed on demand")
        return {}

    def _classify(self, body: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(body)
        except ValueError:
            raise Refused(400, "the body is not JSON") from None
        folder = asked.get("folder") if isinstance(asked, dict) else None
        texts = asked.get("texts") if isinstance(asked, dict) else None
        if (
            not isinstance(folder, str)
            or not isinstance(texts, list)
            or not all(isinstance(each, str) for each in texts)
        ):
            raise Refused(400, 'the body has to be {"folder": text, "texts": [text, ...]}')
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise Refused(400, "a text holds half a character (a lone surrogate)") from None
        with self.server.working():
            model = self.server.models.folder_of(folder, asked.get("step"))
            try:
                classifier, answer = self.server.worker.submit(self.server.models.classify, model, texts).result()
            except Exception as error:
                self._end_without_memory(error)
                if isinstance(error, ModelError):  # the folder's name alone would not say whose
                    raise ModelError(f"run {self.server.models.called(model)}: {error}") from error
                raise
            told = {"labels": classifier.labels, "threshold": classifier.threshold}
            return {**told, "probabilities": answer.probabilities, "cut_at": answer.cut_at}

    def _label(self, body: bytes) -> dict[str, Any]:
        """Let a base model label {"base", "texts", "labels", "prompt", "label_words", "shots", "pair", "beside"}."""
        try:
            asked = json.loads(body)
            texts, labels = list(asked["texts"]), list(asked["labels"])
            "".join([str(asked["base"]), *texts, *labels, *asked["beside"]]).encode()
        except (ValueError, KeyError, TypeError):
            raise Refused(400, "the body names a base, its texts and labels as texts, and texts beside them") from None
        with self.server.working():
            try:
                labels, answer = self.server.worker.submit(self.server.models.label, asked).result()
            except Exception as error:
                self._end_without_memory(error)
                raise
            return {"labels": labels, "probabilities": answer.probabilities, "cut_at": answer.cut_at}

    def _extremes(self, body: bytes) -> dict[str, Any]:
        """Return the held-out rows of a run that its model does best and worst on."""
        try:
            asked = json.loads(body)
        except ValueError:
            raise Refused(400, "the body is not JSON") from None
        given, count = (asked.get(name) if isinstance(asked, dict) else None for name in ("folder", "count"))
        if not isinstance(given, str) or not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise Refused(400, 'the body has to be {"folder": text, "count": a number from 1}')
        with self.server.working():
            folder = self.server.models.folder_of(given)
            try:
                found: dict[str, Any] = self.server.worker.submit(self.server.models.extremes, folder, count).result()
                return found
            except Exception as error:
                self._end_without_memory(error)
                raise

    def _generate(self, body: bytes) -> None:
        """Answer in lines of JSON as they come: {"text": piece} of a single answer, {} as a sign of life, the result.

        A client that has gone ends the writing. The last line is {"rows": …} or {"error": …}.
        """
        try:
            asked = json.loads(body)
        except ValueError:
            raise Refused(400, "the body is not JSON") from None
        rows = asked.get("rows") if isinstance(asked, dict) else None
        if not isinstance(rows, list) or not all(isinstance(each, str | dict) for each in rows):
            raise Refused(400, 'the body has to be {"folder" or "base": text, "rows": [text or object, ...], ...}')
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        with self.server.working():
            try:
                folder = self.server.models.folder_of(asked["folder"], asked.get("step")) if "folder" in asked else None
                told = self.server.worker.submit(self._write, asked, folder).result()
            except Refused as refused:
                told = {"error": refused.message, "kind": refused.kind}
            except GptxError as error:
                told = {"error": str(error), "kind": type(error).__name__}
            except GONE:
                return
            except Exception as error:
                from gptx_nb.engine.device import is_out_of_memory

                log(traceback.format_exc().rstrip())
                told = {"error": f"{type(error).__name__} in the inference process", "kind": None}
                if is_out_of_memory(error):
                    self.server.leave()
                    self._line({"error": "memory ran out in the inference process, which has ended", "kind": None})
                    self.server.end("out of memory")
            with contextlib.suppress(*GONE):
                self._line(told)

    def _write(self, asked: dict[str, Any], folder: Path | None) -> dict[str, Any]:
        """Write the answers; in the computing thread. Raises BrokenPipeError if the client has gone."""
        from gptx_nb.engine.writer import How, task_of

        models, task = self.server.models, asked.get("task")
        writer = models.writer(folder, task) if folder is not None else models.base(asked["base"], task)
        roles = (task_of(folder) or {}).get("roles") if folder is not None else None
        asking = writer.asking(roles, asked.get("from"), asked.get("to"))
        first = asked.get("first", 1)
        examples = asking.examples(asked["rows"], first)
        numbers = range(first, first + len(examples))
        shots = asking.shots(asked.get("shots") or [])
        writer = writer.behind(shots)
        if examples and all("choices" in each for each in examples):
            shares, cut_at = writer.choose(examples, shots, numbers)
            told = [
                {"asked": writer.task.shown(each), "choices": each["choices"], "shares": row}
                for each, row in zip(examples, shares, strict=True)
            ]
            return {"rows": told, "cut_at": cut_at, "task": writer.task.name}
        how = How(**{**asked.get("how", {}), "stop": tuple(asked.get("how", {}).get("stop", ()))})
        last = time.monotonic()
        gone = False

        def alive(line: dict[str, Any]) -> None:
            nonlocal gone, last
            last = time.monotonic()
            try:
                self._line(line)
            except GONE:
                gone = True

        def stopped() -> bool:
            if not gone and time.monotonic() - last > 0.2:
                alive({})
            return gone

        answers = writer.write(examples, how, shots, lambda text: alive({"text": text}), stopped, numbers)
        if gone:
            raise BrokenPipeError
        told = [
            {
                "asked": writer.task.shown(example),
                "texts": [one.text for one in each],
                "ended": [one.ended for one in each],
                "tokens": sum(one.tokens for one in each),
            }
            for example, each in zip(examples, answers.written, strict=True)
        ]
        template = "" if writer.tuned else writer.template
        return {"rows": told, "cut_at": answers.cut_at, "task": writer.task.name, "template": template}

    def _line(self, value: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(value, allow_nan=False).encode("ascii") + b"\n")
        self.wfile.flush()

    def _end_without_memory(self, error: Exception) -> None:
        """End the process if `error` says that memory ran out: only that gives all of it back."""
        from gptx_nb.engine.device import is_out_of_memory

        if is_out_of_memory(error):
            log(traceback.format_exc().rstrip())
            self.server.leave()  # before the answer, as above
            message = "memory ran out in the inference process, which has ended; the next prediction starts a new one"
            self._send(507, {"error": message, "kind": None})
            self.server.end("out of memory")

    def _send(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value, allow_nan=False).encode("ascii")
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
        except GONE:
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:  # a method that is none of ours: its request is well-formed
            with contextlib.suppress(Refused, *GONE):
                self._body()
        self._send(code, {"error": message or "the request cannot be read", "kind": None})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of single requests."""


def import_engine() -> None:
    """Import what takes seconds, in the computing thread, so that the first request finds it there."""
    from gptx_nb.engine.predict import use_all_cores

    use_all_cores()
    log("torch and transformers are imported")


def take(place: Place) -> bool:
    """Lock the place until this process ends, however it ends; say whether it could be had."""
    descriptor = os.open(place.lock, os.O_RDWR | os.O_CREAT, 0o600)  # stays open
    for _ in range(20):  # a client that looks whether there is a process holds the lock for a moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def main() -> int:
    place = Place(Path(sys.argv[1]), Path(sys.argv[2]))
    if not take(place):
        return 0  # there is one already
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # the log is for what matters
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    place.remove_files()  # what is left of one that crashed
    token = secrets.token_urlsafe(32)
    with open(os.open(place.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as handle:
        handle.write(token)
    files.write_json(place.process, Process.of(os.getpid()).to_json())
    # Listening comes last: who is let in finds the rest.
    server = Server(place, token, inference.idle_seconds())
    signal.signal(signal.SIGTERM, lambda number, frame: server.end("SIGTERM"))
    log(f"listening for {place.home}, until idle for {server.limit:g} s")
    server.worker.submit(import_engine).add_done_callback(
        lambda done: log(f"the engine cannot be imported: {done.exception()!r}") if done.exception() else None
    )
    threading.Thread(target=server.watch, name="watch", daemon=True).start()
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
