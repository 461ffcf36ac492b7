"""Builds the embedded model `tiny-r1`: data, tokenizer, training, outliers, scores, card."""
