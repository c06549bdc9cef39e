"""Procedural objects: the training data of the embedded prior and of the classifier.

The objects of a category have random proportions, details and colours. All have the same pose: the front is
+z, up is +y, the bounding box is centred on the origin, and the largest distance from the origin is
solid.REACH.
"""

from collections.abc import Callable

import torch

from dataset.procedural.animals import bird, fish, quadruped
from dataset.procedural.buildings import castle_tower, cottage
from dataset.procedural.craft import airplane, boat
from dataset.procedural.food import hamburger
from dataset.procedural.fruit import apple, banana, pineapple, strawberry
from dataset.procedural.furniture import bed, chair, lamp, table
from dataset.procedural.nature import cactus, mushroom, snowman, tree
from dataset.procedural.people import head, person
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject
from dataset.procedural.sweets import donut, ice_cream_cone
from dataset.procedural.tools import hammer, key
from dataset.procedural.vehicles import car, rocket
from dataset.procedural.vessels import mug, teapot, vase

__all__ = ["CATEGORIES", "Part", "ProceduralObject", "make_object"]

_MAKERS: dict[str, Callable[[Draw], ProceduralObject]] = {
    "pineapple": pineapple,
    "strawberry": strawberry,
    "mushroom": mushroom,
    "mug": mug,
    "car": car,
    "chair": chair,
    "snowman": snowman,
    "teapot": teapot,
    "cactus": cactus,
    "rocket": rocket,
    "ice_cream_cone": ice_cream_cone,
    "apple": apple,
    "cottage": cottage,
    "castle_tower": castle_tower,
    "airplane": airplane,
    "boat": boat,
    "tree": tree,
    "person": person,
    "head": head,
    "quadruped": quadruped,
    "fish": fish,
    "bird": bird,
    "banana": banana,
    "hamburger": hamburger,
    "donut": donut,
    "vase": vase,
    "hammer": hammer,
    "key": key,
    "table": table,
    "lamp": lamp,
    "bed": bed,
}

CATEGORIES: tuple[str, ...] = tuple(_MAKERS)


def make_object(category: str, generator: torch.Generator) -> ProceduralObject:
    """Return a random object of `category`.

    The generator must be on the CPU, so that a seed gives the same object on every device.

    Raises:
        ValueError: if the category is not in CATEGORIES.
    """
    if category not in _MAKERS:
        raise ValueError(f"unknown category of object {category!r}; known: {', '.join(CATEGORIES)}")
    return _MAKERS[category](Draw(generator))
