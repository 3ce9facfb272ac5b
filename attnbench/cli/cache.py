"""`attnbench cache`: where the references of earlier runs are, what they take on disk, and how to remove them."""

from __future__ import annotations

import typer

from attnbench.cli.console import out


def show_or_clear_cache(
    clear: bool = typer.Option(False, "--clear", help="Remove all of them."),
) -> None:
    """Say what the stored references take on disk, or remove them.

    A reference (the exact answer of a case, and its noise) is stored when it is computed, and found again by the
    numbers that it belongs to. ATTNBENCH_CACHE names the folder; if it is empty, nothing is stored.

    Example: [bold]attnbench cache --clear[/bold]
    """
    from attnbench.judge.reference_files import LARGEST_CACHE, cache_folder, cached

    folder = cache_folder()
    if folder is None:
        out().print("no references are stored: ATTNBENCH_CACHE is empty", markup=False)
        return
    files = cached(folder)
    size = sum(path.stat().st_size for path in files)
    number = "1 reference" if len(files) == 1 else f"{len(files)} references"
    text = f"{number}, {size / 1e6:,.0f} MB in {folder}"
    if clear:
        for path in files:
            path.unlink(missing_ok=True)
        text += ": removed"
    else:
        text += f" (at most {LARGEST_CACHE / 1e6:,.0f} MB)"
    out().print(text, markup=False, soft_wrap=True)
