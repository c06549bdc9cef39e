"""Test the common parts of all pages: external text is escaped, so it cannot become markup."""

import json

import pytest
from report_run import NASTY, Reader

from training.report.page import (
    POLICY,
    data_uri,
    document,
    embedded_json,
    escape,
    link,
    script,
    section,
    table,
)


def test_external_text_is_escaped():
    reader = Reader(document(NASTY, f"<main>{section(NASTY, f'<p>{escape(NASTY)}</p>')}</main>"))
    assert reader.texts["title"] == reader.texts["h2"] == reader.texts["p"] == NASTY
    assert [tag for tag, _ in reader.elements].count("script") == 1
    assert not [tag for tag, attributes in reader.elements if "onclick" in attributes]


def test_embedded_json_cannot_end_its_script_element():
    text = embedded_json([NASTY, 1.5])
    assert "</" not in text and json.loads(text) == [NASTY, 1.5]


def test_script_with_an_end_tag_is_rejected():
    with pytest.raises(AssertionError):
        script('"</SCRIPT>"')


def test_the_policy_allows_no_address():
    page = document("page", "")
    assert f'content="{POLICY}"' in page and "http" not in POLICY and "'self'" not in POLICY
    assert "default-src 'none'" in POLICY and "*" not in POLICY


def test_links_and_data():
    assert link('a b/"c"#.png') == "a%20b/%22c%22%23.png"
    assert data_uri("image/png", b"\x00\xff") == "data:image/png;base64,AP8="
    assert section("Empty", "") == "" and "<td>2</td>" in table(("a", "b"), [("1", "2")])
