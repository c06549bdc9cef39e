"""Test that every benchmark finds all modules that it imports, also those imported within functions."""

import ast
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPTS = sorted(path for path in HERE.glob("[!t]*.py") if "__main__" in path.read_text())


def added_folders(tree: ast.Module) -> list[str]:
    """Return the folders that a script adds to sys.path."""
    folders = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "sys.path[:0]":
            folders += eval(ast.unparse(node.value), {"ROOT": ROOT, "CODE": ROOT})
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "sys.path.insert":
            folders.append(eval(ast.unparse(node.args[1]), {"ROOT": ROOT}))
    return folders


def imported_modules(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_import_of_a_script_is_found(script):
    """The sys.path of a script lacks the folders of this project that pytest adds, so they are left out."""
    tree = ast.parse(script.read_text())
    outside = [folder for folder in sys.path if ROOT not in (Path(folder), *Path(folder).parents)]
    path = [str(HERE), *added_folders(tree), *outside]
    names = imported_modules(tree) - set(sys.builtin_module_names)
    missing = {name for name in names if PathFinder.find_spec(name, path) is None}
    assert "argparse" in names and not missing
