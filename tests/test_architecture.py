"""The walls of the house: who may import whom, how long files get, what must never be committed."""

import ast
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from potstill import errors
from potstill.cli import COMMANDS
from potstill.recipe_file import load_recipe

ROOT = Path(__file__).parents[1]
DOMAIN = sorted((ROOT / "potstill").rglob("*.py"))
STAGES = ("curation", "teacher", "training", "evaluation")

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "pandas", "pyarrow"}
CHILD_ONLY = {
    "potstill/training/sampling.py": "imported by sft only; its trainer derives from a class of TRL",
    "potstill/training/sft.py": "imported by potstill.training.run, inside the training child",
    "potstill/training/dpo.py": "imported by potstill.training.run, inside the training child",
    "potstill/training/trainer.py": "imported by sft and dpo only; its callback derives from a class of transformers",
}
"""The only files that may import a heavy library at their top, each with its reason."""

SLOW_AT_START = (
    *("prefect", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pandas", "pyarrow"),
    *("sqlalchemy", "pydantic", "asyncio", "httpx", "genai_prices", "phonenumbers", "starlette", "uvicorn", "jinja2"),
    "jsonschema",
    "s3fs",
)


class Import(NamedTuple):
    module: str
    line: int
    is_at_top: bool
    """Runs when the file is imported: neither in a function nor under TYPE_CHECKING."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports(path: Path) -> list[Import]:
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), at_top=True))


def _walk(node: ast.AST, *, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            module = child.module or ""
            yield Import(module, child.lineno, at_top)
            yield from (Import(f"{module}.{alias.name}", child.lineno, at_top) for alias in child.names)
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from _walk(child, at_top=at_top and not is_function and not is_typing)


def offenders(paths, is_wrong) -> list[str]:
    return [
        f"{name(path)}:{found.line} imports {found.module}"
        for path in paths
        for found in imports(path)
        if is_wrong(found)
    ]


def package(module: str) -> str:
    return module.partition(".")[0]


class TestImports:
    def test_the_walk_tells_top_from_function_and_type_checking(self, tmp_path):
        path = tmp_path / "example.py"
        path.write_text(
            "import a.b\n"
            "try:\n    from c import d\nexcept ImportError:\n    pass\n"
            "if TYPE_CHECKING:\n    import e\n"
            "class F:\n    import g\n    def h(self):\n        import i\n"
        )
        found = {row.module: row.is_at_top for row in imports(path)}
        assert found == {"a.b": True, "c": True, "c.d": True, "e": False, "g": True, "i": False}

    def test_the_domain_knows_nothing_of_prefect_flows_and_tasks(self):
        assert not offenders(DOMAIN, lambda found: package(found.module) in {"prefect", "flows", "tasks"})

    def test_tasks_never_import_flows(self):
        assert not offenders((ROOT / "tasks").rglob("*.py"), lambda found: package(found.module) == "flows")

    def test_nothing_that_runs_imports_how_it_is_deployed(self):
        paths = [path for folder in ("potstill", "tasks", "flows") for path in (ROOT / folder).rglob("*.py")]
        assert not offenders(paths, lambda found: package(found.module) == "deployments")

    def test_what_asks_its_user_is_the_command_line_only(self):
        """A flow asks nobody, wherever it runs: under a schedule or a worker nobody could answer."""
        folders = [
            path for folder in ("flows", "tasks", "potstill", "deployments") for path in (ROOT / folder).rglob("*.py")
        ]
        others = [path for path in folders if not name(path).startswith("potstill/cli/")]
        assert not offenders(others, lambda found: f"{found.module}.".startswith("potstill.cli."))
        asking = re.compile(r"\binput\(|sys\.stdin\.read|getpass|/dev/tty")
        found = {name(path) for path in folders if asking.search(path.read_text(encoding="utf-8"))}
        assert found == {"potstill/cli/questions.py"}

    @pytest.mark.parametrize("stage", STAGES)
    def test_stages_never_import_each_other(self, stage):
        others = tuple(f"potstill.{other}" for other in STAGES if other != stage)
        paths = sorted((ROOT / "potstill" / stage).rglob("*.py"))
        assert len(paths) > 1
        assert not offenders(paths, lambda found: (found.module + ".").startswith(tuple(f"{o}." for o in others)))

    def test_heavy_libraries_are_imported_in_functions_only(self):
        paths = [path for path in DOMAIN if name(path) not in CHILD_ONLY]
        assert not offenders(paths, lambda found: found.is_at_top and package(found.module) in HEAVY)

    @pytest.mark.parametrize("path", CHILD_ONLY)
    def test_what_may_import_them_is_itself_imported_in_functions_only(self, path):
        module = path.removesuffix(".py").replace("/", ".")
        assert any(row.is_at_top and package(row.module) in HEAVY for row in imports(ROOT / path)), "off the list"
        importers = [other for other in DOMAIN if name(other) not in CHILD_ONLY]
        assert not offenders(importers, lambda found: found.is_at_top and found.module == module)

    def test_potstill_and_the_help_of_every_command_load_nothing_slow(self):
        """Checked command by command, so that a failure names the one that is to blame."""
        code = (
            "import sys, potstill, potstill.cli\n"
            "for command in ['', *potstill.cli.COMMANDS]:\n"
            "    try:\n        potstill.cli.main([*filter(None, [command]), '--help'])\n"
            "    except SystemExit as end:\n        assert end.code == 0, end.code\n"
            f"    slow = [name for name in {SLOW_AT_START} if name in sys.modules]\n"
            "    print('LOADED', command or 'potstill', slow)\n"
        )
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "Usage: potstill curate" in run.stdout
        loaded = [line for line in run.stdout.splitlines() if line.startswith("LOADED")]
        assert loaded == [f"LOADED {command} []" for command in ("potstill", *COMMANDS)]


class TestSizes:
    @pytest.mark.parametrize(
        ("folder", "most"), [("flows", 60), ("tasks", 80), ("potstill", 350), ("deployments", 350)]
    )
    def test_files_stay_short(self, folder, most):
        lengths = {name(path): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
        assert lengths
        assert {path: length for path, length in lengths.items() if length > most} == {}


class TestRecipes:
    @pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
    def test_every_recipe_loads(self, path):
        assert load_recipe(path).name

    def test_there_is_a_demo(self):
        assert (ROOT / "recipes" / "demo.yaml").is_file()


class TestCommittedText:
    MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:work|root|home)/")
    REGISTRY = re.compile(
        r"pypi\.(?:org|python\.org)|pythonhosted\.org|npmjs\.(?:org|com)|crates\.io|conda\.anaconda\.org"
        r"|index-url|(?:artifactory|nexus|devpi)[.\w-]*\.\w+[:/]|/simple/?(?:\s|$)",
        re.IGNORECASE,
    )

    def texts(self) -> Iterator[tuple[str, str]]:
        listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], check=False, capture_output=True, text=True)
        if listed.returncode:
            pytest.skip("not a git checkout")
        for tracked in filter(None, listed.stdout.split("\0")):
            path = ROOT / tracked
            # the log is real text of five libraries; this file names what it forbids
            if (tracked.startswith("examples/demo/") and path.suffix == ".jsonl") or path == Path(__file__):
                continue
            if not path.is_file() or b"\0" in (data := path.read_bytes()):
                continue
            yield tracked, data.decode("utf-8", errors="replace")

    @pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY], ids=["machine path", "registry host"])
    def test_it_names_no_machine_path_and_no_registry(self, pattern):
        found = [
            f"{path}:{number}: {line.strip()[:120]}"
            for path, text in self.texts()
            for number, line in enumerate(text.splitlines(), start=1)
            if pattern.search(line)
        ]
        assert found == []

    @pytest.mark.parametrize("text", ["cd /work/main", "'/root/.cache'", "path=/home/me/x"])
    def test_a_machine_path_would_be_seen(self, text):
        assert self.MACHINE_PATH.search(text)


def exception_classes() -> list[type[errors.PotstillError]]:
    return [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.PotstillError)
    ]


class Drawn(NamedTuple):
    parent: str
    builtin: str
    exit_code: int


def drawn_tree() -> dict[str, Drawn]:
    """The tree as the docstring of errors.py draws it; an exit code that is not said is the parent's."""
    line = re.compile(r"^ *([│├└─ ]*)(\w+Error)(?: \((\w+)\))?(?: +exit (\d))?")
    tree: dict[str, Drawn] = {}
    branch: list[str] = []
    for match in filter(None, map(line.match, (errors.__doc__ or "").splitlines())):
        indent, name, builtin, code = match.groups()
        del branch[len(indent) // 4 :]
        parent = branch[-1] if branch else "Exception"
        tree[name] = Drawn(parent, builtin or "", int(code) if code else tree[parent].exit_code)
        branch.append(name)
    return tree


class TestErrors:
    @pytest.mark.parametrize("error", exception_classes(), ids=lambda error: error.__name__)
    def test_each_survives_pickling_with_its_message_and_exit_code(self, error):
        copy = pickle.loads(pickle.dumps(error("the value, the place, the remedy")))
        assert type(copy) is error
        assert str(copy) == "the value, the place, the remedy"
        assert copy.exit_code == error.exit_code
        assert copy.exit_code in {1, 2, 5, 6}

    @pytest.mark.parametrize("error", exception_classes(), ids=lambda error: error.__name__)
    def test_each_is_what_the_tree_says(self, error):
        drawn = drawn_tree()[error.__name__]
        assert error.exit_code == drawn.exit_code
        assert [base.__name__ for base in error.__bases__] == [base for base in (drawn.parent, drawn.builtin) if base]

    @pytest.mark.parametrize("error", exception_classes()[1:], ids=lambda error: error.__name__)
    def test_each_but_the_root_is_also_of_the_standard_library(self, error):
        own = {*exception_classes(), Exception, BaseException, object}
        assert [base for base in error.__mro__ if base not in own]

    def test_the_tree_draws_no_other(self):
        assert set(drawn_tree()) == {error.__name__ for error in exception_classes()}

    def test_what_may_succeed_later_is_not_fatal(self):
        assert {error for error in exception_classes() if not error.fatal} == {
            errors.TransientTeacherError,
            errors.SubprocessError,
            errors.OrchestratorError,
            errors.StoreUnreachableError,
        }
