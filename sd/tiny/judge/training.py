"""Training the judge's networks, and how often they are right about objects that they have not seen."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sd.tiny.judge.augment import augmented
from sd.tiny.judge.network import SIDES, Answers, Judge, JudgeNetwork
from sd.tiny.judge.sight import VIEWS, back_view
from sd.tiny.judge.world import Images
from sd.tiny.pace import Pace, cosine_rate

logger = logging.getLogger(__name__)

# Kinds with a face: only of these is the side asked, the others look alike all around or nearly.
DIRECTIONAL = ("car", "chair", "quadruped", "person", "head")
PEAK_RATE, WEIGHT_DECAY, SMOOTHING = 2e-3, 0.02, 0.05
SIDE_WEIGHT, MATERIAL_WEIGHT = 0.3, 1.0


def directional(kinds: tuple[str, ...], kind: Tensor) -> Bool[Tensor, " B"]:
    """Whether the side is asked of images of these kinds (indices)."""
    table = torch.tensor([name in DIRECTIONAL for name in kinds], device=kind.device)
    return table[kind]


def train_network(
    network: JudgeNetwork,
    domain: str,
    images: Images,
    kinds: tuple[str, ...],
    pace: Pace,
    batch: int,
    generator: torch.Generator,
) -> int:
    """Trains in place until the pace is at its end; returns the number of steps."""
    device = images.kind.device
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    network.train()
    step = 0
    while (progress := pace.progress(step)) < 1:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(progress, PEAK_RATE)
        rows = torch.randint(len(images), (batch,), generator=generator, device=device)
        pictures = augmented(images.pictures(domain, rows), domain, generator)
        with precision:
            answers = network(pictures)
        loss = total_loss(answers, images, rows, kinds)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            right = (answers.kind.argmax(-1) == images.kind[rows]).float().mean()
            logger.info("%s: step %d, loss %.3f, kind right %.3f", domain, step, loss.item(), right.item())
    network.eval()
    return step


def total_loss(answers: Answers, images: Images, rows: Tensor, kinds: tuple[str, ...]) -> Float[Tensor, ""]:
    """Cross entropies of kind, material where it is asked, and side for kinds that have a face."""
    kind = images.kind[rows]
    loss = F.cross_entropy(answers.kind.float(), kind, label_smoothing=SMOOTHING)
    if answers.material.shape[-1]:
        material = images.material[rows]
        loss = loss + MATERIAL_WEIGHT * F.cross_entropy(
            answers.material.float(), material, label_smoothing=SMOOTHING
        )
    asked = directional(kinds, kind).float()
    side = F.cross_entropy(answers.side.float(), images.side[rows], reduction="none")
    return loss + SIDE_WEIGHT * (side * asked).sum() / asked.sum().clamp(min=1)


@dataclass(frozen=True)
class Opinion:
    """Log-probabilities about A assets of VIEWS views: kind [A,V,K], material [A,V,M], side [A,V,3]."""

    kind: Float[Tensor, "A V K"]
    material: Float[Tensor, "A V M"]
    side: Float[Tensor, "A V 3"]


def opinion(judge: Judge, domain: str, pictures: Float[Tensor, "N 3 S S"]) -> Opinion:
    """What the judge thinks of images of assets, VIEWS consecutive ones each."""
    answers = [judge.look(domain, part.to(judge.device)) for part in pictures.split(256)]
    stacked = {name: torch.cat([getattr(a, name) for a in answers]) for name in vars(answers[0])}
    return Opinion(**{name: value.unflatten(0, (-1, VIEWS)).cpu() for name, value in stacked.items()})


def two_faced(side: Float[Tensor, "A V 3"]) -> Bool[Tensor, " A"]:
    """Whether an asset shows its front on both sides: at azimuth 0 and again at 180."""
    seen = side.argmax(-1)
    front = SIDES.index("front")
    return (seen[:, 0] == front) & (seen[:, back_view()] == front)


def accuracies(judge: Judge, images: Images) -> dict[str, dict[str, float]]:
    """By domain: how often single views and whole assets are told right, and how often a sound object of a
    directional kind is called two-faced. images: seen by the judging cameras, in the order of assets."""
    settings, found = judge.settings, {}
    kind, material, side = (
        getattr(images, name).cpu().unflatten(0, (-1, VIEWS)) for name in ("kind", "material", "side")
    )
    faced = directional(settings.kinds, kind[:, 0])
    for domain in judge.networks:
        rows = torch.arange(len(images), device=images.kind.device)
        seen = opinion(judge, domain, torch.cat([images.pictures(domain, r) for r in rows.split(256)]))
        figures = {
            "kind_of_a_view": _share(seen.kind.argmax(-1) == kind),
            "kind_of_an_asset": _share(seen.kind.mean(1).argmax(-1) == kind[:, 0]),
        }
        if seen.material.shape[-1]:
            figures["material_of_a_view"] = _share(seen.material.argmax(-1) == material)
            verdict = seen.material.mean(1)
            figures["material_of_an_asset"] = _share(verdict.argmax(-1) == material[:, 0])
            named = material[:, 0] > 0
            best = verdict[..., 1:].argmax(-1) + 1
            figures["material_of_an_asset_that_has_one"] = _share((best == material[:, 0])[named])
        if faced.any():
            ends = [0, back_view()]
            right = (seen.side.argmax(-1) == side)[:, ends]
            figures["side_of_a_front_or_back_view"] = _share(right[faced])
            figures["sound_objects_called_two_faced"] = _share(two_faced(seen.side)[faced])
        found[domain] = figures
    return found


def weak_kinds(judge: Judge, images: Images, domain: str, at_most: float = 0.9) -> dict[str, float]:
    """Kinds whose held-out assets are told right no more often than this."""
    rows = torch.arange(len(images), device=images.kind.device)
    seen = opinion(judge, domain, torch.cat([images.pictures(domain, r) for r in rows.split(256)]))
    kind = images.kind.cpu().unflatten(0, (-1, VIEWS))[:, 0]
    right = seen.kind.mean(1).argmax(-1) == kind
    shares = {name: _share(right[kind == k]) for k, name in enumerate(judge.settings.kinds)}
    return {name: share for name, share in shares.items() if share <= at_most}


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)
