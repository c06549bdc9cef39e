"""Find the links, paths and commands in the project's Markdown pages."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "data", "dataset", "geometry", "render", "sd", "tests", "training")
COMMANDS = ("python3 ", "torchrun ", "pip install ")


def pages() -> list[str]:
    """Return the paths of all README pages and of the benchmark report, relative to the root.

    Pages in hidden folders do not belong to the project. For example, the GLB test installs a package in
    pytest's cache.
    """
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md")]
    paths = [path.relative_to(ROOT) for path in [ROOT / "README.md", *sorted(found)]]
    own = [str(path) for path in paths if not any(part.startswith(".") for part in path.parts)]
    return [*own, "tests/benchmarks/REPORT.md"]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(text: str, title: str, level: str = "##") -> str:
    """Return the text under a heading, up to the next heading of the same level."""
    found = re.search(rf"^{level} {re.escape(title)}\n(.*?)(?=^{level} |\Z)", text, re.M | re.S)
    assert found, f"there is no section {title!r}"
    return found[1]


def code_blocks(text: str, language: str = r"\w*") -> list[str]:
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.M | re.S)
    return ["\n".join(line.removeprefix(indent) for line in block.splitlines()) for indent, block in blocks]


def code_spans(text: str) -> list[str]:
    """Return the inline code of a page, without fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, computed by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str) -> list[str]:
    """Return the links and images of a page whose target file or heading does not exist."""
    text = read(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    broken = []
    for target in targets:
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def missing_paths(page: str) -> list[str]:
    """Return the repository paths in inline code that do not exist, except for files that a user adds."""
    named = {span for span in code_spans(read(page)) if re.fullmatch(r"\.?\w[\w.*/-]*/[\w.*/-]*", span)}
    tops = {path.name for path in ROOT.iterdir()} - {"out"}
    ours = {span for span in named if span.split("/")[0] in tops}
    users = re.compile(r"data/stable-diffusion-")
    return sorted(span for span in ours if not users.match(span) and not any(ROOT.glob(span.rstrip("/"))))


def commands(page: str) -> list[list[str]]:
    """Return the shell commands in bash blocks and in inline code.

    Each command is a list of words, in which variables are expanded.
    """
    lines, variables = [], {}
    for block in code_blocks(read(page), "bash"):
        lines += block.replace("\\\n", " ").splitlines()
    lines += [span for span in code_spans(read(page)) if span.startswith(COMMANDS)]
    found = []
    for line in lines:
        if assignment := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assignment[1]] = assignment[2]
            continue
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        # An ellipsis represents further arguments that the user adds, so the command is read up to the
        # ellipsis.
        found += [part for command in line.split(" && ") if (part := shlex.split(command.partition("…")[0]))]
    return found
