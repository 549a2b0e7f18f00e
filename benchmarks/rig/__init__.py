"""What the benchmarks share: a stub engine, a load generator, and the care of processes."""
