"""`python -m redraft.cli`, and what the command `redraft` starts."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line, entered so that Ctrl-C while it's still being imported shows no traceback either."""
    try:
        from redraft.cli.main import main as enter
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    enter()


if __name__ == "__main__":
    main()
