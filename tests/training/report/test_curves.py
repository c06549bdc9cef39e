"""Compare curves with manually computed values, and the SVG drawing with its data."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from training.report.curves import (
    PhaseTime,
    curves,
    downsample,
    draw,
    groups,
    log_ticks,
    phase_times,
    read_log,
    ticks,
)


def log(fit: int = 8, coarse: int = 40, fine: int = 20) -> list[dict]:
    records = [{"step": k + 1, "phase": "fit", "seconds": 0.5 * (k + 1), "loss": 0.1} for k in range(fit)]
    for k in range(coarse + fine):
        seconds = 0.5 * fit + 2.0 * (k + 1)
        phase = "coarse" if k < coarse else "fine"
        numbers = {"loss": 100.0 + k, "gradient_norm": 3.0}
        records.append({"step": fit + k + 1, "phase": phase, "seconds": seconds, **numbers})
    return records


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text("".join(json.dumps(record) + "\n" for record in log()) + '{"step": 69, "pha')
    assert read_log(path) == log()


def test_phases_and_their_times():
    assert phase_times(log()) == [
        PhaseTime("fit", 1, 8, 4.0),
        PhaseTime("coarse", 9, 48, 80.0),
        PhaseTime("fine", 49, 68, 40.0),
    ]
    without = [{"step": 1, "phase": "fit"}, {"step": 2, "phase": "fit"}]
    assert phase_times(without) == [PhaseTime("fit", 1, 2, None)]


def test_phases_with_equal_values_are_grouped():
    assert [names for names, _ in groups(log())] == [["fit"], ["coarse", "fine"]]
    (_, fit), (_, rest) = groups(log())
    assert (len(fit), len(rest)) == (8, 60)
    assert [curve.name for curve in curves(rest)] == ["loss", "gradient_norm"]


def test_downsampling_keeps_the_mean_and_both_ends():
    steps, values = list(range(1, 1001)), [float(k % 10) for k in range(1000)]
    curve = downsample("loss", steps, values, buckets=50)
    assert len(curve.steps) == len(curve.mean) == 50 and curve.steps[-1] == 1000
    # Each bucket contains the values 0 … 9 twice.
    assert curve.mean == (4.5,) * 50
    assert curve.low == pytest.approx((0.9,) * 50) and curve.high == pytest.approx((8.1,) * 50)
    assert len(downsample("loss", steps[:9], values[:9]).steps) == 2
    assert downsample("loss", [7], [3.0]).mean == (3.0,)


def test_none_values_are_omitted():
    records = [{"step": k, "phase": "a", "loss": "nan" if k % 2 else 1.0, "area": "inf"} for k in range(1, 9)]
    (curve,) = curves(records)
    assert curve.name == "loss" and set(curve.mean) == {1.0}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 5, 10]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (0.02, 0.31, [0.1, 0.2, 0.3]), (5, 5, [5])],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == expected


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(0.5, 30) == [0.5, 2, 10] and log_ticks(1e-6, 1e3) == [1e-6, 1e-4, 1e-2, 1, 100]


def test_the_drawing_is_xml_with_its_points_in_place():
    values = [10.0 * k for k in range(1, 401)]
    curve = downsample("loss", range(1, 401), values)
    figure = draw(curve, [PhaseTime("fine & dandy", 200, 400, None)], "Loss <all>")
    root = ElementTree.fromstring(figure)
    line = root.find(".//polyline").get("points").split()
    points = json.loads(root.find(".//script").text)
    assert len(line) == len(points) == len(curve.steps) == 100
    across = [float(place.split(",")[0]) for place in line]
    down = [float(place.split(",")[1]) for place in line]
    assert across == sorted(across) and down == sorted(down, reverse=True)
    assert [point[2] for point in points] == list(curve.steps)
    assert root.find("h3").text == "Loss <all>" and "fine & dandy" in [t.text for t in root.iter("text")]
    assert "logarithmic" in root.find(".//svg").get("aria-label")


@pytest.mark.parametrize("values", [[2.0], [0.0] * 50, [-1.0] * 20 + [1e6], [1e-30, 1e30] * 10])
def test_any_numbers_can_be_drawn(values):
    figure = draw(downsample("loss", range(1, len(values) + 1), values), [], "Loss")
    assert not re.search(r"nan|inf", figure)
    for place in ElementTree.fromstring(figure).find(".//polyline").get("points").split():
        x, y = map(float, place.split(","))
        assert 0 <= x <= 560 and 0 <= y <= 220


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "{",
        "[1]",
        '{"step": true, "phase": "fit"}',
        '{"step": "3", "phase": "fit"}',
        '{"step": 3}',
        '{"step": 3, "phase": 7}',
        '{"step": 3, "phase": "fit", "seconds": "long"}',
        '{"step": 3, "phase": "fit", "seconds": null}',
        '{"step": 3, "phase": "fit", "seconds": Infinity}',
    ],
    ids=lambda line: line[:40],
)
def test_unexpected_lines_of_a_log_are_skipped(line, tmp_path):
    path = tmp_path / "log.jsonl"
    whole = [f'{{"step": {step}, "phase": "fit", "seconds": {step}, "loss": 1.0}}' for step in (1, 2, 4)]
    path.write_text("\n".join([*whole[:2], line, whole[2]]) + "\n")
    records = read_log(path)
    assert [record["step"] for record in records] == [1, 2, 4]
    assert [phase.seconds for phase in phase_times(records)] == [4]


def test_number_too_large_for_a_float_is_omitted(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "phase": "fit", "loss": 1' + "0" * 400 + "}\n")
    assert curves(read_log(path)) == []
