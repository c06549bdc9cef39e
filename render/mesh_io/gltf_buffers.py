"""Buffers and accessors of a glTF file."""

import base64
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float

from render.read_errors import FileError

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
# The maximum number of elements of an accessor that has no stored values and therefore contains only zeros.
MOST_PROMISED = 2**22
MESHOPT = (
    "it is compressed with meshopt (EXT_meshopt_compression), which is not read; save it without compression "
    "(gltfpack without -c; or: gltf-transform copy in.glb out.glb)"
)


class Buffers:
    """The accessors of a file. Each buffer is read only once, when an accessor needs the buffer for the first
    time.
    """

    def __init__(self, tree: dict, chunk: bytes | None, folder: Path):
        self.tree, self.chunk, self.folder = tree, chunk, folder
        self._buffers: dict[int, np.ndarray] = {}
        self._arrays: dict[int, np.ndarray] = {}

    def stored_bytes(self) -> int:
        """Read all buffers that have data, and return their total size in bytes."""
        for number in {view.get("buffer", 0) for view in self.tree.get("bufferViews", [])}:
            if not self._is_fallback(number):
                self._buffer(number)
        return sum(len(buffer) for buffer in self._buffers.values())

    def count(self, accessor: int | None) -> int:
        """Return the number of elements of an accessor, or 0 for None."""
        if accessor is None:
            return 0
        entry = self._entry("accessors", accessor)
        count = entry["count"]
        if not isinstance(count, int) or count < 0:
            raise FileError(f"accessor {accessor} has the count {count}")
        if "bufferView" not in entry and count > MOST_PROMISED:
            raise FileError(f"accessor {accessor} counts {count:,} elements that it does not hold")
        return count

    def array(self, accessor: int, columns: int | None = None) -> Float[np.ndarray, "N K"]:
        """Return the elements of an accessor as float64 [count, columns].

        Normalised integers are divided by their maximum.
        """
        if accessor not in self._arrays:
            self._arrays[accessor] = self._read(accessor)
        found = self._arrays[accessor]
        if columns is not None and found.shape[1] != columns:
            raise FileError(
                f"accessor {accessor} has {found.shape[1]} numbers an element, {columns} are needed"
            )
        return found

    def _read(self, accessor: int) -> np.ndarray:
        entry, count = self._entry("accessors", accessor), self.count(accessor)
        kind, columns = np.dtype(COMPONENTS[entry["componentType"]]), COLUMNS[entry["type"]]
        if "bufferView" in entry:
            values = self._elements(entry, count, kind, columns)
        else:
            values = np.zeros((count, columns), kind)
        if sparse := entry.get("sparse"):
            values = values.copy()
            index_kind = np.dtype(COMPONENTS[sparse["indices"]["componentType"]])
            at = self._elements(sparse["indices"], sparse["count"], index_kind, 1)[:, 0].astype(np.int64)
            if len(at) and (at.min() < 0 or at.max() >= count):
                raise FileError(f"accessor {accessor} has sparse indices out of range")
            values[at] = self._elements(sparse["values"], sparse["count"], kind, columns)
        found = values.astype(np.float64)
        if entry.get("normalized") and kind.kind in "iu":
            found = np.maximum(found / np.iinfo(kind).max, -1)
        return found

    def _elements(self, entry: dict, count: int, kind: np.dtype, columns: int) -> np.ndarray:
        """Return the elements [count, columns] of an accessor as a view of its buffer."""
        view = self._entry("bufferViews", entry["bufferView"])
        data = self._buffer(view["buffer"])
        start, length = view.get("byteOffset", 0), view["byteLength"]
        offset, width = entry.get("byteOffset", 0), kind.itemsize * columns
        stride = view.get("byteStride") or width
        if not isinstance(count, int) or min(start, length, offset, count) < 0 or start + length > len(data):
            raise FileError(
                f"buffer view {entry['bufferView']} lies outside of its buffer; the file is cut short"
            )
        if stride < width:
            raise FileError(
                f"buffer view {entry['bufferView']} has the stride {stride}, its elements {width} bytes"
            )
        if count and offset + (count - 1) * stride + width > length:
            raise FileError(
                f"an accessor of {count:,} elements lies outside of buffer view {entry['bufferView']}"
            )
        part = data[start + offset : start + length]
        return np.ndarray((count, columns), kind, part, strides=(stride, kind.itemsize))

    def _entry(self, kind: str, number: int) -> dict:
        entries = self.tree.get(kind, [])
        if not isinstance(number, int) or not 0 <= number < len(entries):
            raise FileError(f"it names entry {number} of '{kind}', and there are {len(entries)}")
        return entries[number]

    def _is_fallback(self, number: int) -> bool:
        """Return whether a buffer has no data because another buffer contains its data in meshopt
        compression.
        """
        return any("meshopt" in name for name in self._entry("buffers", number).get("extensions", {}))

    def _buffer(self, number: int) -> np.ndarray:
        if number not in self._buffers:
            self._buffers[number] = np.frombuffer(self._bytes(number), np.uint8)
        return self._buffers[number]

    def _bytes(self, number: int) -> bytes:
        entry = self._entry("buffers", number)
        uri = entry.get("uri")
        if uri is None and number == 0 and self.chunk is not None:
            return self.chunk
        if uri is None and self._is_fallback(number):
            raise FileError(MESHOPT)
        if uri is None:
            raise FileError(f"its buffer {number} has no data")
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        content = self.file(uri, "buffer").read_bytes()
        if len(content) < entry["byteLength"]:
            raise FileError(f"its buffer '{uri}' is cut short: {len(content)} of {entry['byteLength']} bytes")
        return content

    def view(self, number: int) -> bytes:
        """Return the bytes of a buffer view."""
        view = self._entry("bufferViews", number)
        data, start, length = self._buffer(view["buffer"]), view.get("byteOffset", 0), view["byteLength"]
        if min(start, length) < 0 or start + length > len(data):
            raise FileError(f"buffer view {number} lies outside of its buffer; the file is cut short")
        return data[start : start + length].tobytes()

    def files(self) -> list[Path]:
        """Return the buffer files that the mesh file refers to."""
        uris = [buffer.get("uri", "data:") for buffer in self.tree.get("buffers", [])]
        return [self.file(uri, "buffer") for uri in uris if not uri.startswith("data:")]

    def file(self, uri: str, what: str = "image") -> Path:
        """Return the file of a URI in the folder of the mesh. The URI may be percent-encoded.

        what: the name of the kind of file in error messages.

        Raises:
            FileError: if the file does not exist or lies outside of the folder.
        """
        folder = self.folder.resolve()
        for name in (uri, unquote(uri)):
            path = (folder / name).resolve()
            if not path.is_relative_to(folder):
                raise FileError(
                    f"its {what} '{uri}' lies outside of the mesh's folder; put it beside the mesh"
                )
            if path.is_file():
                return path
        raise FileError(f"its {what} '{unquote(uri)}' is not beside it; copy that file, too")
