"""The argument parser of train.py and its help text."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NoReturn

from configs.errors import ConfigError, shown
from configs.keys import Key
from configs.overrides import stage_option_names
from configs.schema import NO_EFFECT, known_keys, section_types

UI_OPTION = "--ui"

RULES = """\
a first result:
  --text "A red mug" without --config runs the demo pair: a shape, then its material, with the small prior
  that ships in data/tiny-sd. The start shape is that of the category (configs/prompts/start_shapes.json).
  The folders are out/a-red-mug/geometry and out/a-red-mug/appearance, or those in --out_dir.
  --quick makes fewer steps and smaller pictures: about two minutes on two cores.

files:
  A config is one JSON object of the keys above. A key that is left out has its default. Paths are relative to
  the current directory; ~ is the home folder. data/tiny-sd is found from any current directory.

options:
  --KEY VALUE replaces the key in every config of the command and is checked as in a file. --geometry.KEY and
  --appearance.KEY replace it in the configs of that mode only. Lists are JSON or several words
  (--train_res 256 256). null is no value. Text may be several words. A true-or-false key without a value is
  true. Hyphens may replace underscores (--train-res). Consequences of an option:
  --text without --out_dir appends the text to each out_dir (pineapple_demo-a-mug), so nothing is overwritten;
  --out_dir X for several configs: the first writes to X, the others write to X and the rest of their own name
  (X_appearance);
  a base_mesh that an earlier config of the same command writes is read from its new folder;
  --iter smaller than coarse_iter ends the run within its coarse phase.

many results:
  --grid seed=1,2 sdf_init_shape_scale="[.56,.74,.56],[.7,.7,.7]" runs every combination of the values, each
  in its own folder in the first config's out_dir (seed=1_sdf_init_shape_scale=0.56,0.74,0.56);
  --prompts FILE runs every line of FILE as the text. Both together make the product.
  All configs are checked before the first run starts. The same command again skips finished results, resumes
  interrupted ones and repeats failed ones. index.html in that out_dir shows all results.
  Runs are spread over all visible GPUs. Under torchrun each rank takes its share.

forms of the published program:
  -i iter, -b batch, -r train_res, -dr and --display_res preview_res, -tr texture_res, -si save_interval,
  -vi video_interval, -bg train_background, -o out_dir, -bm base_mesh.

accepted without effect (also as -s, -l, -mr, -mip, -rt, -rm):
  {no_effect}
"""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` for invalid arguments."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")


def build_parser() -> ArgumentParser:
    """Build the parser. Every key of the sections is an option."""
    parser = ArgumentParser(
        prog=Path(sys.argv[0]).name or "train.py",
        usage='%(prog)s --text "A red mug" [--quick] [--KEY VALUE …]\n'
        "       %(prog)s --config FILE [FILE …] [--KEY VALUE …] [--grid KEY=VALUE,VALUE …] [--prompts FILE]\n"
        "       [--jobs N] [--executor ENGINE] [--export-only] [--dry-run] [--check]\n"
        "       %(prog)s --ui [--ui_host HOST] [--ui_port PORT] [--KEY VALUE …]",
        description="From text to a textured mesh. Runs the given configs in order, or the demo pair.",
        epilog=RULES.format(no_effect=", ".join(sorted(NO_EFFECT))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_commands(parser)
    _add_many(parser)
    add_ui_options(parser)
    groups = {name: parser.add_argument_group(_title(name, kind)) for name, kind in section_types().items()}
    keys = known_keys()
    for key in keys.values():
        default = "required" if key.required else f"default {json.dumps(key.default, ensure_ascii=False)}"
        text = f"{key.description}; {key.allowed} ({default})".replace("%", "%%")
        groups[key.sections[0]].add_argument(
            f"--{key.name}", nargs=_word_count(key), metavar="VALUE", help=text
        )
    for name in stage_option_names():
        count = _word_count(keys[name.partition(".")[2]])
        parser.add_argument(f"--{name}", dest=name, nargs=count, help=argparse.SUPPRESS)
    for name in sorted(NO_EFFECT):
        # Accept both spellings, because the launcher of torch.distributed passes --local-rank=N.
        names = ("--local-rank", "--local_rank") if name == "local_rank" else (f"--{name}",)
        parser.add_argument(*names, dest=name, nargs="*", help=argparse.SUPPRESS)
    return parser


def _add_commands(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", nargs="+", action="extend", metavar="FILE", help="JSON files, run in order"
    )
    parser.add_argument(
        "--quick", action="store_true", help="without --config: fewer steps, a result in about two minutes"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="read all input files, print the resolved configs and exit"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="print what this machine has, what is missing and the fix for each; checks the configs too",
    )
    parser.add_argument(
        "--export-only",
        action="store_true",
        help="write mesh and textures again from the last checkpoint, at another texture_res or export_faces",
    )


def _add_many(parser: argparse.ArgumentParser) -> None:
    many = parser.add_argument_group("many results: a folder for each, and a page that shows them all")
    many.add_argument(
        "--grid", nargs="+", action="extend", metavar="KEY=VALUE,VALUE", help="run every combination"
    )
    many.add_argument("--prompts", metavar="FILE", help="run every line as the text; # begins a comment")
    many.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="runs at a time, spread over the visible GPUs, several on each if there are more (default one "
        "for each GPU, one on a CPU)",
    )
    many.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="local is this machine; ray sends the runs to Ray (optional package), for several machines",
    )


def add_ui_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the web page to a parser."""
    page = parser.add_argument_group("web page: start, watch and compare runs in a browser (package gradio)")
    page.add_argument(
        UI_OPTION, action="store_true", help="serve the page; keys given here apply to every run"
    )
    page.add_argument(
        "--ui_host",
        metavar="HOST",
        default="127.0.0.1",
        help="address to listen on; anyone who can reach another one than 127.0.0.1 can start runs",
    )
    page.add_argument(
        "--ui_port", metavar="PORT", type=int, default=7860, help="port to listen on, 0 for any free one"
    )


def _word_count(key: Key) -> str:
    """Return the argparse nargs of a key: any number of words for a true-or-false key, else at least one."""
    return "*" if key.admits("boolean") else "+"


def _positive(word: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,5}", word, re.ASCII):
        raise argparse.ArgumentTypeError(f"{shown(word)} is not allowed; allowed is an integer >= 1")
    return int(word)


def _title(name: str, kind: type) -> str:
    summary = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return f"{name.replace('_', ' ')}: {summary}"
