"""Training data of the classifier: random objects of every category, rendered from all directions.

An object is perturbed by adding waves of several lengths to its signed distance before meshing. This gives
bumps, broken thin parts and separate pieces, as on optimised surfaces.

In shapes, N is the number of images and S the pixels per side.
"""

import logging
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from data.make_classifier.negatives import make_negative
from data.make_tiny_sd.renders import DataConfig, ObjectRenderer
from dataset.cameras import sample_cameras, step_generator, view_indices
from dataset.procedural import CATEGORIES, ProceduralObject, make_object
from dataset.procedural.materials import MATERIALS, dressed
from dataset.procedural.random_draw import Draw
from geometry.marching_tets import marching_tetrahedra
from render.camera import Cameras
from render.gbuffer import SurfacePoints
from render.mesh import Mesh, make_mesh
from render.shade.light import LightConfig
from training.evaluation.classifier import NOTHING
from training.evaluation.views import (
    IMAGE_SIZE,
    LIGHT,
    SUPERSAMPLE,
    TRAINING_CAMERAS,
    VIEWS,
    RenderedViews,
    azimuths,
    evaluation_cameras,
    render_views,
)

logger = logging.getLogger(__name__)

OWN = "own"
MATERIAL_NAMES = (OWN, *MATERIALS)
SHAPE_STREAM, CAMERA_STREAM, PERTURBATION_STREAM, MATERIAL_STREAM = 1, 2, 3, 4
# Waves of the perturbation: (cells per axis, share of the amplitude).
WAVES = ((5, 0.5), (11, 0.3), (23, 0.2))
LARGEST_WAVE = 0.06
PERTURBED_SHARE = 0.6
# MATERIALS_PER_INSTANCE: number of materials among the views of an object. OWN_SHARE: share of the views that
# have the object's original colours.
MATERIALS_PER_INSTANCE, OWN_SHARE = 4, 0.2


@dataclass(frozen=True)
class DatasetConfig:
    """Settings for the selection and the rendering of the objects.

    categories: may contain NOTHING. training: whether to use random cameras near the evaluation cameras and a
    random rotation of the light. If false, the evaluation cameras and light are used. perturbation: amplitude
    of the waves in world units; None draws it at random.
    """

    seed: int
    categories: tuple[str, ...] = CATEGORIES
    instances: int = 40
    views: int = 16
    training: bool = True
    perturbation: float | None = None
    image_size: int = IMAGE_SIZE
    grid: int = 96
    environment: LightConfig = LIGHT

    @property
    def data(self) -> DataConfig:
        """Return these settings as the config of an ObjectRenderer."""
        return DataConfig(
            categories=self.categories,
            instances=self.instances,
            views=self.views,
            image_size=SUPERSAMPLE * self.image_size,
            grid=self.grid,
            seed=self.seed,
            environment=self.environment,
            cameras=TRAINING_CAMERAS,
        )


@dataclass(frozen=True)
class Images:
    """Rendered images with their labels.

    normal: rotated normals (see render_views), ×127. shaded: sRGB ×255. category: index in the config's
    categories. side: index in SIDES. material: index in MATERIAL_NAMES. asset: index of the object.
    """

    normal: Int8[Tensor, "N 3 S S"]
    shaded: UInt8[Tensor, "N 3 S S"]
    category: Int[Tensor, " N"]
    material: Int[Tensor, " N"]
    side: Int[Tensor, " N"]
    asset: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.category)

    def to(self, device: torch.device) -> "Images":
        return Images(**{name: value.to(device) for name, value in vars(self).items()})

    def pictures(self, domain: str, rows: Tensor) -> Float[Tensor, "B 3 S S"]:
        """Return the network input for a domain (normal or shaded), in [−1, 1]."""
        if domain == "normal":
            return self.normal[rows].float() / 127
        return self.shaded[rows].float() / 127.5 - 1


def concatenate(parts: Iterable[Images]) -> Images:
    parts = list(parts)
    return Images(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Images)})


def perturbed_mesh(
    subject: ProceduralObject, renderer: ObjectRenderer, amplitude: float, generator: torch.Generator
) -> Mesh:
    """Return the mesh of an object whose surface is displaced by waves of about `amplitude` world units."""
    grid = renderer.grid
    distance = subject.signed_distance(grid.v_pos)
    if amplitude > 0:
        unit = grid.v_pos[None, None, None] / (renderer.config.box / 2)
        for cells, share in WAVES:
            noise = torch.randn(1, 1, cells, cells, cells, generator=generator).to(unit.device)
            wave = F.grid_sample(noise, unit, align_corners=True)
            distance = distance + amplitude * share * wave.flatten()
    return make_mesh(*marching_tetrahedra(grid.v_pos, distance, grid.tets, grid.edges, grid.tet_edges))


def render_instance(config: DatasetConfig, renderer: ObjectRenderer, category: int, instance: int) -> Images:
    """Render all images of one object. The images are on the CPU and depend only on the arguments."""

    def stream(number: int) -> torch.Generator:
        return step_generator(config.seed, category, instance, number)

    name = config.categories[category]
    make = make_negative if name == NOTHING else partial(make_object, name)
    subject = make(stream(SHAPE_STREAM))
    draw = Draw(stream(PERTURBATION_STREAM))
    amplitude = config.perturbation
    if amplitude is None:
        amplitude = draw.uniform(0.0, LARGEST_WAVE) if draw.chance(PERTURBED_SHARE) else 0.0
    mesh = perturbed_mesh(subject, renderer, amplitude, draw.generator)
    views, yaw, side = _views(config, stream(CAMERA_STREAM))
    materials_per_instance = MATERIALS_PER_INSTANCE if config.training else 1
    material, parts = [], []
    draw = Draw(stream(MATERIAL_STREAM))
    for some in torch.arange(len(side)).chunk(materials_per_instance):
        number = 0 if draw.chance(OWN_SHARE) else draw.integer(1, len(MATERIAL_NAMES) - 1)
        dressed_subject = dressed(subject, MATERIAL_NAMES[number], draw) if number else subject
        rows = slice(int(some[0]), int(some[-1]) + 1)
        parts.append(_render_views(mesh, dressed_subject, views.select(rows), yaw[rows], renderer))
        material += [number] * len(some)
    normal, shaded = (torch.cat([getattr(s, name) for s in parts]) for name in ("normal", "shaded"))
    return Images(
        normal=(normal * 127).round().clamp(-127, 127).to("cpu", torch.int8),
        shaded=(shaded * 255).round().clamp(0, 255).to("cpu", torch.uint8),
        category=torch.full((len(side),), category),
        material=torch.tensor(material),
        side=side,
        asset=torch.full((len(side),), category * config.instances + instance),
    )


def _views(config: DatasetConfig, generator: torch.Generator) -> tuple[Cameras, Tensor, Tensor]:
    """Return the cameras, and for each view the rotation of the light about +y and the visible side."""
    side = SUPERSAMPLE * config.image_size
    if config.training:
        cameras = sample_cameras(TRAINING_CAMERAS, config.views, (side, side), generator)
        return cameras, 2 * torch.pi * torch.rand(config.views, generator=generator), cameras.view_index
    cameras = evaluation_cameras(side)
    sides = view_indices(torch.rad2deg(azimuths(cameras)), TRAINING_CAMERAS.front_threshold)
    return cameras, torch.zeros(VIEWS), sides


def _render_views(
    mesh: Mesh, subject: ProceduralObject, views: Cameras, yaw: Tensor, renderer: ObjectRenderer
) -> RenderedViews:
    def paint(points: SurfacePoints) -> tuple[Tensor, Tensor, Tensor]:
        return (*subject.material(points.position), points.normal)

    device = renderer.device
    views = render_views(mesh, views.to(device), renderer.rasteriser, renderer.light, paint, yaw.to(device))
    return views.downsample(SUPERSAMPLE)


def render_share(
    configs: Sequence[DatasetConfig], share: int, shares: int, device: str, seconds: float
) -> list[dict[str, np.ndarray]]:
    """Render the instances share, share + shares, … of every category of each config until the time is up.

    The first instance of the share is rendered for every config even if the time is up. The result consists
    of NumPy arrays, because arrays, unlike tensors, are sent between processes without shared memory.
    """
    begun = time.monotonic()
    renderer = ObjectRenderer(configs[0].data, torch.device(device))
    found = []
    for config in configs:
        parts: list[Images] = []
        for instance in range(share, config.instances, shares):
            if parts and time.monotonic() - begun > seconds:
                break
            parts += [
                render_instance(config, renderer, category, instance)
                for category in range(len(config.categories))
            ]
        found.append(
            {name: value.numpy() for name, value in vars(concatenate(parts)).items()} if parts else {}
        )
    return found


def render_datasets(
    configs: Sequence[DatasetConfig], device: torch.device, seconds: float, workers: int
) -> list[Images]:
    """Render all images of each config and return them on the device.

    Each process renders all configs with one ObjectRenderer that is made for the first config, so the configs
    may differ only in settings that ObjectRenderer ignores. Several worker processes share one GPU, because
    generating the objects is CPU-bound. With 0 workers, this process renders. An exception in a worker is
    raised again in this process.
    """
    if workers == 0:
        shares = [render_share(configs, 0, 1, str(device), seconds)]
    else:
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // workers)
        with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
            tasks = [
                pool.submit(render_share, configs, share, workers, str(device), seconds)
                for share in range(workers)
            ]
            shares = [task.result() for task in tasks]
    return [
        concatenate(
            Images(**{name: torch.from_numpy(value) for name, value in arrays.items()}).to(device)
            for arrays in of_config
            if arrays
        )
        for of_config in zip(*shares, strict=True)
    ]


def held_out(config: DatasetConfig, seed: int, instances: int, perturbation: float) -> DatasetConfig:
    """Return a config of held-out objects (another seed) that are rendered with the evaluation cameras."""
    return replace(
        config, seed=seed, instances=instances, training=False, perturbation=perturbation, views=VIEWS
    )
