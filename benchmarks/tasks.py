"""What tuning brings to each task: the base model as it is, with examples in the prompt, and tuned.

    python benchmarks/tasks.py DATA [--tasks squad,scitldr] [--models tiny,smollm2-135m] [--examples 300] [--test 50]
        [--shots 2] [--epochs 1] [--tune lora] [--set NAME=VALUE] [--what base,shots,tuned] [--minutes 0] [--out tasks]

DATA is the folder of public sets (squad_xquad_en, tatoeba_en_fr_short, scitldr, …), each with train and test tables.
Every model answers the same first --test rows of the test table; shots and examples to learn from are the first rows of
the training table. What --tune and --epochs do not say is left to the package; no row is held back, so that nothing is
chosen by a score, and the last weights count. Untrained, labels are calibrated on the texts that are asked about, never
on their labels. Summaries stand beside the lead sentence of the document, which needs no model; programs that are
written for mbpp are run, in the package's sandbox. Of tinyshakespeare a row is speeches of 1,000 characters or more.
--set is a setting of the tuned run, as long_texts=windows. What does not fit into a model is said and left out. --out
adds what was measured to OUT.json, so that pieces can be run one at a time, and writes OUT.md, a table for each task;
scores have 95 % intervals. With --minutes a run that has trained for so long is saved and stopped, and goes on when
this is started again with the same GPTX_HOME.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from report import markdown

import gptx_nb
from gptx_nb.engine.scores import texts
from gptx_nb.recipe import make_recipe

WAYS = ("base", "shots", "tuned")
PIECE = 1000  # characters of a text without rows


@dataclass(frozen=True)
class Set:
    """A public set: its folder, its task, what is read of its rows, and the longest row in tokens."""

    folder: str
    task: str
    columns: tuple[str, ...]
    max_length: int
    new_tokens: int
    score: str


LABELLED = ("text", "label_text")
SETS = {
    "sst2": Set("sst2", "text-classification", LABELLED, 128, 0, "accuracy"),
    "trec": Set("trec", "text-classification", LABELLED, 64, 0, "accuracy"),
    "imdb": Set("imdb_5800", "text-classification", LABELLED, 128, 0, "accuracy"),
    "sms": Set("sms_spam", "text-classification", LABELLED, 128, 0, "accuracy"),
    "ag_news": Set("ag_news", "text-classification", LABELLED, 128, 0, "accuracy"),
    "banking77": Set("banking77", "text-classification", LABELLED, 64, 0, "accuracy"),
    "squad": Set("squad_xquad_en", "question-answering", ("context", "question", "answers"), 384, 16, "f1"),
    "tatoeba": Set("tatoeba_en_fr_short", "translation", ("en", "fr"), 96, 24, "chrf"),
    "scitldr": Set("scitldr", "summarization", ("document", "summaries"), 384, 48, "rougeL"),
    "trivia": Set("open_trivia", "question-answering", ("question", "choices", "answer"), 192, 8, "accuracy"),
    "e2e": Set("e2e_nlg", "text-generation", ("mr", "text"), 192, 48, "rougeL"),
    "conala": Set("conala", "code-generation", ("intent", "snippet"), 128, 48, "chrf"),
    "mbpp": Set("mbpp", "code-generation", ("prompt", "canonical_solution", "test", "entry_point"), 384, 128, "pass@1"),
    "chatterbot": Set("chatterbot_en_zh", "chat", ("turns",), 128, 32, "rougeL"),
    "shakespeare": Set("tinyshakespeare", "text-generation", ("text",), 384, 64, "bits_per_byte"),
    "chnsenticorp": Set("chnsenticorp", "text-classification", LABELLED, 256, 0, "accuracy"),
    "cmrc2018": Set("cmrc2018_zh", "question-answering", ("context", "question", "answers"), 384, 64, "f1"),
    "nq_open": Set("nq_open", "question-answering", ("question", "answers"), 96, 12, "f1"),
}


def table(folder: Path, which: Set, split: str, rows: int) -> pd.DataFrame:
    """Return a split's first rows, with the columns that the task reads; of each label one, if there is room."""
    path = next((folder / which.folder).glob(f"{split}.*"))
    if ".txt" in path.name:
        frame = pd.DataFrame({"text": pieces(lzma.decompress(path.read_bytes()).decode())})
    else:
        frame = pd.read_json(path, lines=True) if ".jsonl" in path.name else pd.read_csv(path)
    frame = frame[list(which.columns)].rename(columns={"label_text": "label"})
    if "label" in frame:
        first = ~frame["label"].duplicated()
        frame = pd.concat([frame[first].head(rows), frame[~first].head(max(0, rows - int(first.sum())))]).sort_index()
    return frame.head(rows).reset_index(drop=True)


def pieces(text: str) -> list[str]:
    """Return `text` cut at blank lines into pieces of PIECE characters or a little more."""
    found = [""]
    for part in text.split("\n\n"):
        if len(found[-1]) >= PIECE:
            found.append("")
        found[-1] += f"{part}\n\n"
    return [each.strip() for each in found if each.strip()]


def lead(test: pd.DataFrame) -> dict[str, Any]:
    """Return the scores of each document's first sentence as its summary."""
    first = [re.split(r"(?<=[.!?])\s", document.strip())[0] for document in test["document"]]
    return {"rougeL": texts.rouge(test["summaries"].tolist(), first)["rougeL"].to_json()}


def measure(data: Path, name: str, model: str, way: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Return one measurement: scores on the test rows, seconds of training and of scoring, and examples."""
    which = SETS[name]
    test = table(data, which, "test", asked.test)
    count = {"base": 0, "shots": asked.shots, "tuned": asked.examples}[way]
    learnt = table(data, which, "train", count)
    found: dict[str, Any] = {"set": name, "task": which.task, "model": model, "way": way, "examples": count}
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options: dict[str, Any] = {"most": asked.test}
    if which.score == "pass@1":
        options["allow_code"] = True  # written programs are run, in the package's sandbox
    if which.new_tokens:
        options["max_new_tokens"] = which.new_tokens
    if way == "tuned":
        more = dict(asked.set)
        found |= {"tune": asked.tune, "epochs": asked.epochs, **({"settings": more} if more else {})}
        settings = {"tune": asked.tune, "epochs": asked.epochs, "max_length": which.max_length, **more}
        run = gptx_nb.finetune(
            f"{name}-{model}", learnt, task=which.task, model=model, validation=0, baselines=False, wait=False,
            **settings,
        )  # fmt: skip
        begun = time.monotonic()
        while run.active:
            if asked.minutes and time.monotonic() - begun > 60 * asked.minutes:
                print(gptx_nb.stop(run.name))
                raise SystemExit("Saved for now. Run this again with the same GPTX_HOME to go on.")
            time.sleep(0.5)
        found["training_s"] = (run.scores() or {}).get("seconds")
        evaluated: Callable[[], Any] = lambda: gptx_nb.evaluate(f"{name}-{model}", test, **options)  # noqa: E731
    else:
        shots = learnt if count else 0
        evaluated = lambda: gptx_nb.evaluate(model, test, task=which.task, shots=shots, **options)  # noqa: E731
    begun = time.perf_counter()
    evaluation = evaluated()
    found["scoring_s"] = time.perf_counter() - begun
    return {**found, "rows": evaluation.rows, "scores": evaluation.scores, "samples": evaluation.samples}


def row(measured: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the table."""
    main = SETS[measured["set"]].score
    scores = measured["scores"]
    name = next((each for each in scores if each.split(" ")[0] == main), next(iter(scores)))
    score = scores[name]
    return {
        "model": measured["model"],
        "way": ", ".join([measured["way"], *(f"{key}: {each}" for key, each in measured.get("settings", {}).items())]),
        "examples": measured["examples"],
        name: round(score["value"], 3),
        "95 % interval": f"{score['low']:.3f} to {score['high']:.3f}",
        "test rows": score["examples"],
        "training, s": None if measured.get("training_s") is None else round(measured["training_s"]),
        "cores": measured.get("cores"),
    }


def setting(typed: str) -> tuple[str, str]:
    """Return name and value; what fits no recipe is told before anything is measured."""
    name, given, value = typed.partition("=")
    if not given:
        raise argparse.ArgumentTypeError(f"{typed}: a setting is NAME=VALUE")
    try:
        make_recipe({name: value})
    except gptx_nb.RecipeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", default=",".join(SETS))
    parser.add_argument("--models", default="tiny,smollm2-135m")
    parser.add_argument("--what", default=",".join(WAYS))
    for flag, usual in (("--examples", 300), ("--test", 50), ("--shots", 2)):
        parser.add_argument(flag, type=int, default=usual)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--tune", default="lora")
    parser.add_argument(
        "--set", action="append", type=setting, default=[], metavar="NAME=VALUE", help="a setting of the tuned run"
    )
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    kept = asked.out.with_suffix(".json") if asked.out else None
    every: list[dict[str, Any]] = json.loads(kept.read_text())["every"] if kept and kept.exists() else []
    with tempfile.TemporaryDirectory(prefix="gptx_nb-tasks-") as home:
        os.environ.setdefault("GPTX_HOME", home)
        for name in asked.tasks.split(","):
            if SETS[name].task == "summarization":
                test = table(asked.data, SETS[name], "test", asked.test)
                told = {"set": name, "task": "summarization", "model": "lead sentence", "way": "", "examples": 0}
                _add(every, {**told, "rows": len(test), "scores": lead(test), "samples": []})
            for model in asked.models.split(","):
                for way in asked.what.split(","):
                    try:
                        _add(every, measure(asked.data, name, model, way, asked))
                    except gptx_nb.UsageError as error:
                        print(f"{name}, {model}, {way}: not measured, as {error}", flush=True)
                        continue
                    print(markdown([row(every[-1])]), flush=True)
                    if kept:
                        kept.write_text(json.dumps({"every": every}, indent=2) + "\n", encoding="utf-8")
        gptx_nb.free()
    parts = []
    for name in dict.fromkeys(each["set"] for each in every):
        rows = [row(each) for each in every if each["set"] == name]
        parts.append(f"{SETS[name].task}: {SETS[name].folder}\n\n{markdown(rows)}\n")
    print("\n".join(parts))
    if asked.out:
        asked.out.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")


def _add(every: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Put a measurement in the place of an earlier one of the same."""
    key = ("set", "model", "way", "examples", "rows", "tune", "epochs", "settings")
    every[:] = [each for each in every if any(each.get(name) != found.get(name) for name in key)]
    every.append(found)


if __name__ == "__main__":
    main()
