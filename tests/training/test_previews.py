"""Test stills, turntable and training video with a scene whose colour depends on the camera's azimuth."""

import contextlib
import errno
import math
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from configs.schema import parse_config
from render.camera import Cameras, orbit
from sd.schedule import geometry_schedule
from training import export, turntable
from training.input_files import InputFiles
from training.last_outputs import LastOutputs
from training.previews import AsyncImageWriter, Stills, TrainingVideo, take_stills
from training.report.index_page import Stage, thumbnail
from training.report.media import slider, stills_up_to
from training.report.report_writer import RunReport
from training.tasks import Task
from training.turntable import views_in_batches, views_per_batch, write_orbit


class Scene:
    """A scene that renders two images.

    shaded: the red channel increases with the camera's azimuth.
    mask: one channel, with 1 in the left half.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.elevation: list[float] = []

    def __call__(self, cameras: Cameras) -> dict[str, torch.Tensor]:
        assert not torch.is_grad_enabled()
        count = len(cameras.position)
        self.batches.append(count)
        self.elevation += (cameras.position[:, 1] / cameras.position.norm(dim=-1)).asin().rad2deg().tolist()
        # The camera is at +z for azimuth 0, and at −x for azimuth 90°.
        azimuth = torch.atan2(-cameras.position[:, 0], cameras.position[:, 2]) % (2 * math.pi)
        shaded = torch.ones(count, *cameras.resolution, 3)
        shaded[..., 0] = (azimuth / (2 * math.pi))[:, None, None]
        mask = torch.zeros(count, *cameras.resolution, 1)
        mask[:, :, : cameras.resolution[1] // 2] = 1
        return {"shaded": shaded, "mask": mask}


def film_frames(path) -> list[np.ndarray]:
    with imageio.get_reader(path) as reader:
        return list(reader.iter_data())


def test_stills_are_four_quarter_turns_by_layers(tmp_path):
    take_stills(Scene(), (16, 20)).write(tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png")).astype(float) / 255
    assert sheet.shape == (2 * 16, 4 * 20, 3)
    assert np.abs(sheet[0, [0, 20, 40, 60], 0] - [0, 0.25, 0.5, 0.75]).max() < 0.01
    assert sheet[16, 0].tolist() == [1, 1, 1] and sheet[16, 19].tolist() == [0, 0, 0]


def test_stills_show_the_panels_azimuths_for_in_their_order(tmp_path):
    cube = torch.full((6, 8, 8, 3), 0.2140)  # a linear value, which is 0.5 in sRGB
    cube[2] = 4.0  # +y is bright

    def scene(cameras: Cameras) -> dict[str, torch.Tensor]:
        shade = torch.ones(4, *cameras.resolution, 1)
        return {"shaded": 0.2 * shade, "kd": 0.4 * shade, "ks": 0.6 * shade, "mask": 0.8 * shade}

    panels = ("latlong", "normal", "ks", "kd")  # the scene has no normal image
    for (height, width), (high, wide) in {(16, 20): (16, 32), (20, 4): (8, 16)}.items():
        take_stills(scene, (height, width), panels, cube).write(tmp_path / "a.png")
        sheet = np.asarray(Image.open(tmp_path / "a.png")).astype(float) / 255
        assert sheet.shape == (4 * height, 4 * width, 3)
        shaded, environment, ks, kd = sheet.reshape(4, height, 4 * width, 3)
        for row, value in ((shaded, 0.2), (ks, 0.6), (kd, 0.4)):
            assert np.abs(row - value).max() < 0.003
        assert np.abs(environment[3 * high // 4 : high, :wide] - 0.5).max() < 0.003
        assert (environment[0, :wide] == 1).all()
        assert (environment[high:] == 1).all() and (environment[:, wide:] == 1).all()
    every = take_stills(scene, (16, 20), environment=cube)
    assert every.picture.shape == (4 * 16, 4 * 20, 3) and every.rows == ("shaded", "kd", "ks", "mask")


def test_written_stills_are_reported_in_the_calling_thread(tmp_path, monkeypatch):
    stills = take_stills(Scene(), (16, 20))
    reported = []

    def written(step: int, path: Path) -> None:
        with Image.open(path) as picture:
            reported.append((step, path.name, picture.text["rows"], threading.current_thread().name))

    with AsyncImageWriter(written) as writer:
        for step in (10, 20):
            writer.submit(step, tmp_path / f"{step}.png", stills)
        assert [step for step, *_ in reported] == [10]
    here = threading.current_thread().name
    assert reported == [(10, "10.png", "shaded,mask", here), (20, "20.png", "shaded,mask", here)]
    proceed, write = threading.Event(), Stills.write
    monkeypatch.setattr(Stills, "write", lambda self, path: proceed.wait(30) and write(self, path))
    with AsyncImageWriter(written) as writer:
        assert not writer.collect()
        writer.submit(30, tmp_path / "30.png", stills)
        assert not writer.collect() and reported[-1][0] == 20
        proceed.set()
        until = time.monotonic() + 30
        while not writer.collect():
            assert time.monotonic() < until
        assert reported[-1][0] == 30 and not writer.collect()


def test_a_still_that_cannot_be_written_is_a_warning_and_hides_no_error(tmp_path, caplog):
    stills = take_stills(Scene(), (16, 20))
    (tmp_path / "file").write_text("")
    reported = []
    with AsyncImageWriter(lambda *still: reported.append(still)) as writer:
        writer.submit(30, tmp_path / "file" / "30.png", stills)
    assert reported == [] and f"warning: {tmp_path}/file/30.png is not written: " in caplog.text
    with pytest.raises(ZeroDivisionError), AsyncImageWriter(lambda *_: None) as writer:
        writer.submit(30, tmp_path / "file" / "30.png", stills)
        raise ZeroDivisionError


def test_video_of_two_sizes(tmp_path, caplog):
    """Frames with an earlier preview_res are scaled to the new preview_res, and a warning is logged."""
    for first, last, resolution in ((0, 20, (32, 32)), (20, 40, (48, 64))):
        with TrainingVideo(tmp_path, 5, resolution, resumed_step=first) as video:
            for step in range(first + 1, last + 1):
                video.record(Scene(), step)
    video.assemble()
    frames = film_frames(tmp_path / "video_log.mp4")
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 8
    # The scene is cyan at the azimuths of these frames.
    assert all(frame[:, :, 0].max() < 60 and frame[:, :, 1:].min() > 200 for frame in frames)
    assert "4 frames in" in caplog.text and "another preview_res" in caplog.text


def test_a_damaged_frame_is_skipped_by_name(tmp_path, caplog):
    with TrainingVideo(tmp_path, 5, (16, 16)) as video:
        for step in range(1, 21):
            video.record(Scene(), step)
    (tmp_path / "video_frames" / "000010.jpg").write_bytes(b"\xff\xd8 no picture")
    assert video.assemble() == tmp_path / "video_log.mp4"
    assert len(film_frames(tmp_path / "video_log.mp4")) == 3
    assert "video_frames/000010.jpg is skipped" in caplog.text


def test_foreign_name_in_stills_or_video(tmp_path):
    """The video, the report and the overview ignore files whose names are not numbers."""
    frames, stills = tmp_path / "video_frames", tmp_path / "stills"
    with TrainingVideo(tmp_path, 5, (16, 16)) as video:
        for step in range(1, 21):
            video.record(Scene(), step)
    stills.mkdir()
    for step in (5, 10):
        take_stills(Scene(), (16, 20)).write(stills / f"{step:06d}.png")
    for folder, suffix in ((frames, "jpg"), (stills, "png")):
        for name in ("000404 (copy)", "2026-notes", "000999 "):
            (folder / f"{name}.{suffix}").write_bytes(b"foreign")
        (folder / f"000500.{suffix}").mkdir()
    resumed = TrainingVideo(tmp_path, 5, (16, 16), resumed_step=10)
    resumed.assemble()
    assert len(film_frames(tmp_path / "video_log.mp4")) == 2
    assert (frames / "000404 (copy).jpg").exists()
    assert [path.name for path in stills_up_to(stills, 9)] == ["000005.png"]
    assert slider(stills_up_to(stills, 999)).count("<input") > 0
    assert thumbnail(Stage("shape", tmp_path, "shaded"))[1] == 4


def test_orbit_writes_frames_gifs_and_the_turntable(tmp_path):
    scene = Scene()
    written = write_orbit(scene, tmp_path, (16, 16), frames=10, batch=4)
    assert scene.batches == [4, 4, 2] and max(abs(e - 20) for e in scene.elevation) < 1e-3
    names = [str(path.relative_to(tmp_path)) for path in written]
    assert names == ["validate/shaded.gif", "turntable.mp4", "validate/mask.gif"]
    for layer in ("shaded", "mask"):
        pngs = sorted((tmp_path / "validate" / layer).glob("*.png"))
        assert [path.name for path in pngs] == [f"{number:03d}.png" for number in range(10)]
        with Image.open(tmp_path / "validate" / f"{layer}.gif") as gif:
            # Equal consecutive frames are stored once, so the GIF of the constant mask has one frame.
            assert gif.n_frames == (10 if layer == "shaded" else 1)
    with Image.open(tmp_path / "validate/shaded/004.png") as frame:
        assert frame.size == (16, 16) and frame.getpixel((8, 8)) == (102, 255, 255)
    frames = film_frames(tmp_path / "turntable.mp4")
    assert len(frames) == 10
    assert np.abs([frame[8, 8, 0] / 255 - k / 10 for k, frame in enumerate(frames)]).max() < 0.05


def test_a_turntable_that_fails_leaves_no_video(tmp_path):
    """The error of the renderer is raised, and the earlier video is kept."""
    scene = Scene()

    def fails(cameras: Cameras) -> dict[str, torch.Tensor]:
        if scene.batches:
            raise ZeroDivisionError
        return scene(cameras)

    (tmp_path / "turntable.mp4").write_bytes(b"earlier")
    with pytest.raises(ZeroDivisionError):
        write_orbit(fails, tmp_path, (16, 16), frames=10, batch=4)
    assert (tmp_path / "turntable.mp4").read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["turntable.mp4"]


def test_small_copies_keep_the_shape_and_the_colours():
    """A picture of 2 x 2 areas is reduced to GIF_SIDE. The centres of the areas keep their colours."""
    areas = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    large = areas.repeat(300, 0).repeat(400, 1)[None]
    (copy,) = turntable._small_copies(large)
    assert copy.size == (256, 192) and copy.mode == "RGB"
    assert [copy.getpixel(at) for at in ((64, 48), (192, 48), (64, 144), (192, 144))] == [
        tuple(colour) for colour in areas.reshape(-1, 3).tolist()
    ]
    (same,) = turntable._small_copies(areas[None, ..., :1])
    assert np.array_equal(np.asarray(same), areas[..., :1].repeat(3, -1))


def test_views_per_batch_depend_on_the_device_and_the_resolution():
    assert views_per_batch(torch.device("cpu"), (16, 16)) == 1
    gpu = torch.device("cuda")
    assert [views_per_batch(gpu, (side, side)) for side in (512, 1024, 4096)] == [10, 2, 1]


def test_batches_are_the_same_views():
    cameras = orbit(7, (8, 8))
    parts = list(views_in_batches(cameras, 3))
    assert [len(part.position) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.world_to_clip for part in parts]), cameras.world_to_clip)


def test_the_video_has_a_frame_every_interval_turned_by_one_degree(tmp_path):
    scene = Scene()
    with TrainingVideo(tmp_path, 5, (16, 16)) as video:
        for step in range(1, 52):
            video.record(scene, step)
    assert video.assemble() == tmp_path / "video_log.mp4"
    assert scene.batches == [1] * 10 and max(abs(e - 20) for e in scene.elevation) < 1e-3
    assert len(film_frames(tmp_path / "video_log.mp4")) == 10
    azimuths: list[float] = []

    def record_azimuth(cameras: Cameras) -> dict[str, torch.Tensor]:
        x, _, z = cameras.position[0].tolist()
        azimuths.append(math.degrees(math.atan2(-x, z)))
        return scene(cameras)

    for step in (5, 10, 360 * 5, 365 * 5):
        video.record(record_azimuth, step)
    assert azimuths == pytest.approx([1, 2, 0, 5], abs=1e-3)


def test_a_frame_is_written_in_a_thread_and_shows_the_scene_at_its_step(tmp_path, monkeypatch):
    proceed, begun, grey = threading.Event(), [], torch.zeros(1, 16, 16, 3)
    save = Image.Image.save

    def slow(*arguments, **keywords):
        begun.append(proceed.wait(30))
        save(*arguments, **keywords)

    monkeypatch.setattr(Image.Image, "save", slow)
    with TrainingVideo(tmp_path, 5, (16, 16)) as video:
        video.record(lambda _: {"shaded": grey}, 5)
        grey.fill_(1)
        assert not (tmp_path / "video_frames/000005.jpg").exists()
        proceed.set()
    assert begun == [True]
    assert np.asarray(Image.open(tmp_path / "video_frames/000005.jpg")).max() == 0


def test_a_frame_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "video_frames").write_text("a file instead of a folder")
    with TrainingVideo(tmp_path, 5, (16, 16)) as video:
        for step in (5, 10, 15):
            video.record(Scene(), step)
    assert len(caplog.messages) == 1 and "video_frames is not written" in caplog.text


def test_a_resumed_video_equals_an_uninterrupted_one(tmp_path):
    scene = Scene()
    for folder, runs in (("whole", [(0, 60)]), ("resumed", [(0, 43), (30, 60)])):
        for first, last in runs:
            with TrainingVideo(tmp_path / folder, 5, (16, 16), resumed_step=first) as video:
                for step in range(first + 1, last + 1):
                    video.record(scene, step)
    names = [
        sorted(path.name for path in (tmp_path / folder / "video_frames").iterdir())
        for folder in ("whole", "resumed")
    ]
    assert names[0] == names[1] and len(names[0]) == 12
    for name in names[0]:
        whole, resumed = (tmp_path / folder / "video_frames" / name for folder in ("whole", "resumed"))
        assert whole.read_bytes() == resumed.read_bytes()
    restarted = TrainingVideo(tmp_path / "resumed", 5, (16, 16))
    assert restarted.assemble() is None


def test_videos_that_fail_do_not_end_the_run(tmp_path, caplog, monkeypatch):
    """If videos cannot be written, the mesh and the export record still are.

    Each failure is a warning with the file name.
    """
    config = parse_config({"out_dir": str(tmp_path / "out"), "iter": 5, "coarse_iter": 5}, "config")
    scene = torch.nn.Module()
    scene.fixed_layers, scene.light = lambda: None, SimpleNamespace(cube=torch.zeros(1))
    schedule = geometry_schedule(config.schedule)
    task = Task(scene, schedule, None, lambda: None, lambda: exported.append, True, InputFiles())
    exported, report = [], RunReport(None, quiet=True)
    report.timed = lambda name: contextlib.nullcontext()

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "write_orbit", fail)
    monkeypatch.setattr(TrainingVideo, "assemble", fail)
    export.export_run(config, task, report, LastOutputs())
    assert len(exported) == 1 and (tmp_path / "out/dmtet_mesh/export.json").is_file()
    assert f"{tmp_path}/out/validate is not written: No space left on device" in caplog.text
    assert f"{tmp_path}/out/video_log.mp4 is not written: No space left on device" in caplog.text
