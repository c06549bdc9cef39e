"""Test the export of an asset in all formats at once."""

import pytest
from export_shapes import bumpy_ball

from render.mesh_io import write_asset
from render.texturing.uv import unwrap


@pytest.mark.parametrize("writer", ["write_glb", "write_obj"])
def test_unwritable_export_format_is_rejected(writer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    mesh = unwrap(bumpy_ball(1), "xatlas", (64, 64), 1)
    monkeypatch.setattr(write_asset, writer, full)
    with pytest.raises(OSError, match="no space left"):
        write_asset.write_asset(tmp_path, mesh)
