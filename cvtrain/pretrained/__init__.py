"""Weights to start from: found by name, fetched, verified, read, and fitted to other classes."""

from cvtrain.pretrained.body import Origin, fit_body, origin_of
from cvtrain.pretrained.fit import fit
from cvtrain.pretrained.read import Pretrained, read_pretrained

__all__ = ["Origin", "Pretrained", "fit", "fit_body", "origin_of", "read_pretrained"]
