"""What n2sr_train registers under ``n2sr.learners``: see `n2sr_deploy.learning`."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from n2sr_deploy.defects import measured_part, repair, untouched
from n2sr_deploy.describing import Described
from n2sr_deploy.errors import MissingExtraError, ModelError, SettingError
from n2sr_deploy.files import check_input
from n2sr_deploy.frame import Frame
from n2sr_deploy.learning import Learned, LearnOptions
from n2sr_deploy.noise import SMALLEST, choose_pattern, measure_noise
from n2sr_deploy.openmp import SPINNING_BRIEFLY, loaded_with

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from n2sr_deploy.learning import Progress
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.noise import Noise
    from n2sr_deploy.sampling import AnyArray
    from n2sr_train.checkpoint import Checkpoint
    from n2sr_train.config import TrainingConfig

_log = logging.getLogger("n2sr")
_NOISE_IS_KNOWN_TO = 0.3  # of its variance, with the chance in the error it is compared with
# Shares of the frame's variance: an error of its own of so much is much, of so much it may have.
_ERRS_MUCH, _ERRS_LITTLE = 0.05, 0.01


def require_training_extra() -> None:
    """Import PyTorch, before all else that training and export need.

    Raises MissingExtraError where something is not installed. What only the first export of a
    network needs is not imported: onnxscript takes half as long as PyTorch.
    """
    for package in ("torch", "onnx", "onnxscript", "safetensors"):
        if find_spec(package) is None:
            raise MissingExtraError("training or exporting", package, "train")
    with loaded_with(SPINNING_BRIEFLY):
        import_module("torch")


def exporter(options: LearnOptions) -> Callable[[Checkpoint], ExportedModel]:
    """Give `export_model`, before a training of which nothing would be left without it.

    Raises what `check_options` raises, MissingExtraError where something is not installed, and
    ModelError where it is broken.
    """
    check_options(options)
    try:
        from n2sr_train.export import export_model
    except ModuleNotFoundError as error:
        raise MissingExtraError("exporting", error.name or "onnx", "train") from error
    except (ImportError, OSError) as error:
        raise ModelError(
            f"onnx is broken ({error}); install it again with: pip install --force-reinstall onnx"
        ) from error
    return export_model


def learn(frame: Frame, options: LearnOptions, progress: Progress) -> Learned:
    """Train on one noisy frame and export; what `train` and `export_model` raise, it raises."""
    export_model = exporter(options)
    checkpoint = learn_checkpoint(frame, options, progress)
    return Learned(export_model(checkpoint), checkpoint.describe())


def learn_checkpoint(
    frame: Frame | AnyArray,
    options: LearnOptions | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Mend the frame, measure its noise, choose the pattern, train: what `n2sr train` does.

    Parameters
    ----------
    frame
        (H, W) in counts, at least 32 x 32.
    options
        What differs from the automatic settings.
    progress
        Called after every step.

    Returns
    -------
    The checkpoint. What was found and chosen is logged.

    Raises
    ------
    MissingExtraError, SettingError, FrameError, TrainingError
        As `train` does, and where the extra is missing.
    """
    frame = Frame.of(frame)
    mended, config, noise = prepared(frame, LearnOptions() if options is None else options)
    from n2sr_train.training import train

    checkpoint = train(mended, config, progress, noise)
    _tell_what_is_not_learned(checkpoint, mended)
    # That of the whole frame: what was learned from may be without blank borders.
    return replace(checkpoint, summary={**checkpoint.summary, "frame_shape": list(frame.shape)})


def _tell_what_is_not_learned(checkpoint: Checkpoint, frame: Frame) -> None:
    """Warn where the network errs by more than the noise that it would take away."""
    error, noise = checkpoint.validation_error, checkpoint.noise
    if error is None or noise is None:
        return
    of_noise = (noise.std / frame.mean_and_std()[1]) ** 2
    own = error - of_noise
    if own > _NOISE_IS_KNOWN_TO * of_noise and own > min(_ERRS_MUCH, max(of_noise, _ERRS_LITTLE)):
        _log.warning(
            "the network has not learned this frame: of pixels it never saw its error is %.2g of "
            "the frame's variance, but the noise only %.2g. Structure will be lost or made up: "
            "train longer%s",
            error,
            of_noise,
            "" if checkpoint.summary["stopped_by"] == "seconds" else ", or name another --pattern",
        )


def prepared(frame: Frame, options: LearnOptions) -> tuple[Frame, TrainingConfig, Noise | None]:
    """What `train` takes: the mended frame, the settings that fit its noise, and that noise."""
    from n2sr_train.config import TrainingConfig

    frame = frame.cropped(*measured_part(frame.pixels))
    frame.check_varies()
    config = check_options(options)
    if frame.is_denoised:
        _log.warning(
            "the frame is a result of n2sr: there is no noise left to learn from; take the noisy "
            "one"
        )
    noise = None
    repaired = repair(frame) if options.repair else untouched(frame)
    if repaired.describe():
        _log.info("mended: %s", repaired.describe())
    if min(frame.shape) < SMALLEST:
        _log.warning(
            "the frame is too small to measure its noise (%d x %d are needed): it is taken as "
            "white unless --pattern says otherwise",
            SMALLEST,
            SMALLEST,
        )
    else:
        noise = measure_noise(frame, repaired=repaired)
        _log.info("found: %s", noise.describe())
        config = TrainingConfig.from_options(options, noise)
        asked_for, _, why = choose_pattern(noise)
        chosen = (
            "" if config.pattern == asked_for else f"; you chose pattern {config.pattern} instead"
        )
        _log.info("%s%s", why, chosen)
    return repaired.frame, config, noise


def check_settings(options: LearnOptions) -> TrainingConfig:
    """What `check_options` does, as far as it needs no PyTorch."""
    from n2sr_train.config import TrainingConfig

    if not isinstance(options, LearnOptions):
        raise SettingError(
            f"options is {options!r:.200}, but must be LearnOptions, as "
            'LearnOptions(preset="fast") makes them'
        )
    config = TrainingConfig.from_options(options)
    if config.start_path is not None:
        check_input(config.start_path)
    return config


def check_options(options: LearnOptions) -> TrainingConfig:
    """Refuse, before any work, options that no frame could be learned with.

    Parameters
    ----------
    options
        What differs from the automatic settings.

    Returns
    -------
    The settings, as far as they do not depend on the frame's noise.

    Raises
    ------
    MissingExtraError, SettingError, InputFileError, ModelError
        Where the extra is missing, a setting is out of range, or the start is no checkpoint or
        exported model, or one of another network.
    """
    config = check_settings(options)  # before the seconds that PyTorch takes
    require_training_extra()
    from n2sr_train.devices import chosen_device, without_lost_threads
    from n2sr_train.starting import check_start, starting_network

    without_lost_threads()
    chosen_device(config.device)
    if options.pattern is None and options.stride is None:
        check_start(config)  # the noise may yet ask for the pattern of the start
    else:
        starting_network(config)
    return config


def describe_checkpoint(path: Path) -> Described:
    """Tell what a checkpoint is, for ``n2sr info``."""
    require_training_extra()
    from n2sr_train.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(path)
    return Described([checkpoint.describe()], {"kind": "checkpoint", **checkpoint.to_dict()})
