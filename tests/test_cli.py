"""The command line, as a real process: what it prints where, and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import FAILED, FINISHED, SCORES, make

from gptx_nb import fields, inference
from gptx_nb.runs import RunStore
from gptx_nb.views import cli

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def call(*arguments: str, stdin: str | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "gptx_nb.views.cli", *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=cwd,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


RECIPE = """\
# three sentences
model: {model}
epochs: 400
examples:
  - [This movie is amazing!, positive]
  - [I hate this product., negative]
  - [The service was really bad., negative]
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_model), encoding="utf-8")
    return path


def test_a_run_is_trained_listed_asked_shown_and_stopped(home: Path, recipe: Path) -> None:
    status, out, err = call("finetune", "demo", str(recipe), "--epochs", "4")
    assert status == 0, err
    assert out.splitlines()[0].startswith("demo v1  finished")
    assert "examples: 3 rows, all used" in err
    assert RunStore().find("demo").recipe().epochs == 4

    status, out, err = call("train", "demo", str(recipe), "--epochs", "4")
    assert (status, "has finished with this recipe and data" in err) == (0, True)

    status, out, err = call("predict", "demo", "I love it!", "It's bad.")
    assert status == 0, err
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[2] for row in rows] == ["I love it!", "It's bad."]
    assert {row[0] for row in rows} <= {"positive", "negative"}
    _, out, _ = call("predict", "demo", "--json", stdin="one\n\ntwo\n")
    assert [row["text"] for row in json.loads(out)] == ["one", "two"]
    assert sum(json.loads(out)[0]["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    texts = recipe.with_name("texts.txt")
    texts.write_text("drei\n", encoding="utf-8")
    assert call("predict", "demo/1", "--file", str(texts))[1].endswith("\tdrei\n")

    _, out, _ = call("runs")
    assert out.splitlines()[1].startswith("demo v1  finished")
    _, out, _ = call("runs", "--json")
    assert [(row["name"], row["version"], row["state"]) for row in json.loads(out)] == [("demo", 1, "finished")]
    assert call("watch", "demo")[1].startswith("demo v1  finished")
    assert call("stop", "demo")[1] == "run demo version 1 does not train: it is finished\n"
    assert call("free")[1] == "The inference process has ended.\n"
    assert call("free")[1] == "There is no inference process.\n"
    assert inference.ping() is None


def test_an_interrupt_ends_the_waiting_and_not_the_run(home: Path, recipe: Path) -> None:
    command = [sys.executable, "-m", "gptx_nb.views.cli", "finetune", "long", str(recipe), "--batch-size", "1"]
    waiting = subprocess.Popen(
        [*command, "--epochs", "1000"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    deadline = time.monotonic() + 60
    while not [run for run in RunStore().runs() if run.plan_file.exists()]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run = RunStore().find("long")
    while not run.history() or run.history()[-1]["kind"] != "step":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert "run long version 1 goes on training" in err
    assert "Traceback" not in err
    assert run.state() == "running"
    status, out, _ = call("stop", "long")
    assert (status, "has saved and stopped" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "nobody", "text"], "no run is called 'nobody'. There are no runs yet."),
        (["predict", "nobody", "text", "--file", "x"], "both texts and --file are given; keep one of them"),
        (["predict", "nobody", "--file", "x.txt"], "x.txt cannot be read: No such file or directory"),
        (["finetune", "r", "nofile.yaml"], "nofile.yaml cannot be read"),
        (["finetune", "r", "--data", "nofile.csv"], "data: there is no file 'nofile.csv'"),
        (["finetune", "../x", "--data", "a.csv"], "'../x' cannot name a run"),
        (["finetune", "r", "--epochs", "0"], "flags: epochs: '0' does not fit"),
        (["finetune", "r", "--epocs", "3"], "unrecognized arguments: --epocs 3. Did you mean '--epochs'?"),
        (["finetune", "r"], "there is nothing to learn from"),
        (["finetun", "r"], "Did you mean 'finetune'?"),
        ([], "the following arguments are required: COMMAND"),
        (["stop", "nobody"], "no run is called 'nobody'"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(home: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    status, out, err = call(*arguments, cwd=tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("gptx-nb: ")
    assert said in err.splitlines()[0]
    assert "Traceback" not in err
    assert RunStore().runs() == []


def test_a_mistake_in_a_recipe_file_names_file_and_line(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data: a.csv\nepocs: 3\n", encoding="utf-8")
    status, _, err = call("finetune", "r", str(path))
    assert (status, err.startswith(f"gptx-nb: {path}, line 2: unknown setting 'epocs'")) == (2, True)
    path.write_bytes("data: Kästner.csv\n".encode("latin-1"))
    status, _, err = call("finetune", "r", str(path))
    assert (status, "is not UTF-8 text" in err) == (2, True)


def test_a_run_that_broke_off_is_status_1_with_its_log(home: Path) -> None:
    make("bad", steps=9, phase="training", outcome=FAILED, log="the last word\n")
    for command in (["predict", "bad", "text"], ["watch", "bad"]):
        status, out, err = call(*command)
        assert (status, out) == (1, "")
        assert "run bad version 1 broke off: out of memory" in err
        assert "the last word" in err
        assert "Traceback (most recent call last)" not in err


def test_a_reader_that_has_enough_is_no_error(home: Path) -> None:
    for number in range(30):
        make(f"run{number}", outcome=FINISHED, scores=SCORES)
    command = f"{sys.executable} -m gptx_nb.views.cli runs --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment())
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_every_setting_is_a_flag() -> None:
    flags = cli.parser().parse_args(["finetune", "r"])
    assert set(vars(flags)) >= {setting.name for setting in fields.settings()}


def test_the_command_line_starts_without_ml_libraries(home: Path) -> None:
    code = (
        "import sys; from gptx_nb.views import cli; cli.main(['runs'])\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'IPython', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "[]"
