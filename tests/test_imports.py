"""Test the structure of the packages and the number of positional arguments.

A package imports only lower packages (train > training > configs > dataset, geometry > render), and imports
form no cycle. All imports are read from the source, including those inside functions. The order also applies
to an import under `if TYPE_CHECKING`, but such an import may close a cycle, because it is never executed.
Functions outside kernels take at most six positional arguments.
"""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# FLOORS is {package: packages of this project that it may import}. For a module, the longest matching package
# name is used.
FLOORS = {
    "train": {"training", "configs", "sd", "dataset", "geometry", "render"},
    "training": {"training", "configs", "sd", "dataset", "geometry", "render"},
    "configs": {"configs", "sd", "dataset", "geometry", "render"},
    "dataset": {"dataset", "render"},
    "geometry": {"geometry", "render"},
    "render": {"render"},
    "sd": {"sd"},
    # The scripts that generate shipped data may import anything.
    "data": {"data", "train", "training", "configs", "sd", "dataset", "geometry", "render"},
}
# Modules that configs/ must not import, because a config contains only data. Code for processes, signals and
# process groups belongs in training/.
RUNTIME_MODULES = {"torch.distributed", "signal", "subprocess", "multiprocessing"}
# These packages must be imported inside the functions that use them. All other functions therefore work even
# if a package is missing.
HEAVY = {
    "nvdiffrast",
    "kaolin",
    "pxr",
    "igl",
    "xatlas",
    "uvunwrap",
    "diffusers",
    "peft",
    "OpenEXR",
    "imageio",
    "trimesh",
    "ray",
    "tokenizers",
    "scipy",
}
# Packages that take long to import, in addition to HEAVY. train.py imports them only after the config has
# been checked, or not at all.
SLOW = {"transformers", "accelerate", "numba", "triton", "sympy", "torch._dynamo", "torch._inductor"}
# Python code that prints the names of all modules that the module in argv[1] imports.
LIST_IMPORTS = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
MAX_POSITIONAL = 6
# The limit does not apply to kernels and their references, which take arrays and sizes by position.
KERNEL_FOLDERS = ("kernels", "render/raster/triton", "render/raster/numba")
KERNEL_FILES = ("_triton.py", "_numba.py")
KERNEL_DECORATORS = {"kernel", "njit", "jit"}


def modules(root: Path) -> dict[str, Path]:
    """Return {dotted module name: file} for all modules of this project.

    The name of a package is the name of its folder.
    """
    found = {}
    for path in [*root.glob("*.py"), *(path for top in FLOORS for path in root.glob(f"{top}/**/*.py"))]:
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file of this project, which several tests read."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, known: set[str], nested: bool = True, types: bool = True) -> set[str]:
    """Return the names of the modules that a file imports.

    Args:
        known: the modules of this project. `from package import module` gives "package.module" if this is a
            known module.
        nested: whether to include the imports inside functions and blocks.
        types: whether to include the imports under `if TYPE_CHECKING`.
    """
    tree = parse(path) if path.is_relative_to(ROOT) else ast.parse(path.read_text(encoding="utf-8"))
    hidden = set()
    if not types:
        blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If))
        typing_only = (block for block in blocks if "TYPE_CHECKING" in ast.unparse(block.test))
        hidden = {node for block in typing_only for line in block.body for node in ast.walk(line)}
    names = set()
    for node in ast.walk(tree) if nested else tree.body:
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import in line {node.lineno}"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & known) or {node.module}
    return names


def floor(module: str) -> str | None:
    """Return the key of FLOORS for a module, or None if the module is not part of this project."""
    fitting = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


def graph(root: Path, types: bool = True) -> dict[str, set[str]]:
    """Return {module: imported modules} for the modules of this project."""
    paths = modules(root)
    return {
        name: {other for other in imports(path, set(paths), types=types) if floor(other)}
        for name, path in paths.items()
    }


def upward_imports(edges: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {other}"
        for module, others in sorted(edges.items())
        for other in sorted(others)
        if floor(other) not in FLOORS[floor(module)]
    ]


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return the modules on a cycle or between two cycles. The list is empty if there is no cycle."""
    left = {module: others & edges.keys() - {module} for module, others in edges.items()}
    while outside := left.keys() - set().union(*left.values()) | {name for name in left if not left[name]}:
        left = {module: others - outside for module, others in left.items() if module not in outside}
    return sorted(left)


def runtime_imports(root: Path) -> list[str]:
    """Return the imports of RUNTIME_MODULES in configs/."""
    known = set(modules(root))
    found = []
    for module, path in modules(root).items():
        if floor(module) == "configs":
            names = imports(path, known | RUNTIME_MODULES)
            found += [
                f"{module} imports {name}"
                for name in sorted(names)
                if any(name == runtime or name.startswith(f"{runtime}.") for runtime in RUNTIME_MODULES)
            ]
    return found


def is_kernel(path: Path, function: ast.FunctionDef) -> bool:
    """Return whether a function is part of a kernel, according to its folder, file or decorator."""
    folder = path.relative_to(ROOT).parent.as_posix()
    if folder.endswith(KERNEL_FOLDERS) or path.name.endswith(KERNEL_FILES):
        return True
    words = {word for node in function.decorator_list for word in ast.unparse(node).split("(")[0].split(".")}
    return bool(words & KERNEL_DECORATORS)


def positional_arguments(function: ast.FunctionDef) -> int:
    """Return the number of positional arguments without self, cls and the ctx of autograd functions."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"], ["ctx"]))


def test_functions_have_at_most_six_positional_arguments():
    counts = {
        f"{path.relative_to(ROOT)}: {node.name}": positional_arguments(node)
        for path in modules(ROOT).values()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef) and not is_kernel(path, node)
    }
    assert counts["render/camera.py: look_at_origin"] == 4
    assert not {name: count for name, count in counts.items() if count > MAX_POSITIONAL}


def test_imports_point_down():
    edges = graph(ROOT)
    assert {"render.mesh", "configs.schema", "training.loop", "data.make_tiny_sd.train"} <= edges.keys()
    assert edges["configs.schema"] >= {"sd.guidance_config", "dataset.cameras"}
    assert not upward_imports(edges)


def test_imports_form_no_cycle():
    assert not cycle(graph(ROOT, types=False))


def test_configs_imports_no_runtime_module():
    assert not runtime_imports(ROOT)


def test_heavy_packages_are_imported_inside_functions():
    paths = modules(ROOT)
    found = {
        f"{module} imports {name}"
        for module, path in paths.items()
        if floor(module) != "data"
        for name in imports(path, set(paths), nested=False)
        if name.split(".")[0] in HEAVY
    }
    assert not found


def test_a_start_imports_no_slow_package():
    command = [sys.executable, "-c", LIST_IMPORTS, "train"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "training.loop", "sd.stable_diffusion"} <= set(listed)
    assert not {name for name in listed if name in SLOW or name.split(".")[0] in HEAVY | SLOW}


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("render/mesh.py", "import geometry.dmtet", "render.mesh imports geometry.dmtet"),
        ("render/mesh.py", "def f():\n    from configs import schema", "render.mesh imports configs"),
        ("render/mesh.py", "import sd.guidance", "render.mesh imports sd.guidance"),
        ("geometry/dmtet.py", "from dataset import cameras", "geometry.dmtet imports dataset.cameras"),
        ("dataset/cameras.py", "from geometry.dmtet import DMTet", "dataset.cameras imports geometry.dmtet"),
        ("sd/guidance.py", "from render.mesh import Mesh", "sd.guidance imports render.mesh"),
        ("sd/guidance.py", "from data.make_tiny_sd import fit", "sd.guidance imports data.make_tiny_sd.fit"),
        ("configs/schema.py", "import training.loop", "configs.schema imports training.loop"),
        ("configs/schema.py", "import train", "configs.schema imports train"),
        ("training/loop.py", "import train", "training.loop imports train"),
        (
            "training/loop.py",
            "from data.make_tiny_sd.fit import x",
            "training.loop imports data.make_tiny_sd.fit",
        ),
        ("train.py", "import data.make_guides", "train imports data.make_guides"),
    ],
)
def test_the_check_finds_an_upward_import(tmp_path, file, line, fault):
    for name in (
        "render/mesh.py",
        "geometry/dmtet.py",
        "dataset/cameras.py",
        "data/make_tiny_sd/fit.py",
        file,
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data/make_tiny_sd/fit.py").write_text("import train\nfrom training import loop")
    assert not upward_imports(graph(tmp_path))
    (tmp_path / file).write_text(line)
    assert upward_imports(graph(tmp_path)) == [fault]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import torch.distributed as dist", "torch.distributed"),
        ("from torch import distributed", "torch.distributed"),
        ("from torch.distributed.elastic import x", "torch.distributed.elastic"),
        ("def f():\n    import subprocess", "subprocess"),
        ("from signal import SIGTERM", "signal"),
    ],
)
def test_the_check_finds_a_runtime_module_in_configs(tmp_path, line, name):
    for folder in ("configs", "training"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.py").write_text("import json" if folder == "configs" else line)
    assert not runtime_imports(tmp_path)
    (tmp_path / "configs" / "run.py").write_text(line)
    assert runtime_imports(tmp_path) == [f"configs.run imports {name}"]


def test_the_check_finds_a_cycle(tmp_path):
    (tmp_path / "render").mkdir()
    for name, line in (
        ("a", "from render import b"),
        ("b", "import render.c"),
        ("c", "from render.a import x"),
    ):
        (tmp_path / "render" / f"{name}.py").write_text(line)
    (tmp_path / "render" / "d.py").touch()
    (tmp_path / "render" / "e.py").write_text("from render import a")
    assert cycle(graph(tmp_path)) == ["render.a", "render.b", "render.c"]
