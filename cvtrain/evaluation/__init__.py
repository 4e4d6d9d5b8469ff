"""What `cvtrain eval` is made of: runs measured again, together, against each other."""
