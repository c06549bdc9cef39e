"""Write USD: one mesh with a PBR material (UsdPreviewSurface) whose textures are the files beside it.

Written through pxr, OpenUSD's Python package, which comes with NVIDIA's kaolin or alone as usd-core. It is
optional: `require_usd` checks at startup whether it is installed.
"""

import importlib.metadata
import importlib.util
from collections.abc import Collection
from pathlib import Path

import numpy as np

from render.mesh import Mesh
from render.mesh_io.write_obj import KD_FILE, KS_FILE, METALLIC_FILE, NORMAL_FILE, ROUGHNESS_FILE

USD_FILE = "mesh.usd"
PLACEHOLDER = "0.1"


def require_usd() -> None:
    """Raise ValueError with the fix if pxr is not installed."""
    if importlib.util.find_spec("pxr") is not None:
        return
    try:
        version = importlib.metadata.version("kaolin")
    except importlib.metadata.PackageNotFoundError:
        version = None
    found = (
        f"; the kaolin {PLACEHOLDER} that is installed is PyPI's empty placeholder"
        if version == PLACEHOLDER
        else ""
    )
    raise ValueError(
        f"export_usd = true: OpenUSD's package pxr is not installed{found}: pip install usd-core, or install "
        "NVIDIA's kaolin 0.17 or newer, which brings it"
    )


def write_usd(path: Path | str, mesh: Mesh, textures: Collection[str] = ()) -> None:
    """The mesh as binary USD at `path`, +y up, in metres.

    textures: which of kd, ks and normal `write_obj` has written into the same folder; the file refers to
    them. Without any, the surface is mid-grey and rough. USD's v grows upward, so v is written as 1 − v.
    """
    from pxr import Sdf, Usd, UsdGeom, UsdShade, Vt

    assert not textures or mesh.uv is not None, "textures need texture coordinates"
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/World").GetPrim())
    shape = UsdGeom.Mesh.Define(stage, "/World/mesh")

    def vectors(values, kind):
        return kind.FromNumpy(np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.float32))

    def integers(values):
        return Vt.IntArray.FromNumpy(values.detach().cpu().numpy().astype(np.int32).reshape(-1))

    points = vectors(mesh.v_pos, Vt.Vec3fArray)
    shape.CreatePointsAttr(points)
    shape.CreateExtentAttr(UsdGeom.PointBased.ComputeExtent(points))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray([3] * len(mesh.faces)))
    shape.CreateFaceVertexIndicesAttr(integers(mesh.faces))
    # The triangles are the surface itself, not the control mesh of a subdivision surface.
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    shape.CreateNormalsAttr(vectors(mesh.v_nrm, Vt.Vec3fArray))
    shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    if mesh.uv is not None and mesh.uv_faces is not None:
        place = UsdGeom.PrimvarsAPI(shape).CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
        )
        place.Set(vectors(mesh.uv * mesh.uv.new_tensor([1, -1]) + mesh.uv.new_tensor([0, 1]), Vt.Vec2fArray))
        place.SetIndices(integers(mesh.uv_faces))
    material = _material(stage, set(textures))
    UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)
    if not stage.GetRootLayer().Export(str(path)):
        raise OSError(f"{path}: USD could not be written")


def _material(stage, textures: set[str]):
    """A preview surface that reads the given textures."""
    from pxr import Gf, Sdf, UsdShade

    types = Sdf.ValueTypeNames
    material = UsdShade.Material.Define(stage, "/World/surface")
    surface = UsdShade.Shader.Define(stage, "/World/surface/preview")
    surface.CreateIdAttr("UsdPreviewSurface")
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    reader = UsdShade.Shader.Define(stage, "/World/surface/uv")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", types.String).Set("st")

    def texture(name, file, output, kind, space, *, scale=None, bias=None):
        node = UsdShade.Shader.Define(stage, f"/World/surface/{name}")
        node.CreateIdAttr("UsdUVTexture")
        node.CreateInput("file", types.Asset).Set(Sdf.AssetPath(f"./{file}"))
        node.CreateInput("sourceColorSpace", types.Token).Set(space)
        node.CreateInput("st", types.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        for side in ("wrapS", "wrapT"):
            node.CreateInput(side, types.Token).Set("clamp")
        if scale is not None:
            node.CreateInput("scale", types.Float4).Set(Gf.Vec4f(*scale))
            node.CreateInput("bias", types.Float4).Set(Gf.Vec4f(*bias))
        node.CreateOutput(output, kind)
        surface.CreateInput(name, kind).ConnectToSource(node.ConnectableAPI(), output)

    if "kd" in textures:
        texture("diffuseColor", KD_FILE, "rgb", types.Color3f, "sRGB")
    else:
        surface.CreateInput("diffuseColor", types.Color3f).Set(Gf.Vec3f(0.5))
    if "ks" in textures:
        texture("roughness", ROUGHNESS_FILE, "r", types.Float, "raw")
        texture("metallic", METALLIC_FILE, "r", types.Float, "raw")
        # Occlusion here is 1 where it is dark; USD's is 1 where nothing is occluded.
        texture("occlusion", KS_FILE, "r", types.Float, "raw", scale=(-1, -1, -1, 1), bias=(1, 1, 1, 0))
    else:
        surface.CreateInput("roughness", types.Float).Set(1.0)
        surface.CreateInput("metallic", types.Float).Set(0.0)
    if "normal" in textures:
        texture("normal", NORMAL_FILE, "rgb", types.Normal3f, "raw", scale=(2, 2, 2, 1), bias=(-1, -1, -1, 0))
    return material
