"""What a text column without steps becomes, told from its distinct values and from whether the model learns tables.

Chosen by `benchmarks/tables/choose.py`, on rows that the benchmark over these tables does not test on; for models with tables by
how wide a table is.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.core.load import load
from tidemill.features.config import Step
from tidemill.features.statistics import Tally
from tidemill.features.vocabulary import are_numbers

# Distinct values up to which a column becomes one-hot features.
MAX_ONE_HOT = 16

# The same where the model learns tables: beyond, a row of a table is no wider than as many one-hot features.
MAX_ONE_HOT_BESIDE_TABLES = 4

# Free text: more than this share of the rows differ, and a value has as many words on average.
FREE_TEXT_SHARE = 0.5
FREE_TEXT_WORDS = 3.0

# Values of which the words are counted.
LOOKED_AT = 1_000

# From here on (CJK radicals) a character counts as a word: such scripts part words by no space.
FIRST_WORDLIKE = "\u2e80"


def default_of_text(seen: Tally, rows: int, texts: Sequence[str], *, learns: bool, embeds: bool = False) -> Step:
    """The step that a text column gets.

    Args:
        rows: Rows that are not null.
        texts: Some values.
        learns: Whether it may be an operator that learns from the target.
        embeds: Whether the model learns a table for codes of categories: their numbers then mean nothing to it.
    """
    many = seen.error > 0  # some were given up, for there were too many
    if len(seen) <= (MAX_ONE_HOT_BESIDE_TABLES if embeds else MAX_ONE_HOT) and not many:
        return Step("one_hot", load("operator", "one_hot")())
    if learns and (many or len(seen) > FREE_TEXT_SHARE * rows) and mean_words(texts) >= FREE_TEXT_WORDS:
        return Step("ngram_target", load("operator", "ngram_target")())
    if embeds:
        return Step("embedding", load("operator", "embedding")())
    return Step("vocabulary", load("operator", "vocabulary")(order="value" if are_numbers(texts) else "frequency"))


def mean_words(texts: Sequence[str]) -> float:
    """Words of a text on average: what white space parts, or each character of scripts without spaces.

    Example:
        >>> mean_words(["what a bore", "never", "\u4e2d\u6587"])
        2.0
    """
    words = [max(len(text.split()), sum(character >= FIRST_WORDLIKE for character in text)) for text in texts]
    return sum(words) / max(len(words), 1)
