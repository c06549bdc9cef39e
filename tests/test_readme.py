"""README.md against the program: its commands, its table of keys, its tree, its links and pictures."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from configs.schema import NO_EFFECT, known_keys, section_types
from dataset.procedural import KINDS
from training.resume import MAY_CHANGE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

DEMO_COMMAND = (
    "pip install -r requirements.txt && python3 train.py --config "
    "configs/pineapple_demo_geometry.json configs/pineapple_demo_appearance.json"
)
TEST_COMMAND = "pip install -r requirements.txt -r tests/requirements.txt && python3 -m pytest tests"


def section(title: str, level: str = "##") -> str:
    """What stands under a heading, up to the next one of its level."""
    found = re.search(rf"^{level} {re.escape(title)}\n(.*?)(?=^{level} |\Z)", README, re.M | re.S)
    assert found, f"README.md has no section {title!r}"
    return found[1]


def code_blocks(text: str) -> list[str]:
    return [block.strip() for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S)]


def quoted_names(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)


def tree_paths(tree: str) -> list[str]:
    """The paths of an indented tree: two spaces a level, a comment after two spaces or more."""
    folders: list[str] = []
    paths = []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        del folders[len(indent) // 2 :]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def anchor(heading: str) -> str:
    """The anchor that a heading gets on a web page."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_two_commands_are_those_of_the_project():
    assert code_blocks(section("The two commands")) == [DEMO_COMMAND, TEST_COMMAND]


def test_continuous_integration_runs_the_same_tests():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[-1] == TEST_COMMAND.rpartition(" && ")[2]
    installs = [line for line in lines if line.startswith("pip install")]
    assert len(installs) == 1 and installs[0].endswith("-r requirements.txt -r tests/requirements.txt")
    assert {"set -euo pipefail", "ruff check", "ruff format --check", "export HF_HUB_OFFLINE=1"} <= set(lines)


def test_every_key_and_its_default_stands_in_the_table_and_no_other():
    table = section("Config keys")
    rows = re.findall(r"^\| `(\w+)` \| (required|`.*?`) \| (.+?) \|$", table, re.M)
    written = {name: default.strip("`") for name, default, _ in rows}
    keys = known_keys()
    assert [name for name, _, _ in rows] == list(keys)
    for name, key in keys.items():
        if key.required:
            assert written[name] == "required", name
        else:
            assert json.loads(written[name]) == key.default, name
            assert isinstance(json.loads(written[name]), bool) == isinstance(key.default, bool), name


def test_the_table_is_grouped_as_the_schema():
    titles = re.findall(r"^### (.+)$", section("Config keys"), re.M)
    assert [title.lower().replace(" ", "_") for title in titles] == list(section_types())
    for title in titles:
        rows = re.findall(r"^\| `(\w+)` ", section(title, "###").split("\n## ")[0], re.M)
        assert {known_keys()[name].sections[0] for name in rows} == {title.lower().replace(" ", "_")}


def test_keys_without_effect_and_keys_that_may_change_are_all_named():
    without = section("Config keys").rpartition("Accepted without effect")[2].partition(":\n")[2]
    assert sorted(quoted_names(without)) == sorted(NO_EFFECT)
    changeable = section("Resume and Ctrl-C").partition("Only these keys may differ:")[2].partition(".")[0]
    assert sorted(quoted_names(changeable)) == sorted(MAY_CHANGE)


def test_every_kind_of_the_prior_is_named():
    known = json.loads((ROOT / "data/tiny-sd/kinds.json").read_text())
    named = re.search(rf"these {len(known)} kinds: (.*?)\.", section("Make your own"), re.S)[1]
    assert re.split(r",\s+", named) == known
    assert set(known) <= {kind.replace("_", " ") for kind in KINDS}


def test_every_file_of_the_tree_exists():
    paths = tree_paths(code_blocks(section("File tree"))[0])
    assert {"train.py", "data/make_tiny_sd/train.py", "render/raster/interface.py"} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_config_that_ships_is_in_the_tree():
    paths = tree_paths(code_blocks(section("File tree"))[0])
    assert {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.json")} <= set(paths)


@pytest.mark.parametrize("page", ["README.md", "data/README.md"])
def test_every_link_and_picture_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}
    broken = [
        target
        for target in targets
        if not re.match(r"https?://", target)
        and not (
            target[1:] in anchors
            if target.startswith("#")
            else (ROOT / page).parent.joinpath(target).exists()
        )
    ]
    assert targets and not broken


def test_no_number_is_left_to_be_filled_in():
    assert re.findall(r"\{\{\w+\}\}", README) == []


def test_every_data_file_has_a_row_with_its_source_and_licence():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the files that ship are listed by git, and this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [line.removeprefix("data/") for line in listed.stdout.splitlines()]
    page = (ROOT / "data/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)`[^|]*\| ([^|]+)\| ([^|]+)\| ([^|]+)\|$", page, re.M)
    covered = [name for name, *cells in rows if all(cell.strip() for cell in cells)]
    missing = [
        file
        for file in files
        if not file.endswith((".py", "README.md"))
        and not any(file == name or (name.endswith("/") and file.startswith(name)) for name in covered)
    ]
    assert files and missing == []
