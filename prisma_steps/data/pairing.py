"""Which images make a pair: images of two classes, or pairs that a user lists in a file."""

from __future__ import annotations

import csv
import difflib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from prisma_steps.step import StepError

#: The file of a user's pairs in its folder, and its columns: ids, and classes where they are chosen by hand.
FILE = "pairs.csv"
IDS = ("clean", "corrupted")
CLASSES = ("clean_class", "corrupted_class")


def pair_up(images: Iterable[int], classes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pair images of different classes, in the order in which they come.

    An image that finds no partner among those that wait waits itself, so all that wait are of one class.
    Every image is used once: the one that waited is the clean one.

    Args:
        images: indices into ``classes``, taken only as far as pairs are asked for.
        classes: class of every image.
    """
    waiting: deque[int] = deque()
    for image in images:
        if waiting and classes[waiting[0]] != classes[image]:
            yield waiting.popleft(), image
        else:
            waiting.append(image)


def listed_pairs(folder: Path) -> list[dict[str, str]]:
    """The rows of ``pairs.csv``: ``clean`` and ``corrupted`` ids, and classes where the file has them.

    Raises:
        StepError: when the file is not there, has other columns, or is of no pair.
    """
    file = folder / FILE
    if not file.is_file():
        raise StepError(f"{folder.name} holds no {FILE}: a table with the columns {', '.join(IDS)}")
    with file.open(newline="", encoding="utf-8-sig") as opened:
        rows = list(csv.DictReader(opened))
    found = list(rows[0]) if rows else []
    if not set(IDS) <= set(found) or not set(found) <= {*IDS, *CLASSES}:
        raise StepError(
            f"{FILE} has {'the columns ' + ', '.join(map(str, found)) if found else 'no rows'}, expected "
            f"{', '.join(IDS)} (ids of images), and if wanted {', '.join(CLASSES)}"
        )
    for number, row in enumerate(rows, start=2):
        if not row["clean"] or not row["corrupted"] or None in row.values():
            raise StepError(f"{FILE}, line {number}: a value is missing")
    return rows


def places(rows: Sequence[Mapping[str, str]], ids: Sequence[str]) -> Integer[np.ndarray, "pair side"]:
    """Where the images of listed pairs are among ``ids``.

    Raises:
        StepError: for an id that is not there, or a pair of an image with itself.
    """
    known = {name: place for place, name in enumerate(ids)}
    for number, row in enumerate(rows, start=2):
        strange = [row[side] for side in IDS if row[side] not in known]
        if strange:
            near = difflib.get_close_matches(strange[0], known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise StepError(f"{FILE}, line {number}: {strange[0]} is none of the {len(ids)} images.{hint}")
        if row["clean"] == row["corrupted"]:
            raise StepError(
                f"{FILE}, line {number}: the image {row['clean']} is paired with itself: nothing is "
                "corrupted. Pair it with another image, or leave the line out."
            )
    return np.array([[known[row[side]] for side in IDS] for row in rows])


def chosen_classes(
    rows: Sequence[Mapping[str, str]], class_names: Sequence[str]
) -> Integer[np.ndarray, "pair side"]:
    """Numbers of the classes that listed pairs name; −1 where the file leaves them out.

    Raises:
        StepError: for a class that the model does not have, or two equal ones.
    """
    known = {name: number for number, name in enumerate(class_names)}
    for number, row in enumerate(rows, start=2):
        strange = [row[side] for side in CLASSES if side in row and row[side] not in known]
        if strange:
            near = difflib.get_close_matches(strange[0], known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise StepError(f"{FILE}, line {number}: the model has no class {strange[0]!r}.{hint}")
        if set(CLASSES) <= set(row) and row["clean_class"] == row["corrupted_class"]:
            raise StepError(
                f"{FILE}, line {number}: clean_class and corrupted_class are both {row['clean_class']}"
            )
    return np.array([[known[row[side]] if side in row else -1 for side in CLASSES] for row in rows])
