"""Read glTF 2.0 and GLB: all triangles of the default scene in the rest pose.

Accessors may be strided, normalised and sparse. Node transforms, instances (EXT_mesh_gpu_instancing), morph
weights and skins are evaluated. The transform of texture coordinates is applied. Materials are read by
`read_gltf_materials`. Specification: Khronos Group, "glTF 2.0 Specification", 2021.
"""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from render.mesh_io.gltf_buffers import MESHOPT, Buffers
from render.mesh_io.gltf_nodes import Nodes, local_matrix, transform_points
from render.mesh_io.polygons import Polygons, points_only
from render.mesh_io.read_gltf_materials import GltfMaterials
from render.mesh_io.structure import Node, Part, Structure
from render.mesh_io.surface_material import DEFAULT_MATERIAL, SurfaceMaterial
from render.read_errors import FileError

TRIANGLES, TRIANGLE_STRIP, TRIANGLE_FAN = 4, 5, 6
# The supported extensions that change geometry. Extensions with a prefix in HARMLESS do not change geometry,
# so the mesh is read without them.
READ = {"KHR_mesh_quantization", "EXT_mesh_gpu_instancing"}
HARMLESS = (
    "KHR_materials_",
    "KHR_texture_",
    "EXT_texture_",
    "MSFT_texture_",
    "KHR_lights_",
    "EXT_lights_",
    "KHR_xmp",
)
DRACO = (
    "it is compressed with Draco (KHR_draco_mesh_compression), which is not read; save it uncompressed "
    "(Blender: export without Compression; or: gltf-transform copy in.glb out.glb)"
)
FIXES = {
    "KHR_draco_mesh_compression": DRACO,
    "EXT_meshopt_compression": MESHOPT,
    "KHR_meshopt_compression": MESHOPT,
}
# The maximum number of vertices or triangles of a small file after its instances are expanded. A large file
# may have one vertex or triangle for every 3 bytes.
MOST_EXPANDED = 2**22


def read_gltf(path: Path) -> Polygons:
    """Read the triangles of a .gltf or .glb file.

    Raises:
        FileError: if the file is faulty or uses an unsupported feature. The message contains the fix.
    """
    tree, chunk = _parse(path.read_bytes())
    _check_extensions(tree)
    buffers = Buffers(tree, chunk, path.parent)
    scene = _Scene(tree, buffers, Nodes(tree, buffers))
    most = max(MOST_EXPANDED, buffers.stored_bytes() // 3)
    parts, placed, total, points = [], [], 0, 0
    for number, node in enumerate(scene.nodes.visible):
        if "mesh" not in scene.nodes.entry(node):
            continue
        places = scene.nodes.instances(node)
        for primitive in tree["meshes"][scene.nodes.entry(node)["mesh"]]["primitives"]:
            vertices, faces = scene.size(primitive)
            points += vertices * (faces == 0)
            # The total is checked before the instances are expanded, because the expanded instances may not
            # fit into memory.
            total += max(vertices, faces) * len(places)
            if total > most:
                raise FileError(
                    f"its instances add up to more than {most:,} triangles, too many for a file of "
                    f"{buffers.stored_bytes():,} bytes; merge or reduce them in the program that wrote it"
                )
            if faces:
                parts.append(scene.part(node, primitive, places))
                placed.append(Part(number, scene.material(primitive), parts[-1].uv is not None))
    if not parts and points:
        raise points_only(points)
    return _joined(parts, scene.structure(placed))


def read_gltf_materials(path: Path, pictures: bool = True) -> tuple[SurfaceMaterial, ...]:
    """Return the materials in the order of the file, then `DEFAULT_MATERIAL`. See `GltfMaterials.read`."""
    found = _materials(path)
    return (*(found.read(number, pictures) for number in range(len(found))), DEFAULT_MATERIAL)


def gltf_files(path: Path) -> list[Path]:
    """Return the buffer and picture files that a mesh file refers to."""
    return [*_materials(path).buffers.files(), *_materials(path).files()]


def _materials(path: Path) -> GltfMaterials:
    tree, chunk = _parse(path.read_bytes())
    return GltfMaterials(tree, Buffers(tree, chunk, path.parent), path)


def _parse(content: bytes) -> tuple[dict, bytes | None]:
    """Return the JSON of the file and its binary chunk."""
    chunk = None
    if content[:4] == b"glTF":
        _, version, length = struct.unpack("<4sII", content[:12])
        if version != 2:
            raise FileError(
                f"it is glTF {version}.0; only glTF 2.0 is read: convert it (for example in Blender)"
            )
        if length > len(content):
            raise FileError(
                f"its header counts {length} bytes, and the file holds {len(content)}; it is cut short"
            )
        text_end = 20 + int.from_bytes(content[12:16], "little")
        text = content[20:text_end]
        if content[text_end + 4 : text_end + 8] == b"BIN\0":
            chunk = content[
                text_end + 8 : text_end + 8 + int.from_bytes(content[text_end : text_end + 4], "little")
            ]
    else:
        text = content
    tree = json.loads(text.decode("utf-8-sig"))
    if not isinstance(tree, dict) or not isinstance(tree.get("asset"), dict):
        raise FileError("it is no glTF file: it has no 'asset'")
    version = str(tree["asset"].get("version", "2.0"))
    if not version.startswith("2."):
        raise FileError(f"it is glTF {version}; only glTF 2.0 is read: convert it (for example in Blender)")
    return tree, chunk


def _check_extensions(tree: dict) -> None:
    for name in tree.get("extensionsRequired", []):
        if name in FIXES:
            raise FileError(FIXES[name])
        if name not in READ and not str(name).startswith(HARMLESS):
            raise FileError(
                f"it requires the extension {name}, which is not read; export it without that extension"
            )


class _Scene:
    """The geometry of the primitives of a file."""

    def __init__(self, tree: dict, buffers: Buffers, nodes: Nodes):
        self.tree, self.buffers, self.nodes = tree, buffers, nodes

    def size(self, primitive: dict) -> tuple[int, int]:
        """Return the numbers of vertices and triangles of a primitive. The vertices are not read.

        Points and lines have 0 triangles.
        """
        _check_compression(self.tree, primitive)
        vertices = self.buffers.count(primitive["attributes"].get("POSITION"))
        corners = self.buffers.count(primitive["indices"]) if "indices" in primitive else vertices
        mode = primitive.get("mode", TRIANGLES)
        faces = {TRIANGLES: corners // 3, TRIANGLE_STRIP: corners - 2, TRIANGLE_FAN: corners - 2}.get(mode, 0)
        return vertices, max(0, faces) if vertices else 0

    def part(self, node: int, primitive: dict, places: Float[np.ndarray, "I 4 4"]) -> "_Part":
        """Return all instances of a primitive in world coordinates."""
        attributes, entry = primitive["attributes"], self.nodes.entry(node)
        v_pos = self.buffers.array(attributes["POSITION"], columns=3)
        mesh = self.tree["meshes"][entry["mesh"]]
        weights = entry.get("weights", mesh.get("weights", []))
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and "POSITION" in target:
                v_pos = v_pos + float(weight) * self._like(target["POSITION"], v_pos, 3)
        faces = self._faces(primitive, len(v_pos))
        uv = self._uv(primitive, v_pos)
        if "skin" in entry and "JOINTS_0" in attributes:
            v_pos, mirrored = self._skinned(entry["skin"], attributes, v_pos)
            placed, mirrored = v_pos[None], np.array([mirrored])
        else:
            placed = transform_points(places, v_pos)
            mirrored = np.linalg.det(places[:, :3, :3]) < 0
        return _Part(placed, faces, mirrored, uv)

    def material(self, primitive: dict) -> int:
        """Return the material index of a primitive. For a primitive without a material, the result is the
        number of materials, which is the index of `DEFAULT_MATERIAL`.
        """
        materials = len(self.tree.get("materials", []))
        number = primitive.get("material", materials)
        if not isinstance(number, int) or not 0 <= number <= materials:
            raise FileError(f"it names material {number}, and there are {materials}")
        return number

    def structure(self, parts: list[Part]) -> Structure:
        """Return the structure with the nodes of the default scene and the given parts."""
        numbers = {node: number for number, node in enumerate(self.nodes.visible)}
        parents = {
            child: numbers[node] for node in numbers for child in self.nodes.entry(node).get("children", [])
        }
        found = []
        for node in numbers:
            entry = self.nodes.entry(node)
            mesh = self.tree["meshes"][entry["mesh"]].get("name") if "mesh" in entry else None
            name = str(entry.get("name", mesh or f"node {node}"))
            mesh_name = str(mesh or name) if "mesh" in entry else None
            found.append(Node(name, parents.get(node), local_matrix(entry), mesh_name))
        return Structure(tuple(found), tuple(parts), len(self.tree.get("materials", [])) + 1)

    def _like(self, accessor: int, v_pos: np.ndarray, columns: int | None = None) -> np.ndarray:
        values = self.buffers.array(accessor, columns)
        if len(values) != len(v_pos):
            raise FileError(f"accessor {accessor} has {len(values)} values for {len(v_pos)} vertices")
        return values

    def _faces(self, primitive: dict, vertices: int) -> Int[np.ndarray, "F 3"]:
        if "indices" in primitive:
            corners = self.buffers.array(primitive["indices"], columns=1)[:, 0].astype(np.int64)
        else:
            corners = np.arange(vertices)
        mode = primitive.get("mode", TRIANGLES)
        if mode == TRIANGLES:
            if len(corners) % 3:
                raise FileError(f"a mesh has {len(corners)} indices, which is no multiple of 3")
            return corners.reshape(-1, 3)
        if mode == TRIANGLE_FAN:
            return np.stack([np.broadcast_to(corners[:1], len(corners) - 2), corners[1:-1], corners[2:]], -1)
        faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], -1)
        faces[1::2] = faces[1::2][:, [1, 0, 2]]
        return faces

    def _uv(self, primitive: dict, v_pos: np.ndarray) -> Float[np.ndarray, "V 2"] | None:
        """Return the transformed texture coordinates of the base colour. If the material selects no set of
        coordinates, TEXCOORD_0 is used.
        """
        materials = self.tree.get("materials", [])
        material = materials[primitive["material"]] if "material" in primitive else {}
        texture = material.get("pbrMetallicRoughness", {}).get("baseColorTexture", {})
        change = texture.get("extensions", {}).get("KHR_texture_transform", {})
        name = f"TEXCOORD_{change.get('texCoord', texture.get('texCoord', 0))}"
        if name not in primitive["attributes"]:
            return None
        uv = self._like(primitive["attributes"][name], v_pos, 2)
        if not change:
            return uv
        cos, sin = np.cos(change.get("rotation", 0.0)), np.sin(change.get("rotation", 0.0))
        uv = uv * change.get("scale", [1, 1]) @ np.array([[cos, -sin], [sin, cos]])
        return uv + change.get("offset", [0, 0])

    def _skinned(self, skin: int, attributes: dict, v_pos: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the positions moved by the joints of a skin, and whether this movement mirrors the mesh."""
        matrices = self.nodes.joint_matrices(skin)
        blended, total = np.zeros((len(v_pos), 3, 4)), np.zeros(len(v_pos))
        for number in range(len(attributes)):
            if f"JOINTS_{number}" not in attributes or f"WEIGHTS_{number}" not in attributes:
                break
            joints = self._like(attributes[f"JOINTS_{number}"], v_pos, 4).astype(np.int64)
            weights = self._like(attributes[f"WEIGHTS_{number}"], v_pos, 4)
            for joint, weight in zip(joints.T, weights.T, strict=True):
                blended += weight[:, None, None] * matrices[joint, :3]
                total += weight
        # The weighted sum is divided by the sum of the weights, because the weights of a vertex may not add
        # up to 1 in invalid files. A vertex without weights is moved by the first joint.
        blended[total == 0] = matrices[0, :3]
        blended /= np.where(total == 0, 1, total)[:, None, None]
        moved = np.einsum("vij,vj->vi", blended[:, :, :3], v_pos) + blended[:, :, 3]
        return moved, bool(np.median(np.linalg.det(blended[:, :, :3])) < 0)


class _Part:
    """The instances of one primitive: positions [I,V,3], faces [F,3], mirrored [I], and uv [V,2] or None."""

    def __init__(self, placed: np.ndarray, faces: np.ndarray, mirrored: np.ndarray, uv: np.ndarray | None):
        self.v_pos = placed.reshape(-1, 3)
        if len(faces) and (faces.min() < 0 or faces.max() >= placed.shape[1]):
            raise FileError(
                f"face indices {faces.min()} … {faces.max()} are out of range, "
                f"there are {placed.shape[1]} vertices"
            )
        turned = np.where(mirrored[:, None, None], faces[:, ::-1], faces)
        self.faces = (turned + placed.shape[1] * np.arange(len(placed))[:, None, None]).reshape(-1, 3)
        self.uv = None if uv is None else np.tile(uv, (len(placed), 1))


def _joined(parts: list[_Part], structure: Structure) -> Polygons:
    if not parts:
        return Polygons.of_triangles(np.zeros((0, 3)), np.zeros((0, 3)))
    starts = np.cumsum([0, *(len(part.v_pos) for part in parts)])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
    polygons = Polygons.of_triangles(np.concatenate([part.v_pos for part in parts]), faces)
    owners = np.repeat(np.arange(len(parts)), [len(part.faces) for part in parts])
    polygons = replace(polygons, parts=owners, structure=structure)
    if all(part.uv is None for part in parts):
        return polygons
    uv = [np.full((len(part.v_pos), 2), np.nan) if part.uv is None else part.uv for part in parts]
    return replace(polygons, uv=np.concatenate(uv), uv_corners=polygons.corners)


def _check_compression(tree: dict, primitive: dict) -> None:
    """Raise an error if a primitive has only Draco data.

    A primitive with Draco data is readable if its accessors also have uncompressed data.
    """
    if "KHR_draco_mesh_compression" not in primitive.get("extensions", {}):
        return
    used = [*primitive["attributes"].values(), primitive.get("indices", 0)]
    if any("bufferView" not in tree["accessors"][number] for number in used):
        raise FileError(DRACO)
