"""Benchmarks: programs that anyone can run. Each writes its figures, command, versions and hardware to infra/results/NAME/."""
