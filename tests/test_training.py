"""Training on one frame: it learns, repeats, stops when told, and keeps the best."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from n2sr_deploy import Denoiser, Frame, SamplingPattern
from n2sr_deploy.errors import (
    FrameError,
    InputFileError,
    ModelError,
    N2SRError,
    SettingError,
    TrainingError,
)
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.noise import measure_noise
from n2sr_deploy.phantom import clean_phantom, noisy_draw
from n2sr_train import Checkpoint, TrainingConfig, export_model, train
from n2sr_train.arithmetic import counting_flop
from n2sr_train.config import PRESETS, NetworkConfig
from n2sr_train.device_patches import DevicePatches
from n2sr_train.learner import learn_checkpoint, prepared
from n2sr_train.network import PaperUNet, build_network
from n2sr_train.optimisers import Adam, build_optimisers
from n2sr_train.patches import PatchSampler
from n2sr_train.starting import check_start, starting_network
from n2sr_train.step import TrainingStep
from n2sr_train.training import _Training
from n2sr_train.validation import Validation
from n2sr_train.working_copy import WorkingCopy
from tests.conftest import tiny_config


def kmac_per_pixel(network, stride, cells):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network.to("meta")(torch.empty(1, 1, 4 * cells, 4 * cells))
    return counter.get_total_flops() / 2 / (16 * cells**2 * stride[0] * stride[1]) / 1e3


@pytest.mark.parametrize(("preset", "at_most"), [("fast", 4.5), ("balanced", 16), ("best", 64)])
def test_presets_keep_to_their_arithmetic(preset, at_most):
    network = build_network(PRESETS[preset].network, (2, 2), 0)
    assert kmac_per_pixel(network, (2, 2), 16) <= at_most


def test_presets_tell_how_many_draws_files_get():
    draws = {name: preset.n_samples for name, preset in PRESETS.items()}
    assert draws == {"fast": 16, "balanced": 16, "best": 32, "paper": 50}


def test_preset_paper_is_the_papers_network_and_recipe():
    config = PRESETS["paper"]
    network = build_network(config.network, (2, 2), 0)
    assert isinstance(network, PaperUNet)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.74e6, rel=0.03)
    assert kmac_per_pixel(network, (2, 2), 32) == pytest.approx(395, rel=0.01)
    assert (config.steps, config.batch, config.patch) == (6000, 10, 256)
    assert (config.optimiser, config.learning_rate, config.schedule) == ("adam", 1e-4, "constant")
    assert (config.n_samples, config.pattern.stride) == (50, (2, 2))


def test_preset_paper_can_be_run():
    frame = Frame(pixels=np.random.default_rng(0).normal(size=(64, 64)))
    config = replace(PRESETS["paper"], steps=1, batch=1, patch=64, device="cpu")
    checkpoint = train(frame, config)
    assert checkpoint.summary["steps"] == 1


@pytest.mark.parametrize("architecture", ["unet", "paper"])
@pytest.mark.parametrize("stride", [(2, 2), (2, 1), (1, 3), (4, 4), (3, 2)])
def test_a_network_gives_the_full_resolution(architecture, stride):
    network = build_network(NetworkConfig(architecture=architecture, channels=(3, 3, 3)), stride, 0)
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 8, 12)).shape == (2, 1, 8 * stride[0], 12 * stride[1])


def test_pixel_shuffle_of_unequal_strides_places_channels_by_rows():
    from n2sr_train.network import pixel_shuffle

    channels = torch.arange(6.0).reshape(1, 6, 1, 1).expand(1, 6, 2, 2)
    expected = torch.tensor([[0.0, 1, 2], [3, 4, 5]]).repeat(2, 2)
    assert torch.equal(pixel_shuffle(channels, (2, 3))[0, 0], expected)


@pytest.mark.parametrize("architecture", ["unet", "paper"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_no_output_depends_on_input_beyond_the_receptive_radius(architecture, levels):
    network = build_network(
        NetworkConfig(architecture=architecture, channels=(3,) * (levels + 1)), (2, 2), 0
    )
    radius, size = network.receptive_radius, 2 ** (levels + 5)
    furthest = 0
    for offset in range(0, 2**levels, 1):
        at = size // 2 + offset
        x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        network(x)[0, 0, 2 * at, 2 * at].backward()
        rows, columns = np.nonzero(x.grad[0, 0].numpy())
        furthest = max(furthest, *(np.abs(index - at).max() for index in (rows, columns)))
    assert furthest <= radius
    assert radius <= 2.5 * furthest + 4, "tiles would overlap far more than they must"


def test_the_same_seed_repeats_a_run_exactly_and_another_does_not(noisy, checkpoint):
    again = train(noisy, tiny_config())
    other = train(noisy, tiny_config(seed=1))
    assert again.weights_sha256 == checkpoint.weights_sha256
    assert [e["loss"] for e in again.history] == [e["loss"] for e in checkpoint.history]
    assert other.weights_sha256 != checkpoint.weights_sha256


def test_global_randomness_is_neither_used_nor_changed(noisy, checkpoint):
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    before = torch.get_rng_state()
    assert train(noisy, tiny_config()).weights_sha256 == checkpoint.weights_sha256
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("optimiser", ["muon", "adam"])
def test_training_lowers_the_validation_error(noisy, optimiser):
    rate = {"muon": 0.006, "adam": 0.0025}[optimiser]
    config = tiny_config(optimiser=optimiser, learning_rate=rate, steps=60, validation_every=5)
    errors = [entry["validation_error"] for entry in train(noisy, config).history]
    assert errors[-1] < 0.97 * errors[0]


def test_every_parameter_is_trained_by_exactly_one_optimiser():
    for optimiser in ("muon", "adam"):
        network = build_network(NetworkConfig(channels=(3, 3)), (2, 2), 0)
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        optimisers = build_optimisers(network, tiny_config(optimiser=optimiser))
        network(torch.randn(1, 1, 8, 8)).square().mean().backward()
        for each in optimisers:
            each.set_rate(1.0)
            each.step()
        for name, parameter in network.named_parameters():
            assert not torch.equal(before[name], parameter), name


def test_progress_tells_every_step(noisy):
    seen = []
    train(noisy, tiny_config(), seen.append)
    assert [status.step for status in seen] == list(range(1, 13))
    assert seen[-1].remaining_s == 0
    assert all(math.isfinite(status.loss) and status.steps_per_s > 0 for status in seen)
    errors = [status.validation_error for status in seen]
    assert errors[0] is not None
    assert errors[-1] is not None
    assert errors[-1] < errors[0]


def test_a_slow_first_step_does_not_lengthen_the_time_left(noisy, monkeypatch):
    """It compiles: of a minute, a quarter of an hour was told to be left."""
    seen = []
    monkeypatch.setattr(_Training, "_elapsed", lambda self: 100.0 + self.step if self.step else 0.0)
    train(noisy, tiny_config(), seen.append)
    assert [status.remaining_s for status in seen] == [None, *(12.0 - k for k in range(2, 13))]


def test_ctrl_c_keeps_what_was_learned_since_the_last_judgement(noisy, caplog):
    def progress(status):
        if status.step == 40:
            raise KeyboardInterrupt

    config = tiny_config(steps=60, validation_every=1000, learning_rate=0.006)
    with caplog.at_level("INFO", "n2sr"):
        summary = train(noisy, config, progress).summary
    assert (summary["steps"], summary["kept_step"]) == (40, 40)
    assert "ending: what was learned is judged and kept" in caplog.text


def test_ctrl_c_keeps_the_best_so_far(noisy, caplog):
    def stop_after(step):
        def progress(status):
            if status.step == step:
                raise KeyboardInterrupt

        return progress

    for step in (1, 2, 9):
        checkpoint = train(noisy, tiny_config(steps=1000), stop_after(step))
        assert checkpoint.summary["stopped_by"] == "the user"
        assert "too little to learn from the frame" in caplog.text
        assert checkpoint.summary["steps"] == step
        caplog.clear()
        assert checkpoint.summary["kept_step"] <= step


def test_a_network_hardly_better_than_the_mean_is_told(noisy, caplog):
    train(noisy, tiny_config(steps=1))
    assert "hardly better than the frame's mean; train longer" in caplog.text
    caplog.clear()
    train(noisy, tiny_config(steps=60))
    assert caplog.text == ""


def test_seconds_bound_the_time(noisy):
    checkpoint = train(noisy, tiny_config(steps=10**6, seconds=0.5))
    assert checkpoint.summary["stopped_by"] == "seconds"
    assert 1 <= checkpoint.summary["steps"] < 10**6
    assert checkpoint.history[-1]["step"] == checkpoint.summary["steps"]


def test_the_end_is_judged_within_the_seconds(noisy, monkeypatch):
    run = _Training(noisy, tiny_config(seconds=60.0, validation_every=4))
    run.step, run.stepper.flop, run.validation_flop = 4, 2.0, 3.0
    monkeypatch.setattr(run, "_elapsed", lambda: 33.0)  # so a judgement takes 12.4, a look 4.1
    assert not run._time_is_up()
    assert not run._validation_is_due(), "its look would not be in time"
    run.looks = False
    assert run._validation_is_due()
    assert run._rate() > 0
    monkeypatch.setattr(run, "_elapsed", lambda: 40.0)
    assert not run._time_is_up()
    assert not run._validation_is_due(), "the end's would not be in time"
    monkeypatch.setattr(run, "_elapsed", lambda: 44.0)
    assert run._time_is_up()
    assert run._rate() == pytest.approx(0.0)
    run.validation_flop = 1000.0  # half of the time is for learning, whatever judging takes
    monkeypatch.setattr(run, "_elapsed", lambda: 29.0)
    assert not run._time_is_up()


def test_the_host_draws_for_a_look_before_it_waits_for_the_device(noisy, monkeypatch):
    run = _Training(noisy, tiny_config())
    order = []
    loss, draw = TrainingStep.loss.fget, run.missed.draw_next
    monkeypatch.setattr(
        TrainingStep, "loss", property(lambda step: order.append("waits") or loss(step))
    )
    monkeypatch.setattr(run.missed, "draw_next", lambda: order.append("draws") or draw())
    run.run(lambda status: order.append(status.step))
    for step in 4, 8:
        since = order[order.index(step - 1) + 1 : order.index(step)]
        assert since.index("draws") < since.index("waits")
        assert since.count("draws") == 1
    assert order.count("draws") == 2, "there is no look at either end"


def test_the_weights_kept_are_hardly_worse_than_the_lowest_validation_error(noisy):
    checkpoint = train(noisy, tiny_config(steps=40))
    errors = {entry["step"]: entry["validation_error"] for entry in checkpoint.history}
    assert errors[checkpoint.summary["kept_step"]] <= 1.01 * min(errors.values())
    assert checkpoint.summary["kept_step"] > 20


def test_a_diverging_run_is_told_or_keeps_what_was_good(noisy):
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match=r"divergence.*--seed"):
        train(
            noisy,
            tiny_config(
                optimiser="adam",
                learning_rate=10.0,
                steps=3000,
                warmup_steps=0,
                network=NetworkConfig(channels=(8, 8, 8)),
                validation_every=3000,
            ),
        )


def test_arithmetic_is_counted(checkpoint):
    config = checkpoint.config
    network = build_network(config.network, (2, 2), 0)
    patch_flop = 2e3 * kmac_per_pixel(network, (2, 2), 4) * config.patch**2
    forward_and_backward = 3 * config.batch * 12
    validation = 12 * 4 * len(checkpoint.history)
    looks = 4 * 4 * (len(checkpoint.history) - 2)  # for what is missed: not at either end
    expected = patch_flop * (forward_and_backward + validation + looks)
    assert checkpoint.summary["tflop"] * 1e12 == pytest.approx(expected, rel=0.1)


def test_too_few_steps_in_the_seconds_given_are_told(noisy, caplog):
    train(noisy, tiny_config(seconds=0.1, steps=10**6, warmup_steps=10**6))
    assert "too little to learn from the frame" in caplog.text
    assert "give it more --seconds" in caplog.text


def test_the_clock_starts_with_the_first_step(noisy, monkeypatch):
    """A slow start once left no time for a step, and the starting weights were told as learned."""
    run = _Training(noisy, tiny_config(seconds=60.0))
    run.started -= 1000
    run.validating_s = 1000.0
    assert run.run(lambda status: None).summary["steps"] == 12
    assert run.validating_s < 1000


@pytest.mark.parametrize(
    ("seconds", "elapsed_s", "is_due"), [(None, 1.0, True), (60.0, 10.0, False), (60.0, 50.0, True)]
)
def test_judging_takes_little_of_a_bounded_time(noisy, monkeypatch, seconds, elapsed_s, is_due):
    run = _Training(noisy, tiny_config(seconds=seconds, validation_every=4))
    run.step, run.validating_s, run.stepper.flop = 8, 1.0, 1.0
    monkeypatch.setattr(run, "_elapsed", lambda: elapsed_s)
    assert run._validation_is_due() is is_due
    run.step = 9
    assert not run._validation_is_due()


@pytest.mark.parametrize(
    ("error", "noise_std", "is_told"),
    [
        (0.12, 0.134, True),  # 0.02 of the variance is noise
        (0.022, 0.134, False),
        (0.42, 0.63, False),  # 0.4
        (0.6, 0.63, True),
        (0.011, 0.03, True),  # next to none: it would be added
        (0.008, 0.03, False),
    ],
)
def test_a_frame_that_was_not_learned_is_told(checkpoint, error, noise_std, is_told, caplog):
    """Stripes were given out as a result without a word."""
    from n2sr_train.learner import _tell_what_is_not_learned

    frame = Frame(pixels=np.random.default_rng(0).normal(50, 10, (64, 64)).astype("f"))
    noise = replace(measure_noise(frame), std=noise_std * float(frame.pixels.std()))
    kept = {"step": checkpoint.summary["kept_step"], "validation_error": error}
    judged = replace(checkpoint, history=[{**checkpoint.history[-1], **kept}], noise=noise)
    _tell_what_is_not_learned(judged, frame)
    assert ("has not learned this frame" in caplog.text) is is_told


def test_a_training_that_overfits_stops():
    wave = 10 + np.sin(np.arange(48) * np.pi / 16)
    frame = Frame(pixels=np.random.default_rng(0).normal(wave, 1, size=(24, 48)))
    config = tiny_config(
        network=NetworkConfig(channels=(16, 16)),
        learning_rate=0.02,
        batch=4,
        validation_fraction=0.2,
        validation_every=10,
        warmup_steps=2,
        steps=300,
    )
    stopped = train(frame, config).summary
    assert stopped["stopped_by"] == "overfitting"
    assert stopped["steps"] < 300
    assert stopped["kept_step"] < stopped["steps"] - 20
    assert train(frame, replace(config, stops_early=False)).summary["steps"] == 300


class FixedNetwork(torch.nn.Module):
    """Adds the same to every pixel; a network that gets no better when that grows."""

    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(float(value)))


@pytest.fixture
def judged(noisy):
    """Judges networks that say the same everywhere: the frame's mean is 0, the best is 0."""
    validation = Validation(PatchSampler(noisy, tiny_config(), (8, 8)), torch.device("cpu"))
    validation.flat_error *= 10  # as if there were much to learn, and all had learned of it

    def output(network, subsampled):
        n, _, h, w = subsampled.shape
        return network.value.expand(n, 1, 2 * h, 2 * w).clone()

    def judge(step, value):
        validation.judge(step, FixedNetwork(value), output)
        return validation

    return judge


def test_the_latest_weights_are_kept_while_they_are_as_good(judged):
    for step, value in [(0, 2), (100, 1), (200, 0.5), (300, 0.001), (400, 0.0011)]:
        assert judged(step, value).kept.step == step
        assert judged(step, value).n_worse == 0


def test_of_networks_that_learned_nothing_the_lowest_is_kept(judged):
    """Of noise the latest repeats most, by less than chance allows to be told."""
    validation = judged(0, 0.3)
    validation.flat_error = 0.5  # none of them is below it
    unseen = validation._unseen
    best = float((validation._target * unseen).sum() / unseen.sum())
    for step, off in [(100, 0.01), (200, 0.011), (300, 0.012)]:
        assert judged(step, best + off).kept.step == 100


def test_a_network_that_starts_well_may_get_worse_at_first(judged):
    """Started from a finished checkpoint, the first steps of a schedule only do harm."""
    judged(0, 0.1)
    for step in range(100, 600, 100):
        validation = judged(step, 1)
        assert (validation.kept.step, validation.n_worse) == (0, 0)


@pytest.mark.parametrize("is_random", [False, True])
def test_weights_that_were_only_started_from_are_told(
    noisy, checkpoint_path, monkeypatch, caplog, is_random
):
    compare = Validation._compare

    def as_if_all_others_were_worse(self, score):
        if score.kept.step == 0:
            compare(self, score)

    monkeypatch.setattr(Validation, "_compare", as_if_all_others_were_worse)
    config = tiny_config(steps=2, start="random" if is_random else str(checkpoint_path))
    assert train(noisy, config).summary["kept_step"] == 0
    assert ("worse than what it started from" in caplog.text) is not is_random


def test_what_was_learned_wins_ties_with_what_it_started_from(judged):
    """A part of a real frame was given back as the packaged weights have it, and learned on."""
    validation = judged(0, 0.3)
    unseen = validation._unseen
    best = float((validation._target * unseen).sum() / unseen.sum())
    judged(0, best)
    judged(100, best + 0.001)
    for n, step in enumerate((200, 300, 400), 1):
        validation = judged(step, 1)
        assert (validation.kept.step, validation.n_worse) == (100, n)


def test_weights_of_a_risen_error_are_not_kept(judged):
    """Frames that a few hundred steps learn once ended 3 dB below their best."""
    judged(0, 2)
    judged(100, 0.1)
    for n, step in enumerate((200, 300, 400), 1):
        validation = judged(step, 1)
        assert (validation.kept.step, validation.n_worse) == (100, n)
    assert validation.kept.weights["value"] == pytest.approx(0.1)
    assert judged(500, 0.05).n_worse == 0
    assert judged(500, 0.05).kept.step == 500


def test_a_training_that_still_learns_goes_on():
    clean = clean_phantom((160, 160), spacing=16, seed=1)
    frame = Frame(pixels=noisy_draw(clean, gain=0.01, read_noise=0.01))
    summary = train(frame, tiny_config(steps=60, validation_every=5)).summary
    assert (summary["steps"], summary["stopped_by"]) == (60, "steps")


@pytest.mark.parametrize(
    ("shape", "share"), [((832, 896), 0.02), ((448, 448), 14000 / 448**2), ((200, 200), 0.1)]
)
def test_small_frames_give_enough_pixels_to_judge_by(shape, share):
    frame = Frame(pixels=np.random.default_rng(0).normal(size=shape))
    sampler = PatchSampler(frame, tiny_config(), (8, 8))
    assert sampler.is_validation.mean() == pytest.approx(share, rel=0.01)


# ---- patches ------------------------------------------------------------------------------


def batches_of(where, sampler, config):
    """Where batches come from: drawn on the CPU by the kernels, or on a device by PyTorch."""
    if where == "kernels":
        return sampler
    return DevicePatches(sampler, config, torch.Generator("cpu").manual_seed(0))


both_samplers = pytest.mark.parametrize("where", ["kernels", "device"])


@both_samplers
@pytest.mark.parametrize("name", ["cell", "row", "column"])
def test_validation_pixels_are_never_targets(name, where):
    frame = Frame(pixels=np.arange(90 * 70, dtype=np.float64).reshape(90, 70))
    config = tiny_config(pattern=SamplingPattern.named(name), batch=8, validation_fraction=0.1)
    sampler = PatchSampler(frame, config, (8, 8))
    mean, std = frame.mean_and_std()
    values = np.rint(frame.pixels)
    held = set(values[sampler.is_validation])
    share = sampler.is_validation.mean()
    assert 0.05 < share < 0.15
    used, validated = set(), set()
    patches = batches_of(where, sampler, config)
    for _ in range(40):
        batch = patches.next_batch()
        used |= set(np.rint(batch.target[batch.counted == 1].numpy() * std + mean))
    for batch in sampler.validation:
        validated |= set(np.rint(batch.target[batch.unseen == 1] * std + mean))
    assert not used & held
    assert validated <= held
    assert len(used) > 0.8 * (values.size - len(held))


@both_samplers
def test_lines_beside_those_that_judge_are_not_learned_from_where_a_margin_is_kept(where):
    rows = np.repeat(np.arange(120.0)[:, None], 70, axis=1)
    config = tiny_config(
        pattern=SamplingPattern.named("row", 4), margin=1, batch=8, validation_fraction=0.1
    )
    frame = Frame(pixels=rows)
    sampler = PatchSampler(frame, config, (16, 8))
    mean, std = frame.mean_and_std()
    judging = set(np.flatnonzero(sampler.is_validation[:, 0]))
    beside = {row + step for row in judging for step in (-1, 1)} - judging
    patches = batches_of(where, sampler, config)
    used: set[int] = set()
    for _ in range(60):
        batch = patches.next_batch()
        used |= set(np.rint(batch.target[batch.counted > 0].numpy() * std + mean).astype(int))
    validated = {
        int(value)
        for patch in sampler.validation
        for value in np.rint(patch.target[patch.unseen == 1] * std + mean)
    }
    assert judging
    assert not used & (judging | beside)
    assert validated <= judging
    assert len(used) > 0.9 * (120 - len(judging | beside))


@both_samplers
@pytest.mark.parametrize("shape", [(96, 150), (64, 64), (64, 300)])
def test_patches_come_to_the_border(shape, where):
    rows, columns = np.indices(shape)
    frame = Frame(pixels=(rows * shape[1] + columns).astype(np.float64))
    mean, std = frame.mean_and_std()
    least = []
    for overhang in (1 / 3, 0.0):
        config = tiny_config(patch=64, batch=16, overhang=overhang)
        patches = batches_of(where, PatchSampler(frame, config, (8, 8)), config)
        seen = [
            np.rint(patches.next_batch().target.numpy() * std + mean).astype(int) for _ in range(40)
        ]
        visits = np.bincount(np.ravel(seen), minlength=frame.pixels.size).reshape(shape)
        by_rows, by_columns = visits.sum(1), visits.sum(0)
        least.append(min(counts[[0, -1]].min() / counts.max() for counts in (by_rows, by_columns)))
    assert least[0] > 0.12
    assert least[1] == 1 if shape == (64, 64) else least[1] < 0.12


@both_samplers
@pytest.mark.parametrize("name", ["cell", "row", "column"])
def test_what_is_put_in_is_never_a_target(name, where):
    rng = np.random.default_rng(0)
    frame = Frame(pixels=rng.permutation(96 * 96).reshape(96, 96).astype(np.float64))
    pattern = SamplingPattern.named(name)
    config = tiny_config(pattern=pattern)
    patches = batches_of(where, PatchSampler(frame, config, (8, 8)), config)
    for _ in range(20):
        for x, y, counted in zip(*patches.next_batch(), strict=True):
            seen = set(x.flatten().tolist())
            assert not seen & set(y[counted == 1].tolist())
            assert seen < set(y.flatten().tolist())


@pytest.mark.parametrize("pattern", [("cell", (2, 2)), ("cell", (4, 3)), ("row", 3), ("column", 2)])
@both_samplers
def test_one_pixel_of_every_cell_goes_in_from_its_place(pattern, where):
    rng = np.random.default_rng(0)
    frame = Frame(pixels=rng.permutation(96 * 96).reshape(96, 96).astype(np.float64))
    config = tiny_config(pattern=SamplingPattern.named(*pattern))
    sy, sx = config.pattern.stride
    patches = batches_of(where, PatchSampler(frame, config, (4 * sy, 4 * sx)), config)
    chosen = set()
    for _ in range(10):
        batch = patches.next_batch()
        n, _, h, w = batch.subsampled.shape
        cells = batch.target.reshape(n, h, sy, w, sx).transpose(2, 3).flatten(3)
        is_kept = cells == batch.subsampled[:, 0, :, :, None]
        assert (is_kept.sum(3) == 1).all()
        place = is_kept.int().argmax(3)
        if config.pattern.name != "cell":
            along = 2 if config.pattern.name == "row" else 1
            assert (place == place.narrow(along, 0, 1)).all()
        chosen |= set(place.flatten().tolist())
    assert chosen == set(range(sy * sx))


@both_samplers
@pytest.mark.parametrize("name", ["row", "column"])
def test_patches_of_shared_patterns_keep_rows_rows(name, where):
    rows, columns = np.mgrid[:96, :96].astype(np.float64)
    coordinate = rows if name == "row" else columns
    config = tiny_config(pattern=SamplingPattern.named(name))
    sampler = PatchSampler(Frame(pixels=coordinate), config, (8, 8))
    patches = batches_of(where, sampler, config)
    along = 1 if name == "row" else 0
    for _ in range(20):
        for patch in patches.next_batch().target[:, 0]:
            assert (np.diff(patch, axis=along) == 0).all()


@both_samplers
def test_square_patches_are_laid_in_all_eight_ways(where):
    frame = Frame(pixels=np.random.default_rng(0).normal(size=(64, 64)))
    config = tiny_config(batch=100)
    sampler = PatchSampler(frame, config, (8, 8))
    target = batches_of(where, sampler, config).next_batch().target
    plain = sampler.frame
    ways = {np.rot90(p, k).tobytes() for p in (plain, plain.T) for k in range(4)}
    assert {patch.numpy().tobytes() for patch in target} == ways


def test_frames_smaller_than_a_patch_give_smaller_patches():
    frame = Frame(pixels=np.random.default_rng(0).normal(size=(43, 200)))
    sampler = PatchSampler(frame, tiny_config(), (8, 8))
    assert sampler.shape == (40, 64)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.eye(7, 50), "7 x 50 pixels, but this network needs at least 8 x 8"),
        (np.ones((50, 50)), "constant"),
    ],
)
def test_frames_that_cannot_be_trained_on(pixels, message):
    with pytest.raises(FrameError, match=message):
        train(Frame(pixels=pixels), tiny_config())


# ---- settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "balancd"}, "did you mean 'balanced'"),
        ({"pattern": "rows"}, "did you mean 'row'"),
        ({"stride": (5, 5)}, "1 to 4"),
        ({"stride": (1, 1)}, "holds out no pixel"),
        ({"steps": 0}, "steps is 0, but must be a whole number, 1 or more"),
        ({"seconds": -1.0}, "seconds is -1, but must be 0.1 or more"),
        ({"seconds": math.nan}, "seconds is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "a whole number, 0 to 9223372036854775807"),
        ({"steps": 1.5}, "steps is 1.5, but must be a whole number"),
        ({"steps": "20"}, "steps is '20', but must be a number"),
        ({"pattern": "row", "stride": (2, 4)}, "give one number"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(SettingError, match=message):
        TrainingConfig.from_options(LearnOptions(**options))


@pytest.mark.parametrize("device", ["gpu", "cuda:cpu", "mps", "cuda:99"])
def test_devices_that_are_not_there_are_refused(noisy, device):
    with pytest.raises(SettingError, match=device):
        train(noisy, tiny_config(device=device))


def test_options_that_are_a_dict_are_told():
    """It was an AttributeError."""
    with pytest.raises(SettingError, match="must be LearnOptions"):
        learn_checkpoint(np.eye(64), {"preset": "fast"})


def test_options_override_the_preset():
    options = LearnOptions(preset="paper", pattern="row", stride=(3, 3), steps=5, seed=7)
    config = TrainingConfig.from_options(options)
    assert config.pattern == SamplingPattern.named("row", 3)
    assert (config.steps, config.seed, config.n_samples) == (5, 7, 50)


def test_numbers_of_numpy_are_kept_as_pythons(noisy, tmp_path):
    """They overflowed, or could not be written."""
    config = tiny_config(steps=np.int64(2), seed=np.int32(3))
    train(noisy, config).save(tmp_path / "a.safetensors")
    back = Checkpoint.open(tmp_path / "a.safetensors")
    assert back.config == config == tiny_config(steps=2, seed=3)


# ---- checkpoints --------------------------------------------------------------------------


def test_a_checkpoint_comes_back_whole(checkpoint, checkpoint_path):
    back = Checkpoint.open(checkpoint_path)
    assert back.weights_sha256 == checkpoint.weights_sha256
    assert back.config == checkpoint.config
    assert back.history == checkpoint.history
    assert back.summary == checkpoint.summary
    assert (back.pixel_size, back.unit) == ((0.02, 0.03), "nm")
    assert "preset balanced" in back.describe()


def rewrite_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_a_lowest_error_is_told_where_it_reads_otherwise(checkpoint):
    """It said "validation error 0.8861 (the lowest measured: 0.8861)"."""

    def told(error, lowest):
        steps = {"step": 8, "validation_error": lowest}, {"step": 12, "validation_error": error}
        return replace(checkpoint, history=list(steps)).describe()

    assert "lowest" not in told(0.88614, 0.88607)
    assert "(the lowest measured: 0.8860)" in told(0.88614, 0.88604)


def test_checkpoints_that_cannot_be_used(tmp_path, checkpoint_path, model_path):
    path = tmp_path / "c.safetensors"

    def refused(message):
        with pytest.raises(ModelError, match=message):
            Checkpoint.open(path)

    path.write_bytes(checkpoint_path.read_bytes()[:-100])
    refused("is not a checkpoint")
    path.write_bytes(b"")
    refused("is not a checkpoint")
    path.write_bytes(checkpoint_path.read_bytes())
    rewrite_header(path, lambda header: header.pop("__metadata__"))
    refused("without n2sr's header")
    path.write_bytes(checkpoint_path.read_bytes())

    def change_inside(change):
        def apply(header):
            inside = json.loads(header["__metadata__"]["n2sr"])
            change(inside)
            header["__metadata__"]["n2sr"] = json.dumps(inside)

        path.write_bytes(checkpoint_path.read_bytes())
        rewrite_header(path, apply)

    change_inside(lambda h: h.update(format_version=99))
    refused("checkpoint format 99")
    change_inside(lambda h: h["config"].update(colour="red"))
    refused("damaged header.*colour")
    change_inside(lambda h: h.pop("summary"))
    refused("damaged header")
    with pytest.raises(ModelError, match="looks like an exported model"):
        Checkpoint.open(model_path)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bfloat16"), ({"avx2": True, "avx512_bf16": False}, "float32")],
)
def test_bfloat16_is_used_only_where_the_machine_has_it(
    noisy, monkeypatch, capabilities, precision
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    seen = set()
    monkeypatch.setattr(
        "n2sr_train.network.functional.max_pool2d",
        lambda x, size: seen.add(x.dtype) or torch.nn.functional.avg_pool2d(x, size),
    )
    assert train(noisy, tiny_config(steps=1)).summary["precision"] == precision
    assert seen == {getattr(torch, precision)}


def test_cudnn_stays_on(noisy):
    enabled: list[bool] = []
    train(noisy, tiny_config(steps=1), lambda _: enabled.append(torch.backends.cudnn.enabled))
    assert enabled == [True]


def test_a_patch_must_hold_one_multiple(noisy):
    with pytest.raises(SettingError, match="patch is 16, but this network needs at least 64"):
        train(noisy, tiny_config(patch=16, network=NetworkConfig(channels=(2,) * 6)))


def test_ctrl_c_before_the_first_step_stops(noisy, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(PatchSampler, "next_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(noisy, tiny_config())


@pytest.mark.gpu
def test_a_seed_repeats_a_run_on_a_gpu(noisy):
    a, b = (train(noisy, tiny_config(device="cuda")) for _ in range(2))
    assert a.weights_sha256 == b.weights_sha256


@pytest.mark.gpu
def test_training_on_a_gpu(noisy):
    checkpoint = train(noisy, tiny_config(device="cuda", steps=40))
    assert checkpoint.history[-1]["validation_error"] < checkpoint.history[0]["validation_error"]
    assert all(tensor.device.type == "cpu" for tensor in checkpoint.weights.values())


@pytest.mark.parametrize("shape", [(3, 8, 40), (2, 40, 8)])
def test_muon_all_at_once_is_torchs_muon_one_by_one(shape):
    from n2sr_train.optimisers import _orthogonal

    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parameters = [torch.nn.Parameter(torch.zeros(shape[1:])) for _ in range(shape[0])]
    torchs = torch.optim.Muon(parameters, lr=1.0, weight_decay=0.0, momentum=0.0)
    for parameter, matrix in zip(parameters, matrices, strict=True):
        parameter.grad = matrix
    torchs.step()
    scale = max(1.0, shape[1] / shape[2]) ** 0.5
    for parameter, ours in zip(parameters, _orthogonal(matrices), strict=True):
        assert torch.allclose(-parameter.detach() / scale, ours, atol=0.03)  # torch's in bfloat16


def test_flop_of_a_gpus_working_copy_are_what_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    working = WorkingCopy(build_network(PRESETS["fast"].network, (2, 2), 0), torch.float32)
    with FlopCounterMode(display=False) as counter, counting_flop(working.network) as counted:
        working(torch.zeros(2, 1, 32, 64)).sum().backward()
    assert counted.total == counter.get_total_flops()


def test_adam_moves_as_pytorchs_class_does():
    random = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in (3, 5)] for _ in range(2))
    adam, torchs = Adam(ours, 0.02, beta2=0.99), torch.optim.Adam(theirs, 0.01, betas=(0.9, 0.99))
    adam.set_rate(0.5)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=random)
        adam.step()
        torchs.step()
    assert all(torch.allclose(*pair, rtol=1e-6) for pair in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], torch.ones(3))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("learns", [True, False])
def test_flop_are_what_pytorch_counts(preset, learns):
    from torch.utils.flop_counter import FlopCounterMode

    network = build_network(PRESETS[preset].network, (2, 1), 0)
    with (
        FlopCounterMode(display=False) as counter,
        counting_flop(network) as counted,
        torch.set_grad_enabled(learns),
    ):
        output = network(torch.zeros(2, 1, 32, 64))
        if learns:
            output.sum().backward()
    network(torch.zeros(1, 1, 32, 32))  # what follows is not counted
    assert counted.total == counter.get_total_flops()


@pytest.mark.parametrize("channels", [(16, 24, 48), (32, 48, 64, 32), (16, 16), (32, 8)])
def test_muon_moves_each_weight_as_if_it_were_alone(channels):
    """With momentum, and scaled by the matrix's own shape, whatever it is filled up to."""
    from n2sr_train.optimisers import _MOMENTUM, Muon, _as_matrix, _as_weight, _orthogonal

    network = build_network(NetworkConfig(channels=channels), (2, 2), seed=0)
    weights = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1]
    alone = [_as_matrix(weight.detach()).clone() for weight in weights]
    momenta = [torch.zeros_like(matrix) for matrix in alone]
    muon = Muon(weights, 0.02)
    muon.set_rate(0.5)
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        for weight, matrix, momentum in zip(weights, alone, momenta, strict=True):
            weight.grad = torch.randn(weight.shape, generator=random)
            gradient = _as_matrix(weight.grad)
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = _orthogonal(gradient.lerp(momentum, _MOMENTUM)[None])[0]
            rows, columns = matrix.shape
            matrix -= 0.01 * max(1.0, rows / columns) ** 0.5 * update
        muon.step()
    for weight, matrix in zip(weights, alone, strict=True):
        assert torch.allclose(weight.detach(), _as_weight(matrix, weight), rtol=1e-4, atol=1e-5)


def test_a_network_of_one_channel_learns(noisy):
    """It has no matrix that Muon could take."""
    config = tiny_config(network=NetworkConfig(channels=(1, 1)))
    assert train(noisy, config).summary["steps"] == config.steps


@pytest.mark.parametrize("pattern", ["cell", "row", "column"])
@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_packaged_weights_denoise_before_any_training(preset, pattern):
    """On a phantom of another make than they were trained on."""
    clean = clean_phantom((256, 256), spacing=16)
    noisy = noisy_draw(clean, gain=0.05, read_noise=0.02)
    if pattern == "column":
        clean, noisy = clean.T, np.ascontiguousarray(noisy.T)
    config = replace(
        PRESETS[preset],
        pattern=SamplingPattern.named(pattern),
        steps=1,
        learning_rate=1e-6,
        adam_learning_rate=1e-6,
        device="cpu",
    )
    model = export_model(train(Frame(pixels=noisy), config))
    with Denoiser(model) as denoiser:
        denoised = denoiser.denoise(noisy).mean
    assert np.mean((denoised - clean) ** 2) < 0.1 * np.mean((noisy - clean) ** 2)


@pytest.mark.parametrize("stride", [(1, 2), (2, 1), (3, 3), (2, 3)])
def test_cells_for_which_no_weights_are_packaged_start_at_random(stride):
    """Of cells of 1 x 2 PyTorch's complaint was told."""
    config = replace(PRESETS["fast"], pattern=SamplingPattern.named("cell", stride), steps=1)
    first, second = (
        starting_network(replace(config, start=start)).state_dict()
        for start in ("packaged", "random")
    )
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_packaged_weights_are_small():
    from n2sr_train import starting

    files = sorted(starting._FOLDER.glob("*.safetensors"))
    assert files
    assert all(path.stat().st_size < 1e6 for path in files)


def test_training_goes_on_from_a_checkpoint(noisy, checkpoint, tmp_path):
    checkpoint.save(tmp_path / "first.safetensors")
    config = tiny_config(start=str(tmp_path / "first.safetensors"), steps=1)
    again = train(noisy, config)
    lowest = min(entry["validation_error"] for entry in checkpoint.history)
    assert again.history[0]["validation_error"] == pytest.approx(lowest, rel=0.05)
    assert again.history[0]["step"] == 0


def test_a_checkpoint_of_another_network_is_refused_with_the_fix(noisy, checkpoint, tmp_path):
    checkpoint.save(tmp_path / "first.safetensors")
    with pytest.raises(ModelError, match=r"--preset balanced --pattern cell --stride 2"):
        train(
            noisy,
            tiny_config(
                start=str(tmp_path / "first.safetensors"), pattern=SamplingPattern.named("row")
            ),
        )
    with pytest.raises(InputFileError):
        train(noisy, tiny_config(start=str(tmp_path / "none.safetensors")))


@pytest.mark.parametrize(
    ("preset", "precision", "prefix"),
    [("fast", "fp32", ""), ("fast", "fp16", ""), ("best", "fp32", "members.0.")],
)
def test_training_starts_from_an_exported_model(noisy, tmp_path, preset, precision, prefix):
    made = train(noisy, replace(TrainingConfig.named(preset), steps=1, device="cpu"))
    path = tmp_path / "model.onnx"
    export_model(made, precision).save(path)
    other = replace(TrainingConfig.named(preset), start=str(path), seed=7)
    check_start(other)
    for name, weights in starting_network(other).state_dict().items():
        assert torch.allclose(weights, made.weights[prefix + name], rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match=f"give it --preset {preset}"):
        check_start(replace(TrainingConfig.named("paper"), start=str(path)))
    with pytest.raises(ModelError, match="--pattern cell --stride 2"):
        starting_network(replace(other, pattern=SamplingPattern.named("row")))


def test_training_starts_from_a_best_of_which_one_network_was_trained(noisy, tmp_path):
    best = TrainingConfig.named("best")
    made = train(noisy, replace(best, network=best.network.single, steps=1, device="cpu"))
    path = tmp_path / "model.onnx"
    export_model(made).save(path)
    start = starting_network(replace(best, start=str(path))).state_dict()
    assert all(torch.allclose(start[name], made.weights[name]) for name in made.weights)


def test_an_exported_model_of_another_network_than_its_presets_is_no_start(
    noisy, checkpoint, tmp_path
):
    path = tmp_path / "model.onnx"  # "balanced", with few channels
    export_model(checkpoint).save(path)
    with pytest.raises(ModelError, match="give --init its checkpoint instead"):
        check_start(TrainingConfig(start=str(path)))


def test_an_exported_model_of_no_preset_is_no_start(noisy, checkpoint, tmp_path):
    path = tmp_path / "model.onnx"
    export_model(replace(checkpoint, config=replace(checkpoint.config, preset="mine"))).save(path)
    with pytest.raises(ModelError, match="give --init its checkpoint instead"):
        check_start(tiny_config(start=str(path)))


@both_samplers
@pytest.mark.parametrize("margin", [1, 2])
def test_pixels_within_the_margin_of_a_kept_one_are_not_learned_from(margin, where):
    rng = np.random.default_rng(0)
    frame = Frame(pixels=rng.permutation(96 * 128).reshape(96, 128).astype(np.float64))
    config = tiny_config(pattern=SamplingPattern.named("cell", 4), margin=margin)
    batch = batches_of(where, PatchSampler(frame, config, (16, 16)), config).next_batch()
    for counted, target, subsampled in zip(
        batch.counted[:, 0], batch.target[:, 0], batch.subsampled[:, 0], strict=True
    ):
        kept = torch.isin(target, subsampled)
        for y, x in torch.argwhere(counted > 0):
            near = kept[max(y - margin, 0) : y + margin + 1, max(x - margin, 0) : x + margin + 1]
            assert not near.any()
        assert counted.any()


def test_weights_from_before_the_error_rose_are_kept(noisy):
    """A training that is spoiled in its middle keeps what it had."""

    class Spoiled(_Training):
        def _take_step(self):
            super()._take_step()
            if self.step > 8:
                with torch.no_grad():
                    for weight in self.stepper.averaged.parameters():
                        weight.add_(torch.ones_like(weight))

    config = tiny_config(steps=16, validation_every=4)
    kept = Spoiled(noisy, config).run(lambda status: None).summary["kept_step"]
    assert 0 < kept <= 8


@pytest.mark.parametrize(("pattern", "margin"), [("cell", 1), ("row", 1), ("row", 2)])
def test_a_margin_that_leaves_nothing_to_learn_is_refused(pattern, margin):
    stride = margin + 1
    with pytest.raises(SettingError, match=f"stride of at least {margin + 2}"):
        tiny_config(pattern=SamplingPattern.named(pattern, stride), margin=margin)
    tiny_config(pattern=SamplingPattern.named(pattern, margin + 2), margin=margin)


@pytest.mark.parametrize("spoil", ["missing", "nan"])
def test_a_damaged_checkpoint_to_start_from_is_refused(noisy, checkpoint, tmp_path, spoil):
    weights = dict(checkpoint.weights)
    name = next(iter(weights))
    if spoil == "missing":
        del weights[name]
    else:
        weights[name] = torch.full_like(weights[name], math.nan)
    path = tmp_path / "damaged.safetensors"
    replace(checkpoint, weights=weights).save(path)
    with pytest.raises(ModelError, match=r"damaged\.safetensors .*train it again"):
        train(noisy, tiny_config(start=str(path)))


def test_a_stride_alone_keeps_the_pattern_that_was_measured():
    rng = np.random.default_rng(0)
    along_rows = rng.normal(size=(128, 129))
    frame = Frame(pixels=10 + along_rows[:, 1:] + along_rows[:, :-1])
    noise = measure_noise(frame)
    config = TrainingConfig.from_options(LearnOptions(stride=(3, 3)), noise)
    assert config.pattern == SamplingPattern.named("row", 3)


def test_errors_of_lines_are_judged_line_by_line():
    """Noise that is the same along a line counts once, not once a pixel."""
    rng = np.random.default_rng(0)
    frame = Frame(pixels=np.repeat(rng.normal(size=(256, 1)), 64, axis=1) + np.eye(256, 64))
    config = tiny_config(pattern=SamplingPattern.named("row"))
    validation = Validation(PatchSampler(frame, config, (8, 8)), torch.device("cpu"))
    network = build_network(config.network, config.pattern.stride, 0)
    validation.judge(1, network, lambda network, x: network(x))
    assert validation._lowest.n_different <= 26, "a tenth of the lines"


@pytest.mark.parametrize("along_rows", [0.0, 0.5])
def test_pure_noise_leaves_a_flat_field(along_rows):
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(160, 161))
    mixed = pixels[:, 1:] * np.sqrt(1 - along_rows**2) + along_rows * pixels[:, :-1]
    frame = Frame(pixels=10 + mixed)
    config = tiny_config(
        pattern=SamplingPattern.named("row" if along_rows else "cell"),
        steps=60,
        learning_rate=0.006,
    )
    with Denoiser(export_model(train(frame, config))) as denoiser:
        image = denoiser.denoise(frame).mean
    assert image.std() < 0.1 * frame.pixels.std()
    spectrum = np.abs(np.fft.fft2(image - image.mean())) * 2 / image.size
    assert spectrum.max() < 0.05, "a lattice made of noise"


# ---- the step -----------------------------------------------------------------------------


class Watched(TorchDispatchMode):
    """Keeps every operation that PyTorch runs: the function, what went in, what came out."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    @property
    def names(self):
        return {str(function).rsplit(".", 1)[0] for function, *_ in self.operations}


class RecordedGraph:
    """Replays operations on the memory they had, as a CUDA graph does: no Python runs again.

    Unlike a device it also runs them while it records, so the replay after that does nothing.
    """

    def __init__(self):
        self.calls = []

    def warm_up(self, function):
        self.calls.append("warm up")
        function()

    def capture(self, function):
        self.calls.append("capture")
        with Watched() as watched:
            function()
        self._operations, self._has_run = watched.operations, True

    @torch.no_grad()
    def replay(self):
        self.calls.append("replay")
        if self._has_run:
            self._has_run = False
            return
        for function, args, kwargs, recorded in self._operations:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


def step_of(config, frame, graph=None, kind=TrainingStep):
    """A step that the test takes, on small patches."""
    sy, sx = config.pattern.stride
    sampler = PatchSampler(frame, config, (4 * sy, 4 * sx))
    network = build_network(config.network, config.pattern.stride, 0)
    patches = DevicePatches(sampler, config, torch.Generator().manual_seed(0))
    return kind(network, config, patches, low_precision=False, graph=graph)


def weights_after(step, n_steps=7):
    for n in range(n_steps):
        step.take(1 - n / n_steps)
    return torch.cat([p.detach().flatten() for p in step.averaged.parameters()])


def test_a_recorded_step_is_the_same_step(noisy):
    graph = RecordedGraph()
    plain, recorded = step_of(tiny_config(), noisy), step_of(tiny_config(), noisy, graph)
    assert torch.equal(weights_after(recorded), weights_after(plain))
    assert recorded.loss == plain.loss
    assert graph.calls == ["warm up"] * 3 + ["capture"] + ["replay"] * 4


def test_a_number_of_the_host_in_a_recorded_step_would_be_found(noisy):
    class Frozen(TrainingStep):
        def _average(self):
            for average, weight in zip(
                self.averaged.parameters(), self.network.parameters(), strict=True
            ):
                average.lerp_(weight.detach(), 1 / (1 + self.n_taken))

    plain, recorded = (step_of(tiny_config(), noisy, g, Frozen) for g in (None, RecordedGraph()))
    assert not torch.equal(weights_after(recorded), weights_after(plain))


@pytest.mark.parametrize("pattern", ["cell", "row"])
def test_nothing_in_a_step_is_read_back_by_the_host(noisy, pattern):
    """Reading one value back would keep the step out of a CUDA graph."""
    reads = {"aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.item"}
    step = step_of(tiny_config(pattern=SamplingPattern.named(pattern, 4), margin=1), noisy)
    step.take(1.0)
    with Watched() as watched:
        step.take(1.0)
    assert "aten.convolution" in watched.names
    assert not watched.names & reads
    with Watched() as watched:
        assert step.loss > 0, "no pixel counted"
    assert watched.names & reads, "this test would miss what it looks for"


def test_an_average_over_the_weights_forgets_the_first(noisy):
    step = step_of(tiny_config(ema_decay=0.9), noisy)
    first = torch.cat([p.detach().flatten() for p in step.averaged.parameters()])
    averaged = weights_after(step, n_steps=1)
    now = torch.cat([p.detach().flatten() for p in step.network.parameters()])
    assert torch.allclose(averaged, now)
    assert not torch.allclose(averaged, first)


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["fast", "balanced", "paper"])
def test_a_gpu_takes_steps_without_waiting(noisy, preset):
    config = replace(TrainingConfig.named(preset), steps=30, device="cuda")
    run = _Training(noisy, config)
    for _ in range(6):
        run._take_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run._take_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(run.stepper.loss)


@pytest.mark.gpu
@pytest.mark.parametrize("optimiser", ["muon", "adam"])
def test_a_graph_on_a_gpu_takes_the_same_steps(noisy, optimiser):
    config = tiny_config(optimiser=optimiser, device="cuda")
    runs = [_Training(noisy, config) for _ in range(2)]
    runs[0].stepper._graph = None
    weights = []
    for run in runs:
        for _ in range(8):
            run._take_step()
        weights.append(torch.cat([p.flatten() for p in run.stepper.averaged.parameters()]))
    assert torch.allclose(*weights, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_gpu_learns_what_a_cpu_learns(noisy):
    """The random numbers differ, so the errors agree, not the weights."""
    runs = {
        device: train(noisy, tiny_config(steps=60, device=device)).history[-1]["validation_error"]
        for device in ("cpu", "cuda")
    }
    assert runs["cuda"] == pytest.approx(runs["cpu"], rel=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"init": "tiny"}, "give it --preset balanced, or leave out --init"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
    ],
)
def test_what_cannot_be_is_refused_before_the_noise_is_measured(
    noisy, checkpoint_path, monkeypatch, options, said
):
    def measured(*_, **__):
        raise AssertionError("the noise was measured")

    monkeypatch.setattr("n2sr_train.learner.measure_noise", measured)
    if options.get("init") == "tiny":
        options = {"init": str(checkpoint_path), "preset": "fast"}
    with pytest.raises(N2SRError, match=said):
        prepared(noisy, LearnOptions(**options))


def test_a_working_copy_gives_the_networks_own_gradients():
    """In float32, where nothing is rounded; and it follows the weights."""
    network = build_network(NetworkConfig(channels=(6, 5, 4)), (2, 2), seed=0)
    network = network.to(memory_format=torch.channels_last)
    working = WorkingCopy(network, torch.float32)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        subsampled = torch.randn((2, 1, 16, 24), generator=generator)
        target = torch.randn((2, 1, 32, 48), generator=generator)
        (working(subsampled) - target).square().mean().backward()
        working.give_gradients()
        found = [parameter.grad.clone() for parameter in network.parameters()]
        for parameter in network.parameters():
            parameter.grad = None
        (network(subsampled) - target).square().mean().backward()
        for ours, parameter in zip(found, network.parameters(), strict=True):
            assert torch.allclose(ours, parameter.grad, rtol=1e-4, atol=1e-6)
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            parameter.grad = torch.zeros_like(parameter)
        working.follow()
