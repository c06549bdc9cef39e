"""The README of the classifier's folder."""

from pathlib import Path

from training.evaluation.classifier import NOTHING, Classifier
from training.evaluation.views import ELEVATION_DEGREES, FOVY_DEGREES, VIEWS

CARD = """---
license: apache-2.0
---
# The classifier: {parameters:.2f} M parameters for {count} object categories and {materials} materials

Two small residual networks, made by `python3 -m data.make_classifier`: one for images of normals, one for
images of the painted surface, {side}×{side} pixels, {views} views around the object at {elevation:g}°
elevation and a field of view of {fovy:g}°. Each predicts the category and the visible side. The second also
predicts the material. The classifier evaluates finished runs (`python3 -m training.evaluation`). It is not
used in their optimisation.

Categories: {categories}, and "nothing": noise, ellipsoids and cylinders.
Materials: {material_names}. "own" means the own colours of a category.

## Data and licence
Apache-2.0, weights included. Trained from scratch on renders of this project's procedural objects
(`dataset/procedural`), without other images or weights: {instances} random instances per category of seed
{seed}, which the prior was not trained on ({images} images). More than half of them are perturbed by waves on
the signed distance. Every category is rendered in every material, including the pairs that are held out from
the prior. Augmentation: scale, shift, bending, noise on normals, exposure, saturation, blotches, holes, blur.

## Accuracy on held-out objects (seeds {held_out} and up)
| objects | domain | category, 1 view | {views} views | material | front or back | called two-faced |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

Categories with at most 90 % accuracy on held-out objects: {weak}.
"material" uses {views} views, and the category's own colours count as a material. "called two-faced" is the
false positive rate: the share of correct objects of directional categories that are classified as two-faced.

## Training
{seconds} s in total on {device}, of which rendering took {rendering} s; {steps} steps of batch {batch}.
Trained with torch {torch}. Stored in half precision.

## Limits
The classifier has only these categories and materials. A correct evaluation means that the asset looks more
like its category than like the other {others} or nothing. It does not measure quality.
"""


def write_card(folder: Path, classifier: Classifier) -> None:
    """Write README.md to the classifier's folder from its settings and record."""
    settings, record = classifier.settings, classifier.record
    text = CARD.format(
        parameters=sum(record["parameters"].values()) / 1e6,
        count=len(settings.categories) - 1,
        others=len(settings.categories) - 2,
        materials=len(settings.materials) - 1,
        side=settings.image_size,
        views=VIEWS,
        elevation=ELEVATION_DEGREES,
        fovy=FOVY_DEGREES,
        categories=", ".join(name.replace("_", " ") for name in settings.categories if name != NOTHING),
        material_names=", ".join(settings.materials),
        instances=record["instances_of_a_category"],
        seed=record["seeds"]["training"],
        held_out=record["seeds"]["held_out"],
        images=record["images"],
        rows="\n".join(_rows(record)),
        weak=_weak(record),
        seconds=record["seconds"]["all"],
        rendering=record["seconds"]["rendering"],
        device=record["device"],
        steps=" and ".join(f"{count} ({domain})" for domain, count in record["steps"].items()),
        batch=record["batch"],
        torch=record["torch"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _rows(record: dict) -> list[str]:
    names = (
        "category_of_a_view",
        "category_of_an_asset",
        "material_of_an_asset",
        "side_of_a_front_or_back_view",
        "sound_objects_called_two_faced",
    )
    rows = []
    for objects, figures in record["held_out"].items():
        for domain in record["parameters"]:
            cells = [f"{figures[domain][n]:.3f}" if n in figures[domain] else "-" for n in names]
            rows.append(f"| {objects} ({figures['assets']}) | {domain} | {' | '.join(cells)} |")
    return rows


def _weak(record: dict) -> str:
    found = [
        f"{category.replace('_', ' ')} {share:.2f} ({domain}, {objects})"
        for objects, figures in record["held_out"].items()
        for domain, categories in figures["weak_categories"].items()
        for category, share in categories.items()
    ]
    return ", ".join(found) or "none"
