"""Command-line options of train.py for the web page."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from configs.cli import read_command
from configs.errors import ConfigError
from configs.parser import UI_OPTION, ArgumentParser, add_ui_options


@dataclass(frozen=True)
class UIOptions:
    """Host and port of the server, and the command-line arguments that are passed to every run."""

    host: str
    port: int
    run_options: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address (without port) always refers to this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def ui_options(argv: Sequence[str]) -> UIOptions | None:
    """Return the options of a command line with --ui, or None for any other command line.

    Raises:
        ConfigError: if an option is unknown, or if it specifies a run. Runs are specified on the page.
    """
    if UI_OPTION not in argv:
        return None
    parser = ArgumentParser(allow_abbrev=False, add_help=False)
    add_ui_options(parser)
    found, rest = parser.parse_known_args(list(argv))
    command = read_command(["--text", "a text", *rest])
    chosen = {
        "--config": command.paths,
        "--quick": command.quick,
        "--dry-run": command.dry_run,
        "--export-only": "--export-only" in rest,
        "--grid or --prompts": command.many,
        "--text": "text" in command.options and command.options["text"] != "a text",
        "--out_dir": "out_dir" in command.options,
    }
    for option, given in chosen.items():
        if given:
            raise ConfigError(f"command line: {option} does not go with --ui; choose it on the page")
    if not 0 <= found.ui_port <= 65535:
        raise ConfigError(f"command line: --ui_port {found.ui_port} is no port; allowed is 0 to 65535")
    return UIOptions(found.ui_host, found.ui_port, tuple(rest))
