"""Numbers and their nouns in messages."""

from __future__ import annotations

import numpy as np
import pytest

from n2sr_deploy.defects import repair
from n2sr_deploy.frame import Frame
from n2sr_deploy.noise import measure_noise
from n2sr_deploy.words import about, are, counted, seconds, time_left


def test_one_and_more():
    assert [counted(n, "hot pixel") for n in (0, 1, 2)] == [
        "0 hot pixels", "1 hot pixel", "2 hot pixels",
    ]  # fmt: skip
    assert [are(n) for n in (0, 1, 2)] == ["are", "is", "are"]


def test_less_than_a_second_is_not_none():
    """Twenty steps took "0 s"."""
    told = [seconds(n) for n in (0.04, 0.43, 3.21, 9.6, 64.2)]
    assert told == ["0.0 s", "0.4 s", "3.2 s", "10 s", "64 s"]


def test_a_single_hot_pixel_is_told_as_one():
    """It was "1 hot pixels"."""
    pixels = np.random.default_rng(0).normal(100, 5, (96, 96))
    pixels[40, 50] = 900
    frame = Frame(pixels=pixels)
    assert "1 hot pixel" in measure_noise(frame).describe().split(", ")
    assert repair(frame).describe().startswith("1 hot pixel replaced")


def test_a_file_is_named_once():
    assert about("a.tif", "frame is constant") == "a.tif: frame is constant"
    for error in (
        "/data/raw/a.tif is damaged",
        "raw/a.tif: frame 3 is constant",
        "frames are of two shapes in 'raw/a.tif'",
        "there is nothing in raw/a.tif",
        "there is nothing in raw/a.tif.",
        "raw/a.tif/.zarray is damaged",
    ):
        assert about("raw/a.tif", error) == error


@pytest.mark.parametrize("other", ["/out/data.tif", "a.tif.bak", "/out/my-a.tif", "a.tiff"])
def test_a_file_is_not_named_by_another_that_holds_its_name(other):
    error = f"{other} cannot be written"
    assert about("a.tif", error) == f"a.tif: {error}"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, ""), (1.6, "about 2 s left"), (99, "about 99 s left"), (720, "about 12 min left"),
     (12600, "about 3.5 h left"), (360000, "about 100 h left"),
     (99.9, "about 1.7 min left"), (599, "about 10 min left"), (35990, "about 10 h left")],
)  # fmt: skip
def test_the_time_left(seconds, told):
    assert time_left(seconds) == told
