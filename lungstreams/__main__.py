"""``python -m lungstreams``."""

from lungstreams.cli import main

if __name__ == "__main__":
    main()
