"""What follows `cvtrain`: one short file each."""
