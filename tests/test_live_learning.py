"""Learning while live: frames pass meanwhile, the model is swapped in, changes are seen."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from n2sr_deploy.cli import main
from n2sr_deploy.errors import InputFileError, ModelError, SettingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.learning import LEARNED, LearnOptions
from n2sr_deploy.lifeline import READY
from n2sr_deploy.model import ExportedModel
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.stream import (
    LiveResult,
    StreamRunner,
    denoising,
    learning,
    residual,
    training_process,
)
from n2sr_deploy.stream.denoising import DenoisingOptions, LiveDenoiser, LoadedModel
from n2sr_deploy.stream.learning import LiveLearner
from n2sr_deploy.stream.residual import ResidualWatch
from n2sr_deploy.stream.training_process import TrainingFailedError, TrainingProcess
from n2sr_train.config import TrainingConfig
from n2sr_train.learner import check_options
from n2sr_train.network import build_network
from tests.conftest import REPOSITORY
from tests.fake_stream import FakeSink, FakeSource, live_frame

OPTIONS = DenoisingOptions(backend="ort")
QUICK = LearnOptions(preset="fast", steps=2, device="cpu", pattern="cell", init="random")


@pytest.fixture(autouse=True)
def _as_important_as_the_tests(monkeypatch):
    monkeypatch.setattr(training_process, "_NICENESS", 0)


ONCE_TOLD = "from n2sr_deploy.lifeline import wait_until_told; wait_until_told(); "


@pytest.fixture
def idle(monkeypatch):
    """Trainings say that they are ready, and do nothing."""
    program = f"import time; print({READY!r}, flush=True); time.sleep(600)"
    monkeypatch.setattr(training_process, "_PROGRAM", program)


def at_once(model):
    """What a training does that has learned `model` without a process."""

    def learn(training, frame):
        training.close()
        return model

    return learn


def until(condition, frames, seconds=400.0):
    """A source that gives frames until something has come about."""
    end = time.monotonic() + seconds

    class Until(FakeSource):
        def read(self, timeout_s):
            assert time.monotonic() < end, "it did not come about"
            if condition():
                self.items = self.items[:3]
                if not self.items:
                    return super().read(timeout_s)
            time.sleep(0.02)
            return next(frames)

    return Until([])


def frames():
    index = 0
    while True:
        yield live_frame(index)
        index += 1


def test_frames_pass_while_a_network_learns_and_then_it_denoises():
    denoiser, sink = LiveDenoiser(options=OPTIONS), FakeSink()
    learner = LiveLearner(denoiser, QUICK)
    endless = frames()
    shown = 0

    def enough():
        nonlocal shown
        shown += learner.n_learned > 0
        return shown > 10

    runner = StreamRunner(
        until(enough, endless), [sink], denoiser, policy="all", observe=learner.observe
    )
    with closing(learner):
        counts = runner.run()["counts"]
    models = [result.record["model"] for _, _, result in sink.results]
    assert models[0] is None
    assert models[-1] == "learned from frame 0"
    assert models == sorted(models, key=lambda name: name is not None), "swapped once"
    assert sink.indices == list(range(len(sink.indices))), "no frame was lost over it"
    assert counts["passed as they are"] == models.count(None)
    assert counts["denoised"] == len(models) - models.count(None)
    raw, learned = sink.results[0], sink.results[-1]
    assert np.array_equal(raw[1], live_frame(0).pixels.astype(np.float32))
    assert learned[2].std is not None


def test_a_training_that_fails_is_told_and_tried_again(caplog, monkeypatch):
    monkeypatch.setattr(learning, "_TRY_AGAIN_S", 0.0)
    denoiser = LiveDenoiser(options=OPTIONS)
    learner = LiveLearner(denoiser, QUICK)
    result = LiveDenoiser().denoise(live_frame(0, (24, 24)))
    learner.observe(result)
    learner._thread.join()
    assert "nothing was learned: frame is 24 x 24" in caplog.text
    assert denoiser.model_name is None
    learner.observe(result)
    assert learner.is_training
    learner.close()


def test_the_first_frame_that_is_not_blank_is_learned_from(monkeypatch, idle, told):
    """A blank one failed, and no other was learned from for half a minute."""
    with LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions()) as learner:
        for index in range(3):
            blank = replace(live_frame(index), pixels=np.zeros((64, 64), np.uint16))
            learner.observe(LiveDenoiser().denoise(blank))
            assert not learner.is_training
        learner.observe(LiveDenoiser().denoise(live_frame(3)))
        assert learner.is_training
    assert told.text.count("is blank") == 1
    assert "learning from frame 3" in told.text


def test_no_blank_frame_is_learned_from_anew(model, monkeypatch, told):
    """As when the beam is blanked, which is a change."""
    monkeypatch.setattr(ResidualWatch, "sees_change", lambda *_: True)
    begun = []
    monkeypatch.setattr(LiveLearner, "_begin", lambda _, result, prefix: begun.append(prefix))
    denoiser = LiveDenoiser(model, "a model", OPTIONS)
    with LiveLearner(denoiser, LearnOptions(), relearns=True) as learner:
        learner.observe(seen(0, np.zeros((300, 300)), 0))
        assert not begun
        learner.observe(seen(1, CLEAN, 10))
        assert begun == ["re"]


def test_a_start_that_fits_no_frame_is_refused_before_frames_flow(checkpoint_path, monkeypatch):
    """Frames passed as they were, and a training failed twice a minute, for ever."""
    monkeypatch.setattr(StreamRunner, "run", lambda _: pytest.fail("frames flow"))
    asked = ("stream", "sim:?size=64&frames=5", "--preset", "fast", "--init", str(checkpoint_path))
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 2
    assert f"Error: {checkpoint_path} holds a network of preset balanced" in done.output


def test_a_start_that_is_not_needed_is_not_looked_at(model):
    options = LearnOptions(init="no-such.safetensors")
    with closing(LiveLearner(LiveDenoiser(model, "a model", OPTIONS), options)):
        pass
    with pytest.raises(SettingError, match=r"^no-such\.safetensors does not exist"):
        LiveLearner(LiveDenoiser(model, "a model", OPTIONS), options, relearns=True)


def test_the_pattern_of_a_start_is_checked_where_the_noise_does_not_choose_it(checkpoint, tmp_path):
    config, start = TrainingConfig.named("fast"), tmp_path / "fast.safetensors"
    weights = build_network(config.network, config.pattern.stride, 0).state_dict()
    replace(checkpoint, config=config, weights=weights).save(start)
    options = LearnOptions(preset="fast", init=str(start), device="cpu")
    check_options(options)
    check_options(replace(options, pattern="cell"))
    for other in ({"pattern": "row"}, {"stride": (3, 3)}):
        with pytest.raises(ModelError, match="or leave out --init"):
            check_options(replace(options, **other))


def test_closing_ends_a_training_that_runs(caplog):
    learner = LiveLearner(LiveDenoiser(options=OPTIONS), replace(QUICK, steps=100_000))
    learner.observe(LiveDenoiser().denoise(live_frame(0)))
    time.sleep(1.0)
    began = time.monotonic()
    learner.close()
    assert time.monotonic() - began < 10
    assert learner._training._process.poll() is not None
    assert "nothing was learned" not in caplog.text


LONG = replace(QUICK, steps=100_000)


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, "n2sr")
    return caplog


def ended_once(told, words, options=LONG, **keeping):
    """End a long training when so much has been told of it."""
    learner = LiveLearner(LiveDenoiser(options=OPTIONS), options, **keeping)
    with closing(learner):
        learner.observe(LiveDenoiser().denoise(live_frame(0)))
        end = time.monotonic() + 300
        while learner._training is None or words not in told.text:
            assert time.monotonic() < end
            assert learner.is_training
            time.sleep(0.01)


def test_what_is_learned_so_far_is_kept_where_the_stream_ends(told, tmp_path):
    """It was told to be kept, and was lost."""
    path = tmp_path / "kept.onnx"
    ended_once(told, "beside the stream: training, step", keep=path)
    model = ExportedModel.open(path)
    assert "beside the stream: learned: checkpoint" in told.text
    assert "(ended by the user)" in told.text
    assert f"{path}: {model.describe()}" in told.text
    assert "lost" not in told.text
    assert "Ctrl-C again" not in told.text, "nobody has pressed it"
    LoadedModel(model, "kept", OPTIONS, (64, 64)).close()


def test_without_a_file_to_keep_it_in_nothing_is_said_to_be_kept(told):
    ended_once(told, "beside the stream: training, step")
    assert "what it has learned is lost (name a file for it with --keep)" in told.text
    assert "kept" not in told.text


def test_where_nothing_was_learned_nothing_is_kept_and_that_is_told(told, tmp_path, idle):
    path = tmp_path / "kept.onnx"
    ended_once(told, "", LearnOptions(), keep=path)
    assert "what it has learned, if anything, goes to" in told.text, "it promises no file"
    assert f"nothing was kept in {path}: {training_process.TOO_EARLY}" in told.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="there os.kill ends the process that it tells")
@pytest.mark.parametrize(
    ("when", "has_kept_one"),
    [("in the stream", False), ("while it is kept", False), ("in the stream", True)],
)
def test_a_second_ctrl_c_tells_what_becomes_of_the_file(
    told, tmp_path, monkeypatch, when, has_kept_one
):
    """It said nothing of it."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    monkeypatch.setattr(
        training_process, "_PROGRAM", stubborn + "print('!', flush=True); time.sleep(600)"
    )
    path = tmp_path / "kept.onnx"
    learner = LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions(), keep=path)
    if has_kept_one:
        path.write_bytes(b"kept before")
        learner.has_kept = True

    def interrupted():
        with learner:
            learner.observe(LiveDenoiser().denoise(live_frame(0)))
            while "beside the stream: !" not in told.text:
                time.sleep(0.01)
            if when == "in the stream":
                raise KeyboardInterrupt
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            learner.close()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert learner._training._process.poll() is not None
    if has_kept_one:
        assert told.text.count(f"is lost ({path} stays)") == 1
        assert "nothing was kept" not in told.text
        assert path.read_bytes() == b"kept before"
    else:
        assert told.text.count(f"nothing was kept in {path}: it was ended at once") == 1
        assert not path.exists()


def test_what_is_being_put_in_use_when_the_stream_ends_is_not_told_to_be_lost(
    told, tmp_path, monkeypatch, model, idle
):
    """It was, and then kept over what "stays"."""
    path = tmp_path / "kept.onnx"
    path.write_bytes(b"kept before")
    denoiser = LiveDenoiser(options=OPTIONS)
    learner = LiveLearner(denoiser, LearnOptions(), keep=path)
    learner.has_kept = True
    is_swapping, goes_on = threading.Event(), threading.Event()

    def swap(loaded):
        is_swapping.set()
        goes_on.wait(60)
        loaded.close()

    monkeypatch.setattr(denoiser, "swap", swap)
    monkeypatch.setattr(TrainingProcess, "learn", at_once(model))
    learner.observe(LiveDenoiser().denoise(live_frame(0)))
    assert is_swapping.wait(60)
    threading.Timer(0.3, goes_on.set).start()
    learner.close()
    assert "lost" not in told.text
    assert f"{path}: {model.describe()}" in told.text
    assert path.read_bytes() == model.onnx


def test_a_training_that_has_just_begun_is_not_told_to_have_ended(told, tmp_path, monkeypatch):
    """It was, after one before had."""
    monkeypatch.setattr(training_process, "_PROGRAM", ONCE_TOLD)
    learner = LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions(), keep=tmp_path / "k.onnx")
    with pytest.raises(InputFileError):
        learner._next_training(None, None).learn(Frame(pixels=live_frame(0).pixels))
    monkeypatch.setattr(training_process, "_PROGRAM", "import time; time.sleep(600)")
    learner.observe(LiveDenoiser().denoise(live_frame(0)))
    learner.close()
    assert "a training had not ended" in told.text


@pytest.mark.skipif(os.name == "nt", reason="there a training can only be killed")
def test_a_training_that_fails_at_its_end_is_not_told_to_have_come_too_early(
    told, tmp_path, monkeypatch
):
    path = tmp_path / "kept.onnx"
    program = "print('!', flush=True); time.sleep(2); os._exit(9)"
    ignoring = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    monkeypatch.setattr(training_process, "_PROGRAM", ignoring + program)
    ended_once(told, "beside the stream: !", LearnOptions(), keep=path)
    assert f"nothing was kept in {path}: n2sr train ended with 9" in told.text


@pytest.mark.skipif(os.name == "nt", reason="there a training can only be killed")
def test_a_training_is_not_ended_where_it_only_has_to_be_exported(told, tmp_path, monkeypatch):
    """The signal that ends a training would take away what it has learned."""
    slow = (
        "from n2sr_train import export\n"
        "export_model = export.export_model\n"
        "def slowly(checkpoint):\n"
        "    import os, signal, time\n"
        "    print('!', flush=True)\n"
        "    time.sleep(2)\n"
        "    return export_model(checkpoint)\n"
        "export.export_model = slowly\n"
    )
    monkeypatch.setattr(
        training_process, "_PROGRAM", f"exec({slow!r}); {training_process._PROGRAM}"
    )
    path = tmp_path / "kept.onnx"
    ended_once(told, "beside the stream: !", QUICK, keep=path)
    assert "a training had just ended; what it has learned goes to" in told.text
    assert f"{path}: {ExportedModel.open(path).describe()}" in told.text


def test_a_file_that_was_to_be_and_is_not_is_a_failure(tmp_path):
    """It ended with 0."""
    path = tmp_path / "kept.onnx"
    asked = ("stream", "sim:?size=64&fps=200&frames=3", "--keep", str(path))
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1
    assert "received 3" in done.output, "the summary comes all the same"
    assert f"Warning: nothing was kept in {path}: {training_process.TOO_EARLY}\n" in done.output
    assert f"Error: nothing was kept in {path}, see above" in done.output
    path.write_bytes(b"of yesterday")
    done = CliRunner().invoke(main, [*asked, "--overwrite"])
    assert done.exit_code == 1
    assert f"nothing was kept in {path}, which stays as it was" in done.output
    assert path.read_bytes() == b"of yesterday"


def test_where_no_training_was_begun_that_is_why_nothing_is_kept(model, tmp_path, told):
    path = tmp_path / "kept.onnx"
    LiveLearner(LiveDenoiser(model, "m", OPTIONS), LearnOptions(), relearns=True, keep=path).close()
    assert f"nothing was kept in {path}: no training was begun" in told.text


def test_a_given_model_that_is_good_to_the_end_is_no_failure(model, tmp_path):
    model.save(tmp_path / "given.onnx")
    path = tmp_path / "kept.onnx"
    options = "-m", str(tmp_path / "given.onnx"), "--relearn", "auto", "--keep", str(path)
    done = CliRunner().invoke(main, ("stream", "sim:?size=64&fps=200&frames=3", *options))
    assert done.exit_code == 0, done.output
    assert f"nothing was kept in {path}: no training was begun" in done.output


def test_a_training_that_failed_is_why_nothing_is_kept(tmp_path, monkeypatch, told):
    program = f"{ONCE_TOLD} sys.exit('Error: there is no room')"
    monkeypatch.setattr(training_process, "_PROGRAM", program)
    path = tmp_path / "kept.onnx"
    with LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions(), keep=path) as learner:
        learner.observe(LiveDenoiser().denoise(live_frame(0)))
        learner._thread.join()
    assert f"nothing was kept in {path}: there is no room" in told.text


def test_what_ended_a_training_and_which_step_was_kept_is_told(monkeypatch, told):
    """They are what `n2sr train` prints as its result, which went nowhere."""
    monkeypatch.setattr(
        training_process,
        "_PROGRAM",
        ONCE_TOLD
        + "import sys; print(f'{sys.argv[4]}: 9 steps (ended by overfitting)', flush=True); "
        "sys.exit('Error: it is enough')",
    )
    with LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions()) as learner:
        learner.observe(LiveDenoiser().denoise(live_frame(0)))
        learner._thread.join()
    assert "beside the stream: 9 steps (ended by overfitting)" in told.text
    assert told.text.count("it is enough") == 1


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_a_training_whose_model_only_has_to_be_read_is_told_to_have_ended(
    model, tmp_path, monkeypatch, told, is_asked_for
):
    path = tmp_path / "kept.onnx" if is_asked_for else None
    model.save(tmp_path / "learned.onnx")
    copied = f"import shutil, sys; shutil.copy({str(tmp_path / 'learned.onnx')!r}, sys.argv[4])"
    program = f"{ONCE_TOLD} print({LEARNED + 'much'!r}, flush=True); {copied}"
    monkeypatch.setattr(training_process, "_PROGRAM", program)
    learner = LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions(), keep=path)
    closer = threading.Thread(target=learner.close)
    opened = ExportedModel.open

    def read(path):
        closer.start()
        while not learner._is_closed:
            time.sleep(0.01)
        return opened(path)

    monkeypatch.setattr(ExportedModel, "open", read)
    learner._begin(LiveDenoiser().denoise(live_frame(0)), "")
    learner._thread.join()
    closer.join()
    fate = f"goes to {path} (Ctrl-C gives it up)" if is_asked_for else "is lost (name a file"
    assert f"a training had just ended; what it has learned {fate}" in told.text
    assert "nothing was kept" not in told.text


def test_what_has_not_ended_takes_no_finished_networks_place(
    model, tmp_path, monkeypatch, told, idle
):
    path = tmp_path / "kept.onnx"
    with monkeypatch.context() as finished:
        finished.setattr(TrainingProcess, "learn", at_once(model))
        learner = LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions(), keep=path)
        learner.observe(LiveDenoiser().denoise(live_frame(0)))
        learner._thread.join()
    assert path.read_bytes() == model.onnx, "kept as soon as it is learned"
    learner._begin(LiveDenoiser().denoise(live_frame(1)), "re")
    while learner._training is None:
        time.sleep(0.01)
    learner.close()
    learner._denoiser.close()
    assert f"is lost ({path} stays)" in told.text
    assert path.read_bytes() == model.onnx


@pytest.mark.parametrize("has_kept_one", [False, True])
def test_a_stream_that_ends_while_what_was_learned_is_loaded_swaps_nothing_in(
    model, tmp_path, monkeypatch, told, has_kept_one, idle
):
    """It wrote over the file that it had just said stays."""
    path = tmp_path / "kept.onnx"
    closer = []

    class Loading(LoadedModel):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            closer.append(threading.Thread(target=learner.close))
            closer[0].start()
            while not learner._is_closed:
                time.sleep(0.01)

    monkeypatch.setattr(TrainingProcess, "learn", at_once(model))
    monkeypatch.setattr(learning, "LoadedModel", Loading)
    learner = LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions(), keep=path)
    if has_kept_one:
        path.write_bytes(b"kept before")
        learner.has_kept = True
    learner._begin(LiveDenoiser().denoise(live_frame(0)), "")
    learner._thread.join()
    closer[0].join()
    assert path.read_bytes() == (b"kept before" if has_kept_one else model.onnx)
    assert learner._denoiser.model is None
    assert "from now on the model" not in told.text


def test_a_model_that_was_written_is_kept_however_the_training_ended(
    tmp_path, model, monkeypatch, told, idle
):
    """It was killed in its last moments, and nothing was kept."""
    path = tmp_path / "kept.onnx"
    learner = LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions(), keep=path)
    closer = threading.Thread(target=learner.close)

    def lines(self):
        model.save(self._model)
        closer.start()
        while not learner._is_closed:
            time.sleep(0.01)
        self.kill()
        return []

    monkeypatch.setattr(TrainingProcess, "_lines", lines)
    learner._begin(LiveDenoiser().denoise(live_frame(0)), "")
    learner._thread.join()
    closer.join()
    assert path.read_bytes() == model.onnx
    assert "nothing was kept" not in told.text


def test_a_file_that_is_there_is_only_replaced_where_that_was_asked_for(tmp_path, model_path):
    there = tmp_path / "there.onnx"
    there.write_bytes(b"")
    for arguments, told in (
        (["--keep", str(there)], "exists already; choose another name or pass --overwrite"),
        (["--keep", str(tmp_path / "other.txt")], "must end in .onnx"),
        (["--overwrite"], "--overwrite is for the file of --keep"),
        (["--keep", str(model_path), "-m", str(model_path)], "--keep is for what is learned"),
        (
            ["--keep", str(model_path), "-m", str(model_path), "--relearn", "auto"],
            "is the input itself",
        ),
    ):
        done = CliRunner().invoke(main, ["stream", "sim:?size=64&frames=5", *arguments])
        assert done.exit_code == 2
        assert told in " ".join(done.output.split())


_A_STREAM = """
import sys, time
from n2sr_deploy.frame import Frame
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.stream import learning, training_process
from n2sr_deploy.stream.denoising import LiveDenoiser
from tests.fake_stream import live_frame
training_process._PROGRAM = sys.argv[1]
learner = learning.LiveLearner(LiveDenoiser(), LearnOptions())
learner.observe(LiveDenoiser().denoise(live_frame(0)))
while learner._training is None:
    time.sleep(0.01)
print(learner._training._process.pid, flush=True)
time.sleep(600)
"""


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may be there to take note of its end


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are told elsewhere")
@pytest.mark.parametrize("wait_s", [0.0, 3.0], ids=["as it starts", "later"])
@pytest.mark.parametrize("says", ["", "print(time.time(), flush=True)"], ids=["silent", "talks"])
def test_a_training_ends_when_the_stream_is_killed(wait_s, says, tmp_path):
    """What it writes to nobody ends it, too, and left its folder."""
    slowly = "shutil.rmtree = lambda *given, **also: (time.sleep(0.3), remove(*given, **also))"
    program = f"import shutil, time; remove = shutil.rmtree; {slowly}\n"
    program += f"while True: time.sleep(0.001); {says}"
    with subprocess.Popen(
        [sys.executable, "-c", _A_STREAM, program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as stream:
        training = int(stream.stdout.readline())
        time.sleep(wait_s)
        assert is_running(training)
        assert list(tmp_path.glob("n2sr-*"))
        stream.kill()
    end = time.monotonic() + 60
    while is_running(training) and time.monotonic() < end:
        time.sleep(0.05)
    if is_running(training):
        os.kill(training, signal.SIGKILL)
        pytest.fail("it goes on")
    assert not list(tmp_path.glob("n2sr-*")), "the frame it learned from stays"


_WITH_A_LIFELINE = """
import sys, time
from n2sr_deploy.lifeline import end_with_parent
end_with_parent()
print(repr(sys.stdin.read()), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("options", [LearnOptions(), QUICK], ids=["automatic", "named"])
def test_the_training_of_the_first_frame_waits_for_it_and_ends_without_it(monkeypatch, options):
    """PyTorch is imported before the frame is there; nothing is left where none comes."""
    program = f"import sys; print({READY!r}, flush=True); "
    program += ONCE_TOLD + "sys.exit('Error: it was told')"
    monkeypatch.setattr(training_process, "_PROGRAM", program)
    with LiveLearner(LiveDenoiser(options=OPTIONS), options) as learner:
        unused = learner._waiting
        assert unused._process.poll() is None
    assert unused._process.poll() not in (0, None)
    with LiveLearner(LiveDenoiser(options=OPTIONS), options) as learner:
        waiting = learner._waiting
        learner.observe(LiveDenoiser().denoise(live_frame(0)))
        learner._thread.join()
        assert learner._training is waiting
        assert learner._waiting is None
        assert learner._why_not == "it was told"


def test_a_training_that_died_before_its_frame_came_is_begun_anew(monkeypatch):
    """All that was told of it was a broken pipe."""
    monkeypatch.setattr(training_process, "_PROGRAM", "import sys; sys.exit('Error: it is lost')")
    with LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions()) as learner:
        died = learner._waiting
        died._process.wait()
        learner.observe(LiveDenoiser().denoise(live_frame(0)))
        learner._thread.join()
        assert learner._training is not died
        assert learner._why_not == "it is lost"


@pytest.mark.parametrize("ends", ["os.kill(os.getpid(), 9)", "os._exit(143)"])
@pytest.mark.parametrize("says", ["training, step 100 of 6000", READY, ""])
def test_a_training_that_is_killed_is_told_by_its_code(monkeypatch, says, ends):
    """It was told that nothing was learned: training, step 100 of 6000."""
    program = f"{ONCE_TOLD} import os; print({says!r}, flush=True); {ends}"
    monkeypatch.setattr(training_process, "_PROGRAM", program)
    training = TrainingProcess(LearnOptions(), None, None)
    with pytest.raises(TrainingFailedError, match=r"^n2sr train ended with -?\d+$"):
        training.learn(Frame(pixels=live_frame(0).pixels))


def test_an_error_that_nobody_foresaw_is_told(monkeypatch):
    monkeypatch.setattr(training_process, "_PROGRAM", f"{ONCE_TOLD} 1 / 0")
    training = TrainingProcess(LearnOptions(), None, None)
    with pytest.raises(TrainingFailedError, match=r"^ZeroDivisionError: division by zero$"):
        training.learn(Frame(pixels=live_frame(0).pixels))


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("Error: {frame}: it is constant", "it is constant"),
        ("Error: cannot write {model}: the disk is full", "cannot write {model}: the disk is full"),
    ],
)
def test_only_a_files_name_that_begins_a_line_is_left_out(monkeypatch, says, told):
    program = f"{ONCE_TOLD} sys.exit({says!r}.format(frame=sys.argv[2], model=sys.argv[4]))"
    monkeypatch.setattr(training_process, "_PROGRAM", program)
    training = TrainingProcess(LearnOptions(), None, None)
    told = told.format(model=training._model)
    with pytest.raises(TrainingFailedError) as failed:
        training.learn(Frame(pixels=live_frame(0).pixels))
    assert str(failed.value) == told


def test_where_no_process_can_be_begun_that_is_told(monkeypatch):
    def none(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", none)
    with pytest.raises(SettingError, match=r"no training can be begun: .*unavailable"):
        LiveLearner(LiveDenoiser(options=OPTIONS), LearnOptions())


def test_options_that_a_later_training_may_need_leave_no_process(model, monkeypatch):
    monkeypatch.setattr(training_process, "_PROGRAM", f"print({READY!r})")
    denoiser = LiveDenoiser(model, "a model", OPTIONS)
    with LiveLearner(denoiser, QUICK, relearns=True) as learner:
        assert learner._waiting is None


def test_a_lifeline_is_no_standard_input():
    with subprocess.Popen(
        [sys.executable, "-c", _WITH_A_LIFELINE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    ) as child:  # fmt: skip
        stuck = threading.Timer(60, child.kill)
        stuck.start()
        assert child.stdout.readline() == "''\n"
        stuck.cancel()
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(60) == 1


def test_frames_pass_while_what_was_learned_is_loaded(model, monkeypatch, idle):
    is_loading, may_go_on, released = threading.Event(), threading.Event(), []

    class SlowToLoad(LoadedModel):
        def __init__(self, model, name, options, shape):
            if name != "a model":
                is_loading.set()
                assert may_go_on.wait(300)
            super().__init__(model, name, options, shape)

        def close(self):
            released.append(self.name)
            super().close()

    monkeypatch.setattr(denoising, "LoadedModel", SlowToLoad)
    monkeypatch.setattr(learning, "LoadedModel", SlowToLoad)
    monkeypatch.setattr(TrainingProcess, "learn", at_once(model))
    changes = iter([True])
    monkeypatch.setattr(ResidualWatch, "sees_change", lambda self, result: next(changes, False))
    denoiser, sink = LiveDenoiser(model, "a model", OPTIONS), FakeSink()
    learner = LiveLearner(denoiser, QUICK, relearns=True)
    passed_before = 0

    def one_by_one():
        """Each frame only once the last has come out: one that is held would hold all."""
        nonlocal passed_before
        for index, frame in enumerate(frames()):
            while len(sink.indices) < index:
                time.sleep(0.001)
            if is_loading.is_set() and not may_go_on.is_set():
                passed_before += 1
                if passed_before == 20:
                    may_go_on.set()
            yield frame

    def swapped():
        return len(sink.indices) > 0 and sink.results[-1][2].record["model"] != "a model"

    runner = StreamRunner(
        until(swapped, one_by_one()), [sink], denoiser, policy="latest", observe=learner.observe
    )
    with closing(learner):
        counts = runner.run()["counts"]
    models = [result.record["model"] for _, _, result in sink.results]
    assert passed_before == 20, "so many went through the old model while the new one was loaded"
    assert sink.indices == list(range(len(models)))
    assert counts["dropped"] == 0
    assert models[0] == "a model"
    assert models[-1].startswith("relearned from frame")
    assert models == sorted(models, key=lambda name: name != "a model"), "swapped once"
    assert released[0] == "a model"


def trainings(monkeypatch, model, outcomes, learned=None, **options):
    """The start and the arguments of each training; those of outcome False fail."""
    ran, left = [], list(outcomes)

    class Noting(TrainingProcess):
        def __init__(self, options, preset, start):
            self.start = start if isinstance(start, ExportedModel) else None
            self.said = training_process._said(options, preset, None if self.start else start)

        def wait_until_checked(self):
            pass

        def learn(self, frame):
            ran.append((self.start, self.said))
            if not left.pop(0):
                raise TrainingFailedError("enough")
            return learned or model

        def kill(self):
            pass

        def close(self):
            pass

    monkeypatch.setattr(learning, "TrainingProcess", Noting)
    monkeypatch.setattr(learning, "_TRY_AGAIN_S", 0.0)
    denoiser = LiveDenoiser(model, "a model", OPTIONS)
    learner = LiveLearner(denoiser, LearnOptions(**options), relearns=True)
    with closing(denoiser), closing(learner):
        while left:
            learner._begin(LiveDenoiser().denoise(live_frame(0)), "")
            learner._thread.join()
    return ran


def test_a_training_is_given_the_model_it_starts_from(monkeypatch, model, tmp_path):
    in_use = tmp_path / "in_use.onnx"
    model.save(in_use)
    program = (
        f"{ONCE_TOLD} from pathlib import Path; (start,) = [word.removeprefix('--init=') "
        "for word in sys.argv if word.startswith('--init=')]; same = Path(start).read_bytes() "
        f"== Path({str(in_use)!r}).read_bytes(); sys.exit(f'Error: the same: {{same}}')"
    )
    monkeypatch.setattr(training_process, "_PROGRAM", program)
    training = TrainingProcess(LearnOptions(), "fast", model)
    with pytest.raises(TrainingFailedError, match=r"^the same: True$"):
        training.learn(Frame(pixels=live_frame(0).pixels))


def test_a_training_that_fails_once_its_model_is_written_is_told(
    monkeypatch, model, tmp_path, told
):
    model.save(tmp_path / "learned.onnx")
    copied = f"import shutil; shutil.copy({str(tmp_path / 'learned.onnx')!r}, sys.argv[4])"
    program = f"{ONCE_TOLD} {copied}; sys.exit('Error: no driver')"
    monkeypatch.setattr(training_process, "_PROGRAM", program)
    learned = TrainingProcess(LearnOptions(), "fast", None).learn(
        Frame(pixels=live_frame(0).pixels)
    )
    assert learned == model
    assert "the training failed after it had learned: no driver" in told.text


def test_training_starts_from_the_model_in_use(monkeypatch, model):
    preset = f"--preset={model.metadata.preset}"
    for start, said in trainings(monkeypatch, model, [True, True], stride=(2, 2)):
        assert start == model
        assert preset in said
        assert "--stride=2,2" in said


def test_rows_and_columns_in_use_are_known_by_any_way_to_tell_their_stride(monkeypatch, model):
    """`--pattern row --stride 2` was taken for another pattern: each training began anew."""
    rows = replace(model, metadata=replace(model.metadata, pattern=SamplingPattern.named("row")))
    for stride in ((2, 2), (2, 1)):
        asked = {"pattern": "row", "stride": stride}
        ((start, said),) = trainings(monkeypatch, rows, [True], learned=model, **asked)
        assert start == rows
        assert "--pattern=row" in said
    for other in ({"pattern": "row", "stride": (3, 3)}, {"stride": (2, 4)}):
        ((start, _),) = trainings(monkeypatch, rows, [True], learned=model, **other)
        assert start is None


def test_what_does_not_fit_is_left_out_at_once_and_the_next_model_tried(monkeypatch, model):
    found = trainings(monkeypatch, model, [False, True, True])
    assert [start for start, _ in found] == [model, None, model]
    assert not any(text.startswith(("--init", "--preset")) for text in found[1][1])


@pytest.mark.parametrize(
    "options", [{"preset": "best"}, {"init": "random"}, {"pattern": "row"}, {"stride": (3, 3)}]
)
def test_training_starts_from_what_the_user_named(monkeypatch, model, options):
    ((start, said),) = trainings(monkeypatch, model, [True], **options)
    assert start is None
    expected = {"stride": "3,3"} if "stride" in options else options
    assert {f"--{name}={value}" for name, value in expected.items()} == {
        text for text in said if text.startswith(("--init", "--preset", "--pattern", "--stride"))
    }


def seen(index, clean, noise_std, along_rows=0.0, shown=None):
    """A result of a denoiser that finds `shown`, the truth by default."""
    rng = np.random.default_rng(index)
    noise = rng.normal(size=(300, 301))
    noise = noise[:, 1:] + along_rows * noise[:, :-1]
    noisy = (clean + noise_std * noise / noise.std()).astype(np.float32)
    frame = replace(live_frame(index), pixels=noisy)
    mean = (clean if shown is None else shown).astype(np.float32)
    return LiveResult(noisy=frame, mean=mean, std=mean, record={})


def first_change(results):
    watch = ResidualWatch()
    return next((n for n, result in enumerate(results) if watch.is_unusual(result)), None)


CLEAN = 100 + 20 * np.sin(np.arange(300) / 3)[:, None] * np.sin(np.arange(300) / 3)[None]


def test_a_scene_that_stays_is_no_change():
    assert first_change([seen(n, CLEAN, 10) for n in range(100)]) is None
    moved = [seen(n, np.roll(CLEAN, n, 1), 10) for n in range(60)]
    assert first_change(moved) is None, "the denoiser follows what moves"


@pytest.mark.parametrize("what", ["dose", "signal is left", "correlation"])
def test_a_change_is_seen_soon_but_not_at_once(what):
    after = {
        "dose": lambda n: seen(n, CLEAN, 13),
        "signal is left": lambda n: seen(n, CLEAN, 10, shown=np.full_like(CLEAN, 100)),
        "correlation": lambda n: seen(n, CLEAN, 10, along_rows=0.2),
    }[what]
    results = [seen(n, CLEAN, 10) for n in range(30)] + [after(n) for n in range(30, 60)]
    assert first_change(results) == 30 + residual._CHANGED - 1


def test_hot_pixels_hide_no_change_and_are_none():
    """Three of them had so much variance that a doubled dose was not seen beside it."""

    def with_hot(n, dose):
        result = seen(n, np.full_like(CLEAN, dose), np.sqrt(dose))
        for place in ((100, 100), (150, 90), (200, 201)):
            result.noisy.pixels[place] = 60000
        return result

    assert first_change([with_hot(n, 100) for n in range(60)]) is None
    results = [with_hot(n, 100 if n < 30 else 200) for n in range(60)]
    assert first_change(results) == 30 + residual._CHANGED - 1


def test_sparse_counts_are_no_hot_pixels():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.05, CLEAN.shape).astype(np.float32)
    shown = 0.05 + 0.002 * rng.normal(size=CLEAN.shape).astype(np.float32)
    frame = replace(live_frame(0), pixels=counts)
    result = LiveResult(noisy=frame, mean=shown, std=shown, record={})
    assert residual._look(result).variance == pytest.approx(0.05, rel=0.1)


def test_a_single_odd_frame_is_no_change():
    results = [seen(n, CLEAN, 30 if n % 12 == 11 else 10) for n in range(80)]
    assert first_change(results) is None


def test_the_learner_trains_again_when_a_change_is_seen(model, monkeypatch, idle):
    monkeypatch.setattr(residual, "_LOOKS_EVERY_S", 0.0)
    denoiser = LiveDenoiser(model, "a model", OPTIONS)
    begun = []
    monkeypatch.setattr(LiveLearner, "_begin", lambda self, result, prefix: begun.append(prefix))
    never, auto = (LiveLearner(denoiser, QUICK, relearns=relearns) for relearns in (False, True))
    for n in range(60):
        for learner in (never, auto):
            learner.observe(seen(n, CLEAN, 10 if n < 30 else 15))
    assert begun
    assert set(begun) == {"re"}
    never.close()
    auto.close()
