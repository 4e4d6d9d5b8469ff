"""Pictures and video: what is read, drawn and written by `cvtrain predict`."""
