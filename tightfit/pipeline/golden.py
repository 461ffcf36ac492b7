"""Golden inputs and outputs for an engine: what transformers computes on the dequantized weights.

Whoever has the card compares the engine's logits with these (`tightfit verify --on-gpu`).
"""

import numpy as np
from torch import Tensor

from tightfit.calib.calibration import CalibrationOptions, load_calibration
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.export.tensorrt.golden import Golden, lay_out
from tightfit.export.weights import QuantizedWeight, Weights
from tightfit.pipeline.device import usable_device

N_SEQUENCES = 2
SEQUENCE_TOKENS = 40
"""With R1's 152k tokens of vocabulary the logits of two such sequences take 49 MB."""
DECODE_TOKENS = 8


def golden_of(checkpoint: Checkpoint, weights: Weights, device: str) -> Golden:
    """A batch of unequal lengths from the embedded problems, and its logits in float32."""
    options = CalibrationOptions(samples=N_SEQUENCES, max_tokens=SEQUENCE_TOKENS)
    calibration = load_calibration(load_tokenizer(checkpoint.path), options)
    # Cut to unequal lengths, so that padding is part of what is checked.
    sequences = [
        list(sample.ids[: SEQUENCE_TOKENS - number * DECODE_TOKENS])
        for number, sample in enumerate(calibration.samples)
    ]
    batch = lay_out(sequences, decode_tokens=DECODE_TOKENS)
    names = checkpoint.architecture

    def load(name: str) -> Tensor:
        # A tied head is the embedding.
        return weights[name if name in weights else names.embedding].values()

    decoder = Decoder(checkpoint.path, names, usable_device(device))
    scales = {
        name: weight.input_scale
        for name, weight in weights.items()
        if isinstance(weight, QuantizedWeight) and weight.input_scale is not None
    }
    logits = decoder.logits(sequences, load, scales)
    shape = (*batch.input_ids_BT.shape, checkpoint.dimensions.vocab_size)
    logits_BTV = np.zeros(shape, np.float32)
    for row, logits_TV in enumerate(logits):
        real_T = batch.attention_mask_BT[row].astype(bool)
        logits_BTV[row, real_T] = logits_TV.cpu().numpy()
    return Golden(batch=batch, logits_BTV=logits_BTV)
