"""Write a mesh in all export formats."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from render.image_io.atomic import write_bytes
from render.mesh import Mesh
from render.mesh_io.asset import Asset
from render.mesh_io.texture_pngs import TexturePngs, Textures
from render.mesh_io.write_glb import glb_file
from render.mesh_io.write_glb_parts import write_glb_parts
from render.mesh_io.write_obj import OBJ_FILE, obj_files
from render.mesh_io.write_obj_parts import write_obj_parts
from render.mesh_io.write_usd import USD_FILE, write_usd, write_usd_parts


def write_asset(folder: Path, mesh: Mesh, textures: Textures | None = None, usd: bool = False) -> None:
    """Write mesh.glb, mesh.obj with its material and textures (see `obj_files`) and, if `usd` is True,
    mesh.usd.

    Textures require a mesh with uv, and a normal map also requires tangents. mesh.usd requires OpenUSD.
    """
    prepare_asset(mesh, textures, usd)(folder)


def prepare_asset(mesh: Mesh, textures: Textures | None = None, usd: bool = False) -> Callable[[Path], None]:
    """Return a function that writes the files of `write_asset` to a folder. Except for mesh.usd, they are
    prepared in memory.
    """
    pngs = TexturePngs(textures)
    with ThreadPoolExecutor(1, thread_name_prefix="asset") as pool:
        glb = pool.submit(glb_file, mesh, pngs)
        files = obj_files(mesh, pngs)
        files = {"mesh.glb": glb.result(), **files}

    def write(folder: Path) -> None:
        # Each file is flushed to the disk, so they are written in parallel. mesh.obj is written last.
        with ThreadPoolExecutor(thread_name_prefix="files") as pool:
            others = [name for name in files if name != OBJ_FILE]
            for written in [pool.submit(write_bytes, folder / name, files[name]) for name in others]:
                written.result()
        write_bytes(folder / OBJ_FILE, files[OBJ_FILE])
        if usd:
            write_usd(folder / USD_FILE, mesh, pngs.names)

    return write


def write_parts(folder: Path, asset: Asset, usd: bool = False) -> None:
    """Write the files of `write_asset` for a mesh with parts."""
    with ThreadPoolExecutor(1, thread_name_prefix="asset") as pool:
        glb = pool.submit(write_glb_parts, folder / "mesh.glb", asset)
        files = write_obj_parts(folder, asset)
        glb.result()
    if usd:
        write_usd_parts(folder / USD_FILE, asset, files)
