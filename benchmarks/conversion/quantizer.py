"""llama-quantize through llama-cpp-python: `python -m benchmarks.conversion.quantizer IN OUT TYPE`.

TYPE is a file type as `tightfit export --scheme` names it. Its defaults, all cores among them.
"""

import ctypes
import sys

PACKAGE = "llama-cpp-python"


def main() -> None:
    """Quantize a GGUF."""
    import llama_cpp

    source, target, scheme = sys.argv[1:]
    settings = llama_cpp.llama_model_quantize_default_params()
    # Of the enumeration, the K of K-quants and the size behind it in capitals.
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{scheme.upper()}")
    failed = llama_cpp.llama_model_quantize(
        source.encode(), target.encode(), ctypes.byref(settings)
    )
    sys.exit(failed)


if __name__ == "__main__":
    main()
