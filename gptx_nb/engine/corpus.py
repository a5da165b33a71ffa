"""From texts to what pretraining reads: cleaned, without duplicates, split, tokenised into shards. Trains no model.

Two passes, neither of which holds more than a few documents in memory. The first reads the sources, cleans, drops what
was seen before and decides what is held back; what is left goes to a file on disk. So the second, which makes tokens on
every core, knows how much there is, and a tokenizer is trained on a fair sample of all of it.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import save_file

from gptx_nb import files, pretraining_words
from gptx_nb.engine import shards, texts
from gptx_nb.engine.duplicates import Seen
from gptx_nb.engine.shards import Shards
from gptx_nb.errors import DataError, ModelError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.sources import Source

END_OF_TEXT = "<|endoftext|>"
SHORTEST = 16  # characters; a shorter document teaches nothing about texts
TOKENIZER_BYTES = 100_000_000  # of text that a tokenizer is trained on
TOKENIZER_PIECE = 20_000  # characters of a document that it sees at once: no book rules the sample
BATCH_BYTES = 2_000_000  # of text that is tokenised at once
PIECE = 100_000  # characters; longer documents are tokenised in pieces, so that every core has some
SPOOL = "cleaned"
EMBEDDINGS = "embeddings.safetensors"
EVERY = 1.0  # seconds between words on how far it is

Say = Callable[[str], None]
_HEAD = struct.Struct("<QQ")  # bytes of a document in the spool, and those of its text


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
        place = 0
        while len(found) < count and place < self.validation.tokens - 1:
            row = self.validation.read(place, min(200, self.validation.tokens - place)).tolist()
            rest = row[1:]
            text = self.tokenizer.decode(rest[: rest.index(row[0])] if row[0] in rest else rest).split("\n")[0]
            if len(text) > 20:
                found.append(text[:characters].rsplit(" ", 1)[0] if len(text) > characters else text)
            place += 200
            while place < self.validation.tokens - 1 and self.validation.read(place, 1)[0] != self.validation.end:
                place += 1
        return found


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
    _require_room(folder.parent, texts.size_of(train, run_folder, "data"), "the cleaned texts")

    def fill(beside: Path) -> None:
        spools = {part: beside / f"{SPOOL}-{part}" for part in ("train", "validation")}
        report = _clean(recipe, sources, run_folder, spools, say)
        say("training a tokenizer") if given is None else None
        tokenizer = given or train_tokenizer(_sample(spools["train"], report["train"]["bytes"]), recipe.vocabulary)
        end = end_of(tokenizer)
        if recipe.base is None:
            tokenizer.model_max_length = recipe.context
        _require_room(
            folder.parent,
            report["bytes"] // 3 * shards.token_type(len(tokenizer)).itemsize,  # a token spells some 3 to 4 bytes
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

    files.write_folder(folder, fill)


# ---- first pass -----------------------------------------------------------------------------------------------------


def _clean(
    recipe: PretrainRecipe, sources: dict[str, Source | None], run_folder: Path, spools: dict[str, Path], say: Say
) -> dict[str, Any]:
    """Write the documents that are kept to `spools`, and return the report."""
    seen = Seen(recipe.near_duplicates)
    dropped, cleaned = Counter[str](), Counter[str]()
    counts = {part: {"documents": 0, "bytes": 0} for part in spools}
    read, told = 0, time.monotonic()
    share = recipe.validation if isinstance(recipe.validation, float | int) else 0.0
    own = sources["validation"]
    with spools["train"].open("wb") as train, spools["validation"].open("wb") as validation:
        spool = {"train": train, "validation": validation}
        # What is held back first: what equals it is then not learnt from.
        for setting, source in (("validation", own), ("data", sources["train"])):
            if source is None:
                continue
            kept_before = seen_before = 0
            for raw in texts.documents(
                source,
                run_folder,
                setting=setting,
                column=recipe.text,
                document=recipe.document,
                subset=recipe.subset,
            ):
                seen_before += 1
                read += len(raw)
                if time.monotonic() - told > EVERY:
                    told = time.monotonic()
                    say(f"{sum(each['documents'] for each in counts.values()):,} documents, {read / 1e6:,.0f} MB read")
                text = texts.clean(raw, cleaned)
                if len(text) < SHORTEST:
                    dropped["empty or too short"] += bool(raw.strip())
                    continue
                if why := seen.why(text):
                    dropped[why] += 1
                    continue
                held = setting == "validation" or _held_back(text, share)
                part = "validation" if held else "train"
                counts[part]["documents"] += 1
                counts[part]["bytes"] += _put(spool[part], text)
                kept_before += 1
            if not kept_before:
                raise DataError(
                    f"{setting}: {source.shown} holds no text"
                    + (f" of {SHORTEST} characters or more" if seen_before else "")
                    + ". Name texts, as in `data: books/`"
                )
    source = sources["train"]
    assert source is not None
    note = f"all of {own.shown}" if own else f"{share:.1%} of the documents, chosen by their content"
    if not counts["validation"]["documents"]:
        _hold_back_an_end(spools, counts)
        note = "the end of the last document, as " + (
            f"a share of {share:g} holds no whole one back" if share else "`validation: 0` holds no whole one back"
        )
    return {
        "source": source.shown,
        "documents": sum(each["documents"] for each in counts.values()),
        "bytes": sum(each["bytes"] for each in counts.values()),
        "dropped": dict(dropped),
        "cleaned": dict(cleaned),
        **counts,
        "validation_note": note,
        "warnings": [],
    }


def _held_back(text: str, share: float) -> bool:
    """Whether a document is held back: by its content, so that order and company do not matter."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"gptx_nb split").digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _hold_back_an_end(spools: dict[str, Path], counts: dict[str, dict[str, int]]) -> None:
    """Hold back the end of the last document where no whole one is: a hundredth of all text."""
    everything = list(_spooled(spools["train"]))
    *whole, last = everything
    size = max(200, sum(len(text) for text in everything) // 100)
    cut = last.rfind("\n", 0, max(0, len(last) - size))
    cut = cut if cut > len(last) // 2 else max(len(last) // 2, len(last) - size)
    parts = {"train": [*whole, last[:cut].strip()], "validation": [last[cut:].strip()]}
    for part, kept in parts.items():
        with spools[part].open("wb") as file:
            counts[part].update(documents=len(kept), bytes=sum(_put(file, text) for text in kept))


def _put(file: IO[bytes], text: str) -> int:
    content = text.encode("utf-8", errors="replace")
    file.write(_HEAD.pack(len(content), len(content)))
    file.write(content)
    return len(content)


def _spooled(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            yield file.read(_HEAD.unpack(head)[0]).decode("utf-8")


# ---- tokenizer ------------------------------------------------------------------------------------------------------


def _sample(spool: Path, size: int) -> Iterator[str]:
    """Yield a fair sample of at most TOKENIZER_BYTES of the spooled text."""
    share = min(1.0, TOKENIZER_BYTES / max(1, size))
    taken = 0.0
    for text in _spooled(spool):
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


# ---- second pass ----------------------------------------------------------------------------------------------------


def _encoded(tokenizer: Any, spool: Path, size: int, say: Say) -> Iterator[tuple[Sequence[int], int]]:
    """Yield each spooled document's tokens and its bytes of text; text never becomes a special token."""
    done, told = 0, time.monotonic()
    for batch in _batches(spool):
        pieces = [list(_pieces(text)) for text in batch]
        every = [piece for each in pieces for piece in each]
        rows = iter(tokenizer(every, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])
        for text, own in zip(batch, pieces, strict=True):
            row = [np.asarray(next(rows), dtype=np.uint32) for _ in own]
            text_bytes = len(text.encode("utf-8"))
            done += text_bytes
            yield np.concatenate(row), text_bytes  # type: ignore[misc]
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            say(f"{done / 1e6:,.0f} of {size / 1e6:,.0f} MB are tokens")


def _batches(spool: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in _spooled(spool):
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text before single spaces, where byte-level BPE cuts anyway: its tokens stay the same."""
    start = 0
    while len(text) - start > PIECE:
        end = text.find(" ", start + PIECE)
        while 0 < end < len(text) - 1 and (text[end - 1].isspace() or text[end + 1].isspace()):
            end = text.find(" ", end + 1)
        if end <= 0 or end >= len(text) - 1:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _require_room(place: Path, size: int | None, what: str) -> None:
    free = shutil.disk_usage(place).free
    if size is not None and size * 1.1 > free:
        raise DataError(
            f"{what} need about {pretraining_words.size(size * 1.1)}, and {pretraining_words.size(free)} are free on "
            f"the disk of {place}. Free some, or set GPTX_HOME to a folder on another disk"
        )


# ---- where embeddings may begin -------------------------------------------------------------------------------------

WINDOW = 4  # tokens to either side that count as neighbours
COUNTED = 2_000_000  # tokens at once


def cooccurrence(corpus: Shards, width: int, say: Say) -> np.ndarray:
    """Return (vocabulary, width) float32: what a token's neighbours say of it, strongest axis first.

    The left singular vectors of the positive pointwise mutual information between a token and those at most WINDOW
    away, contexts smoothed by the power 0.75 (Levy & Goldberg 2014; Levy, Goldberg & Dagan 2015). Takes 8 bytes for
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
