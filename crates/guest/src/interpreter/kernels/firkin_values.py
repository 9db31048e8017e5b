"""Values as JSON has them: exact, or not at all.

JSON's text may hold any number, but what reads it may not: beyond 64 bits it becomes another number for many, without a word, and
deep nesting ends others. A value that would not arrive as it is is refused here, and its text stands for it.
"""

import datetime
import math
import sys

MAX_DEPTH = 100
"""Deeper JSON is refused by many who read it."""

INTEGERS = range(-(1 << 63), 1 << 64)
"""What the whole numbers of most languages hold."""

NOTHING = {"NaTType", "NAType", "MaskedConstant"}
"""Names of what pandas and numpy put where there is nothing."""


class Unfit(ValueError):
    """There is no JSON that says what the value is."""


def plain(value, depth: int = MAX_DEPTH):
    """The same, of what JSON has: dates as text, numbers of numpy as numbers, what is no number as null."""
    if value is None or isinstance(value, (str, bool)):
        return value
    kind = type(value)
    if kind.__name__ in NOTHING and kind.__module__.partition(".")[0] in ("pandas", "numpy"):
        return None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, int):
        if int(value) not in INTEGERS:
            raise Unfit("an integer of more than 64 bits")
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == 0:
        raise Unfit(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        made = {str(key): plain(one, depth - 1) for key, one in value.items()}
        if len(made) < len(value):
            raise Unfit("keys that differ and have the same text")
        return made
    if isinstance(value, (list, tuple, set)):
        return [plain(one, depth - 1) for one in value]
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(value, numpy.ndarray):
        return [plain(one, depth - 1) for one in value] if value.ndim else plain(value.item(), depth - 1)
    if numpy and isinstance(value, numpy.datetime64):
        return None if numpy.isnat(value) else str(value.astype("datetime64[s]"))
    if numpy and isinstance(value, numpy.generic) and not isinstance(made := value.item(), numpy.generic):
        return plain(made, depth - 1)
    return str(value)
