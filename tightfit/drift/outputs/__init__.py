"""What other programs read of a drift report: JUnit, GitHub, lm-evaluation-harness."""
