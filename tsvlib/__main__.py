"""``python -m tsvlib`` is the command ``tsv``."""

from .cli import main

if __name__ == "__main__":
    main()
