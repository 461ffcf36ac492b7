"""GGUF: metadata, tokenizer, tensors, written by streaming and read back.

The format is specified in ggml's docs/gguf.md; bytes are laid out by the `gguf` package.
"""
