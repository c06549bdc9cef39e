"""Test USD files with OpenUSD: mesh, material, and the error message if OpenUSD is not installed."""

import importlib.metadata
import importlib.util

import numpy as np
import pytest
import torch
from export_shapes import bumpy_ball, smooth_field

from render.mesh_io.write_obj import write_obj
from render.mesh_io.write_usd import require_usd, write_usd
from render.raster.reference import ReferenceRasteriser
from render.texturing.bake import bake
from render.texturing.uv import unwrap


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    pxr = pytest.importorskip("pxr", reason="USD needs usd-core, or kaolin 0.17 or newer")
    from pxr import Usd

    assert pxr
    folder = tmp_path_factory.mktemp("usd")
    mesh = unwrap(bumpy_ball(2), "xatlas", (64, 64), 2)
    textures = bake(mesh, smooth_field, (64, 64), ReferenceRasteriser())
    write_obj(folder, mesh, textures)
    write_usd(folder / "mesh.usd", mesh, textures)
    return Usd.Stage.Open(str(folder / "mesh.usd")), mesh, folder


def test_mesh_round_trips(stage):
    from pxr import UsdGeom

    opened, mesh, _ = stage
    assert UsdGeom.GetStageUpAxis(opened) == "Y"
    shape = UsdGeom.Mesh(opened.GetPrimAtPath("/World/mesh"))
    assert np.array_equal(shape.GetPointsAttr().Get(), mesh.v_pos.numpy())
    indices = np.array(shape.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    assert np.array_equal(indices, mesh.faces.numpy())
    assert set(shape.GetFaceVertexCountsAttr().Get()) == {3}
    assert shape.GetSubdivisionSchemeAttr().Get() == "none"
    st = UsdGeom.PrimvarsAPI(shape).GetPrimvar("st")
    corners = np.array(st.ComputeFlattened()).reshape(-1, 3, 2)
    expected = mesh.uv[mesh.uv_faces].numpy()
    assert np.allclose(corners[..., 0], expected[..., 0])
    assert np.allclose(corners[..., 1], 1 - expected[..., 1], atol=1e-6)


def test_the_material_reads_the_files_beside_it(stage):
    from pxr import UsdShade

    opened, _, folder = stage
    shape = opened.GetPrimAtPath("/World/mesh")
    material, _ = UsdShade.MaterialBindingAPI(shape).ComputeBoundMaterial()
    surface, _, _ = material.ComputeSurfaceSource()
    assert surface.GetIdAttr().Get() == "UsdPreviewSurface"
    files = {}
    for value in surface.GetInputs():
        source = UsdShade.Shader(value.GetConnectedSources()[0][0].source.GetPrim())
        path = source.GetInput("file").Get()
        files[value.GetBaseName()] = path.path
        assert (folder / path.path).is_file() and path.resolvedPath
        space = source.GetInput("sourceColorSpace").Get()
        assert space == ("sRGB" if value.GetBaseName() == "diffuseColor" else "raw")
    assert files == {
        "diffuseColor": "./texture_kd.png",
        "roughness": "./texture_roughness.png",
        "metallic": "./texture_metallic.png",
        "occlusion": "./texture_ks.png",
        "normal": "./texture_n.png",
    }


def test_usd_checker_reports_no_error(stage):
    from pxr import UsdValidation

    opened, _, _ = stage
    registry = UsdValidation.ValidationRegistry()
    validators = registry.GetOrLoadAllValidators()
    errors = UsdValidation.ValidationContext(validators).Validate(opened)
    assert len(validators) > 10
    assert [str(error.GetMessage()) for error in errors] == []


def test_a_shape_without_textures_is_grey(tmp_path):
    pytest.importorskip("pxr", reason="USD needs usd-core, or kaolin 0.17 or newer")
    from pxr import Usd, UsdShade

    write_usd(tmp_path / "mesh.usd", bumpy_ball(1))
    opened = Usd.Stage.Open(str(tmp_path / "mesh.usd"))
    surface = UsdShade.Shader(opened.GetPrimAtPath("/World/surface/preview"))
    assert surface.GetInput("roughness").Get() == 1 and surface.GetInput("metallic").Get() == 0
    assert torch.allclose(torch.tensor(list(surface.GetInput("diffuseColor").Get())), torch.tensor(0.5))


@pytest.mark.parametrize(("version", "word"), [(None, "usd-core"), ("0.1", "placeholder")])
def test_missing_package_error_names_the_fix(monkeypatch, version, word):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "version", installed)
    with pytest.raises(ValueError, match=f"export_usd.*{word}") as error:
        require_usd()
    assert "\n" not in str(error.value) and "kaolin 0.17" in str(error.value)
    assert ("placeholder" in str(error.value)) == (version == "0.1")
