"""Tests of the imports of diffusers and transformers without unused packages."""

import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_config import TINY

from configs.schema import parse_config
from sd.loading import lean_imports
from sd.stable_diffusion import StableDiffusion
from training import priors

ROOT = Path(__file__).resolve().parents[3]
MODEL = "data/tiny-sd"
UNUSED = ("peft", "scipy.stats", "sklearn", "pandas", "torch._dynamo", "transformers.generation.utils")
SUMS = """
def sums(prior):
    text = prior.embed(["A pineapple"])
    weights = [p.double().abs().sum().item() for part in (prior.unet, prior.vae) for p in part.parameters()]
    return [text.double().abs().sum().item(), sum(weights)]
"""
# The program first lets an import fail, and then loads a prior.
PROGRAM = f"""
{SUMS}
import importlib.util, json, sys
import torch
from sd.loading import lean_imports
from sd.stable_diffusion import StableDiffusion
from training.adamw import AdamW

def fail():
    sys.modules["diffusers.example"] = sys.modules["transformers"] = sys
    raise RuntimeError("another version")

def state():
    return [name for name in sys.modules if name.split(".")[0] in ("diffusers", "transformers")], [
        name for name, module in sys.modules.items() if module is None
    ]

real, lean_imports._import_diffusers = lean_imports._import_diffusers, fail
before = lean_imports.importlib.metadata.packages_distributions, torch.compiler.disable, torch.nn.init.normal_
lean_imports.import_prior_packages()
result = {{"failed": state()}}
lean_imports._import_diffusers = real
lean_imports.import_prior_packages()
prior = StableDiffusion.from_pretrained({MODEL!r}, torch.device("cpu"), keep_trainable=True)
weight = torch.nn.Parameter(torch.ones(2))
weight.grad = torch.ones(2)
optimizer = AdamW([weight])
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
result["loaded"] = [name for name in {UNUSED!r} if name in sys.modules]
result["hidden"] = state()[1]
result["findable"] = [name for name in ("peft", "scipy") if importlib.util.find_spec(name)]
result["restored"] = before == (
    lean_imports.importlib.metadata.packages_distributions, torch.compiler.disable, torch.nn.init.normal_
)
result["sums"] = sums(prior)
import diffusers, transformers
result["scheduler"] = diffusers.LMSDiscreteScheduler.__module__
result["same"] = transformers.models.clip.CLIPTextModel is type(prior.text_encoder)
result["lora"] = len(prior.make_lora(1, 0).trained())
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result():
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_unused_packages_are_not_imported(result):
    assert result["loaded"] == []


def test_hidden_packages_can_be_imported_afterwards(result):
    assert result["hidden"] == [] and result["findable"] == ["peft", "scipy"] and result["restored"]


def test_a_failed_import_leaves_no_modules(result):
    assert result["failed"] == [[], []]


def test_prior_equals_that_of_an_ordinary_import(result):
    """In this process, all packages are imported."""
    import diffusers.loaders.peft  # noqa: F401

    names = {}
    exec(SUMS, names)
    prior = StableDiffusion.from_pretrained(MODEL, torch.device("cpu"))
    assert result["sums"] == pytest.approx(names["sums"](prior), rel=1e-6)


def test_peft_adds_a_lora_after_the_imports(result):
    assert result["lora"] > 0


def test_later_imports_find_the_same_classes(result):
    assert result["scheduler"] == "diffusers.schedulers.scheduling_lms_discrete"
    assert result["same"]


def test_training_imports_the_packages_before_it_loads_priors(monkeypatch):
    calls = []
    prior = SimpleNamespace(views=1)
    monkeypatch.setattr(priors, "import_prior_packages", lambda: calls.append("import"))
    monkeypatch.setattr(priors, "_load_prior", lambda *_: calls.append("load") or prior)
    assert priors.load_priors(
        parse_config({**TINY, "out_dir": "run"}, "test"), torch.device("cpu"), None
    ) == [prior]
    assert calls == ["import", "load"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package named deferred_example with a submodule and an __init__ that sets a name."""
    folder = tmp_path / "deferred_example"
    folder.mkdir()
    (folder / "__init__.py").write_text("from deferred_example.part import size\nname = 'whole'\n")
    (folder / "part.py").write_text("size = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "deferred_example"
    for name in ("deferred_example", "deferred_example.part"):
        sys.modules.pop(name, None)


def test_deferred_package_runs_at_the_first_use_of_a_name(package):
    deferred = lean_imports.defer_module(package)
    part = importlib.import_module(f"{package}.part")
    assert "name" not in vars(sys.modules[package])
    assert deferred.name == "whole"
    assert sys.modules[package] is not deferred and sys.modules[package].name == "whole"
    assert sys.modules[f"{package}.part"] is part is deferred.part is sys.modules[package].part
    with pytest.raises(AttributeError, match="missing"):
        deferred.missing  # noqa: B018


def test_module_is_not_deferred_after_the_block(package):
    with lean_imports.deferred(package) as deferred:
        assert importlib.import_module(package) is deferred
    module = importlib.import_module(package)
    assert module is not deferred and module.size == 3
    with lean_imports.deferred(package) as imported:
        assert imported is module


def test_hidden_packages(package):
    module = importlib.import_module(package)
    with pytest.raises(KeyError), lean_imports.hidden(package, "json"):
        assert importlib.util.find_spec(package) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(package)
        raise KeyError
    assert importlib.import_module(package) is module and sys.modules["json"] is json


def test_package_list_equals_that_of_the_standard_library():
    found = lean_imports.packages_distributions()
    expected = importlib.metadata.packages_distributions()
    assert {name: sorted(found[name]) for name in expected} == {n: sorted(v) for n, v in expected.items()}


def test_empty_layers_have_no_values():
    with lean_imports.layers_without_values(), torch.device("meta"):
        layer = torch.nn.Linear(2, 3)
        torch.arange(4).expand(1, -1)
    assert layer.weight.shape == (3, 2) and layer.weight.is_meta
    torch.nn.init.normal_(values := torch.zeros(8))
    assert values.abs().min() > 0
