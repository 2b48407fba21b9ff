"""`redraft bench backends` for a network of random weights: the shape of a checkpoint that isn't at hand.

    python benchmarks/backends.py                      # SmolLM2-135M's shape
    python benchmarks/backends.py --shape tiny --json

Times depend on the shape alone. How often the likeliest token is the same does not: random weights have none of the
outliers that training leaves among activations, so that is said of real weights only (redraft bench backends --model).
"""

from __future__ import annotations

import argparse
import json

import torch

from redraft.denoiser.checkpoint import state_dict
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.engine.backends.onnx_backend import OnnxBackend, choose_precision
from redraft.engine.backends.onnx_graph import PRECISIONS
from redraft.evaluation.backends import Backends, compare, lines

SHAPES = {  # vocabulary, hidden, intermediate, layers, heads, kv heads, head
    "tiny": (4096, 192, 512, 6, 3, 3, 64),
    "135m": (49152, 576, 1536, 30, 9, 3, 64),
}


def random_model(shape: str) -> Denoiser:
    """An AR base, or for "tiny" a network with a canvas of its own."""
    torch.manual_seed(0)
    ours = shape == "tiny"
    config = DenoiserConfig(*SHAPES[shape], mask_token_id=0, canvas_rows_marked=ours, qk_norm=ours)
    return Denoiser(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--slots", type=int, default=16, help="of a canvas")
    parser.add_argument("--context", type=int, default=128, help="tokens before it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="0: one on each core")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for a busy machine")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = random_model(options.shape)
    tensors = {k: v.float().numpy() for k, v in state_dict(model).items()}
    engines = {
        f"onnx-{precision}": OnnxBackend(model.config, tensors, precision, options.threads)
        for precision in PRECISIONS
    }
    settings = Backends(
        options.slots, options.context, options.rounds, threads=options.threads, cpu_time=options.cpu_time
    )
    told = {
        "model": f"random weights, {options.shape}",
        "device": "cpu",
        "chosen": f"onnx-{choose_precision(model.config)}",
    } | compare(model, engines, [], settings)
    print(json.dumps(told) if options.json else "\n".join(lines(told)))


if __name__ == "__main__":
    main()
