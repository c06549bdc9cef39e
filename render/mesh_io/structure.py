"""The structure of a mesh file: nodes, materials, and the triangles of each node and material."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Node:
    """A node of a scene.

    parent: the index of the parent node in the structure, or None for a root. matrix: the transform relative
    to the parent. mesh_name: the name of the node's mesh, or None for a node without a mesh.
    """

    name: str
    parent: int | None = None
    matrix: Float[np.ndarray, "4 4"] = field(default_factory=lambda: np.eye(4))
    mesh_name: str | None = None


@dataclass(frozen=True)
class Part:
    """The triangles of one node with one material. has_uv: whether the triangles have texture coordinates."""

    node: int
    material: int
    has_uv: bool = True


@dataclass(frozen=True)
class Structure:
    """The nodes and parts of a file, in the order of the file. Parents come before their children.

    materials: the number of materials. The material indices of the parts are smaller than this number.
    """

    nodes: tuple[Node, ...]
    parts: tuple[Part, ...]
    materials: int

    @property
    def several(self) -> bool:
        """Return whether the file has more than one part."""
        return len(self.parts) > 1

    def world_matrices(self) -> Float[np.ndarray, "N 4 4"]:
        """Return the transform of each node to world coordinates."""
        found: list[np.ndarray] = []
        for node in self.nodes:
            found.append(node.matrix if node.parent is None else found[node.parent] @ node.matrix)
        return np.stack(found)


def single_part(has_uv: bool) -> Structure:
    """Return the structure for a file format without nodes and materials."""
    return Structure((Node("mesh", mesh_name="mesh"),), (Part(0, 0, has_uv),), 1)
