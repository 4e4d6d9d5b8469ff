"""The loop and what it stands on. Nothing here knows what a batch means."""
