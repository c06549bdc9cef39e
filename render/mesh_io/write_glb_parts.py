"""Write binary glTF 2.0 of a mesh with parts. Nodes, meshes and materials are those of the source file."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from render.image_io.atomic import write_bytes
from render.image_io.image import encode_pngs
from render.mesh import Mesh
from render.mesh_io.asset import Asset
from render.mesh_io.structure import Node
from render.mesh_io.surface_material import SurfaceMaterial, White
from render.mesh_io.write_glb import (
    INDICES,
    LINEAR,
    LINEAR_MIPMAP_LINEAR,
    VERTICES,
    GlbDocument,
    vertex_arrays,
)

logger = logging.getLogger(__name__)

WRAP_CODES = {"repeat": 10497, "clamp": 33071, "mirror": 33648}


def write_glb_parts(path: Path | str, asset: Asset) -> None:
    """Write the asset as one GLB file.

    Each node keeps its name, parent and transform. The parts of a node are written in order, as the
    primitives of its mesh. Materials keep their names and their order. An unused default material at the end
    is omitted.
    """
    document = GlbDocument()
    pictures = Pictures(document)
    count = material_count(asset)
    materials = [_material(material, pictures) for material in asset.materials[:count]]
    pictures.write()
    world = asset.node_matrices()
    if world is None:
        logger.warning("%s: a node's transform has no inverse; all nodes are written without one", path)
        world = np.tile(np.eye(4), (len(asset.structure.nodes), 1, 1))
        nodes = [replace(node, parent=None, matrix=np.eye(4)) for node in asset.structure.nodes]
    else:
        nodes = list(asset.structure.nodes)
    document.json["materials"] = materials
    document.json["nodes"] = [_node(node) for node in nodes]
    for number, node in enumerate(nodes):
        if node.parent is not None:
            document.json["nodes"][node.parent].setdefault("children", []).append(number)
        _add_mesh(document, asset, number, world[number])
    roots = [number for number, node in enumerate(nodes) if node.parent is None]
    document.json["scenes"] = [{"nodes": roots}]
    write_bytes(path, document.pack())


def material_count(asset: Asset) -> int:
    """Return the number of materials to write. An unused default material at the end is omitted."""
    used = {part.material for number, part in enumerate(asset.structure.parts) if len(asset.faces_of(number))}
    count = len(asset.materials)
    return count if count - 1 in used or count == 1 else count - 1


def _node(node: Node) -> dict:
    entry: dict = {"name": node.name}
    if not np.array_equal(node.matrix, np.eye(4)):
        entry["matrix"] = node.matrix.T.reshape(-1).tolist()
    return entry


def _add_mesh(document: GlbDocument, asset: Asset, number: int, world: Float[np.ndarray, "4 4"]) -> None:
    """Add the parts of a node as primitives of one mesh, in the coordinates of the node."""
    primitives = []
    for index, part in enumerate(asset.structure.parts):
        mesh = asset.part_mesh(index) if part.node == number else None
        if mesh is None or len(mesh.faces) == 0:
            continue
        bumpy = asset.materials[part.material].normal is not None
        arrays, faces = vertex_arrays(_in_node(mesh, world), with_tangents=bumpy)
        primitives.append(
            {
                "attributes": {name: document.accessor(array, VERTICES) for name, array in arrays.items()},
                "indices": document.accessor(faces, INDICES),
                "material": part.material,
                "mode": 4,
            }
        )
    if primitives:
        name = asset.structure.nodes[number].mesh_name
        document.json.setdefault("meshes", []).append({"name": name, "primitives": primitives})
        document.json["nodes"][number]["mesh"] = len(document.json["meshes"]) - 1


def _in_node(mesh: Mesh, world: Float[np.ndarray, "4 4"]) -> Mesh:
    """Convert a mesh from world coordinates to the coordinates of a node.

    If the node's transform mirrors the mesh, the faces and the handedness are reversed.
    """
    if np.array_equal(world, np.eye(4)):
        return mesh
    matrix = torch.from_numpy(world).to(mesh.v_pos.device)
    linear, shift = matrix[:3, :3], matrix[:3, 3]
    inverse = torch.linalg.inv(linear)
    v_pos = (mesh.v_pos.double() - shift) @ inverse.T
    normal = torch.nn.functional.normalize(mesh.v_nrm.double() @ linear, dim=-1)
    tangents = None
    if mesh.tangents is not None:
        tangents = torch.nn.functional.normalize(mesh.tangents.double() @ inverse.T, dim=-1).float()
    moved = replace(mesh, v_pos=v_pos, v_nrm=normal.float(), tangents=tangents)
    if float(torch.linalg.det(linear)) > 0:
        return moved
    return replace(
        moved,
        faces=mesh.faces.flip(-1),
        uv_faces=None if mesh.uv_faces is None else mesh.uv_faces.flip(-1),
        handedness=None if mesh.handedness is None else -mesh.handedness,
    )


class Pictures:
    """The pictures of a document. Equal pictures are written once. There is one sampler for each pair of wrap
    modes.
    """

    def __init__(self, document: GlbDocument):
        self.document = document
        self._pictures: dict[str, tuple[int, str, np.ndarray]] = {}

    def texture(self, name: str, pixels: UInt8[np.ndarray, "H W C"], wrap: tuple[str, str]) -> dict:
        """Return the reference to a texture. The picture itself is added by `write`."""
        digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        source = self._pictures.setdefault(digest, (len(self._pictures), name, pixels))[0]
        entry = {"sampler": self._sampler(wrap), "source": source}
        textures = self.document.json.setdefault("textures", [])
        if entry not in textures:
            textures.append(entry)
        return {"index": textures.index(entry)}

    def _sampler(self, wrap: tuple[str, str]) -> int:
        entry = {
            "magFilter": LINEAR,
            "minFilter": LINEAR_MIPMAP_LINEAR,
            "wrapS": WRAP_CODES[wrap[0]],
            "wrapT": WRAP_CODES[wrap[1]],
        }
        samplers = self.document.json.setdefault("samplers", [])
        if entry not in samplers:
            samplers.append(entry)
        return samplers.index(entry)

    def write(self) -> None:
        """Add all pictures to the document as PNGs."""
        given = list(self._pictures.values())
        for (_, name, _), content in zip(given, encode_pngs([entry[2] for entry in given]), strict=True):
            view = self.document.view(content)
            images = self.document.json.setdefault("images", [])
            images.append({"name": name, "mimeType": "image/png", "bufferView": view})


def _material(material: SurfaceMaterial, pictures: Pictures) -> dict:
    def texture(what: str, pixels: np.ndarray) -> dict:
        return pictures.texture(f"{material.name} {what}", pixels, material.wrap)

    surface: dict = {"metallicFactor": material.metallic, "roughnessFactor": material.roughness}
    if material.kd_factor != White:
        surface["baseColorFactor"] = list(material.kd_factor)
    if material.kd is not None:
        surface["baseColorTexture"] = texture("base colour", material.kd)
    entry: dict = {"name": material.name, "pbrMetallicRoughness": surface, **material.settings}
    packed, occlusion = material.roughness_metallic, material.occlusion
    if packed is not None:
        same = occlusion is not None and occlusion.shape[:2] == packed.shape[:2]
        red = occlusion if same else np.full_like(packed[..., :1], 255)
        reference = texture("occlusion roughness metallic", np.concatenate([red, packed], -1))
        surface["metallicRoughnessTexture"] = reference
        if same:
            entry["occlusionTexture"] = {**reference, "strength": material.occlusion_strength}
            occlusion = None
    if occlusion is not None:
        reference = texture("occlusion", np.repeat(occlusion, 3, axis=-1))
        entry["occlusionTexture"] = {**reference, "strength": material.occlusion_strength}
    if material.normal is not None:
        entry["normalTexture"] = {**texture("normal", material.normal), "scale": material.normal_scale}
    return entry
