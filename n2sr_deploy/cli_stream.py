"""`n2sr stream`, joined to the n2sr group through ``n2sr.commands``."""

from __future__ import annotations

import json
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from n2sr_deploy.cli_options import (
    PATH,
    backend_option,
    check_keep,
    live_samples_option,
    refuse_training,
    seed_option,
    training_options,
)
from n2sr_deploy.signals import ending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from n2sr_deploy.learning import LearnOptions
    from n2sr_deploy.stream import StreamRunner
    from n2sr_deploy.stream.ring import Policy


_LOOPBACK = "127.0.0.1"
_SAME_S = 0.5  # within which a second signal is the first: some programs send it twice


@click.command("stream", short_help="Denoise live frames as they arrive.")
@click.argument("source")
@click.option("-m", "--model", type=PATH, metavar="MODEL.onnx", help="An exported model.")
@click.option(
    "--to",
    "sinks",
    multiple=True,
    metavar="SINK",
    help="Where results go; may be given several times: zmq://127.0.0.1:PORT, pva://CHANNEL, "
    "folder:PATH, stack:FILE.tif, null:.",
)
@click.option(
    "--policy",
    type=click.Choice(["latest", "all"]),
    default="latest",
    show_default=True,
    help="latest: the newest frame wins, dropped ones are counted; all: nothing is lost, the "
    "source waits.",
)
@live_samples_option
@backend_option
@click.option(
    "--relearn",
    type=click.Choice(["never", "auto"]),
    default="never",
    show_default=True,
    help="auto: train again, from the weights in use, when what is left between noisy and denoised "
    "frames shows that the scene or the dose has changed.",
)
@click.option(
    "--keep",
    type=PATH,
    metavar="MODEL.onnx",
    help="Keep what is learned there, for -m: the latest network, or the best so far where the "
    "stream ends before the first. Otherwise it is forgotten.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file of --keep if it exists.")
@click.option("--view", is_flag=True, help="Show the frames on a page of this machine.")
@click.option(
    "--view-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Of the page; by default one that is free.",
)
@click.option(
    "--listen",
    default=_LOOPBACK,
    show_default=True,
    metavar="ADDRESS",
    help="Where the page can be seen: another address needs --token.",
)
@click.option("--token", help="What a browser must give, where --listen lets others in.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Serve counts and latencies for Prometheus on this port of 127.0.0.1.",
)
@training_options
@seed_option
def stream_command(
    source: str,
    model: Path | None,
    sinks: tuple[str, ...],
    policy: Policy,
    n_samples: int | None,
    backend: str,
    relearn: str,
    keep: Path | None,
    overwrite: bool,
    view: bool,
    view_port: int,
    listen: str,
    token: str | None,
    as_json: bool,
    metrics_port: int | None,
    options: LearnOptions,
) -> None:
    """Denoise the frames of SOURCE as they arrive, until it ends or Ctrl-C.

    Without --model frames pass as they are while a network is trained on the first of them, beside
    the stream; then it denoises what comes. Training options are for that.

    SOURCE is an address: zmq://HOST:PORT, pva://CHANNEL, watch:FOLDER, replay:FILE?fps=25, sim:,
    micromanager:CONFIG.cfg.
    """
    from n2sr_deploy import files
    from n2sr_deploy.backends import check_backend
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.stream import StreamRunner
    from n2sr_deploy.stream.addresses import open_sink, open_source
    from n2sr_deploy.stream.denoising import DenoisingOptions, LiveDenoiser
    from n2sr_deploy.stream.learning import LiveLearner
    from n2sr_deploy.stream.statistics import described

    check_backend(backend)
    if options.init not in (None, "packaged", "random"):  # else every training would fail
        files.check_input(Path(options.init))
    if model is not None and relearn == "never":
        refuse_training(options, "leave one out, or add --relearn auto")
    _check_keeping(
        keep, model, options, learns=model is None or relearn == "auto", overwrite=overwrite
    )
    _check_viewing(view, view_port, listen, token)
    settings = DenoisingOptions(
        backend=backend, n_samples=n_samples, seed=options.seed or 0, repair=options.repair
    )
    opened = None if model is None else ExportedModel.open(model)
    _refuse_circles(source, sinks)
    _refuse_shared_places(sinks)
    denoiser = LiveDenoiser(opened, str(model or ""), settings)
    opened_source = open_source(source)  # before a training's options are asked about, for seconds
    opened_sinks = [open_sink(sink) for sink in sinks or (() if view else ("null:",))]
    with LiveLearner(
        denoiser, options, relearns=relearn == "auto", keep=keep, overwrite=overwrite
    ) as learner:
        viewer = None
        if view:
            from n2sr_deploy.stream.viewer import ViewerSink

            viewer = ViewerSink(view_port, listen, token)
            opened_sinks.append(viewer)
            click.echo(f"look at {viewer.url}", err=True)
        if policy == "latest" and any(sink.startswith(("folder:", "stack:")) for sink in sinks):
            click.echo("frames that come too fast are dropped; to keep all: --policy all", err=True)
        click.echo(f"waiting for frames from {source}", err=True)
        runner = StreamRunner(
            opened_source, opened_sinks, denoiser, policy=policy, observe=learner.observe
        )
        if viewer is not None:
            viewer.told = runner.told
        with _until_told(runner) as has_ended, _metrics(runner, metrics_port):
            summary = _run(runner)
            has_ended()
            learner.close()
    click.echo(json.dumps(summary) if as_json else "\n".join(described(summary)))
    if runner.gave_up:
        names = ", ".join(runner.gave_up)
        raise click.ClickException(f"not everything was written; given up, see above: {names}")
    counts = summary["counts"]
    for sink in sinks:
        if counts.get(f"lost by {sink}") and not counts.get(f"written to {sink}"):
            raise click.ClickException(f"nothing was written to {sink}")
    was_needed = model is None or learner.n_begun > 0  # else the model given was good to the end
    if keep is not None and was_needed and not learner.has_kept:
        raise click.ClickException(f"nothing was kept in {keep}, see above")


def _run(runner: StreamRunner) -> dict[str, Any]:
    """The summary; of a stream that fails it is told too, before why."""
    from n2sr_deploy.errors import N2SRError
    from n2sr_deploy.stream.statistics import described

    try:
        return runner.run()
    except N2SRError:
        if runner.statistics["received"]:
            click.echo("\n".join(described(runner.statistics.summary())), err=True)
        raise


def _check_keeping(
    keep: Path | None, model: Path | None, options: LearnOptions, *, learns: bool, overwrite: bool
) -> None:
    if overwrite and keep is None:
        raise click.UsageError("--overwrite is for the file of --keep; sinks replace nothing")
    or_else = ", or add --relearn auto"
    check_keep(keep, model, [], options, learns=learns, overwrite=overwrite, or_else=or_else)


def _check_viewing(view: bool, port: int, listen: str, token: str | None) -> None:
    if not view and (port or token or listen != _LOOPBACK):
        raise click.UsageError("--view-port, --listen and --token need --view")
    if listen != _LOOPBACK and not token:
        raise click.UsageError(f"--listen {listen} lets others see the frames; it needs a --token")


def _refuse_circles(source: str, sinks: tuple[str, ...]) -> None:
    """A folder that is watched must not be written to: its results would be frames again."""
    from n2sr_deploy.stream.addresses import Address

    read, written = Address.parse(source), [Address.parse(sink) for sink in sinks]
    if read.scheme != "watch":
        return
    for sink in written:
        folders = {"folder": Path(sink.target), "stack": Path(sink.target).parent}
        folder = folders.get(sink.scheme)
        if folder is not None and folder.resolve() == Path(read.target).resolve():
            raise click.UsageError(
                f"{sink.text} writes into the folder that {read.text} watches; name another"
            )


def _refuse_shared_places(sinks: tuple[str, ...]) -> None:
    from n2sr_deploy.stream.addresses import Address

    of_place: dict[tuple[str, str | Path], str] = {}
    for sink in map(Address.parse, sinks):
        if sink.scheme == "null":
            continue
        is_path = sink.scheme in ("folder", "stack")
        place = sink.scheme, Path(sink.target).resolve() if is_path else sink.target
        if place in of_place:
            raise click.UsageError(
                f"--to {sink.text} goes where --to {of_place[place]} does; each needs a place of "
                "its own"
            )
        of_place[place] = sink.text


@contextmanager
def _until_told(runner: StreamRunner) -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM end the stream, and the summary is still printed.

    Gives what is called once it has ended: from then on the first signal ends all at once.
    """
    told_s: list[float] = []
    is_over = False

    def stop(number: int, frame: FrameType | None) -> None:
        if told_s and time.monotonic() - told_s[-1] < _SAME_S:
            return
        told_s.append(time.monotonic())
        runner.stop()
        if is_over or len(told_s) > 1:
            handler = before[number]
            if callable(handler):
                handler(number, frame)
            else:
                signal.signal(number, handler)
                signal.raise_signal(number)

    def has_ended() -> None:
        nonlocal is_over
        is_over = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, *ending())}
    try:
        yield has_ended
    finally:
        if told_s:
            time.sleep(max(told_s[-1] + _SAME_S - time.monotonic(), 0.0))
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _metrics(runner: StreamRunner, port: int | None) -> Iterator[None]:
    """Serve what the stream counts to Prometheus."""
    if port is None:
        yield
        return
    from n2sr_deploy.stream.metrics import serve

    with serve(runner, port):
        yield
