"""A run that still trains is asked: the weights that it saved last become a plain model beside it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gptx_nb import asking, inference, launch, unfinished
from gptx_nb.errors import RunNotFound
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run

# So many that no machine is done with their passes before the run is asked.
ROWS = [("Great, I love it", "yes"), ("Awful, it broke", "no")] * 100


def test_a_run_that_trains_is_asked_and_answers_as_its_model_does_once_it_is_made(
    home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": str(tiny_model), "epochs": 1000, "baselines": False, "validation": 0.25, "keep": "last"}
    run = launch.train("reviews", make_recipe({**settings, "checkpoint_every": 0.2}), data=ROWS).run
    try:
        with pytest.raises(RunNotFound, match="has saved no weights"):
            unfinished.latest(_without_weights(home))
        while not run.checkpoints.is_dir() or not any(each.name.isdigit() for each in run.checkpoints.iterdir()):
            assert run.active, run.log_tail()
        told = asking.ask(run, "Great")
        assert told["who"].startswith("reviews v1 after step ")
        assert {label for label, _ in told["labels"]} == {"yes", "no"}
        launch.stop(run)
        assert run.state() == "stopped"
        # The very weights that it stopped with, once from the checkpoint and once from the model that it saved.
        step = unfinished.latest(run)
        saved = inference.predict(run, "Great").probabilities[0]
        assert inference.predict(run, "Great", step=step).probabilities[0] == pytest.approx(saved, abs=1e-5)
        assert [each.name for each in run.asked.iterdir()] == [f"{step:06d}"]

        aside = run.model.rename(home / "aside")

        def finishes_meanwhile(asked: Run) -> int:
            aside.rename(asked.model)
            return step + 1  # put away before it could be asked

        monkeypatch.setattr(unfinished, "latest", finishes_meanwhile)
        assert asking.ask(run, "Great")["who"] == "reviews v1"

        # And one whose files go while the inference process is about to load them.
        aside = run.model.rename(home / "aside")
        shutil.copytree(run.unfinished(step), run.unfinished(step + 1))
        monkeypatch.setattr(unfinished, "latest", lambda asked: step + 1)
        send = inference._Client.ask

        def loads_too_late(self: inference._Client, path: str, body: Any, *told: Any, **how: Any) -> dict[str, Any]:
            if body.get("step") is None:
                return send(self, path, body, *told, **how)
            (run.unfinished(step + 1) / "config.json").unlink()
            try:
                return send(self, path, body, *told, **how)
            finally:
                shutil.rmtree(run.asked)
                aside.rename(run.model)

        monkeypatch.setattr(inference._Client, "ask", loads_too_late)
        assert asking.ask(run, "Great")["who"] == "reviews v1"
    finally:
        run.request_stop()
        inference.free(home)


def _without_weights(home: Path) -> Run:
    folder = home / "runs" / "empty" / "1"
    folder.mkdir(parents=True)
    return Run(folder)
