"""llama.cpp's converter: `LLAMA_CPP=CHECKOUT python -m benchmarks.conversion.converter MODEL ...`.

It runs unchanged but for two things that only concern our tokenizer, tiny-r1's: llama.cpp knows
tokenizers by a hash of what they do and refuses others, and it imports sentencepiece before it
looks whether there is a file for it.
"""

import os
import runpy
import sys
from pathlib import Path

CHECKOUT = "LLAMA_CPP"
"""Environment variable: the folder of a llama.cpp checkout."""
SCRIPT = "convert_hf_to_gguf.py"
_PRE_TOKENIZER = "deepseek-r1-qwen"


def main() -> None:
    """Run it with this process's arguments."""
    checkout = Path(os.environ[CHECKOUT])
    sys.path[:0] = [str(checkout), str(checkout / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    TextModel.get_vocab_base_pre = lambda *_: _PRE_TOKENIZER
    TextModel._create_vocab_sentencepiece = _no_sentencepiece
    runpy.run_path(str(checkout / SCRIPT), run_name="__main__")


def _no_sentencepiece(*_: object) -> None:
    raise FileNotFoundError("the tokenizer is in tokenizer.json")


if __name__ == "__main__":
    main()
