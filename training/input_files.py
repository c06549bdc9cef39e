"""The files that a run reads, and fingerprints of their content.

The fingerprints are stored in every checkpoint. A run cannot be resumed if the content of its files has
changed.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from configs.errors import ConfigError
from configs.schema import Config
from render.mesh_io.load_materials import appearance_files
from render.shade.light import resolve_map
from sd.loading.hub import CATEGORIES_FILE, COMPONENTS, resolve_model
from sd.loading.lora import parse_lora
from training.file_hash import sha256_of_file

# In files larger than FULL_BYTES, only SAMPLES samples of SAMPLE_BYTES each are hashed, because a full
# SHA-256 takes about a second per gigabyte.
FULL_BYTES, SAMPLE_BYTES, SAMPLES = 256 << 20, 1 << 20, 16
# Key of the fingerprint of a mesh file together with its pictures, material libraries and buffers.
TEXTURES = "the textures of base_mesh"


class InputFiles:
    """The fingerprints of a run's input files as a dict from config key to fingerprint.

    Each fingerprint is computed when its file is read. hashes: whether fingerprints are computed; true only
    on rank 0, because the other ranks do not save or compare them. expected: the fingerprints in the
    checkpoint from which the run resumes; empty for a new run.
    """

    def __init__(self, hashes: bool = True) -> None:
        self.hashes = hashes
        self.fingerprints: dict[str, str] = {}
        self.expected: Mapping[str, str] = {}
        self.out_dir = ""

    @contextmanager
    def reading(self, key: str, *paths: Path | str) -> Iterator[None]:
        """Hash the files of a config key in a thread during the block that reads them, and check for changes.

        Without paths, only the block is run. Errors of the block are passed on unchanged, because their
        messages already contain the file (render/read_errors.py).

        Raises:
            ValueError: if the size or the modification time of a file changed while it was read.
            ConfigError: if the content differs from the fingerprint in the checkpoint.
        """
        if not paths or not self.hashes:
            yield
            return
        files = _files(paths)
        before = _sizes_and_times(files)
        with ThreadPoolExecutor(1, thread_name_prefix="fingerprint") as pool:
            digest = pool.submit(fingerprint, paths)
            yield
        if _sizes_and_times(files) != before:
            names = ", ".join(map(str, paths))
            raise ValueError(f"{key} = {names}: a file changed while it was read; run the command again")
        self.fingerprints[key] = digest.result()
        self.check()

    def expect(self, recorded: Mapping[str, str], out_dir: str) -> None:
        """Compare the inputs read so far with the fingerprints of a checkpoint.

        Inputs that are read later are compared when they are read.
        """
        self.expected, self.out_dir = recorded, out_dir
        self.check()

    def check(self) -> None:
        """Raise ConfigError if the content of an input differs from its fingerprint in the checkpoint."""
        for key, value in self.fingerprints.items():
            if self.expected.get(key, value) != value:
                raise ConfigError(
                    f"out_dir = {self.out_dir!r}: the run in it has read a different {key}; restore that "
                    "file, or choose another out_dir"
                )


def _files(paths: Sequence[Path | str]) -> list[Path]:
    """Return the paths, with each folder replaced by the model files in it."""
    return [file for path in map(Path, paths) for file in (_model_files(path) if path.is_dir() else [path])]


def _sizes_and_times(files: Sequence[Path]) -> list[tuple[int, int]]:
    return [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def fingerprint(paths: Sequence[Path | str]) -> str:
    """Return one SHA-256 over the contents of all `paths`, in the order of `paths`.

    For a folder, only its model files are hashed, sorted by path.

    In files larger than FULL_BYTES, only the size and SAMPLES evenly spaced parts are hashed. The first part
    is the start of the file, and the last part is its end.
    """
    total = hashlib.sha256()
    for path in map(Path, paths):
        for file in _model_files(path) if path.is_dir() else [path]:
            name = str(file.relative_to(path)) if path.is_dir() else ""
            total.update(f"{name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
            _update(total, file)
    return total.hexdigest()


def _update(total: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    if size <= FULL_BYTES:
        total.update(bytes.fromhex(sha256_of_file(path)))
        return
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            total.update(file.read(SAMPLE_BYTES))


def _model_files(folder: Path) -> list[Path]:
    """Return the files of a model in diffusers layout that the program reads, sorted."""
    parts = [folder / part for part in COMPONENTS]
    files = [file for part in parts if part.is_dir() for file in part.iterdir() if file.is_file()]
    return sorted([*files, *(file for file in [folder / CATEGORIES_FILE] if file.is_file())])


def input_paths(config: Config) -> dict[str, list[Path]]:
    """Return a dict from config key to the input files that the config's mode reads, without models."""
    found: dict[str, list[Path]] = {}
    traits = config.run.traits
    if config.run.base_mesh is not None and config.reads_base_mesh:
        found["base_mesh"] = [Path(config.run.base_mesh)]
    if traits.paints_base_mesh and config.textures.used and os.path.isfile(config.run.base_mesh):
        mesh = Path(config.run.base_mesh)
        found[TEXTURES] = [mesh, *appearance_files(mesh)]
        if config.textures.mask_file is not None:
            found["paint_mask"] = [Path(config.textures.mask_file)]
    if config.geometry.tet_grid_file is not None and not (
        traits.paints_base_mesh or config.surface.keeps_faces
    ):
        found["tet_grid_file"] = [Path(config.geometry.tet_grid_file)]
    if config.light.envmap is not None and traits.paints_base_mesh:
        found["envmap"] = [Path(resolve_map(config.light.envmap))]
    return found


def model_paths(config: Config, key: str = "sd_model") -> list[Path]:
    """Return the file or folder of the prior in the config key `key`, and for sd_model also the LoRA files.

    The prior is downloaded if necessary.
    """
    guidance = config.guidance
    lora = guidance.lora if key == "sd_model" else ()
    return [Path(resolve_model(getattr(guidance, key))), *(parse_lora(entry)[0] for entry in lora)]


def control_model(config: Config) -> str | None:
    """Return the ControlNet that the config's mode uses, or None if there is none."""
    return config.guidance.control_model if config.run.traits.paints_base_mesh else None


def fingerprint_inputs(config: Config) -> dict[str, str]:
    """Compute the current fingerprints of the input files by config key.

    Keys with missing files are omitted.
    """
    found = {}
    for key, paths in input_paths(config).items():
        with suppress(OSError):
            found[f"content of {key}"] = fingerprint(paths)
    return found
