"""Real data that ships with Python: pydoc's texts, the standard library's sources, scikit-learn's digits."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PAD, START = 0, 1  # no text holds these two characters
VOCABULARY = 128
MODULES = (
    *("argparse", "ast", "calendar", "cmd", "configparser", "copy", "csv", "difflib", "doctest", "fractions"),
    *("ftplib", "gettext", "heapq", "imaplib", "inspect", "locale", "mailbox", "optparse", "pdb", "pickle"),
    *("shutil", "smtplib", "statistics", "string", "tarfile", "textwrap", "tokenize", "trace", "zipfile"),
)


@cache
def prose() -> str:
    """The reference texts that `help()` shows, as ASCII."""
    from pydoc_data.topics import topics

    return _ascii("\n".join(topics[name] for name in sorted(topics)))


@cache
def sources() -> tuple[str, ...]:
    """The sources of some modules of the standard library, as ASCII; missing ones are skipped."""
    sources = []
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            sources.append(_ascii(Path(spec.origin).read_text(encoding="utf-8", errors="replace")))
    return tuple(sources)


def _ascii(text: str) -> str:
    return "".join(char if " " <= char < "\x7f" or char == "\n" else "?" for char in text)


@cache
def summaries() -> tuple[tuple[str, str], ...]:
    """(first line of the docstring, name) of functions of the standard library."""
    pairs = []
    for source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                first = (ast.get_docstring(node) or "").split("\n")[0]
                if 8 <= len(first) <= 60 and not node.name.startswith("__"):
                    pairs.append((first, node.name[:20]))
    return tuple(dict.fromkeys(pairs))


@cache
def lines() -> tuple[tuple[str, int], ...]:
    """(line, kind): 0 prose, 1 code, 2 a comment without its sign; as many of each kind as of the rarest."""
    kinds: dict[int, list[str]] = {0: prose().split("\n"), 1: [], 2: []}
    for line in "\n".join(sources()).split("\n"):
        text = line.strip()
        if text.startswith("#"):
            kinds[2].append(text.lstrip("# "))
        elif any(sign in text for sign in "=():"):
            kinds[1].append(text)
    kept = {
        kind: [t for t in dict.fromkeys(x.strip() for x in texts) if 12 <= len(t) <= 48]
        for kind, texts in kinds.items()
    }
    fewest = min(len(texts) for texts in kept.values())
    return tuple((text, kind) for kind, texts in kept.items() for text in texts[:fewest])


def encoded(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Character codes [B, length], padded on the right, and the lengths [B]."""
    tokens = torch.full((len(texts), length), PAD)
    for row, text in enumerate(texts):
        codes = [ord(char) for char in text[:length]]
        tokens[row, : len(codes)] = torch.tensor(codes)
    return tokens, torch.tensor([min(len(text), length) for text in texts])


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits as 16 patches of 2 x 2, [1797, 16, 4] in 0 to 1, and their values; needs scikit-learn."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images / 16.0)  # [N, 8, 8]
    patches = images.unflatten(2, (4, 2)).unflatten(1, (4, 2)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    return patches, torch.from_numpy(loaded.target).long()
