"""The magics: parse a line, call core, show what comes of it. Each has a Python twin in `gptx_nb`.

Nothing in a line or body is expanded but {{expression}}, so a `$VARIABLE` never lands in an output. A user's mistake is
one message without a traceback; a bug keeps its traceback. Nothing here waits for training, except where asked to.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand
from IPython.display import clear_output
from traitlets import Any as AnyTrait

from gptx_nb import fields
from gptx_nb.catalog import CATALOG, RUN
from gptx_nb.errors import DataError, GptxError, RecipeError, UsageError, nearest
from gptx_nb.pretraining import AnyRecipe, PretrainRecipe
from gptx_nb.recipe import ROLES, Lines, Recipe, check_name, make_recipe, parse_yaml, settings_of
from gptx_nb.runs import Run, RunStore

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gptx_nb.evaluations import Evaluation
    from gptx_nb.first_batches import FirstBatch
    from gptx_nb.generations import Generations
    from gptx_nb.predictions import Predictions
    from gptx_nb.views.comparisons import ComparisonView
    from gptx_nb.views.panel import PanelView
    from gptx_nb.views.panels import DeviceView, LiveView, RunTable, RunView

P = ParamSpec("P")
T = TypeVar("T")

EXPRESSION = re.compile(r"\{\{(.+?)\}\}", re.DOTALL)
# What a recipe says of conversations, up to the next setting: its {{ }} are the template's own.
CHAT_TEMPLATE = re.compile(r"^chat_template:(?P<value>[^\n]*(?:\n[ \t]+[^\n]*|\n[ \t]*(?=\n))*)", re.MULTILINE)
SECRET_NAME = re.compile(r"\$\{?\w*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL)\w*\}?", re.IGNORECASE)
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}")
FLAG = re.compile(r"""(--[a-z][a-z_-]*)(?:=|\s+)(\{\{.+?\}\}|"[^"]*"|'[^']*'|\S+)""", re.DOTALL)
WISHES: dict[str, Callable[[str], Any]] = {  # of %gpt_predict, and how each is read
    "--temperature": float,
    "--top-p": float,
    "--top-k": int,
    "--max-new-tokens": int,
    "--stop": lambda text: text.replace("\\n", "\n"),
    "--n": int,
    "--seed": int,
    "--beams": int,
    **dict.fromkeys(("--from", "--to"), str),
    **dict.fromkeys(("--labels", "--label-words"), str),
    "--prompt": lambda text: text.replace("\\n", "\n"),
    "--task": str,
    "--shots": str,
}
REPEATED = ("--stop",)
EVAL_FLAGS = (
    *("--task", "--columns", "--text", "--label", "--label-separator", "--split", "--subset"),
    *("--prompt", "--label-words"),
    *("--shots", "--seed", "--most", "--max-new-tokens", "--allow-code"),
)
ALONE = "gptx value {} "  # stands in the YAML for an expression that is a whole value
EXAMPLE_NAMES: dict[type[AnyRecipe], str] = {Recipe: "reviews", PretrainRecipe: "my-domain"}
NOT_CONFIGURED = (
    "data",
    "examples",
    "text",
    "label",
    "labels",
    "columns",
    "prompt",
    "label_words",
)  # they belong to one table


class Brief(Exception):
    """An error that needs no traceback: IPython shows its name and message."""

    def _render_traceback_(self) -> list[str]:
        return [f"\x1b[31m{type(self).__name__}\x1b[0m: {self}"]


class Interrupted(KeyboardInterrupt):
    """An interrupt that says in one line what it has ended, and what not."""

    def _render_traceback_(self) -> list[str]:
        return [str(self) or "Interrupted."]


def briefly(method: Callable[P, T]) -> Callable[P, T]:
    """Let a magic show a user's mistake, a run that broke off, and an interrupt as one message without a traceback."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except UsageError as error:
            raise IPythonUsageError(str(error)) from None
        except GptxError as error:
            raise type(type(error).__name__, (Brief,), {})(str(error)) from None
        except KeyboardInterrupt as error:
            raise Interrupted(str(error)) from None

    return call


# One trait a setting, so that `%config GptxMagics.model = "gpt2"` changes the default of this notebook.
_DEFAULTS = {
    setting.name: AnyTrait(None, allow_none=True, help=f"{setting.description} Unless set: {setting.reason}.").tag(
        config=True
    )
    for setting in fields.settings()
    if setting.name not in NOT_CONFIGURED
}
_Configured: Any = types.new_class("_Configured", (Magics,), exec_body=lambda body: body.update(_DEFAULTS))


@magics_class
class GptxMagics(_Configured):  # type: ignore[misc]
    """Pretrain a GPT, fine-tune it on a table, and ask it."""

    shell: InteractiveShell

    @no_var_expand
    @line_cell_magic
    @briefly
    def gpt_finetune(self, line: str, cell: str | None = None) -> RunView:
        return self._train(line, cell, Recipe)

    @no_var_expand
    @line_cell_magic
    @briefly
    def gpt_pretrain(self, line: str, cell: str | None = None) -> RunView:
        return self._train(line, cell, PretrainRecipe)

    def _train(self, line: str, cell: str | None, kind: type[AnyRecipe]) -> RunView:
        name, recipe, objects = self._wish(line, cell, kind)
        from gptx_nb import launch

        with self._showing(name) as screen:
            try:
                launched = launch.train(name, recipe, **objects, progress=screen.look)
            except DataError as error:
                raise DataError(f"{error}{self._meant(recipe, objects)}") from None
            return screen.result(launched.run, launched.note)

    @no_var_expand
    @line_cell_magic
    @briefly
    def gpt_batch(self, line: str, cell: str | None = None) -> FirstBatch:
        """Show the first batch of a %%gpt_finetune cell as the model sees it: type gpt_batch in its place.

        What carries loss is bold, the rest greyed. Nothing is trained.
        """
        _, recipe, objects = self._wish(line, cell, Recipe)
        from gptx_nb import first_batches

        try:
            return first_batches.of(recipe, **objects)
        except DataError as error:
            raise DataError(f"{error}{self._meant(recipe, objects)}") from None

    @no_var_expand
    @line_cell_magic
    @briefly
    def gpt_predict(self, line: str, cell: str | None = None) -> Predictions | Generations:
        """Ask a run, or a base model, about texts.

        %gpt_predict NAME text             the rest of the line, quotes around it are taken off
        %gpt_predict NAME {{expression}}   a text, row, conversation, list, Series or DataFrame of this notebook
        %%gpt_predict NAME                 a text a line

        NAME/2 is version 2; gpt2, a folder or OWNER/NAME is a base model. While the run trains, this waits for it; an
        interrupt ends the waiting, not the training. Of a model that writes, a single answer appears as it is written,
        and an interrupt ends it. Flags, between name and text:

        --max-new-tokens N   --temperature NUMBER (0: the likeliest)   --top-p NUMBER   --top-k N
        --stop TEXT          where an answer ends; give it again for another such text
        --n N                so many answers to each prompt
        --beams N            search the likeliest answer among N that grow side by side
        --seed N
        --from LANGUAGE      of a translation   --to LANGUAGE
        --task TASK          what a base model shall do, by default text-generation
        --shots {{rows}}     examples with their answers, shown before the prompt

        A base model is told with --labels to give labels, as in %gpt_predict smollm2-135m --labels good,bad "Fine!"
        Shots that have labels do for that. Each text may be two, in an object or a table with their names, as
        {premise: …, hypothesis: …}.

        --prompt TEXT        that a label's words complete, as in "Review: {text}\\nSentiment:"
        --label-words {{words by label}}
        """
        name, asked, texts = self._question(line, cell)
        from gptx_nb import api, inference

        who = api.find(name)
        if isinstance(who, Run):
            if who.active:
                with self._showing(who.name, briefly=True) as screen:
                    api.wait_for_model(who, screen.look)
                    screen.clear()
            else:
                api.require_model(who)
            if not inference.writes(who):
                api.refuse_wishes(who, list(asked))
                return inference.predict(who, texts)
        if "from" in asked:  # no name in Python
            asked["from_"] = asked.pop("from")
        of_labels = ("task", "labels", "prompt", "label_words", "shots")
        if api.gives_labels(who, **{key: asked[key] for key in of_labels if key in asked}):
            return api.predict(name, texts, **asked)
        more = {key: asked.pop(key) for key in ("task", "from_", "to") if key in asked}
        shots = api.rows_of(asked.pop("shots", ()))
        said: list[str] = []
        on_text = self._saying(said) if getattr(self.shell, "kernel", None) is not None else None
        found = inference.generate(who, texts, api.read_wishes(asked), shots=shots, on_text=on_text, **more)
        if said:
            clear_output(wait=True)  # type: ignore[no-untyped-call]
        return found

    def _saying(self, said: list[str]) -> Callable[[str], None]:
        """Return what prints pieces of an answer as they come, and keeps them in `said`."""

        def say(text: str) -> None:
            said.append(text)
            print(text, end="", flush=True)

        return say

    @no_var_expand
    @line_magic
    @briefly
    def gpt_eval(self, line: str) -> Evaluation:
        """Score a run, or a base model, on any table: %gpt_eval NAME data [--flag value ...].

        `data` is a table of this notebook, a file, a folder, or a data set's name; NAME as in %gpt_predict. Flags:

        --task TASK          what a base model shall do, by default what the table's columns are for
        --columns {role: column}   --text COLUMN   --label COLUMN   --split NAME   --subset NAME
        --label-separator ";"      what stands between the labels of a text, by default what the run learnt with
        --prompt "Review: {text}\\nSentiment:"   --label-words '{0: bad, 1: good}'   of a base model that gives labels
        --shots K            rows of the table that a model is shown with their answers, and not scored on
        --seed N             by which they are drawn from all over the table
        --most N             answers to write, 50 by default   --max-new-tokens N of each
        --allow-code true    run written programs in a sandbox, to score them by their tests
        """
        _refuse_secrets(line)
        words = list(_split(line))
        usage = "%gpt_eval takes the name of a run or base model and a table, as in `%gpt_eval reviews test.csv`"
        plain: list[str] = []
        settings: dict[str, Any] = {}
        while words:
            word = words.pop(0)
            if not word.startswith("--"):
                plain.append(word)
                continue
            option, separator, value = word.partition("=")
            if option.replace("_", "-") not in EVAL_FLAGS:
                raise UsageError(
                    f"unknown flag {option!r}.{nearest(option, EVAL_FLAGS)} Flags: {', '.join(EVAL_FLAGS)}"
                )
            if not separator and not words:
                raise UsageError(f"{option} needs a value")
            key = option[2:].replace("-", "_")
            settings[key] = parse_yaml(f"{key}: {self._inserted(value if separator else words.pop(0))}", option)[key]
        if len(plain) != 2:
            raise UsageError(usage)
        asked: dict[str, Any] = {"data": plain[1]}
        objects: dict[str, Any] = {}
        self._resolve(asked, "data", objects)
        data = objects.get("data", unquoted(str(asked["data"])))
        from gptx_nb import api

        return api.evaluate(unquoted(self._inserted(plain[0])), data, **settings)

    @no_var_expand
    @line_magic
    @briefly
    def gpt_watch(self, line: str) -> RunView:
        """Show a run until it ends: %gpt_watch NAME. An interrupt ends the showing, not the run."""
        run = self._run(line, "gpt_watch")
        from gptx_nb import api, launch

        with self._showing(run.name) as screen:
            try:
                launch.wait(run, screen.look)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(api.going_on(run)) from None
            return screen.result(run)

    @no_var_expand
    @line_magic
    @briefly
    def gpt_stop(self, line: str) -> None:
        """Save and stop a run: %gpt_stop NAME. Running its cell again goes on from there."""
        run = self._run(line, "gpt_stop")
        from gptx_nb import launch

        print(launch.stop(run))

    @no_var_expand
    @line_magic
    @briefly
    def gpt_panel(self, line: str) -> PanelView:
        """Configure, watch, ask and compare runs in one panel: %gpt_panel. %gpt_panel NAME opens a run's recipe."""
        name = self._words(line)
        run = RunStore().find(name) if name else None
        from gptx_nb.views.panel import PanelView

        return PanelView(_Notebook(self), run)

    @no_var_expand
    @line_magic
    @briefly
    def gpt_compare(self, line: str) -> ComparisonView:
        """Show runs side by side: %gpt_compare NAME NAME ...; NAME/2 is version 2, of a name alone the latest."""
        names = self._words(line).split()
        from gptx_nb import api
        from gptx_nb.views.comparisons import ComparisonView

        return ComparisonView(api.compare(*names))

    @no_var_expand
    @line_magic
    @briefly
    def gpt_runs(self, line: str) -> RunTable:
        """List all runs, newest first: %gpt_runs. Of a run its versions: %gpt_runs NAME, or one: %gpt_runs NAME/2."""
        from gptx_nb import progress
        from gptx_nb.views.panels import RunTable

        store = RunStore()
        name = self._words(line)
        if not name:
            runs = store.runs()
        else:
            runs = [store.find(name)] if "/" in name else store.versions(store.find(name).name)
        return RunTable(progress.run_rows(runs))

    @no_var_expand
    @line_magic
    @briefly
    def gpt_device(self, line: str) -> DeviceView:
        """Show where a run would train, in which arithmetic, and why: %gpt_device."""
        _alone(line, "gpt_device")
        from gptx_nb import api, gpus
        from gptx_nb.views.panels import DeviceView

        return DeviceView({**api.device(), "kernel": gpus.given()})

    @no_var_expand
    @line_magic
    @briefly
    def gpt_free(self, line: str) -> None:
        """End the inference process, which frees its memory: %gpt_free. The next prediction starts a new one."""
        _alone(line, "gpt_free")
        from gptx_nb import api

        print(api.free())

    # ---- what was typed ---------------------------------------------------------------------------------------------

    def _wish(
        self, line: str, cell: str | None, kind: type[AnyRecipe] = Recipe
    ) -> tuple[str, AnyRecipe, dict[str, Any]]:
        """Read name, recipe and the tables that it names. Flags win over the body, the body over %config."""
        _refuse_secrets(line)
        _refuse_secrets(cell or "", names=False)
        name, typed = read_line(line, kind)
        flags = fields.read_flags(
            {key: text if _is_as_typed(key, text) else self._inserted(text) for key, text in typed.items()}, kind
        )
        found: list[tuple[str, Any]] = []
        body = parse_yaml(self._set_aside(cell or "", found), kind=kind)
        body.update(_put_back(dict(body), found))
        objects: dict[str, Any] = {}
        for source in (body, flags):
            for key in ("data", "validation"):
                if key in source:
                    objects.pop(key, None)
                    self._resolve(source, key, objects)
        defaults = {key: value for key in _DEFAULTS if (value := getattr(self, key)) is not None}
        defaults = defaults if kind is Recipe else {}  # they are fine-tuning's
        make_recipe(defaults, "%config GptxMagics", kind)
        typed_line = f"%{kind.magic} {name}"
        make_recipe(flags, typed_line, kind)
        lines = {key: at for key, at in getattr(body, "lines", {}).items() if key not in flags}
        where = "cell body" if cell is not None else typed_line
        return name, make_recipe(Lines({**defaults, **body, **flags}, lines), where, kind), objects

    def _resolve(self, settings: dict[str, Any], key: str, objects: dict[str, object]) -> None:
        """Where a setting names a table of this notebook, put that into `objects`; the name stays in the recipe."""
        given = settings[key]
        if isinstance(given, str) and (match := EXPRESSION.fullmatch(given.strip())):  # a flag
            settings[key], value = match[1].strip(), self._value(match[1])
        elif isinstance(given, str) and given.isidentifier() and given in self.shell.user_ns:
            value = self.shell.user_ns[given]
            if isinstance(value, types.ModuleType) or callable(value):
                if os.path.exists(given):
                    return  # a file or folder of that name is meant
                known = tables(self.shell.user_ns)
                advice = f"Tables here: {', '.join(known[:8])}" if known else f"Name a file, as in `{key}: reviews.csv`"
                raise UsageError(
                    f"{key}: {given} is a {type(value).__name__} here, and no table. {advice}. A data set of that name "
                    f"on the Hub is named with its owner, as in `{key}: OWNER/{given}`"
                )
        elif isinstance(given, _Found):
            settings[key], value = given.expression, given.value
        else:
            return
        if value is None:
            raise UsageError(f"{key}: {settings[key]} is None here, and no table. Give it its rows first")
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            settings[key] = value
        else:
            objects[key] = value

    def _question(self, line: str, cell: str | None) -> tuple[str, dict[str, Any], Any]:
        """Return name, flags, and what is asked."""
        _refuse_secrets(line)
        name, _, text = line.strip().partition(" ")
        name = unquoted(self._inserted(name))
        asked, text = self._flags(text.strip())
        if not name:
            raise UsageError('which run? Type its name and a text, as in `%gpt_predict reviews "Nice."`')
        if cell is not None:
            if text:
                raise UsageError(
                    f"%%gpt_predict takes the name of a run, then a text a line below; got {text[:40]!r} too"
                )
            texts = [each for each in cell.splitlines() if each.strip()]
            if not texts:
                raise UsageError(f"there is no text below `%%gpt_predict {name}`. Write one a line")
            return name, asked, texts
        if not text:
            raise UsageError(f'what text? Type it behind the name, as in `%gpt_predict {name} "Nice."`')
        if match := EXPRESSION.fullmatch(text):
            return name, asked, self._value(match[1])
        return name, asked, self._inserted(unquoted(text))

    def _flags(self, text: str) -> tuple[dict[str, Any], str]:
        """Take the flags off the beginning of `text`: what follows them is the text that is asked about."""
        found: dict[str, Any] = {}
        while match := FLAG.match(text):
            option, value = match[1].replace("_", "-"), match[2]
            if option not in WISHES:
                if hint := nearest(option, WISHES):
                    raise UsageError(f"unknown flag {option!r}.{hint} Flags: {', '.join(WISHES)}")
                break  # a text that begins with dashes
            key = option[2:].replace("-", "_")
            if key in found and option not in REPEATED:
                raise UsageError(f"{option} is given twice; keep one")
            if expression := EXPRESSION.fullmatch(value):
                wish = self._value(expression[1])
            else:
                try:
                    wish = WISHES[option](self._inserted(unquoted(value)))
                except ValueError:
                    raise UsageError(f"{option} {value}: a number is wanted there") from None
            found[key] = [*_several(found[key]), *_several(wish)] if key in found else wish
            text = text[match.end() :].lstrip()
        return found, text

    def _run(self, line: str, magic: str) -> Run:
        name = self._words(line)
        if not name or " " in name:
            raise UsageError(f"%{magic} takes the name of one run, as in `%{magic} reviews`. `%gpt_runs` lists them")
        return RunStore().find(name)

    def _words(self, line: str) -> str:
        _refuse_secrets(line)
        return unquoted(self._inserted(line.strip()))

    def _meant(self, recipe: AnyRecipe, objects: Mapping[str, object]) -> str:
        """Name the table of this notebook that `data` may have meant."""
        if recipe.data is None or "data" in objects or not recipe.data.isidentifier():
            return ""
        return nearest(recipe.data, tables(self.shell.user_ns))

    # ---- {{expression}} ---------------------------------------------------------------------------------------------

    def _value(self, expression: str) -> Any:
        try:
            return eval(expression.strip(), self.shell.user_global_ns, self.shell.user_ns)
        except Exception as error:
            raise UsageError(f"{{{{{expression}}}}}: {type(error).__name__}: {error}") from None

    def _inserted(self, text: str) -> str:
        return EXPRESSION.sub(lambda match: str(self._value(match[1])), text)

    def _set_aside(self, body: str, found: list[tuple[str, Any]]) -> str:
        """Replace every expression by a word that YAML takes as text; its value is put back after reading."""

        def replaced(match: re.Match[str]) -> str:
            found.append((match[1].strip(), self._value(match[1])))
            return ALONE.format(len(found) - 1).strip()

        def but_templates(match: re.Match[str]) -> str:
            whole = match["value"].strip().strip("'\"")
            return EXPRESSION.sub(replaced, match[0]) if _is_expression(whole) else match[0]

        parts, end = [], 0
        for template in CHAT_TEMPLATE.finditer(body):
            parts += [EXPRESSION.sub(replaced, body[end : template.start()]), but_templates(template)]
            end = template.end()
        return "".join([*parts, EXPRESSION.sub(replaced, body[end:])])

    # ---- showing ----------------------------------------------------------------------------------------------------

    def _showing(self, name: str, *, briefly: bool = False) -> _Screen:
        return _Screen(name, in_notebook=getattr(self.shell, "kernel", None) is not None, briefly=briefly)


def _is_as_typed(key: str, text: str) -> bool:
    """Say whether a flag keeps its {{expressions}}: a table's are read later, and a template has its own."""
    return key in ("data", "validation") or (key == "chat_template" and not _is_expression(text.strip()))


def _is_expression(text: str) -> bool:
    """Say whether `text` is one {{expression}}, and not a template that begins and ends with one."""
    found = EXPRESSION.fullmatch(text)
    return found is not None and "}}" not in found[1]


class _Notebook:
    """The notebook as the panel sees it (panel.Notebook)."""

    def __init__(self, magics: GptxMagics) -> None:
        self._magics = magics

    def tables(self) -> list[dict[str, Any]]:
        found = []
        user_ns = self._magics.shell.user_ns
        for name in tables(user_ns):
            value = user_ns[name]
            rows = len(value) if hasattr(value, "__len__") and not isinstance(value, dict) else None
            found.append({"name": name, "kind": type(value).__name__, "rows": rows, "columns": _columns(value)[:50]})
        return found

    def cells(self) -> list[str]:
        """Return cells that were run, as they were typed, the latest first and each once."""
        typed = [str(each) for each in self._magics.shell.user_ns.get("In", ())]
        return list(dict.fromkeys(each for each in reversed(typed) if A_RUNS_CELL.match(each)))[:20]

    def read(self, cell: str) -> tuple[type[AnyRecipe], str, dict[str, Any]]:
        opening, _, body = cell.lstrip().partition("\n")
        first = A_RUNS_CELL.match(opening)
        if first is None:
            raise UsageError("a cell that asks for a run begins with %%gpt_finetune NAME or %%gpt_pretrain NAME")
        kind = MAKE_A_RUN[first[1]]
        name, typed = read_line(opening[first.end() :], kind)
        found: list[str] = []

        def set_aside(text: str) -> str:
            def mark(match: re.Match[str]) -> str:
                found.append(match[0])
                return ALONE.format(len(found) - 1).strip()

            return EXPRESSION.sub(mark, text)

        flags = fields.read_flags({key: set_aside(text) for key, text in typed.items()}, kind)
        settings = {**parse_yaml(set_aside(body), kind=kind), **flags}
        return kind, name, {key: _as_typed(value, found) for key, value in settings.items()}

    def wish(self, name: str, settings: dict[str, Any], kind: type[AnyRecipe]) -> tuple[AnyRecipe, dict[str, Any]]:
        """Read the cell that says the same."""
        _, _, body = fields.cell(name, settings, kind).partition("\n")
        _, recipe, objects = self._magics._wish(name, body, kind)
        return recipe, objects


def _as_typed(value: Any, found: list[str]) -> Any:
    """Put expressions back as they stood in a cell."""
    if isinstance(value, str):
        return re.sub(ALONE.format(r"(\d+)").strip(), lambda match: found[int(match[1])], value)
    return [_as_typed(each, found) for each in value] if isinstance(value, list) else value


class _Found:
    """A value of the notebook, and the expression that gave it."""

    def __init__(self, expression: str, value: Any) -> None:
        self.expression, self.value = expression, value

    def __str__(self) -> str:
        return str(self.value)


def _put_back(value: Any, found: list[tuple[str, Any]]) -> Any:
    """Put the values of expressions back in their places; one in the middle of a text becomes text."""
    if not found:
        return value
    if isinstance(value, dict):
        return {
            key: _put_back(item, found) if key in ("data", "validation") else _plain(_put_back(item, found))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_put_back(item, found) for item in value]
    if not isinstance(value, str):
        return value
    for at, (expression, each) in enumerate(found):
        mark = ALONE.format(at).strip()
        if value == mark:
            return _Found(expression, each)
    pattern = re.compile(ALONE.format(r"(\d+)").strip())
    return pattern.sub(lambda match: str(found[int(match[1])][1]), value)


def _plain(value: Any) -> Any:
    if isinstance(value, _Found):
        return value.value
    return [_plain(item) for item in value] if isinstance(value, list) else value


class _Screen:
    """Where a magic shows a run while it waits: an output of the notebook, or a line on the terminal."""

    def __init__(self, name: str, *, in_notebook: bool, briefly: bool) -> None:
        from gptx_nb.progress import StatusLine
        from gptx_nb.views.panels import LiveView

        self._view: LiveView | None = LiveView(name, briefly=briefly) if in_notebook else None
        self._line = StatusLine()

    def __enter__(self) -> _Screen:
        if self._view:
            self._view.show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._line.close()
        if self._view is None or error is None:
            return
        if isinstance(error, KeyboardInterrupt) and hasattr(self._view, "run"):
            self._view.follow()  # only the waiting has ended
        elif isinstance(error, GptxError) and not isinstance(error, UsageError) and hasattr(self._view, "run"):
            self._view.refresh(self._view.run)
        else:
            self._view.say("not started")

    def look(self, run: Run) -> None:
        if self._view is None:
            self._line(run)
        else:
            self._view.look(run)

    def result(self, run: Run, note: str = "") -> RunView:
        """Return the view of `run`, which goes on by itself if the run does."""
        from gptx_nb.views.panels import RunView

        if self._view is None:
            return RunView(run, note)
        self._view.note = note
        self._view.refresh(run)
        return self._view.follow()

    def clear(self) -> None:
        """Let the next output take the place of what was shown."""
        if self._view is not None:
            clear_output(wait=True)  # type: ignore[no-untyped-call]


# ---- lines ----------------------------------------------------------------------------------------------------------


def read_line(line: str, kind: type[AnyRecipe] = Recipe) -> tuple[str, dict[str, str]]:
    """Return the run's name and the flags of a line `NAME --epochs 3 --data=df`; raises UsageError."""
    words = list(_split(line))
    known = {flag.option: flag.setting.name for flag in fields.flags(kind)}
    name = ""
    typed: dict[str, str] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("--"):
            if name:
                raise RecipeError(
                    f"{unquoted(word)[:60]!r} is one word too many: the run is called {name!r}. Settings are "
                    "flags, as in `--epochs 3`, or lines below"
                )
            name = unquoted(word)
            continue
        option, separator, value = word.partition("=")
        option = option.replace("_", "-")
        if option not in known:
            raise RecipeError(f"unknown flag {option!r}.{nearest(option, known)} Flags: {', '.join(known)}")
        if known[option] in typed:
            raise RecipeError(f"{option} is given twice; keep one")
        if not separator:
            if at == len(words) or words[at].startswith("--"):
                raise RecipeError(f"{option} needs a value: {fields.find(known[option], kind).fits}")
            value = words[at]
            at += 1
        typed[known[option]] = value
    if not name:
        raise RecipeError(f"the run needs a name, as in `%%{kind.magic} {EXAMPLE_NAMES[kind]}`")
    return check_name(name), typed


def _split(line: str) -> Iterator[str]:
    """Split at spaces outside of quotes, brackets and {{}}; quotes stay, a backslash is a letter like any other."""
    pattern = re.compile(r"""(?:\{\{.*?\}\}|\[[^\]]*\]|"[^"]*"|'[^']*'|[^\s"'\[]|\[)+""")
    at = 0
    while at < len(line):
        if line[at].isspace():
            at += 1
        elif match := pattern.match(line, at):
            if match.end() < len(line) and not line[match.end()].isspace():
                _unclosed(line)
            yield match[0]
            at = match.end()
        else:
            _unclosed(line)


def _unclosed(line: str) -> NoReturn:
    raise RecipeError(f"a quote is never closed in {line.strip()[:80]!r}. Close it, or use the other kind of quotes")


def _alone(line: str, magic: str) -> None:
    if line.strip():
        raise UsageError(f"%{magic} takes nothing after it, and got {line.strip()[:40]!r}")


def _several(value: Any) -> list[Any]:
    """Return what a flag was given as a list, be it one or several."""
    return [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)


def unquoted(text: str) -> str:
    """Take one pair of quotes around `text` off."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _refuse_secrets(text: str, *, names: bool = True) -> None:
    if SECRET.search(text):
        raise UsageError(
            "an access token stands here. It would be saved with the notebook: take it out, and log in once with "
            "`huggingface_hub.login()` instead"
        )
    if names and (match := SECRET_NAME.search(text)):
        raise UsageError(
            f"{match[0]} is not expanded here, so that no secret lands in an output or in a run's files. Hub access "
            "needs no token in a line: log in once with `huggingface_hub.login()`"
        )


# ---- completion -----------------------------------------------------------------------------------------------------

MAKE_A_RUN: dict[str, type[AnyRecipe]] = {kind.magic: kind for kind in (Recipe, PretrainRecipe)}
TAKE_A_RECIPE: dict[str, type[AnyRecipe]] = {**MAKE_A_RUN, "gpt_batch": Recipe}
TAKE_A_RUN = (
    *TAKE_A_RECIPE,
    "gpt_predict",
    "gpt_eval",
    "gpt_watch",
    "gpt_stop",
    "gpt_compare",
    "gpt_runs",
    "gpt_panel",
)
ASK_A_MODEL = {"gpt_predict": tuple(WISHES), "gpt_eval": EVAL_FLAGS}  # and the flags that each takes
CALL = re.compile(r"^\s*(?:\w+\s*=\s*)?(%%?)(gpt_[a-z]+)\s(.*)$", re.DOTALL)
A_RUNS_CELL = re.compile(r"\s*%%(gpt_finetune|gpt_pretrain)\b")
PLAIN = re.compile(r"[^\W\d][\w.-]*")  # a column that needs no quotes
MIME_TABLES = ("DataFrame", "Series", "Dataset", "DatasetDict", "Table", "LazyFrame")


def tables(user_ns: Mapping[str, Any]) -> list[str]:
    """Return the names of variables that hold a table or rows."""
    return [
        name
        for name, value in user_ns.items()
        if not name.startswith("_")
        and name not in ("In", "Out")
        and (type(value).__name__ in MIME_TABLES or (isinstance(value, list | dict) and len(value) > 0))
    ]


def offers(text: str, line: int, column: int, user_ns: Mapping[str, Any]) -> tuple[list[str], str] | None:
    """Return what could be typed at the cursor and the fragment that it would replace; None outside of our magics."""
    lines = text.split("\n")
    before = lines[line][:column]
    cell = lines if lines[0].startswith("%%") else [lines[line]]
    first = CALL.match(cell[0])
    if first is None:
        return None
    if line > 0 and len(cell) > 1:
        return _in_body(before, cell, user_ns, TAKE_A_RECIPE[first[2]]) if first[2] in TAKE_A_RECIPE else None
    call = CALL.match(before)
    if call is None or call[2] not in TAKE_A_RUN:
        return None
    words = call[3].split(" ")
    fragment, typed = words[-1], [word for word in words[:-1] if word]
    if call[2] == "gpt_compare" or not typed:
        known = [*RunStore().names(), *(CATALOG if call[2] in ASK_A_MODEL else ())]
        return [name for name in known if name.startswith(fragment)], fragment
    if call[2] in ASK_A_MODEL:
        return _asking(call[2], typed, fragment, user_ns)
    if (kind := TAKE_A_RECIPE.get(call[2])) is None:
        return None
    option, separator, start = fragment.rpartition("=")
    if not separator and len(words) > 1 and words[-2].startswith("--"):
        option, start = words[-2], fragment
    if option.startswith("--"):
        return _values(option[2:].replace("-", "_"), start, cell, user_ns, kind), start
    return fields.completions(fragment or "--", kind), fragment


def _asking(magic: str, typed: list[str], fragment: str, user_ns: Mapping[str, Any]) -> tuple[list[str], str] | None:
    """Offer what can follow the model's name: flags, their values and, to score it on, a table."""
    option, separator, start = fragment.partition("=") if fragment.startswith("--") else (typed[-1], " ", fragment)
    if not separator:
        return [flag for flag in ASK_A_MODEL[magic] if flag.startswith(option)], option
    scores = magic == "gpt_eval"
    if option.startswith("--"):
        table = typed[1] if scores and len(typed) > 1 else ""
        return _values(option[2:].replace("-", "_"), start, [f" --data {table}"], user_ns, Recipe), start
    return (_values("data", start, [], user_ns, Recipe), start) if scores and len(typed) == 1 else None


def _in_body(
    before: str, cell: list[str], user_ns: Mapping[str, Any], kind: type[AnyRecipe]
) -> tuple[list[str], str] | None:
    if match := re.fullmatch(r"(\w*)", before):
        return fields.completions(match[1], kind), match[1]
    if match := re.fullmatch(r"columns\s*:.*[{,]\s*\w+\s*:\s*([^,{}]*)", before):
        return _values("text", match[1], cell, user_ns, kind), match[1]
    if match := re.fullmatch(r"columns\s*:(.*[{,])\s*(\w*)", before):
        roles = ROLES.get(_named(cell, "task")) or dict.fromkeys(role for each in ROLES.values() for role in each)
        given = set(re.findall(r"[{,]\s*(\w+)\s*:", match[1]))
        return [f"{role}: " for role in roles if role.startswith(match[2]) and role not in given], match[2]
    if match := re.fullmatch(r"(\w+)\s*:\s*(.*)", before):
        return _values(match[1], match[2], cell, user_ns, kind), match[2]
    return None


def _values(name: str, start: str, cell: list[str], user_ns: Mapping[str, Any], kind: type[AnyRecipe]) -> list[str]:
    if name not in settings_of(kind):
        return []
    found = fields.values(name, start, kind)
    if name == kind.base_setting:
        found += [each for each in (f"{RUN}{run}" for run in RunStore().names()) if each.startswith(start)]
    if name in ("text", "label"):
        data = _named(cell, "data")
        columns = _columns(user_ns[data]) if data in user_ns else _header(data)
        found += [
            each if PLAIN.fullmatch(each) else json.dumps(each, ensure_ascii=False)
            for each in columns
            if each.startswith(unquoted(start))
        ]
    if name in ("data", "validation"):
        found += [each for each in tables(user_ns) if each.startswith(start)] + _files(start)
    return found


def _named(cell: list[str], setting: str) -> str:
    """Return the value that a cell which is still being typed gives `setting`; a flag wins over a line."""
    if flag := re.search(rf"""\s--{setting}[ =]\s*("[^"]*"|'[^']*'|\S+)""", cell[0]):
        return unquoted(flag[1])
    lines = (re.fullmatch(rf"{setting}\s*:\s*(.*?)(?:\s+#.*)?\s*", line) for line in cell[1:])
    return next((unquoted(line[1]) for line in lines if line), "")


def _columns(table: Any) -> list[str]:
    """Return the names of the columns of a table in this notebook; none for what has none."""
    if isinstance(table, list):
        first = table[0] if table else ()
        return [str(name) for name in first] if isinstance(first, Mapping) else ["text", "label"]
    named = getattr(table, "column_names", getattr(table, "columns", ()))
    if isinstance(table, Mapping):
        split = next(iter(table.values()), None)
        named = _columns(split) if hasattr(split, "column_names") or hasattr(split, "columns") else table
    return [] if callable(named) else [str(name) for name in named]


def _header(path: str) -> list[str]:
    """Return the names of the columns of a file from its first line, or from what Parquet has in its place."""
    kind = os.path.splitext(path)[1]
    if kind not in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"):
        return []
    path = os.path.expanduser(path)
    try:
        if kind == ".parquet":
            from pyarrow import parquet

            return list(parquet.read_schema(path).names)
        with open(path, "rb") as file:
            line = file.readline(65_536).decode("utf-8-sig")
        if kind in (".csv", ".tsv"):
            delimiter = "\t" if kind == ".tsv" else max(",;\t|", key=line.count)
            return next(csv.reader([line], delimiter=delimiter), [])
        row = json.loads(line)
    except (OSError, ValueError, csv.Error):  # not there, or not what its name says: training tells more
        return []
    return list(row) if isinstance(row, dict) else []


def _files(start: str) -> list[str]:
    folder, name = os.path.split(start)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    endings = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".md", ".gz", ".xz", ".zst")
    return [
        os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(name)
        and not entry.name.startswith(".")
        and (entry.is_dir() or entry.name.endswith(endings))
    ][:50]


def _matcher(shell: InteractiveShell) -> Callable[[CompletionContext], SimpleMatcherResult]:
    @context_matcher(identifier="gptx_nb")  # type: ignore[untyped-decorator]
    def match(context: CompletionContext) -> SimpleMatcherResult:
        found = offers(context.full_text, context.cursor_line, context.cursor_position, shell.user_ns)
        if found is None:
            return SimpleMatcherResult(completions=[])
        names, fragment = found
        return SimpleMatcherResult(
            completions=[SimpleCompletion(text=name, type="magic") for name in names],
            matched_fragment=fragment,
            suppress=True,
            ordered=True,
        )

    return match  # type: ignore[no-any-return]


# ---- loading --------------------------------------------------------------------------------------------------------

GptxMagics.gpt_finetune.__doc__ = f"""Fine-tune a GPT on a table, in a process of its own; this notebook stays free.

    %%gpt_finetune NAME [--setting value ...]
    data: df
    epochs: 3

    %gpt_finetune NAME --data df --epochs 3

Running the cell again is safe: it attaches to a run that goes on, resumes one that broke off, shows one that has
finished with the same recipe and data, and makes the next version if anything that matters has changed. Flags win over
lines, lines over `%config GptxMagics.SETTING = value`. {{{{expression}}}} is the value of a Python expression.

Settings, as lines `name: value` or as flags `--name value`:

{fields.help_text()}
"""

GptxMagics.gpt_pretrain.__doc__ = f"""Pretrain a GPT on plain text, in a process of its own; this notebook stays free.

    %%gpt_pretrain NAME [--setting value ...]
    data: books/
    size: tiny
    tokens: 20_000_000

    %%gpt_pretrain my-domain
    data: articles.jsonl
    from: gpt2

With `from` a base model goes on learning; without, a new one begins at random weights. Either is then a base model:
`model: run:NAME` in a `%%gpt_finetune` cell. Running the cell again is safe, as with `%%gpt_finetune`.

Settings, as lines `name: value` or as flags `--name value`:

{fields.help_text(PretrainRecipe)}
"""

_LOADED = "_gptx_nb_loaded"


def load(shell: InteractiveShell) -> None:
    """Register magics, completion, and how a Run shows itself."""
    magics = GptxMagics(shell)
    matcher = _matcher(shell)
    shell.register_magics(magics)
    shell.Completer.custom_matchers.append(matcher)
    shell.events.register("pre_run_cell", _begin)
    shell.events.register("post_run_cell", _settle)
    formatter = shell.display_formatter
    if formatter is not None:
        formatter.mimebundle_formatter.for_type(Run, _show_run)
    setattr(shell, _LOADED, (magics, matcher))


def unload(shell: InteractiveShell) -> None:
    """Take back what `load` did."""
    magics, matcher = getattr(shell, _LOADED)
    delattr(shell, _LOADED)
    shell.configurables.remove(magics)
    shell.Completer.custom_matchers.remove(matcher)
    shell.events.unregister("pre_run_cell", _begin)
    shell.events.unregister("post_run_cell", _settle)
    for kind, names in magics.magics.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
    if shell.display_formatter is not None:
        shell.display_formatter.mimebundle_formatter.pop(Run)


def _begin(*_: object) -> None:
    if live := sys.modules.get("gptx_nb.views.live"):
        live.cell_begins()


def _settle(*_: object) -> None:
    if live := sys.modules.get("gptx_nb.views.live"):
        live.cell_ends()
    if panels := sys.modules.get("gptx_nb.views.panels"):  # else nothing was shown yet
        panels.settle()


def _show_run(run: Run, include: object = None, exclude: object = None) -> dict[str, Any]:
    from gptx_nb.views.panels import bundle_of

    return bundle_of(run)
