"""The regression that fits a material field to the textures of a mesh file before painting.

The loss is the mean over surface points of ‖field(p) − texture(uv(p))‖². All values are in the encoding of
textures (base colour in sRGB, normals as n · 0.5 + 0.5), so −10 log10 of the mean squared error of a channel
is the PSNR of this channel.
"""

import logging
from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from render.image_io.image import encode_normal
from render.raster.interface import Rasteriser
from render.shade.brdf import linear_to_srgb
from render.shade.material import Material, MaterialField
from render.texturing.bake import owned_texels
from render.texturing.given import GivenTexels
from render.texturing.painted_surface import Located
from render.texturing.part_export import PaintedParts
from render.texturing.uv_spaces import own_uv_mesh

logger = logging.getLogger(__name__)

FEWEST_POINTS, MOST_POINTS = 2**11, 2**16
# The maximum number of texels in memory. If the textures have more texels, a random subset is used.
MOST_TEXELS = 2**21
# The targets keep this distance from the bounds of the field, because the gradient of the field's sigmoid
# vanishes at the bounds.
MARGIN = 0.005
# A channel is reported if more than 1 % of its values are this far outside of the field's bounds.
CLIPPED = 0.03
SEED = 0
CHANNELS = (
    *("red", "green", "blue"),
    *("occlusion", "roughness", "metallic"),
    *("normal x", "normal y", "normal z"),
)


class TextureFit:
    """The loss that compares a field with the given textures at random surface points.

    One half of the points are texel centres of the materials that keep their uv, including the baked texels
    around each chart. The other half is distributed uniformly over the surface. The texels are collected at
    the first use, because two kinds of processes do not need them: a run that resumes after the fit, and
    ranks other than 0.
    """

    def __init__(self, parts: PaintedParts, field: MaterialField, rasteriser: Rasteriser):
        assert parts.surface.table is not None, "the textures of the file are not read"
        self.parts, self.surface, self.field, self.rasteriser = parts, parts.surface, field, rasteriser
        self.edges = self.surface.world_area.double().cumsum(0).cpu()
        self.channels = 9 if field.bumpy else 6
        # The bounds are converted to the encoding of textures: sRGB for the base colour, linear for ks and
        # normals.
        low, high = (_stored_bounds(bound) for bound in (field.least, field.least + field.span))
        margin = ((high - low) / 2).clamp(max=MARGIN)
        self.low, self.high = low + margin, high - margin

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss at random points, and the values to log: the loss and the PSNR of the worst channel
        of each texture.

        The generator must be a CPU generator.
        """
        points, targets = self.texels
        count = min(max(len(points), FEWEST_POINTS), MOST_POINTS) // 2
        positions, values = self.on_surface(count, generator)
        if len(points):
            drawn = torch.randint(len(points), (count,), generator=generator).to(points.device)
            positions = torch.cat([positions, points[drawn]])
            values = torch.cat([values, targets[drawn].to(values.dtype) / 255])
        target = values.clamp(self.low, self.high)
        squared = (stored(self.field(positions)) - target).square()[:, : self.channels].mean(0)
        groups = {"kd": squared[:3], "ks": squared[3:6], "normal": squared[6:]}
        psnr = {
            f"{name}_psnr": -10 * errors.detach().max().clamp_min(1e-10).log10()
            for name, errors in groups.items()
            if len(errors)
        }
        loss = squared.sum()
        return loss, {"loss": loss.detach(), **psnr}

    @torch.no_grad()
    def on_surface(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 9"]]:
        """Return random points, uniform by area, and the encoded values of the given textures at these
        points.
        """
        drawn = torch.rand(count, generator=generator, dtype=torch.float64) * self.edges[-1]
        face = torch.searchsorted(self.edges, drawn).clamp_max(len(self.edges) - 1)
        u, v = torch.rand(2, count, generator=generator)
        # (u, v) is uniform in a parallelogram of two equal triangles. Points in the second triangle are
        # reflected into the first, which keeps the density uniform.
        u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
        device = self.surface.corners.device
        located = Located(face.to(device), torch.stack([u, v, 1 - u - v], -1).to(device))
        return self.surface.field_points(located), stored(self.surface.given(located))

    @cached_property
    @torch.no_grad()
    def texels(self) -> tuple[Float[Tensor, "T 3"], UInt8[Tensor, "T 9"]]:
        """Return the field points at texel centres and the bytes of these texels, for all materials that keep
        their uv. The number of texels is limited to about MOST_TEXELS.
        """
        parts, table = self.parts, self.surface.table
        generator = torch.Generator().manual_seed(SEED)
        points, targets = [parts.mesh.v_pos.new_zeros(0, 3)], [table.texels[:0, :9]]
        share = min(MOST_TEXELS / int(table.sizes.prod(-1).sum()), 1.0)
        for number, fault in enumerate(parts.spaces.faults):
            own = torch.nonzero((parts.face_material == number) & parts.spaces.own)[:, 0]
            width, height = table.sizes[number].tolist()
            if fault is not None or len(own) == 0 or width * height < 4:
                continue
            flat = own_uv_mesh(parts.mesh, parts.spaces.tile_uv, own)
            chosen, place = owned_texels(flat, (height, width), self.rasteriser, share, generator)
            points.append(place)
            targets.append(table.texels[table.starts[number] + chosen, :9])
        return torch.cat(points), torch.cat(targets)

    def log_clipped(self) -> None:
        """Log the channels with texture values outside of the bounds of the field."""
        _, value = self.on_surface(FEWEST_POINTS, torch.Generator().manual_seed(SEED))
        beyond = (value - value.clamp(self.low, self.high)).abs() > CLIPPED
        for channel in torch.nonzero(beyond.float().mean(0) > 0.01)[:, 0].tolist():
            if channel >= self.channels:
                continue
            kind = ("kd", "ks", "nrm")[channel // 3]
            logger.warning(
                "init_textures: the %s of base_mesh leaves the field's range in %.0f %% of its surface; set "
                "%s_min and %s_max to the range of the texture",
                CHANNELS[channel],
                100 * float(beyond[:, channel].float().mean()),
                kind,
                kind,
            )


def stored(material: Material | GivenTexels) -> Float[Tensor, "N 9"]:
    """Return a material in the encoding of textures: sRGB base colour, ks, and normals as n · 0.5 + 0.5."""
    return torch.cat([linear_to_srgb(material.kd), material.ks, encode_normal(material.normal)], -1)


def _stored_bounds(bound: Float[Tensor, "9"]) -> Float[Tensor, "9"]:
    return torch.cat([linear_to_srgb(bound[:3]), bound[3:6], encode_normal(bound[6:])])
