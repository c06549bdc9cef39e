"""The 3D model in the page: a GLB in an orbit viewer, lit by the run's environment map.

The viewer is <model-viewer> (npm @google/model-viewer 4.4.0, Apache-2.0, see model-viewer.LICENSE). It
supports plain GLB and KHR_mesh_quantization without further files. Draco and KTX2 are not used, because their
decoders would have to be loaded from the network. If a model is large, a smaller copy is embedded.
"""

import base64
import io
import json
import struct
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from render.image_io.hdr import read_latlong, write_hdr
from render.mesh_io.write_glb import GENERATOR, pack_glb
from training.report.page import HERE, escape, link

# Limits for an unchanged GLB and for a reduced copy, in deflated bytes. base64 adds a third to these sizes.
AS_IT_IS, LIGHTER = 4_000_000, 6_400_000
# A file larger than FAR times the limit is not compressed, because compression takes seconds and the result
# would exceed the limit: meshes shrink to a third at best, and textures hardly shrink.
FAR = 4
TEXTURE_SIDE, TEXTURE_QUALITY = 1024, 88
# Height and width of the environment map in the page.
MAP_SIZE = (128, 256)
BYTE, SHORT, UNSIGNED_SHORT = 5120, 5122, 5123
# Extensions whose decoders the viewer would load from the network.
NEED_DECODERS = ("KHR_draco_mesh_compression", "KHR_texture_basisu", "EXT_meshopt_compression")


@dataclass(frozen=True)
class Embedded:
    """A GLB for the page: its deflated bytes (None if they exceed the limit) and a note for the reader."""

    content: bytes | None
    remark: str


def embed(path: Path, most: int = LIGHTER) -> Embedded:
    """Compress a GLB file to at most `most` deflated bytes. Only files of this program can be reduced.

    The last result is cached. The key contains the path, the modification time, the size and the inode.
    """
    file = path.stat()
    return _embed(path, (file.st_mtime_ns, file.st_size, file.st_ino), most)


@lru_cache(maxsize=1)
def _embed(path: Path, version: tuple[int, ...], most: int) -> Embedded:
    original = path.read_bytes()
    document, _ = read_glb(original)
    size = f"{path.name}, {len(original) / 1e6:.0f} MB"
    if needs_network(document):
        return Embedded(None, f"The model has parts that a viewer would have to download: {size}.")
    if _picture_bytes(document) <= AS_IT_IS and (packed := _deflated(original, min(AS_IT_IS, most))):
        return Embedded(packed, "")
    own = document["asset"].get("generator") == GENERATOR
    if own and (packed := _deflated(lighter(original), most)):
        return Embedded(
            packed, f"A lighter copy: rounded positions, textures as JPEG. The model itself: {size}."
        )
    return Embedded(None, f"The model is too large to show inside this page: {size}.")


def _picture_bytes(document: dict) -> int:
    """Return the size of the pictures of a GLB file. They are compressed already."""
    views = [image.get("bufferView") for image in document.get("images", ())]
    return sum(document["bufferViews"][view]["byteLength"] for view in views if view is not None)


def _deflated(content: bytes, most: int) -> bytes | None:
    """Return the deflated content, or None if it is (or is expected to be, see FAR) above `most` bytes."""
    if len(content) > FAR * most:
        return None
    packed = zlib.compress(content, 6)
    return packed if len(packed) <= most else None


@lru_cache(maxsize=4)
def environment_map(path: Path, changed: int, scale: float) -> bytes:
    """Return a lat-long map of MAP_SIZE, multiplied by `scale`, as a .hdr file for the viewer.

    The centre of the project's maps is the direction -z, but the viewer expects +x at the centre, so the map
    is shifted by a quarter of its width. changed: the modification time of the file, for the cache.
    """
    pixels = read_latlong(path).permute(2, 0, 1)[None] * scale
    small = torch.nn.functional.interpolate(pixels, MAP_SIZE, mode="area")[0].permute(1, 2, 0)
    with tempfile.TemporaryDirectory() as folder:
        write_hdr(Path(folder) / "map.hdr", small.roll(-MAP_SIZE[1] // 4, dims=1))
        return (Path(folder) / "map.hdr").read_bytes()


def viewer(
    path: Path, alt: str, most: int = LIGHTER, environment: bytes | None = None
) -> tuple[str, list[str]]:
    """Return the HTML of the viewer, and the scripts that it needs.

    path: a file at most two levels below the page's folder, such as dmtet_mesh/mesh.glb. environment: the
    result of `environment_map`, or None for the default light of the viewer.
    """
    model = embed(path, most)
    where = f'<a href="{link(f"{path.parent.name}/{path.name}")}">{escape(path.name)}</a>'
    if model.content is None:
        return f'<div class="empty"><p>{escape(model.remark)} {where}</p></div>', []
    remark = f"{escape(model.remark)} {where}" if model.remark else f"{where}. Drag to turn, scroll to zoom."
    return (
        f'<model-viewer alt="{escape(alt)}" camera-controls shadow-intensity="0.6" tone-mapping="none" '
        'interaction-prompt="none" touch-action="pan-y" camera-orbit="0deg 75deg auto"></model-viewer>'
        f'<div id="no-viewer" class="empty" hidden><p></p><p>{where}</p></div>'
        f"<figcaption>{remark}</figcaption>"
        + _data_element("model", model.content)
        + (_data_element("environment", environment) if environment else "")
    ), [viewer_source()]


def _data_element(name: str, content: bytes) -> str:
    """Return an HTML element with the id `name` that contains bytes as base64 for the page's script."""
    return f'<script type="text/plain" id="{name}">{base64.b64encode(content).decode("ascii")}</script>'


def viewer_source() -> str:
    """Return the script of the viewer without the reference to its source map, which is not included."""
    source = (HERE / "model-viewer-umd.min.js").read_text(encoding="utf-8")
    return source.partition("//# sourceMappingURL")[0]


def needs_network(document: dict) -> bool:
    """Return whether a viewer would have to load pictures or decoders from other files or the network."""
    pictures = [image.get("uri", "data:") for image in document.get("images", ())]
    decoders = [name for name in document.get("extensionsUsed", ()) if name in NEED_DECODERS]
    return bool(decoders) or any(not uri.startswith("data:") for uri in pictures)


def lighter(content: bytes) -> bytes:
    """Copy a GLB that this program has written, with the same triangles and about half the size.

    Positions and UVs have 16 bits and normals 8 bits (KHR_mesh_quantization). Tangents are removed, because
    viewers compute them from the UVs. Textures are JPEGs with at most TEXTURE_SIDE pixels per side.

    If the file has several primitives, only the textures are changed, because the nodes already have
    transforms, which quantisation would replace.
    """
    document, binary = read_glb(content)
    single = (
        len(document["meshes"]) == len(document["meshes"][0]["primitives"]) == 1 == len(document["nodes"])
    )
    if single:
        _forget_tangents(document)
    parts = [_part(view, binary) for view in document["bufferViews"]]
    images = document.get("images", ())
    with ThreadPoolExecutor(thread_name_prefix="jpeg") as pool:
        jpegs = list(pool.map(_as_jpeg, [parts[image["bufferView"]] for image in images]))
    for image, jpeg in zip(images, jpegs, strict=True):
        parts[image["bufferView"]] = jpeg
        image["mimeType"] = "image/jpeg"
    if not single:
        return _packed(document, parts)
    for name, index in document["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        values = np.frombuffer(parts[accessor["bufferView"]], "<f4").reshape(accessor["count"], -1)
        accessor.pop("min", None), accessor.pop("max", None)
        if name == "POSITION":
            integers, undo = _centred(values)
            document["nodes"][0].update(undo)
            kind = SHORT
            accessor["min"], accessor["max"] = integers.min(0).tolist(), integers.max(0).tolist()
        elif name == "TEXCOORD_0":
            # The UVs of this program are in [0, 1], so they are stored as unsigned integers.
            integers, kind = np.round(values.clip(0, 1) * 65535).astype("<u2"), UNSIGNED_SHORT
        else:
            integers, kind = np.round(values.clip(-1, 1) * 127).astype("i1"), BYTE
        accessor.update(componentType=kind, normalized=kind != SHORT)
        parts[accessor["bufferView"]], view["byteStride"] = _in_words(integers)
    document["extensionsUsed"] = document["extensionsRequired"] = ["KHR_mesh_quantization"]
    return _packed(document, parts)


def _forget_tangents(document: dict) -> None:
    """Remove the tangent attribute, its accessor and its buffer view, and decrement all later indices."""
    primitive = document["meshes"][0]["primitives"][0]
    if "TANGENT" not in primitive["attributes"]:
        return
    gone = primitive["attributes"].pop("TANGENT")
    view = document["accessors"].pop(gone)["bufferView"]
    del document["bufferViews"][view]
    attributes = {name: index - (index > gone) for name, index in primitive["attributes"].items()}
    primitive.update(attributes=attributes, indices=primitive["indices"] - (primitive["indices"] > gone))
    for user in (*document["accessors"], *document.get("images", ())):
        user["bufferView"] -= user["bufferView"] > view


def read_glb(content: bytes) -> tuple[dict, bytes]:
    """Return the JSON and the binary chunk of a GLB file."""
    size = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[20 : 20 + size]), content[28 + size :]


def _part(view: dict, binary: bytes) -> bytes:
    start = view.get("byteOffset", 0)
    return binary[start : start + view["byteLength"]]


def _as_jpeg(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        image = image.convert("RGB")
    image.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=TEXTURE_QUALITY, subsampling=0)
    return buffer.getvalue()


def _centred(positions: np.ndarray) -> tuple[np.ndarray, dict]:
    """Quantise positions [V,3] to integers in ±32767. Return them and the node transform to restore them."""
    low, high = positions.min(0), positions.max(0)
    centre, scale = (low + high) / 2, max(float((high - low).max() / 2), 1e-9) / 32767
    integers = np.round((positions - centre) / scale).astype("<i2")
    return integers, {"scale": [scale] * 3, "translation": centre.tolist()}


def _in_words(values: np.ndarray) -> tuple[bytes, int]:
    """Pad rows to a multiple of four bytes, as glTF requires. Return them and the number of bytes per row."""
    width = values.shape[1] * values.itemsize
    words = -(-width // 4) * 4
    rows = np.zeros((len(values), words), "u1")
    rows[:, :width] = np.ascontiguousarray(values).view("u1")
    return rows.tobytes(), words


def _packed(document: dict, parts: list[bytes]) -> bytes:
    """Return the GLB file of a document, with `parts` as the contents of its buffer views."""
    binary = bytearray()
    for view, part in zip(document["bufferViews"], parts, strict=True):
        binary.extend(bytes(-len(binary) % 4))
        view.update(byteOffset=len(binary), byteLength=len(part))
        binary.extend(part)
    return pack_glb(document, bytes(binary))
