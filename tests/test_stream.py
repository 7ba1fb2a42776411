"""From a source through the denoiser to sinks: order, policies, failures, ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.simulation import unit_noise
from n2sr_deploy import Denoiser
from n2sr_deploy.backends.base import failure
from n2sr_deploy.cli import main
from n2sr_deploy.cli_stream import _until_told
from n2sr_deploy.errors import (
    BadFrameError,
    ConnectionLostError,
    InputFileError,
    ModelError,
    NotNowError,
    OutputError,
    SettingError,
)
from n2sr_deploy.stream import (
    LiveFrame,
    LiveResult,
    StreamRunner,
    denoise_stream,
    denoising,
    fit,
    generator,
    runner,
    sink_worker,
)
from n2sr_deploy.stream.addresses import Address, open_sink, open_source
from n2sr_deploy.stream.denoising import DenoisingOptions, LiveDenoiser, LoadedModel
from n2sr_deploy.stream.ring import FrameRing
from n2sr_deploy.stream.simulated import SimulatedSource
from tests.fake_stream import FakeSink, FakeSource, Refusal, live_frame


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sink_worker, "_BACK_OFF_S", (0.01, 0.05))
    monkeypatch.setattr(sink_worker, "_GIVES_UP_S", 0.1)
    for module in (generator, runner, sink_worker):
        monkeypatch.setattr(module, "_TICK_S", 0.05)


OPTIONS = DenoisingOptions(backend="ort")


def new_threads(before):
    return [thread for thread in threading.enumerate() if thread not in before]


def stream(items, *sinks, model=None, policy="all", **settings):
    """Run to the end; what was counted."""
    source = items if hasattr(items, "read") else FakeSource(items)
    denoiser = LiveDenoiser(model, "a model" if model else "", OPTIONS)
    running = StreamRunner(source, sinks, denoiser, policy=policy, **settings)
    before = threading.enumerate()
    summary = running.run()
    assert not new_threads(before)
    return summary["counts"], summary


class Slow:
    """A denoiser that takes its time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def prepare(self):
        pass

    def denoise(self, frame):
        time.sleep(self.seconds)
        return LiveDenoiser().denoise(frame)

    def close(self):
        pass


# frames and results


def test_every_frame_is_denoised_in_order(model):
    sink = FakeSink()
    frames = [live_frame(n) for n in range(8)]
    counts, summary = stream(frames, sink, model=model)
    assert sink.indices == list(range(8))
    with Denoiser(model, backend="ort") as denoiser:
        for (_, mean, _), frame in zip(sink.results, frames, strict=True):
            wanted = denoiser.denoise(frame.pixels, frame_index=frame.index)
            assert np.array_equal(mean, wanted.mean)
    assert counts["received"] == counts["denoised"] == counts["written to a fake sink"] == 8
    assert counts["dropped"] == 0
    assert set(summary["stages_ms"]) == {
        *("wait", "denoise", "arrival to denoised", "arrival to a fake sink")
    }
    assert summary["fps"] > 0


def test_all_that_came_with_a_frame_is_handed_on(model):
    told = {
        "pixel_size": (0.02, 0.03),
        "unit": "nm",
        "source_time_s": 12.5,
        "valid_rows": (0, 40),
        "metadata": {"stage": {"x": 1.5}},
    }
    sink = FakeSink()
    stream([live_frame(3, **told)], sink, model=model)
    result = sink.results[0][2]
    for name, value in told.items():
        assert getattr(result.noisy, name) == value
    assert result.metadata["stage"] == {"x": 1.5}
    record = result.metadata["n2sr"]
    assert record["model"] == "a model"
    assert record["weights_sha256"] == model.metadata.weights_sha256
    assert (record["n_samples"], record["seed"]) == (4, 0)
    assert "ONNX Runtime" in record["backend"]
    json.dumps(result.metadata)


@pytest.mark.parametrize(
    ("of_model", "asked", "used"), [(32, None, 4), (4, None, 4), (2, None, 2), (32, 16, 16)]
)
def test_live_frames_have_few_draws_unless_more_are_asked_for(model, of_model, asked, used):
    model = replace(model, metadata=replace(model.metadata, n_samples=of_model))
    sink = FakeSink()
    denoiser = LiveDenoiser(model, "a model", replace(OPTIONS, n_samples=asked))
    StreamRunner(FakeSource([live_frame(0)]), [sink], denoiser, policy="all").run()
    _, mean, result = sink.results[0]
    assert result.metadata["n2sr"]["n_samples"] == used
    with Denoiser(model, backend="ort") as plain:
        assert np.array_equal(mean, plain.denoise(live_frame(0).pixels, used).mean)


def test_without_a_model_frames_pass_as_they_are():
    sink = FakeSink()
    frame = live_frame(0)
    counts, summary = stream([frame], sink)
    assert (counts["denoised"], counts["passed as they are"]) == (0, 1)
    assert summary["fps"] > 0
    _, mean, result = sink.results[0]
    assert np.array_equal(mean, frame.pixels.astype(np.float32))
    assert result.std is None
    assert result.record["model"] is None


def test_frames_of_other_shapes_and_types_midway(model):
    sink = FakeSink()
    shapes = [(64, 64), (64, 64), (48, 80), (48, 80), (64, 64)]
    types = [np.uint16, np.float32, np.uint8, np.uint16, np.int32]
    frames = [
        live_frame(n, shape, dtype)
        for n, (shape, dtype) in enumerate(zip(shapes, types, strict=True))
    ]
    stream(frames, sink, model=model)
    assert [mean.shape for _, mean, _ in sink.results] == shapes


# policies


def test_latest_shows_the_newest_and_counts_what_it_drops():
    sink = FakeSink()
    frames = [live_frame(n) for n in range(30)]
    items = [item for frame in frames for item in (frame, 0.004)]
    running = StreamRunner(FakeSource(items), [sink], Slow(0.04), policy="latest")
    counts = running.run()["counts"]
    assert counts["received"] == 30
    assert counts["dropped"] > 5
    assert counts["passed as they are"] + counts["dropped"] == 30
    assert sink.indices[-1] == 29
    assert sink.indices == sorted(sink.indices)


def test_all_lets_the_source_wait():
    sink = FakeSink()
    running = StreamRunner(
        FakeSource([live_frame(n) for n in range(40)]), [sink], Slow(0.005), policy="all"
    )
    counts = running.run()["counts"]
    assert sink.indices == list(range(40))
    assert counts["dropped"] == 0


def test_the_ring_uses_its_memory_again():
    ring = FrameRing(3, "all")
    seen = set()
    for n in range(20):
        assert ring.put(live_frame(n), 0.1)
        slot = ring.take(0.1)
        seen.add(slot.frame.pixels.ctypes.data)
        assert slot.frame.index == n
        slot.release()
    assert len(seen) <= 3
    assert [ring.put(live_frame(n), 0.01) for n in range(4)] == [True, True, True, False]


def test_a_slot_that_is_retained_is_not_overwritten():
    ring = FrameRing(2, "latest")
    ring.put(live_frame(0), 0)
    slot = ring.take(0.1)
    slot.retain()
    slot.release()
    for n in range(1, 6):
        ring.put(live_frame(n), 0)
    assert np.array_equal(slot.frame.pixels, live_frame(0).pixels)
    assert ring.n_dropped == 4
    assert ring.take(0).frame.index == 5
    ring.put(live_frame(6), 0)
    assert ring.n_dropped == 5, "there is no slot left"


def test_a_slow_sink_holds_neither_the_stream_nor_the_others():
    slow = FakeSink("slow", write=lambda result: time.sleep(0.2))
    quick = FakeSink("quick")
    items = [item for n in range(30) for item in (live_frame(n), 0.005)]
    counts, _ = stream(items, slow, quick, policy="latest")
    assert len(quick.indices) >= 25
    assert len(slow.indices) < 6
    assert slow.indices[-1] == 29
    assert counts["lost by slow"] + len(slow.indices) == counts["passed as they are"]


def test_a_sink_that_accepts_nothing_is_lost_after_some_patience(caplog):
    hanging = threading.Event()
    dead = FakeSink("dead", write=lambda result: hanging.wait(20))
    quick = FakeSink("quick")
    began = time.monotonic()
    running = StreamRunner(
        FakeSource([live_frame(n) for n in range(30)]),
        [dead, quick],
        LiveDenoiser(),
        policy="all",
        patience_s=0.3,
    )
    counts = running.run()["counts"]
    assert time.monotonic() - began < 5
    assert quick.indices == list(range(30))
    assert counts["lost by dead"] == 30
    assert "dead accepts nothing" in caplog.text
    assert "dead does not return; it is left behind" in caplog.text
    hanging.set()
    time.sleep(0.2)


# what goes wrong


def test_a_damaged_frame_is_no_gap(caplog):
    bad = BadFrameError("1 NaN")
    items = [live_frame(0), bad, live_frame(2), live_frame(4), bad, live_frame(8)]
    counts, _ = stream(items, FakeSink())
    assert counts["damaged"] == 2
    assert counts["gaps"] == 2
    assert counts["missing"] == 3
    assert "frame 3 did not come" in caplog.text
    assert "2 of frames 5 to 7 did not come" in caplog.text


def test_damaged_frames_are_counted_told_once_and_left_out(caplog):
    sink = FakeSink()
    bad = BadFrameError("9 bytes of pixels, but 64 x 64 uint16 has 8192")
    counts, _ = stream([live_frame(0), bad, bad, live_frame(1), bad], sink)
    assert sink.indices == [0, 1]
    assert counts["damaged"] == 3
    assert caplog.text.count("9 bytes of pixels") == 1


def test_damage_of_every_kind_is_told_but_not_without_end(caplog):
    others = [BadFrameError(f"an encoding {'x' * n}") for n in range(50)]
    again = [BadFrameError(f"{n} bytes of pixels") for n in range(50)]
    counts, _ = stream([*again, *others], FakeSink())
    assert counts["damaged"] == 100
    assert caplog.text.count("bytes of pixels") == 1
    assert 5 <= caplog.text.count("an encoding") < 20


def test_frames_that_cannot_be_denoised_are_left_out(model, caplog):
    nan = live_frame(1, dtype=np.float32)
    nan.pixels[3, 3] = np.nan
    constant = live_frame(2)
    constant.pixels[:] = 7
    small = live_frame(3, (4, 4))
    sink = FakeSink()
    counts, _ = stream([live_frame(0), nan, constant, small, live_frame(4)], sink, model=model)
    assert sink.indices == [0, 4]
    assert counts["refused"] == 3
    assert "frame 1: frame has 1 NaN" in caplog.text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "there is too little memory"),
        (failure("ONNX Runtime", (4, 1, 9, 9), "bad allocation"), "ONNX Runtime found too little"),
    ],
)
def test_a_frame_that_finds_no_memory_is_left_out_and_the_next_is_denoised(error, told, caplog):
    class Cramped(Slow):
        def denoise(self, frame):
            if frame.index == 1:
                raise error
            return super().denoise(frame)

    sink = FakeSink()
    running = StreamRunner(
        FakeSource([live_frame(n) for n in range(3)]), [sink], Cramped(0), policy="all"
    )
    assert running.run()["counts"]["refused"] == 1
    assert sink.indices == [0, 2]
    assert f"frame 1: {told}" in caplog.text


def test_order_nothing_twice_nothing_older_gaps_reported(caplog):
    sink = FakeSink()
    counts, _ = stream([live_frame(n) for n in (0, 1, 1, 2, 5, 4, 6, 9)], sink)
    assert sink.indices == [0, 1, 2, 5, 6, 9]
    assert counts["repeated"] == 1
    assert counts["out of order"] == 1
    assert counts["gaps"] == 2
    assert counts["missing"] == 4
    assert "frames 3 to 4 did not come" in caplog.text


def test_a_source_that_is_lost_is_opened_again_and_may_count_anew(caplog):
    lost = ConnectionLostError("the sender is gone")
    sink = FakeSink()
    items = [live_frame(0), live_frame(1), lost, Refusal(lost), Refusal(lost)]
    items += [live_frame(1), live_frame(0), live_frame(1), lost, live_frame(2), live_frame(3)]
    source = FakeSource(items)
    counts, _ = stream(source, sink)
    assert sink.indices == [0, 1, 0, 1, 2, 3]
    assert counts["repeated"] == 1
    assert counts["connections lost"] == 4
    assert source.n_opened == 5
    assert caplog.text.count("is away (the sender is gone)") == 2
    assert caplog.text.count("is back") == 2


def test_a_source_killed_twenty_times(caplog):
    lost = ConnectionLostError("the sender is gone")
    items = [item for n in range(20) for item in (live_frame(2 * n), lost)]
    sink = FakeSink()
    counts, _ = stream(items, sink)
    assert sink.indices == [2 * n for n in range(20)]
    assert counts["connections lost"] == 20
    assert counts["missing"] == 19


def test_a_sink_killed_twenty_times():
    fails = iter([True, False] * 20)

    def write(result):
        if next(fails):
            raise ConnectionLostError("the receiver is gone")

    sink = FakeSink(write=write)
    counts, _ = stream([live_frame(n) for n in range(20)], sink)
    assert sink.indices == list(range(20)), "each was written again once it was back"
    assert "lost by a fake sink" not in counts
    assert sink.n_opened == 21


def test_a_sink_without_room_is_offered_the_same_again():
    fails = iter([True, True, False] * 10)

    def write(result):
        if next(fails):
            raise NotNowError("no receiver takes its frames")

    sink = FakeSink(write=write)
    counts, _ = stream([live_frame(n) for n in range(10)], sink)
    assert sink.indices == list(range(10))
    assert sink.n_opened == 1
    assert counts["written to a fake sink"] == 10


@pytest.mark.skipif(os.name == "nt", reason="there os.kill ends the process that it tells")
def test_an_interrupt_of_a_stream_that_is_to_end_waits_for_no_sink():
    """The second Ctrl-C waited for a sink without room as long as patience lasts."""

    def write(result):
        time.sleep(0.01)
        raise NotNowError("no receiver takes its frames")

    items = [item for n in range(1000) for item in (live_frame(n), 0.01)]
    running = StreamRunner(
        FakeSource(items), [FakeSink(write=write)], LiveDenoiser(), policy="all", patience_s=60
    )
    threading.Timer(0.5, running.stop).start()
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert time.monotonic() - began < 30


def test_many_sinks_that_are_stuck_do_not_stop_the_others():
    hanging = threading.Event()
    stuck = [
        FakeSink(
            f"stuck {n}", write=lambda result, n=n: result.noisy.index >= n and hanging.wait(9)
        )
        for n in range(4)
    ]
    quick = FakeSink("quick")
    items = [item for n in range(40) for item in (live_frame(n), 0.01)]
    running = StreamRunner(
        FakeSource(items), [*stuck, quick], LiveDenoiser(), policy="latest", patience_s=0.2
    )
    counts = running.run()["counts"]
    assert len(quick.indices) > 30
    assert quick.indices[-1] == 39
    hanging.set()
    time.sleep(0.2)
    assert counts["passed as they are"] + counts["dropped"] == 40


def test_patience_with_stuck_sinks_does_not_add_up():
    hanging = threading.Event()

    def seconds(n_stuck):
        stuck = [FakeSink(f"stuck {n}", write=lambda _: hanging.wait(60)) for n in range(n_stuck)]
        source = FakeSource([live_frame(n) for n in range(30)])
        began = time.monotonic()
        StreamRunner(source, stuck, LiveDenoiser(), policy="all", patience_s=0.5).run()
        return time.monotonic() - began

    assert seconds(10) < 4 * seconds(1)
    hanging.set()
    time.sleep(0.2)


def test_a_slow_sink_that_never_stalls_gets_every_frame_at_the_end():
    slow = FakeSink("slow", write=lambda result: time.sleep(0.15))
    running = StreamRunner(
        FakeSource([live_frame(n) for n in range(12)]),
        [slow],
        LiveDenoiser(),
        policy="all",
        patience_s=0.3,
    )
    counts = running.run()["counts"]
    assert slow.indices == list(range(12))
    assert counts["written to slow"] == 12


def test_without_any_sink_left_the_stream_ends(caplog):
    def full(result):
        raise OutputError("cannot write 3.tif: No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        stream([live_frame(0), live_frame(1), 30.0], FakeSink(write=full))
    assert "No space left" not in caplog.text, "what is raised was told twice"


def test_sinks_that_are_given_up_are_told_once_each(caplog):
    def full(name):
        def write(result):
            raise OutputError(f"cannot write {name}")

        return write

    names = "first", "second"
    with pytest.raises(OutputError, match=r"cannot write (first|second)") as caught:
        stream([live_frame(0), live_frame(1), 30.0], *(FakeSink(n, write=full(n)) for n in names))
    told = caplog.text + str(caught.value)
    assert [told.count(f"cannot write {name}") for name in names] == [1, 1]


def test_a_source_that_counts_anew(caplog):
    sink = FakeSink()
    counts, _ = stream([live_frame(n) for n in (7, 8, 0, 1, 2, 3, 4)], sink)
    assert sink.indices == [7, 8, 2, 3, 4]
    assert "after frame 8 the source counts anew, from 2" in caplog.text
    assert counts["out of order"] == 2


def test_every_series_counts_from_the_beginning():
    sink = FakeSink()
    frames = [live_frame(n, series=s) for s in ("1", "2", "3") for n in range(3)]
    counts, _ = stream(frames, sink)
    assert sink.indices == [0, 1, 2] * 3
    assert not {"repeated", "out of order", "gaps"} & counts.keys()


def test_a_series_may_begin_with_a_higher_number():
    frames = [live_frame(n, series=s) for s, n in (("1", 0), ("1", 1), ("2", 5), ("2", 6))]
    counts, _ = stream(frames, FakeSink())
    assert not {"gaps", "missing"} & counts.keys()


def test_a_sink_that_is_not_there_yet_is_tried_again():
    lost = ConnectionLostError("nobody is there")
    sink = FakeSink(opening=[lost, lost])
    stream([live_frame(n) for n in range(5)], sink)
    assert sink.indices == list(range(5))
    assert sink.n_opened == 3


def test_the_stream_goes_on_without_a_sink_that_cannot(caplog):
    def full(result):
        raise OutputError("cannot write 3.tif: No space left on device")

    broken, sound = FakeSink("broken", write=full), FakeSink("sound")
    counts, _ = stream([live_frame(n) for n in range(20)], broken, sound)
    assert sound.indices == list(range(20))
    assert "broken is given up: cannot write 3.tif" in caplog.text
    assert counts["lost by broken"] >= 18
    assert broken.n_closed == 1


@pytest.mark.parametrize("place", ["source", "sink", "denoiser"])
def test_a_mistake_in_a_thread_surfaces_in_the_caller(place):
    def fail(*_):
        raise ZeroDivisionError(place)

    class Failing:
        def prepare(self):
            pass

        def denoise(self, frame):
            fail()

        def close(self):
            pass

    items = [live_frame(0), fail if place == "source" else live_frame(1), 30.0]
    sink = FakeSink(write=fail if place == "sink" else None)
    denoiser = Failing() if place == "denoiser" else LiveDenoiser()
    source = FakeSource(items)
    running = StreamRunner(source, [sink], denoiser, policy="all")
    with pytest.raises(ZeroDivisionError, match=place):
        running.run()
    assert source.n_closed >= 1


def test_a_source_that_will_never_open_ends_the_stream():
    refusal = Refusal(InputFileError("stack.mrc does not exist; check the path"))
    with pytest.raises(InputFileError, match="does not exist"):
        stream([refusal], FakeSink())


def test_frames_too_small_for_the_model_are_told_even_if_they_come_first(model, caplog):
    sink = FakeSink()
    counts, _ = stream([live_frame(0, (4, 4)), live_frame(1)], sink, model=model)
    assert sink.indices == [1]
    assert counts["refused"] == 1
    assert "needs at least" in caplog.text


def test_what_is_no_image_is_refused_where_it_is_made():
    with pytest.raises(BadFrameError, match="one grey image"):
        live_frame(0, (4, 4, 3))


def test_a_source_that_says_nothing_is_told(caplog, monkeypatch):
    monkeypatch.setattr(runner, "_SILENT_S", 0.2)
    counts, _ = stream([0.7, live_frame(0), 0.4, live_frame(1)], FakeSink())
    assert counts["silences"] >= 3
    assert caplog.text.count("nothing has come from") == 2, "once for each silence"
    assert caplog.text.count("for 0 s; does it send, and is the address right?") == 2


def test_a_folder_to_which_nothing_comes_is_nothing_to_worry_about(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(runner, "_SILENT_S", 0.1)
    source = open_source(f"watch:{tmp_path}")
    stream = StreamRunner(source, [FakeSink()], LiveDenoiser(None, "", OPTIONS))
    threading.Timer(0.5, stream.stop).start()
    stream.run()
    assert "nothing has come from" in caplog.text
    assert "it is still watched" in caplog.text
    assert "does it send" not in caplog.text


# models


def test_the_model_is_loaded_for_frames_as_it_learned_from_before_the_source_is_opened(model):
    denoiser = LiveDenoiser(model, "a model", OPTIONS)
    loaded = []

    class Looking(FakeSource):
        def open(self):
            loaded.append(denoiser._loaded.shape)
            super().open()

    sink = FakeSink()
    StreamRunner(Looking([live_frame(0, (40, 72))]), [sink], denoiser, policy="all").run()
    assert loaded == [model.metadata.frame_shape]
    assert sink.indices == [0]


@pytest.mark.parametrize(
    ("told", "prepared"),
    [(None, (512, 512)), ((3, 64), (8, 64)), ((60_000, 64), (2048, 64))],
)
def test_what_is_prepared_is_of_a_size_that_can_be(model, monkeypatch, told, prepared):
    shapes = []
    monkeypatch.setattr(
        denoising, "LoadedModel", lambda model, name, options, shape: shapes.append(shape)
    )
    metadata = replace(model.metadata, frame_shape=told)
    LiveDenoiser(replace(model, metadata=metadata), "a model", OPTIONS).prepare()
    assert shapes == [prepared]


def streaks(index, shape=(96, 128)):
    """A frame whose noise is correlated along rows."""
    noise = unit_noise(shape, np.random.default_rng(index), 0.5)
    return replace(live_frame(index), pixels=(100 + 10 * noise).astype(np.float32))


def test_noise_of_another_kind_than_the_models_is_told_once(model, caplog):
    """`n2sr denoise` told it, the stream never did."""
    told = "the model was trained with pattern cell"
    stream([live_frame(n, (96, 128)) for n in range(3)], FakeSink(), model=model)
    assert told not in caplog.text
    stream([streaks(n) for n in range(3)], FakeSink(), model=model)
    assert caplog.text.count(told) == 1
    assert "asks for pattern row" in caplog.text


def fringes(index, height=20.0):
    """A frame that is mostly signal, which no fixture's network has learned."""
    clean = 100 + height * np.sin(np.arange(128) / 4)[:, None] * np.ones(128)
    pixels = np.random.default_rng(index).poisson(clean).astype(np.uint16)
    pixels[5, 7] = 60_000  # hot: neither signal nor noise
    return replace(live_frame(index), pixels=pixels)


def test_a_model_that_loses_signal_is_told_once(model, caplog):
    stream([fringes(n, 0.0) for n in range(3)], FakeSink(), model=model)
    assert "signal is lost" not in caplog.text
    offset = np.random.default_rng(9).integers(0, 40, (128, 1)).astype(np.uint16)
    frame = fringes(0, 0.0)
    stream([replace(frame, pixels=frame.pixels + offset)], FakeSink(), model=model)
    assert "signal is lost" not in caplog.text  # but offsets, which a network averages away
    stream([fringes(n) for n in range(3)], FakeSink(), model=model)
    assert caplog.text.count("signal is lost") == 1


def test_noise_is_measured_beside_the_stream(model, monkeypatch):
    may_go_on, sink = threading.Event(), FakeSink()

    def slow(*_):
        may_go_on.wait(60)

    monkeypatch.setattr(fit, "noise_of", slow)

    def last():
        while len(sink.indices) < 3:  # they have come out, though the noise is not known
            time.sleep(0.01)
        may_go_on.set()
        return live_frame(3)

    stream([*(live_frame(n) for n in range(3)), last], sink, model=model)
    assert sink.indices == list(range(4))


def test_a_model_is_swapped_between_two_frames(model):
    denoiser = LiveDenoiser(options=OPTIONS)
    sink = FakeSink()
    loaded = []

    def swap():
        while len(sink.indices) < 3:
            time.sleep(0.01)
        loaded.append(LoadedModel(model, "learned", OPTIONS, (64, 64)))
        denoiser.swap(loaded[0])
        return live_frame(3)

    items = [live_frame(0), live_frame(1), live_frame(2), swap, live_frame(4)]
    StreamRunner(FakeSource(items), [sink], denoiser, policy="all").run()
    assert [r.record["model"] for _, _, r in sink.results] == [None] * 3 + ["learned"] * 2
    assert sink.indices == list(range(5))


def test_a_model_that_is_swapped_before_it_was_used_is_closed(model):
    denoiser = LiveDenoiser(options=OPTIONS)
    first, second = (LoadedModel(model, str(n), OPTIONS, (64, 64)) for n in range(2))
    denoiser.swap(first)
    denoiser.swap(second)
    with pytest.raises(ModelError, match="was closed"):
        first.denoise(live_frame(0))
    assert denoiser.denoise(live_frame(0)).record["model"] == "1"
    denoiser.close()


# ends


def test_stopping_from_another_thread():
    running = StreamRunner(
        FakeSource([live_frame(0), 60.0]), [sink := FakeSink()], LiveDenoiser(), policy="all"
    )
    threading.Timer(0.3, running.stop).start()
    began = time.monotonic()
    running.run()
    assert time.monotonic() - began < 5
    assert sink.indices == [0]


def test_the_generator(model):
    frames = [live_frame(n) for n in range(6)]
    source = FakeSource(frames)
    found = [
        (result.noisy.index, result.mean.copy())
        for result in denoise_stream(source, model, policy="all", options=OPTIONS)
    ]
    assert [index for index, _ in found] == list(range(6))
    with Denoiser(model, backend="ort") as denoiser:
        wanted = denoiser.denoise(frames[5].pixels, frame_index=5).mean
    assert np.array_equal(found[5][1], wanted)
    assert source.n_closed >= 1


def test_a_generator_that_is_left_early_ends_the_stream():
    source = FakeSource([live_frame(n) for n in range(100)])
    before = threading.enumerate()
    for result in denoise_stream(source, None, policy="all"):
        if result.noisy.index == 2:
            break
    assert not new_threads(before)
    assert source.n_closed >= 1
    assert source.items, "it was not read to the end"


def test_a_result_that_comes_before_it_is_asked_for_is_not_lost():
    handing = generator._Handing()
    first, second = (LiveResult(noisy=live_frame(n), mean=0, std=None, record={}) for n in (0, 1))
    thread = threading.Thread(target=lambda: [handing.write(r) for r in (first, second)])
    thread.start()
    while handing._result is None:
        time.sleep(0.01)
    assert handing.next(thread.is_alive) is first
    assert handing.next(thread.is_alive) is second
    handing.close()
    thread.join()


def test_a_generator_refuses_what_is_no_source_and_no_policy():
    with pytest.raises(SettingError, match="open_source"):
        denoise_stream("sim:", None)
    with pytest.raises(SettingError, match="must be one of latest, all"):
        denoise_stream(FakeSource([]), None, policy="some")
    with pytest.raises(SettingError, match=r"have name, open, read and close"):
        denoise_stream((live_frame(n) for n in range(3)), None)
    with pytest.raises(SettingError, match=r"model is 'x.onnx', but must be an exported model"):
        denoise_stream(FakeSource([]), "x.onnx")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda: StreamRunner(FakeSource([]), [], LiveDenoiser(), policy="al"), "mean 'all'"),
        (lambda: StreamRunner(FakeSource([]), [], LiveDenoiser(), policy=["all"]), "latest, all"),
        (lambda: StreamRunner(FakeSource([]), [], print), "must be a LiveDenoiser"),
        (lambda: StreamRunner(FakeSource([]), None, LiveDenoiser()), "a list of sinks"),
        (lambda: StreamRunner(FakeSource([]), [print], LiveDenoiser()), "open, write and close"),
        (lambda: LiveDenoiser("x.onnx"), "must be an exported model"),
        (lambda: LiveDenoiser(options={"seed": 1}), "must be a DenoisingOptions"),
        (lambda: DenoisingOptions(n_samples="4"), "a whole number"),
        (lambda: DenoisingOptions(seed=-1), "seed is -1"),
    ],
)
def test_what_a_program_gives_wrongly_is_told_before_anything_runs(given, told):
    """The first was a KeyError, the others came up in the middle of the stream."""
    with pytest.raises(SettingError, match=told):
        given()


def test_a_stream_runs_once():
    running = StreamRunner(FakeSource([live_frame(0)]), [FakeSink()], LiveDenoiser(), policy="all")
    running.run()
    with pytest.raises(SettingError, match="was run already; make another StreamRunner"):
        running.run()


def test_a_source_that_gives_bare_arrays_is_told_what_to_give():
    """It ended with an AttributeError from inside n2sr."""
    with pytest.raises(
        SettingError, match="a fake source gave ndarray, but read must return a Liv"
    ):
        stream([lambda: np.ones((64, 64))], FakeSink())


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.ma.masked_greater(np.arange(4096.0).reshape(64, 64), 9), "masked"),
        (np.arange(4096).reshape(64, 64).astype(object), "pixels of type object"),
        (np.full((64, 64), "1"), "pixels of type <U1"),
        (np.ones((64, 64), np.complex64), "pixels of type complex64"),
        ([[1, 2], [3]], "pixels that NumPy makes no array of"),
    ],
)
def test_live_pixels_that_are_no_numbers_are_left_out(pixels, told, caplog):
    """What lay under a mask was denoised; objects and ragged lists ended the stream."""
    items = [live_frame(0), lambda: LiveFrame(pixels=pixels, index=1), live_frame(2)]
    sink = FakeSink()
    counts, _ = stream(items, sink)
    assert sink.indices == [0, 2]
    assert counts["damaged"] == 1
    assert told in caplog.text


def test_a_live_frames_number_of_numpys_is_pythons():
    """The next one of a uint16 overflowed, and sinks that write JSON refused it."""
    frame = LiveFrame(pixels=[[1, 2], [3, 4]], index=np.uint16(65535))
    assert type(frame.index) is int
    assert frame.shape == (2, 2)
    for index in ("3", np.float64(3), None):
        with pytest.raises(BadFrameError, match="a whole number was expected"):
            LiveFrame(pixels=[[1, 2], [3, 4]], index=index)


def test_a_generator_raises_what_failed():
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(denoise_stream(FakeSource([live_frame(0), fail]), None, policy="all"))


def test_memory_stays_flat():
    """Frames go round in the ring's memory."""
    import tracemalloc

    def frames(n):
        frame = live_frame(0, (128, 128))
        from dataclasses import replace

        return (replace(frame, index=k) for k in range(n))

    class Endless(FakeSource):
        def __init__(self, n):
            super().__init__([])
            self.frames = frames(n)

        def read(self, timeout_s):
            from n2sr_deploy.errors import EndOfStreamError

            try:
                return next(self.frames)
            except StopIteration:
                raise EndOfStreamError("no more") from None

    class Null(FakeSink):
        def write(self, result):
            pass

    peaks = []
    tracemalloc.start()
    try:
        for n in (300, 3000):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            stream(Endless(n), Null())
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 300_000  # 4096 latencies a stage are kept


# addresses and the command


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stack.mrc", "is no address; it begins with a scheme"),
        ("ftp://x", "there is no source 'ftp'"),
        ("replay:x.mrc?speed=3", "has no option 'speed'; it has fps, loop"),
        ("replay:x.mrc?fps=fast", "fps is 'fast' in replay:x.mrc?fps=fast, but must be 0.001 to"),
        ("sim:?size=3", "size is '3'"),
        ("zmq://nowhere", "must be zmq://HOST:PORT"),
        ("zmq://127.0.0.1:9999?socket=req", "must be one of pull, sub"),
        ("pva://", "must be pva://CHANNEL"),
    ],
)
def test_addresses_that_make_no_sense(text, told):
    with pytest.raises(SettingError, match=told.replace("?", r"\?")):
        open_source(text)


def test_addresses_of_sinks():
    assert open_sink("null:").name == "null:"
    with pytest.raises(SettingError, match="would let other machines listen"):
        open_sink("zmq://0.0.0.0:9998")
    with pytest.raises(SettingError, match="needs a folder"):
        open_sink("folder:")
    with pytest.raises(SettingError, match="there is no sink 'sim'"):
        open_sink("sim:")


def test_the_simulated_source_tells_the_truth():
    source = SimulatedSource(Address.parse("sim:?size=64&fps=1000&frames=40&dose=50"))
    source.open()
    frames = [source.read(1.0) for _ in range(40)]
    mean = np.mean([f.pixels - source.truth(f.index) for f in frames])
    assert abs(mean) < 0.2
    spread = np.mean([(f.pixels - source.truth(f.index)) ** 2 for f in frames])
    assert spread == pytest.approx(50, rel=0.05)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_streams_into_a_folder(model_path, tmp_path):
    from n2sr_deploy import read_frame

    done = run(
        *("stream", "sim:?size=64&fps=200&frames=5", "-m", model_path, "--policy", "all"),
        *("--to", f"folder:{tmp_path / 'out'}?std=1", "--to", "null:", "--backend", "ort"),
    )
    assert done.exit_code == 0, done.output
    assert "received 5" in done.output
    assert "dropped 0" in done.output
    assert "arrival to null: p50" in done.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[:2] == ["00000000.std.tif", "00000000.tif"]
    assert len(names) == 11
    lines = (tmp_path / "out" / "frames.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [line["index"] for line in told] == list(range(5))
    assert told[3]["metadata"]["simulated"]
    assert told[3]["metadata"]["n2sr"]["model"] == str(model_path)
    assert told[3]["source_time_s"] > 1e9
    frame = read_frame(tmp_path / "out" / "00000003.tif")
    assert frame.pixel_size == pytest.approx((0.02, 0.02))
    assert str(model_path) in frame.history[-1]


def test_a_stream_that_fails_tells_what_came_before(model_path, tmp_path, monkeypatch):
    from n2sr_deploy.stream.file_sinks import FolderSink

    write = FolderSink.write

    def full(self, result):
        if result.noisy.index == 2:
            raise OutputError("cannot write 2.tif: No space left on device")
        write(self, result)

    monkeypatch.setattr(FolderSink, "write", full)
    done = run(
        *("stream", "sim:?size=64&fps=50&frames=50", "-m", model_path, "--policy", "all"),
        *("--to", f"folder:{tmp_path / 'out'}", "--backend", "ort"),
    )
    assert done.exit_code == 2
    assert re.search(r"received \d+, denoised \d+", done.stderr)
    assert f"written to folder:{tmp_path / 'out'} 2" in done.stderr
    assert "No space left on device" in done.stderr


def test_what_a_stream_that_fails_dropped_is_told():
    """It said "received 5, denoised 2, dropped 0"."""

    def full(result):
        time.sleep(0.2)
        raise OutputError("cannot write: No space left on device")

    class Slow(LiveDenoiser):
        def denoise(self, frame):
            time.sleep(0.05)
            return super().denoise(frame)

    items = [item for n in range(30) for item in (live_frame(n), 0.005)]
    running = StreamRunner(FakeSource(items), [FakeSink(write=full)], Slow(), policy="latest")
    with pytest.raises(OutputError):
        running.run()
    counts = running.statistics.summary()["counts"]
    assert counts["dropped"] > 0
    assert counts["received"] == counts["passed as they are"] + counts["dropped"]


def test_a_start_that_is_not_there_is_refused_before_the_source_opens(tmp_path, monkeypatch):
    """The stream began, and a training failed twice a minute."""
    never = "n2sr_deploy.stream.addresses.open_source"
    monkeypatch.setattr(never, lambda address: pytest.fail("it was opened"))
    missing = tmp_path / "missing.safetensors"
    done = run("stream", "sim:?size=64&fps=200&frames=5", "--init", missing)
    assert done.exit_code == 2
    assert f"{missing} does not exist; check the path" in done.output


def test_an_address_is_refused_before_a_trainings_options_are_asked_about(monkeypatch):
    """It took the seconds that PyTorch takes."""
    never = "n2sr_deploy.stream.learning.TrainingProcess"
    monkeypatch.setattr(never, lambda *_: pytest.fail("they were asked about"))
    for source, sink in (("sim:?sise=64", "null:"), ("sim:?size=64", "null:?sise=64")):
        done = run("stream", source, "--to", sink, "--preset", "fast")
        assert (done.exit_code, "has no option 'sise'; it has" in done.output) == (2, True)


def test_the_same_sink_twice_is_refused(tmp_path):
    sink = f"folder:{tmp_path / 'a'}"
    done = run("stream", "sim:?size=64&frames=2", "--to", sink, "--to", sink)
    assert (done.exit_code, "each needs a place of its own" in done.output) == (2, True)
    done = run("stream", "sim:?size=64&frames=2", "--to", sink, "--to", f"{sink}/?std=1")
    assert (done.exit_code, "each needs a place of its own" in done.output) == (2, True)
    done = run("stream", "sim:?size=64&frames=2", "--to", "null:", "--to", "null:")
    assert done.exit_code == 0, done.output


def test_a_folder_is_not_fed_with_its_own_results(tmp_path):
    for sink in (f"folder:{tmp_path}/", f"stack:{tmp_path / 'all.tif'}"):
        done = run("stream", f"watch:{tmp_path}", "--to", sink)
        assert (done.exit_code, "writes into the folder" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--preset", "nope"], "preset"),
        (["--steps", "0"], "steps is 0"),
        (["--view-port", "8080"], "need --view"),
        (["--token", "secret"], "need --view"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_first_frame(options, told):
    done = run("stream", "sim:?size=64&fps=200&frames=5", *options)
    assert (done.exit_code, told in done.output) == (2, True), done.output


def test_options_of_a_training_are_refused_beside_a_model(model_path):
    done = run("stream", "sim:?frames=1", "-m", model_path, "--steps", "5")
    assert (done.exit_code, "add --relearn auto" in done.output) == (2, True), done.output


def test_the_summary_as_json():
    done = run("stream", "sim:?size=64&fps=200&frames=3", "--policy", "all", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["counts"]["denoised"] == 0
    assert summary["counts"]["passed as they are"] == 3
    assert summary["fps"] > 0
    assert summary["stages_ms"]["wait"]["p99"] > 0
    assert "denoise" not in summary["stages_ms"], "nothing was"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_a_summary(number):
    code = "from n2sr_deploy.cli import main; main()"
    command = [sys.executable, "-c", code, "stream", "sim:?size=64&fps=50", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while "learning from frame" not in (line := process.stderr.readline()):
        assert line, "it has ended"
    time.sleep(0.5)
    os.kill(process.pid, number)
    time.sleep(0.05)
    os.kill(process.pid, number)  # as `timeout` does, to the process and to its group
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["counts"]["passed as they are"] >= 1
    assert "Traceback" not in stderr


def test_one_signal_ends_what_is_left_to_do_after_the_stream():
    """Once it had ended by itself, the first was taken for a wish that it end."""
    asked = []
    runner = types.SimpleNamespace(stop=lambda: asked.append("stop"))
    with _until_told(runner):
        signal.raise_signal(signal.SIGINT)
    assert asked == ["stop"]

    def interrupted():
        with _until_told(runner) as has_ended:
            has_ended()
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)  # the same one: some programs send it twice
                asked.append("tidied up")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert asked[1:] == ["stop", "tidied up"]


def test_metrics_are_served_to_this_machine_only():
    pytest.importorskip("prometheus_client")
    import socket
    import urllib.request

    from n2sr_deploy.stream.metrics import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gate = threading.Event()
    items = [live_frame(0), live_frame(2), lambda: gate.wait(20) and None]
    running = StreamRunner(FakeSource(items), [FakeSink()], LiveDenoiser(), policy="all")
    thread = threading.Thread(target=running.run)
    with serve(running, port):
        thread.start()
        while running.statistics["passed as they are"] < 2:
            time.sleep(0.01)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        with pytest.raises(SettingError, match="cannot be had"), serve(running, port):
            pass
    gate.set()
    thread.join()
    assert 'n2sr_frames_total{what="denoised"} 0.0' in text
    assert 'n2sr_frames_total{what="passed as they are"} 2.0' in text
    assert 'n2sr_frames_total{what="missing"} 1.0' in text
    assert 'n2sr_latency_seconds{quantile="0.99",stage="wait"}' in text
    assert 'stage="denoise"' not in text, "none was"
