"""Seeded random faults on a running slotd, and an oracle that judges what comes of them.

For tests of whatever is built on slotd, and slotd's own soak. The parts:

| module | |
|---|---|
| ``plan`` | the faults there are, and plans of them: a pure function of a seed |
| ``asks`` | requests drawn at random, each with the one right answer to it. Pure |
| ``judge`` | whether what came back is one well-formed outcome. Pure |
| ``site`` | slotd as a process, with slots that can be told to misbehave |
| ``table`` | what the operating system says: processes, descriptors, memory, listeners |
| ``oracle`` | keeps account of requests, transitions and processes, and notes every violation |
| ``clients`` | the load, well-behaved and not |
| ``inject`` | carries faults out |
| ``soak`` | all of it together: :func:`~slotd.testing.chaos.soak.soak` |
"""
