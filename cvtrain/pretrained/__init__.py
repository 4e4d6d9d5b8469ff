"""Weights to start from: found by name, fetched, verified, read, and fitted to other classes."""

from cvtrain.pretrained.fit import fit
from cvtrain.pretrained.read import Pretrained, read_pretrained

__all__ = ["Pretrained", "fit", "read_pretrained"]
