"""The rules of the house: who may import whom, how large a file may grow, what `--help` loads, whether the map is true."""

import ast
import importlib
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from leanlm import env
from leanlm.cli.main import VERBS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "leanlm"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [f for f in FILES if f.parent != PACKAGE or not f.stem.startswith("__")]  # all but __init__ and __main__

# Each imports only from itself and from those to its left.
LINE = "env errors slots ops model families checkpoint runtime generate api data evaluate train distill quantize export bench"
ORDER = [*LINE.split(), "study", "serve", "cli"]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def room_of(file: Path) -> str:
    """The package (or top-level module) a file belongs to."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(file: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of everything imported, inside functions and by import_module("...") too."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(file)}:{node.lineno}: relative import; write leanlm.x"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            start = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(start, ast.Constant):
                found.append((node.lineno, str(start.value)))
    return found


def test_imports_come_only_from_the_left():
    for file in MODULES:
        here = room_of(file)
        assert here in ORDER, f"{name_of(file)} has no place in the order"
        for line, module in imports(file):
            first, *rest = module.split(".")
            if first == "leanlm" and rest:
                assert rest[0] in ORDER, f"{name_of(file)}:{line}: {module} has no place in the order"
                assert ORDER.index(rest[0]) <= ORDER.index(here), f"{name_of(file)}:{line}: {here} must not import {module}"


def test_the_test_of_imports_sees_every_kind(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text("def f():\n    from leanlm.cli import main\n    import leanlm.api\n    import_module(f'leanlm.ops.{x}')\n")
    assert [module for _, module in imports(file)] == ["leanlm.cli.main", "leanlm.api", "leanlm.ops."]


def test_judges_are_imported_by_benchmarks_and_the_check_of_exports_alone():
    for file in MODULES:
        if room_of(file) != "bench" and file != PACKAGE / "export" / "check.py":
            judges = {module.split(".")[0] for _, module in imports(file)} & {"transformers", "llama_cpp", "openai", "pytest"}
            assert not judges, f"{name_of(file)} imports {judges}"


def loaded(*command: str) -> tuple[set[str], str]:
    """The modules that a Python command line loads, and what it prints."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}, done.stdout


HEAVY = {"torch", "transformers"}


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_no_torch(verb):
    modules, printed = loaded("-m", "leanlm", *verb.split(), "--help")
    assert f"usage: leanlm {verb}".strip() in printed
    assert "leanlm.cli.main" in modules and not modules & HEAVY


def test_the_installed_commands_help_loads_no_torch():
    command = Path(sysconfig.get_path("scripts")) / "leanlm"
    if not command.exists():
        pytest.skip("leanlm is on the path but not installed")
    modules, printed = loaded(str(command), "--help")
    assert "usage" in printed.lower() and not modules & HEAVY


def test_importing_leanlm_does_nothing():
    modules, printed = loaded("-c", "import leanlm")
    assert {m for m in modules if m.startswith("leanlm")} == {"leanlm"}
    assert not modules & HEAVY and not printed


def file_map() -> list[str]:
    """The paths of the README's file map: the first word of every line of its fenced block."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"^## File map\n+```\w*\n(.*?)^```", readme, re.M | re.S)
    assert block, "README.md has no fenced block under '## File map'"
    lines = [line for line in block[1].splitlines() if line.strip()]
    assert all(re.fullmatch(r"\S+ {2,}\S.*", line) for line in lines), "a line of the file map is not 'path  description'"
    return [line.split()[0] for line in lines]


def test_the_readmes_file_map_is_true():
    listed = file_map()
    assert len(listed) == len(set(listed)), "the file map lists a path twice"
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert not missing, f"the file map lists what does not exist: {missing}"
    rooms = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name not in ("__pycache__", "_native"))]
    wanted = {name_of(room) for room in rooms}
    assert not wanted - {path.rstrip("/") for path in listed}, "the file map leaves out packages or modules"


def test_environment_variables_are_read_in_one_place():
    for file in FILES:
        if file != PACKAGE / "env.py":
            for node in ast.walk(ast.parse(file.read_text())):
                name = getattr(node, "attr", getattr(node, "id", ""))
                assert name not in ("environ", "environb", "getenv"), f"{name_of(file)}:{node.lineno}: declare it in env.py"


def test_every_variable_that_anything_names_is_declared():
    declared = {variable.name: variable for variable in env.VARIABLES}
    assert len(declared) == len(env.VARIABLES) and all(variable.meaning for variable in env.VARIABLES)
    assert set(env.VARIABLES) == {value for value in vars(env).values() if isinstance(value, env.Variable)}
    for file in texts():
        for name in re.findall(r"\bLEANLM_[A-Z][A-Z_]*\b", file.read_text()):
            assert name in declared, f"{name_of(file)}: {name} is not declared in env.py"


def texts() -> list[Path]:
    folders = [ROOT / name for name in ("src", "tests", "docs")]
    found = [f for folder in folders for f in folder.rglob("*") if f.suffix in (".py", ".md", ".toml")]
    return [*found, ROOT / "README.md", ROOT / "pyproject.toml"]


def test_files_are_small_and_named_for_what_they_are():
    vague = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 400, f"{name_of(file)} is too long"
        assert not vague & set(re.split(r"[_/]", str(file.relative_to(PACKAGE).with_suffix("")))), name_of(file)


def test_only_the_command_line_prints_and_exits():
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and room_of(file) not in ("cli", "bench"):
                called = ast.unparse(node.func)
                assert called not in ("print", "exit", "quit", "sys.exit", "os._exit"), f"{name_of(file)}:{node.lineno}"


def test_every_verb_of_the_command_line_exists():
    for module, meaning in VERBS.values():
        loaded = importlib.import_module(module)
        assert meaning and (hasattr(loaded, "Command") or hasattr(loaded, "run_words"))
