"""Stand-ins for GPUs in llama.cpp: where a machine has none, what would it put on which device?

A stand-in is the CPU's `ggml_backend_device` copied, called a GPU with events, and with a buffer
type of its own that the host cannot read. llama.cpp then assigns layers, leaves the token table on
the host, plans buffers and copies inputs for pipeline parallelism as for discrete GPUs. Memory is
the CPU's; nothing is ever computed there.

Slots of ggml's structs (`ggml-backend-impl.h`) belong to the pinned build of xllamacpp.
"""

import ctypes
from ctypes import CFUNCTYPE, c_bool, c_char_p, c_int, c_void_p
from typing import Any

_WORD = ctypes.c_uint64
# Function pointers of a device, then two fields.
_NAME, _DESCRIPTION, _MEMORY, _TYPE, _PROPS, _INIT, _BUFFER_TYPE = range(7)
_FROM_POINTER, _SUPPORTS_OP, _SUPPORTS_BUFFER = 8, 9, 10
_DEVICE_WORDS = 17
# Of a buffer type.
_BUFFER_NAME, _IS_HOST, _BUFFER_DEVICE = 0, 7, 8
_BUFFER_WORDS = 10
_BACKEND_DEVICE = 17
"""Of a backend: the device that it runs on."""
_GPU = 1
"""`GGML_BACKEND_DEVICE_TYPE_GPU`."""
# Bytes into `ggml_backend_dev_props`: two names, two sizes, type, id, then four capabilities.
_PROPS_TYPE, _PROPS_CAPABILITIES = 32, 48
_CAPABILITIES = (True, False, False, True)
"""Asynchronous, without a host buffer type and memory of the host's, with events."""


class StandIn:
    """One device; it must outlive the models on it."""

    def __init__(self, library: ctypes.CDLL, number: int) -> None:
        library.ggml_backend_dev_get.restype = c_void_p
        library.ggml_backend_cpu_buffer_type.restype = c_void_p
        self._cpu: int = library.ggml_backend_dev_get(0)
        self._device = (_WORD * _DEVICE_WORDS)(*_words(self._cpu, _DEVICE_WORDS))
        host_buffers: int = library.ggml_backend_cpu_buffer_type()
        self._buffers = (_WORD * _BUFFER_WORDS)(*_words(host_buffers, _BUFFER_WORDS))
        self.pointer = ctypes.addressof(self._device)
        self._buffer_type = ctypes.addressof(self._buffers)
        self._name = ctypes.create_string_buffer(f"GPU{number}".encode())
        self._kept: list[Any] = []
        self._replace_functions()

    def _replace_functions(self) -> None:
        device, buffers, name = self._device, self._buffers, ctypes.addressof(self._name)
        get = CFUNCTYPE(c_void_p, c_void_p)
        test = CFUNCTYPE(c_bool, c_void_p, c_void_p)
        supports_op = test(device[_SUPPORTS_OP])
        of_memory = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
        memory = of_memory(device[_MEMORY])
        self._set(device, _NAME, get(lambda _: name))
        self._set(device, _DESCRIPTION, get(lambda _: name))
        self._set(device, _MEMORY, of_memory(lambda _, free, all_: memory(self._cpu, free, all_)))
        self._set(device, _TYPE, CFUNCTYPE(c_int, c_void_p)(lambda _: _GPU))
        self._set(device, _PROPS, self._props())
        self._set(device, _INIT, self._init())
        self._set(device, _BUFFER_TYPE, get(lambda _: self._buffer_type))
        device[_FROM_POINTER] = 0
        self._set(device, _SUPPORTS_OP, test(lambda _, op: supports_op(self._cpu, op)))
        self._set(device, _SUPPORTS_BUFFER, test(lambda _, kind: kind == self._buffer_type))
        self._set(buffers, _BUFFER_NAME, get(lambda _: name))
        self._set(buffers, _IS_HOST, CFUNCTYPE(c_bool, c_void_p)(lambda _: False))
        buffers[_BUFFER_DEVICE] = self.pointer

    def _props(self) -> Any:
        signature = CFUNCTYPE(None, c_void_p, c_void_p)
        cpu_props = signature(self._device[_PROPS])

        def props(_: int, there: int) -> None:
            cpu_props(self._cpu, there)
            c_int.from_address(there + _PROPS_TYPE).value = _GPU
            flags = (c_bool * len(_CAPABILITIES)).from_address(there + _PROPS_CAPABILITIES)
            flags[:] = _CAPABILITIES

        return signature(props)

    def _init(self) -> Any:
        signature = CFUNCTYPE(c_void_p, c_void_p, c_char_p)
        cpu_init = signature(self._device[_INIT])

        def init(_: int, options: bytes) -> int:
            backend: int = cpu_init(self._cpu, options)
            words = _words(backend, _BACKEND_DEVICE + 1)
            assert words[_BACKEND_DEVICE] == self._cpu, "another build of llama.cpp"
            words[_BACKEND_DEVICE] = self.pointer
            return backend

        return signature(init)

    def _set(self, table: Any, slot: int, function: Any) -> None:
        self._kept.append(function)
        table[slot] = ctypes.cast(function, c_void_p).value


def _words(address: int, count: int) -> Any:
    return (_WORD * count).from_address(address)
