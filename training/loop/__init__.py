"""The step loop, its engines and run states."""
