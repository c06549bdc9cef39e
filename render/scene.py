"""Scenes: modules that render the training images and the preview images for given cameras.

`GeometryScene` renders the normals and the mask of the surface that is optimised (geometry modeling of
Fantasia3D, arXiv 2303.13873). `AppearanceScene` renders a fixed mesh under the environment light (appearance
modeling of the same paper). A call with `Cameras` returns the input image of the guidance. `.layers` returns
a dict from names to preview images, which are sRGB in [0, 1] on a white background. The mask has a black
background.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from render.camera import Cameras
from render.control_image import ControlKind, control_image
from render.gbuffer import (
    Fragments,
    PendingPixels,
    SurfacePoints,
    covered_points,
    rasterize,
    rasterize_gbuffer,
)
from render.image_io.image import encode_normal
from render.mesh import Mesh
from render.normal_image import normal_image
from render.raster.interface import Rasteriser
from render.shade.brdf import linear_to_srgb, shade
from render.shade.light import EnvironmentLight, camera_rotation
from render.shade.material import Material, MaterialField
from render.shade.normals import bump, shading_normal
from render.texturing.painted_surface import PaintedSurface

CLAY = (0.6, 0.6, 0.6)

# World positions [N,3] and flat pixel indices [N] of the covered pixels, as in SurfacePoints.
VisiblePoints = tuple[Float[Tensor, "N 3"], Int[Tensor, " N"]]


class GeometryScene(nn.Module):
    """A module that renders the normals of a surface.

    surface: a module whose `mesh()` returns the current Mesh, and whose `pending_mesh()` returns it without
    waiting for its size (see geometry/pending_mesh.py). flip_normal: whether to negate every positive x
    component of the normals. This is a measure against objects with more than one front (the Janus problem).
    """

    def __init__(
        self,
        surface: nn.Module,
        rasteriser: Rasteriser,
        light: EnvironmentLight,
        flip_normal: bool,
    ):
        super().__init__()
        self.surface = surface
        self.rasteriser = rasteriser
        self.light = light
        self.flip_normal = flip_normal
        self.mesh: Mesh | None = None
        self._pending = None
        self._fragments: Fragments | None = None

    def prepare(self, views: Cameras) -> None:
        """Do nothing. The surface is different in every step, so nothing can be rendered in advance."""

    def forward(self, views: Cameras, wait: bool = True) -> Float[Tensor, "B H W 4"]:
        """Return the normals in [−1, 1] (3 channels, background 0) and the antialiased mask in [0, 1] (1
        channel).

        The mesh of this step with its autograd graph is stored in `mesh`.

        wait: whether the host waits for the size of the mesh. If not, a part of the surface may be missing in
        the image, and `is_complete` must be called before `mesh` and the image are used.
        """
        self._pending = None if wait else self.surface.pending_mesh()
        mesh = self.mesh = self.surface.mesh() if wait else self._pending.mesh
        views = views.to(mesh.v_pos.device)
        fragments = self._fragments = rasterize(mesh, views, self.rasteriser)
        image = normal_image(fragments, mesh, views, self.flip_normal)
        return self.rasteriser.antialias(image, fragments.rast, fragments.clip, mesh.faces)

    def is_complete(self) -> bool:
        """Wait for the size of the last mesh, and return whether the last image shows the whole surface. If
        it does not, it must be rendered again.

        Raises EmptySurfaceError if the surface has no triangles.
        """
        if self._pending is not None:
            self.mesh, self._pending = self._pending.finished(), None
        return self.mesh is not None

    @property
    def visible(self) -> VisiblePoints:
        """Return the visible points of the last image. On a GPU, the host waits for their number."""
        pixel = self._fragments.covered()
        return self._fragments.values.detach()[..., :3].flatten(0, 2).index_select(0, pixel), pixel

    @torch.no_grad()
    def fixed_layers(self) -> Callable[[Cameras], dict[str, Float[Tensor, "B H W 3"]]]:
        """Return the function `layers` for the current surface. The mesh is extracted only once."""
        return partial(self.layers, mesh=self.surface.mesh())

    @torch.no_grad()
    def layers(self, views: Cameras, mesh: Mesh | None = None) -> dict[str, Float[Tensor, "B H W 3"]]:
        """Return the preview images "shaded" (grey material), "normal" and "mask".

        mesh: the current surface, if it is already extracted.
        """
        mesh = self.surface.mesh() if mesh is None else mesh
        views = views.to(mesh.v_pos.device)
        points = rasterize_gbuffer(mesh, views, self.rasteriser)
        clay = points.position.new_tensor(CLAY).expand_as(points.position)
        rough = points.position.new_tensor([0.0, 0.8, 0.0]).expand_as(points.position)
        shaded = shade(clay, rough, points.normal, points.to_viewer, self.light.prefiltered())
        colours = {"shaded": linear_to_srgb(shaded), "normal": encode_normal(points.normal)}
        return pictures(colours, points, mesh, self.rasteriser)


class AppearanceScene(nn.Module):
    """A module that renders a fixed mesh with a material field under an environment light."""

    def __init__(
        self,
        mesh: Mesh,
        material: MaterialField,
        light: EnvironmentLight,
        rasteriser: Rasteriser,
        *,
        background: float = 0.0,
        light_follows_camera: bool = False,
        relight: EnvironmentLight | None = None,
        surface: PaintedSurface | None = None,
    ):
        """mesh: with uv and tangents. background: grey level of training images, 0 (black) to 1 (white).
        relight: a second light, used only for preview images. surface: the painted surface, if the mesh has
        parts or given textures.
        """
        super().__init__()
        self.mesh = mesh
        self.material = material
        self.light = light
        self.rasteriser = rasteriser
        self.background = background
        self.light_follows_camera = light_follows_camera
        self.relight = relight
        self.surface = surface
        self.points: SurfacePoints | None = None
        self._prepared: tuple[Cameras, Fragments, PendingPixels] | None = None

    def prepare(self, views: Cameras) -> None:
        """Rasterise the views that will be rendered next, without waiting for the GPU.

        The next call of `forward` then does not wait for the number of covered pixels, because the GPU
        computes it before the backward pass of the current step.
        """
        fragments = rasterize(self.mesh, views.to(self.mesh.v_pos.device), self.rasteriser)
        self._prepared = views, fragments, PendingPixels(fragments)

    def forward(self, views: Cameras, wait: bool = True) -> Float[Tensor, "B H W 3"]:
        """Return the shaded image in sRGB, mapped to [−1, 1]. Outlines are antialiased in linear colours.

        The G-buffer is stored in `points`. The views are rasterised only if `prepare` was not called with the
        same object. wait: has no effect, because the size of the mesh is known.
        """
        prepared, self._prepared = self._prepared, None
        ahead = prepared[1:] if prepared is not None and prepared[0] is views else None
        views = views.to(self.mesh.v_pos.device)
        points = self.points = self._surface_points(views, ahead)
        material, normal = self.material_and_normal(points)
        # The background needs no conversion, because 0 (black) and 1 (white) are the same in linear colours
        # and sRGB.
        image = points.scatter(self._lit(points, views, material, normal), self.background)
        image = self.rasteriser.antialias(image, points.rast, points.clip, self.mesh.faces)
        return linear_to_srgb(image) * 2 - 1

    def is_complete(self) -> bool:
        """Return True, because the mesh does not change."""
        return True

    @property
    def visible(self) -> VisiblePoints:
        """Return the visible points of the last image."""
        return self.points.position.detach(), self.points.pixel

    def control_image(self, kind: ControlKind, views: Cameras) -> Float[Tensor, "B H W 3"]:
        """Return the control image of the views that were rendered last, in [0, 1].

        views: the cameras of these views.
        """
        views = views.to(self.mesh.v_pos.device)
        points = self.points
        if points.normal is None:
            points = replace(points, normal=points.shading_normal(self.mesh))
        return control_image(kind, points, views, self.mesh, self.rasteriser)

    def fixed_layers(self) -> Callable[[Cameras], dict[str, Float[Tensor, "B H W 3"]]]:
        """Return the function `layers`. The mesh of this scene never changes."""
        return self.layers

    @torch.no_grad()
    def layers(self, views: Cameras) -> dict[str, Float[Tensor, "B H W 3"]]:
        """Return the preview images "shaded", "kd", "ks", "normal", "mask" and, if there is a second light,
        "relight".
        """
        views = views.to(self.mesh.v_pos.device)
        points = self._surface_points(views)
        material, normal = self.material_and_normal(points)
        colours = {
            "shaded": linear_to_srgb(self._lit(points, views, material, normal)),
            "kd": linear_to_srgb(material.kd),
            "ks": material.ks,
            "normal": encode_normal(normal),
        }
        if self.relight is not None:
            relit = self._lit(points, views, material, normal, self.relight)
            colours["relight"] = linear_to_srgb(relit)
        return pictures(colours, points, self.mesh, self.rasteriser)

    def _surface_points(
        self, views: Cameras, prepared: tuple[Fragments, PendingPixels] | None = None
    ) -> SurfacePoints:
        """Return the visible points. If the material is bumpy, the points have no normals, because `_bumped`
        computes the normals.

        prepared: the rasterised mesh, if it is already known.
        """
        normals = not self.material.bumpy
        if prepared is None:
            return rasterize_gbuffer(self.mesh, views, self.rasteriser, normals)
        fragments, pixels = prepared
        return covered_points(fragments, self.mesh, views, normals, pixels.indices())

    def material_and_normal(self, points: SurfacePoints) -> tuple[Material, Float[Tensor, "N 3"]]:
        """Return the material and the world-space shading normal at each point."""
        if self.surface is None:
            material, bumpy = self.material(points.position), self.material.bumpy
            return material, self._bumped(points, material.normal) if bumpy else points.normal
        located = self.surface.locate(points)
        material = self.surface.material(self.material, located)
        if not (self.material.bumpy or self.surface.given_normals):
            return material, points.normal
        return material, self._bumped(points, self.surface.unmirrored(located, material.normal))

    def _bumped(self, points: SurfacePoints, local: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Return world-space shading normals that are perturbed by the tangent-space normals `local`.

        The smooth normal is first perturbed and then corrected by `shading_normal`, so that no shading normal
        faces away from the viewer.
        """
        tangent = self.rasteriser.interpolate(self.mesh.tangents, points.rast, self.mesh.uv_faces)
        smooth = bump(points.smooth_normal(), points.gather(tangent), local)
        return shading_normal(smooth, points.face_normal(self.mesh), points.to_viewer)

    def _lit(
        self,
        points: SurfacePoints,
        views: Cameras,
        material: Material,
        normal: Float[Tensor, "N 3"],
        light: EnvironmentLight | None = None,
    ) -> Float[Tensor, "N 3"]:
        """Return the linear RGB radiance from each point towards the viewer."""
        to_viewer = points.to_viewer
        if self.light_follows_camera:
            rotation = camera_rotation(views.world_to_clip)[points.view_of_point]
            normal, to_viewer = ((rotation @ v[:, :, None])[:, :, 0] for v in (normal, to_viewer))
        light = self.light if light is None else light
        return shade(material.kd, material.ks, normal, to_viewer, light.prefiltered())


def pictures(
    colours: dict[str, Float[Tensor, "N 3"]], points: SurfacePoints, mesh: Mesh, rasteriser: Rasteriser
) -> dict[str, Float[Tensor, "B H W 3"]]:
    """Return images of the layers on a white background, and of the mask on a black background. Outlines are
    antialiased. Values are clamped to [0, 1].
    """
    stacked = torch.cat([*colours.values(), torch.zeros_like(points.position)], dim=-1)
    image = points.scatter(stacked, background=1.0)
    image = rasteriser.antialias(image, points.rast, points.clip, mesh.faces).clamp_(0, 1)
    layers = dict(zip([*colours, "mask"], image.split(3, dim=-1), strict=True))
    layers["mask"] = 1 - layers["mask"]
    return layers
