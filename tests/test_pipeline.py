"""The pipeline of frames on a GPU, on one that is none."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from n2sr_deploy import Frame, SamplingPattern
from n2sr_deploy.cuda import pinned
from n2sr_deploy.errors import (
    DeviceError,
    FrameError,
    ModelError,
    OutOfDeviceMemoryError,
    SettingError,
)
from n2sr_deploy.layout import layouts
from n2sr_deploy.pipeline import FramePipeline, Program
from n2sr_deploy.sampling import DRAWS_AT_ONCE
from n2sr_deploy.tiling import tiles
from tests.conftest import random_pixels, tiny_config
from tests.fake_device import FakeDevice, FakeNetwork
from tests.gpus import FAKE, GPU, WHERE, assert_as_on_the_cpu


@pytest.fixture(params=WHERE)
def gpu(request):
    """What is right on all of them."""
    gpu = GPU(request.param)
    yield gpu
    gpu.assert_empty()


@pytest.fixture
def device():
    gpu = GPU(FAKE)
    yield gpu.device
    gpu.assert_empty()


def pipeline_on(device, model, n_in_flight=2, **settings):
    return FramePipeline(
        Program(model, FakeNetwork(model, device, **settings), device, n_in_flight)
    )


@pytest.fixture
def pipeline(device, model):
    with pipeline_on(device, model) as pipeline:
        yield pipeline


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "int32", "float64"])
def test_frames_are_denoised_as_on_the_cpu(gpu, model, dtype):
    with gpu.pipeline(model) as pipeline:
        for index in range(7):  # planned, recorded, and replayed, in both slots
            frame = random_pixels((50, 70), dtype, seed=index % 3)
            found = pipeline.denoise(frame, seed=3, frame_index=index)
            gpu.assert_as_on_the_cpu(found, model, frame, seed=3, frame_index=index)
            assert np.isclose(found.mean.mean(dtype=np.float64), frame.mean(dtype=np.float64))
        gpu.assert_replayed(2)


@pytest.fixture(scope="module", params=["cell", "row", "column"])
def model_of_pattern(request, noisy):
    from n2sr_train import export_model, train

    pattern = SamplingPattern.named(request.param)
    model = export_model(train(noisy, tiny_config(pattern=pattern, steps=1)))
    if request.param == "cell":
        model = replace(model, metadata=replace(model.metadata, n_orientations=8))
    return model


@pytest.mark.parametrize("n_samples", [1, 4, 5, 16])
@pytest.mark.parametrize("shape", [(64, 64), (70, 50)])
def test_all_patterns_orientations_and_numbers_of_draws(
    gpu, model_of_pattern, noisy, n_samples, shape
):
    frame = noisy.pixels[: shape[0], : shape[1]]
    with gpu.pipeline(model_of_pattern, n_in_flight=1) as pipeline:
        for index in range(3):  # planned, recorded, replayed
            found = pipeline.denoise(frame, n_samples, frame_index=index)
        gpu.assert_replayed(1)
    gpu.assert_as_on_the_cpu(found, model_of_pattern, frame, n_samples, frame_index=2)


def test_a_network_in_float16(device, model, noisy):
    with pipeline_on(device, model, is_half=True) as pipeline:
        found = pipeline.denoise(noisy)
    assert_as_on_the_cpu(found, model, noisy, tolerance=1e-2)


def test_a_frame_is_recorded_once_and_replayed_without_allocating(pipeline, device, noisy):
    network = pipeline._program.network
    for _ in range(4):  # two slots: planned, recorded
        pipeline.denoise(noisy)
    counts = device.n_allocations, device.n_captures, network.n_enqueued
    assert device.n_captures == 2
    before = device.n_waits
    for index in range(6):
        pipeline.denoise(noisy, frame_index=index)
    assert (device.n_allocations, device.n_captures, network.n_enqueued) == counts
    assert device.n_waits == before + 6, "one wait a frame"


def test_every_replay_draws_anew_and_sees_its_own_frame(gpu, model, noisy):
    dark = Frame(pixels=noisy.pixels / 3)
    with gpu.pipeline(model) as pipeline:
        for _ in range(4):
            pipeline.denoise(noisy)
        first, second = (pipeline.denoise(noisy, frame_index=n) for n in (1, 2))
        assert not np.array_equal(first.mean, second.mean)
        again = pipeline.denoise(noisy, frame_index=1)
        assert np.array_equal(first.mean, again.mean)
        mean = pipeline.denoise(dark).mean.mean()
        assert mean == pytest.approx(noisy.pixels.mean() / 3, rel=1e-5)
        gpu.assert_replayed(2)
    gpu.assert_as_on_the_cpu(second, model, noisy, frame_index=2)


def test_a_network_that_cannot_be_recorded_is_run_each_time(device, model, noisy):
    with pipeline_on(device, model, is_capturable=False) as pipeline:
        for index in range(5):
            found = pipeline.denoise(noisy, frame_index=index)
            assert_as_on_the_cpu(found, model, noisy, frame_index=index)
        assert device.n_captures == 0
        assert pipeline._program.network.n_enqueued == 5


def test_frames_in_flight_come_back_in_order(gpu, model, noisy):
    frames = [Frame(pixels=noisy.pixels * (n + 1)) for n in range(7)]
    found = []
    with gpu.pipeline(model) as pipeline:
        pipeline.submit(frames[0], frame_index=0)
        for index in range(1, 7):
            pipeline.submit(frames[index], frame_index=index)
            assert pipeline.n_in_flight == 2
            found.append(pipeline.collect())
        found.append(pipeline.collect())
        assert pipeline.n_in_flight == 0
        gpu.assert_replayed(2)
    for index, result in enumerate(found):
        mean = result.mean.mean(dtype=np.float64)
        assert mean == pytest.approx(frames[index].pixels.mean(), rel=1e-5)
        gpu.assert_as_on_the_cpu(result, model, frames[index], frame_index=index)


def test_results_are_the_callers_whatever_comes_after(gpu, model, noisy):
    """Later frames, another program, the end of the pipeline."""
    frames = [Frame(pixels=noisy.pixels * (n + 1)) for n in range(8)]
    pins = gpu.device.pins
    with gpu.pipeline(model) as pipeline:
        found = [pipeline.denoise(frame) for frame in frames[:4]]
        for frame in frames[4:6]:
            pipeline.submit(frame)
        pipeline.swap(gpu.program(model))
        found += [pipeline.collect(), pipeline.collect()]
        found += [pipeline.denoise(frame) for frame in frames[6:]]
    assert len(pins) == 2 * len(frames)
    for frame, result in zip(frames, found, strict=True):
        gpu.assert_as_on_the_cpu(result, model, frame)
    kept = found[3].std[10:20, ::2].T  # of which nothing else is left
    wanted = kept.copy()
    del found, result
    assert len(pins) == 1
    assert np.array_equal(kept, wanted)
    del kept
    assert not pins


def test_a_result_is_not_overwritten_while_anything_looks_into_it(pipeline, device, noisy):
    for index in range(4):
        pipeline.denoise(noisy, frame_index=index)
    n_pins = len(device.pins)
    row = pipeline.denoise(noisy, frame_index=9).mean[7].reshape(16, 8)
    wanted = row.copy()
    for index in range(6):
        found = pipeline.denoise(noisy, frame_index=index)
        assert not np.shares_memory(found.mean, row)
        assert not np.shares_memory(found.std, row)
    assert np.array_equal(row, wanted)
    place = row.ctypes.data
    del found, row
    later = [pipeline.denoise(noisy, frame_index=index) for index in range(3)]
    assert any(
        array.ctypes.data <= place < array.ctypes.data + array.nbytes
        for result in later
        for array in (result.mean, result.std)
    ), "its memory is used again"
    assert len(device.pins) <= n_pins + 2 * 2, "three results are kept, where one was in use"


@pytest.mark.parametrize("n_kept", [0, 1, 3])
def test_a_caller_that_keeps_the_last_results_makes_nothing_grow(pipeline, device, noisy, n_kept):
    kept = deque(maxlen=n_kept)
    pipeline.submit(noisy)
    for index in range(30):
        if index == 10:
            counts = device.n_allocations, len(device.pins)
        pipeline.submit(noisy, frame_index=index)
        kept.append(pipeline.collect())
    assert (device.n_allocations, len(device.pins)) == counts
    pipeline.collect()


def test_what_many_results_lay_in_is_released_with_the_next_frame(pipeline, device, noisy):
    for index in range(4):
        pipeline.denoise(noisy, frame_index=index)
    n_pins = len(device.pins)
    found = [pipeline.denoise(noisy, frame_index=index) for index in range(20)]
    assert len(device.pins) >= 2 * len(found)
    del found
    pipeline.denoise(noisy)
    assert len(device.pins) <= n_pins + 2 * (2 + 2)


def test_of_a_caller_that_keeps_all_results_no_more_memory_is_pinned(
    pipeline, device, model, noisy, monkeypatch
):
    monkeypatch.setattr(pinned, "_MOST_LENT", 10 * 4 * noisy.pixels.size)
    found = [pipeline.denoise(noisy, frame_index=index) for index in range(12)]
    assert len(device.pins) <= 2 * 3 + 10 + 2
    for index, result in enumerate(found):
        assert_as_on_the_cpu(result, model, noisy, frame_index=index)


def test_memory_that_the_gpu_still_writes_to_is_not_given_back(model, noisy):
    """Where a frame's second download fails, the first is under way."""
    lent = []

    class Failing(FakeDevice):
        n_to_go = 0  # downloads of a result, until one fails

        def download(self, to, source, stream):
            self.n_to_go -= to.shape == noisy.shape
            if self.n_to_go == 0 and to.shape == noisy.shape:
                raise DeviceError("the GPU failed (an invalid argument)")
            super().download(to, source, stream)

        def wait(self, stream):
            lent.append(pool.n_lent)
            super().wait(stream)

    device = Failing()
    with pipeline_on(device, model) as pipeline:
        pool = pipeline._program._host.results
        for index in range(4):
            pipeline.denoise(noisy, frame_index=index)
        lent.clear()
        device.n_to_go = 2
        with pytest.raises(DeviceError):
            pipeline.denoise(noisy)
        assert lent == [2], "while the slot waited for what was enqueued"
        assert pool.n_lent == 0
        assert_as_on_the_cpu(pipeline.denoise(noisy), model, noisy)


def test_more_frames_in_flight_than_fit_are_refused(pipeline, noisy):
    pipeline.submit(noisy)
    pipeline.submit(noisy)
    with pytest.raises(SettingError, match="2 frames are in flight"):
        pipeline.submit(noisy)
    with pytest.raises(SettingError, match="frames are in flight"):
        pipeline.denoise(noisy)
    pipeline.collect()
    pipeline.submit(noisy)
    pipeline.collect()
    pipeline.collect()
    with pytest.raises(SettingError, match="no frame is in flight"):
        pipeline.collect()


def test_frames_of_other_shapes_and_types_midway(gpu, model):
    kinds = [((64, 48), "uint16"), ((50, 70), "uint16"), ((64, 48), "float32"), ((90, 33), "uint8")]
    with gpu.pipeline(model) as pipeline:
        for n in range(12):
            shape, dtype = kinds[n * 5 % 4]
            frame = random_pixels(shape, dtype, seed=n)
            gpu.assert_as_on_the_cpu(pipeline.denoise(frame), model, frame)
        of_kinds = 2 * 2 * 3  # no more than two kinds of frames a slot are kept
        of_results = 2 * (2 + 2)  # and no more results than may be
        assert len(gpu.device.pins) <= of_kinds + of_results


@pytest.mark.parametrize(("share", "tiled"), [(0.9, False), (0.5, False), (0.2, True)])
@pytest.mark.parametrize("name", ["cell", "column"])
def test_a_small_gpu_is_given_fewer_draws_at_once_then_tiles(noisy, name, share, tiled):
    from n2sr_train import export_model, train

    model = export_model(train(noisy, tiny_config(pattern=SamplingPattern.named(name), steps=1)))
    frame = random_pixels((600, 900), "uint16")
    roomy = FakeDevice()
    with pipeline_on(roomy, model, n_in_flight=1) as pipeline:
        wanted = pipeline.denoise(frame, 8)
        needed = sum(memory.nbytes for memory in roomy.memory.values())
    small = FakeDevice(int(needed * share))
    with pipeline_on(small, model, n_in_flight=1) as pipeline:
        for _ in range(3):
            found = pipeline.denoise(frame, 8)
        (plan,) = pipeline._program._slots[0]._plans.values()
        assert plan.layout.at_once < DRAWS_AT_ONCE
        assert (plan.layout.seen[0] < 600) == tiled
    assert np.abs(found.mean - wanted.mean).max() < 1e-5 * frame.std()
    assert np.abs(found.std - wanted.std).max() < 1e-5 * frame.std()


def test_a_gpu_that_is_too_small_says_so_and_leaves_nothing(model):
    device = FakeDevice(200_000)
    with pipeline_on(device, model) as pipeline:
        with pytest.raises(OutOfDeviceMemoryError, match=r"not even in tiles.*runs on the CPU"):
            pipeline.denoise(random_pixels((300, 420), "uint16"), 8)
        assert not device.memory
        small = random_pixels((32, 32), "uint16")
        assert_as_on_the_cpu(pipeline.denoise(small), model, small)


@pytest.mark.parametrize("shape", [(64, 64), (33, 95), (500, 130)])
def test_layouts_cover_the_frame_exactly_once(model, shape):
    for layout in layouts(model, shape, 3):
        covered = np.zeros(shape, int)
        for tile in tiles(model.metadata, shape, layout.seen):
            covered[tile.rows, tile.columns] += 1
            assert 0 <= tile.top <= layout.seen[0] - (tile.rows.stop - tile.rows.start)
            assert 0 <= tile.left <= layout.seen[1] - (tile.columns.stop - tile.columns.start)
        assert (covered == 1).all()


def test_a_frame_that_is_just_its_two_overlaps_is_one_tile(model):
    """As 512 x 512 is to preset fast."""
    metadata = replace(model.metadata, receptive_radius=(256, 256))
    deep = replace(model, metadata=metadata)
    layout = next(layouts(deep, (512, 512), 4))
    (tile,) = tiles(deep.metadata, (512, 512), layout.seen)
    assert (tile.rows, tile.columns) == (slice(0, 512), slice(0, 512))


def test_what_the_network_was_not_built_for_is_told_and_leaves_nothing(device, model, noisy):
    rows, columns = model.metadata.padded(noisy.shape)
    shapes = [(4, 1, rows // 2, columns // 2)]
    with pipeline_on(device, model, shapes=shapes) as pipeline:
        for _ in range(2):
            with pytest.raises(ModelError, match="was not built for"):
                pipeline.denoise(noisy, 3)
            assert not device.memory
        assert_as_on_the_cpu(pipeline.denoise(noisy), model, noisy)


@pytest.mark.parametrize("fails_at", [1, 4, 9, 10, 14, 25])
def test_after_a_failure_of_the_gpu_the_next_frames_are_right(device, model, noisy, fails_at):
    """While planning, recording and replaying, at the first, a middle and the last step."""
    device.fails_at = fails_at
    failed = 0
    with pipeline_on(device, model) as pipeline:
        for index in range(8):
            try:
                found = pipeline.denoise(noisy, frame_index=index)
            except DeviceError:
                failed += 1
                assert pipeline.n_in_flight == 0
            else:
                assert_as_on_the_cpu(found, model, noisy, frame_index=index)
        assert failed == 1


def test_a_failure_does_not_touch_the_other_frame_in_flight(device, model, noisy):
    with pipeline_on(device, model) as pipeline:
        for _ in range(4):
            before = device.n_done
            pipeline.denoise(noisy)
        pipeline.submit(noisy, frame_index=1)
        device.fails_at = device.n_done + (device.n_done - before) + 3
        pipeline.submit(noisy, frame_index=2)
        assert_as_on_the_cpu(pipeline.collect(), model, noisy, frame_index=1)
        with pytest.raises(DeviceError):
            pipeline.collect()
        assert_as_on_the_cpu(pipeline.denoise(noisy), model, noisy)


def test_a_capture_that_is_spoilt_is_told_and_frames_go_on(device, model, noisy, caplog):
    """As by a library that allocates each time it runs."""

    class Allocating(FakeNetwork):
        def context(self, shape, stream):
            context = super().context(shape, stream)
            plain = context.enqueue

            def enqueue(*arguments):
                device.free(device.allocate(100))
                plain(*arguments)

            context.enqueue = enqueue
            return context

    program = Program(model, Allocating(model, device), device)
    with FramePipeline(program) as pipeline:
        for index in range(6):
            found = pipeline.denoise(noisy, frame_index=index)
            assert_as_on_the_cpu(found, model, noisy, frame_index=index)
        assert not any(device.streams.values())
        assert not device.graphs
    assert caplog.text.count("no CUDA graph can be recorded") == 2, "once for each slot"


def test_on_a_gpu_that_records_nothing_no_frame_is_lost(device, model, noisy, caplog):
    device.can_capture = False
    with pipeline_on(device, model) as pipeline:
        for index in range(6):
            found = pipeline.denoise(noisy, frame_index=index)
            assert_as_on_the_cpu(found, model, noisy, frame_index=index)
    assert caplog.text.count("no CUDA graph can be recorded") == 2, "once for each slot"


def test_a_recording_that_is_interrupted_is_not_used(device, model, noisy):
    class Interrupted(FakeNetwork):
        n_left = 2

        def context(self, shape, stream):
            context = super().context(shape, stream)
            plain = context.enqueue

            def enqueue(*arguments):
                self.n_left -= 1
                if self.n_left == 0:
                    raise KeyboardInterrupt
                plain(*arguments)

            context.enqueue = enqueue
            return context

    with FramePipeline(Program(model, Interrupted(model, device), device, 1)) as pipeline:
        pipeline.denoise(noisy)
        with pytest.raises(KeyboardInterrupt):
            pipeline.denoise(noisy)
        for index in range(3):
            found = pipeline.denoise(noisy, frame_index=index)
            assert_as_on_the_cpu(found, model, noisy, frame_index=index)


def test_memory_for_one_frame_in_flight_only(model, noisy, caplog):
    roomy = FakeDevice()
    with pipeline_on(roomy, model, n_in_flight=1) as pipeline:
        pipeline.denoise(noisy)
        needed = sum(memory.nbytes for memory in roomy.memory.values())
    with pipeline_on(FakeDevice(int(1.01 * needed)), model, n_in_flight=2) as pipeline:
        for index in range(4):
            found = pipeline.denoise(noisy, frame_index=index)
            assert_as_on_the_cpu(found, model, noisy, frame_index=index)
    assert "memory for 1 frame at a time only" in caplog.text


@pytest.fixture
def room_for_one(model, noisy):
    """A GPU with memory for one frame in flight."""
    roomy = FakeDevice()
    with pipeline_on(roomy, model, n_in_flight=1) as pipeline:
        pipeline.denoise(noisy)
        needed = sum(memory.nbytes for memory in roomy.memory.values())
    device = FakeDevice(int(1.01 * needed))
    yield device
    assert not device.memory | device.pins | device.streams | device.graphs


@pytest.mark.parametrize("n_in_flight", [2, 3])
def test_frames_that_fit_one_at_a_time_only_are_taken_as_promised(
    room_for_one, model, noisy, n_in_flight
):
    frames = [Frame(pixels=noisy.pixels * (n + 1)) for n in range(7)]
    with pipeline_on(room_for_one, model, n_in_flight=n_in_flight) as pipeline:
        found = []
        for index, frame in enumerate(frames):
            if pipeline.n_in_flight == n_in_flight:
                with pytest.raises(SettingError, match=f"{n_in_flight} frames are in flight"):
                    pipeline.submit(frame)
                found.append(pipeline.collect())
            pipeline.submit(frame, frame_index=index)
        assert (pipeline.n_in_flight, pipeline.most_in_flight) == (n_in_flight, 1)
        found += [pipeline.collect() for _ in range(n_in_flight)]
        with pytest.raises(SettingError, match="no frame is in flight"):
            pipeline.collect()
    for index, (frame, result) in enumerate(zip(frames, found, strict=True)):
        assert_as_on_the_cpu(result, model, frame, frame_index=index)
    del found, result


def test_a_frame_that_makes_room_for_another_tells_its_own_failure(room_for_one, model, noisy):
    with pipeline_on(room_for_one, model, n_in_flight=2) as pipeline:
        pipeline.submit(np.full(noisy.shape, 7, np.float32))
        pipeline.submit(noisy)
        with pytest.raises(FrameError, match="frame is constant"):
            pipeline.collect()
        assert_as_on_the_cpu(pipeline.collect(), model, noisy)


def test_a_network_for_whole_frames_only_on_a_full_gpu(model, noisy):
    rows, columns = model.metadata.padded(noisy.shape)
    device = FakeDevice(1_000_000)
    shapes = [(4, 1, rows // 2, columns // 2)]
    pipeline = pipeline_on(device, model, n_in_flight=1, shapes=shapes)
    with pipeline, pytest.raises(OutOfDeviceMemoryError, match="does not suffice"):
        pipeline.denoise(noisy)
    assert not device.memory


def test_a_model_is_swapped_between_two_frames(gpu, model, noisy):
    from n2sr_train import export_model, train

    other = export_model(train(noisy, tiny_config(seed=5, steps=3)))
    with gpu.pipeline(model) as pipeline:
        before = pipeline._program.network
        for index in range(4):
            pipeline.denoise(noisy, frame_index=index)
        gpu.assert_replayed(2)
        pipeline.submit(noisy, frame_index=0)
        pipeline.swap(gpu.program(other))
        assert not gpu.closed
        pipeline.submit(noisy, frame_index=1)
        found = pipeline.collect()
        assert gpu.closed == [before], "though the result lies in memory that it pinned"
        gpu.assert_as_on_the_cpu(pipeline.collect(), other, noisy, frame_index=1)
        gpu.assert_as_on_the_cpu(found, model, noisy, frame_index=0)
        assert pipeline.model is other
        for index in range(2, 6):  # recorded and replayed, while the first one's graphs are gone
            found = pipeline.denoise(noisy, frame_index=index)
            gpu.assert_as_on_the_cpu(found, other, noisy, frame_index=index)
        gpu.assert_replayed(2)
        after = pipeline._program.network
        pipeline.swap(gpu.program(model))
        assert gpu.closed == [before, after], "nothing of it was in flight"


def test_a_program_prepared_in_another_thread_delays_no_frame(gpu, model, noisy):
    device = gpu.device
    with gpu.pipeline(model) as pipeline:
        pipeline.denoise(noisy)
        program = gpu.program(model)
        worker = threading.Thread(target=program.prepare, args=(noisy,))
        worker.start()
        while worker.is_alive():
            found = pipeline.denoise(noisy, frame_index=5)
            gpu.assert_as_on_the_cpu(found, model, noisy, frame_index=5)
        worker.join()
        counts = device.n_allocations, device.n_captures
        pipeline.swap(program)
        for index in range(4):
            found = pipeline.denoise(noisy, frame_index=index)
            gpu.assert_as_on_the_cpu(found, model, noisy, frame_index=index)
            del found
        assert (device.n_allocations, device.n_captures) == counts
        gpu.assert_replayed(2)


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.full((64, 64), 7, np.uint16), "frame is constant"),
        (np.full((64, 64), np.nan, np.float32), "NaN"),
        (np.ones((4, 4), np.uint8), "needs at least"),
        (np.arange(4096, dtype=np.float64).reshape(64, 64) * 1e38, "too large for float32"),
    ],
)
def test_frames_that_cannot_be_denoised_are_told_and_the_next_are_right(
    pipeline, model, noisy, pixels, told
):
    for _ in range(3):
        with pytest.raises(FrameError, match=told), np.errstate(all="ignore"):
            pipeline.denoise(pixels)
        assert pipeline.n_in_flight == 0
        assert_as_on_the_cpu(pipeline.denoise(noisy), model, noisy)


def test_settings_out_of_range_are_refused(pipeline, device, model, noisy):
    with pytest.raises(SettingError, match="n_samples"):
        pipeline.denoise(noisy, 0)
    with pytest.raises(SettingError, match="frame_index"):
        pipeline.denoise(noisy, frame_index=-1)
    network = FakeNetwork(model, device)
    with pytest.raises(SettingError, match="n_in_flight"):
        Program(model, network, device, n_in_flight=0)
    assert network.closed


def test_closing_with_frames_in_flight(device, model, noisy, monkeypatch):
    pipeline, lent, wait = pipeline_on(device, model), [], device.wait
    pool = pipeline._program._host.results
    pipeline.submit(noisy)
    pipeline.submit(noisy)
    monkeypatch.setattr(device, "wait", lambda stream: (lent.append(pool.n_lent), wait(stream)))
    pipeline.close()
    assert lent == [4, 2], "memory is not given back while the GPU may write to it"
