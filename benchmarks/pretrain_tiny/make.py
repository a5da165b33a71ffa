"""Make the embedded base model `tiny`: pretrain it with the tool, score it beside references, put it into the package.

    python benchmarks/pretrain_tiny/make.py CORPUS [--recipe FILE] [--tokens N] [--device cuda] [--keep]

--recipe is recipe.yaml beside this file, or recipe_gpu.yaml for a machine with a GPU. CORPUS holds `*.jsonl` or
`*.jsonl.xz` with one document a line (`{"text": ...}`); files whose name starts with `validation` are held out. The run
is called `tiny` in $GPTX_HOME: the same command goes on with it after it was stopped or killed. A model that the
package has no room for is refused before it is trained. --keep leaves the package's model as it is. Beside this file
are written

    run.json      what the run decided, how it scored and what it cost; what was left out of the texts (DATA.md)
    log.jsonl     loss by step, thinned; every score on held-out documents
    curve.png     the same as a picture

and references.json: bits a byte of SmolLM2-135M and of `xz -9` on the same documents.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM

import gptx_nb
from gptx_nb import curves, launch, progress
from gptx_nb.engine import corpus, models
from gptx_nb.engine.tasks import language_modeling
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.progress import Progress, StatusLine
from gptx_nb.recipe import make_recipe, parse_yaml
from gptx_nb.run_files import home
from gptx_nb.runs import Run
from gptx_nb.sources import stage
from gptx_nb.views import figures

HERE = Path(__file__).parent
PACKAGE = Path(gptx_nb.__file__).parent / "models" / "tiny"
LIMIT = 32_000_000  # bytes of the weights in the package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.yaml")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--device")
    parser.add_argument("--keep", action="store_true", help="do not put the model into the package")
    given = parser.parse_args()
    files = sorted([*given.corpus.glob("*.jsonl"), *given.corpus.glob("*.jsonl.xz")])
    held_out = [path for path in files if path.name.startswith("validation")]
    if len(held_out) != 1 or len(files) < 2:
        parser.error(f"{given.corpus} needs *.jsonl(.xz) files, one of them named validation*")
    settings = dict(parse_yaml(given.recipe.read_text(encoding="utf-8"), str(given.recipe), PretrainRecipe))
    settings |= {name: value for name in ("tokens", "device") if (value := getattr(given, name)) is not None}

    training = home() / "pretrain-tiny-texts"
    link_all([path for path in files if path not in held_out], training)
    recipe = make_recipe(
        {**settings, "data": str(training), "validation": str(held_out[0].absolute())}, "", PretrainRecipe
    )
    if not given.keep:
        check_size(recipe)
    line = StatusLine()
    run = launch.train("tiny", recipe, wait=True, progress=line).run
    line.close()
    print("\n".join(progress.result_lines(run)))
    write_records(run)
    references = HERE / "references.json"
    references.write_text(json.dumps(reference_scores(held_out[0]), indent=2) + "\n", encoding="utf-8")
    print(references.read_text(encoding="utf-8"))
    if not given.keep:
        put_into_package(run)


def link_all(files: Sequence[Path], folder: Path) -> None:
    """Let `folder` hold links to `files`, and to nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for path in files:
        (folder / path.name).symlink_to(path.absolute())


def check_size(recipe: PretrainRecipe) -> None:
    """End here where the package has no room for the weights of such a model."""
    layers, _, width = recipe.shape()
    numbers = width * (recipe.vocabulary + recipe.context) + layers * (12 * width + 13) * width + 2 * width
    if 2 * numbers > LIMIT:
        raise SystemExit(
            f"the model would take {2 * numbers / 1e6:.1f} MB, and the package has room for {LIMIT / 1e6:.0f}. Take "
            "fewer layers or a smaller width or vocabulary, or --keep"
        )


def write_records(run: Run) -> None:
    seen = Progress(run).refresh()
    facts = {
        "recipe": yaml.safe_load(run.recipe().to_yaml()),
        "plan": run.plan(),
        "corpus": run.report(),
        "compute": compute(seen.steps, run.plan()),
        "scores": run.scores(),
    }
    for name in ("data", "validation"):  # paths of this machine
        facts["recipe"].pop(name)
    for name in ("source", "validation_note"):
        facts["corpus"].pop(name, None)
    (HERE / "run.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with (HERE / "log.jsonl").open("w", encoding="utf-8") as log:
        for step, loss in curves.thinned([(each["step"], each["loss"]) for each in seen.steps], 500):
            log.write(json.dumps({"step": step, "loss": round(loss, 4)}) + "\n")
        for each in seen.evaluations:
            kept = {key: each[key] for key in ("step", "bits_per_byte", "low", "high", "samples")}
            log.write(json.dumps(kept, ensure_ascii=False) + "\n")
    if picture := figures.small(seen, run.scores()):
        (HERE / "curve.png").write_bytes(picture)


def compute(steps: Sequence[dict[str, Any]], plan: dict[str, Any] | None) -> dict[str, float]:
    """Return what all steps cost, scoring left out, and their share of the fastest matrix product that the plan names.

    The plan's share is that of a trial, from which it also tells the time of all tokens.
    """
    seconds, tokens = sum(each["seconds"] for each in steps), sum(each["tokens"] for each in steps)
    told = {"seconds": round(seconds, 1), "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)}
    if plan and "limit" in plan and "time" in plan:
        told["share_of_peak"] = round(plan["limit"]["share"] * plan["time"]["seconds"] / seconds, 3)
    return told


def reference_scores(held_out: Path) -> dict[str, Any]:
    """Return bits a byte of SmolLM2-135M, in rows of 512 tokens as tiny is scored, and of `xz -9`."""
    content = held_out.read_bytes()
    lines = (lzma.decompress(content) if held_out.suffix == ".xz" else content).decode("utf-8").strip().split("\n")
    text = "\n\n".join(json.loads(line)["text"] for line in lines).encode("utf-8")
    packed = lzma.compress(text, preset=9)
    base = models.find("smollm2-135m", note=print)
    model = models.load_causal(base)
    language_modeling.use(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = make_recipe({"data": str(held_out), "from": "smollm2-135m", "validation": 0.5}, "", PretrainRecipe)
        sources = stage(recipe, None, str(held_out), folder)
        # All documents are "validation" here; what they equal is not learnt from, so a stand-in is.
        sources["train"] = stage(recipe, ["No document equals this one, and it is long enough."], None, folder)["train"]
        corpus.prepare(recipe, sources, folder, folder / "data", models.load_tokenizer(base), lambda done: None)
        made = corpus.load(folder / "data")
        score = language_modeling.score(model, made.validation, length=512, token_budget=2048)
    return {
        "smollm2-135m": score.to_json(),
        "xz -9": {"bits_per_byte": 8 * len(packed) / len(text), "text_bytes": len(text)},
    }


def put_into_package(run: Run) -> None:
    """Write the run's model in bfloat16 into the package; the model card stays, and is for a person to renew."""
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        size = (Path(scratch) / "model.safetensors").stat().st_size
        if size > LIMIT:
            raise SystemExit(f"the model takes {size / 1e6:.0f} MB, and the package has room for {LIMIT / 1e6:.0f}")
        for path in [
            *Path(scratch).iterdir(),
            *(run.model / name for name in ("tokenizer.json", "tokenizer_config.json")),
        ]:
            shutil.copyfile(path, PACKAGE / path.name)
    print(f"{PACKAGE} is the new model; renew its README.md, and measure transfer.py")


if __name__ == "__main__":
    main()
