"""Decode the pictures of texture files to bytes. Pictures with 8 bits per channel are decoded without
loss.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from render.image_io.limits import check_size
from render.read_errors import FileError

READ = "PNG, JPEG, WebP, TGA, BMP and TIFF"


def decode_texture(content: bytes) -> UInt8[np.ndarray, "H W C"]:
    """Decode a picture file. Channels of 16 bits are rounded to 8 bits. C is 3, or 4 with an alpha channel.

    Raises:
        FileError: if the content is not a picture of a known format, is too large or is damaged.
    """
    try:
        picture = Image.open(io.BytesIO(content))
    except OSError:
        raise FileError(f"it is not a picture that can be read; {READ} are") from None
    except Image.DecompressionBombError:
        raise FileError("it has too many pixels; scale it down") from None
    with picture:
        check_size(picture.width, picture.height, len(content))
        try:
            return _bytes(picture)
        except (OSError, SyntaxError, ValueError) as error:
            raise FileError(f"it is damaged ({' '.join(str(error).split())})") from None


def _bytes(picture: Image.Image) -> UInt8[np.ndarray, "H W C"]:
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=-1)
    alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    return np.array(picture.convert("RGBA" if alpha else "RGB"))
