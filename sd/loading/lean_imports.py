"""Import diffusers and transformers without the packages that a prior does not use.

`import_prior_packages` imports the classes of a prior. An ordinary import of these classes also imports
torch's compiler, and optional packages such as peft, scipy, scikit-learn and pandas if they are installed.
This is most of the time from the command to the first step.

During the import, the optional packages are hidden, so diffusers and transformers treat them as not
installed. Afterwards, all packages can be imported as usual. In this process, however, those features of
diffusers and transformers that need an optional package remain unavailable, such as diffusers' pipelines.
The training program calls `import_prior_packages`. Other programs that use a prior import all packages.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from csv import reader
from functools import cache
from types import ModuleType

import torch

logger = logging.getLogger(__name__)

OPTIONAL_PACKAGES = (
    "accelerate",
    "cv2",
    "datasets",
    "librosa",
    "pandas",
    "peft",
    "pyarrow",
    "sklearn",
    "soundfile",
    "timm",
    "torchaudio",
    "torchvision",
)
# The packages that diffusers' schedulers import, and use only for rare settings. They are not hidden, because
# diffusers would then not contain some of its schedulers.
SCHEDULER_PACKAGES = ("scipy.integrate", "scipy.stats")


def import_prior_packages() -> None:
    """Import the classes of a prior from diffusers and transformers.

    Nothing is done if diffusers or transformers has been imported before. If the import fails, for example
    because another version needs a hidden package, the imported modules are removed again, so that the
    caller's own import statement imports them as usual. Another thread must not import one of
    OPTIONAL_PACKAGES, scipy or torch's compiler at the same time.
    """
    if {"diffusers", "transformers"} & sys.modules.keys():
        return
    before = set(sys.modules)
    try:
        with ExitStack() as stack:
            stack.enter_context(hidden(*OPTIONAL_PACKAGES))
            stack.enter_context(compiler_deferred())
            stack.enter_context(
                replaced(importlib.metadata, "packages_distributions", cache(packages_distributions))
            )
            _import_diffusers()
            _import_transformers()
    except Exception:
        logger.debug("diffusers and transformers are imported with all packages", exc_info=True)
        for name in sys.modules.keys() - before:
            if name.partition(".")[0] in ("diffusers", "transformers"):
                del sys.modules[name]


def _import_diffusers() -> None:
    with hidden("transformers"), ExitStack() as stack:
        for name in SCHEDULER_PACKAGES:
            stack.enter_context(deferred(name))
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401


def _import_transformers() -> None:
    package = defer_module("transformers")
    package.__version__ = importlib.metadata.version("transformers")
    defer_module("transformers.models")
    with hidden("scipy"), ExitStack() as stack:
        import transformers.utils

        for module in (transformers.utils, transformers.utils.import_utils):
            # If torch.distributed is available, transformers imports torch.distributed.tensor for models that
            # are split over several GPUs.
            stack.enter_context(replaced(module, "is_torch_distributed_available", lambda: False))
            # This function would run the __init__ of the package.
            stack.enter_context(replaced(module, "direct_transformers_import", lambda *_: package))
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel
        from transformers.models.clip.tokenization_clip import CLIPTokenizer
    for kind in (CLIPTextConfig, CLIPTextModel, CLIPTokenizer):
        setattr(package, kind.__name__, kind)


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Make `import` and `importlib.util.find_spec` treat packages as not installed."""
    imported = {name: sys.modules[name] for name in packages if name in sys.modules}
    sys.modules.update(dict.fromkeys(packages))
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(imported)


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute. An attribute that does not exist is not created."""
    if not hasattr(owner, name):
        yield
        return
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """Defer the import of torch's compiler.

    diffusers and transformers use the compiler only to decorate functions while they are imported. Functions
    for which the compiler is disabled are still disabled, because `torch._disable_dynamo` imports the
    compiler at their first call.
    """

    def disable(function: Callable | None = None, recursive: bool = True, **_: object) -> Callable:
        return torch._disable_dynamo(function, recursive)

    with deferred("torch._dynamo") as compiler, replaced(torch.compiler, "disable", disable):
        if isinstance(compiler, DeferredModule):
            compiler.allow_in_graph = compiler.assume_constant_result = lambda function: function
        yield


@contextmanager
def layers_without_values() -> Iterator[None]:
    """Create layers on the meta device without importing torch's compiler and sympy.

    Functions of `torch.nn.init` do nothing. The functions for conditions that can be symbolic return the
    condition, because all sizes are numbers.
    """
    with deferred("torch.fx.experimental.symbolic_shapes") as shapes, ExitStack() as stack:
        if isinstance(shapes, DeferredModule):
            for name in ("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious"):
                setattr(shapes, name, bool)
            shapes.is_nested_int = lambda _: False
            shapes.sym_eq = lambda a, b: a == b if isinstance(a, int) else list(a) == list(b)
        for name in ("normal_", "uniform_", "kaiming_uniform_"):
            stack.enter_context(replaced(torch.nn.init, name, lambda tensor, *_, **__: tensor))
        yield


@contextmanager
def deferred(name: str) -> Iterator[ModuleType]:
    """Defer the code of a module that is imported within the `with` block.

    Nothing is deferred if the module has been imported before.
    """
    if name in sys.modules:
        yield sys.modules[name]
        return
    module = defer_module(name)
    try:
        yield module
    finally:
        if sys.modules.get(name) is module:
            del sys.modules[name]


class DeferredModule(ModuleType):
    """A module whose code runs at the first use of a name that it does not contain.

    The code of a package is its __init__. The use of a submodule does not run it.
    """

    def __getattr__(self, name: str) -> object:
        module = self.__name__
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if self._has_submodule(name):
            return importlib.import_module(f"{module}.{name}")
        if sys.modules.get(module) is self:
            del sys.modules[module]
        real = importlib.import_module(module)
        # An import sets a submodule as an attribute of the package that is in sys.modules at that time.
        for path, submodule in list(sys.modules.items()):
            package, _, child = path.rpartition(".")
            if package == module:
                vars(real).setdefault(child, submodule)
        return getattr(real, name)

    def _has_submodule(self, name: str) -> bool:
        is_package = self.__spec__.submodule_search_locations is not None
        return is_package and importlib.util.find_spec(f"{self.__name__}.{name}") is not None


def defer_module(name: str) -> ModuleType:
    """Add a module to sys.modules without running its code, and return it."""
    module = importlib.util.module_from_spec(importlib.util.find_spec(name))
    module.__class__ = DeferredModule
    sys.modules[name] = module
    return module


def packages_distributions() -> dict[str, list[str]]:
    """Return {package: names of the distributions that contain it}.

    The result is that of `importlib.metadata.packages_distributions` since Python 3.12, which takes 0.8 s
    with 170 distributions, because it looks up each installed file.
    """
    found: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        declared = (distribution.read_text("top_level.txt") or "").split()
        for package in declared or _top_level_names(distribution):
            found.setdefault(package, []).append(_distribution_name(distribution))
    return found


def _top_level_names(distribution: importlib.metadata.Distribution) -> set[str]:
    record = distribution.read_text("RECORD")
    if record is None:
        paths = [str(path) for path in distribution.files or ()]
    else:
        paths = [row[0] for row in reader(record.splitlines()) if row]
    names = set()
    for path in paths:
        top, _, rest = path.partition("/")
        names.add(top if rest else inspect.getmodulename(top) or top)
    return {name for name in names if "." not in name}


def _distribution_name(distribution: importlib.metadata.Distribution) -> str:
    header = re.search(r"^Name:[ \t]*(\S+)", distribution.read_text("METADATA") or "", re.MULTILINE)
    return header[1] if header else distribution.metadata["Name"]
