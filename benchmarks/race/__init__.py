"""GPTQ and AWQ of one model on the same tokens: ours and the peers, a process each, in turn."""
