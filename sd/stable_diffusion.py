"""Stable Diffusion 1.x and 2.x as a prior, from a local folder, a single file or a hub id.

Latent size, image size, scaling factor, schedule and prediction type are read from the model's config files.
Only the denoiser, the VAE encoder and the text encoder are loaded.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sd.conditions import NO_CONDITIONS, ViewConditions
from sd.control_net import check_control_net, controlled_noise_of, residuals_of
from sd.kernels.cuda_graphs import DifferentiableCUDAGraph, InferenceCUDAGraph
from sd.kernels.fused_blocks import fuse_encoder_blocks
from sd.kernels.fused_denoiser import call_denoiser, fuse_control_net_blocks, fuse_denoiser
from sd.kernels.select import choose_kernels
from sd.loading.hub import resolve_model
from sd.loading.lora import apply_lora
from sd.loading.weights import Parts, load_parts
from sd.multi_view import camera_matrices, join_views, stated_views, takes_cameras
from sd.prompts import find_category
from sd.unit_gradient import unit_gradient
from sd.vsd import LoraDenoiser, camera_numbers, share_weights

logger = logging.getLogger(__name__)

# The maximum fraction of the GPU's memory for the CUDA graphs of the encoder.
GRAPH_SHARE = 1 / 8


class StableDiffusion(nn.Module):
    """A frozen latent diffusion model that implements `sd.guidance.Prior`.

    views: the number of views of one object that are denoised together (sd/multi_view.py). It is 1 for a
    single-view model. takes_cameras: whether the denoiser needs the cameras of the views. control_net: a
    ControlNet whose residuals are added (sd/control_net.py), or None.
    """

    def __init__(
        self, parts: Parts, device: torch.device, bfloat16: bool = False, keep_trainable: bool = False
    ):
        """bfloat16: whether denoiser and VAE compute in bfloat16. keep_trainable: must be True if `make_lora`
        is called later.
        """
        super().__init__()
        unet, vae, text_encoder = parts.unet, parts.vae, parts.text_encoder
        _check_parts(unet.config, vae.config, text_encoder.config)
        self.views, self.takes_cameras = stated_views(unet.config), takes_cameras(unet.config)
        join_views(unet, self.views)
        self.categories = parts.categories
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
                # The method of nn.Module is called, because diffusers' own `to` would log an irrelevant
                # warning here.
                nn.Module.to(part, torch.bfloat16)
        # The network is in a tuple so that it is not registered as a submodule, because its weights are
        # already registered with self.unet.
        self._trainable = (share_weights(self.unet),) if keep_trainable else ()
        if device.type == "cuda":
            # Tensor cores are fastest with channels-last. With this layout, the eager denoiser of SD 2.1
            # takes 39 ms instead of 51 ms.
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
            kernels = choose_kernels(device)
            denoiser = fuse_denoiser(self.unet, kernels)
            fuse_encoder_blocks(self.vae.encoder, kernels)
        else:
            denoiser = self.unet
        # The network that computes the noise. It is in a tuple so that it is not registered as a submodule,
        # because its modules are already registered with self.unet.
        self._denoiser = (denoiser,)
        # The dtypes are stored, because diffusers' `dtype` iterates over all weights at each access, which
        # takes longer than a kernel.
        self._unet_dtype, self._vae_dtype = self.unet.dtype, self.vae.dtype
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self._control_net: nn.Module | None = None
        self._denoise = InferenceCUDAGraph(partial(noise_of, denoiser))
        self._moments = DifferentiableCUDAGraph(
            partial(moments_of, self.vae), max_graph_elements(vae, device)
        )

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
        """Load a local folder, a single file or a hub id, in fp16 on CUDA and fp32 or bf16 on the CPU.

        lora: files whose updates are added to the weights (sd/loading/lora.py). prediction: see `load_parts`.
        cpu_bfloat16: whether to use bf16 on the CPU. With None, bf16 is used if the CPU has bf16
        instructions. keep_trainable: see the constructor.

        Raises:
            FileNotFoundError: see `resolve_model`.
            ValueError: if a file is damaged, has the wrong format or does not match the other files.
        """
        parts = load_parts(resolve_model(name), device, prediction)
        apply_lora(parts.unet, parts.text_encoder, lora)
        bfloat16 = device.type == "cpu" and (
            has_bfloat16_instructions() if cpu_bfloat16 is None else cpu_bfloat16
        )
        if bfloat16:
            logger.info("prior: computing in bfloat16 (cpu_bfloat16 = false: float32, slower and smoother)")
        return cls(parts, device, bfloat16, keep_trainable)

    def attach_control_net(self, control_net: nn.Module) -> None:
        """Add the residuals of a `ControlNetModel` to the denoiser. The weights of the ControlNet are frozen.

        After this call, the conditions of `predict_noise` must contain a control image and its weight.

        Raises:
            ValueError: if the ControlNet does not fit this model.
        """
        check_control_net(control_net.config, self.unet.config, self.image_size // self.latent_size)
        control_net = control_net.requires_grad_(False).eval()
        join_views(control_net, self.views)
        nn.Module.to(control_net, self.device, self._unet_dtype)
        if self.device.type == "cuda":
            control_net.to(memory_format=torch.channels_last)
            fuse_control_net_blocks(control_net, choose_kernels(self.device))
        self._control_net = control_net
        self._denoise = InferenceCUDAGraph(partial(controlled_noise_of, *self._denoiser, control_net))

    @property
    def weight_bytes(self) -> int:
        """Return the memory of all weights that are currently loaded, in bytes."""
        return sum(parameter.nbytes for parameter in self.parameters())

    @property
    def alphas_cumprod(self) -> Float[Tensor, " T"]:
        """Return abar(t) in float32. This is a property because Python 3.12's protocol checks do not find
        buffers.
        """
        return self._abar

    @property
    def control_net(self) -> nn.Module | None:
        """Return the attached ControlNet. This is a property because Python 3.12's protocol checks do not
        find submodules.
        """
        return self._control_net

    def unknown_prompt_warning(self, text: str) -> str | None:
        """Return a warning if the prompt contains no category of this prior's training set, otherwise
        None.
        """
        if not self.categories or find_category(text, self.categories):
            return None
        return f"the prior was not trained on {text!r}; its categories are: {', '.join(self.categories)}"

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Float[Tensor, "N L D"]:
        """Return the text embeddings. Prompts are padded or truncated to the tokenizer's length. A truncation
        is logged as a warning.
        """
        if warning := truncation_warning(self.tokenizer, prompts):
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
        """Free the text encoder's memory. All prompts must be embedded before this call, because `embed`
        fails after it.
        """
        self.text_encoder = None

    def encode(
        self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C h w"]:
        """Return scaled samples of the VAE's posterior. The result is differentiable with respect to the
        images.

        images: in [−1, 1]. noise: the standard normal noise of the samples.
        """
        if self._vae_dtype == torch.float16:
            moments = unit_gradient(self._moments_of, images)
        else:
            moments = self._moments_of(images)
        mean, log_variance = moments.chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return (mean + deviation * noise) * self.scaling_factor

    def _moments_of(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C2 h w"]:
        """Return mean and log variance of the latents in float32, computed in the VAE's precision."""
        return self._moments(images.to(self._vae_dtype, memory_format=self._layout)).float()

    @torch.no_grad()
    def predict_noise(
        self,
        noisy: Float[Tensor, "N C h w"],
        timesteps: Int[Tensor, " N"],
        text: Float[Tensor, "N L D"],
        conditions: ViewConditions = NO_CONDITIONS,
    ) -> Float[Tensor, "N C h w"]:
        """Return the predicted noise e in x_t.

        If the model predicts v, e = sqrt(abar) v + sqrt(1 − abar) x_t.

        The `views` views of an object must be consecutive in the batch. conditions: the cameras and the
        control image that this model needs. If the batch consists of several copies
        (`ViewConditions.copies`), everything except the text is read from the first copy.
        """
        some = slice(len(noisy) // conditions.copies)
        given = noisy[some].to(self._unet_dtype, memory_format=self._layout)
        others = (tensor[some] if tensor.ndim else tensor for tensor in self._others_of(conditions))
        output = self._denoise(given, timesteps[some], text.to(self._unet_dtype), *others).float()
        return self._noise_from(output, noisy, timesteps)

    def _others_of(self, conditions: ViewConditions) -> tuple[Tensor, ...]:
        return self._control_of(conditions) + self._camera_of(conditions)

    def _camera_of(self, conditions: ViewConditions) -> tuple[Tensor, ...]:
        """Return a tuple with the denoiser's camera input, or () if the denoiser takes no cameras."""
        if not self.takes_cameras:
            return ()
        return (camera_matrices(conditions.world_to_clip).to(self._unet_dtype),)

    def _control_of(self, conditions: ViewConditions) -> tuple[Tensor, ...]:
        """Return a tuple with the control image and its weight, or () if there is no ControlNet."""
        if self.control_net is None:
            return ()
        image = conditions.control.to(self._unet_dtype, memory_format=self._layout)
        return image, conditions.control_weight

    def make_lora(self, rank: int, seed: int) -> LoraDenoiser:
        """Return a trainable denoiser that shares this prior's weights, without CUDA graphs and fused
        blocks.
        """
        assert self._trainable, "the prior was loaded without keep_trainable"
        return LoraDenoiser(share_weights(self._trainable[0]), rank, seed)

    def predict_lora_noise(
        self,
        lora: LoraDenoiser,
        noisy: Float[Tensor, "N C h w"],
        timesteps: Int[Tensor, " N"],
        text: Float[Tensor, "N L D"],
        conditions: ViewConditions,
    ) -> Float[Tensor, "N C h w"]:
        """Return the noise that the denoiser `lora` predicts. The result is differentiable with respect to
        the parameters of `lora`.

        The other arguments are those of `predict_noise`. conditions must contain the cameras.
        """
        given = noisy.to(self._unet_dtype, memory_format=self._layout)
        text, camera = text.to(self._unet_dtype), self._camera_of(conditions)
        residuals = None
        if self.control_net is not None:
            with torch.no_grad():
                control = self._control_of(conditions)
                residuals = residuals_of(self.control_net, given, timesteps, text, (*control, *camera))
        cameras = torch.cat([*camera, camera_numbers(conditions.world_to_clip)], dim=1)
        output = lora(given, timesteps, text, cameras, residuals).float()
        return self._noise_from(output, noisy, timesteps)

    def _noise_from(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "v_prediction":
            abar = self.alphas_cumprod[timesteps][:, None, None, None]
            output = abar.sqrt() * output + (1 - abar).sqrt() * noisy
        return output


def has_bfloat16_instructions() -> bool:
    """Return whether the CPU has bfloat16 instructions (AVX512-BF16 or AMX). Without them, fp32 is faster."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def max_graph_elements(vae: nn.Module, device: torch.device) -> int:
    """Return the maximum number of elements of an image batch for which the VAE uses CUDA graphs.

    The graphs need 16 bytes per pixel and per channel at full resolution (measured in half precision), and
    may use GRAPH_SHARE of the GPU's memory.
    """
    if device.type != "cuda":
        return 0
    memory = torch.cuda.get_device_properties(device).total_memory
    return int(3 * GRAPH_SHARE * memory / (16 * vae.config.block_out_channels[0]))


def moments_of(vae: nn.Module, images: Tensor) -> Tensor:
    """Return mean and log variance of the latents from the encoder of an `AutoencoderKL`."""
    return vae.quant_conv(vae.encoder(images))


def noise_of(
    denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor, camera: Tensor | None = None
) -> Tensor:
    """Return the output of a denoiser. See `call_denoiser`."""
    return call_denoiser(denoiser, noisy, timesteps, text, camera)


def truncation_warning(tokenizer, prompts: list[str]) -> str | None:
    """Return a warning if a prompt exceeds the tokenizer's maximum length, otherwise None."""
    most = tokenizer.model_max_length
    cut = {}
    for prompt in prompts:
        tokens = tokenizer(prompt, verbose=False).input_ids
        if len(tokens) > most:
            # The truncated prompt consists of the first most − 1 tokens and the end token. The last element
            # of `tokens` is also the end token and is not text that is lost.
            cut[prompt] = (len(tokens), tokenizer.decode(tokens[most - 1 : -1]).strip())
    if not cut:
        return None
    length, lost = next(iter(cut.values()))
    return (
        f"{len(cut)} of {len(set(prompts))} prompts (views and negative_text count) are longer than the "
        f"{most} tokens that the prior reads; the first has {length} tokens, and its end is ignored: {lost!r}"
    )


def _check_parts(unet, vae, text_encoder) -> None:
    """Raise ValueError if the configs of the parts are incompatible."""
    refusal = "a text-to-image Stable Diffusion 1.x or 2.x is needed, not an inpainting, depth or XL model"
    if unet.in_channels != vae.latent_channels:
        raise ValueError(
            f"sd_model: the unet has {unet.in_channels} input channels and the vae {vae.latent_channels} "
            f"latent channels: {refusal}"
        )
    if unet.cross_attention_dim != text_encoder.hidden_size:
        raise ValueError(
            f"sd_model: the unet reads text of width {unet.cross_attention_dim} and the text encoder gives "
            f"{text_encoder.hidden_size}: {refusal}"
        )
