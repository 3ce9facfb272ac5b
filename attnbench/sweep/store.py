"""Where do results go, and can they be lost? One line a result, on the disk before the next one is begun.

OUT/results.jsonl       one result a line, appended and synced
OUT/environment.json    fingerprints by key
OUT/results.jsonl.partial   what was cut off in the middle of a line, kept aside
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnbench.errors import StoreError
from attnbench.sweep.result import Result

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock
    fcntl = None  # type: ignore[assignment]


class Store:
    """The results in a folder. Reading changes nothing; appending needs `writing()`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.results_file = self.folder / "results.jsonl"
        self.environment_file = self.folder / "environment.json"
        self.references_folder = self.folder / ".references"

    def read(self) -> list[Result]:
        """Every whole result, in the order written; a last line without its end was never finished.

        Raises StoreError naming file and line for any other line that is no result.
        """
        return [result for _, result in self._whole_lines()]

    def append(self, result: Result) -> None:
        """Write one result and wait until the disk has it; half a line is taken back."""
        line = json.dumps(result.to_json(), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            # Unbuffered: what a buffer still holds of a line that was taken back is written when the file is closed.
            with self.results_file.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    rest = memoryview(line)
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except BaseException:
                    os.truncate(self.results_file, before)
                    raise
            if before == 0:
                _sync_folder(self.folder)
        except OSError as problem:
            raise StoreError(
                f"{self.results_file} cannot be written ({problem.strerror or problem}); what was written "
                "before is whole: make room, then run again with --resume"
            ) from problem

    @contextmanager
    def writing(self, resume: bool = False) -> Iterator[str]:
        """Hold the folder for one run; gives a message where an unfinished last line was set aside.

        Raises StoreError where another run holds it, or where it has results and `resume` is not given.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("a+")
        except OSError as problem:
            raise StoreError(
                f"{self.folder} cannot be written ({problem.strerror}); choose another --out"
            ) from problem
        with lock:
            self._lock(lock)
            if not resume and self.results_file.exists() and self.results_file.stat().st_size:
                raise StoreError(
                    f"{self.folder} holds results already ({self._count_lines()} lines); add --resume to run "
                    "only what is missing, or choose another --out"
                )
            yield self._set_unfinished_aside()

    def environments(self) -> dict[str, dict[str, Any]]:
        """Fingerprints by key; empty where none was written."""
        try:
            found = json.loads(self.environment_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as problem:
            raise StoreError(
                f"{self.environment_file} is no JSON ({problem}); move it away to have it made again"
            ) from problem
        if not isinstance(found, dict):
            raise StoreError(
                f"{self.environment_file} holds no fingerprints by key; move it away to have it made again"
            )
        return found

    def add_environment(self, key: str, found: dict[str, Any]) -> None:
        """Keep a fingerprint; one that is there already stays as it was."""
        known = self.environments()
        if key in known:
            return
        unfinished = self.environment_file.with_suffix(".json.part")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump({**known, key: found}, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.environment_file)
        _sync_folder(self.folder)

    def _whole_lines(self) -> Iterator[tuple[int, Result]]:
        try:
            with self.results_file.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.endswith(b"\n") and line.strip():
                        yield number, self._parsed(line, number)
        except FileNotFoundError:
            return
        except OSError as problem:
            raise StoreError(f"{self.results_file} cannot be read: {problem.strerror}") from problem

    def _parsed(self, line: bytes, number: int) -> Result:
        try:
            return Result.from_json(json.loads(line))
        except (ValueError, TypeError, AttributeError) as problem:
            raise StoreError(
                f"{self.results_file}, line {number}, is no result ({problem}); nothing was changed: "
                "correct or remove that line, then run again with --resume"
            ) from problem

    def _set_unfinished_aside(self) -> str:
        """Cut an unfinished last line off, keeping it in results.jsonl.partial."""
        if not self.results_file.exists():
            return ""
        content = self.results_file.read_bytes()
        if not content or content.endswith(b"\n"):
            return ""
        whole = content.rfind(b"\n") + 1
        aside = self.results_file.with_suffix(".jsonl.partial")
        with aside.open("ab") as file:
            file.write(content[whole:] + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.truncate(self.results_file, whole)
        return (
            f"{self.results_file}: the last line was cut off ({len(content) - whole} bytes, kept in "
            f"{aside.name}); that row is run again"
        )

    def _lock(self, lock: Any) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            lock.seek(0)
            holder = lock.read().strip()
            raise StoreError(
                f"another run{f' (process {holder})' if holder else ''} is writing to {self.folder}; "
                "wait for it to end, or choose another --out"
            ) from problem
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()

    def _count_lines(self) -> int:
        with self.results_file.open("rb") as file:
            return sum(1 for _ in file)


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """The results of a folder or a results.jsonl; StoreError where there is no such file, or another in its place."""
    file = results_file(path)
    store = Store(file.parent)
    store.results_file = file  # a copy under another name is read as well
    found = store.read()
    if not found and file.stat().st_size:
        raise StoreError(
            f"{file} holds no whole result; give the folder that `attnbench run --out` wrote (and run again with "
            "--resume where it was ended in the middle of its first one)"
        )
    return found


def results_file(path: str | os.PathLike[str]) -> Path:
    """The results.jsonl that a path means."""
    given = Path(path)
    file = given / "results.jsonl" if given.is_dir() else given
    if not file.is_file():
        raise StoreError(f"no results at {file}; give the folder that `attnbench run --out` wrote")
    return file


def read_environments(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Fingerprints by key, from environment.json beside the results; empty where there is none."""
    return Store(results_file(path).parent).environments()


def _sync_folder(folder: Path) -> None:
    # A new file's name is on the disk only when its folder is.
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
