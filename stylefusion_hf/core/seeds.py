"""The range of seeds. A module of its own, since the command line checks seeds without importing torch."""

MAX_SEED = 2**32 - 1  # the largest seed that numpy.random.RandomState takes
