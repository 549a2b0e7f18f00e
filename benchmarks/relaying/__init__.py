"""The parts of ``relay.py``: what is asked, of whom, how it is measured, and how it is shown."""
