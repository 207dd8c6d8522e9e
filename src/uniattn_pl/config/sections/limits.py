"""The largest numbers that an experiment file may hold."""

from __future__ import annotations

# Lightning and numpy take seeds below 2**32; stages and ranks add their numbers to it
LARGEST_SEED = 2**31 - 1
# far beyond what fits anywhere: a number with too many digits is told before memory is asked for it
LARGEST_BATCH, LONGEST, MOST_PROCESSES = 2**20, 2**24, 2**12
