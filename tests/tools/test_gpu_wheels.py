"""Libraries arrive whole on a machine without a network: pieces, checksums, the cut, and the interpreter."""

from __future__ import annotations

import json
import lzma
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.tools.loaded import TOOLS, tool


@pytest.fixture(scope="module", name="tool")
def gpu_wheels() -> Any:
    return tool("gpu-wheels")


def entry(kind: int, arch: int, payload: bytes) -> bytes:
    head = struct.pack("<HHIQ", kind, 0x101, 64, len(payload)) + bytes(12) + struct.pack("<I", arch)
    return head.ljust(64, b"\0") + payload


def fat_binary(*entries: bytes) -> bytes:
    whole = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(whole)) + whole


def test_only_the_code_of_one_architecture_is_kept_and_nothing_else_moves(tool: Any) -> None:
    old, new, text = entry(2, 80, b"A" * 640), entry(2, 90, b"H" * 320), entry(1, 80, b"ptx" * 40)
    before, after = b"\x7fELF code before", b"code after"
    data = bytearray(before + fat_binary(text, old, new) + b"between" + fat_binary(new, text) + after)
    length = len(data)
    kept, cleared = tool.cut_to_arch(data, 90)
    assert len(data) == length
    assert data.startswith(before)
    assert data.endswith(after)
    assert (kept, cleared) == (2 * len(new), len(old) + 2 * len(text))
    first = len(before)
    assert struct.unpack_from("<IHHQ", data, first) == (0xBA55ED50, 1, 16, len(new))
    assert bytes(data[first + 16 : first + 16 + len(new)]) == new
    assert b"A" * 10 not in data
    assert b"ptx" not in data
    assert data.find(b"between") == first + 16 + len(text) + len(old) + len(new)


def test_a_library_without_that_architecture_is_not_carried(tool: Any) -> None:
    with pytest.raises(SystemExit, match="no code for sm_90"):
        tool.cut_to_arch(bytearray(fat_binary(entry(2, 80, b"A" * 64))), 90)
    with pytest.raises(SystemExit, match="no fat binary"):
        tool.cut_to_arch(bytearray(b"\x7fELF nothing"), 90)


def test_pieces_are_small_enough_and_join_to_the_whole(tool: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.write_bytes(bytes(range(256)) * 100)
    pieces = tool.split(whole, tmp_path, "x", 10_000)
    assert [p["bytes"] for p in pieces] == [10_000, 10_000, 5_600]
    assert tool.PIECE_BYTES < 60 << 20
    tool.join(pieces, tmp_path, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == whole.read_bytes()
    (tmp_path / "x.01").write_bytes(b"0" * 10_000)
    with pytest.raises(SystemExit, match=r"x\.01 has changed"):
        tool.join(pieces, tmp_path, tmp_path / "again")
    (tmp_path / "x.01").unlink()
    with pytest.raises(SystemExit, match=r"x\.01 is missing"):
        tool.join(pieces, tmp_path, tmp_path / "again")


def wheel(folder: Path, name: str) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "WHERE = __file__\n")
        archive.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


def test_the_written_interpreter_imports_the_installed_libraries(tool: Any, tmp_path: Path) -> None:
    pieces, into = tmp_path / "pieces", tmp_path / "into"
    pieces.mkdir()
    (tmp_path / "flash_attn_3.so.xz").write_bytes(lzma.compress(b"library"))
    with tarfile.open(tmp_path / "packed.tar", "w") as tar:
        tar.add(wheel(tmp_path, "carried"), "carried-1.0-py3-none-any.whl")
        tar.add(tmp_path / "flash_attn_3.so.xz", "flash_attn_3.so.xz")
    manifest = {"xformers": tool.split(tmp_path / "packed.tar", pieces, "xformers", 2000)}
    (pieces / tool.MANIFEST).write_text(json.dumps(manifest))
    tool.install(pieces, into, sys.executable)
    assert (into / "xformers/flash_attn_3/_C.so").read_bytes() == b"library"
    program = "import carried, os; print(carried.WHERE); print(os.environ['LD_LIBRARY_PATH'])"
    done = subprocess.run(
        [into / "xformers-python", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    where, libraries = done.stdout.splitlines()[:2]
    assert where == str(into / "xformers" / "carried.py")
    assert libraries.startswith(str(into / "xformers/nvidia/cuda_runtime/lib"))


def test_the_tool_names_no_host(tool: Any) -> None:
    text = (TOOLS / "gpu-wheels").read_text()
    assert "://" not in text
    assert "--index-url" not in text
