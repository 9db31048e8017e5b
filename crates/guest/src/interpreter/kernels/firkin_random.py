"""Random numbers of a process that a snapshot holds: each of its clones has the same state to draw from.

So at the beginning of each life the generators that a process shares are seeded anew, unless the program has seeded them itself:
who says `random.seed(1)` wants the same numbers in each clone. That is known because seeding goes through here. Generators that a
program makes for itself (`random.Random()`, `numpy.random.default_rng()`) are its own to renew.
"""

import functools
import os
import random
import sys

_seeded = set()
"""The modules that the program has seeded."""

_renew = {}
"""How a module is seeded by the kernel of the guest."""


def watch(module, seed: str, put: tuple[str, ...]) -> None:
    """Notes from now on whether the program seeds a module, with the function `seed` or those that `put` back a state."""
    name = module.__name__

    def put_in_place(function, called: str):
        # Pickled by name, as the original is: of a bound method's own name nothing would be found in the module.
        function.__module__, function.__name__, function.__qualname__ = name, called, called
        setattr(module, called, function)

    original = getattr(module, seed)

    @functools.wraps(original)
    def seeding(*args, **options):
        original(*args, **options)
        given = args[0] if args else options.get("a", options.get("seed"))
        (_seeded.discard if given is None else _seeded.add)(name)

    def putting(original):
        @functools.wraps(original)
        def put(*args, **options):
            original(*args, **options)
            _seeded.add(name)

        return put

    _renew[name] = original
    put_in_place(seeding, seed)
    for one in put:
        put_in_place(putting(getattr(module, one)), one)


def install() -> None:
    """For those that are there to be shared."""
    watch(random, "seed", ("setstate",))
    if numpy := sys.modules.get("numpy"):
        watch(numpy.random, "seed", ("set_state",))


def renew() -> None:
    """Another life has begun."""
    for name, seed in _renew.items():
        if name not in _seeded:
            seed()
    # The names of temporary files: clones may share a directory.
    if tempfile := sys.modules.get("tempfile"):
        tempfile._name_sequence = None
    # OpenSSL's own, which it would renew by itself only after an hour.
    if ssl := sys.modules.get("ssl"):
        ssl.RAND_add(os.urandom(32), 32.0)
