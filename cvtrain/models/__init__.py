"""The networks, one file per paper, reached by the `_target_` of a YAML in configs/model."""
