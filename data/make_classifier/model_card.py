"""The README of the classifier's folder."""

from pathlib import Path

from training.evaluation.classifier import NOTHING, Classifier
from training.evaluation.views import ELEVATION_DEGREES, FOVY_DEGREES, VIEWS

CARD = """---
license: apache-2.0
---
# The classifier: {parameters:.2f} M parameters that know {count} categories of object and {materials} materials

Two small residual networks, made by `python3 -m data.make_classifier`: one for images of normals, one for
images of the painted surface, {side}×{side} pixels, {views} views around at {elevation:g}° elevation and a
field of view of {fovy:g}°. Each answers the category and the side that is seen, the second the material as well.
It judges what text-to-3D made (`python3 -m training.evaluation`); it took no part in making it.

Kinds: {categories}, and "nothing": noise, and bare ellipsoids and cylinders.
Materials: {material_names}; "own" is a category's own colours.

## Data and licence
Apache-2.0, weights included. Trained from nothing on renders of this project's procedural objects
(`dataset/procedural`), no other image or weight: {instances} random instances a category of seed {seed}, which
the prior has not seen ({images} images), more than half of them perturbed (waves on the signed distance).
Every category is shown in every material, the pairs that the prior is never shown among them. Augmented by scale,
shift, bending, noise on normals, exposure, saturation, blotches, holes and blur.

## Accuracy on objects that it has not seen (seeds {held_out} and after)
| objects | domain | category, 1 view | category, {views} views | material | front or back | called two-faced |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

Kinds told right in at most 90 % of the held-out objects: {weak}.
"material" is told from {views} views and counts the category's own colours as one of the answers. "Called
two-faced" is the measure's own error: the share of sound objects of directional categories that it takes for
two-faced.

## Training
{seconds} s in all on {device}, {rendering} s of it for rendering; {steps} steps of batch {batch}. Made with
torch {torch}. Stored in half precision.

## Limits
It knows these categories and materials alone. A right evaluation says that the asset looks more like its category than
like the other {others} or like nothing, not that it is beautiful.
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
