"""cvtrain: train the classic computer-vision networks from one command."""

__version__ = "0.1.0"
