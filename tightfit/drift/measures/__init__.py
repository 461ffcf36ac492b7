"""What is measured of two models' tokens and answers; each measure has a version (`versions`)."""
