"""Rectangles on shelves."""

import numpy as np
import pytest

from render.texturing.pack import affordable_padding, pack


@pytest.mark.parametrize("count, padding", [(1, 0), (7, 4), (300, 2), (3000, 0)])
def test_no_texel_is_given_twice_and_margins_stay_free(count, padding):
    """Every rectangle is painted with its margin into a picture, texel by texel."""
    side = 256
    sizes = np.random.default_rng(count).random((count, 2)) ** 2 + 1e-3
    scale, corners = pack(sizes, side, padding)
    owners = np.zeros((side + 2 * padding, side + 2 * padding), int)
    for (width, height), (x, y) in zip(np.ceil(sizes * scale).astype(int), corners, strict=True):
        assert x >= padding and y >= padding
        assert x + width + padding <= side and y + height + padding <= side
        owners[y - padding : y + height + padding, x - padding : x + width + padding] += 1
    assert owners.max() == 1


def test_the_scale_is_as_large_as_it_goes():
    """Four equal squares: half of the side each; a hundred at random: most of the texture is used."""
    scale, _ = pack(np.ones((4, 2)), 256, 0)
    assert scale == pytest.approx(128, rel=1e-3)
    sizes = np.sort(np.random.default_rng(2).uniform(0.5, 1, (100, 2)))[:, ::-1]
    scale, _ = pack(sizes, 1024, 0)
    assert 0.75 < (sizes * scale).prod(1).sum() / 1024**2 <= 1


def test_padding_gives_way_to_the_charts_where_these_are_many():
    assert affordable_padding(10, 1024, 4) == 4
    assert affordable_padding(10**6, 1024, 4) == 0
    for count in (10**3, 10**4, 10**5):
        kept = affordable_padding(count, 1024, 64)
        # Margins on both sides take a third of the mean place's side at most, and not much less.
        assert 2 * kept <= 1024 / count**0.5 / 3 < 2 * kept + 4
