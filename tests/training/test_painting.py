"""Test meshes that have textures: the fit, the paint mask, the parts and the exported files.

The tests use no prior.
"""

import importlib.util
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from export_shapes import bumpy_ball
from PIL import Image
from textured_parts import SIZE, textured_asset

from configs.errors import ConfigError
from configs.schema import Config, parse_config
from dataset.cameras import step_generator
from geometry.axes import axis_vector, frame_rotation
from geometry.fixed_mesh import load_fixed_mesh, load_fixed_parts
from geometry.start_shape import StartShapeConfig, build_start_shape
from render.camera import orbit
from render.gbuffer import rasterize_gbuffer
from render.image_io.image import write_png
from render.mesh_io.load import load_mesh
from render.mesh_io.load_materials import load_materials
from render.mesh_io.write_glb import write_glb
from render.mesh_io.write_glb_parts import write_glb_parts
from render.raster.select import choose_rasteriser
from render.shade.brdf import srgb_to_linear
from render.texturing.bake import bake, texel_owners
from render.texturing.given import given_texture
from render.texturing.given_config import GivenConfig, read_given, read_mask
from render.texturing.painted_surface import Located
from render.texturing.part_export import PaintedParts, export_parts
from render.texturing.uv import unwrap, uv_fault
from training.painting import build_parts
from training.report.model_viewer import lighter
from training.tasks import Task, build_task

CPU = torch.device("cpu")
VALUES = {
    "mode": "appearance_modeling",
    "device": "cpu",
    "env_resolution": 64,
    "iter": 400,
    "coarse_iter": 400,
    "learning_rate": 0.04,
    "hash_n_levels": 6,
    "hash_log2_hashmap_size": 13,
    "hash_max_resolution": 64,
}


def config_for(folder: Path, mesh: Path, **values: object) -> Config:
    return parse_config({**VALUES, "out_dir": str(folder), "base_mesh": str(mesh), **values}, "test")


def fit(task: Task, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, float]:
    """Run the fit, and return the statistics of its last step."""
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss, stats = task.fit(step_generator(0, 0, step))
        loss.backward()
        optimizer.step()
    return {name: float(value) for name, value in stats.items()}


def psnr(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the PSNR in dB of each channel. The texels [N,C] are bytes."""
    squared = ((one.double() - other.double()) / 255).square().mean(0)
    return -10 * squared.clamp_min(1e-10).log10()


def object_field(points):
    """Return three colours with sharp borders, and waves of roughness, metallic and normal."""
    x, y, z = points.unbind(-1)
    main = torch.stack([z, x, y], -1).argmax(-1)
    tilt = torch.stack([0.3 * torch.sin(12 * x), 0.2 * torch.cos(12 * y), torch.ones_like(z)], -1)
    return {
        "kd": 0.05 + 0.85 * torch.nn.functional.one_hot(main, 3).float(),
        "ks": torch.stack([0 * x, 0.6 + 0.3 * torch.sin(6 * x), 0.3 + 0.2 * torch.sin(5 * y)], -1),
        "normal": torch.nn.functional.normalize(tilt, dim=-1),
    }


@dataclass
class Result:
    """A painted mesh: the source file, the folder of the export, the task and its config."""

    source: Path
    folder: Path
    task: Task
    config: Config


OBJECT_SIZE = (64, 64)


def write_object(folder: Path) -> Path:
    """Write a procedural object with its true textures to a GLB file, and return the path."""
    mesh = unwrap(bumpy_ball(2), "xatlas", OBJECT_SIZE, 4)
    path = folder / "object.glb"
    write_glb(path, mesh, bake(mesh, object_field, OBJECT_SIZE, choose_rasteriser(CPU, "auto")))
    return path


def painted(folder: Path, source: Path, steps: int, **values: object) -> Result:
    """Fit the textures of a file for `steps` steps, and export the result."""
    config = config_for(folder / "run", source, init_textures=True, **values)
    task, optimizer, _ = build_task(config)
    fit(task, optimizer, steps)
    (folder / "run/dmtet_mesh").mkdir(parents=True)
    task.export()(folder / "run/dmtet_mesh")
    return Result(source, folder / "run/dmtet_mesh", task, config)


def test_the_fit_alone_reproduces_the_textures_of_an_object(tmp_path):
    path = write_object(tmp_path)
    result = painted(tmp_path, path, 100, texture_res=list(OBJECT_SIZE))
    given, made = (
        given_texture(load_materials(file)[0], OBJECT_SIZE) for file in (path, result.folder / "mesh.glb")
    )
    rasteriser = result.task.scene.rasteriser
    covered = texel_owners(load_fixed_mesh(path), OBJECT_SIZE, rasteriser) >= 0
    assert psnr(given[covered], made[covered]).min() > 35


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Result:
    """Return an object after two steps of the fit. The mask covers the left half of the texture."""
    folder = tmp_path_factory.mktemp("masked")
    mask = torch.zeros(*OBJECT_SIZE, 1)
    mask[:, :24], mask[:, 24:32] = 1.0, 0.5
    write_png(folder / "mask.png", mask)
    values = {"paint_mask": [str(folder / "mask.png")], "texture_res": list(OBJECT_SIZE)}
    return painted(folder, write_object(folder), 2, **values)


def test_texels_outside_of_the_mask_are_the_given_bytes(masked):
    given, made = (load_materials(path)[0] for path in (masked.source, masked.folder / "mesh.glb"))
    for name in ("kd", "roughness_metallic", "normal"):
        old, new = getattr(given, name), getattr(made, name)
        assert np.array_equal(old[:, 32:], new[:, 32:]), name
        # Two steps of the fit do not reproduce the textures, so the painted texels differ.
        assert (old[:, :24] != new[:, :24]).any(), name
    picture = np.asarray(Image.open(masked.folder / "texture_kd.png").convert("RGB"))
    assert np.array_equal(picture[:, 32:], given.kd[:, 32:])


def test_the_prior_sees_the_field_inside_of_the_mask_and_the_textures_outside(masked):
    scene, views = masked.task.scene, orbit(2, (48, 48), 20.0, 45.0)
    surface = scene.surface
    with torch.no_grad():
        points = rasterize_gbuffer(scene.mesh, views, scene.rasteriser)
        located = surface.locate(points)
        shown, painted, given = (
            surface.material(scene.material, located),
            scene.material(surface.field_points(located)),
            surface.given(located),
        )
    inside, outside = given.mask[:, 0] == 1, given.mask[:, 0] == 0
    assert inside.sum() > 50 and outside.sum() > 50
    assert torch.equal(shown.kd[inside], painted.kd[inside])
    assert torch.equal(shown.kd[outside], given.kd[outside])
    mixed = painted.kd * given.mask + given.kd * (1 - given.mask)
    assert torch.allclose(shown.kd, mixed, atol=1e-6)
    # The given values equal the input texture at the uv of each pixel.
    uv = scene.rasteriser.interpolate(scene.mesh.uv, points.rast, scene.mesh.uv_faces)
    kd = srgb_to_linear(torch.from_numpy(load_materials(masked.source)[0].kd).float() / 255)
    assert torch.allclose(given.kd, points.gather(scene.rasteriser.texture(kd, uv)), atol=1e-5)


def test_only_the_field_inside_of_the_mask_gets_a_gradient(masked):
    scene = masked.task.scene
    weights = [scene.material.network[0].weight]
    image = scene(orbit(1, (32, 32), 20.0, 45.0))
    located = scene.surface.locate(
        rasterize_gbuffer(scene.mesh, orbit(1, (32, 32), 20.0, 45.0), scene.rasteriser)
    )
    mask = torch.zeros(32 * 32)
    mask[scene.visible[1]] = scene.surface.given(located).mask[:, 0]
    flat = image.reshape(-1, 3)
    (outside,) = torch.autograd.grad(flat[mask == 0].sum(), weights, retain_graph=True, allow_unused=True)
    (inside,) = torch.autograd.grad(flat[mask > 0].sum(), weights)
    assert inside.abs().max() > 0
    # Outside of the mask, the gradient is small but not zero, because antialiasing mixes pixels at the
    # outline.
    assert outside.abs().max() < 0.2 * inside.abs().max()


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Result:
    """Return the asset of three materials, painted in a rotated frame with two steps of the fit."""
    folder = tmp_path_factory.mktemp("parts")
    write_glb_parts(folder / "in.glb", textured_asset())
    return painted(
        folder,
        folder / "in.glb",
        2,
        paint_mask=["red side", "shared"],
        texture_res=list(SIZE),
        base_mesh_up="+z",
        base_mesh_front="-y",
        normalise_mesh=True,
        export_usd=importlib.util.find_spec("pxr") is not None,
    )


def test_nodes_materials_and_uv_are_those_of_the_file(parts):
    before, after = (load_mesh(path, partial_uv=True) for path in (parts.source, parts.folder / "mesh.glb"))
    assert [node.name for node in after.structure.nodes] == ["root", "body", "wings"]
    assert [node.mesh_name for node in after.structure.nodes] == [None, "body mesh", "wing mesh"]
    assert [node.parent for node in after.structure.nodes] == [None, 0, 0]
    for old, new in zip(before.structure.nodes, after.structure.nodes, strict=True):
        assert np.allclose(old.matrix, new.matrix)
    assert after.structure.parts == before.structure.parts
    assert torch.equal(before.face_part, after.face_part)
    # The mesh was rotated and scaled for painting, but the exported positions are those of the file.
    assert torch.allclose(before.v_pos[before.faces], after.v_pos[after.faces], atol=1e-6)
    assert torch.equal(before.uv[before.uv_faces], after.uv[after.uv_faces])
    given, made = load_materials(parts.source), load_materials(parts.folder / "mesh.glb")
    assert [material.name for material in given] == [material.name for material in made]
    # "plain" is not painted: its factors are unchanged and it has no pictures.
    assert made[1] == given[1]
    assert (made[0].kd != given[0].kd).any() and (made[2].kd != given[2].kd).any()


def test_other_programs_read_the_same_parts(parts):
    scene = trimesh.load(parts.folder / "mesh.glb")
    assert {"root", "body", "wings"} <= set(scene.graph.nodes)
    found = {part.visual.material.name: part for part in scene.geometry.values()}
    assert set(found) == {"red side", "plain", "shared"}
    made = load_materials(parts.folder / "mesh.glb")
    for material in (made[0], made[2]):
        picture = np.asarray(found[material.name].visual.material.baseColorTexture.convert("RGB"))
        assert np.array_equal(picture, material.kd)
    text = (parts.folder / "mesh.obj").read_text()
    assert re.findall(r"(?m)^(?:o|usemtl) .+$", text) == [
        *("o body", "usemtl red side", "usemtl plain"),
        *("o wings", "usemtl shared"),
    ]


def test_the_obj_is_read_as_the_glb(parts):
    one, other = (load_mesh(parts.folder / name, partial_uv=True) for name in ("mesh.glb", "mesh.obj"))
    assert torch.allclose(one.v_pos[one.faces], other.v_pos[other.faces], atol=1e-6)
    for glb, obj in zip(
        load_materials(parts.folder / "mesh.glb"), load_materials(parts.folder / "mesh.obj"), strict=False
    ):
        size = glb.size
        # An MTL file contains no occlusion, and it stores constant colours with six digits.
        assert (
            given_texture(glb, size)[..., 4:].int() - given_texture(obj, size)[..., 4:].int()
        ).abs().max() <= 1
        assert torch.equal(given_texture(glb, size)[..., :3], given_texture(obj, size)[..., :3])


def test_the_smaller_copy_of_the_page_keeps_the_parts(parts):
    content = (parts.folder / "mesh.glb").read_bytes()
    one, other = (trimesh.load(io.BytesIO(data), file_type="glb") for data in (content, lighter(content)))
    assert one.geometry.keys() == other.geometry.keys()
    assert np.allclose(one.bounds, other.bounds)
    for name, part in one.geometry.items():
        copy = other.geometry[name]
        assert np.array_equal(part.faces, copy.faces) and np.array_equal(part.vertices, copy.vertices)
        pictures = (mesh.visual.material.baseColorTexture for mesh in (part, copy))
        if part.visual.material.baseColorTexture is not None:
            old, new = (np.asarray(picture.convert("RGB"), dtype=float) for picture in pictures)
            assert np.abs(old - new).mean() < 4 and not np.array_equal(old, new)


def test_usd_has_a_subset_for_each_part(parts):
    pxr = pytest.importorskip("pxr")
    from pxr import Usd, UsdGeom, UsdShade

    assert pxr is not None
    stage = Usd.Stage.Open(str(parts.folder / "mesh.usd"))
    shape = UsdGeom.Mesh.Get(stage, "/World/mesh")
    subsets = UsdGeom.Subset.GetAllGeomSubsets(shape)
    assert [len(subset.GetIndicesAttr().Get()) for subset in subsets] == [2, 2, 4]
    bound = [
        UsdShade.MaterialBindingAPI(subset.GetPrim()).GetDirectBinding().GetMaterialPath()
        for subset in subsets
    ]
    assert [str(path) for path in bound] == [f"/World/material_{number}" for number in range(3)]


def test_mirrored_copies_share_the_field_and_have_opposite_handedness(parts):
    surface, mesh = parts.task.scene.surface, parts.task.scene.mesh
    wings = torch.nonzero(surface.face_material == 2)[:, 0]
    assert surface.shares and len(wings) == 4
    weights = torch.tensor([[0.2, 0.3, 0.5]]).expand(2, -1)
    uv = (surface.uv[wings] * weights[0, :, None]).sum(1)
    # On the other plate with the same texture, find the point that reads the same texel. The uv of the two
    # points differ by whole tiles.
    copy = next(k for k in range(2, 4) if same_triangle(surface.uv[wings[0]], surface.uv[wings[k]]))
    first = Located(wings[:1], weights[:1])
    other = Located(wings[copy : copy + 1], matching_weights(surface.uv[wings[copy]], uv[0])[None])
    assert torch.allclose(surface.field_points(first), surface.field_points(other), atol=1e-6)
    signs = surface.face_handedness[wings]
    assert signs[0] == -signs[copy]
    assert mesh.handedness.abs().eq(1).all()
    local = torch.tensor([[0.1, 0.3, 0.9]])
    flipped = [
        surface.unmirrored(place, local)[0, 1] * sign
        for place, sign in ((first, signs[0]), (other, signs[copy]))
    ]
    assert flipped[0] == flipped[1] == local[0, 1]


def same_triangle(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two uv triangles differ only by whole tiles and the order of their corners."""
    one, other = (triangle - triangle.mean(0).floor() for triangle in (one, other))
    return bool((torch.cdist(one, other).min(1).values < 1e-5).all())


def matching_weights(triangle: torch.Tensor, uv: torch.Tensor) -> torch.Tensor:
    """Return the barycentric weights of a point in a uv triangle.

    uv: the uv of the point, which may be shifted by whole tiles.
    """
    triangle = triangle - triangle.mean(0).floor()
    matrix = torch.cat([triangle.T, torch.ones(1, 3)])
    return torch.linalg.solve(matrix, torch.cat([uv - uv.floor(), torch.ones(1)]))


def test_an_atlas_is_one_picture_for_all_materials(parts):
    settings = replace(parts.config.export, atlas=True, texture_res=(48, 48))
    asset = export_parts(
        painted_parts(parts), parts.task.scene.material, settings, parts.task.scene.rasteriser
    )
    used = asset.materials[:3]
    assert [material.name for material in used] == ["red side", "plain", "shared"]
    assert all(
        np.array_equal(material.kd, used[0].kd) and material.kd.shape == (48, 48, 3) for material in used
    )
    assert uv_fault(asset.mesh, parts.task.scene.rasteriser, allow_mirrored=True) is None
    # The colour of the unpainted material is unchanged in the atlas.
    flat = asset.part_mesh(1)
    middle = flat.uv[flat.uv_faces].mean(1)
    texels = torch.from_numpy(used[1].kd)[(middle[:, 1] * 48).long(), (middle[:, 0] * 48).long()]
    given = given_texture(load_materials(parts.source)[1], (1, 1))[0, 0, :3]
    assert (texels.int() - given.int()).abs().max() <= 1


def painted_parts(result: Result) -> PaintedParts:
    """Build the parts of a result again and return them."""
    scene, config = result.task.scene, result.config
    own = replace(load_fixed_parts(result.source), mesh=load_fixed_parts(result.source).mesh)
    given = read_given(config.textures, result.source)
    return replace(build_parts(config, own, given, scene.rasteriser), surface=scene.surface, mesh=scene.mesh)


@pytest.mark.parametrize(("up", "front"), [("+z", "-y"), ("-x", "+y"), ("+y", "-z")])
def test_axes_are_rotated_into_the_frame_of_the_program(up, front):
    rotation = frame_rotation(up, front)
    assert torch.equal(rotation @ axis_vector(up), axis_vector("+y"))
    assert torch.equal(rotation @ axis_vector(front), axis_vector("+z"))
    assert torch.linalg.det(rotation) == 1


def test_a_start_shape_from_a_file_is_rotated(tmp_path):
    box = trimesh.creation.box((1, 2, 3))
    box.export(tmp_path / "box.ply")
    shape = {"sdf_init_shape": "custom_mesh", "base_mesh": str(tmp_path / "box.ply")}
    turned = build_start_shape(StartShapeConfig(**shape, base_mesh_up="+z", base_mesh_front="-y"))
    size = turned.v_pos.amax(0) - turned.v_pos.amin(0)
    assert torch.allclose(size / size[0], torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_mesh_up": "+z"}, "base_mesh_up +z and base_mesh_front +z are parallel"),
        ({"init_textures": True, "base_mesh": "a.ply"}, r"allowed is a file with textures"),
        ({"base_mesh_up": "z"}, 'key "base_mesh_up" has the value "z"; allowed is one of'),
    ],
)
def test_a_bad_value_is_one_line_with_key_and_fix(values, message):
    with pytest.raises(ConfigError) as error:
        parse_config({**VALUES, "out_dir": "a", "base_mesh": "a.glb", **values}, "file.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mask_names_known_materials_or_is_grey(parts, tmp_path):
    materials = load_materials(parts.source, pictures=False)
    with pytest.raises(
        ValueError, match="paint_mask = 'wheel': the materials of base_mesh .* are red side, plain"
    ):
        read_mask(GivenConfig(paint_mask=("wheel",)), materials, parts.source)
    write_png(tmp_path / "red.png", torch.tensor([1.0, 0, 0]).expand(4, 4, 3))
    with pytest.raises(ValueError, match="red.png: it has colours; save it as a grey picture"):
        read_mask(GivenConfig(paint_mask=(str(tmp_path / "red.png"),)), materials, parts.source)


def test_a_damaged_texture_is_an_error_with_material_and_texture(tmp_path):
    write_glb_parts(tmp_path / "in.glb", textured_asset())
    content = (tmp_path / "in.glb").read_bytes().replace(b"IHDR", b"IHDX", 1)
    (tmp_path / "in.glb").write_bytes(content)
    with pytest.raises(ValueError, match="in.glb: material red side: base colour texture .* not a picture"):
        load_materials(tmp_path / "in.glb")


def test_textures_are_asked_of_a_file_without_materials(tmp_path):
    (tmp_path / "bare.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(ValueError, match="init_textures = true: mesh file .*bare.obj has no materials"):
        read_given(GivenConfig(init_textures=True), tmp_path / "bare.obj")


def test_an_mtl_of_another_program_is_read(tmp_path):
    write_png(tmp_path / "wood map.png", torch.tensor([0.2, 0.4, 0.6]).expand(4, 4, 3))
    (tmp_path / "lib").mkdir()
    (tmp_path / "a.mtl").write_text(
        "newmtl wood\nKd 0.1 0.1 0.1\nNs 250\nmap_Kd -s 1 1 1 C:\\scans\\wood map.png\n"
        "newmtl iron\nKd 0.5 0.25 0.125 # a comment\nPr 0.3\nPm 1\n"
    )
    (tmp_path / "a.obj").write_text(
        "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\no left\nusemtl wood\nf 1 2 3\n"
        "o right\nusemtl iron\nf 2 4 3\nusemtl wood\nf 1 2 4\n"
    )
    file, (wood, iron) = load_mesh(tmp_path / "a.obj", partial_uv=True), load_materials(tmp_path / "a.obj")
    assert [node.name for node in file.structure.nodes] == ["left", "right"]
    assert [(part.node, part.material) for part in file.structure.parts] == [(0, 0), (1, 1), (1, 0)]
    assert file.face_part.tolist() == [0, 1, 2]
    assert (wood.kd == [51, 102, 153]).all() and wood.kd_factor == (1, 1, 1, 1) and wood.roughness == 0.5
    assert iron.kd is None and iron.kd_factor == (0.5, 0.25, 0.125, 1)
    assert (iron.roughness, iron.metallic) == (0.3, 1)
