"""Test the computation of signed distances in another process."""

import sys

import numpy as np
import pytest
import torch
import trimesh

from geometry import mesh_distance
from geometry.mesh_distance import DistanceProcess, squared_distance_and_winding
from geometry.start_shape import StartShape


@pytest.fixture(scope="module")
def query():
    """Return positions, faces and points of a sphere of radius 1."""
    ball = trimesh.creation.icosphere(2)
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (400, 3))
    return np.array(ball.vertices), np.array(ball.faces, dtype=np.int64), points


def test_distances_of_another_process_are_equal(query, monkeypatch):
    shape = StartShape(*(torch.from_numpy(array) for array in query[:2]))
    points = torch.from_numpy(query[2]).float()
    finish = shape.start_signed_distance(points, many=len(points))
    expected = shape.signed_distance(points)
    # The result must be that of the process, so a computation in this process would fail.
    monkeypatch.setattr(mesh_distance, "squared_distance_and_winding", None)
    assert torch.equal(finish(), expected)
    assert (expected - (points.norm(dim=1) - 1)).abs().max() < 0.04


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
def test_result_is_computed_here_if_the_process_fails(query, program, monkeypatch):
    monkeypatch.setattr(sys, "executable", program)
    for found, expected in zip(
        DistanceProcess(*query).result(), squared_distance_and_winding(*query), strict=True
    ):
        assert np.array_equal(found, expected)


def test_few_points_start_no_process(query, monkeypatch):
    monkeypatch.setattr("geometry.start_shape.DistanceProcess", None)
    shape = StartShape(*(torch.from_numpy(array) for array in query[:2]))
    finish = shape.start_signed_distance(torch.from_numpy(query[2]))
    assert torch.equal(finish(), shape.signed_distance(torch.from_numpy(query[2])))
