"""A joint run from its configuration to its report."""
