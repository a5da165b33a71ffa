"""The house's walls: which room may import which, and an `import gptx_nb` that is quick, silent and light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptx_nb"
ROOMS = ("engine", "worker", "serve", "views", "kernel")
CORE = {"pydantic", "pydantic_core", "yaml"}
FACE = (PACKAGE / "__init__.py", PACKAGE / "api.py")
# A run gives its curves as a figure, and imports what draws them only then.
FIGURES = {"runs": {"gptx_nb.views.figures"}}
TOOLKITS = {"IPython", "ipywidgets", "anywidget", "matplotlib", "traitlets", "jupyter_server", "tornado"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "models" not in path.relative_to(PACKAGE).parts)


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first if first in ROOMS else "core"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that `path` imports, whole names, and whether that happens as soon as it is imported itself.

    What only a type checker sees is left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    later = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in checked:
            continue
        if isinstance(node, ast.Import):
            for each in node.names:
                yield each.name, node not in later
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written whole"
            for each in node.names:
                whole = f"{node.module}.{each.name}"
                ours = (PACKAGE.parent / whole.replace(".", "/")).with_suffix(".py")
                is_module = ours.exists() or ours.with_suffix("").is_dir()
                yield (whole if is_module else str(node.module)), node not in later


def top(name: str) -> str:
    return name.partition(".")[0]


def foreign(path: Path) -> set[str]:
    return {top(name) for name, _ in imports(path)} - set(sys.stdlib_module_names) - {"gptx_nb"}


def own(path: Path) -> set[str]:
    return {name for name, _ in imports(path) if top(name) == "gptx_nb"}


def rooms_of(names: set[str]) -> set[str]:
    parts = [name.split(".") for name in names]
    return {each[1] if len(each) > 1 and each[1] in ROOMS else "core" for each in parts}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    where, others, inside = room(path), foreign(path), rooms_of(own(path))
    if where == "core":
        # The public face hands out views and the model object on demand, and imports them only then.
        face = path in FACE
        assert {top(name) for name, at_once in imports(path) if at_once and top(name) in others} <= CORE
        assert others <= CORE | {"pandas"} | ({"transformers"} if face else set())
        drawn = {name for name in own(path) if rooms_of({name}) == {"views"}}
        assert inside <= {"core", "views"} if face or drawn == FIGURES.get(path.stem) else inside <= {"core"}
    elif where == "engine":
        assert inside <= {"core", "engine"}
        assert not others & (TOOLKITS | {"fastapi", "uvicorn", "starlette"})
    elif where in ("worker", "serve"):
        assert inside <= {"core", "engine", where}
        assert not others & TOOLKITS
    elif where == "views":
        assert inside <= {"core", "views"} | ({"kernel"} if path.stem == "cli" else set())
        assert not others & {"torch", "transformers", "datasets"}
        seen = {name.split(".")[2] for name in own(path) if name.startswith("gptx_nb.views.")} - {path.stem}
        may = {
            "magics": {"comparisons", "panel", "panels"},
            "comparisons": {"figures", "markup", "panels"},
            "panel": {"live", "markup", "panels"},
            "panels": {"figures", "live", "markup"},
        }
        assert seen <= may.get(path.stem, set())
    elif where == "kernel":
        assert inside <= {"core", "kernel"}
        assert not others & {"torch", "transformers", "datasets"}


def test_nobody_imports_worker_or_serve() -> None:
    for path in MODULES:
        assert not rooms_of(own(path)) & {"worker", "serve"} - {room(path)}, path


def test_no_module_is_called_after_nothing() -> None:
    names = {part for path in MODULES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "base", "helpers", "misc"}


def test_the_supervisor_needs_the_standard_library_alone() -> None:
    todo, seen = {"gptx_nb.supervisor"}, set[str]()
    while todo:
        name = todo.pop()
        seen.add(name)
        path = (PACKAGE.parent / name.replace(".", "/")).with_suffix(".py")
        assert foreign(path) == set(), name
        todo |= own(path) - seen - {"gptx_nb"}
    assert seen <= {
        f"gptx_nb.{name}" for name in ("supervisor", "files", "main_memory", "metrics", "process", "run_files")
    }


def modules_after(code: str) -> set[str]:
    """Run `code` in a new Python; it must print nothing. Return the top-level modules that are loaded then."""
    # What the site itself loads at start-up is not ours.
    script = f"import sys; before = set(sys.modules)\n{code}\nsys.__stdout__.write(' '.join(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stderr == ""
    return {top(name) for name in done.stdout.split()}


HEAVY = {"torch", "pandas", "numpy", "IPython", "transformers", "datasets", "pyarrow", "matplotlib", "ipywidgets"}


def test_importing_gptx_nb_is_silent_and_light() -> None:
    loaded = modules_after("import gptx_nb")
    assert "gptx_nb" in loaded
    assert not loaded & (HEAVY | CORE | {"logging"})


@pytest.mark.parametrize("name", [path.stem for path in MODULES if room(path) == "core" and path.stem != "__init__"])
def test_a_core_module_is_silent_and_light(name: str) -> None:
    assert not modules_after(f"import gptx_nb.{name}") & HEAVY


def test_the_supervisor_starts_without_anything_heavy() -> None:
    assert not modules_after("import gptx_nb.supervisor") & (HEAVY | CORE)


def test_nothing_is_pickled() -> None:
    for path in MODULES:
        used = {top(name) for name, _ in imports(path)}
        assert not used & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path


def test_the_public_names_are_there() -> None:
    code = "import gptx_nb, json; print(json.dumps(sorted(gptx_nb.__all__)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert {"Recipe", "Run", "finetune", "load", "predict", "runs", "stop", "watch"} <= set(json.loads(done.stdout))
