"""What docs/live prints is what works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from n2sr_deploy.cli import main
from n2sr_deploy.errors import MissingExtraError
from n2sr_deploy.stream import StreamRunner, addresses
from tests.conftest import REPOSITORY
from tests.fake_stream import FakeSource

FOLDER = REPOSITORY / "docs" / "live"
INDEX = REPOSITORY / "docs" / "live.md"
PAGES = sorted(FOLDER.glob("*.md"))
TEXT = {page.name: page.read_text() for page in (INDEX, *PAGES)}
COMMANDS = [
    line.strip()
    for text in TEXT.values()
    for line in text.splitlines()
    if line.startswith("    n2sr stream") and "SOURCE" not in line
]
UNIT = re.search(r"ExecStart=\S+/(n2sr stream .*)", TEXT["service.md"])
RUN = [command for command in COMMANDS if "frames=" in command]


@pytest.fixture
def at_work(model_path, checkpoint_path, monkeypatch, tmp_path):
    """A folder with what the commands name."""
    monkeypatch.chdir(tmp_path)
    model = model_path.read_bytes()
    (tmp_path / "sample.onnx").write_bytes(model)
    (tmp_path / "sample.safetensors").write_bytes(checkpoint_path.read_bytes())
    (tmp_path / "incoming").mkdir()
    (tmp_path / "stack.mrc").touch()
    return tmp_path


def invoked(command):
    """Run it; where it keeps what is learned, nothing is learned as fast as it ends here."""
    result = CliRunner().invoke(main, shlex.split(command)[1:])
    expected = 1 if "--keep" in command and " -m " not in command else 0
    assert result.exit_code == expected, f"{command}\n{result.output}"
    assert ("nothing was kept" in result.output) == bool(expected)
    return result


@pytest.mark.parametrize("command", sorted({*COMMANDS, UNIT.group(1)}))
def test_every_command_has_addresses_and_options_that_exist(command, at_work, monkeypatch):
    begun = []

    def run(runner):
        begun.append(runner)
        runner.denoiser.close()
        for worker in runner._workers:
            worker.sink.close()
        return {"seconds": 1.0, "fps": 1.0, "counts": {}, "stages_ms": {}}

    monkeypatch.setattr(StreamRunner, "run", run)
    command = command.replace("/opt/n2sr/sample.onnx", "sample.onnx")
    source = next(word for word in shlex.split(command)[2:] if ":" in word)
    try:
        addresses.open_source(source)
    except MissingExtraError:
        monkeypatch.setattr(addresses, "open_source", lambda text: FakeSource([]))
    invoked(command)
    assert begun


def test_commands_that_come_to_an_end_run_as_printed(at_work):
    assert RUN
    for command in RUN:
        result = invoked(re.sub(r"frames=\d+", "frames=3", command))
        assert "received 3" in result.output


def programs():
    return re.findall(r"```python\n(.*?)```", TEXT["python.md"], re.DOTALL)


def test_the_programs_run(at_work, capsys):
    n_lines, beginnings = (5, 1, 3), ("0 (256, 256)", "{'denoised': ", "0 ")
    for code, n_frames, begins in zip(programs(), n_lines, beginnings, strict=True):
        exec(compile(code, "python.md", "exec"), {})
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == n_frames
        assert lines[0].startswith(begins)


def test_a_package_joins_its_source(at_work, monkeypatch):
    code = next(c for c in programs() if "def from_address" in c).partition("\n\n\nfor result")[0]
    joined = re.search(r'entry-points\."(.*)"\]\n(.*) = "(.*):(.*)"', TEXT["python.md"])
    group, scheme, package, function = joined.groups()
    Path(f"{package}.py").write_text(code)
    Path("mine-1.dist-info").mkdir()
    Path("mine-1.dist-info/METADATA").write_text("Name: mine\nVersion: 1\n")
    told = f"[{group}]\n{scheme} = {package}:{function}\n"
    Path("mine-1.dist-info/entry_points.txt").write_text(told)
    monkeypatch.syspath_prepend(".")
    (command,) = re.findall(r"`(n2sr stream .*mycamera.*?)`", TEXT["python.md"])
    assert "received 3" in invoked(command).output


def test_there_is_a_page_for_every_source_and_sink_and_the_index_names_all():
    named = set(re.findall(r"\(live/([\w-]+\.md)\)", TEXT["live.md"]))
    assert named == {page.name for page in PAGES}
    for group, kind in (("n2sr.sources", "source"), ("n2sr.sinks", "sink")):
        for entry in addresses.entry_points(group=group):
            assert any(f"{entry.name}:" in text for text in TEXT.values()), (kind, entry.name)


def test_links_lead_somewhere():
    for name, text in TEXT.items():
        folder = INDEX.parent if name == INDEX.name else FOLDER
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (folder / link).exists(), (name, link)
