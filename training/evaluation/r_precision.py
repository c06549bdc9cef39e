"""Evaluation of runs and their R-precision.

The evaluation of an asset is the category (and material) with the highest mean log-probability over its
views. R-precision is the share of assets whose evaluation matches the prompt. An asset without a mesh counts
as wrong.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dataset.procedural.materials import HELD_OUT
from render.raster.select import choose_rasteriser
from render.shade.light import LightConfig, load_environment
from render.shade.prefilter import PrefilteredLight
from training.evaluation.assets import Run, load_asset, missing_mesh_reason, textured
from training.evaluation.classifier import (
    DIRECTIONAL,
    DOMAINS,
    SIDES,
    Classifier,
    Prediction,
    predict_assets,
    two_faced,
)
from training.evaluation.views import (
    LIGHT,
    SUPERSAMPLE,
    VIEWS,
    RenderedViews,
    back_view,
    degrees,
    evaluation_cameras,
    render_views,
)

logger = logging.getLogger(__name__)

# For each view, this number of the most probable categories is recorded.
TOP_CATEGORIES = 3


@dataclass(frozen=True)
class Evaluation:
    """The result for one run: either prediction and views, or a failure."""

    run: Run
    prediction: Prediction | None = None
    views: RenderedViews | None = None
    failure: str | None = None


class Evaluator:
    """Evaluates runs with a classifier, a rasteriser and an environment light."""

    def __init__(self, classifier: Classifier, environment: LightConfig = LIGHT):
        self.classifier = classifier
        self.rasteriser = choose_rasteriser(classifier.device, "auto")
        light = load_environment(environment).to(classifier.device)
        self.light: PrefilteredLight = light.prefiltered()

    def evaluate_run(self, run: Run) -> Evaluation:
        """Evaluate a run. If the mesh is missing or invalid, the result is a failure with its reason."""
        reason = missing_mesh_reason(run)
        if reason is None:
            try:
                return self._evaluate(run)
            except (ValueError, OSError) as error:
                reason = " ".join(str(error).split())
        return Evaluation(run, failure=reason)

    def _evaluate(self, run: Run) -> Evaluation:
        mesh, textures = load_asset(run, self.classifier.device)
        paint = None if textures is None else textured(mesh, textures, self.rasteriser)
        cameras = evaluation_cameras(SUPERSAMPLE * self.classifier.settings.image_size).to(
            self.classifier.device
        )
        views = render_views(mesh, cameras, self.rasteriser, self.light, paint)
        downsampled = views.downsample(SUPERSAMPLE)
        pictures = downsampled.normal if textures is None else downsampled.shaded * 2 - 1
        prediction = predict_assets(self.classifier, run.domain, pictures)
        return Evaluation(run, prediction, RenderedViews(*(_on_cpu(image) for image in vars(views).values())))


def _on_cpu(image: Tensor | None) -> Tensor | None:
    return None if image is None else image.cpu()


def mean_probabilities(logs: Float[Tensor, "1 V K"]) -> Float[Tensor, " K"]:
    """Return the normalised geometric mean of the probabilities over the views."""
    return logs[0].mean(0).softmax(-1)


def describe(evaluation: Evaluation, classifier: Classifier) -> dict:
    """Return the record of one asset for the JSON report."""
    run, settings = evaluation.run, classifier.settings
    record: dict = {
        "folder": str(run.folder),
        "prompt": run.prompt,
        "domain": run.domain,
        "expected": {"category": run.target.category, "material": run.target.material},
        "failure": evaluation.failure,
        "category_right": False,
    }
    painted = run.domain == "shaded"
    if painted and run.target.material:
        record["material_right"] = False
    if evaluation.prediction is None:
        return record
    categories = mean_probabilities(evaluation.prediction.category)
    record["evaluation"], record["probability"], record["probability_of_expected"] = {}, {}, {}
    _add_decision(record, "category", categories, settings.categories)
    if painted:
        _add_decision(
            record, "material", mean_probabilities(evaluation.prediction.material), settings.materials
        )
    record["views"] = _views(evaluation.prediction, settings.categories, run.target.category)
    if run.target.category in DIRECTIONAL:
        record["two_faced"] = bool(two_faced(evaluation.prediction.side)[0])
    return record


def _add_decision(record: dict, what: str, probabilities: Tensor, names: Sequence[str]) -> None:
    """Add the evaluated category or material to the record."""
    best, expected = int(probabilities.argmax()), record["expected"][what]
    record["evaluation"][what] = names[best]
    record["probability"][what] = round(probabilities[best].item(), 4)
    if expected is not None:
        record["probability_of_expected"][what] = round(probabilities[names.index(expected)].item(), 4)
        record[f"{what}_right"] = names[best] == expected


def _views(prediction: Prediction, categories: tuple[str, ...], expected: str) -> list[dict]:
    """Return a list with the prediction for each view, as JSON values."""
    found = []
    for view in range(VIEWS):
        category, side = prediction.category[0, view].exp(), prediction.side[0, view].exp()
        top = category.topk(min(TOP_CATEGORIES, len(categories)))
        likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found.append(
            {
                "azimuth": degrees(view),
                "categories": {categories[k]: round(p, 4) for k, p in likeliest},
                "expected": round(category[categories.index(expected)].item(), 4),
                "side": SIDES[int(side.argmax())],
                "side_probability": round(side.max().item(), 4),
            }
        )
    return found


def report(assets: list[dict], classifier: Classifier) -> dict:
    """Return all assets and their summary as a JSON value."""
    failures = [
        {"folder": a["folder"], "prompt": a["prompt"], "reason": a["failure"] or _wrong(a)}
        for a in assets
        if a["failure"] or not a["category_right"] or not a.get("material_right", True)
    ]
    return {
        "r_precision": {
            domain: _precision(some)
            for domain in DOMAINS
            if (some := [asset for asset in assets if asset["domain"] == domain])
        },
        "composition": _composition(assets),
        "two_faced": _two_faced(assets),
        "failures": failures,
        "confusions": _confusions(assets),
        "assets": assets,
        "classifier": {
            "views": VIEWS,
            "back_view_azimuth": degrees(back_view()),
            "categories": list(classifier.settings.categories),
            "materials": list(classifier.settings.materials),
            **classifier.record,
        },
    }


def _wrong(asset: dict) -> str:
    found = [
        f"{what} looks like {asset['evaluation'][what].replace('_', ' ')}"
        for what in ("category", "material")
        if not asset.get(f"{what}_right", True)
    ]
    return ", ".join(found)


def _precision(assets: list[dict]) -> dict:
    """Return the share of correct categories, and of correct materials among prompts with a material."""
    right: dict[str, list[bool]] = {}
    for asset in assets:
        right.setdefault(asset["expected"]["category"], []).append(asset["category_right"])
    found = {
        "assets": len(assets),
        "category": _share([a["category_right"] for a in assets]),
        "by_category": {category: f"{sum(some)} of {len(some)}" for category, some in sorted(right.items())},
    }
    named = [a["material_right"] for a in assets if "material_right" in a]
    if named:
        found |= {"assets_with_material": len(named), "material": _share(named)}
    return found


def _composition(assets: list[dict]) -> dict:
    """Return the share of textured assets with correct category and material.

    Only prompts whose category and material are a pair in HELD_OUT are counted.
    """
    found: dict[str, list[bool]] = {}
    for asset in assets:
        category, material = asset["expected"]["category"], asset["expected"]["material"]
        if asset["domain"] == "shaded" and (category, material) in HELD_OUT:
            right = asset["category_right"] and asset["material_right"]
            found.setdefault(f"{material} {category.replace('_', ' ')}", []).append(right)
    everything = [right for some in found.values() for right in some]
    if not everything:
        return {}
    pairs = {name: f"{sum(some)} of {len(some)}" for name, some in found.items()}
    return {"assets": len(everything), "category_and_material": _share(everything), "pairs": pairs}


def _two_faced(assets: list[dict]) -> dict:
    """Return the number and the share of two-faced assets in each domain.

    Only assets with a mesh and a category in DIRECTIONAL are counted.
    """
    found = {}
    for domain in DOMAINS:
        some = [a["two_faced"] for a in assets if a["domain"] == domain and "two_faced" in a]
        if some:
            found[domain] = {"assets": len(some), "two_faced": sum(some), "share": _share(some)}
    return found


def _confusions(assets: list[dict]) -> list[dict]:
    """Return the confused pairs (expected name, wrong name) with their counts, most frequent first."""
    counts = Counter(
        (what, a["expected"][what], a["evaluation"][what])
        for a in assets
        for what in ("category", "material")
        if "evaluation" in a and not a.get(f"{what}_right", True)
    )
    return [
        {"what": what, "expected": expected, "evaluation": evaluation, "count": count}
        for (what, expected, evaluation), count in counts.most_common()
    ]


def _share(right: list[bool]) -> float:
    return round(sum(right) / len(right), 4)


def evaluate_runs(
    runs: Sequence[Run], classifier: Classifier, evaluator: Evaluator
) -> tuple[list[Evaluation], dict]:
    """Return the evaluations in the order of the runs, and the report."""
    evaluations = []
    for number, run in enumerate(runs, start=1):
        evaluations.append(evaluator.evaluate_run(run))
        logger.info("%d of %d: %s", number, len(runs), run.folder)
    with torch.no_grad():
        return evaluations, report(
            [describe(evaluation, classifier) for evaluation in evaluations], classifier
        )
