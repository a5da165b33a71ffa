"""Two texts as one input: joined by a blank line, which then stands nowhere else but between them.

The training table, a prediction and an evaluation join their pairs here, so that the model sees all of them alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Names of columns that hold a text, the likeliest first.
TEXT_NAMES = (
    *("text", "sentence", "review", "comment", "content", "message", "question", "headline", "title", "body", "tweet"),
    *("post", "document", "utterance", "query", "sms", "description", "input", "prompt"),
    *("文本", "内容", "评论", "句子", "标题", "正文"),
)
# Names of columns that are the two texts of a pair.
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"),
    ("question", "sentence"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("s1", "s2"), ("query", "passage"),
    ("claim", "evidence"), ("句子1", "句子2"), ("文本1", "文本2"), ("问题1", "问题2"), ("前提", "假设"),
)  # fmt: skip

SEPARATOR = "\n\n"
_BLANK = re.compile(r"\n\s*\n")


def join(first: str, second: str) -> str:
    """Return both texts as one; blank lines within the first become plain line ends."""
    return _BLANK.sub("\n", first).strip("\n") + SEPARATOR + second.strip("\n")


def split(text: str) -> tuple[str, str] | None:
    """Return the two texts that `join` has made one; None where no blank line stands in `text`."""
    first, separator, second = text.partition(SEPARATOR)
    return (first, second) if separator else None


def shortened(text: str, most: int) -> str:
    """Return at most `most` characters of a pair, half as many of each text; of what is no pair, the first ones."""
    both = split(text)
    return text[:most] if both is None or len(text) <= most else join(*(each[: most // 2] for each in both))


def columns_of(asked: Any) -> tuple[str, str] | None:
    """Return what the two texts of each row of `asked` are called; None where a row is one text.

    A table has two columns of PAIRS, and none called text; an object has these, or two texts and no more; a list holds
    objects or twos.
    """
    columns = getattr(asked, "columns", getattr(asked, "column_names", None))
    if columns is not None and not callable(columns):
        return _named([str(each) for each in columns])
    first = next(iter(asked), None) if isinstance(asked, list | tuple) else asked
    if isinstance(first, Mapping):
        names = [str(each) for each in first]
        # As those of a row with its label, or of a turn of a conversation, are called.
        others = {"text", "label", "role", "content"} & set(names)
        two = len(names) == 2 and not others and all(isinstance(each, str) for each in first.values())
        return _named(names) or ((names[0], names[1]) if two else None)
    if isinstance(first, list | tuple) and len(first) == 2 and all(isinstance(each, str) for each in first):
        return "text", "text_pair"
    return None


def plain_name(name: str) -> str:
    """Return a column's name in small letters, its words joined by _: "Sentence (FR)", "sentenceFR" are sentence_fr."""
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).strip("_").lower()


def _named(names: list[str]) -> tuple[str, str] | None:
    known = {plain_name(name): name for name in names}
    pairs = [("text", "text_pair")] if "text" in known else PAIRS
    return next(((known[one], known[other]) for one, other in pairs if one in known and other in known), None)
