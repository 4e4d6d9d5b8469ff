"""A package of a user's own: another kind of task, trained without touching cvtrain."""
