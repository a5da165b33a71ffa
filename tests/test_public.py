"""The public surface: names, laziness, and the Python twins in a plain script."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptx_nb
from gptx_nb import inference, progress


@pytest.fixture(autouse=True)
def nothing_left(home: Path) -> Iterator[None]:
    yield
    inference.free()


ROWS = [("This movie is amazing!", "positive"), ("I hate this product.", "negative"), ("Really bad.", "negative")]


def test_the_public_names_are_these() -> None:
    assert gptx_nb.__all__ == [
        "Comparison",
        "DataError",
        "DeviceError",
        "Evaluation",
        "FirstBatch",
        "Generation",
        "Generations",
        "GptxError",
        "ModelError",
        "Prediction",
        "Predictions",
        "PretrainRecipe",
        "Recipe",
        "RecipeError",
        "Run",
        "RunFailed",
        "RunNotFound",
        "UsageError",
        "__version__",
        "compare",
        "device",
        "evaluate",
        "finetune",
        "first_batch",
        "free",
        "load",
        "load_ipython_extension",
        "merge",
        "predict",
        "pretrain",
        "runs",
        "stop",
        "unload_ipython_extension",
        "watch",
    ]
    for name in gptx_nb.__all__:
        assert getattr(gptx_nb, name) is not None
    assert dir(gptx_nb) == sorted(gptx_nb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        gptx_nb.finetun  # noqa: B018


def test_runs_stays_the_function_although_a_module_is_called_so() -> None:
    code = (
        "import gptx_nb, gptx_nb.runs, gptx_nb.launch\nfrom gptx_nb.runs import RunStore\n"
        "assert gptx_nb.runs() == []\nfrom gptx_nb import runs\nassert runs() == []"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_is_silent_and_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import gptx_nb\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("['gptx_nb']\n", "")


def test_the_twins_do_what_the_magics_do(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = gptx_nb.finetune("demo", ROWS, model=str(tiny_model), epochs=4)
    assert (run.name, run.version, run.state()) == ("demo", 1, "finished")
    assert gptx_nb.runs() == [run]
    assert gptx_nb.finetune("demo", data=ROWS, model=str(tiny_model), epochs=4) == run
    assert (
        gptx_nb.finetune("demo", examples=ROWS, model=str(tiny_model), epochs=5, head="plain", wait=False).version == 2
    )
    assert gptx_nb.watch("demo").version == 2
    assert gptx_nb.predict("demo", "I love it", version=1).run == "demo/1"
    answers = gptx_nb.predict("demo", ["I love it", "bad"])
    assert answers.run == "demo/2"
    assert gptx_nb.stop("demo") == "run demo version 2 does not train: it is finished"
    assert gptx_nb.free() == "The inference process has ended."
    assert inference.ping() is None
    assert gptx_nb.free() == "There is no inference process."
    assert capsys.readouterr().out == ""  # progress goes to standard error

    model, tokenizer = gptx_nb.load("demo")
    logits = model(**tokenizer("I love it", return_tensors="pt")).logits.detach()
    probability = float(logits.softmax(-1)[0, model.config.label2id[answers[0].label]])
    assert probability == pytest.approx(answers[0].probability, abs=1e-3)


def test_a_mistake_raises_the_named_error_and_starts_nothing(tiny_model: Path) -> None:
    with pytest.raises(gptx_nb.RecipeError, match="unknown setting 'epoch'"):
        gptx_nb.finetune("demo", ROWS, epoch=3)
    with pytest.raises(gptx_nb.DataError, match="at least two labels are needed"):
        gptx_nb.finetune("demo", [("a", "x"), ("b", "x")], model=str(tiny_model))
    with pytest.raises(gptx_nb.RunNotFound, match="no run is called 'demo'"):
        gptx_nb.predict("demo", "text")
    with pytest.raises(gptx_nb.RunNotFound, match="no run is called 'demo'"):
        gptx_nb.load("demo")
    assert gptx_nb.runs() == []


def test_the_device_is_told_with_its_reasons() -> None:
    facts = gptx_nb.device()
    assert {"device", "reason", "dtype", "dtype_reason", "name", "memory_total", "cores", "torch"} <= set(facts)
    assert facts["matrix_peak"] > 1e9
    assert facts["answers"].partition(":")[0] in ("float32", "bfloat16")
    assert facts["copy_speed"] > 1e8
    assert dict(progress.device_lines(facts))["memory moves"] == f"{facts['copy_speed'] / 1e9:,.0f} GB/s, measured"
