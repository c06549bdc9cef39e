"""Strict JSON: one object, no key twice; what is wrong is told with file, line and column."""

import json
from pathlib import Path

from configs.errors import ConfigError, nearest, shown


def read_object(path: str | Path) -> dict[str, object]:
    """The JSON object in `path`. NaN and infinities come through; `parse_config` refuses them by key.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8 or not one JSON object, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_suggestion(Path(path))}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read as a config file: {reason}") from None

    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in pairs:
            if key in values:
                raise ConfigError(f"{path}: key {shown(key)} is there twice; keep one of them")
            values[key] = value
        return values

    try:
        values = json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{place}: not valid JSON: {error.msg}") from None
    except ConfigError:
        raise
    except (RecursionError, ValueError):
        raise ConfigError(
            f"{path}: not usable as a config: nested too deeply, or a number too long"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f'{path}: must hold one JSON object {{"key": value, …}}, not {shown(values)}')
    return values


def _suggestion(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.glob("*.json")] if folder.is_dir() else []
    return f"; did you mean {folder / nearest(path.name, names)}?" if names else ""
