"""Write USD: one mesh with a PBR material (UsdPreviewSurface). Its textures are files in the same folder.

The file is written with pxr, the Python package of OpenUSD, which is part of NVIDIA's kaolin and of usd-core.
pxr is optional, so `require_usd` checks at startup whether it is installed.
"""

import importlib.metadata
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from render.mesh import Mesh
from render.mesh_io.asset import Asset
from render.mesh_io.write_obj import FILES

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
    """Write the mesh as binary USD, with +y up and in metres.

    textures: the textures among kd, ks and normal that `write_obj` has written to the same folder. The USD
    file refers to the files of these textures. Without textures, the surface is mid-grey and rough. v
    increases upward in USD, so v is written as 1 − v.
    """
    from pxr import UsdShade

    assert not textures or mesh.uv is not None, "textures need texture coordinates"
    stage, shape = _stage(mesh)
    used = {*textures, *(("roughness", "metallic") if "ks" in textures else ())}
    files = {name: file for name, file in FILES.items() if name in used}
    material = _material(stage, "surface", files)
    UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)
    _save(stage, path)


def write_usd_parts(path: Path | str, asset: Asset, files: Mapping[int, Mapping[str, str]]) -> None:
    """Write the file of `write_usd` for a mesh with parts: one mesh with a subset of faces for each part.

    files: the pictures of each material that `write_obj_parts` has written. Nodes are not written.
    """
    from pxr import UsdGeom, UsdShade, Vt

    stage, shape = _stage(asset.mesh)
    materials = {}
    for number, written in files.items():
        given = asset.materials[number]
        named = {name: written[file] for name, file in FILES.items() if file in written}
        constants = given.kd_factor[:3], given.roughness, given.metallic
        materials[number] = _material(stage, f"material_{number}", named, constants)
        materials[number].GetPrim().SetMetadata("displayName", given.name)
    UsdShade.MaterialBindingAPI.Apply(shape.GetPrim())
    for number, part in enumerate(asset.structure.parts):
        chosen = asset.faces_of(number).cpu().numpy().astype(np.int32)
        if len(chosen) == 0:
            continue
        subset = UsdGeom.Subset.CreateGeomSubset(
            shape, f"part_{number}", UsdGeom.Tokens.face, Vt.IntArray(chosen.tolist()), "materialBind"
        )
        UsdShade.MaterialBindingAPI.Apply(subset.GetPrim()).Bind(materials[part.material])
    _save(stage, path)


def _save(stage, path: Path | str) -> None:
    if not stage.GetRootLayer().Export(str(path)):
        raise OSError(f"{path}: USD could not be written")


def _stage(mesh: Mesh):
    """Return a stage in memory and the mesh in it."""
    from pxr import Sdf, Usd, UsdGeom, Vt

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
    # Subdivision is disabled, because a USD mesh is a subdivision surface by default.
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    shape.CreateNormalsAttr(vectors(mesh.v_nrm, Vt.Vec3fArray))
    shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    if mesh.uv is not None and mesh.uv_faces is not None:
        place = UsdGeom.PrimvarsAPI(shape).CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
        )
        place.Set(vectors(mesh.uv * mesh.uv.new_tensor([1, -1]) + mesh.uv.new_tensor([0, 1]), Vt.Vec2fArray))
        place.SetIndices(integers(mesh.uv_faces))
    return stage, shape


def _material(
    stage,
    prim: str,
    files: Mapping[str, str],
    constants: tuple[Sequence[float], float, float] = ((0.5, 0.5, 0.5), 1.0, 0.0),
):
    """Return a preview surface with the given texture files.

    constants: the values of base colour, roughness and metallic that are used without textures.
    """
    from pxr import Gf, Sdf, UsdShade

    types, root = Sdf.ValueTypeNames, f"/World/{prim}"
    material = UsdShade.Material.Define(stage, root)
    surface = UsdShade.Shader.Define(stage, f"{root}/preview")
    surface.CreateIdAttr("UsdPreviewSurface")
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    reader = UsdShade.Shader.Define(stage, f"{root}/uv")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", types.String).Set("st")

    def texture(name, file, output, kind, space, *, scale=None, bias=None):
        node = UsdShade.Shader.Define(stage, f"{root}/{name}")
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

    if "kd" in files:
        texture("diffuseColor", files["kd"], "rgb", types.Color3f, "sRGB")
    else:
        surface.CreateInput("diffuseColor", types.Color3f).Set(Gf.Vec3f(*constants[0]))
    if "ks" in files:
        texture("roughness", files["roughness"], "r", types.Float, "raw")
        texture("metallic", files["metallic"], "r", types.Float, "raw")
        # Occlusion is inverted: 1 means occluded in this program, but unoccluded in USD.
        texture("occlusion", files["ks"], "r", types.Float, "raw", scale=(-1, -1, -1, 1), bias=(1, 1, 1, 0))
    else:
        surface.CreateInput("roughness", types.Float).Set(constants[1])
        surface.CreateInput("metallic", types.Float).Set(constants[2])
    if "normal" in files:
        texture(
            "normal", files["normal"], "rgb", types.Normal3f, "raw", scale=(2, 2, 2, 1), bias=(-1, -1, -1, 0)
        )
    return material
