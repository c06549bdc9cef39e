"""Write a copy of a glTF file with moved vertices, as GLB.

Positions and normals are replaced. Tangents are removed, because viewers compute missing tangents from the
texture coordinates. Nodes, names, materials, pictures, indices, texture coordinates, skins and animations are
kept.
"""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float, Int

from render.mesh_io.gltf_buffers import Buffers
from render.mesh_io.gltf_nodes import Nodes
from render.mesh_io.moved_normals import corner_normals
from render.mesh_io.read_gltf import _parse, _Scene
from render.mesh_io.write_glb import FLOAT, VERTICES, pack_glb

logger = logging.getLogger(__name__)

DRACO = "KHR_draco_mesh_compression"
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True)
class _Primitive:
    """A primitive of a visible node.

    rows: the range of the primitive's vertices in the list of all vertices of the file. faces: vertex indices
    relative to the start of this range. linear: the derivative of each vertex's world position with respect
    to its position in the file.
    """

    node: int
    number: int
    rows: slice
    faces: Int[np.ndarray, "F 3"]
    linear: Float[np.ndarray, "V 3 3"]


def moved_gltf(
    source: Path, welded: Int[np.ndarray, " N"], v_pos: Float[np.ndarray, "V 3"], shift: np.ndarray
) -> bytes | None:
    """Return the content of a GLB file with moved vertices.

    The result is None if a node of the file has several instances of its mesh (EXT_mesh_gpu_instancing).
    These instances have the same vertices, so one instance cannot be moved without the others.

    welded: the row in v_pos and shift of each vertex of the file, in the order of `read_gltf`. v_pos, shift:
    the positions and their displacements in world coordinates.
    """
    tree, chunk = _parse(source.read_bytes())
    buffers = Buffers(tree, chunk, source.parent)
    scene = _Scene(tree, buffers, Nodes(tree, buffers))
    found = list(_primitives(scene))
    if any(primitive is None for primitive in found):
        return None
    document = _MovedDocument(tree, buffers, source.parent)
    normals = _world_normals(scene, found, welded, v_pos + shift)
    for primitive in found:
        document.move(primitive, shift[welded[primitive.rows]], normals[primitive.rows])
    return document.pack()


def _primitives(scene: _Scene) -> Iterator[_Primitive | None]:
    """Yield the primitives with faces in the order of `read_gltf`. For a primitive with several instances,
    None is yielded.
    """
    start = 0
    for node in scene.nodes.visible:
        if "mesh" not in scene.nodes.entry(node):
            continue
        places = scene.nodes.instances(node)
        for number, primitive in enumerate(_mesh_of(scene, node)["primitives"]):
            vertices, faces = scene.size(primitive)
            if faces and len(places) > 1:
                yield None
            elif faces:
                rows = slice(start, start + vertices)
                linear = _linear(scene, node, primitive, vertices, places[0])
                yield _Primitive(node, number, rows, scene.part(node, primitive, places).faces, linear)
                start += vertices


def _mesh_of(scene: _Scene, node: int) -> dict:
    return scene.tree["meshes"][scene.nodes.entry(node)["mesh"]]


def _linear(
    scene: _Scene, node: int, primitive: dict, vertices: int, place: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "V 3 3"]:
    """Return the linear part of the transform of each vertex to world coordinates. The transform is that of
    the node or of the skin's joints.
    """
    skin = scene.nodes.entry(node).get("skin")
    if skin is None or "JOINTS_0" not in primitive["attributes"]:
        return np.broadcast_to(place[:3, :3], (vertices, 3, 3))
    at = [
        scene._skinned(skin, primitive["attributes"], np.broadcast_to(point, (vertices, 3)))[0]
        for point in (np.zeros(3), *np.eye(3))
    ]
    return np.stack([column - at[0] for column in at[1:]], -1)


def _world_normals(
    scene: _Scene, primitives: list[_Primitive], welded: Int[np.ndarray, " N"], moved: np.ndarray
) -> Float[np.ndarray, "N 3"]:
    """Return the new normal of each vertex of the file in world coordinates."""
    old, faces = np.zeros((len(welded), 3)), [np.zeros((0, 3), dtype=np.int64)]
    for primitive in primitives:
        faces.append(primitive.faces + primitive.rows.start)
        attributes = _mesh_of(scene, primitive.node)["primitives"][primitive.number]["attributes"]
        if "NORMAL" in attributes:
            local = scene.buffers.array(attributes["NORMAL"], 3)
            # Normals are transformed by the transposed inverse of the matrix.
            inverse = np.linalg.pinv(primitive.linear)
            old[primitive.rows] = np.einsum("vji,vj->vi", inverse, local)
    corners = np.concatenate(faces)
    normals, number = corner_normals(moved, welded[corners], old[corners])
    found = old.copy()
    found[corners.reshape(-1)] = normals[number.reshape(-1)]
    return found


class _MovedDocument:
    """A copy of a glTF document whose vertices are replaced."""

    def __init__(self, tree: dict, buffers: Buffers, folder: Path):
        self.tree, self.folder = copy.deepcopy(tree), folder
        self._original, self._buffers = tree, buffers
        self._views = [_view_bytes(buffers, view) for view in tree.get("bufferViews", [])]
        self._mesh_of_node: dict[int, int] = {}
        self._accessors: dict[tuple[int, int], int] = {}
        self._new: list[tuple[int, bytes]] = []

    def move(
        self, primitive: _Primitive, shift: Float[np.ndarray, "V 3"], normals: Float[np.ndarray, "V 3"]
    ) -> None:
        """Move the vertices of a primitive. shift and normals are in world coordinates."""
        mesh = self._own_mesh(primitive.node)
        entry = self.tree["meshes"][mesh]["primitives"][primitive.number]
        attributes = entry["attributes"]
        local = np.einsum("vij,vj->vi", np.linalg.pinv(primitive.linear), shift)
        position = self._buffers.array(attributes["POSITION"], 3) + local
        attributes["POSITION"] = self._replace(mesh, attributes["POSITION"], position, bounds=True)
        if "NORMAL" in attributes:
            turned = np.einsum("vji,vj->vi", primitive.linear, normals)
            turned /= np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-300)
            attributes["NORMAL"] = self._replace(mesh, attributes["NORMAL"], turned, bounds=False)
        attributes.pop("TANGENT", None)
        entry.get("extensions", {}).pop(DRACO, None)

    def pack(self) -> bytes:
        """Return the GLB file. External pictures are embedded."""
        for image in self.tree.get("images", ()):
            self._embed(image)
        self._place_new_views()
        binary = bytearray()
        for view, content in zip(self.tree["bufferViews"], self._views, strict=True):
            binary.extend(bytes(-len(binary) % 4))
            view.update(buffer=0, byteOffset=len(binary), byteLength=len(content))
            binary.extend(content)
        return pack_glb(self.tree, bytes(binary))

    def _own_mesh(self, node: int) -> int:
        """Return the mesh index of a node. If the mesh was already moved for another node, the node gets a
        copy of the original mesh.
        """
        if node not in self._mesh_of_node:
            mesh = self.tree["nodes"][node]["mesh"]
            if mesh in self._mesh_of_node.values():
                self.tree["meshes"].append(copy.deepcopy(self._original["meshes"][mesh]))
                mesh = self.tree["nodes"][node]["mesh"] = len(self.tree["meshes"]) - 1
            self._mesh_of_node[node] = mesh
        return self._mesh_of_node[node]

    def _replace(self, mesh: int, accessor: int, values: Float[np.ndarray, "V 3"], bounds: bool) -> int:
        """Return the index of an accessor with new values. `accessor` is overwritten if no other mesh uses
        it.
        """
        if (mesh, accessor) not in self._accessors:
            array = np.ascontiguousarray(values, dtype="<f4")
            entry = {"componentType": FLOAT, "count": len(array), "type": "VEC3"}
            if bounds:
                entry["min"], entry["max"] = ([float(x) for x in f(array, 0)] for f in (np.min, np.max))
            number = accessor
            if self._users(accessor) == {mesh}:
                self.tree["accessors"][accessor] = entry
            else:
                self.tree["accessors"].append(entry)
                number = len(self.tree["accessors"]) - 1
            self._accessors[mesh, accessor] = number
            self._new.append((number, array.tobytes()))
        return self._accessors[mesh, accessor]

    def _users(self, accessor: int) -> set[int]:
        """Return the indices of the meshes that use an accessor, and also −1 if a mesh uses it as a morph
        target.
        """
        found = set()
        for number, mesh in enumerate(self._original["meshes"]):
            for primitive in mesh["primitives"]:
                if accessor in primitive["attributes"].values():
                    found.add(number)
                if any(accessor in target.values() for target in primitive.get("targets", ())):
                    found.add(-1)
        return found

    def _place_new_views(self) -> None:
        """Assign a buffer view to each new array. Views that the copy no longer uses are assigned before new
        views are added.
        """
        named = set(_named_views(self.tree))
        free = sorted(set(_named_views(self._original)) - named)
        for accessor, content in self._new:
            view = {"target": VERTICES}
            if free:
                number = free.pop(0)
                self.tree["bufferViews"][number], self._views[number] = view, content
            else:
                number = self._add_view(view, content)
            self.tree["accessors"][accessor]["bufferView"] = number
        for number in free:
            # The remaining unused views are not removed, because that would change the indices of other
            # views. Unused views get 4 bytes of content, because a view must have at least one byte.
            self._views[number] = bytes(4)

    def _add_view(self, view: dict, content: bytes) -> int:
        self.tree.setdefault("bufferViews", []).append(view)
        self._views.append(content)
        return len(self._views) - 1

    def _embed(self, image: dict) -> None:
        """Embed a picture that is stored in a file beside the mesh."""
        uri = image.get("uri", "data:")
        if uri.startswith("data:"):
            return
        folder = self.folder.resolve()
        path = next((p for name in (uri, unquote(uri)) if (p := (folder / name).resolve()).is_file()), None)
        kind = MEDIA_TYPES.get(Path(uri).suffix.lower())
        if path is None or kind is None or not path.is_relative_to(folder):
            logger.warning("mesh.glb refers to the picture '%s', which cannot be embedded", uri)
            return
        del image["uri"]
        image.update(bufferView=self._add_view({}, path.read_bytes()), mimeType=kind)


def _view_bytes(buffers: Buffers, view: dict) -> bytes:
    start = view.get("byteOffset", 0)
    return buffers._buffer(view["buffer"])[start : start + view["byteLength"]].tobytes()


def _named_views(entry: object) -> Iterator[int]:
    """Yield the indices of all buffer views that a document uses, including those in extensions."""
    if isinstance(entry, dict):
        if isinstance(entry.get("bufferView"), int):
            yield entry["bufferView"]
        for value in entry.values():
            yield from _named_views(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _named_views(value)
