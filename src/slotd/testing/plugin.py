"""pytest plugin of slotd's testing kit: fixtures for tests that run slotd."""
