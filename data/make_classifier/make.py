"""Make a classifier: render objects, train a network per image domain, measure the accuracy, write a folder.

The accuracy is measured on objects that are not in the training data.
"""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data.make_classifier.dataset import MATERIAL_NAMES, DatasetConfig, held_out, render_datasets
from data.make_classifier.model_card import write_card
from data.make_classifier.train import accuracies, train_network, weak_categories
from data.make_tiny_sd.lr_schedule import StageSchedule
from dataset.cameras import step_generator
from dataset.procedural import CATEGORIES
from render.shade.light import LightConfig
from training.evaluation.classifier import (
    DOMAINS,
    NOTHING,
    WIDTHS,
    Classifier,
    ClassifierSettings,
    make_networks,
    save_classifier,
)
from training.evaluation.views import IMAGE_SIZE, LIGHT

logger = logging.getLogger(__name__)

# The prior's training data has the seeds 1 and 2. Other seeds give the classifier other objects.
TRAINING_SEED, HELD_OUT_SEED = 7001, 7002
RENDERING_SHARE = 0.5
PERTURBED = 0.04


@dataclass(frozen=True)
class MakeConfig:
    """Settings of one classifier.

    minutes: total time. steps: training steps per network; None trains until the time is up. In addition to
    `categories`, the classifier is trained on the category NOTHING.
    """

    out: Path
    minutes: float = 2.0
    categories: tuple[str, ...] = CATEGORIES
    instances: int = 40
    held_out_instances: int = 8
    batch: int = 256
    workers: int = 0
    seed: int = TRAINING_SEED
    steps: int | None = None
    widths: tuple[int, ...] = WIDTHS
    image_size: int = IMAGE_SIZE
    grid: int = 96
    environment: LightConfig = LIGHT


def make_classifier(config: MakeConfig, device: torch.device) -> Classifier:
    """Train a classifier, write its folder and return the classifier."""
    started = time.monotonic()
    seconds = 60 * config.minutes
    torch.manual_seed(config.seed)
    dataset = DatasetConfig(
        config.seed,
        (*config.categories, NOTHING),
        config.instances,
        image_size=config.image_size,
        grid=config.grid,
        environment=config.environment,
    )
    tests = {
        name: held_out(dataset, HELD_OUT_SEED + number, config.held_out_instances, perturbation)
        for number, (name, perturbation) in enumerate((("whole", 0.0), ("perturbed", PERTURBED)))
    }
    *seen, images = render_datasets(
        [*tests.values(), dataset], device, RENDERING_SHARE * seconds, config.workers
    )
    held_out_images = dict(zip(tests, seen, strict=True))
    rendered = time.monotonic() - started
    logger.info("%.0f s: %d images of %d categories", rendered, len(images), len(config.categories))

    settings = ClassifierSettings(dataset.categories, MATERIAL_NAMES, dataset.image_size, config.widths)
    classifier = Classifier(settings, make_networks(settings, device), {})
    steps = {}
    for number, domain in enumerate(DOMAINS):
        left = max(seconds - (time.monotonic() - started), 1.0) / (len(DOMAINS) - number)
        generator = torch.Generator(device).manual_seed(
            step_generator(config.seed, number, 0, 10).initial_seed()
        )
        steps[domain] = train_network(
            classifier.networks[domain],
            domain,
            images,
            dataset.categories,
            StageSchedule(left, config.steps),
            batch=config.batch,
            generator=generator,
        )
        logger.info("%.0f s: %s trained, %d steps", time.monotonic() - started, domain, steps[domain])
    record = {
        "seeds": {"training": config.seed, "held_out": HELD_OUT_SEED},
        "images": len(images),
        "instances_of_a_category": config.instances,
        "steps": steps,
        "batch": config.batch,
        "parameters": {d: sum(p.numel() for p in n.parameters()) for d, n in classifier.networks.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "seconds": {"rendering": round(rendered), "all": round(time.monotonic() - started)},
        "held_out": {
            name: {
                "assets": len(test.asset.unique()),
                **accuracies(classifier, test),
                "weak_categories": {domain: weak_categories(classifier, test, domain) for domain in DOMAINS},
            }
            for name, test in held_out_images.items()
        },
    }
    classifier = replace(classifier, record=record)
    save_classifier(config.out, classifier)
    write_card(config.out, classifier)
    return classifier
