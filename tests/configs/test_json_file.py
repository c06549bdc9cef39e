"""Test strict JSON reading: error messages contain the file and the position."""

import pytest

from configs.errors import ConfigError
from configs.json_file import read_object


def refusal(path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_object(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_an_object_is_read_unchanged(tmp_path):
    path = tmp_path / "good.json"
    path.write_text('\ufeff{"text": "Äpfel", "range": [1, 2.5], "none": null}', encoding="utf-8")
    assert read_object(path) == {"text": "Äpfel", "range": [1, 2.5], "none": None}


def test_malformed_json_is_placed_by_line_and_column(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('{\n  "iter": 1,\n  "batch": oops\n}')
    assert "line 3, column 12" in refusal(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1, column 1"),
        (b'{"iter": 1} x', "line 1, column 13"),
        (b'{"iter": 1,}', "line 1"),
        (b'{"iter": 1, "batch": 2, "iter": 3}', '"iter" occurs twice'),
        (b'{"display": [{"bsdf": "kd", "bsdf": "ks"}]}', '"bsdf" occurs twice'),
        (b"[1, 2]", "one JSON object"),
        (b"null", "one JSON object"),
        (b'{"text": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"iter": ' + b"9" * 5000 + b"}", "number too long"),
    ],
)
def test_unusable_content(tmp_path, content, says):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    assert says in refusal(path)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "car_geometry.json").write_text("{}")
    (tmp_path / "zebra.json").write_text("{}")
    assert "car_geometry.json?" in refusal(tmp_path / "car_geometri.json")
    assert "no such config file" in refusal(tmp_path / "nowhere" / "x.json")


def test_a_folder_is_rejected(tmp_path):
    refusal(tmp_path)
