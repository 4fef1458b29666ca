"""What a run costs before it is paid: bytes, hours, memory of a GPU, price."""
