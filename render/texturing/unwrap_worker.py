"""Script that unwraps one mesh in a subprocess.

It reads one line from the standard input: a JSON list of LIBRARY, IN and OUT. If the input ends without a
line, the script ends. IN is an .npz file with positions [V,3] float32, faces [F,3] uint32, side and padding.
OUT is an .npz file with uv [U,2], uv_faces [F,3] and the numbers of charts and pages. To start fast, this
script imports no other module of the program.
"""

import ctypes
import json
import signal
import sys

import numpy as np

PR_SET_PDEATHSIG = 1


def main(library: str, input_file: str, output_file: str) -> None:
    """Unwrap with "xatlas" or "uvunwrap". If the library fails, an exception ends the script."""
    with np.load(input_file) as record:
        arguments = record["positions"], record["faces"], int(record["side"]), int(record["padding"])
    uv, uv_faces, charts, pages = (with_xatlas if library == "xatlas" else with_uvunwrap)(*arguments)
    np.savez(output_file, uv=uv, uv_faces=uv_faces, charts=charts, pages=pages)


def with_xatlas(positions: np.ndarray, faces: np.ndarray, side: int, padding: int):
    """Return (uv, uv_faces, charts, pages). uv is in [0,1]."""
    import xatlas

    chart_options = xatlas.ChartOptions()
    chart_options.fix_winding = True
    pack_options = xatlas.PackOptions()
    # Rotation is disabled, because xatlas rotates a chart by swapping u and v, which mirrors the chart.
    pack_options.rotate_charts = False
    pack_options.resolution = side
    pack_options.padding = padding
    atlas = xatlas.Atlas()
    atlas.add_mesh(positions, faces)
    atlas.generate(chart_options, pack_options)
    if atlas.atlas_count > 1:
        pack_options.resolution = 0
        atlas.generate(chart_options, pack_options)
    _, uv_faces, uv = atlas.get_mesh(0)
    return uv, uv_faces.astype(np.int64), atlas.chart_count, atlas.atlas_count


def with_uvunwrap(positions: np.ndarray, faces: np.ndarray, side: int, padding: int):
    """Return (uv, uv_faces, charts, pages). uv is in [0,1]."""
    import uvunwrap

    atlas = uvunwrap.generate([uvunwrap.Mesh(positions, faces)], page_size=side, padding=padding)
    output = atlas.meshes[0]
    uv = np.array(output.uv, dtype=np.float32).reshape(-1, 2)
    uv_faces = np.array(output.indices, dtype=np.int64).reshape(-1, 3)
    return uv, uv_faces, atlas.chart_count, atlas.page_count


if __name__ == "__main__":
    if sys.platform == "linux":
        # After this call, Linux kills the worker if the parent process is killed.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if line := sys.stdin.readline():
        main(*json.loads(line))
