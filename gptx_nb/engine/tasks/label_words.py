"""A GPT knows what its labels mean: let a classifier begin at the words of its labels instead of at random.

A text is put into a prompt that ends where a label would be written ("Review: Great fun.\\nSentiment:"), and the head's
rows begin as the rows of the output layer for the labels' words (PET, Schick & Schütze 2021, arXiv:2001.07676; LM-BFF,
Gao et al. 2021, arXiv:2012.15723). How likely a word is whatever the text says is taken out with texts whose labels
nobody looks at (contextual calibration, Zhao et al. 2021, arXiv:2102.09690; here linear, so that it needs no bias). A
head so made is a plain one, and training goes on from it.

Knows neither recipe nor run. What it returns is a head (labels, width) and the prompt that belongs to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb import files
from gptx_nb.engine import batches, packing, streams
from gptx_nb.engine.tasks import reading, text_classification
from gptx_nb.engine.tasks.encoding import Encoder
from gptx_nb.engine.tasks.reading import Reading, Row, TokenRows
from gptx_nb.engine.tasks.templates import Segment
from gptx_nb.errors import DataError, ModelError

PROMPT_FILE = "gptx_prompt.json"  # beside a classifier that reads its texts within a prompt
SLOT = "{text}"
# How a prompt asks, by a word in the name of the labels' column.
_ASKS = {
    "sentiment": "Sentiment",
    "polarity": "Sentiment",
    "topic": "Topic",
    "intent": "Intent",
    "emotion": "Emotion",
    "feeling": "Emotion",
    "genre": "Genre",
    "language": "Language",
    "category": "Category",
}
# What a text is called, by a word in the name of its column.
_CALLS = {
    "review": "Review",
    "comment": "Comment",
    "question": "Question",
    "query": "Question",
    "headline": "Headline",
    "title": "Title",
    "tweet": "Tweet",
    "message": "Message",
    "sms": "Message",
    "email": "Email",
    "article": "Article",
    "sentence": "Sentence",
}
_SENTIMENTS = {"positive", "negative", "neutral", "mixed"}
_EMOTIONS = {"anger", "joy", "sadness", "fear", "surprise", "disgust", "love", "neutral"}
_SPAM = {"spam", "normal", "not spam"}
_SPELLED_OUT = {"pos": "positive", "neg": "negative", "neu": "neutral", "ham": "normal"}
_CHINESE = re.compile(r"[\u3400-\u9fff]")
# Texts that say nothing: what a model answers to them is its bias (Zhao et al. 2021).
SHARPNESS = 2.0  # spread of the logits that are probabilities: so sure was smollm2-135m rightly on SST-2
SAY_NOTHING = ("N/A", "...", "-", "text", "None", "[MASK]", "something", "It is what it is.")
STEADY = 16  # what the texts that say nothing count as, in texts, beside the texts at hand


@dataclass(frozen=True)
class Wording:
    """A prompt in which `{text}` stands for the text, and what would follow it for each label, spaces included.

    `shown` stands before it: examples with their answers.
    """

    prompt: str
    words: tuple[str, ...]
    shown: str = ""

    def segments(self, text: str) -> list[Segment]:
        """Return the prompt around `text`. Spaces before it go with it, where tokens have them; its end may be cut."""
        before, _, after = self.prompt.partition(SLOT)
        kept = before.rstrip(" ")
        return [
            Segment(self.shown + kept),
            Segment(before[len(kept) :] + text.strip(), cut="end"),
            Segment(after.rstrip(" ")),
        ]

    def after(self, texts: Sequence[str], labels: Sequence[int]) -> Wording:
        """Return the wording behind examples with their answers."""
        pairs = zip(texts, labels, strict=True)
        shown = [self.prompt.replace(SLOT, text.strip()) + self.words[label] for text, label in pairs]
        return replace(self, shown="".join(f"{each}\n\n" for each in shown))

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return what `beside` reads again."""
        return {"prompt": self.prompt, "label_words": dict(zip(labels, self.words, strict=True))}


def wording(
    labels: Sequence[str],
    *,
    label_column: str = "",
    text_column: str = "",
    prompt: str | None = None,
    words: Mapping[str, str] | None = None,
    texts: Sequence[str] = (),
    pair: bool = False,
) -> Wording | str:
    """Return prompt and words for `labels`, or why there are none: they are numbers or codes, or two read alike.

    `prompt` and `words` are the user's own; the rest is found from the columns' names, the labels, and whether most of
    `texts` are questions. `pair`: a text is two, one after the other, and labels say how they stand to each other.
    """
    given = words or {}
    chosen = [given.get(label) or spelled(label) for label in labels]
    if meaningless := [label for label, word in zip(labels, chosen, strict=True) if not _is_word(word)]:
        return f"the label {meaningless[0]!r} is no word that a model could know"
    if len(set(chosen)) < len(chosen):
        twice = next(word for word in chosen if chosen.count(word) > 1)
        return f"two labels read {twice!r}"
    chinese = sum(bool(_CHINESE.search(word)) for word in chosen) * 2 > len(chosen)
    if prompt is None and pair:
        asked = next((ask for word, ask in _ASKS.items() if word in label_column.lower()), "Relation")
        prompt = f"{SLOT}\n{'关系' if chinese else asked}:"
    prompt = prompt or (_chinese_prompt(chosen) if chinese else _prompt(chosen, label_column, text_column, texts))
    return Wording(prompt, tuple(word if _CHINESE.match(word) else f" {word}" for word in chosen))


def spelled(label: str) -> str:
    """Return a label as it would be written after a colon: `Sci/Tech` -> `sci/tech`, `card_arrival` -> `card arrival`.

    Abbreviations in capitals stay.
    """
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label.strip())
    plain = re.sub(r"[\s_\-.]+", " ", plain).strip()
    if plain.isupper() and len(plain) <= 4 and plain.lower() not in _SPELLED_OUT:
        return plain
    return _SPELLED_OUT.get(plain.lower(), plain.lower())


def _is_word(word: str) -> bool:
    return bool(re.search(r"[^\W\d_]{2}", word) or _CHINESE.search(word))


def _prompt(words: Sequence[str], label_column: str, text_column: str, texts: Sequence[str]) -> str:
    known = {word.lower() for word in words}
    asked = next((ask for word, ask in _ASKS.items() if word in label_column.lower()), None)
    called = next((call for word, call in _CALLS.items() if word in text_column.lower()), None)
    if known <= _SENTIMENTS:
        asked, called = "Sentiment", called or "Review"
    elif known <= _EMOTIONS:
        asked = "Emotion"
    elif known <= _SPAM:
        asked, called = "Kind of message", called or "Message"
    if 2 * sum(text.rstrip().endswith("?") for text in texts) > len(texts):
        intents = 2 * sum(" " in word for word in words) > len(words)  # `card arrival`, not `location`
        asked, called = asked or ("Intent" if intents else "Answer type"), called or "Question"
    return f"{f'{called}: ' if called else ''}{SLOT}\n{asked or 'Category'}:"


def _chinese_prompt(words: Sequence[str]) -> str:
    feeling = any(sign in "".join(words) for sign in ("正面", "负面", "积极", "消极", "好评", "差评"))
    return f"{SLOT}\n{'情感' if feeling else '类别'}:"


def beside(folder: Path) -> Wording | None:
    """Return the wording that a model's folder tells of, if it does. Raises ModelError for a file that is harmed."""
    try:
        told = files.read_json(folder / PROMPT_FILE)
        if told is None:
            return None
        prompt, words = str(told["prompt"]), tuple(str(word) for word in told["label_words"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder.name}/{PROMPT_FILE} cannot be read: {type(error).__name__}") from error
    if prompt.count(SLOT) != 1:
        raise ModelError(f"{folder.name}/{PROMPT_FILE} holds a prompt without {SLOT}")
    return Wording(prompt, words)


def encode(
    tokenizer: PreTrainedTokenizerBase, asked: Wording | None, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Return each text's tokens within its prompt, if there is one, at most `max_length`, and which texts were cut.

    What is too long loses the end of its text, never the question. Text never becomes a special token. Raises DataError
    where the prompt alone is too long.
    """
    if asked is None:
        return text_classification.encode(tokenizer, list(texts), max_length)
    encoder = Encoder(tokenizer, max_length)
    rows, cut_at = [], list[int]()
    for at, text in enumerate(texts):
        found = encoder.prompt(asked.segments(text))
        if found is None:
            raise DataError(
                f"prompt: without a text it has more than {max_length:,} tokens already. Type a shorter one, show "
                "fewer or shorter examples before it, or set a larger max_length"
            )
        rows.append(found.ids)
        cut_at += [at] if found.cut else []
    return rows, cut_at


def read(tokenizer: PreTrainedTokenizerBase, asked: Wording | None, texts: Sequence[str], how: Reading) -> reading.Rows:
    """Return each text's tokens as `how` has them read, within its prompt if there is one.

    The prompt stands around each window of a long text, and around both texts of a pair. Raises DataError where it is
    too long by itself.
    """
    if asked is None:
        return reading.encode(tokenizer, texts, how)
    before, after = _around(tokenizer, asked)
    room = how.max_length - len(before) - len(after)
    if room < 1 or (how.way == "cut" and not how.pair):
        rows, cut_at = TokenRows(), list[int]()
        for at, text in enumerate(texts):
            (row,), shortened = encode(tokenizer, asked, [text], how.max_length)
            rows.append(row)
            cut_at += [at] if shortened else []
        return reading.Rows(rows, cut_at, int(rows.lengths.sum()))
    inner = replace(how, max_length=room)
    found = TokenRows()
    cut_at, tokens = list[int](), 0
    for at, text in enumerate(texts):
        part = reading.readable(text.strip(), inner, room)
        longer = len(part) < len(text.strip())
        (whole,), _ = encode(tokenizer, asked, [part], len(part) * 8 + 10**6)
        tokens += round(len(whole) * len(text.strip()) / max(1, len(part)))
        if len(whole) <= how.max_length and not longer:
            found.append(whole)
            continue
        ids = whole[len(before) : len(whole) - _common(whole[::-1], after[::-1])]
        spaced = asked.segments(part)[1].text
        parts, complete = reading.parts(tokenizer, spaced, ids, longer, room, inner)
        cut_at += [] if complete else [at]
        found.append(reading.in_frame(before, parts, after))
    return reading.Rows(found, cut_at, tokens)


def _around(tokenizer: PreTrainedTokenizerBase, asked: Wording) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt before and behind a text: what two texts of a letter have in common."""
    (one, other), _ = encode(tokenizer, asked, ["a", "b"], 10**6)
    before = one[: _common(one, other)]
    behind = _common(one[len(before) :][::-1], other[len(before) :][::-1])
    return before, one[len(one) - behind :]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return with how many tokens both begin."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@torch.no_grad()
def states(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    pad_id: int,
    dtype: torch.dtype = torch.float32,
    token_budget: int = 2048,
) -> torch.Tensor:
    """Return the last hidden state of each row's last token, (rows, width) float32 on the CPU, as the head sees it.

    Of a text in several windows it is the mean of theirs, as a head without bias gives the mean of their logits for it.
    `model` is a classifier or a language model, and set up as before when this returns. Matrix products are in `dtype`.
    """
    device = next(model.parameters()).device
    packed = packing.why_not(model) is None
    before = model.config._attn_implementation
    if packed:
        packing.use(model)
    was_training = model.training
    model.eval()
    config: Any = model.config
    windows = reading.flat(rows)
    found = torch.zeros(len(windows), config.hidden_size)

    def work(groups: Sequence[list[int]]) -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            for group in groups:
                mine = [windows[index] for index in group]
                tensors = packing.pack(mine, pad_id) if packed else batches.pad(mine, pad_id)
                tensors = {name: each.to(device) for name, each in tensors.items()}
                if packed:
                    hidden = packing.states_at(model.base_model, tensors, "last")
                else:
                    last = tensors["attention_mask"].sum(dim=1) - 1
                    every = model.base_model(**tensors, use_cache=False).last_hidden_state
                    hidden = every[torch.arange(len(group), device=device), last]
                found[group] = hidden.float().cpu()

    number = streams.number_for(device)
    groups = batches.by_length(windows, token_budget=token_budget, packed=packed, streams=number)
    streams.each(work, [groups[stream::number] for stream in range(min(number, len(groups)))])
    model.train(was_training)
    if packed:
        model.set_attn_implementation(before)
    return reading.pooled(found, reading.places(rows))


def word_rows(output: torch.Tensor, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> torch.Tensor:
    """Return (words, width): the rows of the output layer (vocabulary, width) for each word.

    Of a word of several tokens the first ones count most, as they are what follows the prompt: weights 1, 1/2, 1/4, ...
    Words that begin alike are told apart by the rest.
    """
    found = []
    encoder = Encoder(tokenizer, 8)
    for word in words:
        ids = encoder.continued(word)
        weights = torch.tensor([0.5**place for place in range(len(ids))])
        found.append((output[ids].float().cpu() * (weights / weights.sum())[:, None]).sum(dim=0))
    return torch.stack(found)


def head(rows: torch.Tensor, seen: torch.Tensor, silent: torch.Tensor) -> torch.Tensor:
    """Return a head (labels, width) from the words' rows and the states (texts, width) of texts without labels.

    `silent` are the states of texts that say nothing; the fewer texts there are, the more these count. What all states
    have in common says nothing of a text: with the mean state taken out of what the rows see, every label is equally
    likely on average. A head has no bias, so that is folded into its rows: each loses its part along the mean state.
    Rows are centred, and scaled so that logits spread by about 1.
    """
    weights = [len(seen), STEADY if len(silent) else 0]
    parts = [each.mean(dim=0) * weight for each, weight in zip((seen, silent), weights, strict=True) if len(each)]
    mean = torch.stack(parts).sum(dim=0) / sum(weights)
    centred = rows - rows.mean(dim=0)
    centred = centred - (centred @ mean)[:, None] * mean / mean.dot(mean).clamp_min(1e-12)
    every = torch.cat([seen, silent])
    return centred / (every @ centred.T).std().clamp_min(1e-6)


def with_odds(head: torch.Tensor, seen: torch.Tensor, odds: torch.Tensor) -> torch.Tensor:
    """Return `head` (labels, width) with the log odds (labels,) of each label added to what it says of a text.

    For labels that stand by themselves, each as likely as it is. As there is no bias, they are folded into the rows
    along the mean of the states `seen` (texts, width), which every state has a like part of.
    """
    mean = seen.mean(dim=0)
    return head + odds[:, None] * mean / mean.dot(mean).clamp_min(1e-12)
