"""The server extension, asked over HTTP as JupyterLab asks: a real Jupyter Server in a process of its own."""

import asyncio
import base64
import http.client
import itertools
import json
import random
import secrets
import shutil
import socket
import string
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_runs
import pytest
from servers import JupyterServer

from gptx_nb import fields, files, inference, launch
from gptx_nb.errors import DataError
from gptx_nb.overview import Overview
from gptx_nb.pretraining import KINDS
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import RunStore
from gptx_nb.views import routes
from gptx_nb.views.routes import ROUTES

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PLACES = {
    "runs": "runs",
    "form": "form",
    "device": "device",
    "live": "live",
    r"trash/([0-9a-f]{16})/restore": "trash/0123456789abcdef/restore",
    "(.*)": "elsewhere",
}


class Server(JupyterServer):
    """A Jupyter Server with the extension, on a home of its own."""

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Return status, JSON and headers of an answer; with the token unless `headers` are given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        known = {"Authorization": f"token {self.token}"} if headers is None else headers
        connection.request(method, f"/base/gptx_nb/{path}".replace("gptx_nb/../", ""), content, known)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        try:
            return answer.status, json.loads(text, parse_constant=_refuse) if text else None, answer.headers
        except ValueError:  # the WebSocket answers in HTML
            return answer.status, text, answer.headers


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"), "jupyter_server", base="/base/")
    found.start()
    yield found
    found.end()
    inference.free(found.home)


@pytest.fixture
def runs(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, and made_runs writes into its home, which is empty before and afterwards."""
    monkeypatch.setenv("GPTX_HOME", str(server.home))
    shutil.rmtree(server.home / "runs", ignore_errors=True)
    yield server
    shutil.rmtree(server.home / "runs", ignore_errors=True)


def places() -> list[str]:
    """Return an address for every route."""
    return [
        PLACES.get(pattern, pattern.replace("([A-Za-z0-9][A-Za-z0-9._-]{0,63})/([1-9][0-9]{0,8})", "reviews/1"))
        for pattern, _ in ROUTES
    ]


def test_every_route_refuses_every_method_without_a_token(server: Server) -> None:
    for place, method in itertools.product(places(), METHODS):
        assert server.ask(method, place, headers={})[0] == 403, (method, place)
        assert server.ask(method, place, headers={"Authorization": "token wrong"})[0] == 403, (method, place)


def test_every_route_refuses_every_method_with_the_cookie_of_another_page(server: Server) -> None:
    cookies = "; ".join(
        each.partition(";")[0]
        for page in (f"api/status?token={server.token}", "login")
        for each in server.ask("GET", f"../{page}", headers={})[2].get_all("Set-Cookie") or []
    )
    assert "username" in cookies
    for place, method in itertools.product(places(), METHODS):
        # A page elsewhere makes the browser send cookies, and cannot read them to send the XSRF token.
        status, _, _ = server.ask(method, place, headers={"Cookie": cookies})
        assert status == 403, (method, place)
    status, told, _ = server.ask("GET", "runs", headers={"Cookie": cookies, "X-XSRFToken": _xsrf(server, cookies)})
    assert (status, told["runs"]) == (200, [])


def _xsrf(server: Server, cookies: str) -> str:
    found = dict(each.split("=", 1) for each in cookies.split("; "))
    return found["_xsrf"]


def test_the_list_tells_state_progress_score_and_device_of_runs_from_anywhere(runs: Server) -> None:
    made_runs.make("finished", steps=60, phase="training", scores=made_runs.SCORES, outcome=made_runs.FINISHED)
    made_runs.make("going", steps=30, phase="training")
    made_runs.make("broken", steps=5, phase="training", outcome=made_runs.FAILED)
    status, told, _ = runs.ask("GET", "runs")
    assert status == 200
    found = {each["id"]: each for each in told["runs"]}
    assert {key: each["state"] for key, each in found.items()} == {
        "finished/1": "finished",
        "going/1": "running",
        "broken/1": "failed",
    }
    assert (found["going/1"]["step"], found["going/1"]["total"], found["going/1"]["share"]) == (30, 60, 0.5)
    assert found["going/1"]["doing"] == "training"
    assert found["finished/1"]["score"] == 0.8125
    assert found["finished/1"]["device"] == "cpu"
    assert len(found["finished/1"]["sparkline"]) == 60
    assert found["finished/1"]["sparkline"][0] > found["finished/1"]["sparkline"][-1]


def test_a_damaged_run_hides_itself_and_no_other(runs: Server) -> None:
    for number, damage in enumerate(("[]", "3", '{"recipe": []}', "{")):
        made_runs.make(f"request-{number}", outcome=made_runs.FINISHED).request_file.write_text(damage)
        made_runs.make(f"plan-{number}", outcome=made_runs.FINISHED).plan_file.write_text(damage)
    made_runs.make("good", outcome=made_runs.FINISHED)
    status, told, _ = runs.ask("GET", "runs")
    assert status == 200
    assert "good/1" in [each["id"] for each in told["runs"]]


def test_the_list_tells_only_what_has_changed_since_a_revision(runs: Server) -> None:
    made_runs.make("one", steps=60, phase="training", outcome=made_runs.FINISHED)
    before = runs.ask("GET", "runs")[1]
    time.sleep(0.5)
    assert runs.ask("GET", f"runs?since={before['revision']}")[1]["runs"] == []
    made_runs.make("two", outcome=made_runs.STOPPED)
    RunStore().remove(RunStore().find("one"))
    time.sleep(0.5)
    after = runs.ask("GET", f"runs?since={before['revision']}")[1]
    assert [each["id"] for each in after["runs"]] == ["two/1"]
    assert after["gone"] == ["one/1"]


def test_one_run_is_told_in_full_with_the_cell_that_asks_for_it(runs: Server) -> None:
    made_runs.make("reviews", steps=60, phase="training", scores=made_runs.SCORES, outcome=made_runs.FINISHED)
    status, told, _ = runs.ask("GET", "runs/reviews/1")
    assert status == 200
    assert told["cell"] == "%%gpt_finetune reviews\ndata: df\n"
    assert ["device", "cpu, a CPU with 2 cores", "no GPU that torch can use is here"] in told["choices"]
    assert told["verdict"] == "TF-IDF does as well: 0.83 against 0.81 on 48 rows."
    assert told["browser_path"] is None


def test_the_history_goes_on_where_the_last_answer_ended(runs: Server) -> None:
    run = made_runs.make("going", steps=13, phase="training")
    first = runs.ask("GET", "runs/going/1/history")[1]
    assert [each["step"] for each in first["records"] if each["kind"] == "step"] == list(range(1, 14))
    assert runs.ask("GET", f"runs/going/1/history?cursor={first['cursor']}")[1]["records"] == []
    writer = made_runs.MetricsWriter(run.metrics_file(1))
    writer.append({**made_runs.step_record(14), "loss": float("nan")})
    writer.close()
    after = runs.ask("GET", f"runs/going/1/history?cursor={first['cursor']}")[1]
    assert [(each["step"], each["loss"]) for each in after["records"]] == [(14, None)]


def test_a_run_that_trains_is_stopped_by_a_file_and_not_deleted(runs: Server) -> None:
    run = made_runs.make("going", steps=3, phase="training")
    status, told, _ = runs.ask("DELETE", "runs/going/1")
    assert (status, told["message"]) == (409, "going v1 goes on. Stop it first.")
    assert runs.ask("POST", "runs/going/1/resume")[1]["message"] == "going v1 cannot be resumed: it is running."
    assert runs.ask("POST", "runs/going/1/stop")[0] == 202
    assert run.stop_file.exists()
    assert runs.ask("GET", "runs")[1]["runs"][0]["doing"] == "saving and stopping"


def test_a_deleted_run_is_taken_back_as_it_was(runs: Server) -> None:
    run = made_runs.make("reviews", steps=12, phase="training", outcome=made_runs.FINISHED, log="Bye.\n")
    status, told, _ = runs.ask("DELETE", "runs/reviews/1")
    assert status == 200
    assert not run.folder.exists()
    assert runs.ask("GET", "runs/reviews/1")[0] == 404
    assert runs.ask("POST", f"trash/{told['trash']}/restore")[1] == {"id": "reviews/1"}
    assert run.log_file(1).read_text() == "Bye.\n"
    assert runs.ask("GET", "runs/reviews/1/log")[1] == {"text": "Bye.\n"}
    status, told, _ = runs.ask("POST", f"trash/{told['trash']}/restore")
    assert (status, told["message"]) == (404, "There is no such run. It may have been deleted.")


def test_a_run_whose_number_was_taken_meanwhile_comes_back_under_the_next(runs: Server) -> None:
    made_runs.make("reviews", outcome=made_runs.FINISHED, log="first\n")
    told = runs.ask("DELETE", "runs/reviews/1")[1]
    made_runs.make("reviews", outcome=made_runs.FINISHED, log="second\n")
    assert runs.ask("POST", f"trash/{told['trash']}/restore")[1] == {"id": "reviews/2"}
    assert RunStore().find("reviews/1").log_tail() == "second"
    assert RunStore().find("reviews/2").log_tail() == "first"


def test_a_mistake_in_a_recipe_names_the_setting(runs: Server) -> None:
    for recipe, setting, message in (
        ({"epochs": -1, "data": "a.csv"}, "epochs", "epochs: '-1' does not fit: input should be greater than 0"),
        ({"epoch": 1}, "epoch", "unknown setting 'epoch'. Did you mean 'epochs'?"),
        ({"data": "nofile.csv"}, "data", "data: there is no file"),
    ):
        status, told, _ = runs.ask("POST", "runs", {"name": "reviews", "recipe": recipe})
        assert (status, told["field"]) == (400, setting), told
        assert message in told["message"]
    status, told, _ = runs.ask("POST", "runs", {"name": "../x", "recipe": {}})
    assert (status, told["field"]) == (400, "name")
    assert runs.ask("POST", "runs", b"[]")[1]["message"] == "The request is no JSON object."
    assert runs.ask("POST", "runs", b"{")[1]["message"] == "The request is not JSON."
    assert RunStore().names() == []


class Answered:
    """A request whose answer is kept."""

    def __init__(self, home: Path) -> None:
        self.room = routes.Room(SimpleNamespace(event_logger=None), Overview(home))  # type: ignore[arg-type]
        self.told: list[tuple[int, dict[str, Any]]] = []

    def answer(self, value: dict[str, Any], status: int = 200) -> None:
        self.told.append((status, value))


def test_the_list_tells_what_came_of_a_launch_that_took_longer_than_an_answer_may(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "ANSWER_WITHIN", 0.01)
    run = made_runs.make("slow", phase="training")
    decision = threading.Event()

    def start() -> launch.Launched:
        decision.wait()
        return launch.Launched(run, "new")

    def refuse() -> launch.Launched:
        decision.wait()
        raise DataError("data: there is no file 'x.csv'")

    async def ask() -> tuple[list[tuple[int, dict[str, Any]]], dict[str, list[dict[str, Any]]]]:
        request = Answered(home)
        for name, call in (("slow", start), ("bad", refuse)):
            await routes.begin(request, name, call)  # type: ignore[arg-type]
        assert request.room.decided() == {"refused": [], "begun": []}
        decision.set()
        await asyncio.gather(*request.room._tasks, return_exceptions=True)
        return request.told, request.room.decided()

    told, decided = asyncio.run(ask())
    (first, second) = (value["launch"] for _, value in told)
    assert told == [(202, {"launch": first, "name": "slow"}), (202, {"launch": second, "name": "bad"})]
    assert decided == {
        "refused": [{"launch": second, "name": "bad", "message": "data: there is no file 'x.csv'", "field": "data"}],
        "begun": [{"launch": first, "id": "slow/1"}],
    }


def test_a_request_of_more_than_a_mebibyte_is_refused(runs: Server) -> None:
    large = {"name": "reviews", "recipe": {"data": "x" * 2**20}}
    status, told, _ = runs.ask("POST", "runs", large)
    assert status == 413
    assert told["message"] == "More than 1 MiB was sent. Give the name of a file instead of its rows."


def test_a_run_starts_is_stopped_goes_on_and_answers_without_a_kernel(runs: Server, tiny_model: Path) -> None:
    rows = "".join(f"{word} thing {number},{word}\n" for number in range(12) for word in ("good", "bad"))
    (runs.root / "table.csv").write_text("text,label\n" + rows)
    recipe = {"data": "table.csv", "model": str(tiny_model), "epochs": 600, "device": "cpu", "baselines": False}
    status, told, _ = runs.ask("POST", "runs", {"name": "reviews", "recipe": recipe})
    assert (status, told) == (201, {"id": "reviews/1", "action": "new", "note": ""}), told
    assert runs.ask("POST", "runs/reviews/1/predict", {"texts": ["x"]})[0] == 409
    assert runs.ask("POST", "runs/reviews/1/stop")[0] == 202
    assert until(runs, "reviews/1", "stopped")
    status, told, _ = runs.ask("POST", "runs/reviews/1/resume")
    if status == 202:  # a busy machine: it goes on by itself
        assert told["name"] == "reviews", told
        assert until(runs, "reviews/1", "running")
    else:
        assert (status, told["action"]) == (200, "resumed"), told
    assert runs.ask("POST", "runs/reviews/1/stop")[0] == 202
    assert until(runs, "reviews/1", "stopped")
    assert RunStore().find("reviews/1").attempts() == 2
    short = {**recipe, "epochs": 1}
    asked = RunStore().find("reviews/1").request()["recipe"]
    copied = {**asked, **short, "data": asked["data"]}
    status, told, _ = runs.ask("POST", "runs", {"name": "copy", "recipe": copied, "from": "reviews/1"})
    assert (status, told["id"]) == (201, "copy/1"), told
    assert until(runs, "copy/1", "finished")
    status, told, _ = runs.ask("POST", "runs/copy/1/predict", {"texts": ["good thing", made_runs.SCRIPT]})
    assert status == 200, told
    assert [row["text"] for row in told["rows"]] == ["good thing", made_runs.SCRIPT]
    assert {label for label, _ in told["rows"][0]["probabilities"]} == {"good", "bad"}


def test_a_copy_takes_the_rows_that_came_from_a_notebook_unless_it_names_others(
    runs: Server, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"{word} thing {number}", word) for number in range(6) for word in ("good", "bad")]
    settings = {"model": str(tiny_model), "epochs": 1, "device": "cpu", "baselines": False, "validation": 0}
    launch.train("memory", make_recipe({**settings, "data": "df"}), data=rows, wait=True)
    asked = {**settings, "data": "df"}
    status, told, _ = runs.ask("POST", "runs", {"name": "same-rows", "recipe": asked, "from": "memory/1"})
    assert (status, told.get("id")) == (201, "same-rows/1"), told
    assert until(runs, "same-rows/1", "finished")
    assert (RunStore().find("same-rows").report() or {})["used"] == 12
    (runs.root / "other.csv").write_text("text,label\n" + "".join(f"word {n},{'ab'[n % 2]}\n" for n in range(20)))
    others = {**settings, "data": "other.csv"}
    status, told, _ = runs.ask("POST", "runs", {"name": "other-rows", "recipe": others, "from": "memory/1"})
    assert (status, told.get("id")) == (201, "other-rows/1"), told
    assert until(runs, "other-rows/1", "finished")
    assert (RunStore().find("other-rows").report() or {})["used"] == 20


def until(server: Server, identity: str, state: str) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = {each["id"]: each for each in server.ask("GET", "runs")[1]["runs"]}
        if found.get(identity, {}).get("state") == state:
            return True
        assert found.get(identity, {}).get("state") != "failed", RunStore().find(identity).log_tail()
        time.sleep(0.2)
    return False


def test_five_hundred_odd_ids_lead_nowhere_and_are_not_repeated(runs: Server) -> None:
    made_runs.make("reviews", outcome=made_runs.FINISHED)
    made_runs.make("reviews-2", outcome=made_runs.FINISHED)
    secret = runs.home.parent / "secret"
    (secret / "1").mkdir(parents=True, exist_ok=True)
    files.write_json(secret / "1" / "request.json", {"recipe": {}, "created": 0})
    link = runs.home / "runs" / "linked"
    link.symlink_to(secret)
    (runs.home / "runs" / "reviews" / "7").symlink_to(secret / "1")
    letters = random.Random(0)
    pieces = ["..", ".", "%2e%2e", "%2f", "%00", "reviews", "reviews%2f1", "1", "01", "¹".encode().hex(), "secret", "~"]
    odd = [
        "linked/1",
        "reviews/7",
        "review/1",
        "reviews/11",
        "reviews%2F..%2Freviews/1",
        "../../secret/1",
        "reviews/-1",
    ]
    while len(odd) < 500:
        parts = [letters.choice(pieces) for _ in range(letters.randint(1, 6))]
        noise = "".join(letters.choices(string.ascii_letters + string.digits + "%-._~", k=letters.randint(0, 12)))
        odd.append("/".join([*parts, noise.replace("%", "%25")]))
    for each in odd:
        for method, tail in (("GET", ""), ("GET", "/log"), ("DELETE", "")):
            status, told, _ = runs.ask(method, f"runs/{each}{tail}")
            if status == 301 or (status == 200 and each.startswith("reviews/1/")):
                continue
            assert status in (400, 404, 405), (status, each)
            assert told is None or noise_free(told["message"]), (each, told)
    assert (secret / "1" / "request.json").exists()
    assert {each["id"] for each in runs.ask("GET", "runs")[1]["runs"]} == {"reviews/1", "reviews-2/1"}


def noise_free(message: str) -> bool:
    return message in (
        "There is no such run. It may have been deleted.",
        "There is nothing at this address.",
        "Not Found",
        "Bad Request",
        "Method Not Allowed",
    )


def test_a_websocket_tells_what_changes_and_the_history_of_what_it_follows(runs: Server) -> None:
    made_runs.make("going", steps=3, phase="training")
    runs.ask("GET", "runs")
    with socket.create_connection(("127.0.0.1", runs.port), timeout=30) as line:
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        line.sendall(
            (
                f"GET /base/gptx_nb/live?token={runs.token} HTTP/1.1\r\nHost: 127.0.0.1:{runs.port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        stream = line.makefile("rb")
        assert b"101" in stream.readline()
        while stream.readline().strip():
            pass
        first = frame(stream)
        assert [each["id"] for each in first["runs"]] == ["going/1"]
        send(line, {"follow": {"going/1": ""}})
        told = frame(stream)
        assert [each["step"] for each in told["history"]["going/1"]["records"] if each["kind"] == "step"] == [1, 2, 3]
        made_runs.make("other", outcome=made_runs.FINISHED)
        assert [each["id"] for each in frame(stream)["runs"]] == ["other/1"]


def frame(stream: Any) -> Any:
    """Read one text frame of a WebSocket, pings passed over."""
    while True:
        head, length = stream.read(2)
        length &= 127
        if length > 125:
            length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
        content = stream.read(length)
        if head & 15 == 1:
            return json.loads(content, parse_constant=_refuse)


def send(line: socket.socket, value: Any) -> None:
    content = json.dumps(value).encode()
    assert len(content) < 126
    line.sendall(bytes([0x81, 0x80 | len(content), 0, 0, 0, 0]) + content)


def test_the_form_has_every_setting_of_each_kind_of_recipe(server: Server) -> None:
    told = server.ask("GET", "form")[1]
    for name, kind in KINDS.items():
        assert [each["name"] for each in told["kinds"][name]] == [each.name for each in fields.settings(kind)]


def test_the_device_is_told_with_its_memory(server: Server) -> None:
    told = server.ask("GET", "device")[1]
    assert told["devices"][0]["memory_total"] > 0
    assert bool(told["why"]) == (told["devices"][0]["name"] == "cpu")


def test_the_extension_is_loaded_without_a_word_of_trouble(server: Server) -> None:
    log = server.log.read_text()
    assert "gptx_nb.views.routes | extension was successfully loaded." in log
    assert f"gptx_nb shows the runs in {server.home}" in log
