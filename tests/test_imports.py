"""Imports flow down: the table of who may import whom, read against every file."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import niwaki

SOURCE = Path(niwaki.__file__).parent

# Each line may import only what its brackets name, and files of its own line; [all] is every line above it, and its own.
TABLE = """
space                     []
factor                    [space]
net                       [space]
trial objective           [space]
store                     [space trial]
structure                 [space factor]
distribution predictor    [space factor structure]
cost                      [space factor net]
nn                        [space net distribution]
device                    [space net nn cost]
adoption                  [space factor net nn cost]
task                      [net]
train                     [space nn task]
zoo                       [space net]
strategy                  [space factor trial objective structure distribution predictor]
evaluate                  [space net trial cost nn task train predictor zoo]
gradient                  [space factor net trial objective strategy cost nn adoption task train distribution]
recipe                    [all]
deploy explain            [space net nn task train cost device store]
report                    [space store trial objective factor net cost]
run testing               [all]
cli                       [all]
dashboard                 [store trial objective report]
"""
# Additions to the design's table: deploy writes its files through store.files, report names architectures, evaluate knows of which networks
# in the zoo the published tables are, and structure, which variables depend on each other (forests, max-margin trees over labels), is used
# by distributions and strategies that learn a tree and serves multi-label prediction without either. TuNAS's controllers, learned with shared
# weights (gradient), are the policies, Adam and schedules of the policy-gradient strategies; MorphNet and FiGS shrink adopted models.

FREE_OF_TORCH = ("space", "factor", "structure", "net", "cost", "zoo", "trial", "objective", "store", "report", "dashboard")
KNOWS_TORCH = ("niwaki.factor.expect",)
RESOLVES_LATE = ("niwaki.cli", "niwaki")  # import heavy parts where they are needed, so that `niwaki --help` is quick


def allowed():
    """For each part of the package, the parts that it may import."""
    known: dict[str, set[str]] = {}
    for line in TABLE.strip().splitlines():
        names, _, brackets = line.partition("[")
        inside = set(known) if brackets.startswith("all") else set(brackets.rstrip("] ").split())
        assert inside <= set(known), f"{line}: a line may only name lines above it"
        known |= {name: inside | set(names.split()) for name in names.split()}
    return known


def modules():
    """Every module of the package, name -> path."""
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(("niwaki", *parts)).removesuffix(".__init__"), path


MODULES = dict(modules())


def imported(tree):
    """Full names that a syntax tree imports, with line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else str(node.module)), node.lineno


def part(module):
    """`niwaki.space.size` -> `space`."""
    return module.split(".")[1] if "." in module else "niwaki"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_only_what_the_table_allows(name):
    if name == "niwaki":
        return  # one screen of names, resolved when they are first used
    known = allowed()
    assert part(name) in known, f"{name} has no line in the table; give it one"
    wrong = [
        f"line {line}: {part(name)} may not import {other}; it may import {', '.join(sorted(known[part(name)]))}"
        for other, line in imported(ast.parse(MODULES[name].read_text()))
        if other.split(".")[0] == "niwaki" and part(other) not in known[part(name)]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", MODULES)
def test_no_import_stands_inside_a_function_to_escape_a_circle(name):
    if name in RESOLVES_LATE:
        return
    functions = [node for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.FunctionDef)]
    late = [f"line {line}: {other} in {f.name}" for f in functions for other, line in imported(f) if other.split(".")[0] == "niwaki"]
    assert not late, "\n".join(late)


def test_the_parts_that_do_without_torch_never_import_it():
    names = [name for name in MODULES if part(name) in FREE_OF_TORCH and name not in KNOWS_TORCH]
    code = f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-500:]


def test_a_public_name_is_the_same_object_after_everything_was_imported():
    script = (
        "import importlib, pkgutil, niwaki\n"
        "first = {name: getattr(niwaki, name) for name in niwaki.__all__}\n"
        "for module in pkgutil.walk_packages(niwaki.__path__, 'niwaki.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted(name for name in first if getattr(niwaki, name) is not first[name]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
