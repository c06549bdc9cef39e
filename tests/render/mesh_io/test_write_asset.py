"""Test the export of an asset in all formats at once."""

import pytest
import torch
from export_shapes import bumpy_ball

from render.mesh_io import write_asset
from render.texturing.uv import unwrap


@pytest.mark.parametrize("writer", ["glb_file", "obj_files", "write_bytes"])
def test_unwritable_export_format_is_rejected(writer, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    mesh = unwrap(bumpy_ball(1), "xatlas", (64, 64), 1)
    monkeypatch.setattr(write_asset, writer, full)
    with pytest.raises(OSError, match="no space left"):
        write_asset.write_asset(tmp_path, mesh)


def test_all_formats_contain_the_same_pictures(tmp_path):
    """The base colour and the normal map in the GLB are the files of the OBJ, byte for byte."""
    mesh = unwrap(bumpy_ball(1), "xatlas", (64, 64), 1)
    generator = torch.Generator().manual_seed(0)
    kd, ks, normal = (torch.rand(16, 16, 3, generator=generator) for _ in range(3))
    write_asset.write_asset(tmp_path, mesh, {"kd": kd, "ks": ks, "normal": normal})
    glb = (tmp_path / "mesh.glb").read_bytes()
    for file in ("texture_kd.png", "texture_n.png"):
        assert glb.count((tmp_path / file).read_bytes()) == 1
    assert (tmp_path / "texture_ks.png").read_bytes() not in glb


def test_unknown_texture_is_rejected(tmp_path):
    with pytest.raises(AssertionError, match="unknown texture among"):
        write_asset.write_asset(tmp_path, bumpy_ball(1), {"kd_map": torch.rand(4, 4, 3)})
