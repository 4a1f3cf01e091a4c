"""``python -m tsvlab`` is ``tsv lab``."""

from .cli import lab

lab()
