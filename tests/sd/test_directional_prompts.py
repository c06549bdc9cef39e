"""Test the lookup of the category that occurs in a prompt."""

import pytest

from sd.prompts import find_category

CATEGORIES = ("key", "car", "cone", "ice cream cone", "tree", "mug")


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("A red Mug on a table", "mug"),
        ("two mugs", "mug"),
        ("a car, front view", "car"),
        ("an ice-cream cone", "ice cream cone"),
        ("a mug under a tree", "mug"),
        ("a tree with a mug", "tree"),
        ("a keyboard", None),
        ("a red scarf", None),
        ("a carpet", None),
        ("a street", None),
        ("a monkey", None),
        ("", None),
    ],
)
def test_a_category_is_found_by_whole_words(text, category):
    assert find_category(text, CATEGORIES) == category


def test_an_empty_list_of_categories_has_no_match():
    assert find_category("a mug", ()) is None
