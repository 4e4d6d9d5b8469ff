"""Data sources (one file each), the typed batches they give and the loaders that count them out."""
