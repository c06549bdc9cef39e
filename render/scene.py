"""Scenes: from cameras to the images that the prior judges and that people look at.

`GeometryScene` shows the normals and the mask of a surface that is being sculpted (METHOD section 3);
`AppearanceScene` shows a finished mesh under the environment light (METHOD section 4).
Both are called with `Cameras` and answer an image for the prior; `.layers` answers pictures for people:
sRGB in [0, 1], white background, by name.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from render.camera import Cameras
from render.gbuffer import SurfacePoints, rasterize_gbuffer
from render.image_io.image import encode_normal
from render.kernels.available import triton_available
from render.mesh import Mesh
from render.raster.interface import Rasteriser
from render.shade.brdf import linear_to_srgb, shade
from render.shade.light import EnvironmentLight, camera_rotation
from render.shade.material import Material, MaterialField
from render.shade.normals import bump, shading_normal

CLAY = (0.6, 0.6, 0.6)

# World positions [N,3] and numbers [N] of the covered pixels, as in SurfacePoints.
VisiblePoints = tuple[Float[Tensor, "N 3"], Int[Tensor, " N"]]


class GeometryScene(nn.Module):
    """The normals of a surface.

    surface is a module whose `mesh()` gives the current Mesh; flip_normal makes every positive x component
    of the normals negative (against the Janus problem).
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
        self.visible: VisiblePoints | None = None

    def forward(self, views: Cameras) -> Float[Tensor, "B H W 4"]:
        """(normal in [−1, 1], background 0; antialiased mask in [0, 1]).

        Keeps the step's mesh, with its graph, in `mesh` and the visible points in `visible`.
        """
        mesh = self.mesh = self.surface.mesh()
        views = views.to(mesh.v_pos.device)
        points = rasterize_gbuffer(mesh, views, self.rasteriser)
        self.visible = points.position.detach(), points.pixel
        rotation, place = views.normal_rotation, normal_image
        if triton_available(points.normal, rotation) and not rotation.requires_grad:
            from render.kernels import normal_image_triton

            place = normal_image_triton.normal_image
        image = place(points, rotation, self.flip_normal)
        return self.rasteriser.antialias(image, points.rast, points.clip, mesh.faces)

    @torch.no_grad()
    def layers(self, views: Cameras) -> dict[str, Float[Tensor, "B H W 3"]]:
        """shaded (as grey clay), normal, mask."""
        mesh = self.surface.mesh()
        views = views.to(mesh.v_pos.device)
        points = rasterize_gbuffer(mesh, views, self.rasteriser)
        clay = points.position.new_tensor(CLAY).expand_as(points.position)
        rough = points.position.new_tensor([0.0, 0.8, 0.0]).expand_as(points.position)
        shaded = shade(clay, rough, points.normal, points.to_viewer, self.light.prefiltered())
        colours = {"shaded": linear_to_srgb(shaded), "normal": encode_normal(points.normal)}
        return pictures(colours, points, mesh, self.rasteriser)


def normal_image(
    points: SurfacePoints, rotation: Float[Tensor, "B 3 3"], flip: bool
) -> Float[Tensor, "B H W 4"]:
    """The points' normals turned by their view's rotation, and the mask; the background is 0.

    flip: after the rotation, every positive x component becomes negative.
    """
    normal = points.scatter(points.normal)
    # One product per image. A background of 0 stays 0.
    turned = (normal.flatten(1, 2) @ rotation.mT).view_as(normal)
    if flip:
        turned = torch.cat([-turned[..., :1].abs(), turned[..., 1:]], dim=-1)
    return torch.cat([turned, points.mask()], dim=-1)


class AppearanceScene(nn.Module):
    """A finished mesh, its material field and the light on it."""

    def __init__(
        self,
        mesh: Mesh,
        material: MaterialField,
        light: EnvironmentLight,
        rasteriser: Rasteriser,
        background: float = 0.0,
        light_follows_camera: bool = False,
        relight: EnvironmentLight | None = None,
    ):
        """mesh has uv and tangents; background is the grey behind training views, 0 black to 1 white; relight
        is a second light that only pictures are made under."""
        super().__init__()
        self.mesh = mesh
        self.material = material
        self.light = light
        self.rasteriser = rasteriser
        self.background = background
        self.light_follows_camera = light_follows_camera
        self.relight = relight
        self.visible: VisiblePoints | None = None

    def forward(self, views: Cameras) -> Float[Tensor, "B H W 3"]:
        """The shaded image in sRGB, mapped to [−1, 1]. Outlines are antialiased on linear colours.

        Keeps the visible points in `visible`.
        """
        views = views.to(self.mesh.v_pos.device)
        points = rasterize_gbuffer(self.mesh, views, self.rasteriser)
        self.visible = points.position.detach(), points.pixel
        material, normal = self.material_and_normal(points)
        # Black and white are the same numbers in linear and in sRGB.
        image = points.scatter(self._lit(points, views, material, normal), self.background)
        image = self.rasteriser.antialias(image, points.rast, points.clip, self.mesh.faces)
        return linear_to_srgb(image) * 2 - 1

    @torch.no_grad()
    def layers(self, views: Cameras) -> dict[str, Float[Tensor, "B H W 3"]]:
        """shaded, kd, ks, normal, mask and, where there is a second light, relight."""
        views = views.to(self.mesh.v_pos.device)
        points = rasterize_gbuffer(self.mesh, views, self.rasteriser)
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

    def material_and_normal(self, points: SurfacePoints) -> tuple[Material, Float[Tensor, "N 3"]]:
        """The material at each point and the world-space normal that it is shaded with."""
        material = self.material(points.position)
        return material, self._bumped(points, material.normal) if self.material.bumpy else points.normal

    def _bumped(self, points: SurfacePoints, local: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """World-space shading normals with the tangent-space normals `local` applied.

        The smooth normal is perturbed first, then bent and turned to the viewer. So no shading normal faces
        away from the viewer.
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
        """Linear radiance towards the viewer."""
        to_viewer = points.to_viewer
        if self.light_follows_camera:
            rotation = camera_rotation(views.world_to_clip)[points.view_of_point]
            normal, to_viewer = ((rotation @ v[:, :, None])[:, :, 0] for v in (normal, to_viewer))
        light = self.light if light is None else light
        return shade(material.kd, material.ks, normal, to_viewer, light.prefiltered())


def pictures(
    colours: dict[str, Float[Tensor, "N 3"]], points: SurfacePoints, mesh: Mesh, rasteriser: Rasteriser
) -> dict[str, Float[Tensor, "B H W 3"]]:
    """Each layer, and the mask, placed on white with antialiased outlines, clamped to [0, 1]."""
    stacked = torch.cat([*colours.values(), torch.zeros_like(points.position)], dim=-1)
    image = points.scatter(stacked, background=1.0)
    image = rasteriser.antialias(image, points.rast, points.clip, mesh.faces).clamp(0, 1)
    layers = dict(zip([*colours, "mask"], image.split(3, dim=-1), strict=True))
    layers["mask"] = 1 - layers["mask"]
    return layers
