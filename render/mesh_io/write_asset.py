"""Write a mesh in all export formats."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from render.mesh import Mesh
from render.mesh_io.asset import Asset
from render.mesh_io.texture_pngs import TexturePngs, Textures
from render.mesh_io.write_glb import write_glb
from render.mesh_io.write_glb_parts import write_glb_parts
from render.mesh_io.write_obj import write_obj
from render.mesh_io.write_obj_parts import write_obj_parts
from render.mesh_io.write_usd import USD_FILE, write_usd, write_usd_parts


def write_asset(
    folder: Path, mesh: Mesh, textures: Textures | TexturePngs | None = None, usd: bool = False
) -> None:
    """Write mesh.glb, mesh.obj with its material and textures (see `write_obj`) and, if `usd` is True,
    mesh.usd.

    Textures require a mesh with uv, and a normal map also requires tangents. mesh.usd requires OpenUSD.
    """
    pngs = textures if isinstance(textures, TexturePngs) else TexturePngs(textures)
    with ThreadPoolExecutor(1, thread_name_prefix="asset") as pool:
        glb = pool.submit(write_glb, folder / "mesh.glb", mesh, pngs=pngs)
        write_obj(folder, mesh, pngs=pngs)
        glb.result()
    if usd:
        write_usd(folder / USD_FILE, mesh, pngs.names)


def write_parts(folder: Path, asset: Asset, usd: bool = False) -> None:
    """Write the files of `write_asset` for a mesh with parts."""
    with ThreadPoolExecutor(1, thread_name_prefix="asset") as pool:
        glb = pool.submit(write_glb_parts, folder / "mesh.glb", asset)
        files = write_obj_parts(folder, asset)
        glb.result()
    if usd:
        write_usd_parts(folder / USD_FILE, asset, files)
