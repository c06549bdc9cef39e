"""Compare the README pages with the program: commands, key table, links, paths and sizes."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from readme_pages import (
    broken_links,
    code_blocks,
    code_spans,
    commands,
    missing_paths,
    pages,
    read,
    section,
)

import train
from configs.key_table import BEGIN, END, replace_table
from configs.schema import NO_EFFECT, known_keys
from dataset.procedural import CATEGORIES
from training.resume import MAY_CHANGE
from training.ui.options import ui_options

ROOT = Path(__file__).parents[1]
README = read("README.md")

DEMO_COMMAND = (
    "pip install -r requirements.txt && python3 train.py --config "
    "configs/pineapple_demo_geometry.json configs/pineapple_demo_appearance.json"
)
TEST_COMMAND = "pip install -r requirements.txt -r tests/requirements.txt && python3 -m pytest tests"
MAIN_PAGE_BYTES, PAGE_BYTES = 12_000, 25_000


def test_the_two_commands_are_those_of_the_project():
    assert code_blocks(section(README, "The two commands")) == [DEMO_COMMAND, TEST_COMMAND]


def test_continuous_integration_runs_the_same_tests():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[-1] == TEST_COMMAND.rpartition(" && ")[2]
    installs = [line for line in lines if line.startswith("pip install")]
    assert len(installs) == 1 and installs[0].endswith("-r requirements.txt -r tests/requirements.txt")
    assert {"set -euo pipefail", "ruff check", "ruff format --check", "export HF_HUB_OFFLINE=1"} <= set(lines)


def test_key_table_is_up_to_date():
    page = read("configs/README.md")
    assert page == replace_table(page), "run python3 -m configs.key_table"
    table = page.partition(BEGIN)[2].partition(END)[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:required|`(.*?)`) \| .+ \|$", table, re.M)
    assert [name for name, _ in rows] == list(known_keys())
    assert all(json.loads(default) == known_keys()[name].default for name, default in rows if default)
    assert NO_EFFECT <= set(code_spans(table))


def test_key_table_needs_its_markers():
    with pytest.raises(ValueError, match="are needed around the table"):
        replace_table("# configs\n")


def test_changeable_keys_exist():
    text = section(read("training/README.md"), "Resume and Ctrl-C")
    listed = text.partition("These keys may always change:")[2].partition(".\n")[0]
    assert sorted(code_spans(listed)) == sorted(MAY_CHANGE)


def test_every_category_of_the_prior_is_named():
    known = json.loads((ROOT / "data/tiny-sd/categories.json").read_text())
    named = re.search(r"The embedded prior covers: (.*?);", README, re.S)[1]
    assert re.split(r",\s+", " ".join(named.split())) == known
    assert set(known) <= {kind.replace("_", " ") for kind in CATEGORIES}


def test_layout_names_every_folder():
    (tree,) = code_blocks(section(README, "Repository layout"))
    named = {line.split()[0] for line in tree.splitlines()}
    folders = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert {*folders, "train.py", "data/", "assets/"} <= named
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize("page", pages())
def test_page_is_short(page):
    assert len(read(page).encode()) <= (MAIN_PAGE_BYTES if page == "README.md" else PAGE_BYTES)


@pytest.mark.parametrize("page", pages())
def test_links_and_paths_exist(page):
    assert broken_links(page) == []
    assert missing_paths(page) == []


@pytest.mark.parametrize("page", [page for page in pages() if commands(page)])
def test_commands_are_accepted(page, tmp_path, monkeypatch, capsys):
    for name in ("configs", "data", "requirements.txt", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        fault = command_fault(words, capsys)
        assert not fault, f"{page}: {' '.join(words)}: {fault}"


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("python3 train.py --config configs/missing.json", "exit code 2"),
        ("python3 train.py --config configs/car_geometry.json --itr 3", "exit code 2"),
        ("torchrun --nproc_per_node=2 train.py --config configs/car_geometry.json --batch 0", "exit code 2"),
        ("python3 -m data.make_everything", "no module"),
        ("python3 -m data.make_classifier --minuets 2", "--minuets"),
        ("python3 tests/benchmarks/stages.py --cnofig x", "--cnofig"),
        ("python3 -m pytest tests/nothing", "tests/nothing"),
        ("python3 -m pytest tests -m fast", "fast"),
        ("pip install -r other.txt", "other.txt"),
        ("make all", "make"),
    ],
)
def test_command_check_finds_a_fault(command, fault, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert fault in command_fault(command.split(), capsys)


def command_fault(words: list[str], capsys) -> str:
    """Return the reason why a command fails, or "" if it succeeds.

    train.py is called with --dry-run. A later command of a page reads the config and the mesh that a real run
    would have written, so config and mesh are created in the current folder. The mesh is a single triangle.
    """
    if words[0] == "taskset":
        words = words[3:]
    program, rest = words[0], words[1:]
    if program == "torchrun":
        while rest and rest[0].startswith("--"):
            rest = rest[1:]
    elif program == "pip":
        files = [file for option, file in zip(rest, rest[1:], strict=False) if option == "-r"]
        return " ".join(file for file in files if not (ROOT / file).is_file())
    elif program == ".":
        return ""
    elif program != "python3":
        return f"{program} is unknown"
    if not rest:
        return ""
    if rest[0] == "train.py":
        return training_fault(rest[1:], capsys)
    if rest[0] != "-m":
        source = ROOT / rest[0]
        return options_fault(rest[1:], [source]) if source.is_file() else f"{source} is missing"
    if rest[1] == "pytest":
        return pytest_fault(rest[2:])
    return "" if rest[1] == "venv" else module_fault(rest[1], rest[2:])


def training_fault(argv: list[str], capsys) -> str:
    if argv == ["--check"] or ui_options(argv):
        return ""
    capsys.readouterr()
    try:
        code = train.main([*argv, "--dry-run"])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr().out
    if code:
        return f"exit code {code}"
    if "--help" not in argv:
        for values in configs_in(json.loads(printed)):
            mesh = Path("out", values["out_dir"], "dmtet_mesh", "mesh.obj")
            mesh.parent.mkdir(parents=True, exist_ok=True)
            config = mesh.parents[1] / "config.json"
            config.write_text(json.dumps(values), encoding="utf-8")
            mesh.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", encoding="utf-8")
    return ""


def configs_in(value: object) -> list[dict]:
    """Return all configs in the JSON that a dry run prints."""
    if isinstance(value, dict) and "out_dir" in value:
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for part in parts for found in configs_in(part)]


def module_fault(name: str, words: list[str]) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        return f"no module {name}"
    source = Path(spec.origin)
    return options_fault(words, source.parent.glob("*.py") if source.name == "__init__.py" else [source])


def options_fault(words: list[str], sources) -> str:
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    keys = {f"--{key}" for key in known_keys()} if "parse_known_args" in text else set()
    return " ".join(option for option in options if f'"{option}"' not in text and option not in keys)


def pytest_fault(words: list[str]) -> str:
    markers = re.findall(r"^    (\w+):", (ROOT / "tests/pytest.ini").read_text(), re.M)
    faults, previous = [], ""
    for word in words:
        if previous == "-m" and word not in markers:
            faults.append(f"no marker {word}")
        elif not previous.startswith("-") and not word.startswith("-") and not (ROOT / word).exists():
            faults.append(f"{word} is missing")
        previous = word
    return ", ".join(faults)


def test_every_data_file_has_a_row_with_its_source_and_licence():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the files that ship are listed by git, and this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [line.removeprefix("data/") for line in listed.stdout.splitlines()]
    rows = re.findall(r"^\| `([^`]+)`[^|]*\| ([^|]+)\| ([^|]+)\| ([^|]+)\|$", read("data/README.md"), re.M)
    covered = [name for name, *cells in rows if all(cell.strip() for cell in cells)]
    missing = [
        file
        for file in files
        if not file.endswith((".py", "README.md"))
        and not any(file == name or (name.endswith("/") and file.startswith(name)) for name in covered)
    ]
    assert files and missing == []
