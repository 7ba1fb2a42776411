"""Hot pixels of a detector are mended in the frames of a stream."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from n2sr_deploy.stream import hot as hot_module
from n2sr_deploy.stream.denoising import DenoisingOptions, LiveDenoiser
from n2sr_deploy.stream.hot import HotPixels
from tests.fake_stream import live_frame

PLACES = [(0, 9), (20, 30), (20, 31), (40, 63), (63, 10)]


def with_hot(index, places=PLACES, shape=(64, 64)):
    pixels = live_frame(index, shape).pixels.copy()
    for place in places:
        pixels[place] = 5000 + index
    return pixels


def looked(hot, frames):
    """Give frames, each once the one before has been looked at."""
    for pixels in frames:
        hot.look_at(pixels)
        wait()
    return hot


def wait():
    for thread in threading.enumerate():
        if thread.name == "n2sr hot pixels":
            thread.join()


def test_what_is_hot_in_every_frame_is_mended_and_nothing_else():
    spikes = [(10 + 9 * n, 50) for n in range(3)]
    hot = looked(HotPixels(), [with_hot(n, [*PLACES, spikes[n]]) for n in range(3)])
    given = with_hot(3, [*PLACES, (33, 33)])
    kept = given.copy()
    mended, n_hot = hot.mended(given)
    assert n_hot == len(PLACES)
    changed = {tuple(place) for place in np.argwhere(mended != given).tolist()}
    assert changed == set(PLACES)
    assert mended.dtype == given.dtype
    assert max(mended[place] for place in PLACES) < 200
    assert np.array_equal(given, kept)


def test_frames_pass_as_they_are_until_it_is_known_and_where_nothing_is_hot():
    hot = HotPixels()
    for n in range(3):
        pixels = with_hot(n)
        assert hot.mended(pixels)[0] is pixels
        looked(hot, [pixels])
    clean = looked(HotPixels(), [with_hot(n, []) for n in range(3)])
    pixels = with_hot(4, [])
    assert clean.mended(pixels)[0] is pixels


def test_another_shape_begins_anew():
    hot = looked(HotPixels(), [with_hot(n) for n in range(3)])
    assert hot.mended(with_hot(5))[1] == len(PLACES)
    wider = [with_hot(n, [(7, 70)], (64, 80)) for n in range(3)]
    assert hot.mended(wider[0])[1] == 0
    looked(hot, wider)
    assert hot.mended(with_hot(6, [(7, 70)], (64, 80)))[1] == 1


def test_shapes_that_alternate_are_both_mended_and_not_searched_for_ever():
    wide = [(7, 70)]
    frames = [pixels for n in range(3) for pixels in (with_hot(n), with_hot(n, wide, (64, 80)))]
    hot = looked(HotPixels(), frames)
    thread = hot._thread
    looked(hot, frames)
    assert hot._thread is thread, "it is known"
    assert hot.mended(with_hot(6))[1] == len(PLACES)
    assert hot.mended(with_hot(6, wide, (64, 80)))[1] == 1
    looked(hot, [with_hot(n, [], (32 + 8 * n, 64)) for n in range(9)])
    assert len(hot._searches) == hot_module._SHAPES, "not of every shape that ever came"


def test_a_search_that_fails_is_told_once_and_no_more_are_begun(monkeypatch, caplog):
    calls = []

    def too_large(pixels):
        calls.append(pixels.shape)
        raise MemoryError("no room")

    monkeypatch.setattr(hot_module, "hot_pixels", too_large)
    frames = [with_hot(n, [], (64, 64 + n % 2)) for n in range(5)]
    hot = looked(HotPixels(), frames)
    assert len(calls) == 1
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "hot pixels cannot be looked for (MemoryError: no room)"
    ]
    assert hot.mended(frames[0])[0] is frames[0]
    hot.begin_anew()
    looked(hot, frames)
    assert len(calls) == 2


def test_a_stream_is_denoised_without_them_and_handed_on_with_them(model):
    mends, leaves = (
        LiveDenoiser(model, "a model", DenoisingOptions(backend="ort", repair=repair))
        for repair in (True, False)
    )
    for n in range(3):
        mends.denoise(replace(live_frame(n), pixels=with_hot(n)))
        wait()
    frame = replace(live_frame(3), pixels=with_hot(3))
    result = mends.denoise(frame)
    assert result.noisy is frame
    assert result.record["n_hot_pixels"] == len(PLACES)
    by_hand = replace(frame, pixels=mends._hot.mended(frame.pixels)[0])
    assert np.array_equal(result.mean, leaves.denoise(by_hand).mean)
    assert not np.array_equal(result.mean, leaves.denoise(frame).mean)
    mends.close()
    leaves.close()
