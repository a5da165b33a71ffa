"""Scores of written texts, offline: perplexity and bits a byte, ROUGE, chrF, BLEU, exact match and token F1.

ROUGE comes from rouge-score and chrF and BLEU from sacrebleu, so that the numbers are those of other papers. Both are
in the extra `gptx-nb[tasks]`: `require` says what to install before a run that will need them begins.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from gptx_nb.engine.scores.intervals import Score, mean, score
from gptx_nb.engine.scores.words import answer_tokens, normalise, spaceless, words
from gptx_nb.errors import UsageError

_PACKAGES = {"rouge_score": "rouge-score", "sacrebleu": "sacrebleu"}


def require(*kinds: Literal["ROUGE", "chrF", "BLEU"]) -> None:
    """Raise UsageError, saying what to install, where a package for one of `kinds` of scores is missing."""
    needed = {"rouge_score" if kind == "ROUGE" else "sacrebleu" for kind in kinds}
    missing = sorted(_PACKAGES[name] for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        raise UsageError(
            f"{' and '.join(kinds)} need{'s' * (len(kinds) == 1)} {' and '.join(missing)}, which {_is(missing)} not "
            "installed here. Type `%pip install 'gptx-nb[tasks]'` in a cell, and run this one again"
        )


def require_for(scores: Iterable[str]) -> None:
    """Do so for those of `scores` (rougeL, chrf, bleu, …) that need a package."""
    kinds: dict[str, Literal["ROUGE", "chrF", "BLEU"]] = {"rougeL": "ROUGE", "chrf": "chrF", "bleu": "BLEU"}
    if needed := [kinds[each] for each in scores if each in kinds]:
        require(*needed)


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


# ---- how likely a text is -------------------------------------------------------------------------------------------


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> Score:
    """Return e to the mean of `nats` a token, from the sum of each text. It depends on the tokenizer."""
    return score(
        np.stack([np.asarray(nats, dtype=float), np.asarray(tokens, dtype=float)], axis=1),
        lambda sums: np.exp(_over(sums[..., 0], sums[..., 1])),
        "perplexity a token",
        more_is_better=False,
    )


def bits_per_byte(nats: Sequence[float], texts: Sequence[str]) -> Score:
    """Return the bits that the model needs for a byte of `texts` in UTF-8; models of any tokenizer can be compared."""
    sizes = [len(text.encode("utf-8")) for text in texts]
    return score(
        np.stack([np.asarray(nats, dtype=float) / math.log(2), np.asarray(sizes, dtype=float)], axis=1),
        lambda sums: _over(sums[..., 0], sums[..., 1]),
        "bits a byte of UTF-8",
        best=0.0,
        more_is_better=False,
    )


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    ratio: np.ndarray = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    return ratio


# ---- summaries ------------------------------------------------------------------------------------------------------


class _Words:
    """Our words for rouge-score, whose own keep a-z and 0-9 only and so lose every other script.

    English words of more than three letters lose their endings (Porter 1980), as with its `use_stemmer=True`.
    """

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._stem = DefaultTokenizer(use_stemmer=True).tokenize
        self._stems: dict[str, str] = {}

    def tokenize(self, text: str) -> list[str]:
        return [self._stemmed(word) if word.isascii() else word for word in words(text)]

    def _stemmed(self, word: str) -> str:
        if word not in self._stems:
            self._stems[word] = "".join(self._stem(word))
        return self._stems[word]


def rouge(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, Score]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L (F-measure, 0 to 1, mean over answers); of several references the best."""
    require("ROUGE")
    from rouge_score.rouge_scorer import RougeScorer

    _check(references, answers)
    kinds = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    scorer = RougeScorer(list(kinds), tokenizer=_Words())
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for accepted, answer in zip(references, answers, strict=True):
        for kind, each in scorer.score_multi(list(accepted), answer).items():
            found[kind].append(float(each.fmeasure))
    how = "F-measure, rouge-score, Porter stemmer; Chinese by character"
    return {kind: mean(values, f"{kinds[kind]} {how}") for kind, values in found.items()}


# ---- translations ---------------------------------------------------------------------------------------------------


def chrf(references: Sequence[Sequence[str]], answers: Sequence[str]) -> Score:
    """Return chrF2 (Popović 2015) of all answers together, 0 to 100, as sacrebleu's `corpus_score`."""
    require("chrF")
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    counts = _sentence_statistics(metric, references, answers)
    return score(counts, _chrf, f"chrF2, sacrebleu {metric.get_signature()}", best=100.0)


def bleu(references: Sequence[Sequence[str]], answers: Sequence[str], chinese: bool | None = None) -> Score:
    """Return BLEU (Papineni et al. 2002) of all answers together, 0 to 100, as sacrebleu's `corpus_score`.

    Words are those of mteval-v13a; where the answers are Chinese (None: where the references are), those of `zh`.
    """
    require("BLEU")
    from sacrebleu.metrics.bleu import BLEU

    if chinese is None:
        chinese = spaceless("".join(text for accepted in references for text in accepted))
    metric = BLEU(tokenize="zh" if chinese else "13a", force=True)
    counts = _sentence_statistics(metric, references, answers)
    return score(counts, _bleu, f"BLEU, sacrebleu {metric.get_signature()}", best=100.0)


def _sentence_statistics(metric: Any, references: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
    """Return sacrebleu's n-gram counts of each answer, of which its score is a function of the sums."""
    _check(references, answers)
    if not answers:
        return np.zeros((0, 1))
    most = max(map(len, references))
    streams = [[texts[at] if at < len(texts) else None for texts in references] for at in range(most)]
    # Only the corpus score is public, and it draws in Python, sentence by sentence: thousands of times slower.
    return np.asarray(metric._extract_corpus_statistics(list(answers), streams), dtype=np.float64)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """Return chrF of `sums` (…, 3 x orders): n-grams of the answers, of the references, and in both, by order."""
    given, true, both = (sums[..., at::3] for at in range(3))
    usable = (given > 0) & (true > 0)
    orders = usable.sum(axis=-1)
    precision = _over(np.where(usable, _over(both, given), 0).sum(axis=-1), orders)
    recall = _over(np.where(usable, _over(both, true), 0).sum(axis=-1), orders)
    return np.asarray(np.nan_to_num(100 * _over(5 * precision * recall, 4 * precision + recall)))


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Return BLEU of `sums` (…, 2 + 2 x 4): lengths of answers and references, n-grams that match, n-grams in all.

    The first order without a match counts as half a match, the next as a quarter (NIST's smoothing).
    """
    length, reference, right, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    halvings = np.cumsum((right == 0) & (total > 0), axis=-1)
    smoothed = np.where(right > 0, right, 0.5**halvings)
    with np.errstate(divide="ignore"):
        logs = np.where(total > 0, np.log(_over(smoothed, total)), -np.inf)
        penalty = np.minimum(0.0, 1 - np.where(length > 0, _over(reference, length), np.inf))
    value = 100 * np.exp(logs.mean(axis=-1) + penalty)
    return np.where(right.sum(axis=-1) > 0, value, 0.0)


# ---- short answers --------------------------------------------------------------------------------------------------


def exact_match(references: Sequence[Sequence[str]], answers: Sequence[str]) -> Score:
    """Return the share of answers that are one of their references after SQuAD's normalisation."""
    _check(references, answers)
    hits = [
        normalise(answer) in {normalise(each) for each in accepted}
        for accepted, answer in zip(references, answers, strict=True)
    ]
    return mean(hits, "exact match, SQuAD normalisation")


def token_f1(references: Sequence[Sequence[str]], answers: Sequence[str]) -> Score:
    """Return the mean F1 of the tokens that answer and reference share, of several references the best (SQuAD)."""
    _check(references, answers)
    found = [
        max(_overlap(answer_tokens(each), answer_tokens(answer)) for each in accepted)
        for accepted, answer in zip(references, answers, strict=True)
    ]
    return mean(found, "token F1, SQuAD normalisation; Chinese by character")


def _overlap(reference: list[str], answer: list[str]) -> float:
    if not reference or not answer:  # nothing is right only where nothing was to be said (SQuAD 2.0)
        return float(reference == answer)
    shared = sum((Counter(reference) & Counter(answer)).values())
    return 2 * shared / (len(reference) + len(answer))


def _check(references: Sequence[Sequence[str]], answers: Iterable[str]) -> None:
    """Raise ValueError for references that do not fit the answers: a caller's mistake, not a user's."""
    if len(references) != len(list(answers)):
        raise ValueError(f"{len(references)} lists of references for {len(list(answers))} answers")
    if not all(references) or any(isinstance(each, str) for each in references):
        raise ValueError("each answer needs a list with at least one reference")
