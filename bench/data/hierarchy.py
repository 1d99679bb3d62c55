"""Parent and child concepts (bird: eagle, owl, …), shipped with the project (`wordnet.json`; its licence is in `NOTICE.md`).

How `wordnet.json` was made, from the nouns of WordNet 3.0 (Debian package `wordnet-base` 1:3.0-37):

- the parents are synsets chosen by hand, because the first sense of a word is often not the one that is meant;
- candidates are the lemmas among their hyponyms, at any depth, that are in `words.txt` and one token of SmolLM2 with a
  leading space. The first noun sense in WordNet's order has to lie under the parent, so that most wrong senses fall away;
- `children`: at most 40 of them, chosen by hand. `later_sense` names the ones taken although WordNet counts another sense
  first (oak: the wood, then the tree); `left_out` names the candidates that were not taken (rare or wrong in everyday
  use, a second form of the same word, or beyond 40);
- `also`: words that are children of some other parent and hold for this one too, or might: any noun sense lies under it,
  or common knowledge puts them there (hurricane: weather). They are neither examples nor counter-examples.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources

from bench.store import digest

# Each may be followed directly by a singular or a mass noun with a leading space. None names a concept of the file.
BEGINNINGS = (
    "Yesterday we talked at great length about the",
    "She could not stop thinking about that",
    "Nobody else had ever said anything to me about the",
    "Before we go on, let me add something about this",
    "The second example in the list was the",
    "He wrote down everything that he knew about the",
    "Most of them know at least something about the",
    "In the end it all came down to the",
    "My friends told me that they wanted some",
    "At first I thought that it was just another",
    "We looked everywhere, but there was no sign of any",
    "You should look more closely at this",
    "I had never before paid much attention to the",
    "When we came back later, there was another",
    "If you ask me, there is nothing quite like the",
    "What they really needed, more than anything else, was some",
    "Nothing that I have read so far explains the",
    "Far too little has been said so far about the",
    "Sooner or later everyone will have heard of this",
    "The rest of us kept wondering about that",
)


@dataclass(frozen=True)
class Parent:
    """A concept and words that fall under it.

    Args:
        name: The concept, in words.
        offset: Its noun synset in WordNet 3.0.
        children: Words that fall under it: lower case, sorted, none equal to the name.
        also: Children of other parents that fall, or may fall, under this one too; never count them as negatives.
    """

    name: str
    offset: int
    children: tuple[str, ...]
    also: tuple[str, ...]


@cache
def parents() -> tuple[Parent, ...]:
    """All parents, sorted by name. A word may be a child of several (dog: animal, mammal)."""
    text = resources.files("bench.data").joinpath("wordnet.json").read_text(encoding="utf8")
    return tuple(Parent(p["name"], p["offset"], tuple(p["children"]), tuple(p["also"])) for p in json.loads(text)["parents"])


@cache
def hierarchy_sha256() -> str:
    """Identity of the concepts and of the sentence beginnings."""
    return digest([[asdict(parent) for parent in parents()], BEGINNINGS])
