"""The scores of the distillation methods. A score is the gradient on the latent divided by the weight w(t).

The x0 loss has no weight w(t) and therefore no score (see `x0_gradient`). Notation: e_c, e_u and e_n are the
noise predictions for the prompt, the empty text and the negative text. e_cfg = e_n + s (e_c − e_n) with the
guidance weight s. ε is the noise in x_t. All tensors are [B, C, h, w], except numbers per view, which are
[B].

To add a score, define its function here, add its name to `Score` and add a branch to `score_of`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Score = Literal["sds", "csd", "nfsd", "vsd", "x0"]
Noise = Float[Tensor, "B C h w"]

# NFSD uses the unconditional prediction as the domain correction δ if t is below this fraction of the
# diffusion steps (200 of 1000).
NFSD_SMALL_TIME = 0.2


def classifier_free(e_negative: Noise, e_text: Noise, guidance_weight: float) -> Noise:
    """Return e_cfg = e_n + s (e_c − e_n) (Ho and Salimans, arXiv 2207.12598)."""
    return e_negative + guidance_weight * (e_text - e_negative)


def sds(e_cfg: Noise, noise: Noise) -> Noise:
    """Return e_cfg − ε (DreamFusion, arXiv 2209.14988, equation 3)."""
    return e_cfg - noise


def csd(e_c: Noise, e_u: Noise, e_n: Noise, weight: float, negative_weight: float) -> Noise:
    """Return ω1 e_c + (ω2 − ω1) e_u − ω2 e_n (Classifier Score Distillation, arXiv 2310.19415).

    If e_u = e_n, the score is ω1 (e_c − e_u). This is the part of SDS that is multiplied by the guidance
    weight.
    """
    return weight * e_c + (negative_weight - weight) * e_u - negative_weight * e_n


def nfsd(e_c: Noise, e_u: Noise, e_n: Noise, guidance_weight: float, time: Float[Tensor, " B"]) -> Noise:
    """Return δ + s (e_c − e_u), with δ = e_u for small t and otherwise δ = e_u − e_n (arXiv 2310.17590).

    time: t as a fraction of the diffusion steps. t is small if the fraction is below NFSD_SMALL_TIME.
    """
    small = (time < NFSD_SMALL_TIME)[:, None, None, None]
    delta = torch.where(small, e_u, e_u - e_n)
    return delta + guidance_weight * (e_c - e_u)


def vsd(e_cfg: Noise, e_phi: Noise) -> Noise:
    """Return e_cfg − e_φ (ProlificDreamer, arXiv 2305.16213). The denoiser φ predicts the noise in noisy
    renders.
    """
    return e_cfg - e_phi


def clean_latent(noisy: Noise, predicted: Noise, abar: Float[Tensor, " B"]) -> Noise:
    """Return the clean latent ẑ0 = (x_t − sqrt(1 − abar) e) / sqrt(abar) for the predicted noise e."""
    abar = abar[:, None, None, None]
    return (noisy - (1 - abar).sqrt() * predicted) / abar.sqrt()


def rescaled(guided: Noise, conditional: Noise, share: float, views: int) -> Noise:
    """Return φ ẑ σ(ẑ_c) / σ(ẑ) + (1 − φ) ẑ (arXiv 2305.08891).

    The rescaling reduces the contrast that strong guidance adds.

    guided: ẑ. conditional: ẑ_c, the prediction with the prompt alone. share: φ. σ is the standard deviation
    over all values of the `views` consecutive latents of an object.
    """

    def deviation(latents: Noise) -> Tensor:
        return latents.unflatten(0, (-1, views)).std((1, 2, 3, 4)).repeat_interleave(views)

    factor = deviation(conditional) / deviation(guided).clamp(min=torch.finfo(guided.dtype).tiny)
    return guided * (share * factor + (1 - share))[:, None, None, None]


def perp_neg(
    e_u: Noise, e_c: Noise, e_views: Sequence[Noise], weights: Sequence[Float[Tensor, " B"]]
) -> Noise:
    """Return e_u + Δ+ + Σ w_i Δi⊥ with Δ+ = e_c − e_u and Δi = e_i − e_u (Perp-Neg, arXiv 2304.04968).

    The result replaces e_c in every score. With it, classifier-free guidance becomes the formula of the
    paper, e_u + s [Δ+ + Σ w_i Δi⊥].

    e_views: e_i, the predictions for the prompts of the two sides (of front, side and back) that the view
    does not show. weights: w_i <= 0 per view.
    """
    positive = e_c - e_u
    total = positive
    for e_view, weight in zip(e_views, weights, strict=True):
        total = total + weight[:, None, None, None] * perpendicular(e_view - e_u, positive)
    return e_u + total


def perpendicular(vector: Noise, axis: Noise) -> Noise:
    """Return Δ⊥ = Δ − (⟨Δ, axis⟩ / ‖axis‖²) axis for each view, or Δ if the axis is 0."""
    dimensions = (1, 2, 3)
    square = axis.square().sum(dimensions, keepdim=True)
    along = (vector * axis).sum(dimensions, keepdim=True) / square.clamp(min=torch.finfo(axis.dtype).tiny)
    return vector - along * axis


def view_weights(azimuth: Float[Tensor, " B"]) -> Float[Tensor, "B 3"]:
    """Return Perp-Neg's w_i for the prompts of front, side and back: −sin²(d_i / 2).

    d_i is the angle in radians between the view's azimuth and the azimuth of the prompt's side (0, ±π/2 or
    π). The weight is 0 if both azimuths are equal and −1 if they are opposite.
    """
    cosine = azimuth.cos()
    # For the side prompt, d is the angle to the closer of ±π/2, so cos d = |sin(azimuth)|.
    return (torch.stack([cosine, azimuth.sin().abs(), -cosine], -1) - 1) / 2


@dataclass(frozen=True)
class Predictions:
    """The noise predictions of one step. A prediction that the score does not use is None.

    negative: e_n. conditional: e_c, or its Perp-Neg replacement. unconditional: e_u. lora: e_φ.
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
    """Return the score with this name (a value of the config key `score`).

    time: t as a fraction of the diffusion steps. csd_negative_weight: ω2 / ω1 of CSD. ω1 is the guidance
    weight s.
    """
    assert name != "x0", "the x0 loss has no weight w(t), see x0_gradient"
    e_c, e_u, e_n = predicted.conditional, predicted.unconditional, predicted.negative
    if name == "csd":
        return csd(e_c, e_u, e_n, guidance_weight, guidance_weight * csd_negative_weight)
    if name == "nfsd":
        return nfsd(e_c, e_u, e_n, guidance_weight, time)
    e_cfg = classifier_free(e_n, e_c, guidance_weight)
    return vsd(e_cfg, predicted.lora) if name == "vsd" else sds(e_cfg, noise)


def x0_gradient(
    latents: Noise,
    noisy: Noise,
    abar: Float[Tensor, " B"],
    predicted: Predictions,
    *,
    guidance_weight: float,
    rescale: float,
    views: int,
) -> Noise:
    """Return x − ẑ, the gradient of the loss ½ ‖x − ẑ‖² (MVDream, arXiv 2308.16512, section 3.2).

    ẑ is the clean latent for the prediction e_cfg, rescaled with φ = `rescale` (see `rescaled`). With φ = 0,
    the gradient is sqrt((1 − abar) / abar) (e_cfg − ε). This is SDS with the weight sqrt((1 − abar) / abar).
    """
    e_cfg = classifier_free(predicted.negative, predicted.conditional, guidance_weight)
    guided, conditional = (clean_latent(noisy, e, abar) for e in (e_cfg, predicted.conditional))
    return latents - rescaled(guided, conditional, rescale, views)
