"""Where the `n2sr` command begins, before the imports that take most of a second."""

from __future__ import annotations

import signal
import sys

from n2sr_deploy.signals import INTERRUPTED, INTERRUPTED_CODE


def main() -> None:
    """Run the command; Ctrl-C is told as a sentence while Python still imports it, too."""
    try:
        from n2sr_deploy.cli import main as command

        command()
    except SystemExit:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all was done and told: only Python ends
        raise
    except KeyboardInterrupt:
        sys.stderr.write(f"Error: {INTERRUPTED}\n")
        sys.exit(INTERRUPTED_CODE)


if __name__ == "__main__":
    main()
