"""The start shape of the geometry, and the points at which the field is fitted to it.

Every shape is a triangle mesh, which is scaled, rotated and moved. The built-in shapes have small triangles
in curved parts, so they are close to the exact shapes. The signed distance is computed from the transformed
mesh, so it is exact even if the scale differs between the axes. Its magnitude is the distance to the nearest
triangle. Its sign is negative if the winding number is above 0.5 (Barill et al. 2018). This rule also works
for open meshes. It requires consistent orientation, so the faces of a mesh file are oriented first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass as record
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from geometry.axes import FRONT, UP, Axis, frame_rotation, rotated
from geometry.mesh_distance import MANY_POINTS, DistanceProcess, squared_distance_and_winding
from geometry.orientation import flipped_faces, signed_volume
from render.camera import rotate_x
from render.mesh import face_cross
from render.mesh_io.load import load_mesh

Positive = Annotated[float, Field(gt=0)]
# A start shape is a function of the config. It returns v_pos [V,3] (float64) and faces [F,3] of a closed
# mesh. The faces are counter-clockwise as seen from outside. The largest distance of a vertex from the origin
# is about 1.
START_SHAPES: dict[str, Callable[["StartShapeConfig"], tuple[Tensor, Tensor]]] = {
    "ellipsoid": lambda config: _sphere(),
    "cylinder": lambda config: _cylinder(radius=0.75, height=0.8),
    "custom_mesh": lambda config: _unit_mesh(config.base_mesh, config.rotation),
}


@dataclass(frozen=True)
class StartShapeConfig:
    """Config section of the start shape. The shape is scaled, rotated about x and then moved. Lengths are in
    world units, and angles are in degrees.
    """

    sdf_init_shape: Literal[*START_SHAPES] = Field(
        "ellipsoid",
        description="unit sphere; cylinder along z, radius 0.75, height 0.8; or the mesh base_mesh",
    )
    sdf_init_shape_scale: tuple[Positive, Positive, Positive] = Field(
        (1.0, 1.0, 1.0), description="scale of the start shape along x, y, z"
    )
    sdf_init_shape_rotate_x: float = Field(0.0, description="rotation of the start shape about x, degrees")
    translation_y: float = Field(0.0, description="shift of the start shape along y, after the rotation")
    translation_z: float = Field(0.0, description="shift of the start shape along z, after the rotation")
    base_mesh: str | None = Field(None, description="mesh file of the start shape custom_mesh")
    base_mesh_up: Axis = Field(UP, description="axis of base_mesh that points up")
    base_mesh_front: Axis = Field(FRONT, description="axis of base_mesh that points to the front")

    @model_validator(mode="after")
    def _mesh_is_named(self) -> "StartShapeConfig":
        if self.sdf_init_shape == "custom_mesh" and not self.base_mesh:
            raise ValueError("sdf_init_shape custom_mesh needs base_mesh, the path of a mesh file")
        frame_rotation(self.base_mesh_up, self.base_mesh_front)
        return self

    @property
    def rotation(self) -> Float[Tensor, "3 3"] | None:
        """Return the rotation of base_mesh to this program's frame. Return None if it is the identity or if
        the start shape is not custom_mesh.
        """
        if self.sdf_init_shape != "custom_mesh":
            return None
        return frame_rotation(self.base_mesh_up, self.base_mesh_front)


@record(frozen=True)
class StartShape:
    """A triangle mesh in world space (CPU, float64)."""

    v_pos: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]

    def signed_distance(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Return the exact signed distance to the mesh in world units, negative inside.

        The result is float32 on the device of the points.
        """
        return self.start_signed_distance(points, many=math.inf)()

    def start_signed_distance(
        self, points: Float[Tensor, "N 3"], many: float | int = MANY_POINTS
    ) -> Callable[[], Float[Tensor, " N"]]:
        """Return a function that returns the result of `signed_distance`.

        From `many` points on, another process computes the result from now on. For fewer points, the function
        computes it.
        """
        queries = points.detach().cpu().double()
        order = _cell_order(queries)
        arguments = self.v_pos.numpy(), self.faces.numpy(), queries[order].numpy()
        compute = DistanceProcess(*arguments).result if len(points) >= many else None

        def signed_distance() -> Float[Tensor, " N"]:
            squared, winding = compute() if compute else squared_distance_and_winding(*arguments)
            distance = torch.from_numpy(squared).sqrt()
            signed = torch.where(torch.from_numpy(winding) > 0.5, -distance, distance).float()
            return signed[order.argsort()].to(points.device)

        return signed_distance

    def sample_surface(self, count: int, generator: torch.Generator) -> Float[Tensor, "N 3"]:
        """Draw points uniformly by area. The result is float32 on the CPU. The generator must be a CPU
        generator.
        """
        area = face_cross(self.v_pos, self.faces).norm(dim=-1)
        edges = area.cumsum(0)
        draw = torch.rand(count, generator=generator, dtype=torch.float64) * edges[-1]
        face = torch.searchsorted(edges, draw).clamp_max(len(edges) - 1)
        u, v = torch.rand(2, count, 1, generator=generator, dtype=torch.float64)
        # (u, v) is uniform in a parallelogram of two equal triangles. Points in the second triangle are
        # reflected into the first, which keeps the density uniform.
        u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
        a, b, c = (self.v_pos[self.faces[face, corner]] for corner in range(3))
        return (a + u * (b - a) + v * (c - a)).float()


def _cell_order(points: Float[Tensor, "N 3"], cells: int = 16) -> Int[Tensor, " N"]:
    """Return indices that sort points by the cells of a grid with `cells` cells per axis.

    In this order, consecutive queries of a search tree visit the same nodes, which reduces the time by a
    third.
    """
    if len(points) == 0:
        return torch.empty(0, dtype=torch.long)
    low, high = points.amin(0), points.amax(0)
    cell = ((points - low) / (high - low).clamp_min(1e-12) * (cells - 1)).long()
    return (cell @ torch.tensor([cells * cells, cells, 1])).argsort()


def build_start_shape(config: StartShapeConfig) -> StartShape:
    """Return the configured shape. It is scaled per axis, rotated about x and then moved along y and z.

    Raises FileNotFoundError or ValueError if base_mesh cannot be read.
    """
    v_pos, faces = START_SHAPES[config.sdf_init_shape](config)
    scale = torch.tensor(config.sdf_init_shape_scale, dtype=torch.float64)
    angle = torch.tensor([math.radians(config.sdf_init_shape_rotate_x)], dtype=torch.float64)
    move = torch.tensor([0.0, config.translation_y, config.translation_z], dtype=torch.float64)
    return StartShape((v_pos * scale) @ rotate_x(angle)[0].T + move, faces)


def _unit_mesh(path: str | Path, rotation: Float[Tensor, "3 3"] | None) -> tuple[Tensor, Tensor]:
    """Load a mesh and rotate it. Move the mean of its vertices to 0, and scale the mesh so that its farthest
    vertex has the distance 1 from 0.
    """
    mesh = load_mesh(path)
    v_pos = mesh.v_pos.double()
    if rotation is not None:
        v_pos = rotated(v_pos, rotation)
    v_pos = v_pos - v_pos.mean(0)
    v_pos = v_pos / v_pos.norm(dim=-1).max()
    flipped = flipped_faces(v_pos, mesh.faces)
    faces = torch.where(flipped[:, None], mesh.faces.flip(-1), mesh.faces).long()
    # The faces must point outwards. Otherwise, the winding number of an open mesh would be about −1 inside.
    return v_pos, faces.flip(-1).contiguous() if signed_volume(v_pos, faces) < 0 else faces.contiguous()


def _sphere(rings: int = 128, segments: int = 256) -> tuple[Tensor, Tensor]:
    """Return a unit sphere. Its facets are at most 1e−4 inside the exact sphere."""
    angle = torch.linspace(-math.pi / 2, math.pi / 2, rings + 1, dtype=torch.float64)
    return _revolve(angle.cos()[1:-1], angle.sin()[1:-1], poles=(-1.0, 1.0), segments=segments)


def _cylinder(radius: float, height: float, segments: int = 256) -> tuple[Tensor, Tensor]:
    """Return a closed cylinder along z, centred on the origin. Its facets are at most 8e−5 · radius inside
    the exact cylinder.
    """
    half = height / 2
    # The caps and the lateral surface are divided into rings, because long thin triangles make the search
    # tree slow.
    out = torch.linspace(0, radius, 17, dtype=torch.float64)[1:]
    up = torch.linspace(-half, half, 21, dtype=torch.float64)[1:-1]
    ring_radius = torch.cat([out, torch.full_like(up, radius), out.flip(0)])
    ring_z = torch.cat([torch.full_like(out, -half), up, torch.full_like(out, half)])
    return _revolve(ring_radius, ring_z, poles=(-half, half), segments=segments)


def _revolve(
    radius: Float[Tensor, " R"], z: Float[Tensor, " R"], poles: tuple[float, float], segments: int
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Return a surface of revolution about z with outward faces.

    radius, z: the profile from the lower to the upper pole, without the poles. poles: z of both poles.
    """
    rings = len(radius)
    angle = torch.arange(segments, dtype=torch.float64) * (2 * math.pi / segments)
    ring = torch.stack([angle.cos(), angle.sin()], -1)
    side = torch.cat([radius[:, None, None] * ring, z[:, None, None].expand(-1, segments, 1)], -1)
    ends = torch.tensor([[0, 0, pole] for pole in poles], dtype=torch.float64)
    v_pos = torch.cat([side.reshape(-1, 3), ends])
    segment = torch.arange(segments)
    next_segment = (segment + 1) % segments
    first = torch.arange(rings - 1)[:, None] * segments
    a, b, c, d = (
        first + segment,
        first + next_segment,
        first + segments + next_segment,
        first + segments + segment,
    )
    quads = torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]).reshape(-1, 3)
    south, north = rings * segments, rings * segments + 1
    last = (rings - 1) * segments
    bottom = torch.stack([next_segment, segment, torch.full_like(segment, south)], -1)
    top = torch.stack([last + segment, last + next_segment, torch.full_like(segment, north)], -1)
    return v_pos, torch.cat([quads, bottom, top])


@record(frozen=True)
class FitPool:
    """Points with exact signed distances. They are computed once, and every batch of the fit is drawn from
    them.

    The first surface_count points lie on the surface, the next surface_count points lie near it, and the rest
    are grid vertices in the box.
    """

    points: Float[Tensor, "P 3"]
    distances: Float[Tensor, " P"]
    surface_count: int

    def draw(
        self, generator: torch.Generator, surface: int = 5000, box: int = 3000
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, " N"]]:
        """Draw `surface` points on the surface, the same number near it, and `box` points in the box."""
        on = torch.randint(self.surface_count, (surface,), generator=generator, device=generator.device)
        box_start = 2 * self.surface_count
        in_box = torch.randint(
            box_start, len(self.points), (box,), generator=generator, device=generator.device
        )
        index = torch.cat([on, on + self.surface_count, in_box]).to(self.points.device)
        return self.points.index_select(0, index), self.distances.index_select(0, index)

    def to(self, device: torch.device | str) -> "FitPool":
        return FitPool(self.points.to(device), self.distances.to(device), self.surface_count)


def start_fit_pool(
    shape: StartShape,
    box_points: Float[Tensor, "U 3"],
    generator: torch.Generator,
    surface: int = 50_000,
    box_limit: int = 300_000,
    noise: float = 0.05,
) -> Callable[[], FitPool]:
    """Draw the points of a pool, and return a function that returns the pool on the CPU.

    The pool contains `surface` points on the surface, the same points with added noise N(0, noise²), and box
    points. The computation of many distances starts in another process, see `start_signed_distance`.

    box_points: the grid vertices, which fill the box evenly. If there are more than box_limit grid vertices,
    a random subset of this size is used. Grid vertices are used because the field is evaluated only at grid
    vertices. After a fit at other points, the error at the grid vertices is 60 times as large, because the
    fine levels of the encoding do not interpolate between points. generator: a CPU generator.

    The function raises ValueError if no point is inside the shape, i.e. if the shape lies outside the box or
    encloses no volume.
    """
    box = box_points.detach().cpu()
    if len(box) > box_limit:
        box = box[torch.randperm(len(box), generator=generator)[:box_limit]]
    on = shape.sample_surface(surface, generator)
    near = on + noise * torch.randn(on.shape, generator=generator)
    points = torch.cat([on, near, box])
    signed_distance = shape.start_signed_distance(points[surface:])

    def pool() -> FitPool:
        distances = torch.cat([torch.zeros(surface), signed_distance()])
        if not (distances[2 * surface :] < 0).any():
            raise ValueError(
                "the start shape encloses no point of the grid: use a closed base_mesh, a larger "
                "sdf_init_shape_scale, or a translation_y and translation_z that leave it in the box"
            )
        return FitPool(points, distances, surface)

    return pool


def make_fit_pool(
    shape: StartShape, box_points: Float[Tensor, "U 3"], generator: torch.Generator, **options
) -> FitPool:
    """Return the pool of `start_fit_pool`."""
    return start_fit_pool(shape, box_points, generator, **options)()
