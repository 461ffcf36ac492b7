"""Hardware targets, the memory model, and the plan that chooses a scheme."""
