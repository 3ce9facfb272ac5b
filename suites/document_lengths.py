"""The lengths of real documents and sentences: those of Python's own documentation.

Lengths are in words (split at white space) of the topics of `pydoc_data.topics`. Run it to print the masks of
workloads.toml:

    python -m attnbench_suites.document_lengths packed 1024        documents laid end to end, as for fine-tuning
    python -m attnbench_suites.document_lengths cut 512 32         a batch of 32, each document cut at 512
    python -m attnbench_suites.document_lengths sentences 48 64    a batch of 64 sentences of 33 to 48 words
"""

from __future__ import annotations

import random
import re
import sys
from pydoc_data.topics import topics

BUCKET = 16  # translation batches sentences of similar length: at most this many words apart


def document_lengths() -> list[int]:
    """The number of words of every topic, shuffled by a fixed seed as documents are before packing."""
    names = sorted(topics)
    random.Random(0).shuffle(names)
    return [len(topics[name].split()) for name in names]


def packed_lengths(tokens: int) -> list[int]:
    """Greedy concatenation: the lengths of the documents that fill `tokens`, the last one cut to fit.

    Raises ValueError if all documents together are shorter.
    """
    lengths: list[int] = []
    for length in document_lengths():
        if not (room := tokens - sum(lengths)):
            break
        lengths.append(min(length, room))
    if sum(lengths) < tokens:
        raise ValueError(f"all documents together have {sum(lengths)} words, not {tokens}; pack fewer")
    return lengths


def cut_lengths(tokens: int, rows: int) -> list[int]:
    """The lengths of a batch of documents that is padded to `tokens`; longer documents are cut."""
    return [min(length, tokens) for length in document_lengths()[:rows]]


def sentence_lengths(longest: int, rows: int) -> list[int]:
    """The first sentences of the corpus in the bucket that ends at `longest` words.

    A sentence ends with . ! or ? before white space, or with its paragraph.
    """
    paragraphs = [text for name in sorted(topics) for text in re.split(r"\n\s*\n", topics[name])]
    sentences = [text for paragraph in paragraphs for text in re.split(r"(?<=[.!?])\s+", paragraph)]
    lengths = [len(sentence.split()) for sentence in sentences]
    return [length for length in lengths if longest - BUCKET < length <= longest][:rows]


def mask_text(command: str, *numbers: int) -> str:
    """The mask of a command line of this file; KeyError for an unknown command."""
    kind, lengths = {
        "packed": ("documents", packed_lengths),
        "cut": ("padding", cut_lengths),
        "sentences": ("padding", sentence_lengths),
    }[command]
    return f"{kind}({', '.join(map(str, lengths(*numbers)))})"  # type: ignore[operator]


if __name__ == "__main__":
    mask = mask_text(sys.argv[1], *map(int, sys.argv[2:]))
    sys.stdout.write(f"Python {sys.version.split()[0]}: {mask}\n")
