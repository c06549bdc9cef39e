"""Test the classifier at toy size: its accuracy, and the evaluation of exported files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from toy_dataset import CATEGORIES, CPU, DIM, Ball, make_renderer

from data.make_classifier.dataset import (
    MATERIAL_NAMES,
    perturbed_mesh,
)
from data.make_classifier.make import MakeConfig, make_classifier
from data.make_classifier.negatives import make_negative
from data.make_classifier.train import two_faced
from dataset.cameras import sample_cameras
from dataset.procedural import make_object
from dataset.procedural.materials import MATERIALS, dressed
from dataset.procedural.random_draw import Draw
from render.camera import orbit
from render.mesh_io.write_obj import write_obj
from render.texturing.bake import bake
from render.texturing.uv import unwrap
from training.evaluation import __main__ as program
from training.evaluation.assets import Target, find_run, load_asset, parse_target, textured
from training.evaluation.classifier import NOTHING, SIDES, load_classifier, save_classifier
from training.evaluation.r_precision import Evaluator, describe, mean_probabilities
from training.evaluation.views import (
    TRAINING_CAMERAS,
    VIEWS,
    azimuths,
    back_view,
    degrees,
    evaluation_cameras,
    render_views,
)

# With this seed, make_negative returns a noise object.
NOISE = 3


@pytest.fixture(scope="module")
def renderer():
    return make_renderer()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    config = MakeConfig(
        out=tmp_path_factory.mktemp("classifier") / "toy",
        categories=CATEGORIES,
        instances=4,
        held_out_instances=2,
        batch=24,
        steps=50,
        widths=(8, 16, 24, 32),
        image_size=32,
        grid=40,
        environment=DIM,
        minutes=60,
    )
    make_classifier(config, CPU)
    return config.out


def export(folder, renderer, category, material=None, *, painted=True, seed=400, with_checkpoint=True):
    """Write the folder of a run with a perfect result: mesh, textures, and a checkpoint with the prompt."""
    generator = torch.Generator().manual_seed(seed)
    subject = make_object(category, generator)
    if material:
        subject = dressed(subject, material, Draw(generator))
    mesh, textures = unwrap(renderer.mesh(subject), "uvunwrap", (256, 256), 2), None
    if painted:

        def field(points):
            flat = torch.tensor([0.0, 0.0, 1.0]).expand_as(points)
            return {**dict(zip(("kd", "ks"), subject.material(points), strict=True)), "normal": flat}

        textures = bake(mesh, field, (256, 256), renderer.rasteriser)
    write_obj(folder / "dmtet_mesh", mesh, textures)
    if with_checkpoint:
        mode = "appearance_modeling" if painted else "geometry_modeling"
        write_state(folder, f"A DSLR photo of a {material or ''} {category}", mode)
    return subject


def write_state(folder, text, mode, step=7):
    state = folder / f"checkpoints/step_{step:06d}/state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"step": step, "meta": {"settings": {"text": text, "mode": mode}}}))


@pytest.fixture(scope="module")
def fixed_classifier(classifier, tmp_path_factory):
    """Return the toy classifier, modified to classify every painted surface as a red mug."""
    loaded = load_classifier(classifier, CPU)
    network = loaded.networks["shaded"]
    with torch.no_grad():
        for head, answer in (
            (network.category, CATEGORIES.index("mug")),
            (network.material, MATERIAL_NAMES.index("red")),
        ):
            head.weight.zero_()
            head.bias.zero_()
            head.bias[answer] = 5.0
    folder = tmp_path_factory.mktemp("fixed_classifier")
    save_classifier(folder, loaded)
    return folder


# The following tests check images.


def test_azimuths_of_cameras():
    assert azimuths(orbit(8, (8, 8), 25.0)).rad2deg() % 360 == pytest.approx([45.0 * k for k in range(8)])
    cameras = sample_cameras(TRAINING_CAMERAS, 4, (8, 8), torch.Generator().manual_seed(0))
    expected = torch.arange(4) * 90.0
    off = (azimuths(cameras).rad2deg() - expected + 180) % 360 - 180
    assert off.abs().max() <= 45.001
    assert degrees(back_view()) == 180


def test_rotated_normals_of_a_sphere_do_not_depend_on_the_azimuth(renderer):
    # With rotated normals, the image of a sphere is the same from all sides. With world-space normals, the
    # images would differ.
    sphere = perturbed_mesh(Ball(), renderer, 0.0, torch.Generator())
    views = render_views(sphere, evaluation_cameras(48), renderer.rasteriser, renderer.light)
    assert views.shaded is None
    assert views.mask[0].mean() > 0.2
    spread = (views.normal - views.normal[:1]).abs().amax(1)
    # The sphere is a mesh, so its outlines in the views differ by some pixels.
    assert spread.flatten(1).quantile(0.97, dim=1).max() < 0.12
    middle = views.normal[:, :, 24, 24]
    # The normal at the centre points to the camera. The rotation of the normals maps this normal
    # approximately to +z. The rotated normal also points slightly up, because the camera is above the sphere.
    assert (middle[:, 2] > 0.9).all() and (middle[:, 1] > 0.2).all()


def test_light_yaw_rotates_the_light(renderer):
    subject = make_object("mug", torch.Generator().manual_seed(0))
    mesh, views = renderer.mesh(subject), evaluation_cameras(32).select(slice(0, 1))

    def shaded(yaw):
        def paint(points):
            return (*subject.material(points.position), points.normal)

        return render_views(
            mesh, views, renderer.rasteriser, renderer.light, paint, torch.tensor([yaw])
        ).shaded

    assert (shaded(0.0) - shaded(2 * torch.pi)).abs().max() < 1e-3
    assert (shaded(0.0) - shaded(2.0)).abs().max() > 0.02


def test_toy_classifier_recognises_held_out_objects(classifier):
    record = load_classifier(classifier, CPU).record
    whole = record["held_out"]["whole"]
    assert whole["assets"] == 6
    assert whole["normal"]["category_of_a_view"] > 0.8
    assert whole["shaded"]["category_of_a_view"] > 0.6
    # The bound is three times the probability 1 / 15 that a random guess is correct.
    assert whole["shaded"]["material_of_a_view"] > 0.2
    assert set(record["held_out"]) == {"whole", "perturbed"}
    assert record["seeds"]["training"] not in (1, 2) and record["seeds"]["held_out"] not in (1, 2, 7001)


def test_folder_is_small_and_its_card_has_the_accuracies(classifier):
    loaded = load_classifier(classifier, CPU)
    card = (classifier / "README.md").read_text()
    assert f"{loaded.record['held_out']['whole']['normal']['category_of_a_view']:.3f}" in card
    assert all(name in card for name in (*CATEGORIES, *MATERIALS))
    assert "apache-2.0" in card and "{" not in card
    halves = sum(
        w.element_size() * w.numel() for n in loaded.networks.values() for w in n.state_dict().values()
    )
    assert (classifier / "model.safetensors").stat().st_size < 0.7 * halves


def test_full_size_classifier_is_below_three_megabytes():
    from training.evaluation.classifier import ClassifierSettings, make_networks

    networks = make_networks(ClassifierSettings(tuple(map(str, range(31))), MATERIAL_NAMES, 96), CPU)
    count = sum(w.numel() for network in networks.values() for w in network.state_dict().values())
    assert 2 * count < 2.8e6


def test_classifier_is_saved_from_any_memory_layout(classifier, tmp_path):
    loaded = load_classifier(classifier, CPU)
    for network in loaded.networks.values():
        network.to(memory_format=torch.channels_last)
    save_classifier(tmp_path, loaded)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for domain in loaded.networks:
        before, after = loaded.predict(domain, images), load_classifier(tmp_path, CPU).predict(domain, images)
        assert torch.allclose(before.category, after.category, atol=1e-4)
        assert torch.allclose(after.category.exp().sum(-1), torch.ones(3))
    assert load_classifier(tmp_path, CPU).settings == loaded.settings


def test_two_faced_means_a_front_on_both_sides():
    def asset(front, back):
        logs = torch.full((VIEWS, 3), -2.0)
        logs[0, SIDES.index(front)] = logs[back_view(), SIDES.index(back)] = -0.1
        return logs

    cases = [("front", "front"), ("front", "back"), ("back", "front"), ("front", "side"), ("back", "back")]
    logs = torch.stack([asset(*case) for case in cases])
    assert two_faced(logs).tolist() == [True, False, False, False, False]


# The following tests check prompts.


@pytest.mark.parametrize(
    ("prompt", "category", "material"),
    [
        ("A pineapple", "pineapple", None),
        ("a DSLR photo of a red mug, front view", "mug", "red"),
        ("An ICE-CREAM cone", "ice_cream_cone", None),
        ("a chair made of wood", "chair", "wooden"),
        ("a teapot made out of gold", "teapot", "golden"),
        ("a wooden teapot, red", "teapot", "wooden"),
        ("a golden retriever in a car", "car", "golden"),
        ("a goldsmith's mug", "mug", None),
        ("a silver car", "car", "silver"),
    ],
)
def test_category_and_material_are_parsed_from_the_prompt(prompt, category, material):
    categories = ("cone", "pine", "mug", "pineapple", "chair", "car", "ice_cream_cone", "teapot")
    assert parse_target(prompt, categories) == Target(category, material)


def test_prompt_without_category_is_an_error():
    with pytest.raises(ValueError, match="'A zebra'.*mug, car"):
        parse_target("A zebra", CATEGORIES)


def test_prompt_is_read_from_the_newest_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_run(str(tmp_path / "none"), CATEGORIES)
    with pytest.raises(ValueError, match="A red mug"):
        find_run(str(tmp_path), CATEGORIES)
    write_state(tmp_path, "A car", "geometry_modeling", step=900)
    write_state(tmp_path, "A red mug", "appearance_modeling", step=1600)
    run = find_run(str(tmp_path), CATEGORIES)
    assert (run.prompt, run.target, run.domain, run.steps) == (
        "A red mug",
        Target("mug", "red"),
        "shaded",
        1600,
    )
    assert find_run(f"{tmp_path}=a car", CATEGORIES).target == Target("car", None)


def test_folder_name_with_equals_sign(tmp_path):
    folder = tmp_path / "seed=1_text=A red mug"
    write_state(folder, "A red mug", "geometry_modeling", step=900)
    assert find_run(str(folder), CATEGORIES) == find_run(f"{folder}=A red mug", CATEGORIES)
    assert find_run(str(folder), CATEGORIES).folder == folder
    assert find_run(f"{folder}=a car", CATEGORIES).target == Target("car", None)
    with pytest.raises(FileNotFoundError, match="seed=2 does not exist"):
        find_run(str(tmp_path / "seed=2"), CATEGORIES)


# The following tests check results.


def test_textures_equal_the_baked_material(tmp_path, renderer):
    subject = export(tmp_path, renderer, "mug", "golden")
    run = find_run(str(tmp_path), CATEGORIES)
    mesh, textures = load_asset(run, CPU)
    difference = []

    def paint(points):
        kd, ks, normal = textured(mesh, textures, renderer.rasteriser)(points)
        true_kd, true_ks = subject.material(points.position)
        difference.extend([(kd - true_kd).abs(), (ks - true_ks).abs(), (normal - points.normal).abs()])
        return kd, ks, normal

    render_views(mesh, evaluation_cameras(64), renderer.rasteriser, renderer.light, paint)
    # The tolerances allow 8-bit quantisation, and wrong values in a few texels between charts.
    assert all(values.quantile(0.98) < 0.03 for values in difference)


def test_views_are_averaged_as_log_probabilities():
    # The second view is more confident and decides the result: 0.9 · 0.001 is less than 0.1 · 0.999.
    views = torch.tensor([[0.9, 0.1], [0.001, 0.999]]).log()[None]
    odds = (0.9 * 0.001 / (0.1 * 0.999)) ** 0.5
    assert mean_probabilities(views)[0].item() == pytest.approx(odds / (1 + odds), rel=1e-4)


def test_evaluation_of_shapes(tmp_path, renderer, classifier):
    for category in CATEGORIES:
        export(tmp_path / category, renderer, category, painted=False)
    out = tmp_path / "evaluation.json"
    arguments = ["--classifier", str(classifier), "--out", str(out), "--device", "cpu"]
    assert program.main([*(str(tmp_path / category) for category in CATEGORIES), *arguments]) == 0
    found = json.loads(out.read_text())
    assert found["r_precision"] == {
        "normal": {"assets": 2, "category": 1.0, "by_category": {"car": "1 of 1", "mug": "1 of 1"}}
    }
    assert [asset["evaluation"] for asset in found["assets"]] == [
        {"category": category} for category in CATEGORIES
    ]
    assert found["failures"] == found["confusions"] == []
    assert [len(asset["views"]) for asset in found["assets"]] == [VIEWS] * 2
    views = found["assets"][0]["views"]
    logs = (
        torch.tensor([[view["categories"][k] for k in (*CATEGORIES, NOTHING)] for view in views])
        .log()
        .mean(0)
    )
    assert found["assets"][0]["probability"]["category"] == pytest.approx(logs.softmax(0)[0].item(), abs=5e-3)
    assert all(view["expected"] == view["categories"]["mug"] for view in views)
    # two_faced exists only for categories that have a front. In this test, the car has a front and the mug
    # has none.
    assert ["two_faced" in asset for asset in found["assets"]] == [False, True]
    assert found["two_faced"]["normal"]["assets"] == 1
    assert found["classifier"]["held_out"]["whole"]["assets"] == 6


def test_evaluation_of_painted_assets(tmp_path, renderer, fixed_classifier):
    # All painted surfaces are classified as red mugs, so the category is correct for two prompts and the
    # material for one. Run "d" has no mesh.
    for name, prompt in (("a", "a red mug"), ("b", "a blue mug"), ("c", "a car"), ("d", "a golden car")):
        export(tmp_path / name, renderer, "mug", "green", with_checkpoint=False)
        write_state(tmp_path / name, prompt, "appearance_modeling", step=500)
    (tmp_path / "d/dmtet_mesh/mesh.obj").unlink()
    out, sheet = tmp_path / "evaluation.json", tmp_path / "sheet.jpg"
    arguments = [
        "--classifier",
        str(fixed_classifier),
        "--out",
        str(out),
        "--sheet",
        str(sheet),
        "--columns",
        "3",
    ]
    runs = [str(tmp_path / name) for name in "abcd"]
    assert program.main([*runs, *arguments, "--device", "cpu"]) == 0
    found = json.loads(out.read_text())
    assert found["r_precision"] == {
        "shaded": {
            "assets": 4,
            "category": 0.5,
            "by_category": {"car": "0 of 2", "mug": "2 of 2"},
            "assets_with_material": 3,
            "material": pytest.approx(1 / 3, abs=1e-4),
        }
    }
    assert [asset["category_right"] for asset in found["assets"]] == [True, True, False, False]
    assert [asset.get("material_right") for asset in found["assets"]] == [True, False, None, False]
    reasons = {failure["prompt"]: failure["reason"] for failure in found["failures"]}
    assert set(reasons) == {"a blue mug", "a car", "a golden car"}
    assert (
        reasons["a blue mug"] == "material looks like red" and reasons["a car"] == "category looks like mug"
    )
    assert "no mesh" in reasons["a golden car"] and "500" in reasons["a golden car"]
    assert {"what": "category", "expected": "car", "evaluation": "mug", "count": 1} in found["confusions"]
    with Image.open(sheet) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).float()
    cell = (picture.width - 8) // 3
    for number, green in ((0, True), (3, False)):
        top, left = number // 3 * (picture.height - 8) // 2, number % 3 * cell
        caption = pixels[top + 144 + 28 : top + 144 + 48, left + 8 : left + cell]
        excess = (caption[..., 1] - caption[..., 0]).flatten()
        assert (excess.max() > 60) == green and (excess.min() < -60) == (not green)
    # The picture in the first cell shows a green mug.
    seen = pixels[40:110, 8:150]
    assert ((seen[..., 1] - seen[..., 0]) > 40).float().mean() > 0.1


def test_noise_is_not_a_car(tmp_path, renderer, classifier):
    mesh = renderer.mesh(make_negative(torch.Generator().manual_seed(NOISE)))
    write_obj(tmp_path / "run/dmtet_mesh", mesh)
    loaded = load_classifier(classifier, CPU)
    run = find_run(f"{tmp_path / 'run'}=a car", CATEGORIES)
    record = describe(Evaluator(loaded, DIM).evaluate_run(run), loaded)
    assert record["evaluation"]["category"] == NOTHING and record["category_right"] is False


def test_invalid_mesh_is_a_failure_with_its_reason(tmp_path, classifier):
    mesh = tmp_path / "run/dmtet_mesh/mesh.obj"
    mesh.parent.mkdir(parents=True)
    mesh.write_text("v 0 0 nan\n")
    loaded = load_classifier(classifier, CPU)
    evaluation = Evaluator(loaded, DIM).evaluate_run(find_run(f"{tmp_path / 'run'}=a mug", CATEGORIES))
    assert evaluation.prediction is None and "mesh.obj" in evaluation.failure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        ([".=a mug", "--classifier", "missing"], "python3 -m data.make_classifier"),
        ([".=a mug", "--sheet", "sheet.gif"], "sheet.gif: name a .jpg or .png file"),
    ],
)
def test_user_errors_are_one_line(arguments, message, classifier, capsys):
    if "--classifier" not in arguments:
        arguments = [*arguments, "--classifier", str(classifier)]
    assert program.main([*arguments, "--out", str(classifier / "unused.json"), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().out
