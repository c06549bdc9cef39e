"""The classifier's networks: a small residual network for each domain, and the folder that holds them.

Domains: "normal", images of turned normals; "shaded", images of the painted surface. Each answers the category
and the side that is seen (front, side, back); "shaded" answers the material as well.
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
# Kinds with a face: only of these is the side asked, the others look alike all around or nearly.
DIRECTIONAL = ("car", "chair", "quadruped", "person", "head")
WIDTHS = (32, 64, 96, 160)
WEIGHTS_FILE, SETTINGS_FILE = "model.safetensors", "judge.json"


@dataclass(frozen=True)
class ClassifierOutput:
    """Logits for B images; material is empty [B,0] in the domain that shows none."""

    category: Float[Tensor, "B K"]
    material: Float[Tensor, "B M"]
    side: Float[Tensor, "B 3"]


class Block(nn.Module):
    """Two 3×3 convolutions and a way around them, the first with the given stride."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.around = nn.Sequential(
            nn.AvgPool2d(stride), nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.around(x))


class ClassifierNetwork(nn.Module):
    """A stem at half the resolution, a block a width, mean and maximum over the image, three heads."""

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
        """images in [−1, 1]: normals as they are, shaded sRGB mapped from [0, 1]."""
        found = self.blocks(self.stem(images))
        found = self.drop(torch.cat([found.mean((2, 3)), found.amax((2, 3))], -1))
        material = found.new_zeros(len(found), 0) if self.material is None else self.material(found)
        return ClassifierOutput(self.category(found), material, self.side(found))


@dataclass(frozen=True)
class ClassifierSettings:
    """What the networks answer about, in the order of their logits.

    One of the categories is "nothing"; material 0 is the category's own colours.
    """

    categories: tuple[str, ...]
    materials: tuple[str, ...]
    image_size: int
    widths: tuple[int, ...] = WIDTHS


@dataclass(frozen=True)
class Classifier:
    """Both networks by domain, and what is known about them (accuracies, cost: JSON)."""

    settings: ClassifierSettings
    networks: dict[str, ClassifierNetwork]
    record: dict

    @property
    def device(self) -> torch.device:
        return next(self.networks["normal"].parameters()).device

    @torch.no_grad()
    def predict(self, domain: str, images: Float[Tensor, "B 3 S S"]) -> ClassifierOutput:
        """Log-probabilities for images in [−1, 1]."""
        answers = self.networks[domain].eval()(images)
        return ClassifierOutput(*(part.float().log_softmax(-1) for part in vars(answers).values()))


def make_networks(settings: ClassifierSettings, device: torch.device) -> dict[str, ClassifierNetwork]:
    """Fresh networks; only shaded images show a material."""
    return {
        domain: ClassifierNetwork(
            len(settings.categories), len(settings.materials) if domain == "shaded" else 0, settings.widths
        ).to(device)
        for domain in DOMAINS
    }


def save_classifier(folder: Path, classifier: Classifier) -> None:
    """model.safetensors in half precision, and judge.json with the settings and the record."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        # safetensors refuses other layouts, and on CUDA convolutions are trained in another one.
        f"{domain}.{name}": (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for domain, network in classifier.networks.items()
        for name, value in network.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    text = json.dumps({"settings": asdict(classifier.settings), "record": classifier.record}, indent=1)
    (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def load_classifier(folder: Path, device: torch.device) -> Classifier:
    """Raises FileNotFoundError where the folder holds no judge."""
    for name in (WEIGHTS_FILE, SETTINGS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"--classifier {folder}: there is no {name}; train one with python3 -m data.make_classifier"
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
    """Whether the side is asked of images of these categories (indices)."""
    table = torch.tensor([name in DIRECTIONAL for name in categories], device=category.device)
    return table[category]


@dataclass(frozen=True)
class Prediction:
    """Log-probabilities about A assets of VIEWS views: category [A,V,K], material [A,V,M], side [A,V,3]."""

    category: Float[Tensor, "A V K"]
    material: Float[Tensor, "A V M"]
    side: Float[Tensor, "A V 3"]


def predict_assets(classifier: Classifier, domain: str, pictures: Float[Tensor, "N 3 S S"]) -> Prediction:
    """What the classifier thinks of images of assets, VIEWS consecutive ones each."""
    answers = [classifier.predict(domain, part.to(classifier.device)) for part in pictures.split(256)]
    stacked = {name: torch.cat([getattr(a, name) for a in answers]) for name in vars(answers[0])}
    return Prediction(**{name: value.unflatten(0, (-1, VIEWS)).cpu() for name, value in stacked.items()})


def two_faced(side: Float[Tensor, "A V 3"]) -> Bool[Tensor, " A"]:
    """Whether an asset shows its front on both sides: at azimuth 0 and again at 180."""
    seen = side.argmax(-1)
    front = SIDES.index("front")
    return (seen[:, 0] == front) & (seen[:, back_view()] == front)
