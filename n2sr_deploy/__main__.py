"""Where the `n2sr` command begins, before the imports that take most of a second."""

from __future__ import annotations

import io
import signal
import sys

from n2sr_deploy.signals import INTERRUPTED, INTERRUPTED_CODE, held_back


def main() -> None:
    """Run the command; Ctrl-C is told as a sentence while Python still imports it, too."""
    _write_what_can_be_encoded()
    try:
        with held_back(signal.SIGINT):  # C extensions may lose what it raises
            from n2sr_deploy.cli import main as command

        # Else click would take names like a[1].tif for globs on Windows; a batch knows its own.
        command(windows_expand_args=False)
    except SystemExit:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all was done and told: only Python ends
        raise
    except KeyboardInterrupt:
        sys.stderr.write(f"Error: {INTERRUPTED}\n")
        sys.exit(INTERRUPTED_CODE)


def _write_what_can_be_encoded() -> None:
    """Escape the rest, as stderr does: a redirected stdout has few letters on Windows."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
