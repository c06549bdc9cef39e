"""Test with random files that every reader returns a valid result or raises an expected error.

The error message is one line that contains the file name. Other exceptions, hangs and unbounded memory use
are failures. Each test runs 120 cases, or 2,000 cases with `-m slow`.
"""

import contextlib
import hashlib
import json
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.cli import load_configs
from configs.errors import ConfigError
from configs.schema import known_keys, parse_config
from render.image_io.hdr import read_latlong, write_hdr
from render.mesh_io.load import load_mesh
from training.checkpoint import UnreadableCheckpoint, load_latest
from training.input_files import InputFiles
from training.resume import checkpoint_folder, prepare_checkpoint, restore_state

CASES = [120, pytest.param(2000, marks=pytest.mark.slow)]
OURS = (ValueError, ConfigError, FileNotFoundError)
SECONDS, BYTES = 20, 2 * 2**30

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "", "../../x", "/dev/zero", "\0", "a" * 5000, "cuda:999", "🂡"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
EDIT = st.tuples(
    st.sampled_from(["overwrite", "insert", "delete", "repeat", "cut"]),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=8)
    | st.sampled_from(
        [b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\n", b" ", b"-1", b"99999999999", b"nan"]
    ),
)
EDITS = st.lists(EDIT, min_size=1, max_size=5)


def mutated(content: bytes, edits) -> bytes:
    for kind, place, piece in edits:
        at = int(place * len(content))
        if kind == "overwrite":
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + len(piece) :]
        elif kind == "repeat":
            content = content[:at] + content[at : at + 64] * 3 + content[at:]
        else:
            content = content[:at]
    return content


class Hang(BaseException):
    pass


@pytest.fixture(autouse=True)
def bounded():
    """Raise an exception if a test exceeds a time limit or a memory limit of a few gigabytes."""

    def stop(number, frame):
        raise Hang

    before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGALRM, before)


def fuzz(strategy, cases, attempt):
    """Call `attempt` with `cases` random inputs.

    In the short suite (at most 120 cases), the inputs are the same in every run.
    """

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=cases <= 120,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(drawn):
        signal.alarm(SECONDS)
        try:
            attempt(drawn)
        finally:
            signal.alarm(0)

    run()


def read_or_refuse(reader, path):
    """Return the result of the reader, or None if the file is rejected with an expected error."""
    try:
        return reader(path)
    except OURS as error:
        assert type(error) in OURS, f"{type(error).__name__}: {error}"
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 2000
        return None


def sound_mesh(mesh):
    if mesh is None:
        return
    assert mesh.v_pos.isfinite().all() and len(mesh.faces) and mesh.faces.min() >= 0
    assert mesh.faces.max() < len(mesh.v_pos)
    if mesh.uv is not None:
        assert mesh.uv.isfinite().all() and mesh.uv_faces.max() < len(mesh.uv)


NUMBER = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "0.5",
        "1e999",
        "-1e38",
        "nan",
        "inf",
        "١",
        "1_0",
        "0x1",
        "",
        "99999999999999999999",
        "é",
    ]
)
CORNER = st.sampled_from(
    [
        "1",
        "2",
        "3",
        "-1",
        "4/1",
        "1/2/3",
        "1//3",
        "/",
        "//",
        "0",
        "9",
        "1/9",
        "1/1/1/1",
        "-9",
        "99999999999999999999",
        "1_0",
        "²",
    ]
)
STATEMENT = st.one_of(
    st.builds(lambda words: "v " + " ".join(words), st.lists(NUMBER, max_size=5)),
    st.builds(lambda words: "vt " + " ".join(words), st.lists(NUMBER, max_size=4)),
    st.builds(lambda words: "f " + " ".join(words), st.lists(CORNER, max_size=7)),
    st.sampled_from(
        [
            "mtllib ../../../etc/passwd",
            "usemtl x",
            "o a",
            "\\",
            "f 1 2 3 \\",
            "#",
            "v 0 0 1",
            "v 0 1 0",
            "v 1 0 0",
        ]
    ),
)


@pytest.mark.parametrize("cases", CASES)
def test_obj(cases, tmp_path):
    path = tmp_path / "mesh.obj"
    whole = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\nf 1/1 2/2 4/3\n"

    def attempt(drawn):
        statements, edits = drawn
        path.write_bytes(mutated(whole + "\n".join(statements).encode(), edits))
        sound_mesh(read_or_refuse(load_mesh, path))

    fuzz(st.tuples(st.lists(STATEMENT, max_size=8), EDITS), cases, attempt)


def box_with_texture():
    from PIL import Image

    box = trimesh.creation.box()
    uv = np.random.default_rng(0).random((len(box.vertices), 2))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.new("RGB", (4, 4)))
    box.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return box


def meshes():
    box = box_with_texture()
    plain = trimesh.creation.box()
    return {
        "glb": [box.export(file_type="glb")],
        "gltf": [json.dumps(embedded_gltf()).encode()],
        "ply": [plain.export(file_type="ply"), plain.export(file_type="ply", encoding="ascii")],
        "stl": [plain.export(file_type="stl"), plain.export(file_type="stl_ascii").encode()],
        "off": [plain.export(file_type="off").encode()],
    }


def embedded_gltf():
    import base64

    files = trimesh.Scene(box_with_texture()).export(file_type="gltf")
    tree = json.loads(files["model.gltf"])
    for entry in [*tree["buffers"], *tree.get("images", [])]:
        if "uri" in entry:
            entry["uri"] = (
                "data:application/octet-stream;base64," + base64.b64encode(files[entry["uri"]]).decode()
            )
    return tree


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("suffix", ["glb", "gltf", "ply", "stl", "off"])
def test_meshes(suffix, cases, tmp_path):
    path, corpus = tmp_path / f"mesh.{suffix}", meshes()[suffix]

    def attempt(drawn):
        number, edits = drawn
        path.write_bytes(mutated(corpus[number % len(corpus)], edits))
        sound_mesh(read_or_refuse(load_mesh, path))

    fuzz(st.tuples(st.integers(0, 1), EDITS), cases, attempt)


@pytest.mark.parametrize("cases", CASES)
def test_gltf_with_other_values(cases, tmp_path):
    path, tree = tmp_path / "mesh.gltf", embedded_gltf()
    places = [
        (kind, number, key)
        for kind, entries in tree.items()
        if isinstance(entries, list)
        for number, entry in enumerate(entries)
        if isinstance(entry, dict)
        for key in entry
    ]

    def attempt(drawn):
        changed = json.loads(json.dumps(tree))
        for (kind, number, key), value in drawn:
            changed[kind][number][key] = value
        path.write_text(json.dumps(changed))
        sound_mesh(read_or_refuse(load_mesh, path))

    value = JSON | st.integers(-2, 2**33)
    fuzz(st.lists(st.tuples(st.sampled_from(places), value), min_size=1, max_size=2), cases, attempt)


def sound_picture(image):
    assert image is None or (image.isfinite().all() and (image >= 0).all() and image.numel())


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("suffix", ["hdr", "exr"])
def test_pictures(suffix, cases, tmp_path):
    path = tmp_path / f"light.{suffix}"
    image = torch.rand(6, 16, 3, generator=torch.Generator().manual_seed(0))
    if suffix == "hdr":
        write_hdr(path, image)
        corpus = [path.read_bytes(), b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 3\n" + bytes(range(24))]
    else:
        import OpenEXR

        corpus = []
        for compression in (OpenEXR.ZIP_COMPRESSION, OpenEXR.PIZ_COMPRESSION, OpenEXR.NO_COMPRESSION):
            header = {"compression": compression, "type": OpenEXR.scanlineimage}
            channels = {name: image[..., index].numpy().copy() for index, name in enumerate("RGB")}
            with OpenEXR.File(header, channels) as file:
                file.write(str(path))
            corpus.append(path.read_bytes())

    def attempt(drawn):
        number, edits = drawn
        path.write_bytes(mutated(corpus[number % len(corpus)], edits))
        sound_picture(read_or_refuse(read_latlong, path))

    fuzz(st.tuples(st.integers(0, 2), EDITS), cases, attempt)


@pytest.mark.parametrize("cases", CASES)
def test_configs(cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.json"
    fine = {"out_dir": "x", "iter": 9, "coarse_iter": 3, "lora": ["a.safetensors:0.5"]}

    def attempt(drawn):
        values, edits = drawn
        path.write_bytes(mutated(json.dumps({**fine, **values}).encode(), edits))
        try:
            (config,) = load_configs(["--config", str(path)])
        except ConfigError as error:
            assert "config.json" in str(error) and "\n" not in str(error) and len(str(error)) < 2000
        else:
            assert parse_config(config.to_json(), "again") == config
        assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]

    keys = st.sampled_from(sorted(known_keys())) | st.text(max_size=6)
    fuzz(st.tuples(st.dictionaries(keys, JSON, max_size=3), st.just([]) | EDITS), cases, attempt)


class Scene(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 2))


def save_two(config):
    scene = Scene()
    optimizer = torch.optim.AdamW(scene.parameters())
    for step in (4, 5):
        scene.weight.sum().backward()
        optimizer.step()
        prepare_checkpoint(config, scene, optimizer, step, inputs=InputFiles())()


def changed(state, changes):
    state = json.loads(json.dumps(state))
    for path, value in changes:
        place = state
        for key in path[:-1]:
            place = place[key] if isinstance(place.get(key), dict) else {}
        place[path[-1]] = value
    return state


@pytest.mark.parametrize("cases", CASES)
def test_checkpoints(cases, tmp_path):
    """A change of a checkpoint file is detected, and the previous checkpoint is used."""
    config = parse_config({"out_dir": str(tmp_path / "out")}, "config")
    save_two(config)
    folder = checkpoint_folder(config)
    newest = folder / "step_000005"
    tensors, text = (newest / "tensors.safetensors").read_bytes(), (newest / "state.json").read_bytes()
    state = json.loads(text)
    whole = load_latest(folder)

    def attempt(drawn):
        edits, forged, changes, state_edits = drawn
        content, values = mutated(tensors, edits), changed(state, changes)
        if forged:
            values["tensors"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            values.pop("sha256")
        (newest / "tensors.safetensors").write_bytes(content)
        (newest / "state.json").write_bytes(mutated(json.dumps(values).encode(), state_edits))
        try:
            found = load_latest(folder)
        except UnreadableCheckpoint as error:
            assert "format version" in str(error) and "nothing was deleted" in str(error), error
            return
        if found.step == 5 and not forged:
            assert found.meta == whole.meta and torch.equal(
                found.tensors["scene.weight"], whole.tensors["scene.weight"]
            )
        scene = Scene()
        try:
            optimizer = torch.optim.AdamW(scene.parameters())
            assert restore_state(config, scene, optimizer, inputs=InputFiles()) == found.step
        except ValueError as error:
            assert forged and type(error) is ValueError and "\n" not in str(error), error
            assert "checkpoint" in str(error)

    places = [(key,) for key in state] + [("meta", key) for key in state["meta"]]
    places += [("meta", "optimizer", "param_groups"), ("meta", "settings", "text"), ("tensors", "bytes")]
    changes = st.lists(st.tuples(st.sampled_from(places), JSON), max_size=2)
    none = st.just([])
    fuzz(st.tuples(none | EDITS, st.booleans(), changes, none | EDITS), cases, attempt)


HUGE = {"count": 2**33, "componentType": 5126, "type": "VEC3"}


@pytest.mark.parametrize("escape", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "link.bin"])
def test_a_mesh_reads_nothing_outside_its_folder(escape, tmp_path):
    """Files outside the folder of the mesh are not read, even if the mesh file refers to them.

    The references are glTF buffers, glTF and PLY textures, and OBJ material files.
    """
    folder = tmp_path / "mesh"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    files = trimesh.Scene(box_with_texture()).export(file_type="gltf")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    tree = json.loads(files["model.gltf"])
    first = tree["buffers"][0]["uri"]
    secret.write_bytes(files[first])
    (folder / "link.bin").symlink_to(secret)
    tree["buffers"][0]["uri"] = escape
    (folder / "mesh.gltf").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"mesh\.gltf"):
        load_mesh(folder / "mesh.gltf")
    tree["buffers"][0]["uri"] = first
    for image in tree["images"]:
        image.pop("bufferView", None)
        image["uri"] = escape
    (folder / "mesh.gltf").write_text(json.dumps(tree))
    ply = (
        trimesh.creation.box()
        .export(file_type="ply")
        .replace(b"\nelement", f"\ncomment TextureFile {escape}\nelement".encode(), 1)
    )
    (folder / "mesh.ply").write_bytes(ply)
    (folder / "mesh.obj").write_text(f"mtllib {escape}\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl a\nf 1 2 3\n")
    opened = []
    with watched(opened):
        for suffix in ("gltf", "ply", "obj"):
            sound_mesh(load_mesh(folder / f"mesh.{suffix}"))
    found = {path.resolve() for path in opened}
    assert folder.resolve() / "mesh.ply" in found
    assert not found & {secret.resolve(), Path("/etc/hostname")}


@contextlib.contextmanager
def watched(opened):
    """Append the path of every file that is opened within the `with` block to `opened`."""
    active = [True]

    def note(event, arguments):
        if active and event == "open" and isinstance(arguments[0], str):
            opened.append(Path(arguments[0]))

    sys.addaudithook(note)
    try:
        yield
    finally:
        active.clear()


@pytest.mark.parametrize("kind", ["zeros", "sparse", "deep", "circle", "crowd"])
def test_small_gltf_files_with_huge_counts(kind, tmp_path):
    tree, path = embedded_gltf(), tmp_path / "mesh.gltf"
    if kind == "zeros":
        tree["accessors"] = [HUGE for _ in tree["accessors"]]
    elif kind == "sparse":
        sparse = {
            "count": 1,
            "indices": {"bufferView": 0, "componentType": 5125},
            "values": {"bufferView": 0},
        }
        tree["accessors"] = [{**HUGE, "sparse": sparse} for _ in tree["accessors"]]
    elif kind == "deep":
        path.write_text('{"nodes": ' + "[" * 10**6)
    else:
        count = len(tree["nodes"])
        tree["nodes"] += [{"children": [count + k + 1, count + k + 1]} for k in range(40)]
        tree["nodes"].append({"mesh": 0, "children": [count] if kind == "circle" else []})
        tree["scenes"][0]["nodes"] = [count]
    if kind != "deep":
        path.write_text(json.dumps(tree))
    signal.alarm(SECONDS)
    mesh = read_or_refuse(load_mesh, path)
    signal.alarm(0)
    sound_mesh(mesh)
    if kind in ("zeros", "sparse"):
        with pytest.raises(ValueError, match="elements that it does not hold"):
            load_mesh(path)
