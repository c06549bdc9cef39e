"""Test the training of the embedded prior at toy size: captions, tokenizer, data, and a resumed command."""

import json
from dataclasses import replace

import pytest
import torch
from multiprocess_harness import run
from transformers import CLIPTokenizer

from configs.modes import MODES
from data.make_tiny_sd import samples, train_control
from data.make_tiny_sd import train as program
from data.make_tiny_sd.captions import (
    DROPPED_SHARE,
    SUBSTANCE_TEMPLATES,
    TEMPLATES,
    VIEW_SHARE,
    CaptionTable,
    descriptions,
)
from data.make_tiny_sd.compare import crop
from data.make_tiny_sd.compile import predict
from data.make_tiny_sd.lr_schedule import StageSchedule, cosine_learning_rate
from data.make_tiny_sd.networks import (
    SCHEDULE,
    TOY_SHAPE,
    Shape,
    build_scheduler,
    build_unet,
    parameter_count,
)
from data.make_tiny_sd.renders import MATERIAL_NAMES, DataConfig, draw_materials, load_views
from data.make_tiny_sd.tokenizer import byte_symbols, learn_merges, write_tokenizer
from data.make_tiny_sd.train_unet import domain_sizes, draw_latents, draw_rows
from data.make_tiny_sd.train_vae import Latents, random_rotations, recolour, rotate_normals
from dataset.procedural import CATEGORIES
from dataset.procedural.materials import HELD_OUT, MATERIALS
from dataset.procedural.random_draw import Draw
from render.camera import orbit
from sd.conditions import ViewConditions
from sd.loading.control_folder import load_control_net, resolve_control_net
from sd.prompts import directional_prompts
from sd.stable_diffusion import StableDiffusion

TWO_CATEGORIES = ("mug", "ice_cream")


@pytest.fixture(scope="module", autouse=True)
def few_sampling_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "STEPS", 3)
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, CaptionTable(CATEGORIES).captions)
    return CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    ["a pineapple, front view", "zebra quilt xylophone jackdaw", "größe 漢字 ü!?", "_ 3d 1999 model's"],
)
def test_tokenizer_is_lossless_for_any_text(tokenizer, text):
    numbers = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in numbers[1:-1]
    assert tokenizer.decode(numbers, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_prompt_words_are_single_tokens(tokenizer):
    words = tokenizer.convert_ids_to_tokens(tokenizer("A pineapple, front view").input_ids)
    inside = ["a</w>", "pineapple</w>", ",</w>", "front</w>", "view</w>"]
    assert words == ["<|startoftext|>", *inside, "<|endoftext|>"]


def test_tokenizer_pads_as_clip_does_and_is_small(tokenizer):
    numbers = tokenizer("a mug", padding="max_length", truncation=True).input_ids
    assert len(numbers) == tokenizer.model_max_length == 77
    assert set(numbers[4:]) == {tokenizer.eos_token_id}
    assert len(tokenizer) <= 2000


def test_bytes_have_256_printable_symbols():
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    assert all(symbol.isprintable() and not symbol.isspace() for symbol in symbols)
    assert {"a", "~", "Ġ", "Ĥ", "Ń"} <= set(symbols)  # In GPT-2's table, "Ġ" represents a space.


def test_merges_follow_frequency():
    # The pair (x, a) occurs three times, (a, b</w>) twice and (a, y</w>) once. After (x, a) is merged, xab is
    # more frequent than xay.
    assert learn_merges(["xab xab xay"]) == [("x", "a"), ("xa", "b</w>"), ("xa", "y</w>")]


def test_captions_include_directional_and_negative_prompts():
    table = CaptionTable(TWO_CATEGORIES)
    assert set(directional_prompts("a mug", True)) <= set(table.captions)
    assert "an ice cream, side view" in table.captions
    assert {"", *(mode.negative_prompt for mode in MODES.values())} <= set(table.captions)


def test_drawn_captions_match_labels_and_shares():
    table = CaptionTable(TWO_CATEGORIES)
    count = 20000
    generator = torch.Generator().manual_seed(0)
    category = torch.randint(2, (count,), generator=generator)
    view = torch.randint(3, (count,), generator=generator)
    material = torch.randint(1 + len(MATERIALS), (count,), generator=generator)
    drawn = [table.captions[row] for row in table.draw(category, view, material, generator).tolist()]
    empty = {"", *(mode.negative_prompt for mode in MODES.values())}
    described = [
        (text, k, v, m)
        for text, k, v, m in zip(drawn, category.tolist(), view.tolist(), material.tolist(), strict=True)
        if text not in empty
    ]
    assert len(described) / count == pytest.approx(1 - DROPPED_SHARE, abs=0.01)
    assert all(("mug", "ice cream")[k] in text for text, k, _, _ in described)
    with_view = [(text, v) for text, _, v, _ in described if text.endswith(" view")]
    assert len(with_view) / len(described) == pytest.approx(VIEW_SHARE, abs=0.015)
    assert all(text.endswith((", front view", ", side view", ", back view")[v]) for text, v in with_view)
    # The caption names the material of the view and no other material.
    for text, _, _, m in described:
        words = set(text.replace(",", "").split())
        named = {
            name for name, material in MATERIALS.items() if {material.adjective, material.substance} & words
        }
        assert named == ({MATERIAL_NAMES[m - 1]} if m else set())
    substances = sum(material.substance is not None for material in MATERIALS.values())
    wordings = (1 + len(MATERIALS)) * len(set(TEMPLATES)) + substances * len(SUBSTANCE_TEMPLATES)
    assert len({text for text, _, _, _ in described}) == 2 * 4 * wordings


def test_materials_as_adjective_or_noun():
    described = descriptions("ice_cream", MATERIALS["golden"])
    assert "a golden ice cream" in described and "an ice cream made of gold" in described
    assert descriptions("apple", MATERIALS["orange"])[0] == "an orange apple"
    assert len(described) == len(descriptions("mug")) == len(descriptions("mug", MATERIALS["red"]))


def test_views_have_all_materials_except_held_out_ones():
    category = next(category for category, _ in sorted(HELD_OUT) if category in CATEGORIES)
    config = DataConfig(categories=(category,), views=10, own_share=0.4, materials=3)
    seen = set()
    for seed in range(200):
        drawn = draw_materials(config, 0, Draw(torch.Generator().manual_seed(seed))).tolist()
        assert drawn.count(0) == 4 and 1 <= len(set(drawn) - {0}) <= 3
        seen |= set(drawn)
    held_out = {1 + MATERIAL_NAMES.index(name) for name in MATERIALS if (category, name) in HELD_OUT}
    assert held_out and seen == set(range(1 + len(MATERIALS))) - held_out


def test_noise_schedule_equals_stable_diffusion():
    # The expected values are the first and last abar that were published with SD 1.x and 2.x.
    abar = build_scheduler().alphas_cumprod
    assert len(abar) == SCHEDULE["num_train_timesteps"] == 1000
    assert abar[0].item() == pytest.approx(1 - 0.00085, abs=1e-6)
    assert abar[-1].item() == pytest.approx(0.00466, abs=1e-4)


def test_denoiser_has_the_stated_size():
    assert 5e6 < parameter_count(build_unet(Shape())) < 8e6
    assert Shape().image_size == 128


def test_sampling_recovers_a_single_image():
    # If all data equals mu, the noise in x_t is (x_t − sqrt(abar) mu) / sqrt(1 − abar). DDIM steps do not
    # change this noise, so the last image is mu plus this noise times sqrt(0.00085), its standard deviation
    # at SD's first step.
    abar = build_scheduler().alphas_cumprod
    mu = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def denoiser(noisy, timesteps, encoder_hidden_states, return_dict):
        signal = abar[timesteps].view(-1, 1, 1, 1)
        return ((noisy - signal.sqrt() * mu) / (1 - signal).sqrt(),)

    text, empty = torch.ones(3, 77, 16), torch.zeros(1, 77, 16)
    found = samples.ddim(denoiser, text, empty, torch.zeros(1, 4, 8, 8), torch.Generator().manual_seed(0))
    assert found.shape == (3, 4, 8, 8)
    assert (found - mu).square().mean().sqrt().item() == pytest.approx(0.00085**0.5, rel=0.1)


def test_rotated_normals_keep_the_background():
    generator = torch.Generator().manual_seed(0)
    normals = torch.zeros(4, 3, 2, 2)
    normals[:, :, 0, 0] = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=-1)
    rotation = random_rotations(4, generator)
    turned = rotate_normals(normals, rotation)
    for image in range(4):
        assert torch.allclose(turned[image, :, 0, 0], rotation[image] @ normals[image, :, 0, 0], atol=1e-6)
    assert torch.allclose(turned[:, :, 0, 0].norm(dim=-1), torch.ones(4), atol=1e-5)
    assert turned[:, :, 1, 1].abs().max() == 0
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(4), atol=1e-5)


def test_recoloured_black_stays_black():
    images = torch.full((3, 3, 4, 4), -1.0)
    images[:, :, 0, 0] = 0.5
    changed = recolour(images, torch.Generator().manual_seed(1))
    assert (changed[:, :, 1, 1] == -1).all()
    assert not torch.allclose(changed[:, :, 0, 0], images[:, :, 0, 0])


def test_a_batch_holds_a_third_of_each_domain():
    shape = (5, 4, 2, 2)
    latents = Latents(
        coarse=torch.zeros(shape).half(),
        normal_mean=torch.full(shape, 1.0).half(),
        normal_deviation=torch.zeros(shape).half(),
        shaded_mean=torch.full(shape, 3.0).half(),
        shaded_deviation=torch.zeros(shape).half(),
        category=torch.arange(5),
        view=torch.arange(5) % 3,
        material=torch.zeros(5, dtype=torch.long),
        camera=torch.zeros(5, 4, 4),
    )
    x0, rows = draw_latents(latents, 10, 0.5, torch.Generator().manual_seed(0))
    assert domain_sizes(10) == [4, 3, 3]
    assert x0[:, 0, 0, 0].tolist() == [0.0] * 4 + [0.5] * 3 + [1.5] * 3
    assert rows.shape == (10,) and 0 <= rows.min() and rows.max() < 5


def test_progress_and_learning_rate():
    schedule = StageSchedule(seconds=1e9, steps=10, start=0.5)
    assert [schedule.progress(step) for step in (0, 5, 10, 20)] == [0.5, 0.75, 1.0, 1.0]
    assert cosine_learning_rate(0.03, 2.0) == pytest.approx(2.0)
    assert cosine_learning_rate(1.0, 2.0) == pytest.approx(0.02)
    assert cosine_learning_rate(0.015, 2.0) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Run the training program at toy size. Return the folder of its outputs, and its arguments."""
    root = tmp_path_factory.mktemp("toy")
    arguments = ["--toy", "--device", "cpu", "--categories", "mug", "chair", "--keep-data"]
    arguments += ["--out", str(root / "tiny-sd"), "--work", str(root / "work"), "--minutes", "30"]
    assert program.main(arguments) == 0
    return root, arguments


def test_toy_folder_loads_in_diffusers(toy):
    folder = toy[0] / "tiny-sd"
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    picture = pipeline("a mug", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)
    prior = StableDiffusion.from_pretrained(str(folder), torch.device("cpu"))
    assert (prior.latent_size, prior.image_size, prior.latent_channels) == (8, 32, 4)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert prior.encode(images, torch.zeros(2, 4, 8, 8)).shape == (2, 4, 8, 8)
    assert not torch.allclose(prior.embed(["a mug"]), prior.embed([""]))


def test_scaling_factor_gives_unit_deviation(toy):
    root, _ = toy
    views = load_views(root / "work" / "views_0_of_1", torch.device("cpu"))
    prior = StableDiffusion.from_pretrained(str(root / "tiny-sd"), torch.device("cpu"))
    rows = torch.arange(len(views))
    images = torch.cat([views.normal_images(rows), views.shaded_images(rows)])
    latents = prior.encode(images, torch.randn(len(images), 4, 8, 8))
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)


def test_rendered_views_match_the_phases(toy):
    root, _ = toy
    views = load_views(root / "work" / "views_0_of_1", torch.device("cpu"))
    rows = torch.arange(len(views))
    assert len(views) == 2 * 2 * 4
    coarse, shaded = views.coarse_images(rows), views.shaded_images(rows)
    inside, outside = views.mask[:, 0] == 255, views.mask[:, 0] == 0
    assert 0.03 < inside.float().mean() < 0.5
    lengths = coarse[:, :3].norm(dim=1)
    assert (lengths[inside] - 1).abs().median() < 0.02
    assert lengths[outside].max() == 0
    # Pixels next to the outline are excluded, because there the 8-bit mask can round to 0 while the sRGB
    # colour does not.
    away = torch.nn.functional.max_pool2d(views.mask.float(), 3, 1, 1)[:, 0] == 0
    assert away.float().mean() > 0.3 and (shaded.permute(0, 2, 3, 1)[away] == -1).all()
    # No object touches the border of the image, so each object is completely visible.
    assert views.mask[:, :, 0].max() == views.mask[:, :, :, -1].max() == 0


def test_same_command_resumes(toy, capsys):
    root, arguments = toy
    path = root / "work" / "denoiser.pt"
    state = torch.load(path, weights_only=True)
    assert state["numbers"]["step"] == 30 and state["numbers"]["progress"] == 1.0
    state["numbers"]["progress"] = 0.5
    torch.save(state, path)
    vae_written = (root / "work" / "vae.pt").stat().st_mtime_ns
    assert program.main(arguments) == 0
    after = torch.load(path, weights_only=True)["numbers"]
    assert after["step"] > 30 and after["progress"] == 1.0
    assert (root / "work" / "vae.pt").stat().st_mtime_ns == vae_written


def test_init_from_a_folder_and_rejection_of_other_settings(toy, capsys):
    root, arguments = toy
    assert program.main([*arguments, "--seed", "2"]) == 2
    assert "--work" in capsys.readouterr().out
    # The second --work and --out options override those in `arguments`.
    fresh = [*arguments, "--work", str(root / "work2"), "--out", str(root / "second")]
    assert program.main([*fresh, "--export-only"]) == 2
    assert program.main([*fresh, "--init", str(root / "tiny-sd")]) == 0
    factors = [
        json.loads((root / name / "vae" / "config.json").read_text())["scaling_factor"]
        for name in ("tiny-sd", "second")
    ]
    assert factors[0] == factors[1]


def test_two_processes_train_one_denoiser(toy, tmp_path):
    """Each process renders half of the objects. With averaged gradients, the replicas stay identical."""
    _, arguments = toy
    places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    codes, text = run(2, [*arguments, *places], tmp_path, main=program.main)
    assert codes == [0, 0], text
    for rank in range(2):
        assert len(list((tmp_path / f"views_{rank}_of_2").glob("shard_*.pt"))) == 1
    assert text.count("the replicas agree") == 2
    assert StableDiffusion.from_pretrained(str(tmp_path / "out"), torch.device("cpu")).latent_size == 8


def test_groups_of_views_have_one_row_block_one_rotation_and_no_mixed_domains():
    shape = (16, 4, 2, 2)
    coarse = torch.zeros(shape)
    coarse[:, 0] = 1.0
    latents = Latents(
        coarse=coarse.half(),
        normal_mean=torch.full(shape, 1.0).half(),
        normal_deviation=torch.zeros(shape).half(),
        shaded_mean=torch.full(shape, 3.0).half(),
        shaded_deviation=torch.zeros(shape).half(),
        category=torch.arange(16),
        view=torch.arange(16) % 4 % 3,
        material=torch.zeros(16, dtype=torch.long),
        camera=torch.zeros(16, 4, 4),
    )
    x0, rows = draw_latents(latents, 20, 1.0, torch.Generator().manual_seed(0), views=4)
    assert domain_sizes(20, 4) == [12, 4, 4]
    groups = rows.view(-1, 4)
    assert (groups[:, :1] % 4 == 0).all() and torch.equal(
        groups - groups[:, :1], torch.arange(4).expand(5, 4)
    )
    turned = x0[:12, :3, 0, 0].view(3, 4, 3)
    assert torch.equal(turned, turned[:, :1].expand(3, 4, 3)) and not torch.equal(turned[0], turned[1])
    assert x0[12:, 0, 0, 0].tolist() == [1.0] * 4 + [3.0] * 4
    rows = draw_rows(latents, 4000, torch.Generator().manual_seed(0), front_share=0.8)
    # With front_share = 0.8, a fifth of the rows is drawn from all 16 views, of which 8 are front views.
    assert (latents.view[rows] == 0).float().mean().item() == pytest.approx(0.8 + 0.2 * 0.5, abs=0.02)


def test_a_group_has_one_material():
    config = DataConfig(categories=("mug",), views=20, group=4, own_share=0.4, materials=3)
    drawn = draw_materials(config, 0, Draw(torch.Generator().manual_seed(0))).view(5, 4)
    assert torch.equal(drawn, drawn[:, :1].expand(5, 4)) and (drawn[:, 0] == 0).sum() == 2


def test_an_untrained_denoiser_of_four_views_takes_cameras_without_effect():
    torch.manual_seed(0)
    unet = build_unet(replace(TOY_SHAPE, views=4))
    noisy, time, text = torch.randn(4, 4, 8, 8), torch.full((4,), 300), torch.randn(4, 77, 16)
    found = [predict(unet, noisy, time, text, camera) for camera in torch.randn(2, 4, 16)]
    assert unet.config.views == 4 and torch.equal(*found)


@pytest.fixture(scope="module")
def four_views(toy):
    """Train a prior of four views, initialised from the toy prior. Return its folder."""
    root, arguments = toy
    options = ["--views-together", "4", "--init", str(root / "tiny-sd"), "--categories", "mug"]
    options += ["--out", str(root / "views"), "--work", str(root / "views_work")]
    assert program.main([*arguments, *options]) == 0
    return root / "views"


def test_a_prior_of_four_views_is_trained_and_exported(four_views):
    prior = StableDiffusion.from_pretrained(str(four_views), torch.device("cpu"))
    assert (prior.views, prior.takes_cameras, prior.latent_size) == (4, True, 8)
    assert prior.unet.class_embedding.linear_2.weight.abs().max() > 0
    assert "takes 4 views of an object together" in (four_views / "README.md").read_text()
    noisy, text = torch.randn(4, 4, 8, 8), prior.embed(["a mug"] * 4)
    found = prior.predict_noise(
        noisy, torch.full((4,), 300), text, ViewConditions(orbit(4, (8, 8)).world_to_clip)
    )
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--views-together", "4", "--views", "6"], "--views must be a multiple of 4"),
        (["--views-together", "4", "--camera-group", "2"], "--camera-group must equal"),
        (["--views-together", "4", "--front-share", "0.9"], "--front-share has no effect"),
    ],
)
def test_contradicting_options_are_refused(options, words, capsys):
    with pytest.raises(SystemExit):
        program.parse(options)
    assert words in capsys.readouterr().err
    assert program.parse(["--camera-group", "4"]).views == 20 and program.parse([]).views == 18


def test_a_depth_control_net_is_trained_and_used(toy, capsys):
    root, _ = toy
    arguments = ["--toy", "--device", "cpu", "--categories", "mug", "--prior", str(root / "tiny-sd")]
    arguments += ["--out", str(root / "depth"), "--work", str(root / "depth_work")]
    assert train_control.main(arguments) == 0
    prior = StableDiffusion.from_pretrained(str(root / "tiny-sd"), torch.device("cpu"))
    noisy, text = torch.randn(1, 4, 8, 8), prior.embed(["a mug"])
    plain = prior.predict_noise(noisy, torch.tensor([300]), text)
    control_net = load_control_net(resolve_control_net(str(root / "depth")), torch.float32)
    prior.attach_control_net(control_net)
    conditions = ViewConditions(None, torch.rand(1, 3, 32, 32), torch.tensor(1.0))
    found = prior.predict_noise(noisy, torch.tensor([300]), text, conditions)
    assert not torch.equal(found, plain) and torch.allclose(found, plain, atol=0.2)
    assert "with the ControlNet" in (root / "depth/README.md").read_text()
    # The rendered depth is almost white at the nearest point of each object.
    views = load_views(root / "depth_work", torch.device("cpu"))
    assert views.depth.shape == (4, 1, 32, 32) and views.depth.amax((1, 2, 3)).min() > 150
    outside = torch.nn.functional.max_pool2d(views.mask.float(), 3, 1, 1) == 0
    assert views.depth[outside].max() == 0


def test_the_crop_of_a_comparison_keeps_every_object_whole():
    """The objects reach 2 pixels from the top of one image and 5 pixels from the right side of the other."""
    images = [torch.ones(40, 40, 3) for _ in range(2)]
    images[0][2:20, 15:25] = 0.5
    images[1][15:25, 15:35, 1] = 0.2
    first, second = crop(images)
    assert first.shape == second.shape == (36, 36, 3)
    assert (first < 0.99).sum() == (images[0] < 0.99).sum() and (second < 0.99).sum() == 10 * 20
    assert torch.equal(crop([torch.ones(8, 8, 3)])[0], torch.ones(2, 2, 3))
