"""Test the training data of the classifier at toy size: objects, views, perturbations and augmentation."""

from dataclasses import replace

import pytest
import torch
from multiprocess_harness import warm_context
from toy_dataset import CATEGORIES, CPU, DATASET, Ball, make_renderer

from data.make_classifier import dataset as dataset_module
from data.make_classifier.augment import augment
from data.make_classifier.dataset import (
    MATERIAL_NAMES,
    held_out,
    perturbed_mesh,
    render_datasets,
    render_instance,
    render_share,
)
from data.make_classifier.negatives import make_negative
from data.make_classifier.train import directional, total_loss
from dataset.cameras import step_generator
from dataset.procedural.materials import dressed
from dataset.procedural.random_draw import Draw
from render.mesh import face_cross
from training.evaluation.classifier import ClassifierOutput
from training.evaluation.views import VIEWS


@pytest.fixture(scope="module")
def renderer():
    return make_renderer()


def test_perturbation_has_the_given_amplitude(renderer):
    whole = perturbed_mesh(Ball(), renderer, 0.0, torch.Generator())
    rough = perturbed_mesh(Ball(), renderer, 0.05, torch.Generator().manual_seed(0))
    assert whole.v_pos.norm(dim=-1).std() < 0.005
    assert 0.005 < rough.v_pos.norm(dim=-1).std() < 0.05


def test_negatives_are_noise_or_plain_shapes_with_any_material(renderer):
    compact = []
    for seed in range(12):
        subject = make_negative(torch.Generator().manual_seed(seed))
        mesh = renderer.mesh(subject)
        assert len(mesh.faces) > 200
        kd, ks = dressed(subject, "red", Draw(torch.Generator())).material(mesh.v_pos)
        assert kd[:, 0].mean() > 3 * kd[:, 2].mean()
        # `compact` contains the surface area of each object, divided by that of a sphere with the same
        # radius.
        area = face_cross(mesh.v_pos, mesh.faces).norm(dim=-1).sum() / 2
        compact.append((area / (4 * torch.pi * mesh.v_pos.norm(dim=-1).max() ** 2)).item())
    assert min(compact) < 0.9 and max(compact) > 1.5


def test_instance_is_deterministic(renderer):
    first, again = render_instance(DATASET, renderer, 1, 3), render_instance(DATASET, renderer, 1, 3)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    assert not torch.equal(first.normal, render_instance(DATASET, renderer, 1, 4).normal)
    assert len(first.material.unique()) > 1


def test_shares_and_workers_equal_one_process(monkeypatch):
    monkeypatch.setattr(dataset_module.multiprocessing, "get_context", warm_context)
    dataset = replace(DATASET, categories=("mug",), instances=3, views=4, grid=24, image_size=16)
    whole = render_datasets([dataset], CPU, 1e9, 0)[0]
    assert whole.asset.tolist() == [n for n in range(3) for _ in range(4)]
    (even,), (odd,) = (render_share([dataset], share, 2, "cpu", 1e9) for share in (0, 1))
    assert even["asset"].tolist() == [0] * 4 + [2] * 4 and odd["asset"].tolist() == [1] * 4
    assert (whole.shaded[4:8].numpy() == odd["shaded"]).all()
    other = render_datasets([replace(dataset, instances=1)], CPU, 1e9, 1)[0]
    assert (whole.normal[:4].int() - other.normal.int()).abs().max() <= 1
    assert torch.equal(whole.material[:4], other.material)


def test_expired_time_limit_keeps_one_instance_per_category():
    datasets = [held_out(DATASET, 6, 3, 0.0), replace(DATASET, grid=24, image_size=16, views=4)]
    for images in render_datasets([replace(w, grid=24, image_size=16) for w in datasets], CPU, 0.0, 0):
        assert images.category.unique().tolist() == [0, 1] and len(images.asset.unique()) == 2


def test_held_out_assets_have_evaluation_views_and_one_material(renderer):
    images = render_datasets([held_out(DATASET, 6, 1, 0.0)], CPU, 1e9, 0)[0]
    assert len(images) == VIEWS * len(CATEGORIES)
    assert images.side.reshape(-1, VIEWS)[:, [0, 2, 4, 6]].tolist() == [[0, 1, 2, 1]] * len(CATEGORIES)
    materials = images.material.reshape(-1, VIEWS)
    assert (materials == materials[:, :1]).all() and materials.max() < len(MATERIAL_NAMES)
    assert images.asset.reshape(-1, VIEWS)[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("domain", ["normal", "shaded"])
def test_augmentation_changes_images_but_not_the_background(domain):
    empty = 0.0 if domain == "normal" else -1.0
    images = torch.full((12, 3, 32, 32), empty)
    images[:, :, 10:22, 10:22] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    changed = augment(images, domain, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape and changed.abs().max() <= 1
    assert (changed[:, :, :2, :2] == empty).all()
    assert ((changed - images).abs().amax((1, 2, 3)) > 0.05).all()
    if domain == "normal":
        # The first three images are not blurred, so the normals inside the object are unit vectors even with
        # noise.
        length = changed[:3].norm(dim=1)[:, 14:18, 14:18]
        assert length.quantile(0.5) == pytest.approx(1.0, abs=0.02)


def test_side_loss_only_for_directional_categories():
    assert directional(("mug", "car", "head"), torch.tensor([0, 1, 2])).tolist() == [False, True, True]
    images = render_datasets([replace(DATASET, instances=1, views=4)], CPU, 1e9, 0)[0]
    side = torch.zeros(8, 3, requires_grad=True)
    output = ClassifierOutput(torch.zeros(8, 2), torch.zeros(8, 0), side)
    total_loss(output, images, torch.arange(8), ("mug", "car")).backward()
    assert (side.grad[:4] == 0).all() and (side.grad[4:].abs().sum(1) > 0).all()


def test_random_streams_differ_from_the_prior():
    # The training objects of the prior are generated with seeds 1 and 2, and those of the classifier with
    # others.
    first = [step_generator(seed, 0, 0, 1).initial_seed() for seed in (1, 2, 7001, 7002, 7003)]
    assert len(set(first)) == 5
