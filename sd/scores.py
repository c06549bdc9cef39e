"""Score distillation: the direction that each method gives to a noised latent, before its weight w(t).

The gradient on the latent is w(t) · score. Notation: e_c, e_u and e_n are the noise predicted with the
prompt, with an empty text and with the negative text; e_cfg = e_n + s (e_c − e_n) with the guidance weight s;
noise is the one in x_t. All tensors are [B, C, h, w]; numbers per view are [B].

To add a score, write its function here, enter it into `Score` and give it a branch in `score_of`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Score = Literal["sds", "csd", "nfsd", "vsd"]
Noise = Float[Tensor, "B C h w"]

# NFSD: below this share of the diffusion steps the prediction without a prompt is taken to be the domain's
# correction alone (200 of 1000 steps).
NFSD_SMALL_TIME = 0.2


def classifier_free(e_negative: Noise, e_text: Noise, guidance_weight: float) -> Noise:
    """e_cfg = e_n + s (e_c − e_n)  (Ho and Salimans, arXiv 2207.12598)."""
    return e_negative + guidance_weight * (e_text - e_negative)


def sds(e_cfg: Noise, noise: Noise) -> Noise:
    """e_cfg − ε  (DreamFusion, arXiv 2209.14988, equation 3)."""
    return e_cfg - noise


def csd(e_c: Noise, e_u: Noise, e_n: Noise, weight: float, negative_weight: float) -> Noise:
    """ω1 e_c + (ω2 − ω1) e_u − ω2 e_n  (Classifier Score Distillation, arXiv 2310.19415).

    With e_u = e_n this is ω1 (e_c − e_u): the part of SDS that the guidance weight multiplies.
    """
    return weight * e_c + (negative_weight - weight) * e_u - negative_weight * e_n


def nfsd(e_c: Noise, e_u: Noise, e_n: Noise, guidance_weight: float, time: Float[Tensor, " B"]) -> Noise:
    """δ + s (e_c − e_u), δ = e_u for small t, else e_u − e_n  (NFSD, arXiv 2310.17590).

    time: t as a fraction of the diffusion steps; small is below NFSD_SMALL_TIME.
    """
    small = (time < NFSD_SMALL_TIME)[:, None, None, None]
    delta = torch.where(small, e_u, e_u - e_n)
    return delta + guidance_weight * (e_c - e_u)


def vsd(e_cfg: Noise, e_phi: Noise) -> Noise:
    """e_cfg − e_φ  (ProlificDreamer, arXiv 2305.16213). φ predicts the noise of the renders."""
    return e_cfg - e_phi


def perp_neg(
    e_u: Noise, e_c: Noise, e_views: Sequence[Noise], weights: Sequence[Float[Tensor, " B"]]
) -> Noise:
    """e_u + Δ+ + Σ w_i Δi⊥, Δ+ = e_c − e_u, Δi = e_i − e_u  (Perp-Neg, arXiv 2304.04968).

    It replaces e_c in every score, so that classifier-free guidance becomes the paper's
    e_u + s [Δ+ + Σ w_i Δi⊥]. e_views: predictions for the words of other sides. weights: w_i <= 0 per view.
    """
    positive = e_c - e_u
    total = positive
    for e_view, weight in zip(e_views, weights, strict=True):
        total = total + weight[:, None, None, None] * perpendicular(e_view - e_u, positive)
    return e_u + total


def perpendicular(vector: Noise, axis: Noise) -> Noise:
    """Δ⊥ = Δ − (⟨Δ, axis⟩ / ‖axis‖²) axis, for each view; Δ itself if the axis is 0."""
    dimensions = (1, 2, 3)
    square = axis.square().sum(dimensions, keepdim=True)
    along = (vector * axis).sum(dimensions, keepdim=True) / square.clamp(min=torch.finfo(axis.dtype).tiny)
    return vector - along * axis


def view_weights(azimuth: Float[Tensor, " B"]) -> Float[Tensor, "B 3"]:
    """Perp-Neg's w_i of the words front, side and back: −sin²(d_i / 2).

    d_i is the angle in radians between the view's azimuth and the side that the words name (0, ±π/2, π): the
    weight is 0 where the view agrees with the words and −1 where it shows the opposite side.
    """
    cosine = azimuth.cos()
    # cos d of the nearer of the two sides is |sin(azimuth)|.
    return (torch.stack([cosine, azimuth.sin().abs(), -cosine], -1) - 1) / 2


@dataclass(frozen=True)
class Predictions:
    """The predicted noise that a score is made of; None where the score does not use it.

    negative e_n, conditional e_c (Perp-Neg's where it is on), unconditional e_u, lora e_φ.
    """

    negative: Noise
    conditional: Noise
    unconditional: Noise | None = None
    lora: Noise | None = None


def score_of(
    name: str,
    predicted: Predictions,
    noise: Noise,
    time: Float[Tensor, " B"],
    guidance_weight: float,
    csd_negative_weight: float,
) -> Noise:
    """The score that the config names.

    time: t as a fraction of the diffusion steps. csd_negative_weight: CSD's ω2 as a share of ω1 = s.
    """
    e_c, e_u, e_n = predicted.conditional, predicted.unconditional, predicted.negative
    if name == "csd":
        return csd(e_c, e_u, e_n, guidance_weight, guidance_weight * csd_negative_weight)
    if name == "nfsd":
        return nfsd(e_c, e_u, e_n, guidance_weight, time)
    e_cfg = classifier_free(e_n, e_c, guidance_weight)
    return vsd(e_cfg, predicted.lora) if name == "vsd" else sds(e_cfg, noise)
