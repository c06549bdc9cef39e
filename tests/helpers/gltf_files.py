"""Make glTF files from arrays, for tests of the reader."""

import json
from pathlib import Path

import numpy as np

COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float32)
CUBE_FACES = np.array(
    [
        [0, 1, 3],
        [0, 3, 2],
        [4, 6, 7],
        [4, 7, 5],
        [0, 4, 5],
        [0, 5, 1],
        [2, 3, 7],
        [2, 7, 6],
        [0, 2, 6],
        [0, 6, 4],
    ]
    + [[1, 5, 7], [1, 7, 3]],
    dtype=np.uint16,
)


class Gltf:
    """A builder of glTF files: add accessors and nodes, then write the file."""

    def __init__(self, **tree):
        self.tree = {
            "asset": {"version": "2.0"},
            "accessors": [],
            "bufferViews": [],
            "nodes": [],
            "meshes": [],
        }
        self.tree |= tree
        self.data = b""

    def view(self, content: bytes, **entry) -> int:
        self.data += bytes(-len(self.data) % 4)
        self.tree["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content), **entry}
        )
        self.data += content
        return len(self.tree["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, stride: int | None = None, **entry) -> int:
        """Add an accessor of values [count, columns] with `stride` bytes between rows. Return its index."""
        values = np.ascontiguousarray(values).reshape(len(values), -1)
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        view = {}
        if stride is not None:
            width = len(content) // len(values)
            rows = (content[k : k + width].ljust(stride, b"\7") for k in range(0, len(content), width))
            content, view = b"".join(rows), {"byteStride": stride}
        self.tree["accessors"].append(
            {
                "bufferView": self.view(content, **view),
                "componentType": COMPONENTS[values.dtype.str[1:]],
                "count": len(values),
                "type": TYPES[values.shape[1]],
                **entry,
            }
        )
        return len(self.tree["accessors"]) - 1

    def mesh(self, *primitives: dict, **entry) -> int:
        self.tree["meshes"].append({"primitives": list(primitives), **entry})
        return len(self.tree["meshes"]) - 1

    def cube(self, **primitive) -> dict:
        """Return a primitive that is a cube of side 2 around the origin."""
        attributes = {"POSITION": self.accessor(CUBE)}
        return {"attributes": attributes, "indices": self.accessor(CUBE_FACES.reshape(-1)), **primitive}

    def node(self, **entry) -> int:
        self.tree["nodes"].append(entry)
        return len(self.tree["nodes"]) - 1

    def write(self, path: Path) -> Path:
        """Write a .glb, or a .gltf with its buffer in a.bin in the same folder. Return the path."""
        buffer = {"byteLength": len(self.data)}
        if path.suffix == ".gltf":
            (path.parent / "a.bin").write_bytes(self.data)
            buffer["uri"] = "a.bin"
        tree = {**self.tree, "buffers": self.tree.get("buffers", [buffer])}
        tree = {key: value for key, value in tree.items() if value != []}
        text = json.dumps(tree).encode()
        if path.suffix == ".gltf":
            path.write_bytes(text)
            return path
        chunks = b""
        for kind, content in (
            (b"JSON", text + b" " * (-len(text) % 4)),
            (b"BIN\0", self.data + bytes(-len(self.data) % 4)),
        ):
            chunks += len(content).to_bytes(4, "little") + kind + content
        path.write_bytes(
            b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks
        )
        return path
