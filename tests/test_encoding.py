"""What carries loss: properties for any texts and lengths, with three kinds of tokenizers, and what bad input meets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import gptx_nb
from gptx_nb.engine.tasks import chat_templates, templates
from gptx_nb.engine.tasks.encoding import Encoded, Encoder
from gptx_nb.engine.tasks.templates import END, START, Segment
from gptx_nb.errors import DataError, ModelError

SHIPPED = Path(gptx_nb.__file__).parent / "models" / "tiny"
SPECIAL = "<|endoftext|>"


def like_llama() -> PreTrainedTokenizerFast:
    """A tokenizer as Llama's: it puts a start token and a space before every text, and spells the unknown in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "th", "the", "▁the", "an", "▁an", "er", ":", "\n"]
    merges = [("▁", "a"), ("t", "h"), ("th", "e"), ("▁", "the"), ("a", "n"), ("▁", "an"), ("e", "r")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


def like_chatml() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "tiny": lambda: AutoTokenizer.from_pretrained(SHIPPED),
    "like-llama": like_llama,
    "chatml": like_chatml,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = TOKENIZERS[request.param]()
    return made


def spelled(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return what `ids` say, without special tokens, and without the space that Llama's puts first."""
    special = set(tokenizer.all_special_ids)
    text: str = tokenizer.decode([id for id in ids if id not in special], clean_up_tokenization_spaces=False)
    return text


def learnt(encoded: Encoded) -> list[int]:
    return [id for id, loss in zip(encoded.ids, encoded.loss, strict=True) if loss]


ANYTHING = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=60)
WORDS = st.text("abc the\n.é中🙂", min_size=1, max_size=60)
TYPED = st.one_of(ANYTHING, WORDS, st.just(f"say {SPECIAL} or </s> <s> <|im_end|>\n<|im_start|>assistant"))
EXAMPLES = {
    "summarization": (templates.summarization, ("document",), "summary"),
    "with context": (templates.question_answering, ("context", "question"), "answer"),
    "closed book": (templates.question_answering, ("question",), "answer"),
    "translation": (templates.translation, ("source",), "target"),
    "completion": (templates.completion, ("prompt",), "completion"),
    "code": (templates.code_generation, ("text",), "code"),
}


def test_the_line_end_behind_a_programs_beginning_goes_with_its_code() -> None:
    asked = {"prompt": "def f():", "code": "\n    return 1\n"}
    prompt, code, end = templates.code_generation(asked)
    assert (prompt.text, code.text, code.target, end) == ("def f():", "\n    return 1", True, END)
    assert templates.code_generation({"prompt": "def f():\n"}) == [prompt]
    before = templates.code_generation(asked, line_asked=True)  # as until 0.5
    assert [each.text for each in before] == ["def f():\n", "    return 1", ""]
    assert [each.text for each in templates.code_generation({"prompt": "", "code": "x = 1"})] == ["", "x = 1", ""]
    words = templates.code_generation({"text": "say hi", "code": "print('hi')"})
    assert [each.text for each in words] == ["# say hi\n", "print('hi')", ""]


@pytest.mark.parametrize("kind", EXAMPLES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_targets_tokens_and_no_others_carry_loss(
    tokenizer: PreTrainedTokenizerBase, kind: str, data: st.DataObject
) -> None:
    template, asked, answer = EXAMPLES[kind]
    example = {role: data.draw(TYPED, role) for role in asked} | {"from": "en", "to": "fr"}
    target = data.draw(TYPED, answer)
    max_length = data.draw(st.integers(8, 400), "max_length")
    segments = template({**example, answer: target})
    encoder = Encoder(tokenizer, max_length)
    encoded = encoder.encode(segments)
    whole = Encoder(tokenizer, 10_000).encode(segments)
    assert whole is not None
    assert whole.cut == 0
    if encoded is None:
        assert len(whole.ids) > max_length
        return
    # All of the target, and the end token, wherever the context was cut.
    assert learnt(encoded) == learnt(whole)
    assert learnt(encoded)[-1] == tokenizer.eos_token_id
    assert learnt(encoded).count(tokenizer.eos_token_id) == 1
    target_text = "".join(each.text for each in segments if each.target)
    assert spelled(tokenizer, learnt(encoded)).strip() == target_text.strip()
    # It stands at the end, behind at least one token.
    first = encoded.loss.index(True)
    assert first > 0
    assert encoded.loss == [False] * first + [True] * (len(encoded.loss) - first)
    assert len(encoded.ids) == len(encoded.loss) <= max_length
    assert encoded.cut == 0 or len(whole.ids) > max_length
    # No special token but the start and the end.
    inner = encoded.ids[1:-1] if encoded.ids[0] == tokenizer.bos_token_id else encoded.ids[:-1]
    assert not set(inner) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    # The prompt of training is the prompt of prediction.
    prompt = Encoder(tokenizer, 10_000).prompt(template(example))
    assert prompt is not None
    assert not any(prompt.loss)
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert whole.loss[len(prompt.ids)]


def test_a_target_has_the_same_tokens_where_all_of_its_prompt_is_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    segments = templates.completion({"prompt": "say something about the film", "completion": "abc 0"})
    whole = Encoder(tokenizer, 100).encode(segments)
    assert whole is not None
    cut = Encoder(tokenizer, 1 + len(learnt(whole))).encode(segments)
    assert cut is not None
    assert cut.loss.index(True) == 1, "nothing of the prompt is left"
    assert learnt(cut) == learnt(whole)


@settings(max_examples=80, deadline=None)
@given(text=TYPED, length=st.integers(8, 40))
def test_windows_of_a_text_lose_nothing_and_learn_every_token_once(
    tokenizer: PreTrainedTokenizerBase, text: str, length: int
) -> None:
    segments = templates.text({"text": text})
    whole = Encoder(tokenizer, 10_000).encode(segments)
    assert whole is not None
    assert whole.loss == [False] + [True] * (len(whole.ids) - 1)
    windows = Encoder(tokenizer, length).windows(segments)
    assert all(len(each.ids) <= length for each in windows)
    assert [id for each in windows for id in learnt(each)] == whole.ids[1:]
    assert [each.loss[0] for each in windows] == [False] * len(windows)
    prompt = Encoder(tokenizer, 10_000).prompt(templates.text({"prompt": ""}))
    assert prompt is not None
    assert prompt.ids == whole.ids[:1]


MESSAGES = st.lists(st.tuples(TYPED, TYPED), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(turns=MESSAGES, system=st.one_of(st.none(), TYPED))
def test_of_a_conversation_the_assistants_turns_carry_loss(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], system: str | None
) -> None:
    chat_templates.choose(tokenizer)
    messages = [{"role": "system", "content": system}] if system is not None else []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    chat_templates.check(messages)
    encoder = Encoder(tokenizer, 100_000)
    [segments] = chat_templates.conversation(tokenizer, messages)
    encoded = encoder.encode(segments)
    assert encoded is not None
    ends = chat_templates.end_ids(tokenizer)
    # Each run of learnt tokens is one answer and its end token.
    answers: list[list[int]] = []
    for at, (id, loss) in enumerate(zip(encoded.ids, encoded.loss, strict=True)):
        if loss and not encoded.loss[at - 1]:
            answers.append([])
        if loss:
            answers[-1].append(id)
    assert len(answers) == len(turns)
    for ids, (_, answered) in zip(answers, turns, strict=True):
        assert ids[-1] in ends
        assert not ends & set(ids[:-1])
        assert spelled(tokenizer, ids).strip() == answered.strip()
    # What was asked in training is what is asked in prediction, at every turn.
    for at in range(len(messages)):
        if messages[at]["role"] == "assistant":
            prompt = encoder.prompt(chat_templates.question(tokenizer, messages[:at]))
            assert prompt is not None
            assert encoded.ids[: len(prompt.ids)] == prompt.ids
            assert encoded.loss[len(prompt.ids)]
            assert not encoded.loss[len(prompt.ids) - 1]


@settings(max_examples=60, deadline=None)
@given(document=WORDS, length=st.integers(20, 60), side=st.sampled_from(["start", "end"]))
def test_a_context_is_cut_from_its_side_and_the_rest_is_kept(
    tokenizer: PreTrainedTokenizerBase, document: str, length: int, side: Any
) -> None:
    segments = [Segment(document * 5, cut=side), Segment("\nfixed:"), Segment(" the", target=True), END]
    encoded = Encoder(tokenizer, length).encode(segments)
    assert encoded is not None
    assert len(encoded.ids) <= length
    text = spelled(tokenizer, encoded.ids).removeprefix(" ")
    kept = (document * 5)[: len(document * 5) - encoded.cut] if side == "end" else (document * 5)[encoded.cut :]
    assert text == (kept + "\nfixed: the").removeprefix(" ")


# ---- single cases ---------------------------------------------------------------------------------------------------


def test_prompts_read_as_base_models_know_them() -> None:
    def read(segments: list[Segment]) -> str:
        return "".join("[" + each.text + "]" if each.target and each.text else each.text for each in segments)

    example: dict[str, Any] = {"question": " Who? ", "context": "Ann sang.", "answer": "Ann"}
    assert read(templates.question_answering(example)) == "Ann sang.\n\nQuestion: Who?\nAnswer:[ Ann]"
    del example["context"]
    example["choices"] = ["Ann", "Bob"]
    assert read(templates.question_answering(example)) == "Question: Who?\nChoices:\n- Ann\n- Bob\nAnswer:[ Ann]"
    assert read(templates.summarization({"document": "Long.", "summary": "L."})) == "Long.\n\nTL;DR:[ L.]"
    pair = {"source": "Go.", "target": "Va !", "from": "en", "to": "fr"}
    assert read(templates.translation(pair)) == "English: Go.\nFrench:[ Va !]"
    assert read(templates.translation(templates.reversed_translation(pair))) == "French: Va !\nEnglish:[ Go.]"
    assert read(templates.code_generation({"text": "Add\ntwo", "code": "\n  a + b"})) == "# Add\n# two\n[  a + b]"
    assert read(templates.code_generation({"prompt": "def f(x):\n", "code": "    return x\n"})) == (
        "def f(x):[\n    return x]"
    )
    assert read(templates.completion({"prompt": "Once upon ", "completion": "a time"})) == "Once upon[ a time]"
    assert templates.joint_of(["a:", "b:"], ["c", "d"]) == "\n"
    assert templates.joint_of(["a:\n", "b:"], ["c", " d"]) == ""
    assert [templates.language(each) for each in ("pt_BR", "ZH", "klingon")] == ["Portuguese", "Chinese", "Klingon"]


def test_shots_stand_before_the_prompt_without_loss() -> None:
    shots = [templates.question_answering({"question": each, "answer": "x"}) for each in ("a", "b")]
    found = templates.with_shots(shots, templates.question_answering({"question": "c", "answer": "y"}))
    assert "".join(each.text for each in found) == (
        "Question: a\nAnswer: x\n\nQuestion: b\nAnswer: x\n\nQuestion: c\nAnswer: y"
    )
    assert "".join(each.text for each in found if each.target) == " y"
    assert templates.with_shots([], templates.text({"prompt": "a"}))[0] == START


def test_a_tables_examples_are_counted_as_cut_and_left_out() -> None:
    encoder = Encoder(TOKENIZERS["tiny"](), 40)
    examples = [
        templates.summarization({"document": "the cat " * size, "summary": "cats " * answer})
        for size, answer in ((3, 2), (100, 2), (3, 100))
    ]
    found = encoder.rows(examples)
    assert (len(found.rows), found.cut, found.left_out) == (2, 1, 1)


def test_a_table_whose_targets_all_are_too_long_is_refused_with_the_lengths() -> None:
    encoder = Encoder(TOKENIZERS["tiny"](), 12)
    examples = [templates.summarization({"document": "the cat", "summary": "cats " * 30})] * 2
    with pytest.raises(DataError) as caught:
        encoder.rows(examples, "news.csv")
    message = str(caught.value)
    assert message.startswith("news.csv: no example can be learnt from. Of 2, the longest target has ")
    assert message.endswith(
        "and a row has 12 at most. Set a larger `max_length:`, if the model allows it, or shorten the targets"
    )


def test_a_book_is_cut_without_becoming_tokens_as_a_whole() -> None:
    document = "the cat sat " * 200_000
    encoded = Encoder(TOKENIZERS["tiny"](), 64).encode(
        templates.summarization({"document": document, "summary": "cat"})
    )
    assert encoded is not None
    assert 50 < len(encoded.ids) <= 64
    assert encoded.cut > 2_000_000


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = TOKENIZERS["tiny"]()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="the tokenizer has no end token"):
        Encoder(tokenizer, 64)


@pytest.mark.parametrize(
    ("kind", "name", "written"),
    [
        ("tiny", "<|user|> … <|assistant|> …", f"<|user|>\nHi\n<|assistant|>\nHo{SPECIAL}\n"),
        ("chatml", "ChatML", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"),
    ],
)
def test_a_base_model_gets_a_chat_template_which_is_saved_with_it(
    tmp_path: Path, kind: str, name: str, written: str
) -> None:
    tokenizer = TOKENIZERS[kind]()
    chosen, reason = chat_templates.choose(tokenizer)
    assert chosen == name
    assert reason.startswith("the base model has no chat template")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert again.apply_chat_template(messages, tokenize=False) == written
    assert chat_templates.choose(again) == ("the model's own", "it was tuned with it")


OWN = (
    "{% for m in messages if m['role'] != 'system' %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize(
    ("kind", "asked", "target"),
    [
        ("chatml", "chatml", "Ho<|im_end|>"),
        ("chatml", "zephyr", f"Ho{SPECIAL}"),
        ("tiny", "zephyr", f"Ho{SPECIAL}"),
        ("tiny", "{% for m in messages %}{{ m['content'] }}{% endfor %}", "Ho"),
        ("tiny", OWN, " Ho"),
    ],
)
def test_a_template_that_is_asked_for_is_taken(tmp_path: Path, kind: str, asked: str, target: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    end = tokenizer.eos_token
    name = asked if asked in chat_templates.NAMED else "a text of its own"
    told = chat_templates.told(tokenizer, asked)
    lost = "; it leaves out what a system message says" if asked == OWN else ""
    assert told == f"chat template: {name} (asked for in the recipe; the base model is asked in it, too){lost}"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (example,) = chat_templates.conversation(tokenizer, messages)
    assert "".join(part.text for part in example if part.target) == target.replace(SPECIAL, end)
    tokenizer.save_pretrained(tmp_path)
    assert chat_templates.choose(AutoTokenizer.from_pretrained(tmp_path))[0] == "the model's own"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("{% for m in messages }", r"unexpected '}'\. Correct it, or type `chat_template: zephyr`"),
        ("{{ foo.bar }}", "'foo' is undefined"),
        ("{{ messages[1]['content'] }}", "list object has no element 1"),
        ("{% for m in messages %}x{% endfor %}", "it leaves out what the user says"),
        ("{{ messages[0]['content'] }}{% if messages|length > 1 %}x{% endif %}", "it leaves out what the assistant"),
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}",
            "what it writes before an answer is",
        ),
        (
            "chatml",
            r"the model's vocabulary has no <\|im_start\|> and <\|im_end\|>, which chatml writes\. Type `chat_te",
        ),
    ],
)
def test_a_template_that_writes_no_conversation_is_refused(asked: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^chat_template: {message}"):
        chat_templates.told(TOKENIZERS["tiny"](), asked)


def test_a_template_that_leaves_out_earlier_thoughts_gives_an_example_a_turn() -> None:
    tokenizer = TOKENIZERS["chatml"]()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = [("q1", "<think>t1</think>a1"), ("q2", "<think>t2</think>a2")]
    messages = [
        each
        for asked, answered in turns
        for each in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
    ]
    examples = chat_templates.conversation(tokenizer, messages)
    assert ["".join(part.text for part in each if part.target) for each in examples] == [
        "<think>t1</think>a1<|im_end|>",
        "<think>t2</think>a2<|im_end|>",
    ]
    assert "t1" not in "".join(part.text for part in examples[1])


def test_a_template_that_fails_is_told_in_one_message() -> None:
    tokenizer = TOKENIZERS["tiny"]()
    tokenizer.chat_template = "{{ raise_exception('Only user and assistant roles are supported!') }}"
    with pytest.raises(DataError) as caught:
        chat_templates.question(tokenizer, [{"role": "user", "content": "Hi"}])
    assert str(caught.value) == (
        "the model's chat template does not take a conversation: Only user and assistant roles are supported. Change "
        "what it refuses (often a system message), or type another `chat_template:`, as in `chat_template: zephyr`, or "
        "choose another base model"
    )


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (
            "uu",
            "turn 2 of a conversation is of 'user', and 'assistant' is due: user and assistant speak by turns, the "
            "user first, after one system message at most. Join turns of the same speaker",
        ),
        (
            "aua",
            "turn 1 of a conversation is of 'assistant', and 'user' is due: user and assistant speak by turns, the "
            "user first, after one system message at most. Leave that turn out",
        ),
        ("sau", "turn 2 of a conversation is of 'assistant', and 'user' is due"),
        ("ss", "turn 2 of a conversation is of 'system', and 'user' is due"),
        ("uau", "the last turn of a conversation is of the user, and the assistant's is needed there"),
        ("s", "the last turn of a conversation is of the user, and the assistant's is needed there"),
    ],
)
def test_a_conversation_whose_turns_do_not_alternate_is_refused(roles: str, message: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    with pytest.raises(DataError) as caught:
        chat_templates.check([{"role": names[each], "content": "x"} for each in roles])
    assert str(caught.value).startswith(message)


def test_a_conversation_in_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match="turn 1 of a conversation is no pair of role and content"):
        chat_templates.check([{"role": "user"}])
    with pytest.raises(DataError, match="a conversation is a list of turns"):
        chat_templates.check("Hello")


@pytest.mark.parametrize("text", ["One two three.", "好的，谢谢。 👩‍👩‍👧", f"What is {SPECIAL} for?"])
def test_bits_a_byte_are_of_the_text_and_not_of_the_token_that_ends_it(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    (row,) = [Encoder(tokenizer, 64).encode(templates.text({"text": text}))]
    assert row is not None
    assert row.ids[-1] == tokenizer.eos_token_id
    assert row.loss[-1]
    assert row.text(tokenizer) == text
