"""Load mesh files in Blender and render them from the front, the right and above.

This script runs inside Blender:
blender --background --factory-startup --python render_in_blender.py -- FOLDER FILE...
It writes FOLDER/<suffix>_<view>.png for each file, and FOLDER/report.json with the images of each material.
"""

import json
import math
import sys
from pathlib import Path

import bpy
import numpy as np

# The glTF importer of Blender 3.4 needs np.bool, which numpy in Debian 12 no longer contains.
if not hasattr(np, "bool"):
    np.bool = bool

# Camera positions and rotations in Blender's axes (+z up, front −y). In the axes of this project, the cameras
# look along −z, −x and −y.
VIEWS = {
    "front": ((0, -4, 0), (math.pi / 2, 0, 0)),
    "right": ((4, 0, 0), (math.pi / 2, 0, math.pi / 2)),
    "above": ((0, 0, 4), (0, 0, 0)),
}


def load(path):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    if path.suffix == ".glb":
        bpy.ops.import_scene.gltf(filepath=str(path))
    else:
        bpy.ops.wm.obj_import(filepath=str(path))
    (found,) = [item for item in bpy.data.objects if item.type == "MESH"]
    return found


def set_up(side):
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 16
    scene.cycles.use_denoising = False
    scene.render.resolution_x = scene.render.resolution_y = side
    scene.view_settings.view_transform = "Standard"
    world = bpy.data.worlds.new("white")
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs["Color"].default_value = (1, 1, 1, 1)
    scene.world = world
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.type, camera.data.ortho_scale = "ORTHO", 2
    scene.collection.objects.link(camera)
    scene.camera = camera
    return scene, camera


def pictures(material):
    """Correct the colour spaces of a material's images. Return {input: image size and old colour space}."""
    (surface,) = [node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED"]
    found = {}
    for name in ("Base Color", "Metallic", "Roughness", "Normal"):
        pending = [link.from_node for link in surface.inputs[name].links]
        while pending:
            node = pending.pop()
            if node.type == "TEX_IMAGE":
                found[name] = {"size": list(node.image.size), "space": node.image.colorspace_settings.name}
                # Blender's OBJ importer reads every image as sRGB, so this script corrects the colour space,
                # as users must.
                node.image.colorspace_settings.name = "sRGB" if name == "Base Color" else "Non-Color"
            pending += [link.from_node for socket in node.inputs for link in socket.links]
    return found


def main(folder, files):
    report = {}
    for file in files:
        item = load(file)
        scene, camera = set_up(96)
        corners = [item.matrix_world @ vertex.co for vertex in item.data.vertices]
        report[file.suffix] = {
            "pictures": pictures(item.material_slots[0].material),
            "faces": len(item.data.polygons),
            "low": [min(corner[axis] for corner in corners) for axis in range(3)],
            "high": [max(corner[axis] for corner in corners) for axis in range(3)],
        }
        for name, (location, rotation) in VIEWS.items():
            camera.location, camera.rotation_euler = location, rotation
            scene.render.filepath = str(folder / f"{file.suffix[1:]}_{name}.png")
            bpy.ops.render.render(write_still=True)
    (folder / "report.json").write_text(json.dumps(report))


given = sys.argv[sys.argv.index("--") + 1 :]
main(Path(given[0]), [Path(name) for name in given[1:]])
