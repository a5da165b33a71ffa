"""Beam search gives what transformers gives, and is asked for in the same way as other writing."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_generate import RAGGED, small

import gptx_nb
from gptx_nb import inference, launch
from gptx_nb.engine import packing
from gptx_nb.engine.beams import search
from gptx_nb.errors import UsageError
from gptx_nb.generations import Generations
from gptx_nb.inference import Wishes
from gptx_nb.recipe import make_recipe


@pytest.fixture
def process(home: Path) -> Iterator[Path]:
    """An empty home, whose inference process ends with the test."""
    yield home
    inference.free()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("beams", [2, 4])
def test_the_best_continuations_are_those_of_transformers(kind: str, beams: int) -> None:
    model = small(kind)
    packing.use(model)  # as it is after answers were scored
    end = 7
    for prompt in RAGGED[:3]:
        found = search(model, prompt, beams=beams, answers=beams, max_new_tokens=12, end_ids={end})
        model.set_attn_implementation("sdpa")
        made = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False,
            num_beams=beams, num_return_sequences=beams, eos_token_id=end, pad_token_id=end,
        )[:, len(prompt) :].tolist()  # fmt: skip
        model.set_attn_implementation(packing.ATTENTION)
        expected = [row[: row.index(end)] if end in row else row for row in made]
        assert [each.tokens for each in found] == expected
        assert [each.ended for each in found] == ["end" if end in row else "length" for row in made]


def test_a_beam_ends_at_a_stop_and_at_the_end_of_the_context() -> None:
    model = small("llama")
    free = search(model, [5, 6], beams=3, max_new_tokens=6)[0]
    stopped = search(model, [5, 6], beams=3, max_new_tokens=6, stop=lambda tokens: len(tokens) == 2)
    assert (len(stopped[0].tokens), stopped[0].ended) == (2, "stop")
    assert free.ended == "length"
    full = list(range(2, 2 + model.config.max_position_embeddings))
    assert search(model, full, beams=2, answers=2, max_new_tokens=3)[1].ended == "context"
    assert search(model, full[:-1], beams=2, max_new_tokens=3)[0].ended == "context"
    with pytest.raises(ValueError, match="3 answers of 2 beams"):
        search(model, [1], beams=2, answers=3, max_new_tokens=1)


def test_wishes_for_beams_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the likeliest continuations are searched, and temperature 0\.5 draws"):
        Wishes(beams=4, temperature=0.5)
    with pytest.raises(UsageError, match=r"n: 5 answers of 4 beams cannot be had\. Type `beams: 5` or fewer answers"):
        Wishes(beams=4, n=5)
    with pytest.raises(UsageError, match="beams: 0 does not fit: a whole number from 1 to 64"):
        Wishes(beams=0)


def test_a_run_answers_with_beams(process: Path, tiny_model: Path) -> None:
    rows = [(f"{colour}?", colour[::-1]) for colour in ("red", "blue", "green")] * 6
    small_run = {"model": str(tiny_model), "learning_rate": 0.01, "device": "cpu", "dtype": "float32", "data": "df"}
    frame = pd.DataFrame(rows, columns=["question", "answer"])
    launch.train("back", make_recipe({**small_run, "validation": 0, "epochs": 16}), data=frame, wait=True)
    pieces: list[str] = []
    found = gptx_nb.predict("back", "red?", beams=3, n=2, max_new_tokens=12)
    single = gptx_nb.predict("back", "blue?", beams=3, on_text=pieces.append)
    assert isinstance(found, Generations)
    assert isinstance(single, Generations)
    assert (found[0].texts[0], len(found[0].texts)) == ("der", 2)
    assert found[0].texts[0] != found[0].texts[1]
    assert (single[0].text, "".join(pieces)) == ("eulb", "eulb")
