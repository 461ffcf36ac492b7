"""Problems with known answers: where they come from, and how a subset of them is chosen."""
