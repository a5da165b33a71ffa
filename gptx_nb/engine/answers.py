"""Scores a writer on examples with known answers: how likely they are to it, and how good what it writes is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptx_nb.engine import sandbox
from gptx_nb.engine.scores import texts
from gptx_nb.engine.scores.intervals import Score, mean
from gptx_nb.engine.scores.labels import calibration_of
from gptx_nb.engine.scores.programs import pass_at
from gptx_nb.engine.tasks import templates
from gptx_nb.engine.tasks.encoding import Encoded
from gptx_nb.engine.tasks.templates import Example, Segment, language
from gptx_nb.engine.writer import How, Writer

MOST_WRITTEN = 50  # examples whose answers are written: each takes as long as its answer
SHOWN = 5

# Whether a score is the task's own is said by the order of `WritingTask.scores`.
_SCORERS: dict[str, Callable[[list[list[str]], list[str]], dict[str, Score]]] = {
    "rougeL": lambda references, answers: texts.rouge(references, answers),
    "rouge1": lambda references, answers: {},  # comes with rougeL
    "rouge2": lambda references, answers: {},
    "f1": lambda references, answers: {"f1": texts.token_f1(references, answers)},
    "exact_match": lambda references, answers: {"exact_match": texts.exact_match(references, answers)},
    "chrf": lambda references, answers: {"chrf": texts.chrf(references, answers)},
    "bleu": lambda references, answers: {"bleu": texts.bleu(references, answers)},
}


def chosen(examples: Sequence[Example], most: int = MOST_WRITTEN) -> list[int]:
    """Return the places of at most `most` examples, evenly spread, always the same ones.

    Of each direction of a translation as many, as far as there are some.
    """
    if len(examples) <= most:
        return list(range(len(examples)))
    places: dict[Any, list[int]] = {}
    for at, each in enumerate(examples):
        places.setdefault((each.get("from"), each.get("to")), []).append(at)
    found: list[int] = []
    groups = sorted(places.values(), key=len)  # what a small one leaves goes to the others
    for number, here in enumerate(groups):
        share = min(len(here), (most - len(found)) // (len(groups) - number))
        found += [here[at * len(here) // share] for at in range(share)]
    return sorted(found)


def likelihood(nats: np.ndarray, text_of_row: Sequence[str] | None = None) -> dict[str, Any]:
    """Return loss (nats a token) and perplexity of targets from (rows, 2) nats and counts.

    `text_of_row`: the text of each row's targets, for bits a byte, whose end is counted with them.
    """
    total, tokens = nats.sum(axis=0)
    found = {
        "loss": float(total / max(1, tokens)),
        "perplexity": texts.perplexity(nats[:, 0].tolist(), nats[:, 1].astype(int).tolist()).to_json(),
    }
    if text_of_row is not None:
        found["bits_per_byte"] = texts.bits_per_byte(nats[:, 0].tolist(), text_of_row).to_json()
    return found


def written(
    writer: Writer,
    examples: Sequence[Example],
    *,
    allow_code: bool = False,
    shots: Sequence[Example] = (),
    most: int = MOST_WRITTEN,
    how: How | None = None,
) -> dict[str, Any]:
    """Let `writer` answer at most `most` of `examples`, greedily, and score the answers.

    {"written": how many, "scores": {name: Score as JSON}, "main": name of the task's own, "samples": [{"asked",
    "right", "answer"}], "left_out": places of those that do not fit, "cut_at": of those that lost a part of their
    context}; no scores where nothing is asked (texts to continue in their style).
    """
    task, greedy = writer.task, how or How(temperature=0.0)
    places = [at for at in chosen(examples, most) if not task.whole_text(examples[at])]
    if not places:
        continued = _continued(writer, examples)
        return {"written": 0, "scores": {}, "main": None, "samples": continued, "left_out": [], "cut_at": []}
    choose = all("choices" in examples[at] for at in places)
    prompts = {at: _prompts(writer, examples[at], shots, greedy, choose) for at in places}
    left_out = [at for at in places if None in prompts[at]]
    answered = [at for at in places if at not in left_out]
    asked = [examples[at] for at in answered]
    if not asked:
        return {"written": 0, "scores": {}, "main": None, "samples": [], "left_out": left_out, "cut_at": []}
    found: dict[str, Score] = {}
    unended = 0
    if choose:
        answers, sure, cut_at = _choose(writer, asked, shots)
        right = [answer == each[task.target] for answer, each in zip(answers, asked, strict=True)]
        found["accuracy"] = mean(right, "the likeliest of the choices, by log-probability a character")
        found["calibration_error"] = calibration_of(sure, right)
    else:
        told = writer.write(asked, greedy, shots)
        answers, cut_at = [each[0].text for each in told.written], told.cut_at
        unended = sum(each[0].ended in ("length", "context") for each in told.written)
        if allow_code and any("tests" in each for each in asked):
            found["pass@1"] = _passed(asked, answers)
        found |= _by_direction(writer, asked, answers)
    untested = 0 if allow_code else sum("tests" in each for each in asked)
    samples = [
        {"asked": task.shown(each), "right": task.accepted(each)[0], "answer": answer}
        for each, answer in list(zip(asked, answers, strict=True))[:SHOWN]
    ]
    scores = {name: each.to_json() for name, each in found.items()}
    told_of = {
        "main": next(iter(scores)),
        "samples": samples,
        "left_out": left_out,
        "cut_at": [answered[at] for at in cut_at],
        "untested": untested,
        "unended": unended,
    }
    return {"written": len(asked), "scores": scores, **told_of}


def _prompts(
    writer: Writer, example: Example, shots: Sequence[Example], how: How, choose: bool = False
) -> list[Encoded | None]:
    """Return what `writer` reads to answer: a prompt with room for the answer, or each choice behind its own.

    None for what does not fit, however much of the context is cut: `Writer.write` would refuse the whole table for it.
    """
    asked, encoder = writer.prompt(example, shots), writer.encoder
    if choose:
        return [encoder.encode([*asked, Segment(f" {choice}", target=True)]) for choice in example["choices"]]
    room = min(how.max_new_tokens or writer.task.max_new_tokens, max(1, writer.context // 2))
    found = encoder.prompt(asked, room)
    if found is None and (shorter := writer.task.shorter(example)) is not None:
        return _prompts(writer, shorter, shots, how)
    return [found]


def notes(found: dict[str, Any], row: Callable[[int], str], reads: str) -> list[str]:
    """Say which examples `written` has left out, and which it has cut; `row` names one by its place.

    `reads`: how many tokens the model reads (`Writer.reads`).
    """
    told = []
    if places := found["left_out"]:
        told.append(
            f"{rows_left_out(len(places), row(places[0]))} unanswered: with room for an answer, what asks for it takes "
            f"more than the {reads}"
        )
    if untested := found.get("untested"):
        told.append(
            f"{untested:,} answered rows have tests, which were not run: `allow_code: true` runs what was written in a "
            "sandbox, for pass@1"
        )
    if unended := found.get("unended"):
        told.append(
            f"{unended:,} of {found['written']:,} answers ended at the most tokens that an answer may have, or where "
            "the model sees no further, and are scored as far as they go"
        )
    if places := found["cut_at"]:
        told.append(
            f"{len(places):,} of {found['written']:,} answered rows had their contexts cut to fit into the {reads}, "
            f"with room for the answer{first_of(places, row)}"
        )
    return told


def first_of(places: Sequence[int], row: Callable[[int], str]) -> str:
    """Return ` (the first: row 4)`, which `row` names by its place; without `the first` where it is the only one."""
    return f" ({'the first: ' if len(places) > 1 else ''}{row(places[0])})"


def rows_left_out(count: int, first: str) -> str:
    """Return `1 row (test.csv, row 3) is left`, `4 rows (the first: test.csv, row 3) are left`."""
    return f"1 row ({first}) is left" if count == 1 else f"{count:,} rows (the first: {first}) are left"


def _choose(
    writer: Writer, asked: Sequence[Example], shots: Sequence[Example]
) -> tuple[list[str], list[float], list[int]]:
    """Return the likeliest choice of each example, its share, and the places of those whose contexts were cut."""
    shares, cut_at = writer.choose(asked, shots)
    answers = [each["choices"][int(np.argmax(row))] for each, row in zip(asked, shares, strict=True)]
    return answers, [max(row) for row in shares], cut_at


def _by_direction(writer: Writer, asked: Sequence[Example], answers: Sequence[str]) -> dict[str, Score]:
    """Score answers; those of a translation for each direction."""
    directions = list(dict.fromkeys((each.get("from"), each.get("to")) for each in asked))
    found: dict[str, Score] = {}
    for source, target in directions:
        here = [at for at, each in enumerate(asked) if (each.get("from"), each.get("to")) == (source, target)]
        references = [writer.task.accepted(asked[at]) for at in here]
        suffix = f" {language(source)} to {language(target)}" if source is not None and target is not None else ""
        for name in writer.task.scores:
            for kind, each in _SCORERS[name](references, [answers[at] for at in here]).items():
                found[f"{kind}{suffix}"] = each
    return found


def _passed(asked: Sequence[Example], answers: Sequence[str]) -> Score:
    tested = [(each, answer) for each, answer in zip(asked, answers, strict=True) if "tests" in each]
    programs = []
    for example, answer in tested:
        entry = example.get("entry_point")
        tests = example["tests"] + (f"\ncheck({entry})\n" if entry and "def check(" in example["tests"] else "")
        programs.append(sandbox.Program(templates.begun(example) + answer, tests, (entry,) if entry else ()))
    return pass_at(1, [[each.passed] for each in sandbox.run_all(programs, allow_code=True)])


def samples(writer: Writer, examples: Sequence[Example], most: int, max_new_tokens: int) -> list[dict[str, str]]:
    """Let `writer` answer at most `most` of `examples`, always the same ones: [{"asked", "right", "answer"}]."""
    task = writer.task
    kept = [examples[at] for at in chosen(examples, most)]
    asked = [each for each in kept if not task.whole_text(each)]
    if not asked:
        return _continued(writer, kept, max_new_tokens)
    choose, greedy = all("choices" in each for each in asked), How(0.0, max_new_tokens=max_new_tokens)
    asked = [each for each in asked if None not in _prompts(writer, each, (), greedy, choose)]
    said = _choose(writer, asked, ())[0] if choose else [each[0].text for each in writer.write(asked, greedy).written]
    return [
        {"asked": task.shown(each), "right": task.accepted(each)[0], "answer": answer}
        for each, answer in zip(asked, said, strict=True)
    ]


def _beginning(text: str) -> str:
    """Return at most half of a text: some words of it, or characters where it is not written in words."""
    words = text.split(" ")
    if len(words) > 3:
        return " ".join(words[: min(8, len(words) // 2)])
    return text[: max(1, min(40, len(text) // 2))]


def _continued(writer: Writer, examples: Sequence[Example], max_new_tokens: int = 48) -> list[dict[str, str]]:
    """Let the first texts be continued from their beginnings, for people to look at."""
    prompts = []
    for each in examples[:3]:
        prompts.append({"prompt": _beginning(str(each.get("text", "")))})
    if not prompts:
        return []
    answers = writer.write(prompts, How(max_new_tokens=max_new_tokens)).written
    return [
        {"asked": prompt["prompt"], "right": "", "answer": answer[0].text}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
