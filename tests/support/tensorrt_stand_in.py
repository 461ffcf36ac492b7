"""A module with the part of TensorRT's interface that running an engine needs, on the CPU.

An "engine file" is the path of an ONNX file; a step reads its inputs from the addresses that were
set, computes in onnxruntime, and writes the outputs to theirs. So it proves which buffers hold what
at every step, and that shapes stay within the profiles.
"""

import ctypes
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime

from tightfit.runtimes.tensorrt.profile import Profile, input_shapes, phases

TYPES = {
    "tensor(int64)": (np.int64, "INT64"),
    "tensor(float16)": (np.float16, "HALF"),
    "tensor(float)": (np.float32, "FLOAT"),
}


class ILogger:
    """The base that a logger derives from."""


class Engine:
    def __init__(self, onnx_file: Path, profile: Profile) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(
            onnx_file, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.values = self.inputs | self.outputs
        self.num_io_tensors = len(self.values)
        self.profile = profile

    def get_tensor_name(self, index):
        return list(self.values)[index]

    def get_tensor_shape(self, name):
        shape = self.values[name].shape
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=TYPES[self.values[name].type][1])

    def get_tensor_profile_shape(self, name, index):
        phase = phases(self.profile)[index]
        return input_shapes(name, self.get_tensor_shape(name), phase, self.profile.max_batch)

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = -1
        self.profiles_used = []
        self.shapes, self.addresses = {}, {}

    def set_optimization_profile_async(self, index, stream):
        if index != self.profile:
            # As TensorRT does.
            self.shapes.clear()
        self.profile = index
        self.profiles_used.append(index)
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        bounds = zip(low, shape, high, strict=True)
        self.shapes[name] = shape
        return all(least <= size <= most for least, size, most in bounds)

    def set_tensor_address(self, name, address):
        assert address, name
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert self.shapes.keys() == self.engine.inputs.keys()
        feed = {name: self._read(name, shape) for name, shape in self.shapes.items()}
        results = self.engine.session.run(None, feed)
        for name, value in zip(self.engine.outputs, results, strict=True):
            raw = value.tobytes()
            ctypes.memmove(self.addresses[name], raw, len(raw))
        return True

    def _read(self, name, shape):
        dtype = TYPES[self.engine.values[name].type][0]
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(ctypes.string_at(self.addresses[name], n_bytes), dtype).reshape(shape)


def stand_in(profile: Profile) -> ModuleType:
    """The module; every engine was built for `profile`."""
    module = ModuleType("tensorrt_rtx")

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, data):
            path = Path(data.decode(errors="replace"))
            if not path.is_file():
                self.logger.log(SimpleNamespace(name="ERROR"), "Serialization assertion failed")
                return None
            return Engine(path, profile)

    module.ILogger, module.Runtime = ILogger, Runtime
    return module
