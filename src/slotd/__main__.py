"""``python -m slotd``."""

from slotd.cli import main

main()
