"""Figures that are used as start shapes but do not belong to a category of the prior.

Units are metres. In the frame of the parts, the ground is y = 0.
"""

from dataset.procedural.colour import colour, plain
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    Vector,
    chain,
    ellipsoid,
    mirror_x,
    round_cone,
    smooth_intersection,
    smooth_union,
    sphere,
)
from dataset.procedural.solid import Part, ProceduralObject

HEIGHT = 1.8


def mannequin() -> ProceduralObject:
    """Return a human figure with arms and legs apart.

    The figure is HEIGHT tall, and its centre, at half of this height, is the origin of the object.
    """
    # (centre, radii) of the torso's ellipsoids, from the hips to the chest.
    trunk: list[tuple[Vector, Vector]] = [
        ((0.0, 0.93, -0.01), (0.17, 0.14, 0.118)),
        ((0.0, 1.08, 0.0), (0.145, 0.18, 0.105)),
        ((0.0, 1.27, 0.0), (0.178, 0.20, 0.125)),
    ]
    shoulder, elbow, wrist = (0.185, 1.395, -0.015), (0.345, 1.15, -0.025), (0.475, 0.92, 0.03)
    palm, fingers = (0.50, 0.875, 0.04), (0.535, 0.80, 0.055)
    hip, knee, ankle = (0.095, 0.90, 0.0), (0.185, 0.50, 0.012), (0.26, 0.09, -0.025)
    calf, heel, toes = (0.21, 0.36, -0.018), (0.26, 0.05, -0.045), (0.305, 0.035, 0.15)

    def torso(p: Coordinates) -> Distance:
        solid = round_cone(p, (0.03, 1.435, -0.02), shoulder, 0.06, 0.065)
        for centre, radii in trunk:
            solid = smooth_union(solid, ellipsoid(p, centre, radii), 0.08)
        return solid

    def head(p: Coordinates) -> Distance:
        neck = round_cone(p, (0.0, 1.40, -0.02), (0.0, 1.60, 0.0), 0.07, 0.058)
        skull = ellipsoid(p, (0.0, 1.685, 0.0), (0.082, 0.115, 0.10))
        jaw = round_cone(p, (0.0, 1.63, 0.02), (0.0, 1.60, 0.055), 0.06, 0.038)
        nose = sphere(p, (0.0, 1.665, 0.10), 0.018)
        return smooth_union(smooth_union(smooth_union(skull, jaw, 0.04), nose, 0.03), neck, 0.04)

    def arm(p: Coordinates) -> Distance:
        limb = chain(p, (shoulder, elbow, wrist), (0.064, 0.047, 0.036))
        return smooth_union(limb, chain(p, (wrist, palm, fingers), (0.036, 0.046, 0.032)), 0.03)

    def leg(p: Coordinates) -> Distance:
        limb = chain(p, (hip, knee, ankle), (0.098, 0.064, 0.046))
        limb = smooth_union(limb, ellipsoid(p, calf, (0.066, 0.14, 0.07)), 0.05)
        # The intersection with y >= 0 makes the sole of the foot flat and places it on the ground.
        foot = smooth_intersection(round_cone(p, heel, toes, 0.052, 0.045), -p[1], 0.02)
        return smooth_union(limb, foot, 0.05)

    def body(p: Coordinates) -> Distance:
        side = mirror_x(p)
        solid = smooth_union(torso(side), arm(side), 0.07)
        return smooth_union(smooth_union(solid, leg(side), 0.08), head(side), 0.05)

    skin = Part("body", body, plain(colour("#b8b4ac")))
    return ProceduralObject("mannequin", (skin,), centre=(0.0, HEIGHT / 2, 0.0))
