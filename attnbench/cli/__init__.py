"""The command line: `main` is the entry point; nothing heavy is imported before a command needs it."""

from __future__ import annotations


def main() -> None:
    """Run the command of sys.argv. Exits with 0 fine, 1 worse, 2 used wrongly, 3 unfit to judge, 130 interrupted."""
    import signal

    from attnbench.cli.app import app

    # `timeout`, a cancelled CI job: worktrees, scratch folders and workers go as they do after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="attnbench")
