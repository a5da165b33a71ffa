"""Texts as words, for scores that compare words: ROUGE, exact match, token F1. Scripts without spaces go by character.

SQuAD's rules (Rajpurkar et al. 2016) for answers, ROUGE's (Lin 2004) for summaries; for Chinese and the like those of
CMRC 2018 (Cui et al. 2019): each character counts as a word.
"""

from __future__ import annotations

import re
import string
import unicodedata

# Han, kana, Thai, Lao, Myanmar, Khmer: written without spaces between words. Korean has spaces.
_ALONE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_SPACELESS = re.compile(f"[{_ALONE}]")
# A character of such a script, with what is written above or below it; or letters and digits of others, joined.
_WORD = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])[^\W_])+")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def spaceless(text: str) -> bool:
    """Say whether at least half of the letters of `text` are of a script without spaces, such as Chinese."""
    letters = sum(map(str.isalpha, text))
    return letters > 0 and 2 * len(_SPACELESS.findall(text)) >= letters


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case, without punctuation: runs of letters and digits."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def normalise(answer: str) -> str:
    """Return `answer` as SQuAD compares it: lower case, no punctuation, no English article, single spaces.

    Beyond SQuAD's own rules, punctuation outside ASCII (，。「」…) goes too, and spaces beside Chinese characters.
    """
    kept = "".join(mark for mark in unicodedata.normalize("NFC", answer).lower() if not _is_punctuation(mark))
    spaced = " ".join(_ARTICLE.sub(" ", kept).split())
    return re.sub(rf"(?<=[{_ALONE}]) | (?=[{_ALONE}])", "", spaced)


def answer_tokens(answer: str) -> list[str]:
    """Return the tokens of token F1: words between spaces after `normalise`; Chinese by character."""
    return re.findall(rf"[{_ALONE}]|[^\s{_ALONE}]+", normalise(answer))


def _is_punctuation(mark: str) -> bool:
    return mark in string.punctuation or unicodedata.category(mark).startswith("P")
