"""The shared inference process: real processes, real sockets, a small model of random weights."""

import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

import gptx_nb
from gptx_nb import inference
from gptx_nb.errors import DataError, ModelError, RunFailed, RunNotFound, UsageError
from gptx_nb.inference import Place, read_texts
from gptx_nb.process import Process
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run

PACKAGE = Path(gptx_nb.__file__).parent
RECIPE = make_recipe({"data": "reviews.csv", "text": "review", "label": "stars", "device": "cpu"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "models" / "tiny", model_max_length=64)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_layer=1, n_embd=32, n_head=2, n_positions=64, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, id2label={0: "bad", 1: "good"}, num_labels=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("saved")
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_run(home: Path, model: Path | None, name: str = "reviews", version: int = 1) -> Run:
    folder = home / "runs" / name / str(version)
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({"recipe": RECIPE.model_dump(mode="json")}))
    if model is not None:
        (folder / "model").mkdir()
        for path in model.iterdir():
            (folder / "model" / path.name).write_bytes(path.read_bytes())
    return Run(folder)


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    place = Place.of()
    yield place
    inference.free()
    assert not place.socket.exists()
    shutil.rmtree(place.folder, ignore_errors=True)


@pytest.fixture
def run(place: Place, model: Path) -> Run:
    return make_run(place.home, model)


@pytest.fixture(scope="module")
def shared_run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run whose process stays warm for all tests that do not harm it."""
    root = tmp_path_factory.mktemp("shared")
    yield make_run(root, model)
    inference.free(root)
    shutil.rmtree(Place.of(root).folder)


def post(place: Place, path: str, body: Any, token: str | None = None, method: str = "POST") -> tuple[int, Any]:
    connection = inference._Connection(place.socket, 60.0)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    bearer = place.token.read_text() if token is None else token
    connection.request(method, path, content, {"Authorization": f"Bearer {bearer}"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


# ---- what may be asked ----------------------------------------------------------------------------------------------


def test_a_text_a_list_a_series_and_a_frame_give_one_kind_of_object(shared_run: Run) -> None:
    texts = ["Good.", "It broke after a day, and nobody cared.", ""]
    listed = inference.predict(shared_run, texts)
    assert listed.run == "reviews/1"
    assert listed.classes == ["bad", "good"]
    assert listed.texts == texts
    assert [sum(row) for row in listed.probabilities] == pytest.approx([1, 1, 1])
    frame = pandas.DataFrame({"stars": [1, 2, 3], "review": texts}, index=["x", "y", "z"])
    for asked in (tuple(texts), numpy.array(texts), frame["review"], frame, iter(texts)):
        got = inference.predict(shared_run, asked)
        assert got.texts == texts
        assert got.probabilities == listed.probabilities
    assert list(inference.predict(shared_run, frame).to_frame().index) == ["x", "y", "z"]
    assert list(inference.predict(shared_run, frame["review"]).to_frame().index) == ["x", "y", "z"]
    one = inference.predict(shared_run, "Good.")
    assert len(one) == 1
    assert one.probabilities[0] == pytest.approx(listed.probabilities[0], abs=1e-4)


def test_an_empty_list_gives_empty_predictions_and_starts_no_process(run: Run, place: Place) -> None:
    for nothing in ([], pandas.Series([], dtype="str"), pandas.DataFrame({"review": []})):
        predictions = inference.predict(run, nothing)
        assert len(predictions) == 0
        assert predictions.classes == ["bad", "good"]
    assert not place.socket.exists()
    assert inference.ping() is None


def test_labels_that_transformers_leaves_out_of_the_config_are_known(place: Place, model: Path) -> None:
    run = make_run(place.home, model)
    config = json.loads((run.model / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (run.model / "config.json").write_text(json.dumps(config))
    assert inference.predict(run, []).classes == ["LABEL_0", "LABEL_1"]
    assert inference.predict(run, ["x"]).classes == ["LABEL_0", "LABEL_1"]


def test_a_text_of_100_000_characters_is_cut_and_noted(shared_run: Run) -> None:
    predictions = inference.predict(shared_run, ["short", "long " * 20_000, "", "é" * 100_000])
    assert predictions.cut_at == [1, 3]
    assert predictions.notes() == [
        f"2 texts (the first: number 2, which begins '{'long ' * 7}long…') are longer than the model reads; only the "
        "beginning was used."
    ]
    assert len(predictions[1].text) == 100_000


def test_many_texts_go_in_parts_with_progress_and_in_order(shared_run: Run) -> None:
    texts = [f"number {n} " * (n % 7 + 1) for n in range(300)]
    seen: list[tuple[int, int]] = []
    predictions = inference.predict(shared_run, texts, lambda done, total: seen.append((done, total)))
    assert seen == [(128, 300), (256, 300), (300, 300)]
    assert predictions.texts == texts
    for place in (0, 127, 128, 299):
        alone = inference.predict(shared_run, texts[place])
        assert alone.probabilities[0] == pytest.approx(predictions.probabilities[place], abs=1e-4)


def test_an_interrupt_between_parts_ends_it_and_harms_nothing(shared_run: Run) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inference.predict(shared_run, ["x"] * 1_000, interrupt)
    assert len(inference.predict(shared_run, ["x"])) == 1


def test_numbers_become_text() -> None:
    assert read_texts([5, 2.5, numpy.int64(7), numpy.float32(0.5), True, "x"], None, "r/1").texts == [
        "5", "2.5", "7", "0.5", "True", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["a", None], "row 2 of 2 is None, not a text. Leave such rows out, as with .dropna(), or fill them"),
        (["a", float("nan"), "b"], "row 2 of 3 is missing (NaN), not a text"),
        (pandas.Series(["a", None], index=["x", "y"], dtype="string"), "row 2 of 2 (index 'y') is missing (NaN)"),
        (pandas.DataFrame({"review": ["a", None]}), "row 2 of 2 of column 'review' (index 1) is "),
        ([["a", "b"]], "row 1 of 1 is a value of type list, not a text. Make it one, as with str(…)"),
        ([b"a"], "row 1 of 1 is a value of type bytes"),
        (None, "None holds no texts to predict. Give a text, a list of texts, a Series, or a DataFrame"),
        (5, "a value of type int holds no texts"),
        (b"a", "a value of type bytes holds no texts"),
        ({"text": "a"}, "a value of type dict holds no texts"),
        (object(), "a value of type object holds no texts"),
        ("half \ud83d", "the text holds half a character (a lone surrogate, at place 6)"),
        (["a", "\udc00"], "row 2 of 2 holds half a character"),
        (
            pandas.DataFrame({"revew": ["a"], "stars": [1]}),
            "the table has no column 'review', which run r/1 reads its texts from. Did you mean 'revew'? "
            "Columns: revew, stars. Give the texts themselves, as in df['revew']",
        ),
        (
            pandas.DataFrame([["a", "b"]], columns=["review", "review"]),
            "the table has 2 columns called 'review'. Rename all but one",
        ),
        (["a", "b" * 2_100_000], "row 2 of 2 has 2,100,000 characters; at most 2,097,152 can be sent"),
    ],
)
def test_what_is_no_text_is_told_with_its_row(asked: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list(inference._chunks(read_texts(asked, "review", "run r/1").texts, "r/1"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_frame_with_one_column_needs_no_name_if_the_run_has_none() -> None:
    assert read_texts(pandas.DataFrame({"words": ["a", "b"]}), None, "r/1").texts == ["a", "b"]


def test_a_run_without_a_model_is_told_by_name(place: Place) -> None:
    with pytest.raises(RunNotFound, match=r"run reviews/1 has no model yet: it is starting. See `%gpt_watch reviews`"):
        inference.predict(make_run(place.home, None), "x")
    assert inference.ping() is None


def test_a_harmed_model_is_told_by_name_and_the_process_goes_on(run: Run, place: Place, model: Path) -> None:
    harmed = make_run(place.home, model, "harmed")
    weights = harmed.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelError, match="run harmed/1: model/ cannot be loaded"):
        inference.predict(harmed, "x")
    pid = inference.start()["pid"]
    assert len(inference.predict(run, "x")) == 1
    assert inference.start()["pid"] == pid


# ---- one process for many clients -----------------------------------------------------------------------------------

CLIENT = """
import sys
from pathlib import Path
from gptx_nb import inference
from gptx_nb.runs import Run
predictions = inference.predict(Run(Path(sys.argv[1])), ["Good.", "It broke."])
assert "torch" not in sys.modules and "pandas" not in sys.modules and "transformers" not in sys.modules
print(inference.ping()["pid"], predictions.probabilities)
"""


def test_many_processes_and_threads_that_ask_at_once_share_one_process(run: Run, place: Place) -> None:
    def other_kernel(_: int) -> str:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        return subprocess.run(
            [sys.executable, "-c", CLIENT, str(run.folder)], env=environment, capture_output=True, text=True, check=True
        ).stdout

    def thread(_: int) -> str:
        predictions = inference.predict(run, ["Good.", "It broke."])
        return f"{inference.start()['pid']} {predictions.probabilities}\n"

    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(other_kernel, number) for number in range(3)]
        threads = [pool.submit(thread, number) for number in range(5)]
        answers = {each.result() for each in others + threads}
    assert len(answers) == 1
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert sum("gptx_nb.serve" in line and str(place.home) in line for line in listed.splitlines()) == 1


def test_warm_returns_at_once_and_the_process_comes_up(run: Run, place: Place) -> None:
    started = time.monotonic()
    inference.warm()
    assert time.monotonic() - started < 0.3
    inference.warm()
    first = inference.start()
    assert first["models"] == []
    inference.predict(run, "x")
    second = inference.start()
    assert second["pid"] == first["pid"]
    assert second["models"] == ["reviews/1"]
    assert second["bytes"] > 0


def test_free_ends_a_process_that_was_only_just_started(place: Place) -> None:
    inference.warm()
    assert inference.free() is True
    assert inference.free() is False
    assert inference.ping() is None


def test_free_ends_the_process_within_five_seconds_and_the_next_call_starts_another(run: Run, place: Place) -> None:
    inference.predict(run, "x")
    first = inference.start()["pid"]
    started = time.monotonic()
    assert inference.free() is True
    assert time.monotonic() - started < 5
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)  # not even a zombie
    assert [path.name for path in place.folder.iterdir()] == ["lock"]
    inference.predict(run, "x")
    assert inference.start()["pid"] != first


def test_free_while_another_client_is_served_makes_it_start_anew_and_finish(run: Run, place: Place) -> None:
    inference.predict(run, "x")
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(inference.predict, run, ["a text"] * 1_000, lambda done, total: begun.set())
        begun.wait(30)
        assert inference.free() is True
        assert len(job.result(60)) == 1_000


def test_a_process_that_does_not_answer_is_freed_by_force(run: Run, place: Place) -> None:
    pid = inference.start()["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert inference.free() is True
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_ends_when_idle_and_puts_its_files_away(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTX_IDLE_SECONDS", "1")
    inference.predict(run, "x")
    process = place.evidence()
    assert process is not None
    deadline = time.monotonic() + 10
    while process.alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not process.alive()
    assert not place.socket.exists()
    assert not place.token.exists()
    assert "ending: idle for 1 s" in place.log.read_text()
    assert len(inference.predict(run, "x")) == 1


def test_a_wrong_idle_time_is_told_before_anything_is_started(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTX_IDLE_SECONDS", "soon")
    with pytest.raises(
        UsageError, match="GPTX_IDLE_SECONDS is 'soon'; it has to be a number of seconds above 0, as in 600"
    ):
        inference.predict(run, "x")
    assert not place.log.exists()


def test_a_crash_gives_one_message_with_the_log_and_the_next_call_starts_another(run: Run, place: Place) -> None:
    inference.predict(run, "x")
    pid = inference.start()["pid"]

    def crash(done: int, total: int) -> None:
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while (evidence := place.evidence()) and evidence.alive() and time.monotonic() < deadline:
            time.sleep(0.01)

    with pytest.raises(RunFailed) as caught:
        inference.predict(run, ["x"] * 1_000, crash)
    message = str(caught.value)
    assert message.startswith(
        "the inference process ended while predicting with reviews/1 (killed, as happens when memory runs out). "
        f"The next prediction starts a new one. Log: {place.log}"
    )
    assert place.socket.exists()  # left behind, and no hindrance
    assert len(inference.predict(run, "x")) == 1
    assert inference.start()["pid"] != pid


def test_running_out_of_memory_gives_one_message_and_the_next_call_starts_another(
    run: Run, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first allocation of the forward pass is one that no machine can serve.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'gptx_nb.serve' in sys.orig_argv:\n"
        "    import torch\n"
        "    from gptx_nb.engine.tasks import text_classification\n"
        "    text_classification.logits = lambda *given, **settings: torch.empty(2**55)\n"
    )
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(RunFailed) as caught:
            inference.predict(run, "x")
    assert str(caught.value) == (
        "memory ran out in the inference process, which has ended; the next prediction starts a new one. "
        f"Log: {place.log}"
    )
    assert len(inference.predict(run, "x")) == 1


def test_a_process_that_cannot_start_gives_one_message_with_the_log(
    run: Run, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'gptx_nb.serve' in sys.orig_argv:\n    os.write(2, b'no luck\\n'); os._exit(7)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunFailed) as caught:
        inference.predict(run, "x")
    assert str(caught.value) == f"the inference process did not start (exit status 7). Log: {place.log}\n  no luck"


def test_what_a_crashed_process_left_behind_is_no_hindrance(run: Run, place: Place) -> None:
    place.make()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place.socket))
    place.token.write_text("old")
    place.process.write_text("{")
    assert inference.free() is False
    assert len(inference.predict(run, "x")) == 1


def test_a_process_whose_socket_was_removed_gives_way(run: Run, place: Place) -> None:
    first = inference.start()["pid"]
    evidence = Process.of(first)
    place.socket.unlink()
    assert len(inference.predict(run, "x")) == 1
    assert inference.start()["pid"] != first
    assert not evidence.alive()


def test_a_model_that_was_made_anew_is_loaded_anew(run: Run, model: Path) -> None:
    before = inference.predict(run, "x")
    run.model.rename(run.folder / "old")
    run.model.mkdir()
    for path in model.iterdir():
        (run.model / path.name).write_bytes(path.read_bytes())
    config = json.loads((run.model / "config.json").read_text())
    config["id2label"] = {"0": "negative", "1": "positive"}
    (run.model / "config.json").write_text(json.dumps(config))
    after = inference.predict(run, "x")
    assert before.classes == ["bad", "good"]
    assert after.classes == ["negative", "positive"]


def test_at_most_three_models_are_kept_and_the_one_unused_for_longest_goes(place: Place, model: Path) -> None:
    runs = [make_run(place.home, model, name) for name in ("a", "b", "c", "d")]
    for each in (*runs[:3], runs[0], runs[3]):
        inference.predict(each, "x")
    assert inference.start()["models"] == ["c/1", "a/1", "d/1"]


# ---- the protocol and its privacy -----------------------------------------------------------------------------------


def test_only_the_user_can_reach_it(shared_run: Run) -> None:
    place = Place.of(shared_run.folder.parents[2])
    inference.start(place.home)
    for path, mode in (
        (place.folder, 0o700),
        (place.folder.parent, 0o700),
        (place.token, 0o600),
        (place.socket, 0o600),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_a_folder_that_others_can_enter_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own can be too long for the name of a socket
        open_to_all = Path(folder) / f"gptx_nb-{os.getuid()}"
        open_to_all.mkdir()
        open_to_all.chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert Place.of().folder.parent == open_to_all
        with pytest.raises(UsageError, match="is not a folder of yours alone"):
            inference.predict(run, "x")


def test_every_route_asks_for_the_token(shared_run: Run) -> None:
    place = Place.of(shared_run.folder.parents[2])
    inference.start(place.home)
    asked = {"folder": str(shared_run.folder), "texts": ["x"]}
    for method, path in (("GET", "/v1/health"), ("POST", "/v1/classify"), ("POST", "/v1/free"), ("GET", "/nowhere")):
        for token in ("", "wrong", "é"):
            bearer = token.encode("latin-1").decode("latin-1")
            assert post(place, path, asked, bearer, method) == (
                403,
                {"error": "the token is missing or wrong", "kind": None},
            )
    assert post(place, "/v1/classify", asked)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/nowhere", {}, 404, "no such route for POST"),
        ("GET", "/v1/classify", {}, 404, "no such route for GET"),
        ("PUT", "/v1/classify", {}, 501, "Unsupported method ('PUT')"),
        ("POST", "/v1/classify", b"{", 400, "the body is not JSON"),
        ("POST", "/v1/classify", b"\xff\xfe", 400, "the body is not JSON"),
        ("POST", "/v1/classify", [], 400, "the body has to be"),
        ("POST", "/v1/extremes", b"{", 400, "the body is not JSON"),
        ("POST", "/v1/extremes", {"folder": "x", "count": 0}, 400, "the body has to be"),
        ("POST", "/v1/extremes", {"folder": "/etc", "count": 1}, 404, "there is no such run"),
        ("POST", "/v1/classify", {"folder": "x", "texts": "x"}, 400, "the body has to be"),
        ("POST", "/v1/classify", {"folder": "x", "texts": [1]}, 400, "the body has to be"),
        ("POST", "/v1/classify", {"folder": "x", "texts": ["\ud800"]}, 400, "a text holds half a character"),
    ],
)
def test_wrong_requests_are_answered_as_json(
    shared_run: Run, method: str, path: str, body: Any, status: int, message: str
) -> None:
    place = Place.of(shared_run.folder.parents[2])
    inference.start(place.home)
    got, answer = post(place, path, body, method=method)
    assert got == status
    assert message in answer["error"]


def test_a_request_that_is_too_large_is_refused_unread(shared_run: Run) -> None:
    place = Place.of(shared_run.folder.parents[2])
    inference.start(place.home)
    connection = inference._Connection(place.socket, 10.0)
    connection.putrequest("POST", "/v1/classify")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == http.client.REQUEST_ENTITY_TOO_LARGE
    assert "at most" in json.loads(response.read())["error"]
    connection.close()


def test_only_models_below_the_home_are_loaded_and_no_path_is_echoed(
    shared_run: Run, model: Path, tmp_path: Path
) -> None:
    root = shared_run.folder.parents[2]
    place = Place.of(root)
    inference.start(root)
    elsewhere = make_run(tmp_path / "other", model)
    link = root / "runs" / "link"
    link.mkdir()
    (link / "1").symlink_to(elsewhere.folder)
    for folder in (
        elsewhere.folder, link / "1", shared_run.folder / ".." / ".." / ".." / "runs", "/", "", "x\0y", "x" * 9_000,
        shared_run.model, root / "runs", root / "runs" / "reviews" / "2",
    ):  # fmt: skip
        status, answer = post(place, "/v1/classify", {"folder": str(folder), "texts": ["x"]})
        assert (status, answer) == (
            404,
            {"error": "there is no such run, or it has no model yet", "kind": "RunNotFound"},
        )


def test_the_log_holds_no_texts(shared_run: Run) -> None:
    inference.predict(shared_run, "my secret diary")
    log = Place.of(shared_run.folder.parents[2]).log.read_text()
    assert "loaded reviews/1" in log
    assert "secret" not in log
    assert "Loading weights" not in log  # no progress bars either


def test_importing_the_client_is_light() -> None:
    code = (
        "import sys, gptx_nb.inference\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'numpy', 'IPython') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
