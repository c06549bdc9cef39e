"""An asset in all its formats at once."""

import pytest
from export_shapes import bumpy_ball

from render.export import asset
from render.export.uv import unwrap


@pytest.mark.parametrize("writer", ["write_glb", "write_obj"])
def test_a_format_that_cannot_be_written_is_told(writer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    mesh = unwrap(bumpy_ball(1), "xatlas", (64, 64), 1)
    monkeypatch.setattr(asset, writer, full)
    with pytest.raises(OSError, match="no space left"):
        asset.write_asset(tmp_path, mesh)
