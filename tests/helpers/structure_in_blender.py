"""Print the objects of a GLB file as JSON. Blender runs this script.

blender --background --factory-startup --python structure_in_blender.py -- FILE
"""

import json
import sys

import bpy
import numpy as np

# The glTF importer of Blender 3.4 needs np.bool, which numpy in Debian 12 no longer contains.
if not hasattr(np, "bool"):
    np.bool = bool


def entry(item):
    mesh = item.data if item.type == "MESH" else None
    return {
        "parent": item.parent.name if item.parent else None,
        "mesh": mesh.name if mesh else None,
        "materials": [slot.material.name for slot in item.material_slots],
        "faces": len(mesh.polygons) if mesh else 0,
        "location": [round(value, 4) for value in item.location],
    }


bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[sys.argv.index("--") + 1])
print("STRUCTURE", json.dumps({item.name: entry(item) for item in bpy.data.objects}))
