"""Models in the page: what is put into it, and what is too large."""

import os
import zlib

import pytest

from render.report import model


def test_what_does_not_fit_is_none_and_what_is_far_too_large_is_not_tried(monkeypatch):
    most = 1000
    # Random bytes do not deflate, zeros do.
    assert zlib.decompress(model._deflated(bytes(model.FAR * most), most)) == bytes(model.FAR * most)
    assert model._deflated(os.urandom(2 * most), most) is None

    def tried(*_):
        raise AssertionError("that takes seconds")

    monkeypatch.setattr(model.zlib, "compress", tried)
    assert model._deflated(bytes(model.FAR * most + 1), most) is None
    with pytest.raises(AssertionError):
        model._deflated(bytes(model.FAR * most), most)
