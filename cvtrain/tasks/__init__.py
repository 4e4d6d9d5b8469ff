"""Tasks: what a batch means. Losses as (sum, count), predictions, evaluators."""
