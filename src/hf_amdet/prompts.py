"""Ordinary prompts to probe towers with: an embedded set, a text file, or a `datasets` column."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_amdet.errors import PromptsError

EMBEDDED = "embedded"
EMBEDDED_COUNT = 4_000
_LIMIT = 20_000
"""Prompts read from one source; more would change nothing but the time."""

_SUBJECTS = (
    "an old fisherman|my neighbour's cat|the school choir|a pair of hikers|a lonely robot|"
    "two brothers|a street musician|the night train|a wooden boat|our family dog|"
    "a marching band|the mayor of the town|a young astronaut|several penguins|a red kite|"
    "the last customer|a tired waiter|an angry goose|a row of bicycles|the new teacher|"
    "a cup of coffee|three sailors|a stack of books|the village baker|a flock of birds|"
    "a broken piano|the winning team|a group of tourists|an empty chair|a grey horse|"
    "the ice cream van|a doctor in a white coat|a basket of apples|an owl|a steam engine|"
    "a glass of water|a small dragon|the queen|a painted door|a field mouse|"
    "a surfer|a chess player|the lighthouse keeper|a yellow taxi|a giant pumpkin|"
    "a baker's dozen of rolls|a mechanic|the moon|a paper lantern|a sleeping child"
).split("|")
_PREDICATES = (
    "waits for the bus|crosses the bridge|looks out over the bay|stands in the rain|"
    "is covered in snow|rests beside the fire|appears in the mirror|moves through the crowd|"
    "stays behind the fence|is reflected in a puddle|travels to the mountains|"
    "poses for the camera|leans against a wall|sits on the stairs|passes the old mill|"
    "celebrates a birthday|disappears into the fog|turns left at the corner|floats above the lake|"
    "is seen from the balcony|arrives at the market|hides under the table|"
    "climbs a steep hill|glows in the dark|stops at the red light|runs across the beach|"
    "belongs to a museum|is made of paper|fills the whole window|casts a long shadow|"
    "shares a sandwich|listens to the radio|watches the sunset|enters the kitchen|"
    "faces the wind|stretches after lunch|falls asleep on the train|opens a letter"
).split("|")
_SETTINGS = (
    "|||at dawn|on a summer evening|in the middle of winter|during the festival|in 1965|"
    "after the storm|on market day|under neon lights|by candlelight|before the match|"
    "on a quiet Sunday|in heavy rain|at the edge of town|during a power cut|in early spring|"
    "on the first day of school|at low tide|while the bells ring|in the harbour district"
).split("|")
_FRAMES = (
    "{}|{}|{}|{}.|photograph: {}|{}, ink on paper|a mural where {}|screenshot of a game, {}|"
    "{}, pastel colours|children's book illustration, {}|breaking news: {}|{}, macro lens|"
    "caption this: {}|a stamp on which {}|{}, long exposure|stock image, {}|{}, isometric view|"
    "why is it that {}?|{} (detail)|in this scene {}|a tapestry in which {}|{}, studio lighting"
).split("|")
_TAILS = (
    "|||||with a friend nearby|and nobody notices|as the crowd applauds|next to an oak tree|"
    "surrounded by flowers|and the sky is orange|while a radio plays|between two tall buildings"
).split("|")


@dataclass(frozen=True)
class PromptSet:
    """Prompts and where they come from.

    Attributes:
        source: as it stands in reports; a file is named without its folder.
    """

    source: str
    prompts: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Digest of the prompts in their order."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()


def load_prompts(source: str | None = None) -> PromptSet:
    """The embedded prompts, those of a text file, or those of a dataset.

    Args:
        source: None or "embedded"; a path to a UTF-8 text file with one prompt a line; or
            ``org/dataset:split:column`` for a dataset that the `datasets` package can load.

    Raises:
        PromptsError: the source cannot be read, or holds no text.
    """
    if source in (None, EMBEDDED):
        return PromptSet(EMBEDDED, tuple(embedded_prompts()))
    assert source is not None
    path = Path(source)
    if _is_file(path):
        return PromptSet(path.name, _cleaned(source, _read_lines(path)))
    if source.count(":") == 2:
        dataset, split, column = source.split(":")
        rows = _cleaned(source, _read_dataset(dataset, split, column))
        name = Path(dataset).name if Path(dataset).exists() else dataset
        return PromptSet(f"{name}:{split}:{column}", rows)
    raise PromptsError(f"--prompts {source!r} is neither a text file nor org/dataset:split:column.")


def embedded_prompts() -> list[str]:
    """4,000 distinct prompts of our own grammar; always the same."""
    rng = random.Random(2512)  # noqa: S311 - reproducible data, not secrets
    prompts: dict[str, None] = {}
    while len(prompts) < EMBEDDED_COUNT:
        words = [rng.choice(part) for part in (_SUBJECTS, _PREDICATES, _SETTINGS, _TAILS)]
        sentence = " ".join(word for word in words if word)
        prompts.setdefault(rng.choice(_FRAMES).format(sentence))
    return list(prompts)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _read_lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            return [line for line, _ in zip(lines, range(_LIMIT), strict=False)]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(f"Prompts file {path.name} cannot be read as text: {error}") from error


def _read_dataset(dataset: str, split: str, column: str) -> list[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise PromptsError(
            "Prompts from a dataset need the `datasets` extra: pip install 'hf-amdet[datasets]'."
        ) from error
    try:
        rows = load_dataset(dataset, split=split, streaming=True)
        return [str(row[column]) for row in rows.take(_LIMIT)]
    except KeyError as error:
        raise PromptsError(f"Dataset {dataset} has no column {column!r}.") from error
    # Loaders raise whatever their formats raise; all of it means that there are no prompts.
    except Exception as error:
        raise PromptsError(
            f"Dataset {dataset} (split {split!r}) cannot be read: {type(error).__name__}: {error}"
        ) from error


def _cleaned(source: str, lines: Sequence[str]) -> tuple[str, ...]:
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise PromptsError(f"{source} holds no prompts.")
    return prompts
