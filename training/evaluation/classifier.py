"""The classifier: a residual network for each domain, and functions to save and load the networks.

Domains: "normal" for images of rotated normals, "shaded" for images of the textured surface. Each network
predicts the category and the visible side (front, side, back). The network of "shaded" also predicts the
material.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.evaluation.views import VIEWS, back_view

DOMAINS = ("normal", "shaded")
SIDES = ("front", "side", "back")
NOTHING = "nothing"
# Categories with a distinct front. The other categories look similar from all sides, so their visible side is
# not evaluated.
DIRECTIONAL = ("car", "chair", "quadruped", "person", "head")
WIDTHS = (32, 64, 96, 160)
WEIGHTS_FILE, SETTINGS_FILE = "model.safetensors", "judge.json"


@dataclass(frozen=True)
class ClassifierOutput:
    """Logits or log-probabilities for B images. material is empty [B,0] in the domain "normal"."""

    category: Float[Tensor, "B K"]
    material: Float[Tensor, "B M"]
    side: Float[Tensor, "B 3"]


class Block(nn.Module):
    """Residual block of two 3×3 convolutions. The first convolution has the given stride."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(stride), nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ClassifierNetwork(nn.Module):
    """A residual network for one domain.

    Its layers are a stem of stride 2, one block per width, the mean and the maximum over the image, and a
    linear head for each output.
    """

    def __init__(self, categories: int, materials: int, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        steps = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(*(Block(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(steps)))
        self.drop = nn.Dropout(0.1)
        self.category = nn.Linear(2 * widths[-1], categories)
        self.material = nn.Linear(2 * widths[-1], materials) if materials else None
        self.side = nn.Linear(2 * widths[-1], len(SIDES))

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> ClassifierOutput:
        """Return the logits. images: normals, or shaded sRGB mapped from [0, 1] to [−1, 1]."""
        features = self.blocks(self.stem(images))
        features = self.drop(torch.cat([features.mean((2, 3)), features.amax((2, 3))], -1))
        material = features.new_zeros(len(features), 0) if self.material is None else self.material(features)
        return ClassifierOutput(self.category(features), material, self.side(features))


@dataclass(frozen=True)
class ClassifierSettings:
    """Names of the categories and materials in the order of the logits, and sizes of images and layers.

    The category "nothing" stands for noisy or smooth ellipsoids and cylinders. Material 0 stands for the
    original colours of an object.
    """

    categories: tuple[str, ...]
    materials: tuple[str, ...]
    image_size: int
    widths: tuple[int, ...] = WIDTHS


@dataclass(frozen=True)
class Classifier:
    """The networks as a dict from domain to network, and a JSON record of the training (accuracies, cost)."""

    settings: ClassifierSettings
    networks: dict[str, ClassifierNetwork]
    record: dict

    @property
    def device(self) -> torch.device:
        return next(self.networks["normal"].parameters()).device

    @torch.no_grad()
    def predict(self, domain: str, images: Float[Tensor, "B 3 S S"]) -> ClassifierOutput:
        """Return the log-probabilities for images in [−1, 1]."""
        outputs = self.networks[domain].eval()(images)
        return ClassifierOutput(*(part.float().log_softmax(-1) for part in vars(outputs).values()))


def make_networks(settings: ClassifierSettings, device: torch.device) -> dict[str, ClassifierNetwork]:
    """Create untrained networks. Only the network for shaded images predicts a material."""
    return {
        domain: ClassifierNetwork(
            len(settings.categories), len(settings.materials) if domain == "shaded" else 0, settings.widths
        ).to(device)
        for domain in DOMAINS
    }


def save_classifier(folder: Path, classifier: Classifier) -> None:
    """Write model.safetensors in half precision, and judge.json with settings and record."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        # safetensors needs contiguous tensors, but convolutions on CUDA are trained in channels_last.
        f"{domain}.{name}": (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for domain, network in classifier.networks.items()
        for name, value in network.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    text = json.dumps({"settings": asdict(classifier.settings), "record": classifier.record}, indent=1)
    (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def load_classifier(folder: Path, device: torch.device) -> Classifier:
    """Load a classifier from a folder.

    Raises:
        FileNotFoundError: if the folder contains no classifier.
    """
    for name in (WEIGHTS_FILE, SETTINGS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"--classifier {folder}: {name} is missing; train one with python3 -m data.make_classifier"
            )
    content = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content["settings"].items()
    }
    settings = ClassifierSettings(**fields)
    networks = make_networks(settings, device)
    weights = load_file(folder / WEIGHTS_FILE, device=str(device))
    for domain, network in networks.items():
        own = {n.removeprefix(f"{domain}."): w for n, w in weights.items() if n.startswith(f"{domain}.")}
        network.load_state_dict(own)
        network.eval()
    return Classifier(settings, networks, content["record"])


def directional(categories: tuple[str, ...], category: Tensor) -> Bool[Tensor, " B"]:
    """Return for each image whether its category is in DIRECTIONAL. category: indices into `categories`."""
    table = torch.tensor([name in DIRECTIONAL for name in categories], device=category.device)
    return table[category]


@dataclass(frozen=True)
class Prediction:
    """Log-probabilities for A assets of VIEWS views: category [A,V,K], material [A,V,M], side [A,V,3]."""

    category: Float[Tensor, "A V K"]
    material: Float[Tensor, "A V M"]
    side: Float[Tensor, "A V 3"]


def predict_assets(classifier: Classifier, domain: str, pictures: Float[Tensor, "N 3 S S"]) -> Prediction:
    """Classify images of assets. VIEWS consecutive images show the same asset."""
    outputs = [classifier.predict(domain, part.to(classifier.device)) for part in pictures.split(256)]
    stacked = {name: torch.cat([getattr(a, name) for a in outputs]) for name in vars(outputs[0])}
    return Prediction(**{name: value.unflatten(0, (-1, VIEWS)).cpu() for name, value in stacked.items()})


def two_faced(side: Float[Tensor, "A V 3"]) -> Bool[Tensor, " A"]:
    """Return for each asset whether it shows a front both at azimuth 0 and at azimuth 180 degrees."""
    seen = side.argmax(-1)
    front = SIDES.index("front")
    return (seen[:, 0] == front) & (seen[:, back_view()] == front)
