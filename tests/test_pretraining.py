"""Pretraining as a run: from a cell to a base model that is fine-tuned, and back from every way of breaking off."""

import errno
import importlib.util
import json
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_runs
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from waiting import until

import gptx_nb
from gptx_nb import fields, files, launch, metrics, progress
from gptx_nb.engine import models, pretrain
from gptx_nb.errors import DataError, ModelError, RecipeError, RunFailed
from gptx_nb.pretraining import SIZES, PretrainRecipe
from gptx_nb.recipe import Recipe, make_recipe, parse_yaml
from gptx_nb.runs import Run, RunStore
from gptx_nb.views import cli, panels
from gptx_nb.worker import pretraining as worker
from gptx_nb.worker.__main__ import _last_words

WORDS = ("the", "river", "stone", "light", "of", "and", "under", "moves", "slowly", "bright", "old", "house", "wind")
NAMES = ["from" if name == "from_" else name for name in PretrainRecipe.model_fields]


def writing(number: int) -> str:
    chosen = random.Random(number)
    return " ".join(chosen.choice(WORDS) for _ in range(40)) + f" {number}."


TEXTS = [writing(number) for number in range(150)]
SMALL: dict[str, Any] = {
    "vocabulary": 300,
    "context": 32,
    "layers": 2,
    "width": 32,
    "heads": 2,
    "tokens_per_step": 256,
    "tokens": 256 * 12,
    "learning_rate": 0.01,
    "dropout": 0.1,
    "device": "cpu",
    "dtype": "float32",
    "validation": 0.1,
    "evaluate_every": 4,
}


def recipe(**settings: Any) -> PretrainRecipe:
    return make_recipe({**SMALL, "data": "texts", **settings}, "", PretrainRecipe)


def pretrained(name: str, **settings: Any) -> Run:
    return launch.train(name, recipe(**settings), data=TEXTS, wait=True).run


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.history() if record.get("kind") == "step"]


# ---- the recipe -----------------------------------------------------------------------------------------------------


def test_every_setting_has_a_flag_a_control_a_completion_a_help_line_and_a_table_row() -> None:
    kind = PretrainRecipe
    assert [flag.setting.name for flag in fields.flags(kind)] == NAMES
    assert [control["name"] for control in fields.form_spec(kind)] == NAMES
    assert [offer.removesuffix(": ") for offer in fields.completions("", kind)] == NAMES
    assert [line.split()[0] for line in fields.help_text(kind).splitlines()] == NAMES
    assert [row.split("`")[1] for row in fields.docs_table(kind).splitlines()[2:]] == NAMES
    for setting in fields.settings(kind):
        assert setting.description.endswith(".")
        assert setting.reason
        assert not setting.reason.endswith(".")


def test_the_readme_tells_every_setting() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert fields.docs_table(PretrainRecipe) in readme


def test_a_recipe_is_the_same_after_a_round_through_yaml() -> None:
    asked = recipe(samples=["Once", "no"])
    again = make_recipe(parse_yaml(asked.to_yaml(), kind=PretrainRecipe), "", PretrainRecipe)
    assert again == asked
    assert again.digest() == asked.digest() != recipe(samples=["Once"]).digest()
    assert recipe(checkpoint_every=5.0).digest() == recipe().digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\ntokens: 5", "both epochs and tokens are given; keep one of them"),
        ("from: gpt2\nwidth: 64", "from: gpt2 has a shape and a tokenizer of its own. Leave out width"),
        ("tokenizer: gpt2\nvocabulary: 300", "the tokenizer gpt2 has a vocabulary of its own. Leave out vocabulary"),
        ("width: 100\nheads: 3", "a width of 100 cannot be shared by 3 heads. Type `heads: 2`"),
        (
            "architecture: llama\ndropout: 0.1",
            "dropout: llama drops nothing. Leave it out, or type `architecture: gpt2`",
        ),
        ("architecture: llama\nwidth: 21\nheads: 1", "llama turns pairs of values, and a head has 21"),
        ("size: tny", "size: 'tny' does not fit: input should be 'tiny', 'mini'"),
        ("epocs: 1", "unknown setting 'epocs'. Did you mean 'epochs'?"),
        ("devices: 2\ndevice: cuda:1", "device: cuda:1 is one device, and devices: 2 are asked for"),
    ],
)
def test_a_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(parse_yaml(f"data: a.txt\n{text}", kind=PretrainRecipe), "cell body", PretrainRecipe)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "mini", "compact", "small"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_size_has_the_same_matrices_in_both_architectures(name: str, architecture: str) -> None:
    made = make_recipe({"data": "x", "size": name, "architecture": architecture}, "", PretrainRecipe)
    tokenizer = AutoTokenizer.from_pretrained(Path(gptx_nb.__file__).parent / "models" / "tiny")
    with torch.device("meta"):
        model = pretrain.new_model(made, tokenizer)
    layers, heads, width = SIZES[name]
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (layers, heads)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    matrices = pretrain.matrix_parameters(model)
    expected = layers * 12 * width**2 + len(tokenizer) * width
    assert matrices == pytest.approx(expected, rel=0.03)


def test_a_larger_step_is_taken_where_there_is_more_to_learn() -> None:
    chosen = [
        pretrain.tokens_per_step(make_recipe({"data": "x"}, "", PretrainRecipe), total, 512)[0]
        for total in (10_000, 10_000_000, 100_000_000, 10**10)
    ]
    assert chosen == [1_024, 8_192, 65_536, 524_288]


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(home: Path) -> Run:
    return pretrained("base", samples=["the river"])


def test_a_run_learns_and_leaves_a_plain_model_with_its_scores(run: Run, tmp_path: Path) -> None:
    assert run.state() == "finished"
    found = losses(run)
    assert len(found) == 12
    assert found[-1] < 0.75 * found[0]
    model = AutoModelForCausalLM.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert (model.config.n_layer, model.config.n_embd, model.config.vocab_size) == (2, 32, 320)
    assert tokenizer.model_max_length == 32
    scores, plan, report = run.scores(), run.plan(), run.report()
    assert scores is not None
    assert plan is not None
    assert report is not None
    validation = scores["validation"]
    assert validation["low"] < validation["bits_per_byte"] < validation["high"]
    assert validation["documents"] == report["validation"]["documents"] > 5
    assert scores["tokens"] == 12 * 256
    assert scores["flops"] == 6 * pretrain.matrix_parameters(model) * 12 * 256
    evaluations = [record for record in run.history() if record.get("kind") == "evaluation"]
    assert [each["step"] for each in evaluations] == [4, 8, 12]
    assert evaluations[-1]["bits_per_byte"] < evaluations[0]["bits_per_byte"]
    assert evaluations[0]["samples"][0]["prompt"] == "the river"
    assert plan["memory"]["choice"] != "unknown"
    assert {"time", "limit", "tokens_per_step"} <= set(plan)

    lines = "\n".join(progress.result_lines(run))
    assert f"{validation['bits_per_byte']:.3f} bits a byte" in lines
    assert "`model: run:base`" in lines
    assert "sample: the river | " in lines
    shown = panels.ended(run)
    assert "bits a byte" in shown["text/html"]
    assert "data:image/png;base64" in shown["text/html"]
    assert "150 documents" in "\n".join(progress.preflight_lines(run))
    assert "bits/byte" in progress.runs_text(progress.run_rows([run]))


def test_running_it_again_shows_it_and_a_change_makes_the_next_version(run: Run) -> None:
    again = launch.train("base", recipe(samples=["the river"]), data=TEXTS)
    assert (again.action, again.run) == ("shown", run)
    other = launch.train("base", recipe(samples=["the river"], seed=1), data=TEXTS, wait=True)
    assert (other.action, other.run.version) == ("new", 2)
    assert "changed since version 1: seed" in other.note
    table = pd.DataFrame({"text": ["good film", "bad film"] * 4, "label": ["good", "bad"] * 4})
    third = launch.train("base", Recipe(model="run:base/1", data="df", epochs=1.0), data=table, wait=True)
    assert "is another kind of run" in third.note


def script(name: str) -> Any:
    """The script of that name in benchmarks/pretrain_tiny, as a module."""
    file = Path(__file__).parents[1] / "benchmarks" / "pretrain_tiny" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_that_makes_tiny_keeps_its_records_and_puts_the_model_into_the_package(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, package, beside = script("make"), tmp_path / "package", tmp_path / "beside"
    package.mkdir()
    beside.mkdir()
    monkeypatch.setattr(make, "HERE", beside)
    monkeypatch.setattr(make, "PACKAGE", package)
    make.write_records(run)
    assert sorted(path.name for path in beside.iterdir()) == ["curve.png", "log.jsonl", "run.json"]
    assert str(tmp_path) not in (beside / "run.json").read_text(), "no path of this machine"
    spent = json.loads((beside / "run.json").read_text())["compute"]
    assert spent["tokens"] == run.plan()["steps"] * run.plan()["tokens_per_step"]["choice"]
    assert 0 < spent["share_of_peak"] < 1
    assert '"bits_per_byte"' in (beside / "log.jsonl").read_text()
    make.put_into_package(run)
    assert AutoModelForCausalLM.from_pretrained(package).dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(package)) == 300
    for name in ("recipe", "recipe_gpu"):
        file = Path(make.__file__).with_name(f"{name}.yaml")
        settings = parse_yaml(file.read_text(encoding="utf-8"), str(file), PretrainRecipe)
        make.check_size(make_recipe({**settings, "data": "corpus"}, "", PretrainRecipe))
    with pytest.raises(SystemExit, match=r"the model would take 67\.\d MB, and the package has room for 32"):
        make.check_size(PretrainRecipe(data="corpus", size="compact", vocabulary=16384, context=512))
    texts = tmp_path / "texts"
    for files_of_a_corpus in (["a.jsonl", "b.jsonl"], ["b.jsonl"]):
        make.link_all([tmp_path / name for name in files_of_a_corpus], texts)
    assert [path.name for path in texts.iterdir()] == ["b.jsonl"]


def test_a_pretrained_run_is_gone_on_with_and_fine_tuned_from_and_the_chain_is_shown(run: Run) -> None:
    onward = launch.train(
        "domain",
        make_recipe(
            {
                **{"data": "texts", "from": "run:base", "context": 32, "tokens": 1024, "dropout": 0.3},
                **{"device": "cpu", "dtype": "float32"},
            },
            "",
            PretrainRecipe,
        ),
        data=[text.upper() for text in TEXTS],
        wait=True,
    ).run
    assert onward.recipe().base == "run:base/1"
    assert AutoModelForCausalLM.from_pretrained(onward.model).config.resid_pdrop == 0.3
    before, after = (load_file(each.model / "model.safetensors") for each in (run, onward))
    assert before.keys() == after.keys()
    name = "transformer.h.0.attn.c_attn.weight"
    assert 0 < (after[name] - before[name]).norm() < before[name].norm()
    table = pd.DataFrame({"text": ["good film", "bad film"] * 4, "label": ["good", "bad"] * 4})
    tuned = launch.train(
        "tuned", Recipe(model="run:domain", data="df", epochs=1.0, device="cpu"), data=table, wait=True
    ).run
    plan = tuned.plan()
    assert plan is not None
    assert plan["model"]["where"] == "run domain version 1 <- run base version 1 <- random weights"
    assert "run base version 1" in "\n".join(progress.preflight_lines(tuned))
    shutil.rmtree(run.folder)  # what came of it needs it no more, and knows it still
    assert models.find("run:domain").where == plan["model"]["where"]
    assert models.find("run:tuned").where == f"run tuned version 1 <- {plan['model']['where']}"
    with pytest.raises(ModelError, match=r"model: no run is called 'domian'\. Did you mean 'domain'\?"):
        launch.train("tuned", Recipe(model="run:domian", data="df"), data=table)


def test_dropout_reaches_a_base_model_that_has_some_and_is_refused_by_others() -> None:
    asked = make_recipe({"data": "x", "layers": 1, "width": 32, "heads": 2, "context": 32}, "", PretrainRecipe)
    tokenizer = AutoTokenizer.from_pretrained(Path(gptx_nb.__file__).parent / "models" / "tiny")
    model = pretrain.new_model(asked, tokenizer)
    pretrain._drop(model, 0.3, "mine")
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    llama = pretrain.new_model(asked.model_copy(update={"architecture": "llama"}), tokenizer)
    pretrain._drop(llama, 0.0, "mine")
    with pytest.raises(ModelError, match=r"dropout: mine \(llama\) drops nothing\. Leave it out"):
        pretrain._drop(llama, 0.3, "mine")


def test_llama_muon_wsd_and_counted_embeddings_go_together(home: Path) -> None:
    run = pretrained(
        "other",
        architecture="llama",
        dropout=0.0,
        optimizer="muon",
        schedule="wsd",
        embeddings="cooccurrence",
        cooldown=0.5,
    )
    rates = [record["learning_rate"] for record in run.history() if record.get("kind") == "step"]
    assert rates[1:6] == [0.01] * 5
    assert rates[-1] < 0.003
    assert losses(run)[-1] < losses(run)[0]
    vectors = load_file(run.data / "embeddings.safetensors")["embeddings"]
    assert vectors.shape == (300, 32)
    assert torch.isfinite(vectors).all()
    plan = run.plan()
    assert plan is not None
    assert plan["memory"]["parts"]["optimiser"] > 0, plan["memory"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"architecture": "llama", "dropout": 0.0, "dtype": "bfloat16"},  # weights in bfloat16 beside their masters
        {"optimizer": "muon", "dtype": "bfloat16"},  # autocast
    ],
)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(more: dict[str, Any], home: Path) -> None:
    settings = {"tokens": 256 * 60, "checkpoint_every": 0.2, **more}
    whole = pretrained("whole", **settings)
    cut = launch.train("cut", recipe(**settings), data=TEXTS).run
    until(lambda: any(cut.checkpoints.glob("0*")) and len(losses(cut)) > 5)
    for process in cut.processes(1).values():
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not cut.active)
    assert cut.state() == "interrupted"
    assert len(losses(cut)) < 60
    files.write_json(cut.plan_file, {**(cut.plan() or {}), "memory": "of another computer"})
    again = launch.train("cut", recipe(**settings), data=TEXTS, wait=True)
    assert again.action == "resumed"
    assert (cut.plan() or {})["memory"] != "of another computer"
    assert losses(cut) == losses(whole)
    ours, theirs = (load_file(each.model / "model.safetensors") for each in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_is_stopped_and_goes_on(home: Path) -> None:
    settings = {"tokens": 256 * 400}
    run = launch.train("long", recipe(**settings), data=TEXTS).run
    until(lambda: len(losses(run)) > 3)
    assert (
        launch.stop(run)
        == "run long version 1 has saved and stopped. Run its cell again to go on: `%%gpt_pretrain long`"
    )
    assert run.model.is_dir()
    again = launch.train("long", recipe(**settings), data=TEXTS)
    assert again.action == "resumed"
    until(lambda: metrics.read(run.metrics_file(2))[0][-1].get("kind") == "step")
    launch.stop(run)


def test_a_run_that_is_stopped_before_its_texts_are_ready_does_not_claim_to_have_saved(home: Path) -> None:
    run = made_runs.make("base", phase="corpus", report=None, plan=None)
    asked = {"kind": "pretrain", "recipe": recipe().model_dump(mode="json", by_alias=True)}
    files.write_json(run.request_file, {**run.request(), **asked})

    def answer(asked: Run) -> None:
        if asked.stop_file.exists():
            files.write_json(asked.outcome_file(1), {"exit_status": 3, "signal": None, "reason": "stopped"})

    assert launch.stop(run, progress=answer) == (
        "run base version 1 has stopped; nothing was saved yet. Run its cell again to begin anew: `%%gpt_pretrain base`"
    )
    assert progress.trouble(run) == (
        "It was stopped before anything was saved. Run the cell `%%gpt_pretrain base` again to begin anew."
    )


def test_room_for_model_and_checkpoints_is_asked_for_before_training(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_runs.make("base")
    made: Any = SimpleNamespace(model=torch.nn.Linear(1000, 1000, bias=False))  # 4 MB
    usage = shutil.disk_usage(home)

    def said(free: int) -> list[str]:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=free))
        return worker._require_room(run, made)

    with pytest.raises(
        DataError, match=r"the model and a checkpoint of it need about 18 MB, and 15 MB are free on the"
    ):
        said(15_000_000)
    assert "three checkpoints and the model need 40 MB" in said(39_000_000)[0]
    assert said(41_000_000) == []
    (run.checkpoints / "000010").mkdir(parents=True)  # one that is there needs no more
    assert said(29_000_000) == []


def test_a_full_disk_is_told_without_a_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_runs.make("base", log="Traceback (most recent call last):\n")
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2_000_000))
    levers: Any = None
    words = _last_words(OSError(errno.ENOSPC, "No space left on device"), run, levers)
    files.write_json(run.outcome_file(1), {"exit_status": 1, "signal": None, **words})
    with pytest.raises(RunFailed) as caught:
        launch.raise_if_bad(run)
    assert str(caught.value) == (
        f"run base version 1 broke off: no room is left on the disk of {run.folder}: 2 MB are free, and more is "
        "needed. Free some first.\nRun the cell `%%gpt_finetune base` again to try once more; nothing was saved yet."
    )


def test_a_cell_and_the_command_line_pretrain_the_same_run(
    plain_shell: InteractiveShell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    asked = recipe(data=str(tmp_path / "texts.jsonl"), tokens=256).to_yaml()
    assert plain_shell.run_cell(f"%%gpt_pretrain base\n{asked}").success
    run = RunStore().find("base")
    until(lambda: not run.active)
    assert run.state() == "finished"
    assert run.recipe().kind == "pretrain"
    capsys.readouterr()
    (tmp_path / "recipe.yaml").write_text(asked)
    assert cli.main(["pretrain", "base", str(tmp_path / "recipe.yaml")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("base v1  finished")
    assert " bits a byte" in said
    assert cli.main(["pretrain", "other", str(tmp_path / "recipe.yaml"), "--data", str(tmp_path / "no.jsonl")]) == 2
    assert "data: there is no file" in capsys.readouterr().err
    assert [each.name for each in RunStore().runs()] == ["base"]


def test_two_processes_learn_what_one_does(home: Path) -> None:
    settings = {"dropout": 0.0, "tokens": 256 * 4}
    one = pretrained("one", **settings)
    theirs = load_file(one.model / "model.safetensors")
    for name, more in (("two", {}), ("shared", {"sharding": "on"})):
        two = pretrained(name, devices=2, **settings, **more)
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        ours = load_file(two.model / "model.safetensors")
        assert set(ours) == set(theirs)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


@pytest.mark.parametrize(
    ("settings", "data", "kind", "message"),
    [
        ({}, ["short"], DataError, "holds no text of 16 characters or more"),
        ({}, None, DataError, "there is nothing to learn from. Name texts, as in `data: books/`"),
        ({"context": 16384}, TEXTS, DataError, "fewer than two rows of 16,384"),
        (
            {"tokens": 10**9},
            TEXTS,
            DataError,
            r"passes over texts of [\d,]+ tokens, and 1,000 are the most\. G",
        ),
        ({"tokenizer": "/nowhere/at/all"}, TEXTS, ModelError, "tokenizer: there is no folder /nowhere/at/all"),
        ({"tokenizer": "bare"}, TEXTS, ModelError, r"the folder .*/bare holds no tokenizer .*type `tokenizer: tiny`"),
    ],
)
def test_a_mistake_leaves_nothing_behind(
    settings: dict[str, Any],
    data: object,
    kind: type[Exception],
    message: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = {
        key: value for key, value in {**SMALL, **settings}.items() if "tokenizer" not in settings or key != "vocabulary"
    }
    with pytest.raises(kind, match=message):
        launch.train("bad", make_recipe(asked, "", PretrainRecipe), data=data, wait=True)
    assert RunStore().runs() == []
    assert not list((home / "runs").glob("*/*"))


def test_more_context_than_the_base_model_sees_is_refused_before_texts_are_read(run: Run) -> None:
    asked = make_recipe({"data": "x", "from": "run:base", "context": 4096}, "", PretrainRecipe)
    with pytest.raises(ModelError, match=r"context: 4,096 tokens are asked for, and run:base sees 32 at once\. Type "):
        pretrain.tokenizer_for(asked, lambda text: None)
    fits = make_recipe({"data": "x", "from": "run:base", "context": 16}, "", PretrainRecipe)
    assert pretrain.tokenizer_for(fits, lambda text: None) is not None
    with pytest.raises(ModelError, match=r"^from: there is no folder \./nothing.* or `from: tiny`"):
        pretrain.tokenizer_for(fits.model_copy(update={"from_": "./nothing"}), lambda text: None)


def test_a_tokenizer_is_reused_and_one_that_does_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    asked = {key: value for key, value in SMALL.items() if key != "vocabulary"}
    folder = run.data / "tokenizer"
    again = launch.train(
        "reused", make_recipe({**asked, "tokenizer": str(folder)}, "", PretrainRecipe), data=TEXTS, wait=True
    ).run
    both = [json.loads((each.model / "tokenizer.json").read_text())["model"] for each in (run, again)]
    assert both[0] == both[1]
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(run.model)
    model.resize_token_embeddings(200)
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(run.model).save_pretrained(broken)
    with pytest.raises(ModelError, match="has 300 tokens, and the model knows 200"):
        launch.train("bad", make_recipe({"data": "x", "from": str(broken)}, "", PretrainRecipe), data=TEXTS)


def test_embeddings_of_fewer_axes_than_the_width_begin_at_zero_elsewhere() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_layer=1, n_head=2, n_embd=16, n_positions=8))
    usual = model.transformer.wte.weight.data.norm(dim=1).mean()
    vectors = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    pretrain.begin_at(model, vectors)
    begun = model.transformer.wte.weight.data
    assert torch.allclose(begun[:10].norm(dim=1), usual.expand(10))
    assert not begun[:10, 6:].any()
    assert begun[10:].all()
