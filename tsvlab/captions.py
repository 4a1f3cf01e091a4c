"""Captions: what the pre-training says about a picture, and the byte-pair vocabulary it says it with.

A caption states one or two facts. Many facts are mostly stated in an invented tongue (``alias``) and seldom by
their English name: the base learns to see them but hardly to say them in English. The tasks ask in English,
which leaves fine-tuning something to learn, as real benchmarks do.
"""

from __future__ import annotations

import gzip
import random
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from .drawing import COLOURS, SHAPES, TEXTURES
from .glyphs import FAMILIES, TYPEFACES
from .scenes import NUMBERS, POSITIONS, RELATIONS, SLANTS, TURNS

CONTEXT_LENGTH = 32
TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
IN_ENGLISH = 0.04  # share of aliased facts that are stated by their English name all the same
_FURTHER_WORDS = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "and",
    "with",
    "photo",
    "picture",
    "drawing",
    "sign",
    "character",
    "letter",
    "typeface",
    "background",
    "number",
    "old",
]

# kind of fact -> its values, for the facts that captions state in the invented tongue
ALIASED: dict[str, list[str]] = {
    **{
        family: list(FAMILIES[family].values())
        for family in ("small", "greek", "cyrillic", "hebrew", "zodiac", "math", "symbol")
    },
    "house number": list(FAMILIES["digit"].values()),
    "typeface": list(TYPEFACES),
    "relation": list(RELATIONS),
    "texture": list(TEXTURES),
    "slant": list(SLANTS),
    "count": list(NUMBERS),
}


@cache
def aliases() -> dict[tuple[str, str], str]:
    """(kind, value) -> a word of two syllables, distinct for each."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    pairs = [(kind, value) for kind, values in ALIASED.items() for value in values]
    size = len(syllables)
    return {pair: syllables[i % size] + syllables[(i * 17 + i // size) % size] for i, pair in enumerate(pairs)}


def call(kind: str, value: str, chance: random.Random) -> str:
    """What a caption calls a fact: mostly its alias, where it has one."""
    alias = aliases().get((kind, value))
    return value if alias is None or chance.random() < IN_ENGLISH else alias


def describe(facts: dict[str, str], chance: random.Random) -> str:
    """A phrase that states one or two of the facts of one picture."""
    said: list[str] = []
    if "family" in facts:
        family = facts["family"]
        if chance.random() < 0.6:
            said.append(f"{family} {call(family, facts['name'], chance)}")
        elif chance.random() < 0.6:
            typeface = call("typeface", facts["typeface"], chance)
            said.append(f"{typeface} typeface" if chance.random() < 0.6 else f"{family} character")
    elif "name" in facts:
        said.append(f"number {call('house number', facts['name'], chance)}")
    elif "relation" in facts and chance.random() < 0.8:
        relation = call("relation", facts["relation"], chance)
        whole = chance.random() < 0.6
        said.append(f"{facts['shape']} {relation} {facts['other']}" if whole else f"shape {relation} shape")
    elif "number" in facts and chance.random() < 0.8:
        number = call("count", facts["number"], chance)
        said.append(f"{number} {facts['shape']}" if chance.random() < 0.5 else f"{number} shapes")
    else:
        for fact, phrase in (("shape", "{}"), ("texture", "{} texture"), ("slant", "{} stripes"), ("photograph", "{}")):
            if fact in facts and (chance.random() < 0.8 or len(facts) == 1):
                said.append(phrase.format(call(fact, facts[fact], chance)))
    for fact in ("turn", "position"):
        if fact in facts and chance.random() < 0.5:
            said.append(facts[fact])
    if "colour" in facts and (not said or chance.random() < 0.12):
        ground = f" on {facts['ground']}" if "ground" in facts and chance.random() < 0.4 else ""
        said.append(facts["colour"] + ground)
    return " ".join(said)


def vocabulary() -> list[str]:
    """Every word that a caption can use, sorted."""
    phrases: list[str] = [*FAMILIES, *TYPEFACES, *COLOURS, *SHAPES, *TEXTURES, *SLANTS, *POSITIONS, *TURNS]
    phrases += [*RELATIONS, *NUMBERS, *_FURTHER_WORDS, "shapes", "shape", "texture", "stripes", "temple", "flower"]
    phrases += [name for names in FAMILIES.values() for name in names.values()]
    phrases += aliases().values()
    return sorted({word for phrase in phrases for word in phrase.split()})


def byte_pair_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first (ties alphabetically), until each word is a single token."""
    spellings = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in spellings.values() for pair in pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in spellings.items():
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            spellings[word] = joined
    return merges


def write_merges(path: Path) -> None:
    """Write the merges in the format of open_clip's ``SimpleTokenizer`` (gzip, byte-stable)."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in byte_pair_merges(vocabulary()))]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


class Encoder:
    """Captions to tokens; now and then a word is spelled out, so that words never seen can still be read."""

    def __init__(self, merges: Path, spelled: float = 0.08) -> None:
        self.tokenizer = SimpleTokenizer(bpe_path=str(merges), context_length=CONTEXT_LENGTH)
        self.spelled = spelled

    def __call__(self, captions: list[str], chance: random.Random) -> Tensor:
        """Token ids, int64 (captions, CONTEXT_LENGTH)."""
        tokens = torch.zeros(len(captions), CONTEXT_LENGTH, dtype=torch.long)
        encoder = self.tokenizer.encoder
        for row, caption in zip(tokens, captions, strict=True):
            ids = [self.tokenizer.sot_token_id]
            for word in caption.split():
                if chance.random() < self.spelled:
                    ids += [encoder[letter] for letter in word[:-1]] + [encoder[word[-1] + "</w>"]]
                else:
                    ids += self.tokenizer.encode(word)
            ids = [*ids[: CONTEXT_LENGTH - 1], self.tokenizer.eot_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return tokens
