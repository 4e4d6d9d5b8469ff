"""`python -m cvtrain` is the `cvtrain` command."""

from cvtrain.cli import main

if __name__ == "__main__":
    main()
