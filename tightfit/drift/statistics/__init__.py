"""What can be said of figures that were measured on a sample."""
