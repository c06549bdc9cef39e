"""Read the metallic-roughness materials of a glTF file as `SurfaceMaterial`."""

import base64
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from render.image_io.texture import decode_texture
from render.mesh_io.gltf_buffers import Buffers
from render.mesh_io.surface_material import SurfaceMaterial, White, Wrap
from render.read_errors import FileError

logger = logging.getLogger(__name__)

WRAPS: Mapping[int, Wrap] = {10497: "repeat", 33071: "clamp", 33648: "mirror"}
KEPT_SETTINGS = ("alphaMode", "alphaCutoff", "doubleSided", "emissiveFactor")
BASIS = "it is in Basis Universal format (KHR_texture_basisu), which is not read; convert it to PNG"


class GltfMaterials:
    """A reader of the materials of a parsed file. Each picture is decoded only once, when a material needs
    the picture for the first time.
    """

    def __init__(self, tree: dict, buffers: Buffers, path: Path):
        self.tree, self.buffers, self.path = tree, buffers, path
        self.picture = cache(self._picture)

    def __len__(self) -> int:
        return len(self.tree.get("materials", []))

    def read(self, number: int, pictures: bool = True) -> SurfaceMaterial:
        """Return the material with the index `number`. If `pictures` is False, only name and settings are
        read.

        Raises:
            FileError: if a texture cannot be read. The message contains the material and the texture.
        """
        entry = self.tree["materials"][number]
        surface = entry.get("pbrMetallicRoughness", {})
        name = str(entry.get("name", f"material {number}"))
        settings = {key: entry[key] for key in KEPT_SETTINGS if key in entry}
        if not pictures:
            return SurfaceMaterial(name, settings=settings)
        base = surface.get("baseColorTexture")
        kd = self._texture(name, "base colour", base, base)
        packed = self._texture(name, "roughness and metallic", surface.get("metallicRoughnessTexture"), base)
        occlusion = self._texture(name, "occlusion", entry.get("occlusionTexture"), base)
        normal = self._texture(name, "normal", entry.get("normalTexture"), base)
        self._log_unused(name, entry)
        return SurfaceMaterial(
            name,
            kd=kd,
            kd_factor=_four(surface.get("baseColorFactor", White)),
            roughness_metallic=None if packed is None else np.ascontiguousarray(packed[..., 1:3]),
            roughness=float(surface.get("roughnessFactor", 1)),
            metallic=float(surface.get("metallicFactor", 1)),
            occlusion=None if occlusion is None else np.ascontiguousarray(occlusion[..., :1]),
            occlusion_strength=float(entry.get("occlusionTexture", {}).get("strength", 1)),
            normal=None if normal is None else np.ascontiguousarray(normal[..., :3]),
            normal_scale=float(entry.get("normalTexture", {}).get("scale", 1)),
            wrap=self._wrap(surface, entry),
            settings=settings,
        )

    def files(self) -> list[Path]:
        """Return the picture files that the document refers to."""
        uris = [image.get("uri", "data:") for image in self.tree.get("images", [])]
        return [self.buffers.file(uri) for uri in uris if not uri.startswith("data:")]

    def _texture(
        self, name: str, what: str, reference: dict | None, base: dict | None
    ) -> UInt8[np.ndarray, "H W C"] | None:
        """Return the picture of a texture, or None if the texture is missing or uses other uv than the base
        colour.
        """
        if reference is None:
            return None
        if _coordinates(reference) != _coordinates(base or {}):
            logger.warning(
                "mesh file %s: material %s: the %s texture has other coordinates than the base colour; it is "
                "not used",
                self.path,
                name,
                what,
            )
            return None
        source = self._source(reference)
        try:
            return self.picture(source)
        except FileError as error:
            raise FileError(f"material {name}: {what} texture (image {source}): {error}") from None

    def _source(self, reference: dict) -> int:
        texture = self.tree["textures"][reference["index"]]
        extensions = texture.get("extensions", {})
        if "source" in texture:
            return texture["source"]
        if "KHR_texture_basisu" in extensions:
            return extensions["KHR_texture_basisu"]["source"]
        return extensions["EXT_texture_webp"]["source"]

    def _picture(self, number: int) -> UInt8[np.ndarray, "H W C"]:
        entry = self.tree["images"][number]
        if entry.get("mimeType") == "image/ktx2" or str(entry.get("uri", "")).endswith(".ktx2"):
            raise FileError(BASIS)
        if "bufferView" in entry:
            content = self.buffers.view(entry["bufferView"])
        elif entry["uri"].startswith("data:"):
            content = base64.b64decode(entry["uri"].partition(",")[2])
        else:
            content = self.buffers.file(entry["uri"]).read_bytes()
        return decode_texture(content)

    def _wrap(self, surface: dict, entry: dict) -> tuple[Wrap, Wrap]:
        """Return the wrap modes of the base colour texture.

        If the material has no base colour texture, the wrap modes of the first existing texture of these are
        used: metallic-roughness, normal, occlusion.
        """
        places = (
            surface.get("baseColorTexture"),
            surface.get("metallicRoughnessTexture"),
            entry.get("normalTexture"),
            entry.get("occlusionTexture"),
        )
        reference = next((place for place in places if place is not None), None)
        if reference is None or "sampler" not in self.tree["textures"][reference["index"]]:
            return "repeat", "repeat"
        sampler = self.tree["samplers"][self.tree["textures"][reference["index"]]["sampler"]]
        return WRAPS[sampler.get("wrapS", 10497)], WRAPS[sampler.get("wrapT", 10497)]

    def _log_unused(self, name: str, entry: dict) -> None:
        unused = sorted(entry.get("extensions", {}))
        unused += ["emissiveTexture"] * ("emissiveTexture" in entry)
        if unused:
            properties = ", ".join(unused)
            logger.warning(
                "mesh file %s: material %s: %s is not used and not exported", self.path, name, properties
            )


def _coordinates(reference: Mapping[str, Any]) -> tuple:
    """Return the coordinate set and the coordinate transform of a texture."""
    change = reference.get("extensions", {}).get("KHR_texture_transform", {})
    turned = [change.get("rotation", 0.0), *change.get("scale", (1, 1)), *change.get("offset", (0, 0))]
    return change.get("texCoord", reference.get("texCoord", 0)), tuple(turned)


def _four(values: list[float]) -> tuple[float, float, float, float]:
    if len(values) != 4:
        raise FileError(f"a baseColorFactor has {len(values)} numbers, 4 are needed")
    return tuple(float(value) for value in values)
