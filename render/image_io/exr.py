"""Reader of OpenEXR pictures with parts, layers, windows and chromaticities.

Sources: "Technical Introduction to OpenEXR"; SMPTE RP 177 for the conversion matrix of chromaticities; K. M.
Lam, 1985 (Bradford) for the adaptation of the white point.
"""

import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float

from render.image_io.limits import check_size
from render.read_errors import FileError

logger = logging.getLogger(__name__)

# Chromaticities (x, y) of red, green, blue and white.
REC_709 = np.array([[0.64, 0.33], [0.3, 0.6], [0.15, 0.06], [0.3127, 0.329]])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
CUBE = 1


def read_exr(path: Path) -> Float[np.ndarray, "H W 3"]:
    """Return the first part with channels R, G and B as linear Rec. 709 RGB. The image covers the display
    window.

    If no part has channels that are named R, G and B, the first layer with these channels is read. Pixels
    outside of the data window are 0.

    Raises:
        FileError: if the file is faulty.
    """
    import OpenEXR

    size = path.stat().st_size
    with OpenEXR.File(str(path), separate_channels=True, header_only=True) as file:
        headers = [dict(part.header) for part in file.parts]
        names = [[channel.name for channel in header["channels"]] for header in headers]
    number, chosen = _choose(names)
    header = headers[number]
    (left, top), (right, bottom) = _window(header, "displayWindow")
    data_low, data_high = _window(header, "dataWindow")
    for low, high in (((left, top), (right, bottom)), (data_low, data_high)):
        if high[0] < low[0] or high[1] < low[1]:
            raise FileError("its windows are empty; the file is damaged")
        check_size(high[0] - low[0] + 1, high[1] - low[1] + 1, size)
    if int(header.get("envmap", 0) or 0) == CUBE:
        raise FileError(
            "it is a cube map; convert it to a latitude-longitude map first (OpenEXR: exrenvmap -li)"
        )
    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = file.parts[number].channels
        image = np.stack([np.asarray(channels[name].pixels, np.float32) for name in chosen], -1)
    image = _to_rec_709(image, header.get("chromaticities"))
    return _placed(image, data_low, (left, top), (bottom - top + 1, right - left + 1))


def _window(header: dict, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    low, high = header[name]
    return (int(low[0]), int(low[1])), (int(high[0]), int(high[1]))


def _choose(parts: list[list[str]]) -> tuple[int, list[str]]:
    """Return the index of a part with R, G and B channels, and the names of these channels. Names without a
    layer are preferred.
    """
    for layered in (False, True):
        for number, names in enumerate(parts):
            for name in names:
                layer, dot, last = name.rpartition(".")
                if bool(dot) != layered or last.upper() != "R":
                    continue
                chosen = [layer + dot + (c if last == "R" else c.lower()) for c in "RGB"]
                if set(chosen) <= set(names):
                    if layered:
                        logger.info("environment map: the layer %s is read", layer)
                    return number, chosen
    found = ", ".join(sorted({name for names in parts for name in names}))
    raise FileError(f"it has the channels {found}: R, G and B are needed")


def _placed(
    image: Float[np.ndarray, "h w 3"], low: tuple[int, int], origin: tuple[int, int], shape: tuple[int, int]
) -> Float[np.ndarray, "H W 3"]:
    """Return an image with the size of the display window. It contains the data window at the correct
    position.
    """
    column, row = low[0] - origin[0], low[1] - origin[1]
    if (column, row) == (0, 0) and image.shape[:2] == shape:
        return image
    out = np.zeros((*shape, 3), dtype=np.float32)
    top, left = max(0, row), max(0, column)
    part = image[top - row : max(0, shape[0] - row), left - column : max(0, shape[1] - column)]
    out[top : top + part.shape[0], left : left + part.shape[1]] = part
    share = part.shape[0] * part.shape[1] / max(1, shape[0] * shape[1])
    logger.warning("environment map: its data covers %.0f %% of the picture; the rest is black", 100 * share)
    return out


def _to_rec_709(image: Float[np.ndarray, "H W 3"], chromaticities: object) -> Float[np.ndarray, "H W 3"]:
    """Convert RGB from other primaries to Rec. 709, with adaptation of the white point."""
    if chromaticities is None:
        return image
    own = np.array([float(value) for value in np.ravel(np.array(chromaticities, dtype=np.float64))]).reshape(
        4, 2
    )
    if np.abs(own - REC_709).max() < 1e-3:
        return image
    if (np.abs(own[:, 1]) < 1e-6).any() or abs(np.linalg.det(np.c_[own[:3], np.ones(3)])) < 1e-6:
        raise FileError("its chromaticities are no colour space; the file is damaged")
    cones = BRADFORD @ _xyz(REC_709[3]) / (BRADFORD @ _xyz(own[3]))
    adapt = np.linalg.solve(BRADFORD, cones[:, None] * BRADFORD)
    matrix = np.linalg.solve(_rgb_to_xyz(REC_709), adapt @ _rgb_to_xyz(own))
    logger.info("environment map: its colours are converted from other primaries to Rec. 709")
    return (image.astype(np.float64) @ matrix.T).astype(np.float32)


def _xyz(xy: Float[np.ndarray, "2"]) -> Float[np.ndarray, "3"]:
    return np.array([xy[0], xy[1], 1 - xy[0] - xy[1]]) / xy[1]


def _rgb_to_xyz(chromaticities: Float[np.ndarray, "4 2"]) -> Float[np.ndarray, "3 3"]:
    primaries = np.stack([_xyz(xy) for xy in chromaticities[:3]], -1)
    return primaries * np.linalg.solve(primaries, _xyz(chromaticities[3]))
