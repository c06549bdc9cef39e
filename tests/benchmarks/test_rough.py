"""Test the benchmark of rough surfaces at toy size: noise adds faces, and two runs of one state are equal."""

import json

from benchmarks.rough import main


def test_noise_adds_faces_and_a_saved_state_is_compared(tmp_path, capsys):
    words = "--grid 12 --log2_hashmap_size 8 --batch 1 --size 16 --faces".split()
    saved = ["--save", str(tmp_path / "state.pt")]
    assert main([*words, "0"]) == 0 and main([*words, "700", *saved]) == 0
    assert (
        main([*words, "700", "--load", str(tmp_path / "state.pt"), "--json", str(tmp_path / "a.json")]) == 0
    )
    smooth, rough, loaded = map(json.loads, capsys.readouterr().out.splitlines())
    assert smooth["faces"] < 500 < 600 < rough["faces"] < 800
    assert loaded == json.loads((tmp_path / "a.json").read_text())
    found = loaded.pop("differences")
    assert loaded == rough and rough["covered"] > 20
    assert found.pop("same_faces") == 1 and len(found) == 5 and not any(found.values())
