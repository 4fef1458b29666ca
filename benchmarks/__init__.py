"""Benchmarks. Each program writes its figures, command, versions and hardware to infra/results/NAME/."""
