"""The stored results: one line per result, on the disk before the next one begins.

OUT/results.jsonl       one result per line, appended and synced
OUT/environment.json    fingerprints by key
OUT/results.jsonl.partial   lines that were cut off, kept here
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
        """Every whole result in the order written; a last line without its end is ignored.

        Of several rows of one key the last counts, in the place of the first: a row that failed was run again.
        Raises StoreError with file and line for any other line that is no result.
        """
        return list({result.key: result for _, result in self._whole_lines()}.values())

    def append(self, result: Result) -> None:
        """Write one result and wait until it is on the disk; a line that fails halfway is removed."""
        line = json.dumps(result.to_json(), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            # Unbuffered: closing the file would write what a buffer still holds of a removed line.
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
        except OSError as error:
            raise StoreError(
                f"{self.results_file} cannot be written ({error.strerror or error}); the results before are "
                "intact: make room, then run again with --resume"
            ) from error

    @contextmanager
    def writing(self, resume: bool = False) -> Iterator[str]:
        """Lock the folder for one run; yields a message if an unfinished last line was moved away, else "".

        Raises StoreError if another run holds the lock, or if it has results and `resume` is false.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("a+")
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be written ({error.strerror}); choose another --out"
            ) from error
        with lock:
            self._lock(lock)
            if not resume and self.results_file.exists() and self.results_file.stat().st_size:
                raise StoreError(
                    f"{self.folder} already holds results ({self._count_lines()} lines); add --resume to run "
                    "only what is missing, or choose another --out"
                )
            yield self._move_unfinished_line()

    def environments(self) -> dict[str, dict[str, Any]]:
        """Fingerprints by key; empty if none is stored."""
        try:
            environments = json.loads(self.environment_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StoreError(
                f"{self.environment_file} is not JSON ({error}); move it away and it is written anew"
            ) from error
        if not isinstance(environments, dict):
            raise StoreError(
                f"{self.environment_file} holds no fingerprints by key; move it away and it is written anew"
            )
        return environments

    def add_environment(self, key: str, environment: dict[str, Any]) -> None:
        """Store a fingerprint unless its key is stored."""
        environments = self.environments()
        if key in environments:
            return
        unfinished = self.environment_file.with_suffix(".json.part")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump({**environments, key: environment}, file, indent=2, allow_nan=False)
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
        except OSError as error:
            raise StoreError(f"{self.results_file} cannot be read: {error.strerror}") from error

    def _parsed(self, line: bytes, number: int) -> Result:
        try:
            return Result.from_json(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self.results_file}, line {number}, is no result ({error}); nothing was changed: "
                "correct or remove that line, then run again with --resume"
            ) from error

    def _move_unfinished_line(self) -> str:
        """Move an unfinished last line to results.jsonl.partial."""
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
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip()
            raise StoreError(
                f"another run{f' (process {holder})' if holder else ''} is writing to {self.folder}; "
                "wait for it to end, or choose another --out"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()

    def _count_lines(self) -> int:
        with self.results_file.open("rb") as file:
            return sum(1 for _ in file)


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """The results of a folder or of a results.jsonl; StoreError if the file is missing or holds no result."""
    file = results_file(path)
    store = Store(file.parent)
    store.results_file = file  # a copy under another name is read as well
    results = store.read()
    if not results and file.stat().st_size:
        raise StoreError(
            f"{file} holds no whole result; give the folder that `attnbench run --out` wrote (if that run ended in "
            "its first result, run it again with --resume)"
        )
    return results


def results_file(path: str | os.PathLike[str]) -> Path:
    """The results.jsonl of a folder, or the file itself."""
    file = Path(path) / "results.jsonl" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise StoreError(f"no results at {file}; give the folder that `attnbench run --out` wrote")
    return file


def read_environments(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Fingerprints by key, from environment.json beside the results; empty if there is none."""
    return Store(results_file(path).parent).environments()


def _sync_folder(folder: Path) -> None:
    # A new file's name is on the disk only when its folder is.
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
