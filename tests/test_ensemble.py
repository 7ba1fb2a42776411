"""Several networks, trained one after another, whose outputs are averaged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from n2sr_deploy import Denoiser
from n2sr_deploy.errors import TrainingError
from n2sr_deploy.learning import LearnOptions
from n2sr_train import Checkpoint, export_model, train, training
from n2sr_train.config import NetworkConfig, TrainingConfig
from n2sr_train.network import build_network
from tests.conftest import tiny_config

CHANNELS = (4, 4, 4)


def config(members=2, **changes):
    network = NetworkConfig(channels=CHANNELS, members=members)
    return tiny_config(network=network, **changes)


@pytest.fixture(scope="module")
def ensemble(noisy):
    return train(noisy, config())


def member(checkpoint, k):
    """One of its networks."""
    network = build_network(NetworkConfig(channels=CHANNELS), (2, 2), 0)
    start = f"members.{k}."
    network.load_state_dict(
        {n.removeprefix(start): w for n, w in checkpoint.weights.items() if n.startswith(start)}
    )
    return network


def test_members_differ_and_their_outputs_are_averaged(ensemble):
    whole = build_network(ensemble.config.network, (2, 2), 0)
    whole.load_state_dict(ensemble.weights)
    x = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        first, second = (member(ensemble, k)(x) for k in (0, 1))
        assert not torch.allclose(first, second)
        assert torch.allclose(whole(x), (first + second) / 2, atol=1e-6)


def test_the_first_member_is_what_a_training_of_one_gives(ensemble, noisy):
    alone = train(noisy, config(members=1))
    for name, weights in alone.weights.items():
        assert torch.equal(ensemble.weights[f"members.0.{name}"], weights)


def test_the_least_time_is_enough_for_all_members(noisy):
    """Half of 0.15 s was refused, after the noise had been measured, as --seconds 0.075."""
    checkpoint = train(noisy, config(seconds=0.15))
    assert checkpoint.config.network.members == 2


def test_what_is_told_and_kept_counts_all_members(noisy):
    told = []
    checkpoint = train(noisy, config(steps=6, validation_every=3), told.append)
    assert [status.step for status in told] == list(range(1, 13))
    assert {status.n_steps for status in told} == {12}
    assert all(a.elapsed_s <= b.elapsed_s for a, b in itertools.pairwise(told))
    assert told[-1].remaining_s == 0
    assert [status.step for status in told if status.remaining_s is None] == [1]
    assert [entry["step"] for entry in checkpoint.history] == [0, 3, 6, 6, 9, 12]
    assert [e["tflop"] for e in checkpoint.history] == sorted(
        e["tflop"] for e in checkpoint.history
    )
    assert checkpoint.summary["steps"] == 12
    assert checkpoint.summary["tflop"] == checkpoint.history[-1]["tflop"]
    assert "2 networks" in checkpoint.describe()
    assert "nan" not in checkpoint.describe()


def test_it_is_kept_exported_and_denoises(ensemble, noisy, tmp_path):
    ensemble.save(tmp_path / "two.safetensors")
    again = Checkpoint.open(tmp_path / "two.safetensors")
    assert again.config.network.members == 2
    model = export_model(again)
    single = export_model(train(noisy, config(members=1, steps=1)))
    assert model.metadata.mac_per_pixel == pytest.approx(2 * single.metadata.mac_per_pixel)
    with Denoiser(model) as denoiser:
        assert np.isfinite(denoiser.denoise(noisy).mean).all()


@pytest.mark.parametrize("members", [1, 2])
def test_another_training_starts_from_its_first_member(ensemble, noisy, tmp_path, members):
    path = tmp_path / "two.safetensors"
    ensemble.save(path)
    rate = {"learning_rate": 1e-8, "adam_learning_rate": 1e-8}
    found = train(noisy, config(members=members, start=str(path), steps=1, **rate))
    start = "members.1." if members == 2 else ""
    for name, weights in member(ensemble, 0).state_dict().items():
        assert torch.allclose(found.weights[start + name], weights, atol=1e-4)


def test_ctrl_c_keeps_the_members_there_are(noisy):
    def interrupt_at(step):
        def progress(status):
            if status.step == step:
                raise KeyboardInterrupt

        return progress

    first = train(noisy, config(), interrupt_at(5))
    assert first.config.network.members == 1
    assert first.summary["stopped_by"] == "the user"
    both = train(noisy, config(), interrupt_at(15))
    assert both.config.network.members == 2
    assert both.summary["steps"] == 15
    for checkpoint in (first, both):
        export_model(checkpoint)


def test_ctrl_c_before_the_second_member_has_learned_keeps_the_first(noisy, monkeypatch):
    plain = training._Training.run
    ran = []

    def run(self, progress):
        ran.append(self)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return plain(self, progress)

    monkeypatch.setattr(training._Training, "run", run)
    checkpoint = train(noisy, config())
    assert checkpoint.config.network.members == 1


def test_a_member_that_fails_leaves_the_others(noisy, monkeypatch, caplog):
    plain = training._Training.run
    ran = []

    def run(self, progress):
        ran.append(self)
        if len(ran) == 2:
            raise TrainingError("training was stopped by divergence")
        return plain(self, progress)

    monkeypatch.setattr(training._Training, "run", run)
    checkpoint = train(noisy, config(members=3))
    assert checkpoint.config.network.members == 1
    assert "only 1 of 3 networks were trained" in caplog.text


def test_seconds_are_shared(noisy):
    checkpoint = train(noisy, config(members=2, steps=10**6, seconds=1.0))
    assert checkpoint.config.network.members == 2
    assert checkpoint.summary["seconds"] < 3
    assert checkpoint.config.seconds == 1.0


def test_preset_best_has_two():
    options = LearnOptions(preset="best")
    assert TrainingConfig.from_options(options).network.members == 2
