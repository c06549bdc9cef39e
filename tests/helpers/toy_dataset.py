"""Make a dataset of two categories at toy size, for tests of the classifier."""

from dataclasses import replace

import torch

from data.make_classifier.dataset import DatasetConfig
from data.make_tiny_sd.renders import ObjectRenderer
from render.shade.light import LightConfig

CPU = torch.device("cpu")
CATEGORIES = ("mug", "car")
DIM = LightConfig(env_resolution=64)
DATASET = DatasetConfig(5, CATEGORIES, 2, views=8, image_size=32, grid=40, environment=DIM)


def make_renderer() -> ObjectRenderer:
    return ObjectRenderer(replace(DATASET.data, image_size=64), CPU)


class Ball:
    """An object that is a sphere of radius 0.5."""

    def signed_distance(self, points):
        return points.norm(dim=-1) - 0.5
