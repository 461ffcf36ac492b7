"""The prior's prediction against published and measured KL divergences, as markdown.

    python -m benchmarks.prior_fit

The first table is what c is fitted to: ln(predicted / measured) averages zero over its rows. The
others are checks. Sources: llama.cpp, tools/perplexity/README.md, "LLaMA 3 8b Scoreboard" (file
types with importance matrix) and "LLaMA 2 vs. LLaMA 3" (without); our docs/quality.md (importance
matrix). The scoreboard's baseline is stored in 16 bits: its own row for f16 is subtracted there.
"""

import math
from collections.abc import Mapping

from tightfit.calib.architecture import architecture_of
from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.config import ModelConfig
from tightfit.calib.dimensions import ModelDimensions, dimensions_of
from tightfit.calib.locate import EMBEDDED_NAME, locate_model
from tightfit.calib.models import find_model
from tightfit.targets.allocation.prior import prior_sensitivity
from tightfit.targets.schemes.ggml_file_types import ggml_file_type
from tightfit.targets.schemes.gguf import file_type_storage

F16_NATS = 0.000551
LLAMA3_8B = {
    "q4_k_m": 0.028152,
    "q4_k_s": 0.031951,
    "iq4_nl": 0.035742,
    "iq4_xs": 0.036334,
    "q3_k_l": 0.073077,
    "q3_k_m": 0.084358,
    "q3_k_s": 0.199821,
    "q2_k": 0.332223,
}
LLAMA3_8B_PLAIN = {
    "q8_0": 0.001355,
    "q6_k": 0.005452,
    "q5_k_m": 0.010762,
    "q5_k_s": 0.016595,
    "q5_1": 0.018045,
    "q5_0": 0.022239,
    "q4_1": 0.071683,
    "q4_0": 0.071940,
}
LLAMA3_70B_PLAIN = {"q8_0": 0.003088, "q6_k": 0.009148, "q4_k_m": 0.055418, "q2_k": 0.674716}
TINY_R1 = {
    "q6_k": 0.00040,
    "q5_k_m": 0.00078,
    "q4_k_m": 0.00100,
    "q3_k_m": 0.00407,
    "q2_k": 0.02282,
}
SMOLLM2 = {"q4_k_m": 0.03529, "q3_k_m": 0.08913, "q2_k": 0.27510}
SMOLLM2_DIMENSIONS = dimensions_of(
    ModelConfig(
        origin="SmolLM2-135M",
        values={
            "model_type": "llama",
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
        },
    )
)


def predicted_nats(dimensions: ModelDimensions, file_type: str) -> float:
    """The prior's KL of a file type."""
    architecture = architecture_of(dimensions.model_type)
    storage = file_type_storage(ggml_file_type(file_type), architecture, dimensions)
    losses = prior_sensitivity(architecture, dimensions).losses
    return sum(losses[name][kind] for name, kind in storage.items() if name in losses)


def log_ratios(dimensions: ModelDimensions, measured: Mapping[str, float]) -> dict[str, float]:
    """ln(predicted / measured) by file type."""
    return {
        name: math.log(predicted_nats(dimensions, name) / nats) for name, nats in measured.items()
    }


def net_of_f16(measured: Mapping[str, float]) -> dict[str, float]:
    """Without what the stored baseline itself costs."""
    return {name: nats - F16_NATS for name, nats in measured.items()}


def _print(title: str, dimensions: ModelDimensions, measured: Mapping[str, float]) -> None:
    ratios = log_ratios(dimensions, measured)
    mean = sum(ratios.values()) / len(ratios)
    spread = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios.values()) / len(ratios))
    print(f"\n{title}: predicted / measured {math.exp(mean):.2f}, spread x{math.exp(spread):.2f}\n")
    print("| file type | measured (nats) | predicted (nats) | predicted / measured |")
    print("|---|---:|---:|---:|")
    for name, nats in measured.items():
        predicted = predicted_nats(dimensions, name)
        print(f"| {name} | {nats:.5f} | {predicted:.5f} | {predicted / nats:.2f} |")


def _known(name: str) -> ModelDimensions:
    model = find_model(name)
    assert model is not None, name
    return model.dimensions


def main() -> None:
    """Print the tables."""
    llama_8b = _known("r1-distill-llama-8b")
    tiny = locate_model(EMBEDDED_NAME).path
    _print("Llama 3 8B, importance matrix (fitted)", llama_8b, net_of_f16(LLAMA3_8B))
    _print("Llama 3 8B, plain", llama_8b, net_of_f16(LLAMA3_8B_PLAIN))
    _print("Llama 3 70B, plain", _known("r1-distill-llama-70b"), LLAMA3_70B_PLAIN)
    _print("SmolLM2 135M, importance matrix", SMOLLM2_DIMENSIONS, SMOLLM2)
    _print("tiny-r1, importance matrix", open_checkpoint(tiny).dimensions, TINY_R1)


if __name__ == "__main__":
    main()
