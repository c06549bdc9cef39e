"""The options of the web page on the command line of train.py."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from configs.cli import read_command
from configs.errors import ConfigError
from configs.parser import UI_OPTION, ArgumentParser, add_ui_options


@dataclass(frozen=True)
class UIOptions:
    """host and port of the server, and the options that every run gets, as command-line words."""

    host: str
    port: int
    run_options: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, always means this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def ui_options(argv: Sequence[str]) -> UIOptions | None:
    """The options of a command line with --ui, None for any other.

    Raises:
        ConfigError: if an option is unknown, or if it selects what to run, which is selected on the page.
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
