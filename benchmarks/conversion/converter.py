"""llama.cpp's converter: `LLAMA_CPP=CHECKOUT python -m benchmarks.conversion.converter MODEL ...`.

It runs unchanged but for two things that only concern our tokenizer, tiny-r1's: llama.cpp knows
tokenizers by a hash of what they do and refuses others, and it imports sentencepiece before it
looks whether there is a file for it.
"""

import importlib.util
import os
import runpy
import sys
import types
from pathlib import Path

CHECKOUT = "LLAMA_CPP"
"""Environment variable: the folder of a llama.cpp checkout."""
SCRIPT = "convert_hf_to_gguf.py"
_PRE_TOKENIZER = "deepseek-r1-qwen"


def main() -> None:
    """Run it with this process's arguments."""
    checkout = Path(os.environ[CHECKOUT])
    sys.path[:0] = [str(checkout), str(checkout / "gguf-py")]
    if importlib.util.find_spec("sentencepiece") is None:
        stub = types.ModuleType("sentencepiece")
        stub.SentencePieceProcessor = None  # type: ignore[attr-defined]
        sys.modules["sentencepiece"] = stub
    from conversion.base import TextModel  # type: ignore[import-not-found]

    TextModel.get_vocab_base_pre = lambda *_: _PRE_TOKENIZER
    runpy.run_path(str(checkout / SCRIPT), run_name="__main__")


if __name__ == "__main__":
    main()
