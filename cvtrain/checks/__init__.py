"""What a data set is like, looked at before one trains on it: pieces of `cvtrain check`."""
