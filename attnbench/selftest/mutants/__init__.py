"""A readable tiled attention, right variants of it, and the catalogue of mutants: one planted bug each."""

from attnbench.selftest.mutants import (
    autograd,
    backward,
    cheats,
    invocation,
    kept,
    layout,
    masks,
    not_given,
    reported,
    score_changes,
    softmax,
    split,
    unusual,
)
from attnbench.selftest.mutants.catalogue import MUTANTS, Mutant
from attnbench.selftest.mutants.tiled import Tiled, TiledBackend, Tiling, variant

__all__ = ["MUTANTS", "Mutant", "Tiled", "TiledBackend", "Tiling", "variant"]

# Importing a module enters its mutants in the catalogue.
MODULES = (
    masks,
    score_changes,
    softmax,
    layout,
    split,
    backward,
    cheats,
    kept,
    not_given,
    autograd,
    reported,
    unusual,
    invocation,
)
