"""The network p(x_0 | x_t, context): one weight stack in two roles.

*encode* reads clean tokens causally, writes their keys and values, and gives AR logits.
*denoise* reads a canvas bidirectionally over that cache, and gives logits for what each slot should hold.

A Llama-type decoder: RMSNorm before each half, rotary positions in the half-rotate convention, grouped queries,
SwiGLU; with flags for q/k/v biases (Qwen2) and per-head q/k norms (Qwen3). Parameter names are transformers' own,
so that a Llama, Qwen2 or Qwen3 file loads without renaming.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.rotary import frequencies

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MASKED = -1e30  # finite: a padding row that sees nothing then averages garbage in place of giving NaN


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rotary_angles(positions: Tensor, config: DenoiserConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [..., T, rotary_dim] in float32 for integer positions [..., T] (RoFormer, half-rotate layout)."""
    size = config.rotary_dim
    exponents = torch.arange(0, size, 2, dtype=torch.int64, device=positions.device).float() / size
    angles = positions[..., None].float() * frequencies(exponents, config)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotary positions to heads [B, T, H, D]; cos and sin are [B, T, rotary_dim <= D]."""
    size = cos.shape[-1]
    turning = x[..., :size]
    first, second = turning.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    out = turning * cos[..., None, :].to(x.dtype) + turned * sin[..., None, :].to(x.dtype)
    return out if size == x.shape[-1] else torch.cat((out, x[..., size:]), dim=-1)


@dataclass(frozen=True)
class Visibility:
    """What the rows of one pass may attend to, in one of two equivalent forms.

    dense: additive float mask [B, 1, T, S + T] over the S cached and the T present rows.
    flex: the same as FlexAttention's block mask, which skips blocks that are masked.
    clean, canvas: the same for training rows laid out as L clean rows followed by N canvases of C slots each,
    without the products that are masked anyway: clean [B, 1, L, L], canvas [B * N, 1, C, L + C].
    text, own: the same for N canvases alone over S cached rows: text [B, N * C, S], own [B, N, C, C].
    """

    dense: Tensor | None = None
    flex: BlockMask | None = None
    clean: Tensor | None = None
    canvas: Tensor | None = None
    text: Tensor | None = None
    own: Tensor | None = None

    @staticmethod
    def additive(allowed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Boolean mask (True may attend) to an additive one."""
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, MASKED)


class Attention(nn.Module):
    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        size, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(size, self.heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(size, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(size, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, size, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Visibility, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, T, hidden] -> (out [B, T, hidden], the present rows' (k, v), each [B, T, kv_heads, head_dim])."""
        batch, rows, _ = x.shape
        q, k, v = self.project(x, cos, sin)
        if visible.own is not None:
            assert past is not None
            out = attend_canvases(q, past, (k, v), visible)
        elif visible.clean is None:
            keys, values = (
                (k, v) if past is None else (torch.cat((past[0], k), 1), torch.cat((past[1], v), 1))
            )
            if visible.flex is not None:
                out = attend_flex(q, keys, values, visible.flex)
            else:
                assert visible.dense is not None
                out = self._attend(q, keys, values, visible.dense)
        else:
            out = self._attend_split(q, k, v, visible)
        return self.o_proj(out.reshape(batch, rows, -1)), (k, v)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, heads, head_dim] and k, v [B, T, kv_heads, head_dim] of x [B, T, hidden], rotated."""
        q = self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Heads [B, T, H, D] in, [B, T, H, D] out."""
        grouped = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask.to(q.dtype),
            enable_gqa=grouped,
        )
        return out.transpose(1, 2)

    def _attend_split(self, q: Tensor, k: Tensor, v: Tensor, visible: Visibility) -> Tensor:
        """[x_0 ‖ x_t] with each canvas attending to the clean rows and to itself: about a third of the dense work."""
        assert visible.clean is not None
        assert visible.canvas is not None
        batch, clean_rows = q.shape[0], visible.clean.shape[-1]
        slots = visible.canvas.shape[-2]
        clean = self._attend(q[:, :clean_rows], k[:, :clean_rows], v[:, :clean_rows], visible.clean)
        canvases = (q.shape[1] - clean_rows) // slots

        def per_canvas(x: Tensor) -> Tensor:  # [B, N*C, H, D] -> [B, N, C, H, D]
            return x[:, clean_rows:].unflatten(1, (canvases, slots))

        def with_clean(x: Tensor) -> Tensor:  # -> [B*N, L + C, H, D]
            text = x[:, None, :clean_rows].expand(-1, canvases, -1, -1, -1)
            return torch.cat((text, per_canvas(x)), 2).flatten(0, 1)

        noisy = self._attend(per_canvas(q).flatten(0, 1), with_clean(k), with_clean(v), visible.canvas)
        return torch.cat((clean, noisy.reshape(batch, canvases * slots, *q.shape[2:])), 1)


def attend_canvases(
    q: Tensor, past: tuple[Tensor, Tensor], present: tuple[Tensor, Tensor], visible: Visibility
) -> Tensor:
    """Canvases side by side over one text, each blind to the others: one softmax over two products.

    q [B, N * C, H, D]; past (k, v): [B, S, kv_heads, D], present: [B, N * C, kv_heads, D]; visible.text, visible.own.
    Returns [B, N * C, H, D]. A dense mask would have N - 1 of N of the canvases' own products computed in vain.
    """
    assert visible.text is not None
    assert visible.own is not None
    batch, rows, heads, size = q.shape
    canvases, slots = visible.own.shape[1:3]
    groups = past[0].shape[2]
    each = heads // groups
    # Query heads of one group are rows of one product: [B, kv, N, each, C, D]
    grouped = (q * size**-0.5).view(batch, canvases, slots, groups, each, size).permute(0, 3, 1, 4, 2, 5)
    flat = grouped.reshape(batch, groups, -1, size)
    keys, values = (x.transpose(1, 2) for x in past)  # [B, kv, S, D]
    theirs, own_values = (  # [B, kv, N, C, D]
        x.view(batch, canvases, slots, groups, size).permute(0, 3, 1, 2, 4) for x in present
    )
    text = torch.matmul(flat, keys.transpose(2, 3)).view(batch, groups, canvases, each, slots, -1)
    own = torch.matmul(grouped.flatten(3, 4), theirs.transpose(3, 4))
    own = own.view(batch, groups, canvases, each, slots, slots)
    text = text + visible.text.view(batch, 1, canvases, 1, slots, -1)
    own = own + visible.own[:, None, :, None]
    weights = torch.softmax(torch.cat((text, own), -1), -1, dtype=torch.float32).to(q.dtype)
    on_text, on_own = weights[..., :-slots], weights[..., -slots:]
    out = torch.matmul(on_text.reshape(batch, groups, -1, keys.shape[2]), values)
    out = out.view(batch, groups, canvases, each * slots, size) + torch.matmul(
        on_own.reshape(batch, groups, canvases, each * slots, slots), own_values
    )
    out = out.view(batch, groups, canvases, each, slots, size).permute(0, 2, 4, 1, 3, 5)
    return out.reshape(batch, rows, heads, size)


@lru_cache(maxsize=2)
def _flex(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention  # its import takes long

    if not compiled:
        return flex_attention
    return torch.compile(flex_attention)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Heads [B, T, H, D] in, [B, T, H, D] out. On a CPU the reference, which leaves nothing out."""
    run = _flex(q.is_cuda and not torch.compiler.is_compiling())
    heads = (x.transpose(1, 2) for x in (q, k, v))
    out = run(*heads, block_mask=mask, enable_gqa=q.shape[2] != k.shape[2])
    assert isinstance(out, Tensor)
    return out.transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Visibility, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, present = self.self_attn(self.input_layernorm(x), cos, sin, visible, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), present


class SelfConditioning(nn.Module):
    """Adds what the last step expected to a canvas row's embedding (DiffusionGemma, transformers 5.12).

    rms(embedding + down(gelu(gate(n)) * up(n))), n = norm(expected embedding); the outer norm has no weight.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.pre_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.eps = config.rms_norm_eps

    def forward(self, embedding: Tensor, expected: Tensor) -> Tensor:
        n = self.pre_norm(expected)
        mixed = embedding + self.down_proj(F.gelu(self.gate_proj(n), approximate="tanh") * self.up_proj(n))
        return F.rms_norm(mixed, (mixed.shape[-1],), eps=self.eps)


def _as_they_are(layer: int, x: Tensor) -> Tensor:
    return x


class Decoder(nn.Module):
    """Embedding, layers and final norm; the part that transformers calls `model`."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.enter: Callable[[int, Tensor], Tensor] = _as_they_are  # or an adapter's, see Adapter.enter
        if config.canvas_rows_marked:
            self.canvas_embedding = nn.Parameter(torch.zeros(config.hidden_size))
            self.locked_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        if config.self_conditioning:
            self.self_conditioning = SelfConditioning(config)

    def embed(
        self, tokens: Tensor, canvas: Tensor | None, locked: Tensor | None, expected: Tensor | None
    ) -> Tensor:
        """tokens [B, T]; canvas, locked: bool [B, T] or None (all clean); expected: probabilities [B, T, V]."""
        x = self.embed_tokens(tokens)
        if canvas is None:
            return x
        if self.config.self_conditioning:
            # Zeros on the first step, as DiffusionGemma does; clean rows stay untouched.
            soft = (
                torch.zeros_like(x) if expected is None else expected.to(x.dtype) @ self.embed_tokens.weight
            )
            x = torch.where(canvas[..., None], self.self_conditioning(x, soft), x)
        if self.config.canvas_rows_marked:
            x = x + canvas[..., None].to(x.dtype) * self.canvas_embedding
            if locked is not None:
                x = x + (locked & canvas)[..., None].to(x.dtype) * self.locked_embedding
        return x


class Denoiser(nn.Module):
    """See the module's docstring. `forward` gives hidden states; `logits` turns chosen rows into logits."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.adapter: nn.Module | None = None  # of an adapted AR base, see `adapters`
        self.reset_parameters()
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Normal(0, 0.02) with the residual projections scaled by 1/sqrt(2 * layers) (GPT-2)."""
        residual = 0.02 / (2 * self.config.num_hidden_layers) ** 0.5
        for name, p in self.named_parameters():
            if p.dim() < 2:
                continue
            std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            nn.init.normal_(p, std=std, generator=generator)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        visible: Visibility,
        canvas: Tensor | None = None,
        locked: Tensor | None = None,
        expected: Tensor | None = None,
        past: list[tuple[Tensor, Tensor]] | None = None,
        alone: bool = False,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Hidden states after the final norm [B, T, hidden], and each layer's (k, v) of the present rows.

        tokens, positions: int64 [B, T]. canvas, locked: bool [B, T]; None means all rows are clean.
        expected: the last step's probabilities [B, T, V], for self-conditioning. past: per layer (k, v), each
        [B, S, kv_heads, head_dim], rotated already. alone: all rows are open or empty slots of a canvas, so that
        layers before their entry are left out.
        """
        cos, sin = rotary_angles(positions, self.config)
        x = self.model.embed(tokens, canvas, locked, expected)
        present: list[tuple[Tensor, Tensor]] = []
        entry = self.config.canvas_entry
        for i, layer in enumerate(self.model.layers):
            if alone and entry is not None and i < entry:
                continue
            x = self.model.enter(i, x)
            x, kv = layer(x, cos, sin, visible, None if past is None else past[i])
            present.append(kv)
        return self.model.norm(x), present

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows [..., hidden] to logits [..., vocab]."""
        return self.lm_head(hidden)

    def parameter_count(self) -> int:
        """Parameters, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())
