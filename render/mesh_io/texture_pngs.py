"""The textures of a painted mesh as PNG files in memory, which the writers of all formats share."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from render.image_io.image import encode_normal, png_bytes
from render.shade.brdf import linear_to_srgb

Textures = Mapping[str, Float[Tensor, "H W 3"]]

# Functions from a texture to a picture, by the name of the texture and the name of the picture.
PICTURES: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "kd": {"kd": linear_to_srgb},
    "ks": {
        "ks": lambda ks: ks,
        "roughness": lambda ks: ks[..., 1:2],
        "metallic": lambda ks: ks[..., 2:3],
        # In glTF, an occlusion of 1 means unoccluded.
        "gltf_ks": lambda ks: torch.cat([1 - ks[..., :1], ks[..., 1:]], -1),
    },
    "normal": {"normal": encode_normal},
}


class TexturePngs:
    """The pictures of textures as PNG files. They are encoded in threads, each picture once.

    textures: a dict with the optional keys kd, ks and normal. kd is the linear RGB albedo, and its picture is
    in sRGB. ks is (occlusion, roughness, metallic). It has the picture ks, two grey pictures (roughness and
    metallic), and gltf_ks with 1 − occlusion. normal is in tangent space with components in [−1,1], and its
    picture is n · 0.5 + 0.5.
    """

    def __init__(self, textures: Textures | None) -> None:
        textures = dict(textures or {})
        assert textures.keys() <= PICTURES.keys(), f"unknown texture among {sorted(textures)}"
        self.names = frozenset(textures)
        pool = ThreadPoolExecutor(thread_name_prefix="png")
        self._files: dict[str, Future[bytes]] = {
            picture: pool.submit(_encode, convert, texture)
            for name, texture in textures.items()
            for picture, convert in PICTURES[name].items()
        }
        # The threads end after the last picture.
        pool.shutdown(wait=False)

    def __contains__(self, picture: str) -> bool:
        return picture in self._files

    def __getitem__(self, picture: str) -> bytes:
        """Return the PNG file of a picture. Wait until it is encoded."""
        return self._files[picture].result()


def _encode(convert: Callable[[Tensor], Tensor], texture: Tensor) -> bytes:
    return png_bytes(convert(texture))
