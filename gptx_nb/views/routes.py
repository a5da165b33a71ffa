"""The Jupyter Server extension: runs over HTTP for JupyterLab, with no kernel. Handlers parse, call core, answer.

    GET    gptx_nb/runs?since=REVISION            all runs in short, or those that have changed
    POST   gptx_nb/runs                           start one: {"name", "recipe", "kind", "from": id whose rows are taken}
    GET    gptx_nb/runs/NAME/VERSION              one run in full
    DELETE gptx_nb/runs/NAME/VERSION              put it into the trash: {"trash": id}
    GET    gptx_nb/runs/NAME/VERSION/history?cursor=   metrics from where the last answer ended
    GET    gptx_nb/runs/NAME/VERSION/log          the end of its log
    POST   gptx_nb/runs/NAME/VERSION/stop         save and stop
    POST   gptx_nb/runs/NAME/VERSION/kill         end it at once, without saving
    POST   gptx_nb/runs/NAME/VERSION/resume       go on with it
    POST   gptx_nb/runs/NAME/VERSION/predict      ask the model: {"texts": [...]}
    POST   gptx_nb/trash/ID/restore               take a deleted run back
    GET    gptx_nb/form                           the settings of a recipe, to draw a form from
    GET    gptx_nb/device                         memory of the devices of this machine
    GET    gptx_nb/live                           WebSocket: what changes, while a view is looked at

Every request is authenticated, authorised for the resource `gptx_nb`, and carries the XSRF token unless it carries the
server's token, GET and the WebSocket too. Answers are JSON, errors {"message", "field"}: 400 names the setting, 404
repeats nothing, 409 is a run in another state, 413 more than 1 MiB. Changes of state are Jupyter events (EVENT).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import ensure_async, url_path_join
from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from gptx_nb import fields, files, gpus, inference, launch, overview
from gptx_nb.errors import GptxError, RunNotFound, UsageError
from gptx_nb.generations import Generations
from gptx_nb.overview import Overview
from gptx_nb.predictions import Predictions
from gptx_nb.pretraining import KINDS
from gptx_nb.recipe import check_name, make_recipe
from gptx_nb.run_files import home
from gptx_nb.runs import ACTIVE, Run
from gptx_nb.sources import FILE_ENDINGS
from gptx_nb.trash import Trash

T = TypeVar("T")

RESOURCE = "gptx_nb"
EVENT = "urn:gptx-nb:run-state:1"
LARGEST_BODY = 2**20  # bytes
READ_AT_MOST = 2**25  # bytes; a larger body is not even read
TOO_LARGE = "More than 1 MiB was sent. Give the name of a file instead of its rows."
MOST_TEXTS = 1000
LOOK = 1.0  # seconds between looks at the disk while somebody watches
IDLE_LOOK = 3.0  # else
ANSWER_WITHIN = 20.0  # seconds: proxies give up on a slow answer; a launch that takes longer goes on by itself
DECISION_KEPT = 600.0  # seconds

EVENT_SCHEMA: dict[str, Any] = {
    "$id": EVENT,
    "version": "1",
    "title": "State of a gptx_nb run",
    "description": "A run has begun, has changed its state, or was deleted (state: gone).",
    "type": "object",
    "properties": {
        "id": {"title": "name and version", "type": "string"},
        "state": {"title": "state", "type": "string"},
        "doing": {"title": "what it does, in words", "type": "string"},
        "active": {"title": "whether it goes on", "type": "boolean"},
    },
    "required": ["id", "state", "doing", "active"],
}


# ---- what all handlers share ----------------------------------------------------------------------------------------


@dataclass
class Launch:
    """A request to start or resume a run that was answered before it was decided: `run` began, or `message` says why
    it was refused."""

    name: str
    since: float
    run: str = ""
    message: str = ""
    field: str | None = None
    over: bool = False

    def settle(self, task: asyncio.Future[launch.Launched]) -> None:
        """Keep what came of it."""
        self.over = True
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self.message = str(error) if isinstance(error, GptxError) else f"{type(error).__name__}: {error}"
            self.field = setting_of(self.message)
        else:
            self.run = overview.identity(task.result().run)


@dataclass
class Room:
    """The state of this extension in one server: the overview, its threads, and who is told of changes."""

    app: ServerApp
    overview: Overview
    quick: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "gptx-look"))
    slow: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32, "gptx-wait"))
    launches: dict[int, Launch] = field(default_factory=dict)
    watchers: int = 0  # open WebSockets
    _known: dict[str, tuple[str, str]] | None = None
    _looked: float = 0.0
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def run(self, call: Callable[..., T], *arguments: Any, slow: bool = False) -> T:
        """Call in a thread what reads the disk or waits for others."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.slow if slow else self.quick, functools.partial(call, *arguments))

    async def look(self, at_most_old: float = 0.3) -> Overview:
        """Look at the disk, unless that was begun a moment ago, and emit an event for each change of state."""
        wanted = time.monotonic() - at_most_old
        async with self._looking:
            if self._looked <= wanted:  # else somebody looked while this one waited
                self._looked = time.monotonic()
                await self.run(self.overview.refresh)
                self._tell()
        return self.overview

    def _tell(self) -> None:
        now = self.overview.states()
        if self._known is not None:
            for identity in now.keys() | self._known.keys():
                if (found := now.get(identity)) == self._known.get(identity):
                    continue
                state, doing = found or ("gone", "gone")
                active = state in ACTIVE
                data = {"id": identity, "state": state, "doing": doing, "active": active}
                if self.app.event_logger is not None:
                    self.app.event_logger.emit(schema_id=EVENT, data=data)
        self._known = now

    async def watch(self) -> None:
        """Look again and again, as long as the server lives."""
        await self.run(Trash(self.overview.home).empty)
        while True:
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                await self.look()
            await asyncio.sleep(LOOK if self.watchers else IDLE_LOOK)

    def start(self) -> None:
        """Begin to watch, on the server's loop."""
        self.keep(asyncio.ensure_future(self.watch()))

    def keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def decided(self) -> dict[str, list[dict[str, Any]]]:
        """Return the launches that were refused, and those that have begun, after their answer had been sent."""
        old = time.monotonic() - DECISION_KEPT
        self.launches = {key: each for key, each in self.launches.items() if not each.over or each.since > old}
        return {
            "refused": [
                {"launch": key, "name": each.name, "message": each.message, "field": each.field}
                for key, each in self.launches.items()
                if each.message
            ],
            "begun": [{"launch": key, "id": each.run} for key, each in self.launches.items() if each.run],
        }


class Refused(web.HTTPError):
    """An answer that is an error: its message is for the user, `field` the setting that is wrong, if one is."""

    def __init__(self, status: int, message: str, setting: str | None = None) -> None:
        super().__init__(status, message.replace("%", "%%"))
        self.said = message
        self.field = setting


def refusal(error: GptxError) -> Refused:
    """Return the answer for an error of core."""
    if isinstance(error, RunNotFound):
        return Refused(404, "There is no such run. It may have been deleted.")
    if isinstance(error, UsageError):
        return Refused(400, str(error), setting_of(str(error)))
    return Refused(500, str(error))


def setting_of(message: str) -> str | None:
    """Return the setting that a message of core is about: it stands in front."""
    word = re.match(r"(?:unknown setting ')?(\w+)", message)
    known = {setting.name for kind in KINDS.values() for setting in fields.settings(kind)} | {"name"}
    return word[1] if word and (word[1] in known or message.startswith("unknown setting")) else None


@web.stream_request_body
class Handler(APIHandler):
    """What every handler does before and after: who asks, how much was sent, and answers that are JSON."""

    auth_resource = RESOURCE
    _track_activity = False  # a view that is left open must not keep an idle server alive

    def initialize(self, room: Room) -> None:
        self.room = room
        self._received = bytearray()

    async def prepare(self) -> None:  # type: ignore[override]
        await super().prepare()
        if self.current_user is None:
            raise web.HTTPError(403)
        if self.request.method in ("GET", "HEAD", "OPTIONS"):
            self.check_xsrf_cookie()  # JupyterLab's requests carry the token always; of other pages none does
        length = self.request.headers.get("Content-Length") or ""
        if length.isdecimal() and int(length) > READ_AT_MOST:
            raise Refused(413, TOO_LARGE)

    def data_received(self, chunk: bytes) -> None:
        # What is too much is read and dropped: a browser that is still sending would not see an answer.
        if len(self._received) <= LARGEST_BODY:
            self._received += chunk

    def options(self, *args: Any, **kwargs: Any) -> None:
        raise web.HTTPError(405)

    def body(self) -> dict[str, Any]:
        """Return the body, a JSON object; empty where none was sent."""
        if not self._received.strip():
            return {}
        try:
            found = json.loads(self._received.decode("utf-8"))
        except ValueError:
            raise Refused(400, "The request is not JSON.") from None
        if not isinstance(found, dict):
            raise Refused(400, "The request is no JSON object.")
        return found

    async def find(self, name: str, version: str) -> Run:
        """Return a run that is in the listing; what is not there is 404."""
        with contextlib.suppress(RunNotFound):
            return self.room.overview.run(f"{name}/{version}")
        return (await self.room.look(0)).run(f"{name}/{version}")  # made a moment ago

    def answer(self, value: Any, status: int = 200) -> None:
        self.set_status(status)
        self.finish(encoded(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        said = error.said if isinstance(error, Refused) else self._reason
        self.answer({"message": said, "field": error.field if isinstance(error, Refused) else None}, status=status_code)


def encoded(value: Any) -> str:
    """Return `value` as JSON; a number that is not finite becomes null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(files.finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


Answer = Callable[..., Awaitable[None]]


def answers(action: Literal["read", "write", "execute"]) -> Callable[[Answer], Answer]:
    """Let a handler see to it that its user may do `action`, and answer an error of core with its message."""

    def decorate(method: Answer) -> Answer:
        @functools.wraps(method)
        async def call(self: Handler, *arguments: str) -> None:
            await allow(self, action)
            if len(self._received) > LARGEST_BODY:
                raise Refused(413, TOO_LARGE)
            try:
                await method(self, *arguments)
            except GptxError as error:
                raise refusal(error) from None
            except FileNotFoundError:
                raise refusal(RunNotFound("gone")) from None  # deleted at this moment

        return call

    return decorate


async def allow(handler: JupyterHandler, action: str) -> None:
    """Raise 403 unless the user of this request may do `action` with runs."""
    if not await ensure_async(handler.authorizer.is_authorized(handler, handler.current_user, action, RESOURCE)):
        raise web.HTTPError(403)


# ---- runs -----------------------------------------------------------------------------------------------------------


class RunsHandler(Handler):
    """The list, and its new entries."""

    @answers("read")
    async def get(self) -> None:
        seen = await self.room.look(0)
        self.answer(
            {
                **seen.since(self.get_query_argument("since", "")),
                **self.room.decided(),
                "home": str(seen.home),
            }
        )

    @answers("execute")
    async def post(self) -> None:
        asked = self.body()
        name, recipe = asked.get("name"), asked.get("recipe")
        if not isinstance(name, str) or not name:
            raise Refused(400, "Give the run a name, for example reviews.", "name")
        if not isinstance(recipe, dict):
            raise Refused(400, "The recipe is no JSON object of settings.", "recipe")
        kind = KINDS.get(str(asked.get("kind") or "finetune"))
        if kind is None:
            raise Refused(400, f"There are these kinds of runs: {', '.join(KINDS)}.", "kind")
        try:
            check_name(name)
        except UsageError as error:
            raise Refused(400, str(error), "name") from None
        settings = {key: value for key, value in recipe.items() if value is not None}
        given = await self._rows_of(asked.get("from"), settings)
        for key in ("data", "validation"):
            if isinstance(settings.get(key), str) and key not in given:
                settings[key] = self._below_root(settings[key])
        await begin(self, name, functools.partial(launch.train, name, make_recipe(settings, "", kind), **given))

    async def _rows_of(self, origin: object, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tables of the run `origin`, as files, where `settings` still name them as that run did.

        A table from a notebook's memory is where the run keeps it; one that was a file is at its whole path.
        """
        if origin is None:
            return {}
        name, _, version = str(origin).partition("/")
        run = await self.find(name, version)
        sources, asked = run.sources(), run.request()["recipe"]
        return {
            key: run.folder / source.path  # an absolute path stays as it is
            for key, source in (("data", sources["train"]), ("validation", sources["validation"]))
            if source is not None and source.path is not None and settings.get(key) == asked.get(key)
            if source.kind in ("frame", "file", "folder")
        }

    def _below_root(self, text: str) -> str:
        """Return a file's name, which is typed as JupyterLab's file browser shows it, as a whole path."""
        root = Path(self.room.app.root_dir)
        path = root / Path(text).expanduser()
        if path.exists() or text.lower().endswith(FILE_ENDINGS):
            return str(path)
        return text


class RunHandler(Handler):
    """One run in full, and its removal."""

    @answers("read")
    async def get(self, name: str, version: str) -> None:
        run = await self.find(name, version)
        told = await self.room.run(overview.details, run)
        self.answer({**told, "browser_path": below(self.room.app.root_dir, run.folder)})

    @answers("write")
    async def delete(self, name: str, version: str) -> None:
        run = await self.find(name, version)
        if await self.room.run(lambda: run.active):
            raise Refused(409, f"{run.name} v{run.version} goes on. Stop it first.")
        identity = await self.room.run(Trash(self.room.overview.home).put, run)
        await self.room.look(0)
        self.answer({"trash": identity})


class HistoryHandler(Handler):
    """The metrics of one run, in increments."""

    @answers("read")
    async def get(self, name: str, version: str) -> None:
        run = await self.find(name, version)
        self.answer(await self.room.run(overview.history, run, self.get_query_argument("cursor", "")))


class LogHandler(Handler):
    """The end of one run's log."""

    @answers("read")
    async def get(self, name: str, version: str) -> None:
        run = await self.find(name, version)
        self.answer({"text": await self.room.run(overview.log_tail, run)})


class StopHandler(Handler):
    """Save and stop: the request is left for the worker, which answers within a step."""

    @answers("execute")
    async def post(self, name: str, version: str) -> None:
        run = await self.find(name, version)
        if not await self.room.run(lambda: run.active):
            raise Refused(409, f"{run.name} v{run.version} does not train.")
        await self.room.run(run.request_stop)
        await self.room.look(0)
        self.answer({"stopping": True}, status=202)


class KillHandler(Handler):
    """Stop now: what came after the last checkpoint is lost."""

    @answers("execute")
    async def post(self, name: str, version: str) -> None:
        run = await self.find(name, version)
        try:
            said = await self.room.run(launch.kill, run)
        except UsageError as error:
            raise Refused(409, str(error)) from None
        await self.room.look(0)
        self.answer({"note": said}, status=202)


class ResumeHandler(Handler):
    """Go on with a run that was stopped or broke off."""

    @answers("execute")
    async def post(self, name: str, version: str) -> None:
        run = await self.find(name, version)
        state = await self.room.run(run.state)
        if state == "finished" or state in ACTIVE:
            raise Refused(409, f"{run.name} v{run.version} cannot be resumed: it is {state}.")
        await begin(self, run.name, functools.partial(launch.resume, run))


class PredictHandler(Handler):
    """Ask a run's model about texts, in the inference process that the notebooks use too."""

    @answers("execute")
    async def post(self, name: str, version: str) -> None:
        run = await self.find(name, version)
        texts = self.body().get("texts")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise Refused(400, "Give at least one text.", "texts")
        if len(texts) > MOST_TEXTS:
            raise Refused(400, f"At most {MOST_TEXTS:,} texts at a time.", "texts")
        if not run.model.is_dir():
            raise Refused(409, f"{run.name} v{run.version} has no model yet.")
        ask = inference.generate if await self.room.run(inference.writes, run) else inference.predict
        self.answer(told(await self.room.run(ask, run, texts, slow=True)))


def told(found: Predictions | Generations) -> dict[str, Any]:
    """Return predictions as plain JSON: labels from the likeliest on, or what was written in the label's place."""
    if isinstance(found, Generations):
        rows = [
            {"text": each.asked, "label": each.text, "probabilities": list((each.probabilities or {}).items())}
            for each in found
        ]
        return {"rows": rows, "notes": found.notes()}
    return {
        "rows": [
            {"text": each.text, "label": each.label, "probabilities": list(each.probabilities.items())}
            for each in found
        ],
        "notes": found.notes(),
    }


async def begin(handler: Handler, name: str, start: Callable[[], launch.Launched]) -> None:
    """Start a run in a thread and answer with it; 202 where it takes long, and the list then tells what came of it."""
    room = handler.room
    task = asyncio.ensure_future(room.run(start, slow=True))
    room.keep(task)
    done, _ = await asyncio.wait([task], timeout=ANSWER_WITHIN)
    if not done:
        waits = Launch(name, time.monotonic())
        room.launches[id(waits)] = waits
        task.add_done_callback(waits.settle)
    await room.look(0)
    if not done:
        handler.answer({"launch": id(waits), "name": name}, status=202)
        return
    launched = task.result()
    handler.answer(
        {"id": overview.identity(launched.run), "action": launched.action, "note": launched.note},
        status=201 if launched.action == "new" else 200,
    )


# ---- the rest -------------------------------------------------------------------------------------------------------


class RestoreHandler(Handler):
    """Take a deleted run back."""

    @answers("write")
    async def post(self, identity: str) -> None:
        run = await self.room.run(Trash(self.room.overview.home).restore, identity)
        await self.room.look(0)
        self.answer({"id": overview.identity(run)})


class FormHandler(Handler):
    """The settings of each kind of recipe."""

    @answers("read")
    async def get(self) -> None:
        self.answer({"kinds": {name: await self.room.run(fields.form_spec, kind) for name, kind in KINDS.items()}})


class DeviceHandler(Handler):
    """The memory of this machine's devices: of its GPUs, or its own."""

    @answers("read")
    async def get(self) -> None:
        self.answer(await self.room.run(devices))


class NothingHandler(Handler):
    """Every other address below ours."""

    @answers("read")
    async def get(self, rest: str) -> None:
        raise Refused(404, "There is nothing at this address.")

    post = put = patch = delete = get


def devices() -> dict[str, Any]:
    """Return {"devices": [{"name", "memory_total", "memory_free"}], "why": why there is no GPU, or empty}; bytes."""
    try:
        found = gpus.found()
    except gpus.NoGpu as error:
        return {"devices": [main_memory()], "why": str(error)}
    return {
        "devices": [
            {
                "name": f"cuda:{gpu.index} {gpu.name}",
                "memory_total": gpu.memory_total,
                "memory_free": gpu.memory_free,
                "busy": gpu.busy,
            }
            for gpu in found
        ],
        "why": "",
    }


def main_memory() -> dict[str, Any]:
    """Return the main memory of this machine, and what of it is free; None where that cannot be told."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = None
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        found = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
        free = 1024 * found["MemAvailable"]
    return {"name": "cpu", "memory_total": total, "memory_free": free, "busy": None}


def below(root: str, folder: Path) -> str | None:
    """Return `folder` as the file browser names it, or None where it lies outside of what that shows."""
    try:
        return folder.resolve().relative_to(Path(root).resolve()).as_posix()
    except ValueError:
        return None


class LiveHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """Tells one view what changes, as long as it is looked at.

    It gets what GET runs?since= answers, whenever there is something, and for runs that it follows their history. It
    may send {"follow": {id: cursor, ...}}.
    """

    auth_resource = RESOURCE

    def initialize(self, room: Room) -> None:
        self.room = room
        self.revision = ""
        self.follow: dict[str, str] = {}
        self._awake = asyncio.Event()

    async def prepare(self) -> None:  # type: ignore[override]
        await super().prepare()
        if self.current_user is None:
            raise web.HTTPError(403)
        self.check_xsrf_cookie()  # a browser's WebSocket cannot send a header: the token is in its address

    async def get(self, *args: Any, **kwargs: Any) -> None:
        await allow(self, "read")
        await super().get(*args, **kwargs)

    def open(self, *args: str, **kwargs: str) -> None:
        super().open(*args, **kwargs)
        self.room.watchers += 1
        self._task = asyncio.ensure_future(self._tell())
        self._task.add_done_callback(self._ended)

    def on_message(self, message: str | bytes) -> None:
        with contextlib.suppress(ValueError):
            asked = json.loads(message)
            follow = asked.get("follow") if isinstance(asked, dict) else None
            if isinstance(follow, Mapping):
                self.follow = {str(key): str(value) for key, value in list(follow.items())[:16]}
                self._awake.set()

    def on_close(self) -> None:
        super().on_close()
        if task := getattr(self, "_task", None):
            self.room.watchers -= 1
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("gptx_nb: a view is no longer told of changes", exc_info=error)
            self.close()  # the view asks again then, and shows what is wrong

    async def _tell(self) -> None:
        with contextlib.suppress(WebSocketClosedError):
            told: dict[str, Any] | None = None
            while True:
                changed = (await self.room.look()).since(self.revision)
                grown, decided = await self._grown(), self.room.decided()
                if decided != told or changed["runs"] or changed["gone"] or grown:
                    await self.write_message(encoded({**changed, **decided, "history": grown}))
                self.revision, told = changed["revision"], decided
                self._awake.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._awake.wait(), LOOK)

    async def _grown(self) -> dict[str, Any]:
        found = {}
        for identity, cursor in list(self.follow.items()):
            with contextlib.suppress(RunNotFound, OSError):
                run = self.room.overview.run(identity)
                added = await self.room.run(overview.history, run, cursor)
                if added["records"]:
                    found[identity] = added
                if self.follow.get(identity) == cursor:
                    self.follow[identity] = added["cursor"]
        return found


# ---- into the server ------------------------------------------------------------------------------------------------

_RUN = r"runs/([A-Za-z0-9][A-Za-z0-9._-]{0,63})/([1-9][0-9]{0,8})"
ROUTES: tuple[tuple[str, type[web.RequestHandler]], ...] = (
    (r"runs", RunsHandler),
    (_RUN, RunHandler),
    (rf"{_RUN}/history", HistoryHandler),
    (rf"{_RUN}/log", LogHandler),
    (rf"{_RUN}/stop", StopHandler),
    (rf"{_RUN}/kill", KillHandler),
    (rf"{_RUN}/resume", ResumeHandler),
    (rf"{_RUN}/predict", PredictHandler),
    (r"trash/([0-9a-f]{16})/restore", RestoreHandler),
    (r"form", FormHandler),
    (r"device", DeviceHandler),
    (r"live", LiveHandler),
    (r"(.*)", NothingHandler),
)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "gptx_nb.views.routes"}]


def _load_jupyter_server_extension(app: ServerApp) -> None:
    """Add the routes to the server: what Jupyter Server calls when it starts."""
    if app.event_logger is not None:
        app.event_logger.register_event_schema(EVENT_SCHEMA)
    room = Room(app, Overview(home()))
    base = app.web_app.settings["base_url"]
    handlers = [(url_path_join(base, "gptx_nb", path), handler, {"room": room}) for path, handler in ROUTES]
    app.web_app.add_handlers(".*$", handlers)  # type: ignore[no-untyped-call]
    app.io_loop.add_callback(room.start)
    app.log.info(f"gptx_nb shows the runs in {room.overview.home}")
