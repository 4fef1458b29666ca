"""Run logging: the interface, its back ends, and the names that they share."""
