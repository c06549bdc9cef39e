"""Config keys of the prior, the prompts and the score."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic.dataclasses import dataclass

from sd.schedule import AnnealedNumber
from sd.scores import Score
from sd.vsd import LearningRate, LoraRank

LoraEntry = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True)
class GuidanceConfig:
    """Config keys of the prior, the prompts and the score."""

    text: str = Field("", description="the prompt")
    negative_text: str = Field("", description="negative prompt; empty means the default of the mode")
    add_directional_text: bool = Field(
        False, description='append ", front view", ", side view" or ", back view" to the prompt'
    )
    guidance_weight: float = Field(100.0, ge=0, description="classifier-free guidance weight")
    score: Score = Field(
        "sds",
        description="the gradient's formula: sds, csd (Classifier Score Distillation), nfsd (Noise-Free "
        "Score Distillation), vsd (Variational Score Distillation, which also trains a LoRA of the prior) or "
        "x0 (MVDream's reconstruction loss, which has no weight w(t))",
    )
    x0_rescale: float = Field(
        0.5,
        ge=0,
        le=1,
        description="in x0, how far the contrast that the guidance adds is reduced: 0 not, 1 completely",
    )
    perp_neg: bool = Field(
        False,
        description="use the words of the other sides as negatives (Perp-Neg), which needs "
        "add_directional_text: against several faces on one object, for twice the denoiser's work",
    )
    csd_negative_weight: AnnealedNumber = Field(
        1.0,
        description="in csd, the weight of negative_text as a share of guidance_weight; [start, end] changes "
        "linearly over the first phase after the fit and then stays",
    )
    vsd_lora_rank: LoraRank = Field(4, description="in vsd, the rank of the LoRA")
    vsd_learning_rate: LearningRate = Field(1e-4, description="in vsd, of the LoRA's AdamW")
    noise: Literal["independent", "surface"] = Field(
        "independent",
        description="the noise in x_t: independent in every step and view, or fixed to the surface "
        "(Consistent Flow Distillation), which is meant for a time_step_schedule that falls",
    )
    low_memory: bool = Field(
        False,
        description="the prior computes one view (a prior of several views: one object) at a time: the same "
        "step in less memory and more time",
    )
    sd_model: str = Field(
        "stable-diffusion-2-1-base",
        min_length=1,
        description="the prior: a folder in diffusers layout, a single .safetensors checkpoint, a hub id, or "
        "stable-diffusion-2-1-base or stable-diffusion-v1-5, which are looked up in several places",
    )
    sd_model_weight: AnnealedNumber = Field(
        1.0,
        description="with second_sd_model, the factor on the gradient of sd_model; [start, end] changes "
        "linearly over the first phase after the fit and then stays",
    )
    second_sd_model: str | None = Field(
        None,
        min_length=1,
        description="a second prior whose gradient is added, for example one of single views next to one of "
        "several views; named like sd_model, without lora",
    )
    second_sd_model_weight: AnnealedNumber = Field(
        1.0, description="the factor on the gradient of second_sd_model, a number or [start, end]"
    )
    control_model: str | None = Field(
        None,
        min_length=1,
        description="in appearance_modeling, a ControlNet for sd_model: a folder in diffusers layout or a "
        "hub id; null: none",
    )
    control: Literal["depth", "normal", "normal_bae"] = Field(
        "depth",
        description="the image of the mesh that control_model takes; normal has x to the right, normal_bae "
        "to the left, as ControlNet 1.1",
    )
    control_weight: AnnealedNumber = Field(
        1.0, description="the factor on the residuals of control_model, a number or [start, end]"
    )
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto", description="what the prior predicts; auto reads it from the model's files"
    )
    cpu_bfloat16: bool | None = Field(
        False,
        description="on a CPU the prior computes in bfloat16: less time and a rougher surface; null: only if "
        "the CPU has instructions for it (AVX512-BF16, AMX)",
    )
    lora: tuple[LoraEntry, ...] = Field(
        (),
        description="LoRA files to add to the prior; PATH:SCALE scales one, for example by 0.7",
        json_schema_extra={"allowed": 'a path or a list of paths, each optionally followed by ":SCALE"'},
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _perp_neg_has_view_words(self) -> "GuidanceConfig":
        if self.perp_neg and not self.add_directional_text:
            raise ValueError(
                "perp_neg is true and add_directional_text is false; perp_neg needs the view words, set "
                "add_directional_text to true"
            )
        return self

    @model_validator(mode="after")
    def _vsd_trains_one_prior(self) -> "GuidanceConfig":
        if self.score == "vsd" and self.second_sd_model is not None:
            raise ValueError(
                "score is vsd and second_sd_model is set; vsd trains a LoRA of one prior, so choose another "
                "score or set second_sd_model to null"
            )
        return self
