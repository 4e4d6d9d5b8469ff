"""A network again: from a run, a checkpoint or a config; and from any picture to its input."""
