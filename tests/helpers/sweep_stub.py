"""A stub of train.py for tests of sweeps. The option `text` selects what the stub does.

done: write the meshes. broken: exit with code 2 and an error line. crash: raise an exception. killed: end
with SIGKILL. wait: run until SIGTERM, SIGINT or SIGHUP, then write the file "saved" and exit with the same
code as train.py. If "saved" exists, "wait" does the same as "done".
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
out, text = Path("out", options["out_dir"]), options.get("text", "done")


def leave(number, frame):
    (out / "saved").touch()
    sys.exit(128 + number)


if text == "wait" and not (out / "saved").exists():
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGHUP, leave)
    signal.signal(signal.SIGTERM, leave)
(out / "begun").write_text(str(os.getpid()))
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RANK")
with Path("runs.jsonl").open("a") as log:
    environment = {name: os.environ.get(name) for name in names}
    log.write(json.dumps({"out_dir": options["out_dir"], "at": time.monotonic(), **environment}) + "\n")
sys.stderr.write("a line of no interest\n")
if text == "broken":
    sys.stderr.write("error: the surface vanished\nanother line\n")
    sys.exit(2)
if text == "crash":
    raise RuntimeError("no memory left on the GPU")
if text == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if text == "wait" and not (out / "saved").exists():
    time.sleep(60)
time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
number = sum(word.endswith(".json") for word in sys.argv)
for folder in [out, out.with_name(f"{out.name}_appearance")][:number]:
    (folder / "dmtet_mesh").mkdir(parents=True, exist_ok=True)
    (folder / "dmtet_mesh" / "mesh.obj").write_text("v 0 0 0\n")
