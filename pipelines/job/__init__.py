"""How every job begins and ends: locks, progress, completion, its page, tracking."""
