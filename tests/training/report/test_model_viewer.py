"""Test models in the page: the embedded data, and models that exceed the size limit."""

import os
import zlib

import pytest
import torch

from render.image_io.hdr import read_latlong, write_hdr
from render.mesh_io.write_glb import pack_glb
from training.report import model_viewer


def test_embed_returns_none_for_models_above_the_limit(monkeypatch):
    most = 1000
    # The limit applies to the compressed size: zeros can be compressed below the limit, but random bytes
    # cannot.
    assert zlib.decompress(model_viewer._deflated(bytes(model_viewer.FAR * most), most)) == bytes(
        model_viewer.FAR * most
    )
    assert model_viewer._deflated(os.urandom(2 * most), most) is None

    def tried(*_):
        raise AssertionError("that takes seconds")

    monkeypatch.setattr(model_viewer.zlib, "compress", tried)
    assert model_viewer._deflated(bytes(model_viewer.FAR * most + 1), most) is None
    with pytest.raises(AssertionError):
        model_viewer._deflated(bytes(model_viewer.FAR * most), most)


def test_pictures_above_the_limit_are_not_compressed_again(tmp_path, monkeypatch):
    """The pictures of a GLB are compressed already, so a lighter copy is made at once."""
    pictures = os.urandom(2000)
    document = {
        "asset": {"version": "2.0"},
        "images": [{"bufferView": 1}, {"uri": "data:,"}],
        "bufferViews": [{"byteLength": 1000}, {"byteLength": 1000}],
    }
    path = tmp_path / "mesh.glb"
    path.write_bytes(pack_glb(document, pictures))
    tried = []
    monkeypatch.setattr(model_viewer, "_deflated", lambda content, most: tried.append(most))
    for limit, count in ((1000, 1), (999, 0)):
        monkeypatch.setattr(model_viewer, "AS_IT_IS", limit)
        model_viewer._embed.cache_clear()
        tried.clear()
        assert model_viewer.embed(path).content is None and len(tried) == count


def test_the_environment_is_scaled_and_turned_for_the_viewer(tmp_path):
    """+x is at three quarters of the width of our map, and at the centre of the viewer's map.

    The viewer's equirectangular mapping is u = atan2(z, x) / 2 pi + 1/2.
    """
    pixels = torch.zeros(64, 128, 3)
    pixels[:, 94:98, 0] = 2.0
    write_hdr(tmp_path / "map.hdr", pixels)
    content = model_viewer.environment_map(tmp_path / "map.hdr", 0, 0.5)
    (tmp_path / "turned.hdr").write_bytes(content)
    turned = read_latlong(tmp_path / "turned.hdr")
    assert turned.shape == (*model_viewer.MAP_SIZE, 3)
    assert turned[:, 124:132, 0].mean() == pytest.approx(1.0, rel=0.01) and turned[:, :120].max() == 0


def test_a_model_that_needs_a_download_is_not_embedded(tmp_path):
    document = {"asset": {"version": "2.0"}, "images": [{"uri": "data:image/png;base64,"}]}
    path = tmp_path / "mesh.glb"
    for change, shown in (
        ({}, True),
        ({"images": [{"uri": "beside.png"}]}, False),
        ({"extensionsUsed": ["KHR_texture_basisu"]}, False),
        ({"extensionsUsed": ["KHR_materials_clearcoat"]}, True),
    ):
        path.write_bytes(pack_glb({**document, **change}, b""))
        embedded = model_viewer.embed(path)
        assert (embedded.content is not None) is shown
        assert ("would have to download" in embedded.remark) is not shown


def test_a_large_model_of_another_program_has_no_lighter_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("training.report.model_viewer.AS_IT_IS", 0)
    (tmp_path / "mesh.glb").write_bytes(pack_glb({"asset": {"version": "2.0"}}, b""))
    assert model_viewer.embed(tmp_path / "mesh.glb").remark.startswith("The model is too large to show")
