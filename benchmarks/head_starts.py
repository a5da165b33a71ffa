"""Does a model do better from its labels' words or from a new head on the plain text, and does the tool choose rightly?

    python benchmarks/head_starts.py DATA_FOLDER [--sets sst2,trec] [--model tiny] [--tune full] [--examples 100,1000]
        [--draws 3] [--test 300] [--held] [--starts plain,words] [--out head_starts]

DATA_FOLDER is that of benchmarks/fewshot.py. For each set, number of examples and draw, the same examples are learnt
from each start, with the tool's own settings else; the last weights are scored on the test rows, so that nothing is
chosen by them. With --held they are scored on rows of the training table that were not drawn: to choose by. Beside the
accuracies stands what the tool looked at when it chose by itself (`head: auto`). What stands in OUT.json is not
measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from fewshot import MAX_LENGTH, Set, numbers
from report import report

from gptx_nb.engine import models
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.predict import use_all_cores
from gptx_nb.engine.tasks import head_start
from gptx_nb.engine.tasks.reading import Reading
from gptx_nb.engine.transfer import accuracy
from gptx_nb.recipe import Recipe


def asked(data: Set, count: int, draw: int, arguments: argparse.Namespace) -> tuple[Table, Recipe]:
    """Return the examples of one draw beside the rows to score, and the recipe that says nothing of the start."""
    places = data.draw(count, draw)
    train = Examples([data.train[0][place] for place in places], data.train[1][places].tolist())
    (texts, labels), scored = data.test, range(len(data.test[0]))
    if arguments.held:
        (texts, labels), drawn = data.train, set(places)
        scored = [place for place in range(len(texts)) if place not in drawn][: arguments.test]
        if len(scored) < arguments.test:
            raise SystemExit(
                f"{data.name}: {len(texts)} training rows, and --examples {count} beside --test {arguments.test} take "
                f"{count + arguments.test}. Raise --pool, or lower one of them"
            )
    held = Examples([texts[place] for place in scored], [int(labels[place]) for place in scored])
    table = Table(train, held, data.labels, {"text": "text", "label": "label", "warnings": [], "source": data.name})
    recipe = Recipe(
        data="benchmark",
        model=arguments.model,
        tune=arguments.tune,
        max_length=MAX_LENGTH,
        keep="last",
        baselines=False,
        seed=draw,
    )
    return table, recipe


def choice(table: Table, recipe: Recipe) -> dict[str, Any]:
    """Return the start that would be chosen, and by which figures."""
    base = models.find(recipe.model)
    tokenizer = models.load_tokenizer(base)
    model = models.load_classifier(base, tokenizer, table.labels, recipe.seed)
    known = head_start.Base(model, tokenizer, lambda: models.output_rows(base, model), Reading(MAX_LENGTH))
    start = head_start.choose(known, table, recipe)
    return {"chosen": "plain" if start.wording is None else "words", "tried": start.tried}


def measure(table: Table, recipe: Recipe, starts: list[str]) -> dict[str, Any]:
    """Return the accuracy from each start, and the seconds that it took."""
    found: dict[str, Any] = {}
    for each in starts:
        begun = time.perf_counter()
        given = recipe.model_copy(update={"head": each})
        found[each] = accuracy(given, table)
        found[f"{each}_s"] = round(time.perf_counter() - begun)
    return found


def rows_of(found: list[dict[str, Any]], starts: list[str]) -> list[dict[str, Any]]:
    """Return a row a set and number of examples: mean accuracies, their difference, and what the choice gave."""
    rows = []
    for name, count in dict.fromkeys((each["set"], each["examples"]) for each in found):
        mine = [each for each in found if (each["set"], each["examples"]) == (name, count)]
        row: dict[str, Any] = {"set": name, "examples": count, "draws": len(mine)}
        row |= {start: statistics.mean(each[start] for each in mine) for start in starts}
        if len(starts) == 2:
            differences = [each["words"] - each["plain"] for each in mine]
            spread = f" ± {statistics.stdev(differences):.3f}" if len(mine) > 1 else ""
            row["words - plain"] = f"{statistics.mean(differences):+.3f}{spread}"
            row["chosen"] = statistics.mean(each[each["chosen"]] for each in mine)
        row["words chosen"] = f"{sum(each['chosen'] == 'words' for each in mine)} of {len(mine)}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default="sst2,trec,ag_news,sms_spam")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tune", default="full")
    parser.add_argument("--examples", type=numbers, default=[100, 1000])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--pool", type=int, default=3000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--held", action="store_true", help="score rows of the training table that were not drawn")
    parser.add_argument("--starts", type=lambda text: text.split(","), default=["plain", "words"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_all_cores()
    kept = arguments.out.with_suffix(".json") if arguments.out else None
    found: list[dict[str, Any]] = json.loads(kept.read_text())["every"] if kept and kept.exists() else []
    about = {"model": arguments.model, "tune": arguments.tune, "test": arguments.test, "held": arguments.held}
    sets = [Set(arguments.folder / name, arguments.pool, arguments.test) for name in arguments.sets.split(",")]
    for draw in range(arguments.draws):
        for count in arguments.examples:
            for data in sets:
                key = {**about, "set": data.name, "examples": count, "draw": draw}
                if any(key.items() <= each.items() for each in found):
                    continue
                table, recipe = asked(data, count, draw, arguments)
                found.append({**key, **choice(table, recipe), **measure(table, recipe, arguments.starts)})
                print(json.dumps(found[-1]), flush=True)
                mine = [each for each in found if about.items() <= each.items()]
                report("What a classifier begins with", about, rows_of(mine, arguments.starts), found, arguments.out)


if __name__ == "__main__":
    main()
