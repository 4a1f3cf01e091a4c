"""TSV-C: one file that holds every fine-tune of a base as few singular triplets, and gives any of them back."""

from __future__ import annotations

from .coding import ArchiveDtype
from .compressing import add, compress, rebuild, remove_task
from .reading import Archive, open_archive

__all__ = ["Archive", "ArchiveDtype", "add", "compress", "open_archive", "rebuild", "remove_task"]
