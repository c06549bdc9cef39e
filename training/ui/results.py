"""Find the results in the output folder and the files that the page may show."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from training.report.run_page import FILES, REPORT_FILE

# Maximum depth of a result's folder in the output folder. The deepest results are those of sweeps, in
# out/NAME/TRIAL/STAGE.
DEPTH = 3
SHOWN_FILES = {REPORT_FILE, *FILES}
HEAD_BYTES = 4096


@dataclass(frozen=True)
class Result:
    """A folder with a report.

    folder: path relative to the output folder. title: title of the report's page, which contains the prompt
    and the state of the run. changed: modification time of the report.
    """

    folder: str
    title: str
    changed: float

    @property
    def label(self) -> str:
        """The label in a list of results."""
        return f"{self.title} ({self.folder})"


def find_results(root: Path) -> list[Result]:
    """Return all results in a folder and its subfolders, newest first."""
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
    """Return the path of a result's file for a URL, or None if the URL does not name such a file.

    name: the path in the URL: "FOLDER/FILE", relative to `root`, with FILE in SHOWN_FILES.
    """
    for file in SHOWN_FILES:
        if not name.endswith(f"/{file}"):
            continue
        folder = name.removesuffix(f"/{file}")
        if any(result.folder == folder for result in find_results(root)):
            path = (root / folder / file).resolve()
            return path if path.is_file() and path.is_relative_to(root.resolve()) else None
    return None
