"""Which slotd this is."""

VERSION = "0.1.0"


def is_compiled() -> bool:
    """Whether the relay's path is compiled here (``SLOTD_COMPILE=1`` when it was installed)."""
    from slotd.wire import memo

    return not str(memo.__file__).endswith(".py")
