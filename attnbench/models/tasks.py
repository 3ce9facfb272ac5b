"""The four training tasks: the model of each, its batches in order, its loss and its figures."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.models import texts
from attnbench.models.transformer import Classifier, Decoder, EncoderDecoder, Shape
from attnbench.problem import Full, Padding

Batch = tuple[Tensor, ...]
HELD_OUT_ROWS = 64
HELD_OUT_STEP = 1 << 20  # its batch is held out: no training is that long


class Task(ABC):
    """One task. Everything is drawn from (task, seed, step), whatever the backend."""

    name: ClassVar[str]
    batch_rows: ClassVar[int] = 8

    @abstractmethod
    def model(self, backend: Any) -> nn.Module:
        """A model with parameters from torch's seed."""

    @abstractmethod
    def draw(self, rows: int, generator: torch.Generator, held_out: bool) -> Batch:
        """A batch from the training data, or from the held-out data."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""

    def batch(self, seed: int, step: int) -> Batch:
        """The batch of a training step."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        return self.draw(self.batch_rows, generator, held_out=False)

    def figures(self, model: nn.Module, seed: int) -> dict[str, float]:
        """The figures of the trained model on held-out data."""
        batch = self.draw(
            HELD_OUT_ROWS, torch.Generator().manual_seed(1_000_003 * seed + HELD_OUT_STEP), held_out=True
        )
        with torch.no_grad():
            return {"held_out_loss": float(self.loss(model, batch))} | self.scores(model, batch)

    def scores(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Figures such as accuracy, by name."""
        return {}

    def missing(self) -> str:
        """Why this task cannot run here, or an empty text."""
        return ""


def _picked(count: int, rows: int, generator: torch.Generator, held_out: bool) -> list[int]:
    """Indices of `rows` of `count` items; every tenth is held out."""
    chosen = torch.randint(0, count // 10, (rows,), generator=generator) * 10
    if not held_out:
        chosen = chosen + 1 + torch.randint(0, 9, (rows,), generator=generator)
    return chosen.clamp_max(count - 1).tolist()


class Language(Task):
    """The next character of the reference texts: causal self-attention."""

    name = "language"
    length = 48

    def model(self, backend: Any) -> nn.Module:
        return Decoder(Shape(texts.VOCABULARY, kv_heads=2), backend)

    def draw(self, rows: int, generator: torch.Generator, held_out: bool) -> Batch:
        text = texts.prose()
        places = _picked(len(text) // self.length - 1, rows, generator, held_out)
        windows = [text[n * self.length : (n + 1) * self.length + 1] for n in places]
        tokens, _ = texts.encoded(windows, self.length + 1)
        return tokens[:, :-1], tokens[:, 1:]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens, following = batch
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


class Translation(Task):
    """The name of a function from the first line of its docstring: encoder, decoder, cross-attention, padding."""

    name = "translation"

    def model(self, backend: Any) -> nn.Module:
        return EncoderDecoder(Shape(texts.VOCABULARY, layers=1, pre_norm=False), backend)

    def draw(self, rows: int, generator: torch.Generator, held_out: bool) -> Batch:
        pairs = texts.summaries()
        chosen = [pairs[n] for n in _picked(len(pairs), rows, generator, held_out)]
        source, lengths = texts.encoded([text for text, _ in chosen], 48)
        target, _ = texts.encoded([chr(texts.START) + name for _, name in chosen], 17)
        return source, lengths, target[:, :-1], target[:, 1:]

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        source, lengths, before, _ = batch
        return model(source, before, Padding(lengths))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        after = batch[3]
        return F.cross_entropy(
            self._logits(model, batch).flatten(0, 1), after.flatten(), ignore_index=texts.PAD
        )

    def scores(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        right = self._logits(model, batch).argmax(dim=-1) == batch[3]
        return {"accuracy": float(right[batch[3] != texts.PAD].double().mean())}


class Classification(Task):
    """Prose, code or comment: an encoder over padded lines."""

    name = "classification"

    def model(self, backend: Any) -> nn.Module:
        return Classifier(Shape(texts.VOCABULARY), 3, backend)

    def draw(self, rows: int, generator: torch.Generator, held_out: bool) -> Batch:
        lines = texts.lines()
        chosen = [lines[n] for n in _picked(len(lines), rows, generator, held_out)]
        tokens, lengths = texts.encoded([text for text, _ in chosen], 48)
        return tokens, lengths, torch.tensor([kind for _, kind in chosen])

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens, lengths, _ = batch
        real = torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]
        return model(tokens, Padding(lengths), real)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self._logits(model, batch), batch[-1])

    def scores(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        return classification_figures(self._logits(model, batch), batch[-1])


class Images(Classification):
    """Handwritten digits in 16 patches: full attention. Needs scikit-learn's data."""

    name = "images"

    def missing(self) -> str:
        have = importlib.util.find_spec("sklearn") is not None
        return "" if have else "its digits come with scikit-learn: pip install 'attnbench[models]'"

    def model(self, backend: Any) -> nn.Module:
        return Classifier(Shape(1), 10, backend, patch=4)

    def draw(self, rows: int, generator: torch.Generator, held_out: bool) -> Batch:
        patches, kinds = _digits()
        chosen = _picked(len(kinds), rows, generator, held_out)
        return patches[chosen], kinds[chosen]

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        dtype = next(model.parameters()).dtype
        return model(batch[0].to(dtype), Full())


@cache
def _digits() -> tuple[Tensor, Tensor]:
    return texts.digits()


def classification_figures(logits: Tensor, kinds: Tensor) -> dict[str, float]:
    """Accuracy, and with scikit-learn the mean F1 and the mean area under the ROC."""
    figures = {"accuracy": float((logits.argmax(dim=-1) == kinds).double().mean())}
    if importlib.util.find_spec("sklearn") is None:
        return figures
    from sklearn.metrics import f1_score, roc_auc_score

    p = torch.softmax(logits.double(), dim=-1).cpu().numpy()
    truth = kinds.cpu().numpy()
    figures["f1"] = float(f1_score(truth, p.argmax(axis=1), average="macro", zero_division=0.0))
    if len(set(truth.tolist())) == p.shape[1]:
        figures["roc_auc"] = float(roc_auc_score(truth, p, multi_class="ovr"))
    return figures


TASKS: tuple[Task, ...] = (Language(), Translation(), Classification(), Images())
