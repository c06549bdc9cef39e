"""Verdicts on finished runs, and their sum: the R-precision.

An asset's verdict is the kind (and material) with the highest mean log-probability over its views.
R-precision is the share of assets whose verdict is what the prompt names; an asset without a mesh is wrong.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dataset.objects.materials import HELD_OUT
from render.raster.choose import choose_rasteriser
from render.shade.light import LightConfig, load_environment
from render.shade.prefilter import PrefilteredLight
from sd.tiny.judge.asset import Run, load_asset, problem, textured
from sd.tiny.judge.network import DOMAINS, SIDES, Judge
from sd.tiny.judge.sight import LIGHT, SUPERSAMPLE, VIEWS, Sight, back_view, degrees, judging_cameras, see
from sd.tiny.judge.training import DIRECTIONAL, Opinion, opinion, two_faced

logger = logging.getLogger(__name__)

# Of each view, so many of the likeliest kinds are written down.
LIKELIEST = 3


@dataclass(frozen=True)
class Verdict:
    """What the judge says about a run: opinion and sight, or, in their place, a failure."""

    run: Run
    opinion: Opinion | None = None
    sight: Sight | None = None
    failure: str | None = None


class Court:
    """The judge with its rasteriser and its light: the prior's default environment."""

    def __init__(self, judge: Judge, environment: LightConfig = LIGHT):
        self.judge = judge
        self.rasteriser = choose_rasteriser(judge.device, "auto")
        light = load_environment(environment).to(judge.device)
        self.light: PrefilteredLight = light.prefiltered()

    def try_run(self, run: Run) -> Verdict:
        """The verdict; a run without a mesh, or with a broken one, is a failure with its reason."""
        reason = problem(run)
        if reason is None:
            try:
                return self._look(run)
            except (ValueError, OSError) as error:
                reason = " ".join(str(error).split())
        return Verdict(run, failure=reason)

    def _look(self, run: Run) -> Verdict:
        mesh, textures = load_asset(run, self.judge.device)
        paint = None if textures is None else textured(mesh, textures, self.rasteriser)
        cameras = judging_cameras(SUPERSAMPLE * self.judge.settings.image_size).to(self.judge.device)
        sight = see(mesh, cameras, self.rasteriser, self.light, paint)
        small = sight.smaller(SUPERSAMPLE)
        pictures = small.normal if textures is None else small.shaded * 2 - 1
        seen = opinion(self.judge, run.domain, pictures)
        return Verdict(run, seen, Sight(*(_on_cpu(image) for image in vars(sight).values())))


def _on_cpu(image: Tensor | None) -> Tensor | None:
    return None if image is None else image.cpu()


def mean_probabilities(logs: Float[Tensor, "1 V K"]) -> Float[Tensor, " K"]:
    """exp of the mean log-probability over the views, normalised."""
    return logs[0].mean(0).softmax(-1)


def describe(verdict: Verdict, judge: Judge) -> dict:
    """One asset as JSON."""
    run, settings = verdict.run, judge.settings
    record: dict = {
        "folder": str(run.folder),
        "prompt": run.prompt,
        "domain": run.domain,
        "expected": {"kind": run.wanted.kind, "material": run.wanted.material},
        "failure": verdict.failure,
        "kind_right": False,
    }
    painted = run.domain == "shaded"
    if painted and run.wanted.material:
        record["material_right"] = False
    if verdict.opinion is None:
        return record
    kinds = mean_probabilities(verdict.opinion.kind)
    record["verdict"], record["probability"], record["probability_of_expected"] = {}, {}, {}
    _decide(record, "kind", kinds, settings.kinds)
    if painted:
        _decide(record, "material", mean_probabilities(verdict.opinion.material), settings.materials)
    record["views"] = _views(verdict.opinion, settings.kinds, run.wanted.kind)
    if run.wanted.kind in DIRECTIONAL:
        record["two_faced"] = bool(two_faced(verdict.opinion.side)[0])
    return record


def _decide(record: dict, what: str, probabilities: Tensor, names: Sequence[str]) -> None:
    """Enters the verdict on the kind or the material into the record."""
    best, expected = int(probabilities.argmax()), record["expected"][what]
    record["verdict"][what] = names[best]
    record["probability"][what] = round(probabilities[best].item(), 4)
    if expected is not None:
        record["probability_of_expected"][what] = round(probabilities[names.index(expected)].item(), 4)
        record[f"{what}_right"] = names[best] == expected


def _views(seen: Opinion, kinds: tuple[str, ...], expected: str) -> list[dict]:
    """What each view shows by itself."""
    found = []
    for view in range(VIEWS):
        kind, side = seen.kind[0, view].exp(), seen.side[0, view].exp()
        top = kind.topk(min(LIKELIEST, len(kinds)))
        likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found.append(
            {
                "azimuth": degrees(view),
                "kinds": {kinds[k]: round(p, 4) for k, p in likeliest},
                "expected": round(kind[kinds.index(expected)].item(), 4),
                "side": SIDES[int(side.argmax())],
                "side_probability": round(side.max().item(), 4),
            }
        )
    return found


def report(assets: list[dict], judge: Judge) -> dict:
    """All assets and what they add up to, as JSON."""
    failures = [
        {"folder": a["folder"], "prompt": a["prompt"], "reason": a["failure"] or _wrong(a)}
        for a in assets
        if a["failure"] or not a["kind_right"] or not a.get("material_right", True)
    ]
    return {
        "r_precision": {
            domain: _precision(some)
            for domain in DOMAINS
            if (some := [asset for asset in assets if asset["domain"] == domain])
        },
        "composition": _composition(assets),
        "two_faced": _two_faced(assets),
        "failures": failures,
        "confusions": _confusions(assets),
        "assets": assets,
        "judge": {
            "views": VIEWS,
            "back_view_azimuth": degrees(back_view()),
            "kinds": list(judge.settings.kinds),
            "materials": list(judge.settings.materials),
            **judge.record,
        },
    }


def _wrong(asset: dict) -> str:
    found = [
        f"{what} looks like {asset['verdict'][what].replace('_', ' ')}"
        for what in ("kind", "material")
        if not asset.get(f"{what}_right", True)
    ]
    return ", ".join(found)


def _precision(assets: list[dict]) -> dict:
    """Shares of right verdicts; of materials among the assets whose prompt names one."""
    right: dict[str, list[bool]] = {}
    for asset in assets:
        right.setdefault(asset["expected"]["kind"], []).append(asset["kind_right"])
    found = {
        "assets": len(assets),
        "kind": _share([a["kind_right"] for a in assets]),
        "by_kind": {kind: f"{sum(some)} of {len(some)}" for kind, some in sorted(right.items())},
    }
    named = [a["material_right"] for a in assets if "material_right" in a]
    if named:
        found |= {"assets_with_material": len(named), "material": _share(named)}
    return found


def _composition(assets: list[dict]) -> dict:
    """Of painted assets whose kind and material the prior has never seen together: both told right."""
    found: dict[str, list[bool]] = {}
    for asset in assets:
        kind, material = asset["expected"]["kind"], asset["expected"]["material"]
        if asset["domain"] == "shaded" and (kind, material) in HELD_OUT:
            right = asset["kind_right"] and asset["material_right"]
            found.setdefault(f"{material} {kind.replace('_', ' ')}", []).append(right)
    everything = [right for some in found.values() for right in some]
    if not everything:
        return {}
    pairs = {name: f"{sum(some)} of {len(some)}" for name, some in found.items()}
    return {"assets": len(everything), "kind_and_material": _share(everything), "pairs": pairs}


def _two_faced(assets: list[dict]) -> dict:
    """Of the assets of directional kinds that have a mesh, by domain."""
    found = {}
    for domain in DOMAINS:
        some = [a["two_faced"] for a in assets if a["domain"] == domain and "two_faced" in a]
        if some:
            found[domain] = {"assets": len(some), "two_faced": sum(some), "share": _share(some)}
    return found


def _confusions(assets: list[dict]) -> list[dict]:
    """What was taken for what, the most frequent first."""
    counts = Counter(
        (what, a["expected"][what], a["verdict"][what])
        for a in assets
        for what in ("kind", "material")
        if "verdict" in a and not a.get(f"{what}_right", True)
    )
    return [
        {"what": what, "expected": expected, "verdict": verdict, "count": count}
        for (what, expected, verdict), count in counts.most_common()
    ]


def _share(right: list[bool]) -> float:
    return round(sum(right) / len(right), 4)


def judge_runs(runs: Sequence[Run], judge: Judge, court: Court) -> tuple[list[Verdict], dict]:
    """Verdicts in the order of the runs, and the report."""
    verdicts = []
    for number, run in enumerate(runs, start=1):
        verdicts.append(court.try_run(run))
        logger.info("%d of %d: %s", number, len(runs), run.folder)
    with torch.no_grad():
        return verdicts, report([describe(verdict, judge) for verdict in verdicts], judge)
