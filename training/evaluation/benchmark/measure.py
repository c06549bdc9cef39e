"""Run one trial of a benchmark: run the training loop in this process and measure the result."""

import gc
import json
import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from configs.schema import Config
from render.gbuffer import SurfacePoints, rasterize_gbuffer
from render.image_io.image import encode_normal
from render.mesh import Mesh
from render.mesh_io.write_obj import write_obj
from render.scene import AppearanceScene
from render.shade.brdf import linear_to_srgb, shade
from render.shade.light import MAP_FOLDER, LightConfig, load_environment
from render.shade.prefilter import PrefilteredLight
from render.texturing.small_components import remove_small_components
from sd.stable_diffusion import StableDiffusion
from training.distributed import SINGLE_PROCESS
from training.evaluation.benchmark.settings import COST, COST_STEPS, PAINT, ROOT, Trial, config_of
from training.evaluation.classifier import DIRECTIONAL, load_classifier, predict_assets, two_faced
from training.evaluation.ground_truth import (
    TrueMaterial,
    material_name,
    true_material,
    true_mesh,
    true_object,
    true_roughness,
)
from training.evaluation.r_precision import Evaluator, mean_probabilities
from training.evaluation.surface_quality import surface_quality
from training.evaluation.views import SUPERSAMPLE, Paint, evaluation_cameras, render_views
from training.input_files import InputFiles, control_model
from training.loop import TrainState, train_loop
from training.prefetch import make_prefetcher
from training.priors import check_batch, load_priors, make_guidance
from training.report.report_writer import open_report
from training.tasks import Task, build_task, select_device

logger = logging.getLogger(__name__)

# UNSEEN_LIGHT is used only to compare the relit images. Training uses the default environment.
UNSEEN_LIGHT = LightConfig(envmap=str(MAP_FOLDER / "studio.hdr"), env_resolution=128)
# Indices of the views in the pictures: 45° from the front and 45° from the back.
PICTURE_VIEWS = (1, 5)
# Cache of loaded priors. The key contains all settings that the priors depend on.
_priors: dict[tuple, list[StableDiffusion]] = {}


@dataclass(frozen=True)
class Result:
    """A finished trial.

    values: the measures, with their names as keys. error: the reason of a failure. seconds: duration of the
    whole trial.
    """

    trial: Trial
    values: dict
    seconds: float
    error: str | None = None

    def to_json(self) -> dict:
        return {**asdict(self.trial), "seconds": round(self.seconds, 2), "error": self.error, **self.values}


def run_trial(
    trial: Trial, changed: Mapping[str, object], common: Mapping[str, object], folder: Path
) -> Result:
    """Run a trial and measure its result. Errors of the run are recorded in the result.

    folder: the output folder of the benchmark; the files of the trial are written to folder/runs/NAME.
    """
    started = time.monotonic()
    try:
        values, error = _measured(trial, changed, common, folder / "runs" / trial.name), None
    except (ValueError, OSError, RuntimeError) as failure:
        if isinstance(failure, RuntimeError) and "CUDA error" in str(failure):
            # The CUDA context is unusable after a CUDA error, so the process must end.
            raise
        logger.exception("%s failed", trial.name)
        values, error = {}, f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Result(trial, values, time.monotonic() - started, error)


def _measured(trial: Trial, changed: Mapping[str, object], common: Mapping[str, object], out: Path) -> dict:
    config = config_of(trial, changed, common, out)
    subject = true_object(trial.category, trial.seed)
    if trial.stage == PAINT:
        write_obj(out, true_mesh(subject, config.geometry, torch.device("cpu")))
    if trial.stage == COST:
        # The peak memory of the step must not include the priors and CUDA graphs of earlier trials.
        _priors.clear()
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    task = trained(config)
    if trial.stage == COST:
        return step_cost(out / "log.jsonl")
    classifier = evaluator(config.run.device)
    if trial.stage == PAINT:
        truth = true_material(subject, material_name(trial.category, trial.seed))
        return paint_measures(task.scene, classifier, trial, truth, out)
    return shape_measures(task.scene.surface.mesh().detach(), config, classifier, trial, out)


def trained(config: Config) -> Task:
    """Run the training loop of a config without the export. Return the task after the last step."""
    task, optimizer, device = build_task(config)
    guidance = make_guidance(config, cached_priors(config, device), device)
    prefetcher = make_prefetcher(config, guidance, task.schedule, SINGLE_PROCESS)
    state = TrainState(0, task.schedule, optimizer, prefetcher)
    config.run.output_folder.mkdir(parents=True, exist_ok=True)
    train_loop(state, config, task, guidance, open_report(config, []), SINGLE_PROCESS)
    return task


def cached_priors(config: Config, device: torch.device) -> list[StableDiffusion]:
    """Return the priors of a config. They are kept in memory for later trials with the same models.

    The cache saves time: for many trials, loading and CUDA graph capture would take longer than the training.
    """
    settings = config.guidance
    names = (settings.sd_model, settings.second_sd_model, control_model(config), settings.lora)
    key = (*names, settings.prediction_type, settings.cpu_bfloat16, settings.score == "vsd", str(device))
    if key not in _priors:
        _priors[key] = load_priors(config, device, InputFiles())
    check_batch(config, max(prior.views for prior in _priors[key]))
    return _priors[key]


@cache
def evaluator(device: str) -> Evaluator:
    return Evaluator(load_classifier(ROOT / "data" / "judge", select_device(device)))


@cache
def unseen_light(device: torch.device) -> PrefilteredLight:
    return load_environment(UNSEEN_LIGHT).to(device).prefiltered()


cached_true_roughness = cache(true_roughness)


def step_cost(log: Path) -> dict:
    """Return the median step time of each phase in ms, and the peak GPU memory in MB (None on a CPU)."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found: dict = {"peak_mb": None}
    if torch.cuda.is_available():
        found["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    for phase in ("coarse", "fine"):
        seconds = [line["seconds"] for line in lines if line["phase"] == phase]
        steps = [after - before for before, after in zip(seconds, seconds[1:], strict=False)]
        if late := steps[min(COST_STEPS // 2, len(steps) // 2) :]:
            found[f"{phase}_ms"] = round(1e3 * statistics.median(late), 3)
    return found


@torch.no_grad()
def shape_measures(mesh: Mesh, config: Config, evaluator: Evaluator, trial: Trial, out: Path) -> dict:
    """Measure roughness and loose parts of an optimized shape, and classify it."""
    kept = remove_small_components(mesh, config.export.min_component_area)
    whole, quality = surface_quality(mesh), surface_quality(kept)
    truth = cached_true_roughness(trial.category, config.geometry)
    return {
        "roughness": round(quality.roughness, 3),
        "true_roughness": round(truth, 3),
        "roughness_ratio": round(quality.roughness / truth, 4),
        "non_manifold": round(whole.non_manifold, 6),
        "loose": round(whole.loose, 6),
        "parts": whole.parts,
        "faces": quality.faces,
        **classified(kept, evaluator, trial, None, out / "picture.png"),
    }


@torch.no_grad()
def paint_measures(
    scene: AppearanceScene, evaluator: Evaluator, trial: Trial, truth: TrueMaterial, out: Path
) -> dict:
    """Compute the errors of albedo, roughness and metallic at the visible points, and of the relit image.

    albedo_error: mean absolute difference of linear RGB. albedo_error_scaled: the same error after the albedo
    is multiplied by the best common factor, because a brighter albedo and a stronger light give the same
    image. relit_error: root mean square difference of sRGB in images under UNSEEN_LIGHT.
    """
    mesh, device = scene.mesh, scene.mesh.v_pos.device
    cameras = evaluation_cameras(evaluator.classifier.settings.image_size).to(device)
    points = rasterize_gbuffer(mesh, cameras, evaluator.rasteriser)
    material, normal = scene.material_and_normal(points)
    kd, ks = truth(points.position)
    light = unseen_light(device)

    def lit(albedo: Tensor, rest: Tensor, direction: Tensor) -> Float[Tensor, "N 3"]:
        return linear_to_srgb(shade(albedo, rest, direction, points.to_viewer, light)).clamp(0, 1)

    difference = lit(material.kd, material.ks, normal) - lit(kd, ks, points.normal)
    factor = (material.kd * kd).sum() / material.kd.square().sum().clamp(min=1e-12)

    def paint(seen: SurfacePoints) -> tuple[Tensor, Tensor, Tensor]:
        found, bumped = scene.material_and_normal(seen)
        return found.kd, found.ks, bumped

    return {
        "material": material_name(trial.category, trial.seed),
        "albedo_error": _mean(material.kd - kd),
        "albedo_error_scaled": _mean(factor * material.kd - kd),
        "roughness_error": _mean(material.ks[:, 1] - ks[:, 1]),
        "metallic_error": _mean(material.ks[:, 2] - ks[:, 2]),
        "relit_error": round(difference.square().mean().sqrt().item(), 5),
        **classified(mesh, evaluator, trial, paint, out / "picture.png"),
    }


def _mean(difference: Tensor) -> float:
    return round(difference.abs().mean().item(), 5)


@torch.no_grad()
def classified(mesh: Mesh, evaluator: Evaluator, trial: Trial, paint: Paint | None, picture: Path) -> dict:
    """Classify a surface and return the results. Write an image of its views PICTURE_VIEWS to `picture`."""
    settings = evaluator.classifier.settings
    cameras = evaluation_cameras(SUPERSAMPLE * settings.image_size).to(evaluator.classifier.device)
    views = render_views(mesh, cameras, evaluator.rasteriser, evaluator.light, paint)
    small = views.downsample(SUPERSAMPLE)
    domain, images = ("normal", small.normal) if paint is None else ("shaded", small.shaded * 2 - 1)
    seen = predict_assets(evaluator.classifier, domain, images)
    categories = mean_probabilities(seen.category)
    best = settings.categories[int(categories.argmax())]
    found = {
        "recognised": best == trial.category,
        "taken_for": best,
        "probability": round(categories[settings.categories.index(trial.category)].item(), 4),
    }
    if paint is not None:
        materials = mean_probabilities(seen.material)
        taken = settings.materials[int(materials.argmax())]
        found["material_recognised"] = taken == material_name(trial.category, trial.seed)
    if trial.category in DIRECTIONAL:
        found["two_faced"] = bool(two_faced(seen.side)[0])
    _write_picture(views.normal if paint is None else views.shaded, views.mask, paint is None, picture)
    return found


def _write_picture(images: Tensor, mask: Tensor, normals: bool, path: Path) -> None:
    """Write the PICTURE_VIEWS side by side on white."""
    image, alpha = (torch.cat([batch[view] for view in PICTURE_VIEWS], 2) for batch in (images, mask))
    image, alpha = image.permute(1, 2, 0), alpha.permute(1, 2, 0)
    image = encode_normal(image) if normals else image
    image = image * (alpha > 0) + 1 - (alpha > 0).float()
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (255 * image.clamp(0, 1)).round().byte().cpu().numpy()
    Image.fromarray(pixels).save(path)
