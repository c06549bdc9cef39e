"""Models in the page: what is put into it, and what is too large."""

import os
import zlib

import pytest

from training.report import model_viewer


def test_what_does_not_fit_is_none_and_what_is_far_too_large_is_not_tried(monkeypatch):
    most = 1000
    # Random bytes do not deflate, zeros do.
    assert zlib.decompress(model_viewer._deflated(bytes(model_viewer.FAR * most), most)) == bytes(
        model_viewer.FAR * most
    )
    assert model_viewer._deflated(os.urandom(2 * most), most) is None

    def tried(*_):
        raise AssertionError("that takes seconds")

    monkeypatch.setattr(model_viewer.zlib, "compress", tried)
    assert model_viewer._deflated(bytes(model_viewer.FAR * most + 1), most) is None
    with pytest.raises(AssertionError):
        model_viewer._deflated(bytes(model_viewer.FAR * most), most)
