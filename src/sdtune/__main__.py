"""`python -m sdtune` is the command line."""

from sdtune.cli import main

if __name__ == "__main__":
    main()
