"""A language model that does a task: examples in, written answers out. It knows no run, and no file but a model's.

A model that was tuned here brings `gptx_task.json` beside its weights: its task, and what its prompts look like. Any
other language model can be asked too: then the prompt is the task's own, and the answer ends where the task says.

It writes with products in bfloat16 where the device computes them faster (`arithmetic`), as servers of language models
do: where two tokens are all but equally likely, a text may then go on otherwise than in float32. What is compared with
each other, choices and the likelihood of given texts, is computed in float32 always.
"""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb import files
from gptx_nb.engine import arithmetic, beams, generate, lean, models, packing, products
from gptx_nb.engine.asked import Asking
from gptx_nb.engine.device import Device, is_out_of_memory
from gptx_nb.engine.models import context
from gptx_nb.engine.roles import Roles
from gptx_nb.engine.tasks import chat_templates, long_contexts, targets, templates
from gptx_nb.engine.tasks.encoding import Encoded, Encoder
from gptx_nb.engine.tasks.long_contexts import Windows
from gptx_nb.engine.tasks.templates import Example, Segment
from gptx_nb.engine.tasks.writing import LONG, TASKS, WritingTask
from gptx_nb.errors import DataError, ModelError
from gptx_nb.inference import TASK_FILE

DRAWN = {"temperature": 0.8, "top_p": 0.95}  # where more than one answer is right


@dataclass(frozen=True)
class How:
    """How answers are written; None leaves it to the task. `n` answers to each prompt are drawn, or the one likeliest.

    With several `beams` the likeliest answers are searched (`engine.beams`), and the best `n` are given.

    At a text of `stop` an answer ends, without it.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int = 0
    beams: int = 1


@dataclass(frozen=True)
class Written:
    """One answer. `ended`: "end" of itself, at a "stop" text, at its "length", or at the end of the "context"."""

    text: str
    tokens: int
    ended: str


@dataclass(frozen=True)
class Answers:
    """The answers to each example, and the places of those whose prompts were cut to fit."""

    written: list[list[Written]]
    cut_at: list[int]


class Writer:
    """A causal language model with its tokenizer, and the task that it is asked to do.

    `facts` are what holds for all its prompts (see `writing`); `tuned`: it has learnt the task, and where to end.
    `context`: the most tokens of a prompt with its answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: str,
        facts: Mapping[str, Any],
        *,
        tuned: bool,
    ) -> None:
        self.task: WritingTask = TASKS[task]
        self.facts = dict(facts)
        self.tuned = tuned
        self.template = ""  # of a chat: which, and why
        # Where what was learnt from was cut, what is asked is cut alike: answers behind more were never learnt.
        self.context = context(model.config)
        taught = self.facts.get("max_length") if tuned else None
        if taught is not None and taught < self.context:
            self.context = taught
        self.reads = f"{self.context:,} tokens that the model {'sees' if taught is None else 'was taught to read'}"
        if task == "chat":
            self.template = chat_templates.told(tokenizer)
        self.encoder = Encoder(tokenizer, self.context)
        self.end_ids = chat_templates.end_ids(tokenizer) if task == "chat" else {self.encoder.end_id}
        self.bytes, self.dtype = products.size(model), products.dtype_of(model)
        self._model, self._tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: Path, device: Device, task: str | None = None) -> Writer:
        """Load a folder made by `save_pretrained`: only safetensors, only local files, no code from the folder.

        `task` for a model that was tuned for none, by default text-generation. Raises ModelError for a folder that is
        missing, harmed, or holds no language model.
        """
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder.name}/ holds no model: it has no config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, gone = models.from_folder(AutoModelForCausalLM, folder)
        except ModelError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            shown = " ".join(str(error).split())[:200]
            raise ModelError(f"{folder.name}/ cannot be loaded: {type(error).__name__}: {shown}") from error
        if gone:  # transformers would go on with random numbers in their place
            missing = ", ".join(gone[:3])
            raise ModelError(f"{folder.name}/ holds no whole language model: weights are missing ({missing})")
        return cls.of(model, tokenizer, device, task_of(folder), task)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
        told: Mapping[str, Any] | None,
        task: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Writer:
        """Put `model` on `device`; `told` is what its `gptx_task.json` says, if it has one.

        `dtype` is that of the products it writes with, by default what `arithmetic` chooses.
        """
        torch.nn.Module.to(model, device.device)  # transformers' own `to` is typed wrongly
        products.prepare(model, dtype or arithmetic.of_answers(device, written=True).dtype, writes=True)
        lean.use(model)
        model.eval()
        if told is not None and task in (None, told["task"]):
            before = {"line": "asked"} if told["task"] == "code-generation" else {}  # of runs that do not say
            return cls(model, tokenizer, told["task"], {**before, **told["facts"]}, tuned=True)
        return cls(model, tokenizer, task or "text-generation", {}, tuned=False)

    @property
    def usual_new_tokens(self) -> int:
        """Tokens that an answer has at most where nothing is asked: as many as the longest that was learnt from.

        Prompts leave room for the task's usual number, so that one long answer takes nothing from all contexts.
        """
        learnt = int(self.facts.get("answer_tokens") or 0) if self.tuned else 0
        return max(self.task.max_new_tokens, learnt)

    def asking(self, roles: Roles | None = None, source: str | None = None, to: str | None = None) -> Asking:
        """Return how it is asked: by the columns of `roles`, if it was tuned on them, and in which languages."""
        return Asking(self.task, self.facts, roles if self.tuned else None, source, to)

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def prompt(self, example: Example, shots: Sequence[Example] = ()) -> list[Segment]:
        """Return what asks for the answer to `example`, behind `shots` with their answers."""
        if shots and self.task.name == "chat":
            example, shots = _behind(shots, example), ()
        asked = self.task.prompt(self.task.without_target(example), self.facts, self._tokenizer)
        if not shots:
            return asked
        shown = [self.task.segments(shot, self.facts, self._tokenizer)[0] for shot in shots]
        return templates.with_shots(shown, asked)

    def size_shown(self, example: Example) -> int:
        """Return how many tokens `example` takes with its answer, before another is asked."""
        parts = self.task.segments(example, self.facts, self._tokenizer)
        return max(self.encoder.size(part) for part in parts)

    def write(
        self,
        examples: Sequence[Example],
        how: How | None = None,
        shots: Sequence[Example] = (),
        on_text: Callable[[str], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        numbers: Sequence[int] | None = None,
    ) -> Answers:
        """Write answers to `examples`, many at a time.

        `on_text`, for a single answer, is called with each piece of text as soon as it is sure. Where `stopped` says
        so, writing ends as if every answer were at its end. `numbers` are the rows' as the user counts them, by default
        from 1. Raises DataError, which names the row, for a prompt that does not fit.
        """
        how = how or How()
        numbers = range(1, len(examples) + 1) if numbers is None else numbers
        new = how.max_new_tokens or self.usual_new_tokens
        room = min(how.max_new_tokens or self.task.max_new_tokens, max(1, self.context // 2))
        if (windows := long_contexts.Windows.of(self.facts)) is not None and examples:
            return self._over_windows(windows, examples, how, shots, on_text, stopped, numbers)
        prompts: list[list[int]] = []
        cut_at: list[int] = []
        for at, (number, example) in enumerate(zip(numbers, examples, strict=True)):
            try:
                found, shortened = self._fitting(example, shots, room)
            except DataError as error:  # of a chat template
                raise DataError(f"{_named(number, numbers)}: {error}") from None
            if found is None:
                raise DataError(
                    f"{_named(number, numbers)} is too long for the {self.reads}, of which {room:,} are kept for the "
                    f"answer. {_less(shots)}"
                )
            cut_at += [at] if shortened or found.cut else []
            prompts += [found.ids] * how.n
        stops = _Stops(tuple(each for each in how.stop if each), self._usual_stops(examples, shots))
        stream = _Stream(self, stops, on_text) if on_text is not None and len(prompts) == 1 else None
        tail = 4 * stops.longest + 16  # tokens; each is a byte at least, and a character has up to four

        def stop(tokens: list[int]) -> bool:
            if stopped():
                return True
            text = self._said(tokens) if len(tokens) <= tail else self._decode(tokens[-tail:])
            return stops.longest > 0 and stops.place(text, len(tokens) > tail) is not None

        if how.beams > 1:
            options: dict[str, Any] = {"beams": how.beams, "answers": how.n, "max_new_tokens": new, "stop": stop}
            continued = [
                each
                for prompt in prompts[:: how.n]
                for each in beams.search(self._model, prompt, end_ids=self.end_ids, **options)
            ]
        else:
            continued = generate.generate(
                self._model,
                prompts,
                max_new_tokens=new,
                end_ids=self.end_ids,
                sampling=self._sampling(how),
                draws=[(number - 1) * how.n + at for number in numbers for at in range(how.n)],
                stop=stop,
                on_token=stream.take if stream else None,
            )
        written = [
            Written(self._text(each.tokens, stops, each.ended), len(each.tokens), each.ended) for each in continued
        ]
        if stream is not None:
            stream.end(continued[0].tokens, continued[0].ended)
        return Answers([written[at : at + how.n] for at in range(0, len(written), how.n)], cut_at)

    def _usual_stops(self, examples: Sequence[Example], shots: Sequence[Example]) -> tuple[str, ...]:
        """Return where answers end of a model that has not learnt where: with a begun function, before another.

        Behind `shots`, before it makes up another of them.
        """
        if self.tuned:
            return ()
        found = self.task.base_stop
        if self.task.name == "code-generation" and all("prompt" in each for each in examples):
            return (*found, "\ndef ", "\nclass ")
        if self.task.name == "text-generation" and shots:
            parted = any(templates.APART in str(shot.get("completion")) for shot in shots)
            return found if parted else (*found, templates.APART)
        return found

    def behind(self, shots: Sequence[Example]) -> Writer:
        """Return this writer, or one that knows from `shots` what stands between a prompt and its completion."""
        if self.tuned or self.task.name != "text-generation" or not shots or "joint" in self.facts:
            return self
        joint = templates.joint_of(*([str(shot[role]) for shot in shots] for role in ("prompt", "completion")))
        return Writer(self._model, self._tokenizer, self.task.name, {**self.facts, "joint": joint}, tuned=False)

    def _over_windows(
        self,
        windows: Windows,
        examples: Sequence[Example],
        how: How,
        shots: Sequence[Example],
        on_text: Callable[[str], None] | None,
        stopped: Callable[[], bool],
        numbers: Sequence[int],
    ) -> Answers:
        """Write answers to examples whose contexts may take several rows, as `long_contexts` says."""
        plain = self._plain()
        one = replace(how, n=1)
        cut_at: set[int] = set()

        def split(example: Example, at: int) -> list[dict[str, Any]]:
            found, whole = plain._parts(example, shots, windows, how.max_new_tokens or self.task.max_new_tokens)
            cut_at.update([] if whole else [at])
            return found

        if self.task.name == "summarization":
            last = []
            for at, (number, example) in enumerate(zip(numbers, examples, strict=True)):

                def summaries(parts: Sequence[Example], number: int = number) -> list[str]:
                    found = plain.write(parts, one, shots, stopped=stopped, numbers=[number] * len(parts))
                    return [each[0].text for each in found.written]

                left, _ = long_contexts.summarised(functools.partial(split, at=at), summaries, example)
                last.append(left)
            found = plain.write(last, how, shots, on_text, stopped, numbers)
            return Answers(found.written, sorted(cut_at.union(found.cut_at)))
        answers: list[list[Written]] = []
        for at, (number, example) in enumerate(zip(numbers, examples, strict=True)):
            parts = split(example, at)
            alone = len(parts) == 1
            found = plain.write(parts, how, shots, on_text if alone else None, stopped, [number] * len(parts))
            cut_at.update([at] if found.cut_at else [])
            chosen = 0 if alone else self._likeliest(parts, found.written, shots)
            answers.append(found.written[chosen])
            if on_text is not None and not alone:
                on_text(answers[-1][0].text)
        return Answers(answers, sorted(cut_at))

    def _parts(
        self, example: Example, shots: Sequence[Example], windows: Windows, room: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return `example` for each window of its context, beside `room` tokens of answer; and whether that is all."""
        role = LONG.get(self.task.name)
        if role is None or role not in example:
            return [dict(example)], True
        asked = self.encoder.prompt(self.prompt({**example, role: ""}, shots))
        fixed = (len(asked.ids) if asked else 0) + room
        return long_contexts.parts(self._tokenizer, example, role, windows, fixed=fixed)

    def _plain(self) -> Writer:
        """Return this writer for examples that fit."""
        facts = {name: each for name, each in self.facts.items() if name != "windows"}
        return Writer(self._model, self._tokenizer, self.task.name, facts, tuned=self.tuned)

    def _likeliest(
        self, parts: Sequence[Example], written: Sequence[Sequence[Written]], shots: Sequence[Example]
    ) -> int:
        """Return the place of the window whose answer is the likeliest, by nats a token, its end counted."""
        rows, places = [], []
        for place, (example, answers) in enumerate(zip(parts, written, strict=True)):
            if not answers[0].text:
                continue
            answer = Segment(f" {answers[0].text}", target=True)
            row = self.encoder.encode([*self.prompt(example, shots), answer, templates.END])
            if row is not None:
                rows.append(row)
                places.append(place)
        if not rows:
            return 0
        nats = self.nats(rows)
        return places[int(np.argmin(nats[:, 0] / nats[:, 1]))]

    def _fitting(self, example: Example, shots: Sequence[Example], room: int) -> tuple[Encoded | None, bool]:
        """Return the tokens of a prompt, and whether a conversation lost its oldest turns for that."""
        found = self.encoder.prompt(self.prompt(example, shots), room)
        if found is None and (shorter := self.task.shorter(example)) is not None:
            return self._fitting(shorter, shots, room)[0], True
        return found, False

    def _sampling(self, how: How) -> generate.Sampling:
        temperature, top_p = how.temperature, how.top_p
        if temperature is None:
            drawn = not self.task.one_right_answer or how.n > 1 or top_p is not None or how.top_k is not None
            temperature = DRAWN["temperature"] if drawn else 0.0
            if drawn and top_p is None and how.top_k is None:
                top_p = DRAWN["top_p"]
        return generate.Sampling(temperature, how.top_k, top_p, how.seed)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _said(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer; that of a program without the line end of what was asked (`templates`)."""
        text = self._decode(tokens)
        return text.removeprefix("\n") if self.task.name == "code-generation" else text

    def _text(self, tokens: Sequence[int], stops: _Stops, ended: str | None = None) -> str:
        text = self._said(tokens)
        if ended in ("length", "context"):
            text = text.rstrip("\ufffd")  # of a character whose other bytes would have come
        end = stops.place(text)
        return text[:end].strip() if self.task.one_right_answer and self.task.name != "code-generation" else text[:end]

    # ---- choices ----------------------------------------------------------------------------------------------------

    def choose(
        self, examples: Sequence[Example], shots: Sequence[Example] = (), numbers: Sequence[int] | None = None
    ) -> tuple[list[list[float]], list[int]]:
        """Return for each example with "choices" how likely each of them is, as shares that sum to 1.

        And the places of those that lost a part of their context.

        A choice is never written: each is scored as the answer, by its log-probability a character times the choices'
        mean length, so that long ones are not at a disadvantage (acc_norm of EleutherAI's harness, Gao et al. 2021).
        Where a context is read in windows, by the one in which it is likeliest. `numbers` as for `write`.
        """
        rows: list[Encoded] = []
        cut_at, parts_of = list[int](), []  # in how many windows each example is asked
        numbers = range(1, len(examples) + 1) if numbers is None else numbers
        windows = long_contexts.Windows.of(self.facts)
        for at, (number, example) in enumerate(zip(numbers, examples, strict=True)):
            first = len(rows)
            answers = [Segment(f" {choice}", target=True) for choice in example["choices"]]
            parts, whole = [dict(example)], True
            if windows is not None:
                longest = max(self.encoder.size([answer]) for answer in answers)
                parts, whole = self._parts(example, shots, windows, longest)
            for part, answer in itertools.product(parts, answers):
                row = self.encoder.encode([*self.prompt(part, shots), answer])
                if row is None:
                    raise DataError(
                        f"{_named(number, numbers)} is too long: its question and a choice do not fit into the "
                        f"{self.reads}. Shorten it{' or show less' if shots else ''}"
                    )
                rows.append(row)
            parts_of.append(len(parts))
            cut_at += [] if whole and not any(row.cut for row in rows[first:]) else [at]
        nats = self.nats(rows)[:, 0]
        found, start = [], 0
        for example, parts_here in zip(examples, parts_of, strict=True):
            sizes = np.array([max(1, len(choice)) for choice in example["choices"]], dtype=float)
            mine = nats[start : start + parts_here * len(sizes)].reshape(parts_here, len(sizes))
            start += mine.size
            logs = -mine.min(axis=0) / sizes * sizes.mean()
            shares = np.exp(logs - logs.max())
            found.append((shares / shares.sum()).tolist())
        return found, cut_at

    def rows(self, example: Example, shots: Sequence[Example] = ()) -> list[Encoded | None]:
        """Return the rows of an example with its answer, as they would be learnt; None for one that does not fit."""
        parts = self.task.segments(example, self.facts, self._tokenizer)
        if self.task.whole_text(example):
            return [row for each in parts for row in self.encoder.windows(each)]
        if shots and self.task.name == "chat":
            return [self.encoder.encode(part) for part in self._talk_behind(shots, example)]
        if shots:
            parts = [[*self.prompt(example, shots), *(each for each in part if each.target)] for part in parts]
        return [self.encoder.encode(part) for part in parts]

    def _talk_behind(self, shots: Sequence[Example], example: Example) -> list[list[Segment]]:
        """Return a conversation behind others: its own answers are the targets."""
        talk = self.task.segments(_behind(shots, example), self.facts, self._tokenizer)
        shown = self.task.segments(_behind(shots, example, alone=True), self.facts, self._tokenizer)
        if len(talk) > 1:  # the template needs a row for each answer
            return talk[len(shown) :]
        size = len(shown[0])
        return [[*(replace(each, target=False) for each in talk[0][:size]), *talk[0][size:]]]

    def text_of(self, row: Encoded) -> str:
        """Return the text of a row's targets."""
        return row.text(self._tokenizer)

    def nats(self, rows: Sequence[Encoded]) -> np.ndarray:
        """Return float64 (rows, 2): the nats of each row's targets, and their number."""
        packed = self._model.config._attn_implementation == packing.ATTENTION or packing.use(self._model) is None
        with products.exactly(self._model):
            return targets.nats(self._model, rows, pad_id=self.encoder.end_id, packed=packed)

    def close(self) -> None:
        """Give the memory back. The writer cannot be used after this."""
        on_gpu = self._model.device.type == "cuda"
        del self._model
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def _named(number: int, numbers: Sequence[int]) -> str:
    """Name a row as the user counts; a single one needs no number."""
    return "what is asked" if set(numbers) == {1} else f"row {number:,}"


def _less(shots: Sequence[Example]) -> str:
    fewer = f", show fewer or shorter examples than these {len(shots)}," if shots else ""
    return f"Shorten it{fewer} or keep less for the answer with `max_new_tokens`"


def _behind(shots: Sequence[Example], example: Example, *, alone: bool = False) -> Example:
    """Return a conversation with `shots` between its system message and its first turn, or without its turns."""
    messages = example["messages"]
    opening = [turn for turn in messages[:1] if turn["role"] == "system"]
    before = [turn for shot in shots for turn in shot["messages"] if turn["role"] != "system"]
    return {"messages": [*opening, *before, *([] if alone else messages[len(opening) :])]}


@dataclass(frozen=True)
class _Stops:
    """Texts at which an answer ends: those `asked` for anywhere, `usual` ones once it has begun.

    A model that was not tuned for a task often begins with a line end, at which nothing has been answered yet.
    """

    asked: tuple[str, ...]
    usual: tuple[str, ...]

    @property
    def every(self) -> tuple[str, ...]:
        return self.asked + self.usual

    @property
    def longest(self) -> int:
        """Characters of the longest of them."""
        return max(map(len, self.every), default=0)

    def place(self, text: str, begun: bool = False) -> int | None:
        """Return where the first of them stands in `text`; `begun`: more than white space stands before it already."""
        beginning = 0 if begun else len(text) - len(text.lstrip())
        places = [*map(text.find, self.asked), *(text.find(each, beginning) for each in self.usual)]
        return min((each for each in places if each >= 0), default=None)


class _Stream:
    """Hands text on as it becomes sure: no half characters, and nothing that may be the beginning of a stop text."""

    def __init__(self, writer: Writer, stops: _Stops, say: Callable[[str], None]) -> None:
        self._writer, self._stops, self._say = writer, stops, say
        self._tokens: list[int] = []
        self._said = ""

    def take(self, row: int, token: int) -> None:
        self._tokens.append(token)
        text = self._writer._text(self._tokens, self._stops)
        held = max(
            (size for each in self._stops.every for size in range(1, len(each)) if text.endswith(each[:size])),
            default=0,
        )
        self._hand_on(text[: len(text) - held].rstrip("\ufffd"))

    def end(self, tokens: Sequence[int], ended: str) -> None:
        self._hand_on(self._writer._text(tokens, self._stops, ended))

    def _hand_on(self, text: str) -> None:
        if len(text) > len(self._said) and text.startswith(self._said):
            self._say(text[len(self._said) :])
            self._said = text


def task_of(folder: Path) -> dict[str, Any] | None:
    """Return what stands beside a tuned model: {"task", "facts", "roles"}; None for a model that was tuned for none."""
    told: dict[str, Any] | None = files.read_json(folder / TASK_FILE)
    return told if told is not None and told.get("task") in TASKS else None
