"""The command line, `gptx-nb`: the same wishes as the magics, for a terminal or a script. Parses, calls core, prints.

Results go to standard output, progress and messages to standard error. Exit status: 0, 2 for a mistake of the user (one
line), 1 where a run broke off, 130 after Ctrl-C, which ends the waiting and never a run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import gptx_nb
from gptx_nb import fields, files
from gptx_nb.errors import GptxError, UsageError, nearest
from gptx_nb.generations import Generations
from gptx_nb.pretraining import AnyRecipe, PretrainRecipe
from gptx_nb.recipe import Lines, Recipe, make_recipe, parse_yaml
from gptx_nb.runs import RunStore

Command = Callable[[argparse.Namespace], None]

EVALUATED = (  # settings of a recipe that `eval` takes
    *("columns", "text", "label", "label_separator", "prompt", "label_words", "split", "subset", "seed", "allow_code"),
)
WISHES: dict[str, Callable[[str], Any]] = {  # of `predict`, for a model that writes
    **dict.fromkeys(("--temperature", "--top-p"), float),
    **dict.fromkeys(("--top-k", "--max-new-tokens", "--n", "--seed", "--beams"), int),
    **dict.fromkeys(("--from", "--to", "--task", "--labels", "--label-words"), str),
    **dict.fromkeys(("--stop", "--prompt"), lambda text: text.replace("\\n", "\n")),
}

MISTAKE, BROKEN, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        parsed = parser().parse_args(arguments)
        command: Command = parsed.command
        command(parsed)
        sys.stdout.flush()
    except UsageError as error:
        print(f"gptx-nb: {error}", file=sys.stderr)
        return MISTAKE
    except GptxError as error:
        print(f"gptx-nb: {error}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt as error:
        print(f"\n{error}" if str(error) else "", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line, with the nearest flag or command."""

    def error(self, message: str) -> NoReturn:
        known = [*self._option_string_actions, *(str(name) for each in self._actions for name in each.choices or ())]
        wrong = re.search(r"unrecognized arguments: (\S+)|invalid choice: '([^']*)'", message)
        hint = nearest((wrong[1] or wrong[2]).partition("=")[0], known) if wrong else ""
        raise UsageError(f"{message}.{hint} `{self.prog} --help` shows what there is")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, left = self.parse_known_args(args, namespace)
        if left and getattr(parsed, "text", None) == [] and not any(each.startswith("-") for each in left):
            parsed.text, left = left, []  # argparse takes texts before a flag only
        if left:
            getattr(parsed, "parser", self).error(f"unrecognized arguments: {' '.join(left)}")
        return parsed


def parser() -> Parser:
    """Return the parser of all commands; its settings come from Recipe."""
    top = Parser(prog="gptx-nb", description="Pretrain a GPT, fine-tune it on a table, and ask it.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"gptx-nb {gptx_nb.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, words: str, aliases: Sequence[str] = ()) -> Parser:
        one = commands.add_parser(name, aliases=list(aliases), help=words, description=words, allow_abbrev=False)
        one.set_defaults(command=command, parser=one)
        return one

    kinds: list[tuple[str, type[AnyRecipe], str, list[str]]] = [
        ("finetune", Recipe, "train a run on a table, attach to it, resume it, or show it", ["train"]),
        ("pretrain", PretrainRecipe, "the same on plain text: make a base model, or let one go on learning", []),
    ]
    for name, kind, words, aliases in kinds:
        one = add(name, train, words, aliases)
        one.set_defaults(kind=kind)
        one.add_argument("name", help="what the run is called")
        one.add_argument("recipe", nargs="?", type=Path, help="a YAML file of settings, `name: value` a line")
        one.add_argument("--detach", action="store_true", help="return once training has begun")
        settings = one.add_argument_group("settings", "They win over the recipe's file.")
        for flag in fields.flags(kind):
            settings.add_argument(flag.option, **flag.arguments)

    one = add("predict", predict, "ask a run about texts: given here, or a text a line from a file or standard input")
    one.add_argument("name", help="a run; NAME/2 is version 2")
    one.add_argument("text", nargs="*", default=[], help="a text each")
    one.add_argument("--file", type=Path, help="a text a line, or in a .jsonl file an object by column")
    one.add_argument("--json", action="store_true", help="print JSON")

    writing = one.add_argument_group("of a model that writes")
    for option, kind_of in WISHES.items():
        again: dict[str, Any] = {"action": "append", "help": "where an answer ends; may be given several times"}
        more = again if option == "--stop" else {}
        writing.add_argument(option, type=kind_of, default=None, metavar=option[2:].upper(), **more)
    writing.add_argument("--shots", type=Path, help="a .jsonl file of examples with answers, shown before the prompt")

    one = add("eval", evaluate, "score a run, or a base model, on any table")
    one.add_argument("name", help="a run; NAME/2 is version 2; or a base model")
    one.add_argument("data", help="a file, a data set's folder, or its name on the Hugging Face Hub")
    for name in ("task", *EVALUATED):
        one.add_argument(f"--{name.replace('_', '-')}")
    for option in ("--shots", "--most", "--max-new-tokens"):
        one.add_argument(option, type=int, metavar="N")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = add("compare", compare, "show runs side by side: their scores, and what differs in their recipes")
    one.add_argument("names", nargs="+", metavar="NAME", help="two to eight runs; NAME/2 is version 2")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = add("runs", runs, "list all runs, newest first")
    one.add_argument("--json", action="store_true", help="print JSON")
    for name, command, words in (
        ("watch", watch, "show a run until it ends"),
        ("stop", stop, "save and stop a run; `finetune` goes on with it"),
    ):
        add(name, command, words).add_argument("name", help="a run; NAME/2 is version 2")
    one = add("merge", merge, "make a plain model of a run that is kept as an adapter")
    one.add_argument("name", help="a run; NAME/2 is version 2")
    one.add_argument("folder", nargs="?", type=Path, help="a new folder; left out: `merged` in the run's own")
    add("device", device, "show where a run would train, and why")
    add("free", free, "end the inference process and free its memory")

    one = add("kernel", kernel, "make a Jupyter kernel that is bound to a GPU and to default settings")
    one.add_argument("action", choices=["add"], help="add: install it, or replace it")
    one.add_argument("--gpu", default="auto", help="a number as nvidia-smi counts them, a UUID, auto or none")
    one.add_argument("--recipe", type=Path, help="a YAML file of settings that are its defaults")
    one.add_argument("--name", help="what it is called on disk")
    one.add_argument("--user", action="store_true", help="for all environments of this user, not for this one only")
    return top


def train(given: argparse.Namespace) -> None:
    from gptx_nb import launch, progress

    kind: type[AnyRecipe] = given.kind
    settings: dict[str, Any] = {}
    where = "flags"
    if given.recipe is not None:
        where = str(given.recipe)
        settings = parse_yaml(_read(given.recipe), where, kind)
    flags = fields.read_flags({setting.name: getattr(given, setting.name) for setting in fields.settings(kind)}, kind)
    make_recipe(flags, "flags", kind)
    lines = {name: line for name, line in getattr(settings, "lines", {}).items() if name not in flags}
    recipe = make_recipe(Lines({**settings, **flags}, lines), where, kind)
    status = progress.StatusLine()
    told = False

    def look(run: Any) -> None:
        nonlocal told
        if not told and run.plan_file.exists():
            told = True
            status.close()
            print("\n".join(progress.preflight_lines(run)), file=sys.stderr)
        status(run)

    try:
        launched = launch.train(given.name, recipe, wait=not given.detach, progress=look)
    finally:
        status.close()
    if launched.note:
        print(launched.note, file=sys.stderr)
    view = progress.Progress(launched.run).refresh()
    print("\n".join(progress.result_lines(launched.run)) if not launched.run.active else view.line())


def predict(given: argparse.Namespace) -> None:
    from gptx_nb import api

    if given.file is not None and given.text:
        raise UsageError("both texts and --file are given; keep one of them")
    if given.text:
        texts = given.text
    elif given.file is not None:
        rows = given.file.suffix == ".jsonl"  # a row by column each, as {"question": …, "context": …}
        texts = _json_lines(given.file) if rows else [line for line in _read(given.file).splitlines() if line.strip()]
    elif sys.stdin.isatty():
        raise UsageError(f'what text? Type it behind the name, as in `gptx-nb predict {given.name} "Nice."`')
    else:
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    wishes = {key: value for each in WISHES if (value := getattr(given, key := each[2:].replace("-", "_"))) is not None}
    if "from" in wishes:  # no name in Python
        wishes["from_"] = wishes.pop("from")
    if given.shots is not None:
        wishes["shots"] = _json_lines(given.shots)
    streams = len(texts) == 1 and not given.json and sys.stdout.isatty()
    found = api.predict(given.name, texts, on_text=_print if streams else None, **wishes)
    if isinstance(found, Generations):
        _show(found, given.json, streams)
        return
    if given.json:
        cut = set(found.cut_at)
        rows = [
            {
                "text": each.text,
                "label": each.label,
                "probability": each.probability,
                "probabilities": each.probabilities,
                **({} if found.threshold is None else {"labels": list(each.labels)}),
                **({"cut": True} if at in cut else {}),
            }
            for at, each in enumerate(found)
        ]
        print(json.dumps(files.finite(rows), ensure_ascii=False, indent=2))
    else:
        for each in found:
            print(f"{each.label}\t{each.probability:.3f}\t{' '.join(each.text.split())}")
        for note in found.notes():
            print(note, file=sys.stderr)


def evaluate(given: argparse.Namespace) -> None:
    from gptx_nb import api

    settings: dict[str, Any] = fields.read_flags({name: getattr(given, name) for name in EVALUATED})
    for name in ("task", "shots", "most", "max_new_tokens"):
        if (value := getattr(given, name)) is not None:
            settings[name] = value
    found = api.evaluate(given.name, given.data, **settings)
    print(json.dumps(files.finite(asdict(found)), ensure_ascii=False, indent=2) if given.json else repr(found))


def _print(text: str) -> None:
    print(text, end="", flush=True)


def _show(found: Generations, as_json: bool, streamed: bool) -> None:
    if as_json:
        cut = set(found.cut_at)
        rows = [
            {
                "prompt": each.asked,
                "texts": each.texts,
                "ended": each.ended,
                "probabilities": each.probabilities,
                **({"cut": True} if at in cut else {}),
            }
            for at, each in enumerate(found)
        ]
        print(json.dumps(files.finite(rows), ensure_ascii=False, indent=2))
        return
    if streamed and all(each.probabilities is None for each in found) and len(found[0].texts) == 1:
        print()
    else:
        print(repr(found))
        return
    for note in found.notes():
        print(note, file=sys.stderr)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise UsageError(f"{path}, line {number} is no JSON. Write an object a line, by role") from None
    return rows


def compare(given: argparse.Namespace) -> None:
    from gptx_nb import api

    found = api.compare(*given.names)
    if given.json:
        told = {"runs": found.head[1:], "scores": found.scores, "settings": found.settings}
        print(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        print(found)


def runs(given: argparse.Namespace) -> None:
    from gptx_nb import progress

    rows = progress.run_rows(RunStore().runs())
    print(json.dumps(files.finite(rows), ensure_ascii=False, indent=2) if given.json else progress.runs_text(rows))


def watch(given: argparse.Namespace) -> None:
    from gptx_nb import api, launch, progress

    run = api.watch(given.name)
    launch.raise_if_bad(run)
    print("\n".join(progress.result_lines(run)))


def stop(given: argparse.Namespace) -> None:
    from gptx_nb import api

    print(api.stop(given.name))


def merge(given: argparse.Namespace) -> None:
    from gptx_nb import api

    print(api.merge(given.name, given.folder))


def device(given: argparse.Namespace) -> None:
    from gptx_nb import api, progress

    print(progress.text_table(("", ""), progress.device_lines(api.device())).lstrip())


def free(given: argparse.Namespace) -> None:
    from gptx_nb import api

    print(api.free())


def kernel(given: argparse.Namespace) -> None:
    from gptx_nb.kernel import specs

    folder = specs.add(given.gpu, given.recipe, given.name, user=given.user)
    print(f"{folder}\nIt is in the launcher after a reload; `jupyter kernelspec remove {folder.name}` removes it.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}. Check its name") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start + 1}). Save it as UTF-8") from None


if __name__ == "__main__":
    sys.exit(main())
