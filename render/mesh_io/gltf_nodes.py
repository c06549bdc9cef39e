"""The node tree of a glTF file: world transforms, instances and joints."""

import numpy as np
from jaxtyping import Float

from render.mesh_io.gltf_buffers import Buffers
from render.read_errors import FileError

MOST_INSTANCES = 2**20


class Nodes:
    """World transforms of all nodes, and the nodes of the default scene.

    visible: the indices of the nodes of the default scene. Parents come before children. If the file has no
    scene, all nodes are visible.
    """

    def __init__(self, tree: dict, buffers: Buffers):
        self.tree, self.buffers = tree, buffers
        nodes = tree.get("nodes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        self.world: dict[int, np.ndarray] = {}
        roots = [number for number in range(len(nodes)) if number not in children]
        everything = self._walk(roots, self.world)
        scenes = tree.get("scenes", [])
        if scenes:
            self.visible = self._walk(scenes[tree.get("scene", 0)].get("nodes", []), None)
        else:
            self.visible = everything

    def entry(self, node: int) -> dict:
        nodes = self.tree["nodes"]
        if not isinstance(node, int) or not 0 <= node < len(nodes):
            raise FileError(f"it names node {node}, and there are {len(nodes)}")
        return nodes[node]

    def _walk(self, roots: list[int], world: dict[int, np.ndarray] | None) -> list[int]:
        """Return `roots` and all their descendants, parents before children. If `world` is not None, write
        the world transforms of these nodes to `world`.
        """
        found, seen, pending = [], set(), [(root, np.eye(4)) for root in reversed(roots)]
        while pending:
            node, parent = pending.pop()
            if node in seen:
                raise FileError(f"node {node} occurs twice in the scene; a node has one parent")
            seen.add(node)
            found.append(node)
            here = parent @ local_matrix(self.entry(node)) if world is not None else parent
            if world is not None:
                world[node] = here
            pending += [(child, here) for child in reversed(self.entry(node).get("children", []))]
        return found

    def place(self, node: int) -> Float[np.ndarray, "4 4"]:
        """Return the world transform of a node."""
        if node not in self.world:
            raise FileError(f"node {node} is its own ancestor")
        return self.world[node]

    def instances(self, node: int) -> Float[np.ndarray, "I 4 4"]:
        """Return the world transforms of a node's mesh. If the node uses EXT_mesh_gpu_instancing, there is
        one transform per instance; otherwise there is only one.
        """
        instancing = self.entry(node).get("extensions", {}).get("EXT_mesh_gpu_instancing")
        if not instancing:
            return self.place(node)[None]
        attributes = instancing["attributes"]
        names = ("TRANSLATION", "ROTATION", "SCALE")
        counts = {self.buffers.count(attributes[name]) for name in names if name in attributes}
        if len(counts) != 1:
            raise FileError(f"the instances of node {node} have attributes of different lengths, or none")
        count = counts.pop()
        if count > MOST_INSTANCES:
            raise FileError(f"node {node} has {count:,} instances; at most {MOST_INSTANCES:,} are read")
        defaults = ((0, 0, 0), (0, 0, 0, 1), (1, 1, 1))
        values = [
            self.buffers.array(attributes[name], len(default))
            if name in attributes
            else np.broadcast_to(np.array(default, dtype=np.float64), (count, len(default)))
            for name, default in zip(names, defaults, strict=True)
        ]
        return self.place(node) @ trs_matrices(*values)

    def joint_matrices(self, skin: int) -> Float[np.ndarray, "J 4 4"]:
        """Return the world transform of each joint times its inverse bind matrix.

        As glTF specifies, the transform of the skinned node itself is not used.
        """
        entry = self.tree["skins"][skin]
        joints = np.stack([self.place(joint) for joint in entry["joints"]])
        if "inverseBindMatrices" not in entry:
            return joints
        # The inverse bind matrices are transposed, because glTF stores matrices column by column.
        inverse = self.buffers.array(entry["inverseBindMatrices"], 16).reshape(-1, 4, 4).transpose(0, 2, 1)
        if len(inverse) < len(joints):
            raise FileError(f"skin {skin} has {len(joints)} joints and {len(inverse)} inverse bind matrices")
        return joints @ inverse[: len(joints)]


def local_matrix(node: dict) -> Float[np.ndarray, "4 4"]:
    """Return a node's transform relative to its parent."""
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    parts = (
        node.get("translation", [0, 0, 0]),
        node.get("rotation", [0, 0, 0, 1]),
        node.get("scale", [1, 1, 1]),
    )
    return trs_matrices(*(np.array([part], dtype=np.float64) for part in parts))[0]


def trs_matrices(
    translation: Float[np.ndarray, "I 3"], rotation: Float[np.ndarray, "I 4"], scale: Float[np.ndarray, "I 3"]
) -> Float[np.ndarray, "I 4 4"]:
    """Return translation · rotation · scale. rotation is a quaternion (x, y, z, w) of any length except 0."""
    x, y, z, w = (rotation / np.maximum(np.linalg.norm(rotation, axis=1, keepdims=True), 1e-30)).T
    out = np.zeros((len(translation), 4, 4))
    out[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1)
    out[:, 1, :3] = np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1)
    out[:, 2, :3] = np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1)
    out[:, :3, :3] *= scale[:, None, :]
    out[:, :3, 3], out[:, 3, 3] = translation, 1
    return out


def transform_points(
    matrices: Float[np.ndarray, "I 4 4"], points: Float[np.ndarray, "V 3"]
) -> Float[np.ndarray, "I V 3"]:
    """Return the points transformed by each matrix."""
    return points @ matrices[:, :3, :3].transpose(0, 2, 1) + matrices[:, None, :3, 3]
