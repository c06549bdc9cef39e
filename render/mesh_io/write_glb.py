"""Write binary glTF 2.0 with one mesh, one metallic-roughness material and embedded textures.

The axes (+y up, +z front), the uv origin (top left) and the normal maps (green points up in the image) of
glTF are those of this program, so no conversion is needed. A file consists of a 12-byte header, a JSON chunk
and a binary chunk (section 4 of the specification).
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from render.image_io.atomic import write_bytes
from render.mesh import Mesh
from render.mesh_io.texture_pngs import TexturePngs, Textures
from render.texturing.uv import orthonormal_tangents

GENERATOR = "render/mesh_io/write_glb.py"
FLOAT, UINT32 = 5126, 5125
VERTICES, INDICES = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
# The name in the file of each picture of `TexturePngs` that is used.
IMAGES = {"kd": "base colour", "gltf_ks": "occlusion roughness metallic", "normal": "normal"}


def write_glb(path: Path | str, mesh: Mesh, textures: Textures | None = None) -> None:
    """Write the file of `glb_file`. textures: see `TexturePngs`."""
    write_bytes(path, glb_file(mesh, TexturePngs(textures)))


def glb_file(mesh: Mesh, pngs: TexturePngs) -> bytes:
    """Return the mesh as one GLB file with vertex normals. With a normal map, it also contains tangents.

    ks is one image with 1 − occlusion in red, because 1 means unoccluded in glTF. Without textures, the
    surface is mid-grey, rough and not metallic.
    """
    assert not pngs.names or mesh.uv is not None, "textures need texture coordinates"
    document = GlbDocument()
    attributes, indices = vertex_arrays(mesh, with_tangents="normal" in pngs.names)
    primitive = {
        "attributes": {name: document.accessor(array, VERTICES) for name, array in attributes.items()},
        "indices": document.accessor(indices, INDICES),
        "material": 0,
        "mode": 4,
    }
    document.json["meshes"] = [{"primitives": [primitive]}]
    document.json["materials"] = [_material(document, pngs)]
    return document.pack()


def vertex_arrays(mesh: Mesh, with_tangents: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return vertex arrays with one row for each used pair (position, uv), and the triangles as row
    indices.
    """
    faces = mesh.faces.long().cpu()
    if mesh.uv is None or mesh.uv_faces is None:
        attributes = {"POSITION": mesh.v_pos, "NORMAL": mesh.v_nrm}
        return {name: _array(value) for name, value in attributes.items()}, _indices(faces)
    uv_faces = mesh.uv_faces.long().cpu()
    pairs = faces.reshape(-1) * len(mesh.uv) + uv_faces.reshape(-1)
    unique, corner = torch.unique(pairs, return_inverse=True)
    position = unique.div(len(mesh.uv), rounding_mode="floor").to(mesh.v_pos.device)
    coordinate = (unique % len(mesh.uv)).to(mesh.v_pos.device)
    normal = mesh.v_nrm[position]
    attributes = {"POSITION": mesh.v_pos[position], "NORMAL": normal, "TEXCOORD_0": mesh.uv[coordinate]}
    if with_tangents:
        assert mesh.tangents is not None, "a normal map needs tangents"
        tangent = orthonormal_tangents(mesh.tangents[coordinate], normal)
        # The fourth component of a tangent is 1 if cross(normal, tangent) points up in the image, and −1
        # where the texture is mirrored.
        w = torch.ones_like(tangent[:, 0]) if mesh.handedness is None else mesh.handedness[coordinate]
        attributes["TANGENT"] = torch.cat([tangent, w[:, None].to(tangent)], -1)
    return {name: _array(value) for name, value in attributes.items()}, _indices(corner.reshape(-1, 3))


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().numpy(), dtype="<f4")


def _indices(faces: Tensor) -> np.ndarray:
    return np.ascontiguousarray(faces.numpy().reshape(-1), dtype="<u4")


def _material(document: "GlbDocument", pngs: TexturePngs) -> dict:
    surface: dict = {"baseColorFactor": [0.5, 0.5, 0.5, 1], "metallicFactor": 0, "roughnessFactor": 0.9}
    material: dict = {"name": "surface", "pbrMetallicRoughness": surface}
    used = document.textures({name: pngs[picture] for picture, name in IMAGES.items() if picture in pngs})
    if "kd" in pngs.names:
        surface["baseColorFactor"] = [1, 1, 1, 1]
        surface["baseColorTexture"] = used["base colour"]
    if "ks" in pngs.names:
        surface["metallicFactor"] = surface["roughnessFactor"] = 1
        surface["metallicRoughnessTexture"] = used["occlusion roughness metallic"]
        material["occlusionTexture"] = dict(used["occlusion roughness metallic"])
    if "normal" in pngs.names:
        material["normalTexture"] = used["normal"]
    return material


class GlbDocument:
    """A glTF document that is being built. It consists of the JSON and the binary buffer."""

    def __init__(self) -> None:
        self.json: dict = {
            "asset": {"version": "2.0", "generator": GENERATOR},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, "name": "mesh"}],
            "accessors": [],
            "bufferViews": [],
        }
        self.binary = bytearray()

    def view(self, content: bytes, target: int | None = None) -> int:
        """Append bytes at the next multiple of four, and return the index of their buffer view."""
        self.binary.extend(bytes(-len(self.binary) % 4))
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(content)}
        if target is not None:
            view["target"] = target
        self.binary.extend(content)
        self.json["bufferViews"].append(view)
        return len(self.json["bufferViews"]) - 1

    def accessor(self, array: np.ndarray, target: int) -> int:
        """Append an array [N] of indices or [N,C] of floats, and return the index of its accessor."""
        accessor = {
            "bufferView": self.view(array.tobytes(), target),
            "componentType": UINT32 if array.ndim == 1 else FLOAT,
            "count": len(array),
            "type": "SCALAR" if array.ndim == 1 else f"VEC{array.shape[1]}",
        }
        if target == VERTICES:
            accessor["min"] = [float(x) for x in array.min(0)]
            accessor["max"] = [float(x) for x in array.max(0)]
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def textures(self, pngs: Mapping[str, bytes]) -> dict[str, dict]:
        """Append PNG files, and return a dict from their names to texture references."""
        used = {}
        for name, content in pngs.items():
            images = self.json.setdefault("images", [])
            images.append({"name": name, "mimeType": "image/png", "bufferView": self.view(content)})
            self.json["samplers"] = [
                {
                    "magFilter": LINEAR,
                    "minFilter": LINEAR_MIPMAP_LINEAR,
                    "wrapS": CLAMP_TO_EDGE,
                    "wrapT": CLAMP_TO_EDGE,
                }
            ]
            self.json.setdefault("textures", []).append({"sampler": 0, "source": len(images) - 1})
            used[name] = {"index": len(images) - 1}
        return used

    def pack(self) -> bytes:
        """Return the document as a GLB file."""
        return pack_glb(self.json, bytes(self.binary))


def pack_glb(document: Mapping[str, object], binary: bytes) -> bytes:
    """Return a GLB file of the document. `binary` is its only buffer."""
    binary += bytes(-len(binary) % 4)
    text = json.dumps({**document, "buffers": [{"byteLength": len(binary)}]}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary)),
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(binary), b"BIN\0"),
            binary,
        ]
    )
