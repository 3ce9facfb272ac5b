"""The command line: `main` is the entry point; nothing heavy is imported before a command needs it."""

from __future__ import annotations


def main() -> None:
    """Run the command of sys.argv. Exits with 0 fine, 1 worse, 2 used wrongly, 3 unfit to judge, 130 Ctrl-C."""
    from attnbench.cli.app import app

    app(prog_name="attnbench")
