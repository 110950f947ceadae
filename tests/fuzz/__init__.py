"""Fuzzers: random hostile input, each case in a child process with limits on time and memory.

A fuzzer is a module ``tests/fuzz/fuzz_NAME.py`` with

* ``SHORT``: cases of the short run, which is a part of ``make test`` (``test_short.py``; a few seconds in all),
* ``PRELOAD``: modules that are imported once, before any case,
* ``make_case(random)``: a case from a ``random.Random``; anything that can be pickled,
* ``attempt(case, folder)``: what is done with it, in the child, in an empty folder of its own.

A case passes if it is answered or refused by a :class:`~trtprune.errors.TrtpruneError` with a printable line and a
hint, within :data:`tests.fuzz.kit.SECONDS` of processor time and :data:`tests.fuzz.kit.MEGABYTES` of memory.  The long
run is by hand; it prints each case that fails with the seed that makes it again::

    python -m tests.fuzz NAME --minutes 10 [--seed 1000] [--workers 2]
    python -m tests.fuzz NAME --seed 1234 --count 1 --verbose
"""
