"""Make the tokenizer and the token file that `pretrain.py` trains the embedded base model on.

    python benchmarks/pretrain_tiny/prepare.py CORPUS WORK

CORPUS holds `*.jsonl` or `*.jsonl.xz` with one document a line (`{"text": ...}`); files whose name starts with
`validation` are held out. WORK receives `tokenizer/` (byte-level BPE, Radford et al. 2019, through `tokenizers`),
`train.tokens` and `validation.tokens` (little-endian uint16, every document opened by the end-of-text token) and
`corpus.json` (bytes, documents and tokens of each part), and `embeddings.safetensors`: where `pretrain.py` begins.

Documents of all files are interleaved by a fixed shuffle, so that any prefix of `train.tokens` is a fair sample of the
whole corpus: a run that is stopped early has seen every source.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 16384
CONTEXT = 512
TOKENIZER_SAMPLE_BYTES = 60_000_000
WINDOW = 4  # tokens to either side that count as neighbours
MOST_WIDTH = 512


def documents(path: Path) -> Iterator[str]:
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def pieces(text: str, size: int = 20_000) -> Iterator[str]:
    """Cut books at paragraph ends into pieces of about `size` characters: no book rules a stretch of the file."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + size)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end


def interleaved(paths: list[Path], seed: int, limit_bytes: int) -> list[str]:
    every = [piece for path in paths for text in documents(path) for piece in pieces(text)]
    random.Random(seed).shuffle(every)
    total = 0
    taken = []
    for piece in every:
        taken.append(piece)
        total += len(piece.encode("utf-8"))
        if total >= limit_bytes:
            break
    return taken


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    # All 256 bytes are in the alphabet, so every text in every script can be spelled without an unknown token.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    total = 0
    sample = []
    for text in texts:
        sample.append(text)
        total += len(text.encode("utf-8"))
        if total > TOKENIZER_SAMPLE_BYTES:
            break
    tokenizer.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    )


def write_tokens(texts: list[str], tokenizer: PreTrainedTokenizerFast, path: Path) -> dict[str, int]:
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    tokens = 0
    with path.open("wb") as out:
        for batch in batched(texts, 1000):
            for encoding in tokenizer.backend_tokenizer.encode_batch(list(batch), add_special_tokens=False):
                row = np.asarray([end, *encoding.ids], dtype="<u2")
                out.write(row.tobytes())
                tokens += len(row)
    return {"documents": len(texts), "bytes": sum(len(text.encode("utf-8")) for text in texts), "tokens": tokens}


def cooccurrence_embeddings(tokens: np.ndarray, vocabulary: int) -> torch.Tensor:
    """Return (vocabulary, MOST_WIDTH) float32: what a token's neighbours say of it, strongest axis first.

    The left singular vectors of the positive pointwise mutual information between a token and those at most WINDOW
    away, contexts smoothed by the power 0.75 (Levy & Goldberg 2014; Levy, Goldberg & Dagan 2015). One pass over the
    whole corpus in a minute or two, which a model of this size would need hours for.
    """
    counts = np.zeros(vocabulary * vocabulary, dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        for start in range(0, len(tokens) - distance, 2_000_000):
            left = np.asarray(tokens[start : min(start + 2_000_000, len(tokens) - distance)], dtype=np.int64)
            right = np.asarray(tokens[start + distance : start + distance + len(left)], dtype=np.int64)
            pairs, times = np.unique(left * vocabulary + right, return_counts=True)
            counts[pairs] += times
    both = torch.from_numpy(counts.reshape(vocabulary, vocabulary))
    both = both + both.T
    of_token = both.sum(dim=1)
    smoothed = of_token**0.75 / (of_token**0.75).sum()
    information = (both / (of_token[:, None] * smoothed).clamp_min(1e-12)).log().clamp_min(0)  # log 0 becomes 0 too
    torch.manual_seed(0)
    vectors = torch.svd_lowrank(information, q=MOST_WIDTH, niter=3)[0]
    return vectors


def batched(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--limit-mb", type=float, default=1000.0, help="megabytes of training text to take (a fair sample)"
    )
    arguments = parser.parse_args()

    files = sorted([*arguments.corpus.glob("*.jsonl"), *arguments.corpus.glob("*.jsonl.xz")])
    held_out = [path for path in files if path.name.startswith("validation")]
    training = [path for path in files if path not in held_out]
    if not training or not held_out:
        parser.error(f"{arguments.corpus} needs *.jsonl(.xz) files, one of them named validation*")
    arguments.work.mkdir(parents=True, exist_ok=True)

    texts = interleaved(training, seed=0, limit_bytes=int(arguments.limit_mb * 1e6))
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(arguments.work / "tokenizer")
    facts = {
        "train": write_tokens(texts, tokenizer, arguments.work / "train.tokens"),
        "validation": write_tokens(
            [t for path in held_out for t in documents(path)], tokenizer, arguments.work / "validation.tokens"
        ),
    }
    tokens = np.memmap(arguments.work / "train.tokens", dtype="<u2", mode="r")
    save_file(
        {"embeddings": cooccurrence_embeddings(tokens, len(tokenizer)).contiguous()},
        arguments.work / "embeddings.safetensors",
    )
    (arguments.work / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
