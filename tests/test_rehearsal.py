"""A GPU is made ready beside the measuring of the noise, and a training does not notice."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch

from n2sr_deploy.errors import SettingError, TrainingError
from n2sr_train import rehearsal, train
from n2sr_train.rehearsal import rehearsing
from n2sr_train.training import rehearse
from tests.conftest import tiny_config


def weights_of(checkpoint):
    return np.concatenate([w.flatten() for w in checkpoint.weights.values()])


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(rehearsal, "chosen_device", lambda name: torch.device("cuda", 0))


def check_that_a_training_does_not_notice(noisy, caplog, device):
    config = tiny_config(device=device, missed_weight=2.0)
    expected = weights_of(train(noisy, config))
    state = torch.get_rng_state()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "n2sr"):
        rehearse(config, noisy.shape)
    assert not caplog.records
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.backends.cudnn.deterministic
    assert np.array_equal(weights_of(train(noisy, config)), expected)


def test_a_training_does_not_notice(noisy, caplog):
    check_that_a_training_does_not_notice(noisy, caplog, "cpu")


@pytest.mark.gpu
def test_a_training_on_a_gpu_does_not_notice(noisy, caplog):
    check_that_a_training_does_not_notice(noisy, caplog, "cuda")


def test_a_cpu_needs_no_rehearsal(noisy, monkeypatch):
    monkeypatch.setattr(rehearsal, "rehearse", None)
    before = threading.active_count()
    with rehearsing(tiny_config(), noisy.shape):
        assert threading.active_count() == before


def test_it_runs_beside_the_body_and_ends_with_it(on_a_gpu, monkeypatch):
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def slowly(config, shape):
        began.set()
        assert may_end.wait(60)
        ended.set()

    monkeypatch.setattr(rehearsal, "rehearse", slowly)
    with rehearsing(tiny_config(), (64, 64)):
        assert began.wait(60)
        assert not ended.is_set()
        may_end.set()
    assert ended.is_set()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), TrainingError("no memory")])
def test_what_fails_is_left_to_the_training(on_a_gpu, monkeypatch, caplog, error):
    def fails(config, shape):
        raise error

    monkeypatch.setattr(rehearsal, "rehearse", fails)
    with caplog.at_level(logging.DEBUG, "n2sr"), rehearsing(tiny_config(), (64, 64)):
        pass
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert str(error) in caplog.text


def test_a_device_that_is_not_there_is_told_before():
    with (
        pytest.raises(SettingError, match="cuda:99"),
        rehearsing(tiny_config(device="cuda:99"), (64, 64)),
    ):
        raise AssertionError("the body ran")
