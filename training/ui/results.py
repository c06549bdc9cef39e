"""The results in the output folder, and the files of them that the page may show."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from training.report.run_page import FILES, REPORT_FILE

# Folders of results lie at most this deep in the output folder: sweeps have out/NAME/TRIAL/STAGE.
DEPTH = 3
SHOWN_FILES = {REPORT_FILE, *FILES}
HEAD_BYTES = 4096


@dataclass(frozen=True)
class Result:
    """A folder with a report. folder: relative to the output folder. title: that of the report's page, which
    contains the text and the state.
    """

    folder: str
    title: str
    changed: float

    @property
    def label(self) -> str:
        """Return the label in a list of results."""
        return f"{self.title} ({self.folder})"


def find_results(root: Path) -> list[Result]:
    """All results below a folder, the newest first."""
    found = []
    for depth in range(1, DEPTH + 1):
        for report in root.glob("/".join(["*"] * depth + [REPORT_FILE])):
            try:
                with report.open("rb") as file:
                    head = file.read(HEAD_BYTES).decode(errors="replace")
                changed = report.stat().st_mtime
            except OSError:
                continue
            title = re.search(r"<title>(.*?)</title>", head, re.S)
            folder = str(report.parent.relative_to(root))
            found.append(Result(folder, html.unescape(title[1]) if title else folder, changed))
    return sorted(found, key=lambda result: (-result.changed, result.folder))


def result_file(root: Path, name: str) -> Path | None:
    """The file of a result that an address names; None for everything that is not a file of a result.

    name: "FOLDER/FILE", relative to `root`, with FILE in SHOWN_FILES.
    """
    for file in SHOWN_FILES:
        if not name.endswith(f"/{file}"):
            continue
        folder = name.removesuffix(f"/{file}")
        if any(result.folder == folder for result in find_results(root)):
            path = (root / folder / file).resolve()
            return path if path.is_file() and path.is_relative_to(root.resolve()) else None
    return None
