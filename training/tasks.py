"""Tasks of the two modes: optimize the geometry of a surface, or the material field on a finished mesh."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.schema import Config
from dataset.cameras import step_generator
from geometry.axes import rotated
from geometry.dmtet import DMTet, cell_size
from geometry.fixed_mesh import load_fixed_mesh, load_fixed_parts, placement, rotate_mesh
from geometry.regularisers import surface_loss
from geometry.start_shape import FitPool, build_start_shape, start_fit_pool
from geometry.vertex_surface import VertexSurface
from render.image_io.hdr import write_hdr
from render.mesh import Mesh
from render.mesh_io.write_asset import prepare_asset, write_parts
from render.mesh_io.write_moved import write_moved
from render.raster.interface import Rasteriser
from render.raster.select import choose_rasteriser
from render.scene import AppearanceScene, GeometryScene
from render.shade.cubemap import cube_to_latlong
from render.shade.light import EnvironmentLight, load_environment
from render.shade.material import MaterialField
from render.texturing.bake import bake
from render.texturing.decimate import decimate
from render.texturing.part_export import export_parts
from render.texturing.small_components import remove_small_components
from render.texturing.transfer import PAINTING_RES, prepare_export
from render.texturing.unwrap import start_worker
from render.texturing.uv import prepare_uv, unwrap
from sd.schedule import FIT_STEPS, Phase, Schedule
from training.adamw import AdamW
from training.distributed import SINGLE_PROCESS, Distributed
from training.input_files import InputFiles, input_paths
from training.mesh_warnings import warn_about_axes, warn_about_mesh
from training.painting import paints_parts, read_parts, texture_fit

logger = logging.getLogger(__name__)

# Numbers of the random streams of the set-up and of the start-shape regression. Stream 0 is used for the
# cameras, t and the noise of each step.
SETUP_STREAM, FIT_STREAM = 1, 2
# Maximum distance of the surface from the start shape in grid cells, if there is no coarse phase.
DETAIL_CELLS = 0.25
Z_UP_FIX = "add --base_mesh_up +z --base_mesh_front -y"


@dataclass(frozen=True)
class Task:
    """The mode-specific functions and data of a run.

    scene: module that renders images from cameras. fit: function that returns the loss of the start-shape
    regression, or None if there is no regression. verify: function that raises EmptySurfaceError if the
    surface has vanished. export: function that prepares mesh and textures in memory. It returns a function
    that writes the files to a folder. export_once: whether a state must be exported only once, because other
    runs depend on the exact bytes of the mesh. inputs: fingerprints of the files that were read. regularise:
    function that returns the weighted surface terms of the scene's last mesh and their values, or None if all
    weights are 0. make_optimizer: function that returns the optimizer for a learning rate, or None for AdamW
    on all parameters of the scene. before_last_step: function that starts the processes of the export.
    prepare_fit: function that starts the computation of the fit's data. It is called before the guidance is
    built, so both run at the same time.
    """

    scene: nn.Module
    schedule: Schedule
    fit: Callable[[torch.Generator], tuple[Tensor, dict[str, Tensor]]] | None
    verify: Callable[[], object]
    export: Callable[[], Callable[[Path], None]]
    export_once: bool
    inputs: InputFiles
    regularise: Callable[[Phase], tuple[Tensor, dict[str, Tensor]]] | None = None
    make_optimizer: Callable[[float], torch.optim.Optimizer] | None = None
    before_last_step: Callable[[], None] = lambda: None
    prepare_fit: Callable[[], object] = lambda: None


def build_task(
    config: Config, distributed: Distributed = SINGLE_PROCESS
) -> tuple[Task, torch.optim.Optimizer, torch.device]:
    """Return the task of a config, its optimizer and its device."""
    device = select_device(config.run.device, distributed)
    if device.type == "cuda":
        # Triton launches kernels on the current device.
        torch.cuda.set_device(device.index or 0)
    set_deterministic(device)
    rasteriser = choose_rasteriser(device, config.run.rasteriser)
    inputs = InputFiles(hashes=distributed.is_main)
    task = BUILDERS[config.run.mode](config, device, rasteriser, inputs)
    parameters = [p for p in task.scene.parameters() if p.requires_grad]
    learning_rate = config.run.effective_learning_rate
    if task.make_optimizer is not None:
        return task, task.make_optimizer(learning_rate), device
    optimizer = AdamW(
        parameters,
        lr=learning_rate,
        betas=(0.9, 0.99),
        eps=1e-15,
        weight_decay=0.01,
        fused=device.type == "cuda",
    )
    return task, optimizer, device


def build_geometry(config: Config, device: torch.device, rasteriser: Rasteriser, inputs: InputFiles) -> Task:
    """Build the task that optimizes a surface: the zero level set of an SDF, or the vertices of a mesh."""
    build = build_vertex_surface if config.surface.keeps_faces else build_dmtet
    return build(config, device, rasteriser, inputs)


def build_vertex_surface(
    config: Config, device: torch.device, rasteriser: Rasteriser, inputs: InputFiles
) -> Task:
    """Build the task that moves the vertices of base_mesh.

    The faces, the texture coordinates and the materials do not change.
    """
    paths = input_paths(config)
    with inputs.reading("base_mesh", *paths["base_mesh"]):
        own = load_fixed_mesh(config.run.base_mesh).to(device)
    rotation = config.run.rotation
    own = rotate_mesh(own, rotation)
    warn_about_axes(config.run.base_mesh, own.v_pos, own.faces, Z_UP_FIX)
    place = placement(own, config.run.normalise_mesh)
    start = place.into_view(own)
    surface = VertexSurface(start.v_pos, start.faces, config.surface.large_steps_lambda).to(device)
    scene = geometry_scene(config, surface, rasteriser)

    def export() -> Callable[[Path], None]:
        moved = replace(start, v_pos=surface.mesh().v_pos.detach())
        shift = place.back(moved).v_pos - place.back(start).v_pos
        shift = shift if rotation is None else rotated(shift, rotation.T)

        def write(folder: Path) -> None:
            with inputs.reading("base_mesh", *paths["base_mesh"]):
                write_moved(folder, config.run.base_mesh, shift.cpu())

        return write

    return Task(
        scene,
        config.phases,
        None,
        verify=torch.no_grad()(surface.mesh),
        export=export,
        export_once=True,
        inputs=inputs,
        regularise=make_regulariser(config, scene),
        make_optimizer=surface.optimizer,
    )


def build_dmtet(config: Config, device: torch.device, rasteriser: Rasteriser, inputs: InputFiles) -> Task:
    """Build the task that optimizes a DMTet surface from the config's start shape."""
    paths = input_paths(config)
    with inputs.reading("tet_grid_file", *paths.get("tet_grid_file", ())):
        surface = DMTet(config.geometry, step_generator(config.run.seed, 0, 0, SETUP_STREAM)).to(device)
    with inputs.reading("base_mesh", *paths.get("base_mesh", ())):
        shape = build_start_shape(config.start_shape)
    if config.start_shape.sdf_init_shape == "custom_mesh":
        warn_about_mesh(config.run.base_mesh, shape.v_pos, shape.faces, "add --sdf_init_shape_rotate_x -90")
    if (band := detail_band(config)) is not None:
        surface.limit_to_band(shape.signed_distance(surface.v_pos), band)
    scene = geometry_scene(config, surface, rasteriser)

    rotation = config.start_shape.rotation

    def export() -> Callable[[Path], None]:
        settings = config.export
        mesh = remove_small_components(surface.mesh().detach(), settings.min_component_area)
        if settings.export_faces:
            mesh = decimate(mesh, settings.export_faces)
        mesh = unwrap(mesh, settings.unwrap, settings.texture_res, settings.uv_padding_block)
        mesh = rotate_mesh(mesh, None if rotation is None else rotation.T)
        return prepare_asset(mesh, usd=settings.export_usd)

    # The pool is not built here, because other ranks and runs that resume after the fit do not need it.
    @cache
    def prepare_fit() -> Callable[[], FitPool]:
        generator = step_generator(config.run.seed, 0, 0, FIT_STREAM)
        return start_fit_pool(shape, surface.v_pos, generator)

    @cache
    def pool() -> FitPool:
        return prepare_fit()().to(device)

    def fit(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss = surface.fit_loss(*pool().draw(generator))
        return loss, {"loss": loss.detach()}

    return Task(
        scene,
        config.phases,
        fit,
        verify=torch.no_grad()(surface.mesh),
        export=export,
        export_once=True,
        inputs=inputs,
        regularise=make_regulariser(config, scene),
        before_last_step=start_worker,
        prepare_fit=prepare_fit,
    )


def geometry_scene(config: Config, surface: nn.Module, rasteriser: Rasteriser) -> GeometryScene:
    """Return the scene that renders the normals of a surface, on the device of the surface."""
    device = next(surface.parameters()).device
    # The light is used for previews only, so it is not trained.
    light = load_environment(replace(config.light, learn_light=False)).to(device)
    return GeometryScene(surface, rasteriser, light, config.run.flip_normal)


def make_regulariser(
    config: Config, scene: GeometryScene
) -> Callable[[Phase], tuple[Tensor, dict[str, Tensor]]] | None:
    """Return the function `Task.regularise` for a surface, or None if all weights are 0."""
    if not config.regularisers.active:
        return None
    return lambda phase: surface_loss(scene.mesh, config.regularisers.weights(phase.annealing))


def detail_band(config: Config) -> float | None:
    """Return the maximum distance of the surface from its start shape in world units. None means no limit."""
    cells = config.geometry.detail_band
    if cells is None and config.schedule.coarse_iter <= FIT_STEPS < config.schedule.iter:
        cells = DETAIL_CELLS
        logger.info("coarse_iter %d: only detail is added, see detail_band", config.schedule.coarse_iter)
    return None if cells is None else cells * cell_size(config.geometry)


def build_appearance(
    config: Config, device: torch.device, rasteriser: Rasteriser, inputs: InputFiles
) -> Task:
    """Build the task that optimizes a material field on the mesh in base_mesh."""
    paths = input_paths(config)
    with inputs.reading("base_mesh", *paths["base_mesh"]):
        fixed = load_fixed_parts(config.run.base_mesh).to(device)
    rotation = config.run.rotation
    separate = paints_parts(config, fixed)
    own = rotate_mesh(fixed.mesh if separate else fixed.merged, rotation)
    used = config.textures.used
    warn_about_mesh(config.run.base_mesh, own.v_pos, own.faces, Z_UP_FIX, textures_used=used)
    place = placement(own, config.run.normalise_mesh)
    own = place.into_view(own)
    parts = None
    if separate:
        parts = read_parts(config, replace(fixed, mesh=own), rasteriser, inputs)
        mesh = parts.mesh
    else:
        mesh = prepare_uv(own, replace(config.export, texture_res=PAINTING_RES), rasteriser)
    # Enlarge the bounding box, so that it has a nonzero volume even for a flat mesh.
    low, high = mesh.v_pos.amin(0), mesh.v_pos.amax(0)
    margin = 0.01 * (high - low).max()
    torch.manual_seed(config.run.seed)
    material = MaterialField(
        config.material,
        low - margin,
        high + margin,
        config.geometry.hash_n_levels,
        config.geometry.hash_log2_hashmap_size,
        config.geometry.hash_max_resolution,
    ).to(device)
    with inputs.reading("envmap", *paths.get("envmap", ())):
        light = load_environment(config.light).to(device)
    scene = AppearanceScene(
        mesh,
        material,
        light,
        rasteriser,
        background=float(config.run.train_background == "white"),
        light_follows_camera=config.light.camera_space_light,
        relight=_relight(config, device),
        surface=None if parts is None else parts.surface,
    )

    def field(positions: Tensor) -> dict[str, Tensor]:
        values = material(positions)
        channels = {"kd": values.kd, "ks": values.ks}
        return {**channels, "normal": values.normal} if material.bumpy else channels

    def into_file(mesh: Mesh) -> Mesh:
        return rotate_mesh(place.back(mesh), None if rotation is None else rotation.T)

    def export() -> Callable[[Path], None]:
        usd = config.export.export_usd
        probe = cube_to_latlong(light.cube.detach(), light.cube.shape[1]).cpu()
        if parts is not None:
            asset = export_parts(parts, material, config.export, rasteriser)
            write_mesh = partial(write_parts, asset=replace(asset, mesh=into_file(asset.mesh)), usd=usd)
        else:
            target, painting = prepare_export(mesh, field, config.export, own_uv=mesh.uv is own.uv)
            textures = bake(target, painting, config.export.texture_res, rasteriser)
            write_mesh = prepare_asset(into_file(target), textures, usd)

        def write(folder: Path) -> None:
            write_hdr(folder / "probe.hdr", probe)
            write_mesh(folder)

        return write

    return Task(
        scene,
        config.phases,
        texture_fit(config, parts, material, rasteriser),
        verify=lambda: mesh,
        export=export,
        export_once=False,
        inputs=inputs,
    )


BUILDERS = {"geometry_modeling": build_geometry, "appearance_modeling": build_appearance}


def _relight(config: Config, device: torch.device) -> EnvironmentLight | None:
    if config.light.relight is None:
        return None
    second = replace(config.light, envmap=config.light.relight, learn_light=False)
    return load_environment(second).to(device)


def set_deterministic(device: torch.device) -> None:
    """Make multithreaded sums on the CPU reproducible bit for bit. On a GPU, this is too slow."""
    # torch.use_deterministic_algorithms would set the same mode, but it also imports torch's compiler.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    # The mode also fills new memory. Turn the filling off, because no code of the program reads uninitialised
    # memory.
    torch.utils.deterministic.fill_uninitialized_memory = False


def select_device(name: str, distributed: Distributed = SINGLE_PROCESS) -> torch.device:
    """Return the device of this process.

    Raises:
        ValueError: if CUDA is not available or there is no GPU for this rank.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and distributed.world_size > 1:
        if device.index is not None:
            raise ValueError(
                f"device = {name!r}: it names one GPU for {distributed.world_size} processes; say cuda"
            )
        device = torch.device("cuda", distributed.local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        fewer = "start fewer processes on it, " if distributed.world_size > 1 else ""
        raise ValueError(
            f"device = {str(device)!r}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            f"can use; {fewer}run with --device cpu, or install a CUDA build of torch and a driver"
        )
    return device
