"""Making a judge: render its objects, train both networks, measure on other objects, write the folder."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dataset.cameras import step_generator
from dataset.objects import KINDS
from render.shade.light import LightConfig
from sd.tiny.judge.card import write_card
from sd.tiny.judge.network import DOMAINS, WIDTHS, Judge, JudgeSettings, make_networks, save_judge
from sd.tiny.judge.nothing import NOTHING
from sd.tiny.judge.sight import IMAGE_SIZE, LIGHT
from sd.tiny.judge.training import accuracies, train_network, weak_kinds
from sd.tiny.judge.world import MATERIAL_NAMES, WorldConfig, held_out, render_worlds
from sd.tiny.pace import Pace

logger = logging.getLogger(__name__)

# The prior's objects have the seeds 1 and 2.
TRAINING_SEED, HELD_OUT_SEED = 7001, 7002
RENDERING_SHARE = 0.5
BATTERED = 0.04


@dataclass(frozen=True)
class MakeConfig:
    """One judge to make. minutes counts everything; steps, where given, is the training of each network
    instead of the time that is left. The judge learns NOTHING as one more kind."""

    out: Path
    minutes: float = 2.0
    kinds: tuple[str, ...] = KINDS
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


def make_judge(config: MakeConfig, device: torch.device) -> Judge:
    """Trains a judge and writes its folder."""
    begun = time.monotonic()
    seconds = 60 * config.minutes
    torch.manual_seed(config.seed)
    world = WorldConfig(
        config.seed,
        (*config.kinds, NOTHING),
        config.instances,
        image_size=config.image_size,
        grid=config.grid,
        environment=config.environment,
    )
    tests = {
        name: held_out(world, HELD_OUT_SEED + number, config.held_out_instances, batter)
        for number, (name, batter) in enumerate((("whole", 0.0), ("battered", BATTERED)))
    }
    *seen, images = render_worlds([*tests.values(), world], device, RENDERING_SHARE * seconds, config.workers)
    unseen = dict(zip(tests, seen, strict=True))
    rendered = time.monotonic() - begun
    logger.info("%.0f s: %d images of %d kinds", rendered, len(images), len(config.kinds))

    settings = JudgeSettings(world.kinds, MATERIAL_NAMES, world.image_size, config.widths)
    judge = Judge(settings, make_networks(settings, device), {})
    steps = {}
    for number, domain in enumerate(DOMAINS):
        left = max(seconds - (time.monotonic() - begun), 1.0) / (len(DOMAINS) - number)
        generator = torch.Generator(device).manual_seed(
            step_generator(config.seed, number, 0, 10).initial_seed()
        )
        steps[domain] = train_network(
            judge.networks[domain],
            domain,
            images,
            world.kinds,
            Pace(left, config.steps),
            config.batch,
            generator,
        )
        logger.info("%.0f s: %s trained, %d steps", time.monotonic() - begun, domain, steps[domain])
    record = {
        "seeds": {"training": config.seed, "held_out": HELD_OUT_SEED},
        "images": len(images),
        "instances_of_a_kind": config.instances,
        "steps": steps,
        "batch": config.batch,
        "parameters": {d: sum(p.numel() for p in n.parameters()) for d, n in judge.networks.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "seconds": {"rendering": round(rendered), "all": round(time.monotonic() - begun)},
        "held_out": {
            name: {
                "assets": len(test.asset.unique()),
                **accuracies(judge, test),
                "weak_kinds": {domain: weak_kinds(judge, test, domain) for domain in DOMAINS},
            }
            for name, test in unseen.items()
        },
    }
    judge = replace(judge, record=record)
    save_judge(config.out, judge)
    write_card(config.out, judge)
    return judge
