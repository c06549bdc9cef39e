"""Training of the classifier's networks, and their accuracy on held-out objects."""

import logging
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from data.make_classifier.augment import augment
from data.make_classifier.dataset import Images
from data.make_tiny_sd.lr_schedule import StageSchedule, cosine_learning_rate
from training.evaluation.classifier import (
    Classifier,
    ClassifierNetwork,
    ClassifierOutput,
    directional,
    predict_assets,
    two_faced,
)
from training.evaluation.views import VIEWS, back_view

logger = logging.getLogger(__name__)

PEAK_RATE, WEIGHT_DECAY, SMOOTHING = 2e-3, 0.02, 0.05
SIDE_WEIGHT, MATERIAL_WEIGHT = 0.3, 1.0


def train_network(
    network: ClassifierNetwork,
    domain: str,
    images: Images,
    categories: tuple[str, ...],
    schedule: StageSchedule,
    *,
    batch: int,
    generator: torch.Generator,
) -> int:
    """Train `network` in place until the schedule ends, and return the number of steps."""
    device = images.category.device
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    network.train()
    step = 0
    while (progress := schedule.progress(step)) < 1:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(progress, PEAK_RATE)
        rows = torch.randint(len(images), (batch,), generator=generator, device=device)
        pictures = augment(images.pictures(domain, rows), domain, generator)
        with precision:
            output = network(pictures)
        loss = total_loss(output, images, rows, categories)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            right = (output.category.argmax(-1) == images.category[rows]).float().mean()
            logger.info(
                "%s: step %d, loss %.3f, category right %.3f", domain, step, loss.item(), right.item()
            )
    network.eval()
    return step


def total_loss(
    output: ClassifierOutput, images: Images, rows: Tensor, categories: tuple[str, ...]
) -> Float[Tensor, ""]:
    """Return the weighted sum of the cross entropies of category, material and side.

    The material is omitted for a network without material output. The side is omitted for categories that
    look similar from all sides.
    """
    category = images.category[rows]
    loss = F.cross_entropy(output.category.float(), category, label_smoothing=SMOOTHING)
    if output.material.shape[-1]:
        material = images.material[rows]
        loss = loss + MATERIAL_WEIGHT * F.cross_entropy(
            output.material.float(), material, label_smoothing=SMOOTHING
        )
    is_directional = directional(categories, category).float()
    side = F.cross_entropy(output.side.float(), images.side[rows], reduction="none")
    return loss + SIDE_WEIGHT * (side * is_directional).sum() / is_directional.sum().clamp(min=1)


def accuracies(classifier: Classifier, images: Images) -> dict[str, dict[str, float]]:
    """Return, for each domain, the accuracies and the rate of false two-faced detections.

    The accuracies are those of category, material and side.

    An object is two-faced if its front is visible from two sides (Janus problem). images: rendered with the
    evaluation cameras, sorted by asset.
    """
    settings, found = classifier.settings, {}
    category, material, side = (
        getattr(images, name).cpu().unflatten(0, (-1, VIEWS)) for name in ("category", "material", "side")
    )
    is_directional = directional(settings.categories, category[:, 0])
    for domain in classifier.networks:
        rows = torch.arange(len(images), device=images.category.device)
        prediction = predict_assets(
            classifier, domain, torch.cat([images.pictures(domain, r) for r in rows.split(256)])
        )
        figures = {
            "category_of_a_view": _share(prediction.category.argmax(-1) == category),
            "category_of_an_asset": _share(prediction.category.mean(1).argmax(-1) == category[:, 0]),
        }
        if prediction.material.shape[-1]:
            figures["material_of_a_view"] = _share(prediction.material.argmax(-1) == material)
            evaluation = prediction.material.mean(1)
            figures["material_of_an_asset"] = _share(evaluation.argmax(-1) == material[:, 0])
            named = material[:, 0] > 0
            best = evaluation[..., 1:].argmax(-1) + 1
            figures["material_of_an_asset_that_has_one"] = _share((best == material[:, 0])[named])
        if is_directional.any():
            ends = [0, back_view()]
            right = (prediction.side.argmax(-1) == side)[:, ends]
            figures["side_of_a_front_or_back_view"] = _share(right[is_directional])
            figures["sound_objects_called_two_faced"] = _share(two_faced(prediction.side)[is_directional])
        found[domain] = figures
    return found


def weak_categories(
    classifier: Classifier, images: Images, domain: str, at_most: float = 0.9
) -> dict[str, float]:
    """Return the categories whose accuracy on held-out assets is at most `at_most`, with their accuracy."""
    rows = torch.arange(len(images), device=images.category.device)
    prediction = predict_assets(
        classifier, domain, torch.cat([images.pictures(domain, r) for r in rows.split(256)])
    )
    category = images.category.cpu().unflatten(0, (-1, VIEWS))[:, 0]
    right = prediction.category.mean(1).argmax(-1) == category
    shares = {name: _share(right[category == k]) for k, name in enumerate(classifier.settings.categories)}
    return {name: share for name, share in shares.items() if share <= at_most}


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)
