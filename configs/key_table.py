"""Write the table of config keys in configs/README.md from the schema.

    python3 -m configs.key_table

The table is between the markers BEGIN and END. The rest of the page is not changed.
"""

import json
import sys
from pathlib import Path

from configs.keys import Key
from configs.schema import NO_EFFECT, known_keys, section_types

PAGE = Path(__file__).with_name("README.md")
BEGIN = "<!-- keys: written by python3 -m configs.key_table -->"
END = "<!-- end of keys -->"
# Replaces a vertical bar in a table cell, because an unescaped bar would end the cell.
BAR = "\\|"


def key_table() -> str:
    """Return all keys as Markdown: a table for each section of the schema, then the keys without effect."""
    blocks = []
    for section in section_types():
        keys = [key for key in known_keys().values() if key.sections[0] == section]
        rows = [_row(key) for key in keys]
        title = f"### {section.replace('_', ' ').capitalize()}"
        blocks.append("\n".join([title, "", "| key | default | meaning |", "| --- | --- | --- |", *rows]))
    ignored = ", ".join(f"`{name}`" for name in sorted(NO_EFFECT))
    blocks.append(f"Accepted without effect, so that published configs run unchanged: {ignored}.")
    return "\n\n".join(blocks)


def replace_table(page: str) -> str:
    """Return the text of `page` with a new table between its markers.

    Raises:
        ValueError: if a marker is missing.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE}: the lines {BEGIN!r} and {END!r} are needed around the table")
    return f"{head}{BEGIN}\n\n{key_table()}\n\n{END}{tail}"


def _row(key: Key) -> str:
    default = "required" if key.required else f"`{json.dumps(key.default, ensure_ascii=False)}`"
    choice = f" ({key.allowed})" if key.allowed.startswith("one of ") else ""
    return f"| `{key.name}` | {default} | {(key.description + choice).replace('|', BAR)} |"


def main() -> int:
    PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
