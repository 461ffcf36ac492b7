"""The bit allocator: which grid each tensor gets so that a byte budget buys the least loss."""
