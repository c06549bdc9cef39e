"""Join the training frames of several runs into one short GIF, for example of a shape and of its painting.

    python3 -m data.make_run_gif out/pineapple_demo out/pineapple_demo_appearance --out assets/run.gif

The frames are the files of video_frames/ in each run folder, in the order of the runs. The last frame is
shown for a second.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from render.image_io.gif import write_gif
from training.console import run_tool


def run_frames(folder: Path, count: int, side: int) -> list[Image.Image]:
    """Return `count` frames of a run, evenly spaced and ending with the last one, resized to `side` pixels.

    A run with fewer frames contributes all of them.

    Raises:
        FileNotFoundError: if the run has no frames, because video_interval is 0.
    """
    files = sorted((folder / "video_frames").glob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"{folder}/video_frames has no frames; run with video_interval above 0")
    count = min(count, len(files))
    chosen = [files[(number + 1) * len(files) // count - 1] for number in range(count)]
    return [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BOX) for file in chosen]


def make_gif(options: argparse.Namespace) -> None:
    frames = [frame for run in options.runs for frame in run_frames(run, options.frames, options.side)]
    write_gif(options.out, frames + options.fps * frames[-1:], options.fps)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="data.make_run_gif", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="the GIF to write")
    parser.add_argument("--frames", type=int, default=30, help="maximum number of frames of each run")
    parser.add_argument("--side", type=int, default=192, help="pixels per side")
    parser.add_argument("--fps", type=int, default=10, help="frames per second")
    options = parser.parse_args(arguments)
    return run_tool(lambda: make_gif(options))


if __name__ == "__main__":
    sys.exit(main())
