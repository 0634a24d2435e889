"""The lines of the instruction world: their texts, numbers and tokens.

A *template* is a sentence with slots, and every way to fill its slots is one *line*. Lines are numbered
(template after template, the last slot varying fastest), so that text can be drawn, kept and looked up as
arrays of numbers: `Grammar.tokens_LW[line]` is the line's row of token ids, `Grammar.text(line)` its text.

    lines   0 ..            instructions, "Can you tell the CHARACTER that MESSAGE?"
            num_pairs ..    meetings,     "You see the CHARACTER."; the line knows which message is due,
                                          its text does not tell
            ..              lures, which mention a character or a message, or look like one of the above
            ..              chatter about other things

A token is a lower-case word, "'s" or a punctuation mark; its id is its place in `VOCABULARY`, which only
ever grows at the end. Id 0 is padding.

Shape letters:
    L  lines
    W  token positions of a line (`LINE_LENGTH`)
    T  templates
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LINE_LENGTH = 16
"""tokens of a line, padding included"""

CHARACTERS = (
    "baker", "smith", "miller", "teacher", "doctor", "sailor", "farmer", "painter",
    "tailor", "gardener", "hunter", "fisher", "singer", "weaver", "potter", "judge",
)  # fmt: skip
"""a grammar with n characters uses the first n"""

MESSAGES = (
    "the bridge is closed",
    "the mill is on fire",
    "the market opens at noon",
    "the king is coming",
    "the well is dry",
    "the wolves are back",
    "the bread is ready",
    "the road is flooded",
    "the ship has sailed",
    "the guests are late",
    "the cow is sick",
    "the war is over",
    "the ring was found",
    "the harvest was good",
    "the gate is open",
    "the tax is due",
)
"""a grammar with n messages uses the first n; action k says message k, counted from 1"""

FILLERS: dict[str, tuple[str, ...]] = {
    "character": CHARACTERS,
    "message": MESSAGES,
    "person": (
        "neighbor", "uncle", "aunt", "cousin", "friend", "sister",
        "brother", "grandmother", "landlord", "nephew", "niece", "grandfather",
    ),
    "animal": (
        "dog", "cat", "horse", "goat", "hen", "goose", "pig", "crow", "fox", "raven", "hare", "mouse",
    ),
    "thing": (
        "lamp", "kettle", "basket", "cloak", "hammer", "chair", "barrel", "lantern",
        "rope", "boot", "hat", "spoon", "mirror", "clock", "ladder", "blanket",
    ),
    "place": (
        "bridge", "mill", "market", "well", "road", "gate",
        "inn", "church", "river", "forest", "harbor", "tower",
    ),
    "quality": (
        "new", "small", "heavy", "broken", "blue", "strange",
        "cheap", "dirty", "lovely", "famous", "red", "worn",
    ),
    "food": ("soup", "bread", "cheese", "honey", "pie", "cabbage", "beer", "tea", "ham", "fish"),
    "time": (
        "this morning", "last night", "yesterday", "at noon", "before dawn",
        "on sunday", "last winter", "after dinner", "long ago", "in spring",
    ),
}  # fmt: skip
"""the fillers of each slot"""

INSTRUCTION = "Can you tell the {character} that {message}?"
MEETING = "You see the {character}."
REMINDING_MEETING = "You see the {character} and remember that {message}."
"""the meeting of the fully observable world"""

LURES = (
    # The words of an instruction, in another order or said of others.
    "Can the {character} tell you that {message}?",
    "Can they tell the {character} that {message}?",
    "Can you tell the {character}'s {person} that {message}?",
    "Can you tell the {character} to wait at the {place}?",
    "Can you tell me where the {character} is?",
    "Can you see the {character}?",
    "Can you believe that {message}?",
    "Did anyone tell the {character} that {message}?",
    "Who told the {character} that {message}?",
    "You did not tell the {character} that {message}.",
    "My {person} will tell the {character} that {message}.",
    "The {character} says that {message}.",
    "The {character} and my {person} think that {message}.",
    "Is it true that {message}, the {character} asks.",
    "Nobody can tell if {message}.",
    # Almost a meeting.
    "You see the {character}'s {animal}.",
    "You see the {character}'s {thing}.",
    "You see the {place} where the {character} lives.",
    "You see that {message}.",
    "You saw the {character} {time}.",
    "You hear the {character}.",
    "The {character} sees you near the {place}.",
)
"""lines that mention a character or a message and ask for nothing"""

CHATTER = (
    "You see the {animal}.",
    "You see a {quality} {animal} near the {place}.",
    "You hear a {animal} behind the {place}.",
    "You walk past the {quality} {place}.",
    "Can you smell the {food}?",
    "Can you lend me the {quality} {thing}?",
    "Can you feed the {animal} near the {place}?",
    "Can you tell your {person} that the {thing} is {quality}?",
    "Tell your {person} that the {food} was good.",
    "My {person} says that the {thing} is {quality}.",
    "My {person} bought a {quality} {thing}.",
    "My {person} dreams of a {quality} {place}.",
    "I saw a {animal} near the {place} {time}.",
    "I like the {quality} {thing} of my {person}.",
    "We found a {thing} at the {place} {time}.",
    "Your {person} lost a {thing} near the {place}.",
    "Did your {person} sell the {quality} {animal}?",
    "Who left the {thing} at the {place} {time}?",
    "Do you like {food} with {food}?",
    "Please bring some {food} and the {thing}.",
    "It rained at the {place} {time}.",
    "Nobody goes to the {place} {time}.",
    "They sing about the {quality} {animal}.",
    "The {thing} near the {place} is {quality}.",
    "The {animal} sleeps under the {thing}.",
    "The {animal} chased the {animal} around the {place}.",
    "The way from the {place} to the {place} is long.",
    "A {thing} costs more than a {thing}.",
    "The {food} smells of {food}.",
)
"""lines about other things"""

_WORDS = """
    . , ? 's baker smith miller teacher doctor sailor farmer painter tailor gardener hunter fisher singer
    weaver potter judge the bridge is closed mill on fire market opens at noon king coming well dry wolves
    are back bread ready road flooded ship has sailed guests late cow sick war over ring was found harvest
    good gate open tax due can you tell that see and remember they to wait me where believe did anyone who
    told not my will says think it true asks nobody if lives saw hear sees near a behind walk past smell
    lend feed your bought dreams of i like we lost sell left do with please bring some rained goes sing
    about sleeps under chased around way from long costs more than smells neighbor uncle aunt cousin friend
    sister brother grandmother landlord nephew niece grandfather dog cat horse goat hen goose pig crow fox
    raven hare mouse lamp kettle basket cloak hammer chair barrel lantern rope boot hat spoon mirror clock
    ladder blanket inn church river forest harbor tower new small heavy broken blue strange cheap dirty
    lovely famous red worn soup cheese honey pie cabbage beer tea ham fish this morning last night yesterday
    before dawn sunday winter after dinner ago in spring
"""

VOCABULARY: tuple[str, ...] = ("", *_WORDS.split())
"""every token, by id; only ever add at the end, or what an agent has learned reads another text"""

TOKEN_IDS = {token: index for index, token in enumerate(VOCABULARY)}

_TOKEN = re.compile(r"[a-z]+|'s|[.,?]")
_SLOT = re.compile(r"{(\w+)}")


class _Template(NamedTuple):
    """A sentence with slots."""

    pattern: str
    slots: tuple[str, ...]
    """names of the slots in their order; those that the pattern lacks tell lines apart, not texts"""


def tokenize(text: str) -> list[str]:
    """The tokens of a text.

    Raises:
        ValueError: the text has a character that belongs to no token.
    """
    lower = text.lower()
    rest = _TOKEN.sub("", lower).strip(" ")
    if rest:
        raise ValueError(f"a text has words, 's, periods, commas and question marks, got {rest[0]!r}")
    return _TOKEN.findall(lower)


def encode(text: str) -> list[int]:
    """The token ids of a text, without padding.

    Raises:
        ValueError: a word is not in `VOCABULARY`.
    """
    ids = []
    for token in tokenize(text):
        if token not in TOKEN_IDS:
            raise ValueError(f"{token!r} is not in the vocabulary of {len(VOCABULARY)} tokens")
        ids.append(TOKEN_IDS[token])
    return ids


def decode(ids: Sequence[int] | NDArray[np.integer]) -> str:
    """The text of a row of token ids; padding is left out."""
    words = " ".join(VOCABULARY[index] for index in ids if index)
    text = re.sub(r" ([.,?]|'s)", r"\1", words)
    return text[:1].upper() + text[1:]


class Grammar:
    """All lines that can occur, given the numbers of characters and messages; get one from `grammar`."""

    def __init__(self, num_characters: int, num_messages: int, observable: bool = False) -> None:
        """Number the lines.

        Args:
            num_characters: at most `len(CHARACTERS)`.
            num_messages: at most `len(MESSAGES)`.
            observable: meetings tell which message is due.
        """
        self.num_characters = num_characters
        self.num_messages = num_messages
        self.observable = observable
        self.fillers = FILLERS | {
            "character": CHARACTERS[:num_characters],
            "message": MESSAGES[:num_messages],
        }
        meeting = REMINDING_MEETING if observable else MEETING
        pair = ("character", "message")
        self._templates = [
            _Template(INSTRUCTION, pair),
            _Template(meeting, pair),
            *(_Template(pattern, tuple(_SLOT.findall(pattern))) for pattern in LURES + CHATTER),
        ]
        self._shapes = [
            tuple(len(self.fillers[slot]) for slot in template.slots) for template in self._templates
        ]
        self._size_T = np.array([np.prod(shape) for shape in self._shapes])
        self._first_T = self._size_T.cumsum() - self._size_T
        self.size = int(self._size_T.sum())  # lines in all
        assert self.size <= np.iinfo(np.uint16).max

    def __reduce__(self) -> tuple[object, ...]:
        """Tables are not worth pickling."""
        return grammar, (self.num_characters, self.num_messages, self.observable)

    # -- numbers of lines --------------------------------------------------------------------------

    @property
    def num_pairs(self) -> int:
        """Pairs of a character and a message: as many instructions and as many meetings."""
        return self.num_characters * self.num_messages

    def instruction(self, character: NDArray[np.int64], message: NDArray[np.int64]) -> NDArray[np.int64]:
        """The line that asks to tell `character` the message, both counted from 0."""
        return character * self.num_messages + message

    def meeting(self, character: NDArray[np.int64], message: NDArray[np.int64]) -> NDArray[np.int64]:
        """The line at which `character` must be told the message, both counted from 0."""
        return self.num_pairs + self.instruction(character, message)

    def is_instruction(self, line: int) -> bool:
        """Whether the line is an instruction."""
        return line < self.num_pairs

    def answer(self, line: int) -> int:
        """The right action at the line: k = say message k, counted from 1; 0 = listen."""
        is_meeting = self.num_pairs <= line < 2 * self.num_pairs
        return line % self.num_messages + 1 if is_meeting else 0

    def draw_distractors(self, rng: np.random.Generator, count: int, lure_share: float) -> NDArray[np.int64]:
        """Draw `count` lures or chatter: a template of either kind at random, its slots at random."""
        lure_L = rng.random(count) < lure_share
        # The whole part of a number below the number of templates is the template, the rest the line.
        place_L = rng.random(count) * np.where(lure_L, len(LURES), len(CHATTER))
        template_L = place_L.astype(np.int64)
        place_L -= template_L
        template_L += np.where(lure_L, 2, 2 + len(LURES))
        place_L *= self._size_T.take(template_L)
        return self._first_T.take(template_L) + place_L.astype(np.int64)

    # -- words ---------------------------------------------------------------------------------------

    def text(self, line: int) -> str:
        """The text of the line.

        Raises:
            ValueError: there is no such line.
        """
        if not 0 <= line < self.size:
            raise ValueError(f"line must lie between 0 and {self.size - 1}, got {line}")
        number = int(np.searchsorted(self._first_T, line, side="right")) - 1
        template = self._templates[number]
        places = np.unravel_index(line - int(self._first_T[number]), self._shapes[number])
        words = iter(
            self.fillers[slot][int(place)] for slot, place in zip(template.slots, places, strict=True)
        )
        text = _SLOT.sub(lambda _: next(words), template.pattern)
        return text[0].upper() + text[1:]

    @functools.cached_property
    def tokens_LW(self) -> NDArray[np.int16]:
        """Token ids of every line, padded with 0."""
        both = zip(self._templates, self._shapes, strict=True)
        table = np.concatenate([_token_rows(template, shape) for template, shape in both])
        table.flags.writeable = False
        return table

    @functools.cached_property
    def answers_L(self) -> NDArray[np.int64]:
        """`answer` of every line."""
        answers = np.zeros(self.size, dtype=np.int64)
        every_message = np.arange(1, self.num_messages + 1)
        answers[self.num_pairs : 2 * self.num_pairs] = np.tile(every_message, self.num_characters)
        answers.flags.writeable = False
        return answers


def grammar(num_characters: int, num_messages: int, observable: bool = False) -> Grammar:
    """The `Grammar` with these arguments, shared by all who ask."""
    return _shared(num_characters, num_messages, observable)


_shared = functools.lru_cache(maxsize=64)(Grammar)


@functools.cache
def _token_rows(template: _Template, sizes: tuple[int, ...]) -> NDArray[np.int16]:
    """Token ids of every line of a template, given the number of fillers of each slot."""
    # Split by slots, the odd parts are slot names: replace those by the fillers' tokens.
    parts = _SLOT.split(template.pattern)
    shown = parts[1::2]
    hidden = template.slots[len(shown) :]
    choices: list[list[list[int]]] = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            choices.append([encode(part)])
        else:
            choices.append([encode(filler) for filler in FILLERS[part][: sizes[number // 2]]])
    choices += [[[]] * size for _, size in zip(hidden, sizes[len(shown) :], strict=True)]
    rows = [[*itertools.chain.from_iterable(row)] for row in itertools.product(*choices)]
    table = np.zeros((len(rows), LINE_LENGTH), dtype=np.int16)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table
