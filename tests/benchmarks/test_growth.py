"""Test the growth benchmark at toy size: one parameter varies at a time, and each variant has a row."""

import json

from benchmarks import growth, stages
from benchmarks.growth import main


def test_one_parameter_varies_at_a_time_and_every_row_exists(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "WARM_UP", 1)
    seen = []
    measure = growth.measure
    monkeypatch.setattr(
        growth,
        "measure",
        lambda variant, prior, config, options: (
            seen.append((variant["axis"], id(prior), config)) or measure(variant, prior, config, options)
        ),
    )
    words = (
        "--device cpu --grids 8 12 --batches 1 2 --resolutions 24 --side 16 --faces 300 --steps 2 --fit 30"
    )
    words += " --hash_log2_hashmap_size 8 --env_resolution 64"
    file = tmp_path / "rows.json"
    assert main(["--model", str(model_folder), "--json", str(file), *words.split()]) == 0
    got = {
        (axis, config.geometry.dmtet_grid, config.run.batch, config.run.train_res[0])
        for axis, _, config in seen
    }
    assert got == {
        ("grid", 8, 4, 16), ("grid", 12, 4, 16), ("batch", 12, 1, 16), ("batch", 12, 2, 16),
        ("train_res", 12, 4, 24), ("faces", 64, 4, 16),
    }  # fmt: skip
    assert len({prior for _, prior, _ in seen}) == 3
    rows = json.loads(file.read_text())["rows"]
    by_name = {f"{row['axis']} {row['value']}": row for row in rows}
    assert set(by_name["grid 8"]["phases"]) == {"fit", "coarse", "fine"}
    assert set(by_name["faces 300"]["phases"]) == {"early", "late"}
    assert 250 < by_name["faces 300"]["faces"] < 350
    assert by_name["grid 8"]["faces"] != by_name["grid 12"]["faces"] == by_name["batch 2"]["faces"]
    printed = capsys.readouterr().out
    for row in rows:
        coarse = next(phase for name, phase in row["phases"].items() if name != "fit")
        line = next(
            line for line in printed.splitlines() if line.startswith(f"| {row['axis']} {row['value']} |")
        )
        assert f"| {row['faces']} | {coarse['total_ms']:.1f} ms |" in line
