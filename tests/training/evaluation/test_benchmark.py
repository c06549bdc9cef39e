"""Test the guidance benchmark: settings, trial order, summary, and a resumed call at toy size."""

import json

import numpy as np
import pytest
from multiprocess_harness import warm_context
from PIL import Image
from reduced_work import shorten_fit
from toy_config import TINY

from training.evaluation.benchmark import __main__ as command
from training.evaluation.benchmark import chart, executor, measure
from training.evaluation.benchmark.executor import Queue, ResultStore, run_queue
from training.evaluation.benchmark.janus import HEIGHT, MARGIN, draw_curve, two_faced_shares
from training.evaluation.benchmark.measure import run_trial
from training.evaluation.benchmark.settings import (
    COST,
    PAINT,
    ROOT,
    SHAPE,
    SUITES,
    Trial,
    config_of,
    prompt,
    start_scale,
    trials_of,
)
from training.evaluation.benchmark.summary import summarise, table

TOY = {
    **{key: TINY[key] for key in TINY.keys() - {"text", "guidance_weight"}},
    "batch": 1,
    "video_interval": 0,
    "save_interval": 0,
    "dmtet_grid": 20,
}


def words(**keys):
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
    return [f"{key}={text}" for key, text in texts.items()]


def test_every_suite_s_settings_are_valid_configs(tmp_path):
    for suite in command.ALL_SUITES.values():
        for name, keys in suite.items():
            for stage in (SHAPE, PAINT):
                config = config_of(Trial(stage, name, "car", 1), keys, {}, tmp_path)
                assert {key: config.to_json()[key] for key in keys} == keys
    assert next(iter(SUITES["scores"].values())) == next(iter(SUITES["regularisers"].values())) == {}


def test_a_baseline_trial_is_the_demo_without_pictures(tmp_path):
    config = config_of(Trial(SHAPE, "baseline", "pineapple", 3), {}, {}, tmp_path)
    demo = json.loads((ROOT / "configs/pineapple_demo_geometry.json").read_text())
    different = {key for key, value in demo.items() if config.to_json()[key] != value}
    assert different == {"out_dir", "sd_model", "save_interval"}
    assert config.run.seed == 3


def test_prompts_and_start_shapes():
    assert prompt(Trial(SHAPE, "s", "ice_cream_cone", 0)) == "An ice cream cone"
    assert prompt(Trial(PAINT, "s", "mug", 0)).endswith(" mug")
    assert start_scale("ice_cream_cone") == (0.45, 0.65, 0.45) and start_scale("car") == (0.45, 0.45, 0.65)
    with pytest.raises(ValueError, match='unknown category "unicorn"'):
        start_scale("unicorn")


def test_settings_change_fastest_and_costs_come_first():
    found = trials_of(["a", "b"], ["mug", "car"], [1, 2], [SHAPE])
    assert [trial.stage for trial in found[:2]] == [COST, COST]
    rest = [(trial.seed, trial.category, trial.setting) for trial in found[2:]]
    assert rest[:3] == [(1, "mug", "a"), (1, "mug", "b"), (1, "car", "a")] and len(rest) == 8


def test_queue_ends_if_the_time_is_too_short_for_a_trial():
    trials = trials_of(["a"], ["mug", "car"], [1], [SHAPE])
    assert Queue(trials, float("inf")).next() == trials[0]
    late = Queue(trials, 0.0)
    assert late.next() is None and len(late) == 3


def test_queue_expects_the_time_of_the_same_stage_and_setting(monkeypatch):
    """Short times of appearance trials must not make the queue start a geometry trial too late."""
    monkeypatch.setattr(executor.time, "monotonic", lambda: 50.0)
    shape, paint = (Trial(stage, "a", "mug", 1) for stage in (SHAPE, PAINT))
    queue = Queue([shape] * 2, deadline=100.0)
    for seconds in (20.0, 20.0, 20.0):
        queue.took(paint, seconds)
    assert queue.next() == shape
    queue.took(shape, 80.0)
    assert queue.next() is None
    unknown = Queue([Trial(SHAPE, "b", "mug", 1)], deadline=100.0)
    unknown.took(paint, 60.0)
    unknown.took(paint, 10.0)
    assert unknown.next() is None


def result(setting, category, ratio, recognised=True, error=None, **more):
    values = {} if error else {"roughness_ratio": ratio, "recognised": recognised, **more}
    return {"stage": SHAPE, "setting": setting, "category": category, "seed": 1, "error": error, **values}


def test_an_error_of_the_benchmark_itself_ends_it(tmp_path, monkeypatch):
    def broken(*arguments):
        raise AttributeError("no such measure")

    monkeypatch.setattr(executor, "work", broken)
    with pytest.raises(AttributeError, match="no such measure"):
        run_queue(Queue([], 0.0), ResultStore(tmp_path, {}, {}), 2, 1, {})


def test_the_summary_means_over_trials_and_counts_failures_as_not_recognised():
    results = [
        result("a", "mug", 1.0),
        result("a", "car", 1.5, two_faced=True),
        result("a", "car", 1.1, recognised=False, two_faced=False),
        result("a", "bed", None, error="ValueError: the surface vanished"),
    ]
    found = summarise(results, ["a", "b"])
    assert found["a"][SHAPE] | {"ratios": None} == {
        "trials": 4,
        "failed": 1,
        "recognised": 0.5,
        "roughness_ratio": 1.2,
        "two_faced": "1 of 2",
        "smooth": "1 of 2",
        "ratios": None,
    }
    assert found["a"][SHAPE]["ratios"] == {"car": 1.3, "mug": 1.0}
    lines = table(found).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| a |") and "| 1.2 |" in lines[2]


def test_the_curve_has_a_point_for_each_prior_that_was_measured(tmp_path):
    def faced(text):
        return {SHAPE: {"two_faced": text}}

    summary = {
        "0.5, nothing": faced("1 of 10"),
        "0.99, nothing": faced("6 of 8"),
        "0.9, Perp-Neg": faced("0 of 4"),
        "0.9, view words": faced("0 of 0"),
    }
    shares = {"nothing": [(0.5, 0.1), (0.99, 0.75)], "Perp-Neg": [(0.9, 0.0)]}
    assert two_faced_shares(summary) == shares
    draw_curve(summary, tmp_path / "curve.png")
    image = np.asarray(Image.open(tmp_path / "curve.png"))[MARGIN:]
    rows = np.flatnonzero((image == (0xC0, 0x39, 0x2B)).all(-1).any(1))
    # The point at 75 % is a disc with a radius of 4 pixels.
    assert rows.min() == HEIGHT - 2 * MARGIN - round(0.75 * (HEIGHT - 2 * MARGIN)) - 4


CHART = {
    "a": {SHAPE: {"roughness_ratio": 2.0}, PAINT: {"relit_error": 0.1}},
    "b": {SHAPE: {"roughness_ratio": 0.5}, PAINT: {}},
    "c": {SHAPE: {"failed": 1}, PAINT: {"relit_error": 0.05}},
    "d": {"cost": {}},
}


def bar_lengths(image, panel, rows, colour):
    """Return the number of pixels of a colour in the middle line of each bar of a panel."""
    across = slice(panel * chart.PANEL, (panel + 1) * chart.PANEL)
    lines = [chart.TITLE + chart.ROW * row + chart.BAR_HEIGHT // 2 for row in range(rows)]
    return [int((image[line, across] == colour).all(-1).sum()) for line in lines]


def test_the_chart_s_bars_are_proportional_to_the_means(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"summary": CHART}))
    path = tmp_path / "chart.png"
    assert chart.main([str(tmp_path / "results.json"), "--out", str(path)]) == 0
    image = np.asarray(Image.open(path))
    assert image.shape == (chart.TITLE + 2 * chart.ROW, 2 * chart.PANEL, 3)
    blue, red = (0x24, 0x71, 0xA3), (0xC0, 0x39, 0x2B)
    # The line at the ratio 1 covers one pixel of the first bar. The second bar ends left of it.
    assert bar_lengths(image, 0, 2, blue) == [chart.BAR - 1, round(chart.BAR / 4)]
    assert bar_lengths(image, 1, 2, red) == [chart.BAR, chart.BAR // 2]
    gap = image[chart.TITLE + chart.BAR_HEIGHT + 4, chart.LABEL :]
    assert np.flatnonzero((gap == 0).all(-1)).tolist() == [chart.BAR // 2 - 1]


def test_a_chart_needs_a_summary(tmp_path, capsys):
    (tmp_path / "other.json").write_text("[]")
    assert chart.main([str(tmp_path / "other.json"), "--out", str(tmp_path / "chart.png")]) == 2
    assert "other.json: no summary" in capsys.readouterr().out
    chart.draw_chart({"d": {"cost": {}}}, tmp_path / "chart.png")
    assert not (tmp_path / "chart.png").exists()


@pytest.mark.parametrize(("stage", "kept"), [(COST, []), (SHAPE, ["earlier"])])
def test_the_memory_of_a_step_excludes_priors_of_earlier_trials(stage, kept, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stopped(config):
        raise Stop

    monkeypatch.setattr(measure, "_priors", {"earlier": []})
    monkeypatch.setattr(measure, "trained", stopped)
    with pytest.raises(Stop):
        run_trial(Trial(stage, "a", "car", 1), {}, {}, tmp_path)
    assert list(measure._priors) == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare"),
        (["--setting", "a", "scor=csd"], 'the nearest known key is "score"'),
        (["--setting", "a", "score=best"], "one of sds, csd, nfsd, vsd"),
        (["--suite", "scores", "--only", "best"], "the suite has sds, csd"),
        (["--setting", "a", "--categories", "unicorn"], 'unknown category "unicorn"'),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys, tmp_path):
    assert command.main([*arguments, "--out", str(tmp_path / "b")]) == 2
    printed = capsys.readouterr().out
    assert message in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert not (tmp_path / "b").exists()


FIT = 100


def test_a_shape_at_toy_size_is_measured(model_folder, tmp_path, monkeypatch):
    shorten_fit(FIT, monkeypatch.setattr)
    keys = {
        **TOY,
        "learning_rate": 8e-3,
        "iter": FIT + 2,
        "coarse_iter": FIT + 1,
        "sd_model": str(model_folder),
    }
    result = run_trial(Trial(SHAPE, "smooth", "mug", 1), {"normal_consistency": 1}, keys, tmp_path)
    assert result.error is None
    assert result.to_json()["roughness_ratio"] > 0 and "recognised" in result.to_json()


def test_a_benchmark_at_toy_size_runs_in_a_process_and_continues(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "get_context", warm_context)
    out = tmp_path / "b"
    call = ["--setting", "baseline", "--categories", "mug", "--no-cost", "--out", str(out), "--stages", PAINT]
    call += ["--", *words(**TOY, iter=2, coarse_iter=1, sd_model=str(model_folder))]
    assert command.main(call) == 0
    content = json.loads((out / "results.json").read_text())
    (trial,) = content["trials"]
    assert not trial["error"]
    paint = content["summary"]["baseline"][PAINT]
    assert 0 < paint["albedo_error"] < 1 and 0 < paint["relit_error"] < 1 and "roughness_error" in paint
    assert content["machine"]["torch"] and content["command"] and content["date"]
    assert (out / "sheet.jpg").stat().st_size > 1000
    assert Image.open(out / "chart.png").width == chart.PANEL
    assert "| baseline |" in (out / "table.md").read_text()
    lines = (out / "trials.jsonl").read_text()
    assert lines.count("\n") == 1
    assert command.main(call) == 0
    assert (out / "trials.jsonl").read_text() == lines
