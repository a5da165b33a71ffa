"""Guess the next tokens of a text from what stands in it already: prompt lookup.

Answers repeat what was asked and what they have said: names, quoted words, lines of code. Where the last tokens have
been there before, those that followed then are guessed to follow again. A model reads some tokens at once in little
more time than one, as its weights have to come from memory either way, and tells from its own logits how many of the
guesses are what it would have written; so guesses change how soon a text is there and, but for the rounding of sums,
not the text (Leviathan et al. 2023, arXiv:2211.17192, with the text itself as the drafting model: Saxena 2023, "Prompt
Lookup Decoding"; Yang et al. 2023, arXiv:2304.04487).
"""

from __future__ import annotations

from collections.abc import Iterable

SIZES = (3, 2)  # of the last tokens that must have been there before; the longer match is trusted first
FIRST, MOST = 2, 8  # guesses at once: at first, and after many that were right


class Lookup:
    """The tokens of one text as it grows, and how many guesses its last ones were worth."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # by some tokens in a row: the place behind them, the last time
        self._count = FIRST
        self.add(tokens)

    def add(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            place = len(self._tokens)
            for size in SIZES:
                if place >= size:
                    self._next[tuple(self._tokens[-size:])] = place
            self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Return up to `most` tokens that may follow, none where the last ones are new.

        Where they were there before just now, what lies between is guessed to go on and on.
        """
        count = min(most, self._count)
        if count < 1:
            return []
        found = (self._next.get(tuple(self._tokens[-size:])) for size in SIZES)
        place = next((each for each in found if each is not None), None)
        if place is None:
            return []
        again = self._tokens[place:]
        return [again[number % len(again)] for number in range(count)]

    def learn(self, guessed: int, right: int) -> None:
        """Guess twice as many next time if all were right, else as many as were, but one at least."""
        if guessed:
            self._count = min(MOST, 2 * guessed) if right == guessed else max(1, right)
