"""The noise schedule abar(t) of a model. The model's files name the diffusers scheduler class that defines
the schedule.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# The keys that change abar(t) or the prediction type. They are checked, because a scheduler class ignores
# keys that it does not support.
SCHEDULE_KEYS = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
    "use_flow_sigmas",
)
# If abar is below this value, x_t is equal to the noise in float32, so the prediction type cannot be epsilon.
ZERO_ABAR = 1e-7
MOST_TIMESTEPS = 100_000
DEFAULT_CLASS = "DDPMScheduler"


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule and the prediction type of a model.

    alphas_cumprod: abar in float32 for T training timesteps. prediction_type: "epsilon" or "v_prediction".
    """

    alphas_cumprod: Float[Tensor, " T"]
    prediction_type: str

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)


def load_noise_schedule(settings: Mapping[str, object], prediction: str | None = None) -> NoiseSchedule:
    """Return the schedule that scheduler_config.json defines.

    settings: the content of the file. prediction: replaces the file's prediction_type if it is not None.

    Raises:
        ValueError: if the scheduler's class or a key is not supported. The message contains key and value.
    """
    name = settings.get("_class_name", DEFAULT_CLASS)
    scheduler_class = _scheduler_class(name)
    if settings.get("use_flow_sigmas"):
        raise _unsupported("use_flow_sigmas", True, "flow matching is not supported")
    accepted = inspect.signature(scheduler_class.__init__).parameters
    values = {key: value for key, value in settings.items() if not key.startswith("_")}
    defaults = inspect.signature(_scheduler_class(DEFAULT_CLASS).__init__).parameters
    for key in SCHEDULE_KEYS:
        if key in values and key not in accepted:
            default = defaults[key].default if key in defaults else None
            if values[key] not in (None, False, default):
                raise _unsupported(key, values[key], f"{name} of diffusers has no such setting")
    steps = values.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 0 < steps <= MOST_TIMESTEPS:
        raise ValueError(
            f"sd_model: scheduler: num_train_timesteps = {steps!r}; allowed is an integer from 1 to "
            f"{MOST_TIMESTEPS}"
        )
    known = {key: value for key, value in values.items() if key in accepted}
    if prediction and "prediction_type" in accepted:
        known["prediction_type"] = prediction
    scheduler = scheduler_class(**known)
    predicted = prediction or getattr(scheduler.config, "prediction_type", "epsilon")
    if predicted not in ("epsilon", "v_prediction"):
        raise _unsupported("prediction_type", predicted, "epsilon or v_prediction is supported")
    abar = torch.as_tensor(scheduler.alphas_cumprod).detach().float().cpu()
    if abar.ndim != 1 or not ((abar >= 0) & (abar <= 1)).all():
        raise _unsupported("_class_name", name, "its alphas_cumprod are not numbers in [0, 1]")
    if predicted == "epsilon" and abar.min() < ZERO_ABAR:
        key = "rescale_betas_zero_snr" if values.get("rescale_betas_zero_snr") else "trained_betas"
        raise _unsupported(
            key, values.get(key), "epsilon cannot be predicted at abar = 0; prediction_type v_prediction can"
        )
    return NoiseSchedule(abar, predicted)


def _scheduler_class(name: object) -> type:
    import diffusers

    scheduler = getattr(diffusers, str(name), None) if str(name).endswith("Scheduler") else None
    if scheduler is None:
        raise _unsupported("_class_name", name, f"diffusers {diffusers.__version__} has no such scheduler")
    if "beta_schedule" not in inspect.signature(scheduler.__init__).parameters:
        raise _unsupported("_class_name", name, "only schedulers with betas are supported, not flow matching")
    return scheduler


def _unsupported(key: str, value: object, reason: str) -> ValueError:
    return ValueError(
        f"sd_model: scheduler_config.json: {key} = {str(value)[:80]!r} is not supported: {reason}"
    )
