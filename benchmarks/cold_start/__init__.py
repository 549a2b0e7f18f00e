"""Parts of the cold-start benchmark; ``cold_start_prefetch.py`` beside it puts them together.

``matrix`` says what is measured, ``remote_server`` answers (a process of its
own), ``remotes`` drives it, ``policies`` are the two that are compared,
``measure`` times them, ``report`` and ``plot`` show what came out.
"""
