"""From texts to what pretraining reads: cleaned, without duplicates, split, tokenised into shards. Trains no model.

Two passes, neither of which holds more than a few documents in memory, or pieces of long ones. The first reads the
sources, cleans, drops what was seen before and decides what is held back; what is left goes to a file on disk. So the
second, which makes tokens on every core, knows how much there is, and a tokenizer is trained on a fair sample of it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import save_file

from gptx_nb import files, pretraining_words
from gptx_nb.engine import shards, texts
from gptx_nb.engine.duplicates import MOST_NEAR, Letters, Seen
from gptx_nb.engine.shards import Shards
from gptx_nb.errors import DataError, ModelError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.sources import Source

END_OF_TEXT = "<|endoftext|>"
SHORTEST = 16  # characters; a shorter document teaches nothing about texts
TOKENIZER_BYTES = 100_000_000  # of text that a tokenizer is trained on
CHECKED = 1_000_000  # bytes of text on which a tokenizer is tried out before it makes tokens of all
TOKENIZER_PIECE = 20_000  # characters of a document that it sees at once: no book rules the sample
BATCH_BYTES = 2_000_000  # of text that is tokenised at once
PIECE = 100_000  # characters; longer documents are tokenised in pieces, so that every core has some
WITHOUT_SPACES = 10  # times PIECE are waited for a place to cut that changes no token
SPOOL = "cleaned"
EMBEDDINGS = "embeddings.safetensors"
EVERY = 1.0  # seconds between words on how far it is

Say = Callable[[str], None]
MOST_SHORT = 100  # beginnings of documents that are passed over in search of longer ones
_HEAD = struct.Struct("<Q?")  # in the spool, before each piece of a text: its bytes, whether it begins a document


@dataclass(frozen=True)
class Corpus:
    """What `prepare` has left in `folder`. `report` is the content of report.json."""

    folder: Path
    train: Shards
    validation: Shards
    tokenizer: Any
    report: dict[str, Any]

    def beginnings(self, count: int, characters: int) -> list[str]:
        """Return how `count` held-back documents begin, cut at a word."""
        found: list[str] = []
        short: list[str] = []  # titles and lines of verse, where there is nothing longer
        place = 0
        while len(found) < count and len(short) < MOST_SHORT and place < self.validation.tokens - 1:
            row = self.validation.read(place, min(200, self.validation.tokens - place)).tolist()
            rest = row[1:]
            text = self.tokenizer.decode(rest[: rest.index(row[0])] if row[0] in rest else rest).split("\n")[0]
            if len(text) > 20:
                found.append(text[:characters].rsplit(" ", 1)[0] if len(text) > characters else text)
            elif text.strip():
                short.append(text)
            place += 200
            while place < self.validation.tokens - 1 and self.validation.read(place, 1)[0] != self.validation.end:
                place += 1
        return [*found, *short][:count]


def load(folder: Path) -> Corpus:
    """Open what `prepare` has left in `folder`."""
    from transformers import AutoTokenizer

    report: dict[str, Any] | None = files.read_json(folder / "report.json")
    if report is None:
        raise DataError(f"{folder} holds no prepared texts. Run the cell again under another name")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return Corpus(folder, Shards(folder / "train"), Shards(folder / "validation"), tokenizer, report)


def prepare(
    recipe: PretrainRecipe,
    sources: dict[str, Source | None],
    run_folder: Path,
    folder: Path,
    given: Any | None,
    say: Say,
) -> None:
    """Make `folder` from the texts of `sources`; it is there whole or not at all.

    `given` is the tokenizer of a base model, or None: one is trained. `say` is told now and then how far it is; what it
    raises ends the preparation. Raises DataError: no text, too little, not UTF-8, too little room on the disk.
    """
    for left in folder.parent.glob(f".{folder.name}.*"):  # of an attempt that was killed
        shutil.rmtree(left, ignore_errors=True)
    train = sources["train"]
    assert train is not None
    require_room(folder.parent, texts.size_of(train, run_folder, "data"), "the cleaned texts")
    if recipe.embeddings == "cooccurrence":
        require_memory(recipe.vocabulary if given is None else len(given), given is not None)

    def fill(beside: Path) -> None:
        spools = {part: beside / f"{SPOOL}-{part}" for part in ("train", "validation")}
        report = _clean(recipe, sources, run_folder, spools, say)
        say("training a tokenizer") if given is None else None
        size = report["train"]["bytes"]
        tokenizer = given or train_tokenizer(_sample(spools["train"], size, TOKENIZER_BYTES), recipe.vocabulary)
        end = end_of(tokenizer)
        sample = list(_sample(spools["train"], size, CHECKED))
        if given is not None:
            require_lossless(given, sample, "tokenizer" if recipe.base is None else "from")
        if recipe.base is None:
            tokenizer.model_max_length = recipe.context
        require_room(
            folder.parent,
            round(report["bytes"] * bytes_of_tokens(tokenizer, sample)),
            "the token shards",
        )
        for part, spool in spools.items():
            documents = _encoded(tokenizer, spool, report[part]["bytes"], say)
            shards.write(beside / part, documents, end=end, vocabulary=len(tokenizer))
            report[part]["tokens"] = Shards(beside / part).tokens
            spool.unlink()
        tokenizer.save_pretrained(beside / "tokenizer")
        if recipe.embeddings == "cooccurrence":
            vectors = cooccurrence(Shards(beside / "train"), recipe.shape()[2], say)
            save_file({"embeddings": np.ascontiguousarray(vectors)}, beside / EMBEDDINGS)
        kind = "as given" if given is not None else "byte-level BPE, trained on these texts"
        per_token = report["train"]["bytes"] / report["train"]["tokens"]
        report["tokenizer"] = f"{len(tokenizer):,} tokens, {kind}; {per_token:.2f} bytes a token"
        files.write_json(beside / "report.json", report)

    try:
        files.write_folder(folder, fill)
    except Exception as error:  # safetensors has an error class of its own
        if not files.disk_is_full(error):
            raise
        free = pretraining_words.size(shutil.disk_usage(folder.parent).free)
        raise DataError(
            f"data: the texts of {train.shown}, cleaned and as tokens, need more than the {free} that are free on the "
            f"disk of {folder.parent}. Free some, or set GPTX_HOME to a folder on another disk"
        ) from None


# ---- first pass -----------------------------------------------------------------------------------------------------


def _clean(
    recipe: PretrainRecipe, sources: dict[str, Source | None], run_folder: Path, spools: dict[str, Path], say: Say
) -> dict[str, Any]:
    """Write the documents that are kept to `spools`, and return the report."""
    seen = Seen(recipe.near_duplicates)
    dropped, cleaned = Counter[str](), Counter[str]()
    counts = {part: {"documents": 0, "bytes": 0} for part in spools}
    read, told = 0, time.monotonic()
    longest, longest_held = (0, 0), (0, 0)  # bytes of text, and where it begins in its spool
    own = sources["validation"]
    share = recipe.validation if own is None and isinstance(recipe.validation, float | int) else 0.0

    def watched(pieces: Iterator[str]) -> Iterator[str]:
        nonlocal read, told
        for piece in pieces:
            read += len(piece)
            if time.monotonic() - told > EVERY:
                told = time.monotonic()
                say(f"{sum(each['documents'] for each in counts.values()):,} documents, {read / 1e6:,.0f} MB read")
            yield piece

    with spools["train"].open("w+b") as train, spools["validation"].open("w+b") as validation:
        # What is held back first: what equals it is then not learnt from.
        for setting, source in (("validation", own), ("data", sources["train"])):
            if source is None:
                continue
            kept, equal = 0, -_duplicates(dropped)
            pieces = texts.documents(
                source,
                run_folder,
                setting=setting,
                column=recipe.text,
                document=recipe.document,
                subset=recipe.subset,
                left_out=dropped,
            )
            file = validation if setting == "validation" else train
            for document in texts.one_by_one(pieces):
                # A long one is known only once it is in the file, and what is not to stay is taken out again.
                found = _draft(file, watched(document), cleaned)
                if found.characters < SHORTEST:
                    dropped["empty or too short"] += not found.blank
                    _take_back(file, found)
                    continue
                if why := seen.why(found.letters):
                    dropped[why] += 1
                    _take_back(file, found)
                    continue
                part = "validation" if setting == "validation" or found.order < share else "train"
                if part == "train":
                    longest = max(longest, (found.bytes, found.start))
                elif file is train:
                    longest_held = max(longest_held, (found.bytes, validation.tell()))
                    file.seek(found.start)
                    shutil.copyfileobj(file, validation)
                    _take_back(file, found)
                counts[part]["documents"] += 1
                counts[part]["bytes"] += found.bytes
                kept += 1
            equal += _duplicates(dropped)
            if not kept and equal and own is not None:
                raise DataError(
                    f"{setting}: nothing is left of {source.shown}: its texts ({equal:,}) equal or nearly equal those "
                    f"held back, of {own.shown}. Give other texts for `validation`, or leave it out: a share of these "
                    "is held back"
                )
            if not kept:
                raise DataError(
                    f"{setting}: {source.shown} holds no text of {SHORTEST} characters or more. Name texts, as in "
                    "`data: books/`"
                )
    source = sources["train"]
    assert source is not None
    note = f"all of {own.shown}" if own else f"{share:.1%} of the documents, chosen by their content"
    documents = sum(each["documents"] for each in counts.values())
    none_left = not counts["train"]["documents"]
    if none_left:  # all of a few documents fell to the share
        spools["validation"].replace(spools["train"])
        counts["train"], counts["validation"] = counts["validation"], counts["train"]
        longest = longest_held
    if not counts["validation"]["documents"]:
        _hold_back_an_end(spools, counts, longest[1])
        held = f"a share of {share:g} holds {'all' if none_left else 'no whole one'} back"
        note = f"the end of the longest document, as {held if share else '`validation: 0` holds no whole one back'}"
    return {
        "source": source.shown,
        "documents": documents,
        "bytes": sum(each["bytes"] for each in counts.values()),
        "dropped": {why: count for why, count in dropped.items() if count},
        "cleaned": dict(cleaned),
        **counts,
        "validation_note": note,
        "warnings": []
        if seen.complete
        else [
            f"documents that nearly equal another one were looked for among the first {MOST_NEAR:,} only: to know more "
            "takes more than a gigabyte of memory"
        ],
    }


def _duplicates(dropped: Counter[str]) -> int:
    return dropped["duplicates"] + dropped["near duplicates"]


@dataclass(frozen=True)
class _Draft:
    """A document that stands at the end of a spool, from byte `start` on, and what decides whether it stays."""

    start: int
    characters: int
    bytes: int
    blank: bool  # nothing was there before it was cleaned
    letters: Letters
    order: float  # from 0 to 1, by its content alone: company and place in the corpus do not matter


def _draft(file: IO[bytes], raw: Iterator[str], cleaned: Counter[str]) -> _Draft:
    start, characters, size, blank = file.tell(), 0, 0, True
    letters = Letters()
    content = hashlib.blake2b(digest_size=8, person=b"gptx_nb split")

    def looked_at() -> Iterator[str]:
        nonlocal blank
        for piece in raw:
            blank = blank and not piece.strip()
            yield piece

    for text in texts.clean(looked_at(), cleaned):
        content.update(text.encode("utf-8"))
        letters.add(text)
        size += _put(file, not characters, text)
        characters += len(text)
    return _Draft(start, characters, size, blank, letters, int.from_bytes(content.digest(), "big") / 2**64)


def _take_back(file: IO[bytes], draft: _Draft) -> None:
    file.seek(draft.start)
    file.truncate()


def _hold_back_an_end(spools: dict[str, Path], counts: dict[str, dict[str, int]], start: int) -> None:
    """Hold back the end of the document that begins at byte `start` of its spool: a hundredth of all text.

    At most half of it goes. It is cut at the end of a line where one is near.
    """
    with spools["train"].open("r+b") as file, spools["validation"].open("wb") as held:
        start = _put_last(file, start)
        pieces = list(_places(file, start))
        ends = list(itertools.accumulate(size for _, size in pieces))
        length = ends[-1]
        cut = max(length // 2, length - max(200, counts["train"]["bytes"] // 100))
        number = next(number for number, end in enumerate(ends) if cut < end)
        first = max(0, number - 1)  # the line may have begun in the piece before
        before = ends[first - 1] if first else 0
        content = b"".join(_content(file, *each) for each in pieces[first : number + 1])
        place = content.rfind(b"\n", max(0, length // 2 - before + 1), cut - before)
        if place < 0:
            place = cut - before
            while content[place] & 0b1100_0000 == 0b1000_0000:  # within a character
                place -= 1
        kept, taken = content[:place].decode("utf-8").rstrip(), content[place:].decode("utf-8").lstrip()
        size = _put(held, True, taken) + length - ends[number]
        if number + 1 < len(pieces):
            file.seek(pieces[number + 1][0] - _HEAD.size)
            shutil.copyfileobj(file, held)
        file.seek(pieces[first][0] - _HEAD.size)
        counts["train"]["bytes"] += before + _put(file, not first, kept) - length
        file.truncate()
        counts["validation"].update(documents=1, bytes=size)


def _put_last(file: IO[bytes], start: int) -> int:
    """Move the document that begins at byte `start` behind all others, and return where it begins then."""
    file.seek(start)
    stop = start
    while head := file.read(_HEAD.size):
        size, begins = _HEAD.unpack(head)
        if begins and stop > start:
            break
        stop = file.seek(size, os.SEEK_CUR)
    end = file.seek(0, os.SEEK_END)
    if stop == end:
        return start
    _copy(file, start, end, stop - start)
    _copy(file, stop, start, end - start)
    file.truncate(end)
    return end - (stop - start)


def _copy(file: IO[bytes], source: int, target: int, size: int) -> None:
    """Copy `size` bytes of `file` from `source` to `target`, the first ones first."""
    for done in range(0, size, BATCH_BYTES):
        file.seek(source + done)
        content = file.read(min(BATCH_BYTES, size - done))
        file.seek(target + done)
        file.write(content)


def _put(file: IO[bytes], begins: bool, text: str) -> int:
    content = text.encode("utf-8", errors="replace")
    file.write(_HEAD.pack(len(content), begins))
    file.write(content)
    return len(content)


def _places(file: IO[bytes], start: int) -> Iterator[tuple[int, int]]:
    """Yield where the text of each piece begins and how many bytes it has, for those from byte `start` on."""
    file.seek(start)
    while head := file.read(_HEAD.size):
        place, size = file.tell(), _HEAD.unpack(head)[0]
        yield place, size
        file.seek(place + size)


def _content(file: IO[bytes], place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _spooled(path: Path) -> Iterator[texts.Piece]:
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            size, begins = _HEAD.unpack(head)
            yield begins, file.read(size).decode("utf-8")


# ---- tokenizer ------------------------------------------------------------------------------------------------------


def _sample(spool: Path, size: int, most: int) -> Iterator[str]:
    """Yield a fair sample of at most `most` bytes of the spooled text, which has `size`."""
    share = min(1.0, most / max(1, size))
    taken = 0.0
    for _, text in _spooled(spool):
        for start in range(0, len(text), TOKENIZER_PIECE):
            taken += share
            if taken >= 1:
                taken -= 1
                yield text[start : start + TOKENIZER_PIECE]


def train_tokenizer(sample: Iterator[str], vocabulary: int) -> Any:
    """Train byte-level BPE (Radford et al. 2019), which spells every text in every script without an unknown token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def end_of(tokenizer: Any) -> int:
    """Return the number of the token that ends a text. Raises ModelError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "tokenizer: it has no end-of-text token (eos_token), and documents need one. Take another, as in "
            "`tokenizer: gpt2`, or leave it out: one is trained"
        )
    return int(tokenizer.eos_token_id)


def require_lossless(tokenizer: Any, sample: Sequence[str], setting: str) -> None:
    """Raise ModelError where `tokenizer` does not give `sample` back: bits a byte would leave out what it loses.

    Blanks at the ends of a text do not count: many tokenizers put one before the first word.
    """
    changed, example = 0, None
    for text, row in zip(sample, _rows(tokenizer, sample), strict=True):
        back = tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        if back == text.strip():
            continue
        before, after = Counter(text), Counter(back)
        changed += max((before - after).total(), (after - before).total(), 1)
        if example is None:
            differ = (
                number for number, (one, other) in enumerate(zip(text.strip(), back, strict=False)) if one != other
            )
            place = max(0, next(differ, min(len(text.strip()), len(back))) - 10)
            example = f"{text.strip()[place : place + 30]!r} becomes {back[place : place + 30]!r}"
    if example is not None:
        share = max(0.0001, changed / sum(map(len, sample)))
        advice = "tokenizer: tiny`, or leave it out: one is trained" if setting == "tokenizer" else "from: tiny`"
        raise ModelError(
            f"{setting}: the tokenizer does not give these texts back: {share:.2%} of their characters are lost or "
            f"changed ({example}), and what is lost cannot be learnt or scored. Take one that spells every text, as in "
            f"`{advice}"
        )


def bytes_of_tokens(tokenizer: Any, sample: Sequence[str]) -> float:
    """Return how many bytes of tokens a byte of text becomes in the shards, by `sample`."""
    tokens = sum(len(row) + 1 for row in _rows(tokenizer, sample))  # and what opens a document
    return tokens * shards.token_type(len(tokenizer)).itemsize / max(1, sum(len(text.encode()) for text in sample))


def _rows(tokenizer: Any, every: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, which never becomes a special token."""
    rows: list[list[int]] = tokenizer(list(every), add_special_tokens=False, split_special_tokens=True, verbose=False)[
        "input_ids"
    ]
    return rows


# ---- second pass ----------------------------------------------------------------------------------------------------


def _encoded(tokenizer: Any, spool: Path, size: int, say: Say) -> Iterator[tuple[bool, Sequence[int], int]]:
    """Yield the spooled documents in pieces for `shards.write`; text never becomes a special token."""
    done, told = 0, time.monotonic()
    for batch in _batches(spool):
        rows = _rows(tokenizer, [text for _, text in batch])
        for (begins, text), row in zip(batch, rows, strict=True):
            text_bytes = len(text.encode("utf-8"))
            done += text_bytes
            yield begins, row, text_bytes
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            say(f"{done / 1e6:,.0f} of {size / 1e6:,.0f} MB are tokens")


def _batches(spool: Path) -> Iterator[list[texts.Piece]]:
    batch: list[texts.Piece] = []
    size = 0
    for document in texts.one_by_one(_spooled(spool)):
        for number, text in enumerate(_pieces(document)):
            batch.append((number == 0, text))
            size += len(text)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _pieces(parts: Iterable[str]) -> Iterator[str]:
    """Cut a text, given in parts, before single spaces, where byte-level BPE cuts anyway: its tokens stay the same.

    One without spaces is cut at the end of a line or, where it has none, anywhere, at the cost of a token.
    """
    waiting = ""
    for part in parts:
        waiting += part
        start = 0
        while (end := _cut(waiting, start)) is not None:
            yield waiting[start:end]
            start = end
        waiting = waiting[start:]
    yield waiting


def _cut(text: str, start: int) -> int | None:
    """Return where the next piece of `text` after the one that begins at `start` begins; None: more has to be seen."""
    if len(text) - start <= PIECE:
        return None
    end = text.find(" ", start + PIECE)
    while 0 < end < len(text) - 1 and (text[end - 1].isspace() or text[end + 1].isspace()):
        end = text.find(" ", end + 1)
    if 0 < end < len(text) - 1:
        return end
    if len(text) - start <= WITHOUT_SPACES * PIECE:
        return None
    blank = _BLANK.search(text, start + PIECE)
    return blank.start() if blank else start + PIECE


_BLANK = re.compile(r"(?<=\S)\s")


def require_room(place: Path, size: int | None, what: str) -> None:
    """Raise DataError where `what`, of `size` bytes, does not fit on the disk of `place`; None: nobody knows."""
    free = shutil.disk_usage(place).free
    if size is not None and size * 1.1 > free:
        raise DataError(
            f"{what} need about {pretraining_words.size(size * 1.1)}, and {pretraining_words.size(free)} are free on "
            f"the disk of {place}. Free some, or set GPTX_HOME to a folder on another disk"
        )


# ---- where embeddings may begin -------------------------------------------------------------------------------------

WINDOW = 4  # tokens to either side that count as neighbours
COUNTED = 2_000_000  # tokens at once
PAIR = 16  # bytes of memory for a pair of tokens: counts, both ways, and what they say


def require_memory(vocabulary: int, given: bool) -> None:
    """Raise DataError where `cooccurrence` needs more memory than is free; `given`: the tokenizer is not trained."""
    from gptx_nb.engine import memory

    needed, free = PAIR * vocabulary**2, memory.available(memory.MAIN)
    if free is None or needed <= free:
        return
    fits = int((free / PAIR) ** 0.5) // 1024 * 1024
    smaller = "" if given or not fits else f", or take a smaller vocabulary, as in `vocabulary: {fits}`"
    raise DataError(
        f"embeddings: cooccurrence takes {pretraining_words.size(needed)} of memory for a vocabulary of {vocabulary:,} "
        f"tokens, and {pretraining_words.size(free)} are free. Type `embeddings: random`{smaller}"
    )


def cooccurrence(corpus: Shards, width: int, say: Say) -> np.ndarray:
    """Return (vocabulary, width) float32: what a token's neighbours say of it, strongest axis first.

    The left singular vectors of the positive pointwise mutual information between a token and those at most WINDOW
    away, contexts smoothed by the power 0.75 (Levy & Goldberg 2014; Levy, Goldberg & Dagan 2015). Takes PAIR bytes for
    each pair of tokens of the vocabulary.
    """
    import torch

    vocabulary = corpus.vocabulary
    counts = np.zeros(vocabulary * vocabulary, dtype=np.float32)
    for start in range(0, corpus.tokens, COUNTED):
        row = corpus.read(start, min(COUNTED + WINDOW, corpus.tokens - start))
        document = (row == corpus.end).cumsum()
        for distance in range(1, min(WINDOW, len(row) - 1) + 1):
            left, right = row[:COUNTED][: len(row) - distance], row[distance:]
            right = right[: len(left)]
            same = document[: len(left)] == document[distance : distance + len(left)]
            pairs, times = np.unique(left[same] * vocabulary + right[same], return_counts=True)
            counts[pairs] += times
        say(f"{min(start + COUNTED, corpus.tokens) / corpus.tokens:.0%} of the neighbours counted")
    both = torch.from_numpy(counts.reshape(vocabulary, vocabulary))
    both = both + both.T
    of_token = both.sum(dim=1)
    smoothed = of_token**0.75 / (of_token**0.75).sum()
    information = (both / (of_token[:, None] * smoothed).clamp_min(1e-12)).log_().clamp_min_(0)  # log 0 becomes 0 too
    torch.manual_seed(0)
    vectors: np.ndarray = torch.svd_lowrank(information, q=min(width, vocabulary), niter=3)[0].numpy()
    return vectors
