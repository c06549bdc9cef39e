"""Training images of the embedded prior: procedural objects that are meshed and rendered as in a run.

An instance is one random object of a category. Its signed distance is meshed by marching tetrahedra, and a
batch of views is rendered: world-space normals, the mask, and the image that is shaded under the default
environment. The object has its original colours or one of MATERIALS. Workers write the views to files
(shards), and `load_views` concatenates them.

In shapes, N is the number of views and S the pixels per side.
"""

import logging
import multiprocessing
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from dataset.cameras import CameraConfig, sample_cameras, step_generator
from dataset.procedural import CATEGORIES, ProceduralObject, make_object
from dataset.procedural.materials import HELD_OUT, MATERIALS, dressed
from dataset.procedural.random_draw import Draw
from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import TetGrid, make_tet_grid
from render.camera import Cameras
from render.control_image import control_image
from render.gbuffer import rasterize_gbuffer
from render.mesh import Mesh, make_mesh
from render.raster.interface import Rasteriser
from render.raster.select import choose_rasteriser
from render.shade.brdf import linear_to_srgb, shade
from render.shade.light import LightConfig, load_environment
from render.shade.prefilter import PrefilteredLight
from training.distributed import SINGLE_PROCESS, Distributed

logger = logging.getLogger(__name__)

# Values of `stream` for `step_generator`, so that shape, cameras and materials of an instance are drawn
# independently.
SHAPE_STREAM, CAMERA_STREAM, MATERIAL_STREAM = 1, 2, 3
MATERIAL_NAMES = tuple(MATERIALS)


@dataclass(frozen=True)
class DataConfig:
    """Settings of the rendered views.

    box: side of the tetrahedral grid's cube, which contains the objects (radius 0.75). own_share: share of
    the views with the object's original colours. The other views have one of `materials` materials that are
    drawn for each instance. Pairs (category, material) in held_out are excluded. cameras: they show the whole
    object, because a prior that was trained on cropped objects generates parts that continue beyond the
    image. group: number of consecutive views that form a group around the object and have the same material
    (see `sample_cameras`). depth: whether depth images for a ControlNet are also rendered.
    """

    categories: tuple[str, ...] = CATEGORIES
    instances: int = 250
    views: int = 18
    image_size: int = 128
    group: int = 1
    depth: bool = False
    grid: int = 128
    box: float = 1.7
    seed: int = 1
    own_share: float = 0.4
    materials: int = 4
    held_out: frozenset[tuple[str, str]] = HELD_OUT
    environment: LightConfig = field(default_factory=LightConfig)
    cameras: CameraConfig = field(
        default_factory=lambda: CameraConfig(
            camera_random_jitter=0.15,
            fovy_range=(36.0, 46.0),
            elevation_range=(-10.0, 45.0),
            azimuth_spread="batch",
        )
    )


@dataclass(frozen=True)
class Views:
    """N rendered views with their labels.

    normal: world-space normals ×127, background 0. mask: ×255. shaded: sRGB ×255, background black. category
    [N]: index in the config's categories. view [N]: `Cameras.view_index`. material [N]: 0 for the object's
    original colours, otherwise 1 + the index in MATERIAL_NAMES. camera: world_to_clip. depth: the control
    image of render/control_image.py, ×255. It has D = 1 channel, or D = 0 if depth images are not rendered.
    """

    normal: Int8[Tensor, "N 3 S S"]
    mask: UInt8[Tensor, "N 1 S S"]
    shaded: UInt8[Tensor, "N 3 S S"]
    category: Int[Tensor, " N"]
    view: Int[Tensor, " N"]
    material: Int[Tensor, " N"]
    camera: Float[Tensor, "N 4 4"]
    depth: UInt8[Tensor, "N D S S"]

    def __len__(self) -> int:
        return len(self.category)

    def normal_images(self, rows: Tensor) -> Float[Tensor, "B 3 S S"]:
        """Return normals in [−1, 1] with background 0. This is the VAE's input in the fine geometry phase."""
        return self.normal[rows].float() / 127

    def shaded_images(self, rows: Tensor) -> Float[Tensor, "B 3 S S"]:
        """Return sRGB in [−1, 1] with background −1. This is the VAE's input in the appearance stage."""
        return self.shaded[rows].float() / 127.5 - 1

    def coarse_images(self, rows: Tensor) -> Float[Tensor, "B 4 S S"]:
        """Return images of normal and mask, which the coarse geometry phase downsamples to latents."""
        return torch.cat([self.normal_images(rows), self.mask[rows].float() / 255], dim=1)


class ObjectRenderer:
    """Renderer of instances. All instances use the same grid, rasteriser and light."""

    def __init__(self, config: DataConfig, device: torch.device, rasteriser: str = "auto"):
        self.config = config
        self.device = device
        grid = make_tet_grid(config.grid, config.box)
        self.grid: TetGrid = replace(
            grid,
            v_pos=grid.v_pos.to(device),
            tets=grid.tets.to(device),
            edges=grid.edges.to(device),
            tet_edges=grid.tet_edges.to(device),
        )
        self.rasteriser: Rasteriser = choose_rasteriser(device, rasteriser)
        self.light: PrefilteredLight = load_environment(config.environment).to(device).prefiltered()

    @torch.no_grad()
    def render_instance(self, category_index: int, instance: int) -> Views:
        """Render all views of one instance.

        The views are on the CPU and depend only on config and arguments.
        """
        seed = self.config.seed
        generator = step_generator(seed, category_index, instance, SHAPE_STREAM)
        subject = make_object(self.config.categories[category_index], generator)
        side = self.config.image_size
        cameras = sample_cameras(
            self.config.cameras,
            self.config.views,
            (side, side),
            step_generator(seed, category_index, instance, CAMERA_STREAM),
            views=self.config.group,
        )
        draw = Draw(step_generator(seed, category_index, instance, MATERIAL_STREAM))
        material = draw_materials(self.config, category_index, draw)
        variants = {
            number: dressed(subject, MATERIAL_NAMES[number - 1], draw) if number else subject
            for number in material.unique().tolist()
        }
        mesh = self.mesh(subject)
        images = self._render(variants, material, mesh, cameras.to(self.device)).permute(0, 3, 1, 2)
        normal, mask, shaded, depth = images.split([3, 1, 3, int(self.config.depth)], dim=1)
        return Views(
            normal=(normal * 127).round().clamp(-127, 127).to("cpu", torch.int8),
            mask=(mask * 255).round().clamp(0, 255).to("cpu", torch.uint8),
            shaded=(shaded * 255).round().clamp(0, 255).to("cpu", torch.uint8),
            category=torch.full((len(images),), category_index),
            view=cameras.view_index.clone(),
            material=material,
            camera=cameras.world_to_clip,
            depth=(depth * 255).round().clamp(0, 255).to("cpu", torch.uint8),
        )

    def mesh(self, subject: ProceduralObject) -> Mesh:
        grid = self.grid
        v_pos, faces = marching_tetrahedra(
            grid.v_pos, subject.signed_distance(grid.v_pos), grid.tets, grid.edges, grid.tet_edges
        )
        return make_mesh(v_pos, faces)

    def _render(
        self, variants: dict[int, ProceduralObject], material: Int[Tensor, " B"], mesh: Mesh, cameras: Cameras
    ) -> Float[Tensor, "B H W C"]:
        """Render images with antialiased outlines. View i has the material variants[material[i]].

        The channels are: normal 3, mask 1, shaded sRGB 3, and depth 1 if configured.
        """
        points = rasterize_gbuffer(mesh, cameras, self.rasteriser)
        kd, ks = torch.empty_like(points.position), torch.empty_like(points.position)
        material_of_point = material.to(self.device)[points.view_of_point]
        for number, subject in variants.items():
            rows = (material_of_point == number).nonzero()[:, 0]
            kd[rows], ks[rows] = subject.material(points.position[rows])
        shaded = shade(kd, ks, points.normal, points.to_viewer, self.light)
        image = torch.cat([points.scatter(points.normal), points.mask(), points.scatter(shaded)], dim=-1)
        image = self.rasteriser.antialias(image, points.rast, points.clip, mesh.faces)
        images = [image[..., :4], linear_to_srgb(image[..., 4:]).clamp(0, 1)]
        if self.config.depth:
            images.append(control_image("depth", points, cameras, mesh, self.rasteriser)[..., :1])
        return torch.cat(images, dim=-1)


def draw_materials(config: DataConfig, category_index: int, draw: Draw) -> Int[Tensor, " views"]:
    """Return the material index of each view of an instance (see `Views.material`).

    All views of a group have the same material.
    """
    groups = config.views // config.group
    category = config.categories[category_index]
    allowed = [n for n, name in enumerate(MATERIAL_NAMES, 1) if (category, name) not in config.held_out]
    own = round(config.own_share * groups)
    chosen = [allowed[draw.integer(0, len(allowed) - 1)] for _ in range(config.materials)]
    others = [chosen[group % config.materials] for group in range(groups - own)]
    order = torch.randperm(groups, generator=draw.generator)
    return torch.tensor([0] * own + others)[order].repeat_interleave(config.group)


def write_shard(
    config: DataConfig,
    folder: Path,
    shard: int,
    shards: int,
    device: str,
    seconds: float,
    *,
    rasteriser: str = "auto",
) -> None:
    """Render instances shard, shard + shards, … of every category until all are done or the time is up.

    Each round renders one instance of every category, so all categories have the same number of instances
    even in an incomplete shard. At least one round is rendered.
    """
    started = time.monotonic()
    torch.set_num_threads(max(1, torch.get_num_threads() // shards))
    renderer = ObjectRenderer(config, torch.device(device), rasteriser)
    parts = []
    for instance in range(shard, config.instances, shards):
        if parts and time.monotonic() - started > seconds:
            break
        parts += [renderer.render_instance(category, instance) for category in range(len(config.categories))]
    views = concatenate(parts)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".shard_{shard:02d}.pt"
    torch.save(vars(views), temporary)
    temporary.rename(folder / f"shard_{shard:02d}.pt")


def concatenate(parts: list[Views]) -> Views:
    return Views(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def render_shards(
    config: DataConfig,
    folder: Path,
    device: torch.device,
    seconds: float,
    workers: int,
    *,
    rasteriser: str = "auto",
    distributed: Distributed = SINGLE_PROCESS,
) -> None:
    """Write the shards of this rank to `folder`. With 0 workers, this process renders.

    Several worker processes share one GPU, because generating objects and launching kernels is CPU-bound.

    Raises:
        RuntimeError: if no worker finished.
    """
    if workers == 0:
        write_shard(
            config,
            folder,
            distributed.rank,
            distributed.world_size,
            str(device),
            seconds,
            rasteriser=rasteriser,
        )
        return
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=write_shard,
            args=(config, folder, shard, workers * distributed.world_size, str(device), seconds),
            kwargs={"rasteriser": rasteriser},
        )
        for shard in range(distributed.rank * workers, (distributed.rank + 1) * workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = sum(process.exitcode != 0 for process in processes)
    if failed == workers:
        raise RuntimeError(f"all {workers} rendering workers failed; see the errors above")
    if failed:
        logger.warning("%d of %d rendering workers failed; continuing with the others", failed, workers)


def load_views(folder: Path, device: torch.device) -> Views:
    """Load and concatenate the views of all shards in a folder."""
    shards = [torch.load(path, weights_only=True) for path in sorted(folder.glob("shard_*.pt"))]
    return concatenate([Views(**{name: part.to(device) for name, part in shard.items()}) for shard in shards])
