"""A GPU is made ready beside the measuring of the noise, and a training does not notice."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch

from n2sr_deploy.errors import FrameError, SettingError, TrainingError
from n2sr_train import rehearsal, train
from n2sr_train.rehearsal import beside_rehearsal
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
    assert beside_rehearsal(threading.current_thread, tiny_config(), noisy.shape) is (
        threading.current_thread()
    )


def test_the_work_is_done_beside_it(on_a_gpu, monkeypatch):
    rehearsed, worked = threading.Event(), threading.Event()

    def rehearse(config, shape):
        assert worked.wait(60)
        assert threading.current_thread() is threading.main_thread()
        rehearsed.set()

    def work():
        worked.set()
        assert rehearsed.wait(60)
        return "found"

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)
    assert beside_rehearsal(work, tiny_config(), (64, 64)) == "found"


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), TrainingError("no memory")])
def test_what_fails_in_it_is_left_to_the_training(on_a_gpu, monkeypatch, caplog, error):
    def fails(config, shape):
        raise error

    monkeypatch.setattr(rehearsal, "rehearse", fails)
    with caplog.at_level(logging.DEBUG, "n2sr"):
        assert beside_rehearsal(lambda: "found", tiny_config(), (64, 64)) == "found"
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert str(error) in caplog.text


def test_what_fails_in_the_work_is_told(on_a_gpu, monkeypatch):
    def fails():
        raise FrameError("all zero")

    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: None)
    with pytest.raises(FrameError, match="all zero"):
        beside_rehearsal(fails, tiny_config(), (64, 64))


def test_a_device_that_is_not_there_is_told_before():
    with pytest.raises(SettingError, match="cuda:99"):
        beside_rehearsal(lambda: 1 / 0, tiny_config(device="cuda:99"), (64, 64))
