"""Any Stable Diffusion 1.x / 2.x as a prior: a local folder, a single file or a hub id.

Latent size, image size, scaling factor, schedule and prediction type come from the model's own config files.
Only the denoiser, the VAE encoder and the text encoder are kept.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sd.kernels.cuda_graphs import DifferentiableCUDAGraph, Graphed
from sd.kernels.fused_blocks import speed_up_denoiser, speed_up_encoder
from sd.kernels.select import choose_kernels
from sd.loading.hub import resolve_model
from sd.loading.lora import apply_lora
from sd.loading.weights import Parts, load_parts
from sd.prompts import find_category
from sd.unit_gradient import unit_gradient
from sd.vsd import LoraDenoiser, share_weights

logger = logging.getLogger(__name__)

# Of the GPU's memory, what the encoder's graphs may keep for good.
GRAPH_SHARE = 1 / 8


class StableDiffusion(nn.Module):
    """A frozen latent diffusion model; see `sd.guidance.Prior` for the contract."""

    def __init__(
        self, parts: Parts, device: torch.device, bfloat16: bool = False, keep_trainable: bool = False
    ):
        """bfloat16: denoiser and VAE compute in it. keep_trainable: `make_lora` may be called."""
        super().__init__()
        unet, vae, text_encoder = parts.unet, parts.vae, parts.text_encoder
        _check_parts(unet.config, vae.config, text_encoder.config)
        self.kinds = parts.kinds
        self.unet = unet.requires_grad_(False).eval()
        self.vae = vae.requires_grad_(False).eval()
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.tokenizer = parts.tokenizer
        self.device = device
        self.scaling_factor = vae.config.scaling_factor
        self.latent_channels = unet.config.in_channels
        self.latent_size = unet.config.sample_size
        self.image_size = self.latent_size * 2 ** (len(vae.config.block_out_channels) - 1)
        self.prediction_type = parts.schedule.prediction_type
        self.register_buffer("_abar", parts.schedule.alphas_cumprod, persistent=False)
        self.to(device)
        if bfloat16:
            for part in (self.unet, self.vae):
                # That of diffusers warns of parts to be left as they are, and names none.
                nn.Module.to(part, torch.bfloat16)
        # In a tuple, so that it is no submodule: its weights are those of self.unet.
        self._trainable = (share_weights(self.unet),) if keep_trainable else ()
        if device.type == "cuda":
            # What tensor cores read fastest: an eager denoiser of SD 2.1's size takes 39 ms instead of 51.
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
            kernels = choose_kernels(device)
            speed_up_denoiser(self.unet, kernels)
            speed_up_encoder(self.vae.encoder, kernels)
        # Asked once: a model of diffusers goes through all its weights to answer, longer than a kernel runs.
        self._unet_dtype, self._vae_dtype = self.unet.dtype, self.vae.dtype
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self._denoise = Graphed(partial(noise_of, self.unet))
        self._moments = DifferentiableCUDAGraph(partial(moments_of, self.vae), most_elements(vae, device))

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: torch.device,
        lora: Sequence[str] = (),
        prediction: str = "auto",
        cpu_bfloat16: bool | None = False,
        keep_trainable: bool = False,
    ) -> "StableDiffusion":
        """Load a local folder, a single file or a hub id; fp16 on CUDA, fp32 or bf16 on the CPU.

        lora: files whose changes are added to the weights (sd/loading/lora.py). prediction: see `load_parts`.
        cpu_bfloat16: bf16 on the CPU; None is where it has instructions for that.
        keep_trainable: see the constructor.

        Raises:
            FileNotFoundError: see `resolve_model`.
            ValueError: a file cannot be read as what it should be, or does not fit the others.
        """
        parts = load_parts(resolve_model(name), device, prediction)
        apply_lora(parts.unet, parts.text_encoder, lora)
        bfloat16 = device.type == "cpu" and (
            has_bfloat16_instructions() if cpu_bfloat16 is None else cpu_bfloat16
        )
        if bfloat16:
            logger.info("prior: in bfloat16 on cpu; cpu_bfloat16 false is float32, slower and finer")
        return cls(parts, device, bfloat16, keep_trainable)

    @property
    def alphas_cumprod(self) -> Float[Tensor, " T"]:
        """In float32. A property: Python 3.12's protocols do not see a module's buffers."""
        return self._abar

    def unknown_prompt_warning(self, text: str) -> str | None:
        """What to tell the user about a prompt that names nothing this prior knows."""
        if not self.kinds or find_category(text, self.kinds):
            return None
        return f"the prior does not know {text!r}; it was trained on: {', '.join(self.kinds)}"

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Float[Tensor, "N L D"]:
        """Text embeddings, truncated (with a warning) and padded to the tokenizer's length."""
        if warning := cut_off(self.tokenizer, prompts):
            logger.warning("%s", warning)
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state.float()

    def free_text_encoder(self) -> None:
        """Free the text encoder's memory after all prompts are embedded; `embed` fails afterwards."""
        self.text_encoder = None

    def encode(
        self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C h w"]:
        """Sampled, scaled latents of images in [−1, 1]; differentiable with respect to the images."""
        if self._vae_dtype == torch.float16:
            moments = unit_gradient(self._moments_of, images)
        else:
            moments = self._moments_of(images)
        mean, log_variance = moments.chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return (mean + deviation * noise) * self.scaling_factor

    def _moments_of(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C2 h w"]:
        """Mean and log variance in float32, computed in the VAE's own precision."""
        return self._moments(images.to(self._vae_dtype, memory_format=self._layout)).float()

    @torch.no_grad()
    def predict_noise(
        self, noisy: Float[Tensor, "N C h w"], timesteps: Int[Tensor, " N"], text: Float[Tensor, "N L D"]
    ) -> Float[Tensor, "N C h w"]:
        """The noise in x_t; where the model predicts v, e = sqrt(abar) v + sqrt(1 − abar) x_t."""
        given = noisy.to(self._unet_dtype, memory_format=self._layout)
        output = self._denoise(given, timesteps, text.to(self._unet_dtype)).float()
        return self._noise_from(output, noisy, timesteps)

    def make_lora(self, rank: int, seed: int) -> LoraDenoiser:
        """A trainable denoiser over this prior's weights, without CUDA graphs and fused blocks."""
        assert self._trainable, "the prior was loaded without keep_trainable"
        return LoraDenoiser(share_weights(self._trainable[0]), rank, seed)

    def predict_lora_noise(
        self,
        lora: LoraDenoiser,
        noisy: Float[Tensor, "N C h w"],
        timesteps: Int[Tensor, " N"],
        text: Float[Tensor, "N L D"],
        camera: Float[Tensor, "N 16"],
    ) -> Float[Tensor, "N C h w"]:
        """As `predict_noise`, differentiable with respect to what `lora` trains."""
        given = noisy.to(self._unet_dtype, memory_format=self._layout)
        output = lora(given, timesteps, text.to(self._unet_dtype), camera).float()
        return self._noise_from(output, noisy, timesteps)

    def _noise_from(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "v_prediction":
            abar = self.alphas_cumprod[timesteps][:, None, None, None]
            output = abar.sqrt() * output + (1 - abar).sqrt() * noisy
        return output


def has_bfloat16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 itself, by AVX512-BF16 or AMX; others take longer for it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def most_elements(vae: nn.Module, device: torch.device) -> int:
    """The largest batch of images, in numbers, whose encoding is kept as graphs.

    What they hold was measured, in half precision: 16 bytes a pixel for each channel at full resolution.
    """
    if device.type != "cuda":
        return 0
    memory = torch.cuda.get_device_properties(device).total_memory
    return int(3 * GRAPH_SHARE * memory / (16 * vae.config.block_out_channels[0]))


def moments_of(vae: nn.Module, images: Tensor) -> Tensor:
    """Mean and log variance of the latents, by the encoder of an `AutoencoderKL`."""
    return vae.quant_conv(vae.encoder(images))


def noise_of(unet: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """What a denoiser of diffusers answers."""
    return unet(noisy, timesteps, encoder_hidden_states=text, return_dict=False)[0]


def cut_off(tokenizer, prompts: list[str]) -> str | None:
    """What to tell the user where prompts are longer than the prior reads; None where all fit."""
    most = tokenizer.model_max_length
    cut = {}
    for prompt in prompts:
        tokens = tokenizer(prompt, verbose=False).input_ids
        if len(tokens) > most:
            # The last token marks the end; the cut text gets one of its own.
            cut[prompt] = (len(tokens), tokenizer.decode(tokens[most - 1 : -1]).strip())
    if not cut:
        return None
    length, lost = next(iter(cut.values()))
    return (
        f"{len(cut)} of {len(set(prompts))} prompts (views and negative_text count) are longer than the "
        f"{most} tokens that the prior reads; the first has {length}, and its end is not seen: {lost!r}"
    )


def _check_parts(unet, vae, text_encoder) -> None:
    """Refuse, by their configs, parts that do not work together as they are used here."""
    refusal = "a text-to-image Stable Diffusion 1.x or 2.x is needed, no inpainting, depth or XL model"
    if unet.in_channels != vae.latent_channels:
        raise ValueError(
            f"sd_model: the unet takes {unet.in_channels} channels and the vae gives {vae.latent_channels}: "
            + refusal
        )
    if unet.cross_attention_dim != text_encoder.hidden_size:
        raise ValueError(
            f"sd_model: the unet reads text of width {unet.cross_attention_dim} and the text encoder gives "
            f"{text_encoder.hidden_size}: {refusal}"
        )
