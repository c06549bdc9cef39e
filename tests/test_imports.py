"""Every arrow points down (train > configs > sd, dataset, geometry > render), and there is no circle.

All imports are read from the source, those inside functions too. What only a type checker imports must point
down as well, but may close a circle: it never runs.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each floor may import of ours; the longest name that fits a module counts.
FLOORS = {
    "train": {"configs", "sd", "dataset", "geometry", "render"},
    "configs": {"configs", "sd", "dataset", "geometry", "render"},
    "data": {"data", "dataset", "geometry", "render"},
    "data.make_tiny_sd": {"sd", "data.make_tiny_sd", "configs", "dataset", "geometry", "render"},
    "sd": {"sd"},
    "dataset": {"dataset", "render"},
    "geometry": {"geometry", "render"},
    "render": {"render"},
}
# Imported where they are used, so that a missing one never blocks what does without it.
HEAVY = {
    "nvdiffrast",
    "kaolin",
    "pxr",
    "igl",
    "xatlas",
    "uvunwrap",
    "diffusers",
    "OpenEXR",
    "imageio",
    "trimesh",
}


def modules(root: Path) -> dict[str, Path]:
    """Our modules by dotted name; a package under its own name."""
    found = {}
    for path in [*root.glob("*.py"), *(path for top in FLOORS for path in root.glob(f"{top}/**/*.py"))]:
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str], everywhere: bool = True, types: bool = True) -> set[str]:
    """What a file imports, ours as precisely as it can be told.

    everywhere=False: only when it is loaded; types=False: without what stands under `if TYPE_CHECKING`.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import in line {node.lineno}"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & known) or {node.module}
    return names


def floor(module: str) -> str | None:
    fitting = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


def graph(root: Path, types: bool = True) -> dict[str, set[str]]:
    """Our imports among ourselves."""
    paths = modules(root)
    return {
        name: {other for other in imports(path, set(paths), types=types) if floor(other)}
        for name, path in paths.items()
    }


def upward(edges: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {other}"
        for module, others in sorted(edges.items())
        for other in sorted(others)
        if floor(other) not in FLOORS[floor(module) or "train"]
    ]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that lie on a circle or between two; empty if there is none."""
    left = {module: others & edges.keys() - {module} for module, others in edges.items()}
    while outside := left.keys() - set().union(*left.values()) | {name for name in left if not left[name]}:
        left = {module: others - outside for module, others in left.items() if module not in outside}
    return sorted(left)


def test_no_arrow_points_up():
    edges = graph(ROOT)
    assert {"render.mesh", "configs.schema", "sd.guidance", "dataset.cameras"} <= edges.keys()
    assert edges["configs.schema"] >= {"sd.guidance", "dataset.cameras"}
    assert not upward(edges)


def test_there_is_no_circle():
    assert not circle(graph(ROOT, types=False))


def test_heavy_packages_are_imported_where_they_are_used():
    paths = modules(ROOT)
    found = {
        f"{module} imports {name}"
        for module, path in paths.items()
        if floor(module) != "data.make_tiny_sd"
        for name in imports(path, set(paths), everywhere=False)
        if name.split(".")[0] in HEAVY
    }
    assert not found


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("render/mesh.py", "import geometry.dmtet", "render.mesh imports geometry.dmtet"),
        ("render/mesh.py", "def f():\n    from configs import schema", "render.mesh imports configs"),
        ("geometry/dmtet.py", "from dataset import cameras", "geometry.dmtet imports dataset.cameras"),
        ("dataset/cameras.py", "from geometry.dmtet import DMTet", "dataset.cameras imports geometry.dmtet"),
        ("sd/guidance.py", "from render.mesh import Mesh", "sd.guidance imports render.mesh"),
        ("sd/guidance.py", "from data.make_tiny_sd import train", "sd.guidance imports data.make_tiny_sd"),
        ("configs/schema.py", "import train", "configs.schema imports train"),
        ("train.py", "from data.make_tiny_sd.world import x", "train imports data.make_tiny_sd.world"),
        ("train.py", "import data.make_guides", "train imports data.make_guides"),
        ("sd/tiny/fit.py", "import train", "data.make_tiny_sd.fit imports train"),
    ],
)
def test_the_check_finds_a_fault(tmp_path, file, line, fault):
    for name in ("render/mesh.py", "geometry/dmtet.py", "dataset/cameras.py", "sd/tiny/fit.py", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert not upward(graph(tmp_path))
    (tmp_path / file).write_text(line)
    assert upward(graph(tmp_path)) == [fault]


def test_the_check_finds_a_circle(tmp_path):
    (tmp_path / "render").mkdir()
    for name, line in (
        ("a", "from render import b"),
        ("b", "import render.c"),
        ("c", "from render.a import x"),
    ):
        (tmp_path / "render" / f"{name}.py").write_text(line)
    (tmp_path / "render" / "d.py").touch()
    (tmp_path / "render" / "e.py").write_text("from render import a")
    assert circle(graph(tmp_path)) == ["render.a", "render.b", "render.c"]
