"""A transformer block that keeps little for the backward pass.

timm's block with the same parameters, names and arithmetic. Of what lies between two matrix
products, the input is kept and the rest computed again in the backward pass: a normalization, a
GELU, and, where attention is not fused, its weights. That costs a few percent of the time and saves
more than half of the memory. torch.compile makes that choice itself, so it sees plain operations.
"""

from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Gradients = tuple[Tensor | None, ...]


class Affine(NamedTuple):
    """Weight (out, D) and bias (out,) of a linear layer whose bias is put together of parts."""

    weight: Tensor
    bias: Tensor


class Block(TimmBlock):  # type: ignore[misc]  # timm has no types
    """timm's block: tokens (B, N, D) -> (B, N, D)."""

    def forward(self, x: Tensor, *, class_token_only: bool = False) -> Tensor:
        """Compute all tokens, or only the class token (B, D) without the work for the others."""
        if class_token_only:
            return self._class_token(x)
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            plain: Tensor = super().forward(x)
            return plain
        attention, mlp = self.attn, self.mlp
        qkv = norm_linear(x, self.norm1, attention.qkv)
        if attention.fused_attn:
            mixed = attention.proj(fused_attention(qkv, attention.num_heads))
        else:
            mixed = attention_linear(qkv, attention.num_heads, attention.proj)
        x = x + self.drop_path1(self.ls1(mixed))
        hidden = norm_linear(x, self.norm2, mlp.fc1)
        tokens: Tensor = x + self.drop_path2(self.ls2(gelu_linear(hidden, mlp.fc2)))
        return tokens

    def attention_weights(self, x: Tensor, *, class_token_only: bool = False) -> Tensor:
        """Compute how tokens attend to each other, see the function of this name."""
        attention = self.attn
        linear = Affine(attention.qkv.weight, attention.qkv.bias)
        normed, heads = self.norm1(x), attention.num_heads
        return attention_weights(normed, linear, heads, class_token_only=class_token_only)

    def _class_token(self, x: Tensor) -> Tensor:
        """Compute the output of the class token alone, without forming keys or values.

        A score `query @ (weight @ x)` is `(query @ weight) @ x`, with as many products as there are
        heads instead of tokens, and so for the values. The key's bias moves all scores alike.
        """
        attention, heads = self.attn, self.attn.num_heads
        normed = self.norm1(x).to(_product_dtype(attention.qkv.weight))
        query_weight, key_weight, value_weight = attention.qkv.weight.chunk(3)
        query_bias, _, value_bias = attention.qkv.bias.chunk(3)
        query = F.linear(normed[:, 0], query_weight, query_bias) * attention.scale
        query = torch.einsum(
            "bhd,hdk->bhk", query.unflatten(-1, (heads, -1)), key_weight.unflatten(0, (heads, -1))
        )
        mixed = (query @ normed.mT).softmax(dim=-1) @ normed
        mixed = torch.einsum("bhk,hdk->bhd", mixed, value_weight.unflatten(0, (heads, -1)))
        token = x[:, 0] + self.drop_path1(self.ls1(attention.proj(mixed.flatten(1) + value_bias)))
        out: Tensor = token + self.drop_path2(self.ls2(self.mlp(self.norm2(token))))
        return out


def attention_weights(
    x: Tensor,
    linear: Affine,
    heads: int,
    scores_bias: Tensor | None = None,
    *,
    class_token_only: bool = False,
) -> Tensor:
    """Compute the weights of self-attention: (B, heads, N, N), rows sum to 1.

    With `class_token_only` the first row alone, (B, heads, 1, N), without the memory for the
    others; the other arguments are those of `attention_linear`.
    """
    query_weight, key_weight, _ = linear.weight.chunk(3)
    query_bias, key_bias, _ = linear.bias.chunk(3)
    query = F.linear(x[:, :1] if class_token_only else x, query_weight, query_bias)
    key = F.linear(x, key_weight, key_bias)
    query, key = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key))
    scores = query @ key.mT * key.shape[-1] ** -0.5
    if scores_bias is not None:
        scores = scores + scores_bias[:, : scores.shape[2]]
    weights: Tensor = scores.softmax(dim=-1)
    return weights


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear | Affine) -> Tensor:
    """Compute `linear(norm(x))`, (..., D) -> (..., out), keeping x but not norm(x)."""
    if torch.compiler.is_compiling():
        return _plain_linear(norm(x), linear)
    dtype = _product_dtype(linear.weight)
    affine, weights = (norm.weight, norm.bias, norm.eps), (linear.weight, linear.bias)
    out: Tensor = _NormLinear.apply(x, *affine, *weights, dtype)
    return out


def gelu_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """Compute `linear(gelu(x))`, (..., D) -> (..., out), keeping x but not gelu(x)."""
    if torch.compiler.is_compiling():
        return _plain_linear(F.gelu(x), linear)
    dtype = _product_dtype(linear.weight)
    out: Tensor = _GeluLinear.apply(x, linear.weight, linear.bias, dtype)
    return out


def attention_linear(
    qkv: Tensor, heads: int, linear: nn.Linear, scores_bias: Tensor | None = None
) -> Tensor:
    """Compute `linear` of the self-attention of `qkv`: (B, N, 3 * D) -> (B, N, out).

    By matrix products, of which nothing is kept but `qkv`. `heads` divide D; `scores_bias`
    (heads, N, N) is added to the scaled scores.
    """
    if torch.compiler.is_compiling():
        query, key, value = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        scores = query * query.shape[-1] ** -0.5 @ key.mT
        if scores_bias is not None:
            scores = scores + scores_bias.to(scores.dtype)
        weights = scores.softmax(dim=-1)
        return _plain_linear((weights @ value).transpose(1, 2).flatten(2), linear)
    dtype = _product_dtype(linear.weight)
    out: Tensor = _AttentionLinear.apply(qkv, heads, scores_bias, linear.weight, linear.bias, dtype)
    return out


def fused_attention(qkv: Tensor, heads: int, scores_bias: Tensor | None = None) -> Tensor:
    """Compute self-attention by PyTorch's fused kernel: (B, N, 3 * D) -> (B, N, D).

    The kernel keeps no attention weights. `scores_bias` (heads, N, N) is added to the scores.
    """
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    bias = None if scores_bias is None else scores_bias.to(query.dtype)[None]
    mixed = F.scaled_dot_product_attention(query, key, value, bias)
    return mixed.transpose(1, 2).flatten(2)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        ctx.eps, ctx.dtype = eps, dtype
        ctx.save_for_backward(x, mean, deviation, scale, shift, weight)
        return F.linear(normed.to(dtype), weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, mean, deviation, scale, shift, weight = ctx.saved_tensors
        normed = F.layer_norm(x, x.shape[-1:], scale, shift, ctx.eps).to(ctx.dtype)
        grad_weight, grad_bias = _linear_gradients(grad, normed)
        del normed
        grad_x, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
            (grad @ weight.to(ctx.dtype)).to(x.dtype),
            x, x.shape[-1:], mean, deviation, scale, shift, [True, True, True],
        )  # fmt: skip
        return grad_x, grad_scale, grad_shift, None, grad_weight, grad_bias, None


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        grad_weight, grad_bias = _linear_gradients(grad, F.gelu(x))
        grad_x = torch.ops.aten.gelu_backward(grad @ weight.to(x.dtype), x)
        return grad_x, grad_weight, grad_bias, None


class _AttentionLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        heads: int,
        scores_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.heads = heads
        ctx.save_for_backward(qkv, scores_bias, weight)
        query, key, value = _by_head(qkv, heads)
        mixed = _attention_weights(query, key, heads, scores_bias) @ value
        return F.linear(_by_token(mixed, heads), weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (qkv, scores_bias, weight), heads = ctx.saved_tensors, ctx.heads
        query, key, value = _by_head(qkv, heads)
        weights = _attention_weights(query, key, heads, scores_bias)
        grad_weight, grad_bias = _linear_gradients(grad, _by_token(weights @ value, heads))
        grad = grad @ weight.to(qkv.dtype)
        grad = grad.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)
        grads = torch.empty(3, *query.shape, dtype=qkv.dtype, device=qkv.device)
        torch.bmm(weights.mT, grad, out=grads[2])
        scores = torch.ops.aten._softmax_backward_data(grad @ value.mT, weights, -1, qkv.dtype)
        torch.bmm(scores, key, out=grads[0]).mul_(query.shape[-1] ** -0.5)
        torch.bmm(scores.mT, query, out=grads[1])
        grad_qkv = grads.unflatten(1, (-1, heads)).permute(1, 3, 0, 2, 4).flatten(2)
        grad_scores_bias = None
        if scores_bias is not None:
            by_image = scores.unflatten(0, (-1, heads))
            grad_scores_bias = by_image.sum(0, dtype=scores_bias.dtype)
        return grad_qkv, None, grad_scores_bias, grad_weight, grad_bias, None


def _plain_linear(x: Tensor, linear: nn.Linear | Affine) -> Tensor:
    """Compute `linear(x)` with the bias added apart, which the compiler fuses at no cost."""
    product = F.linear(x, linear.weight)
    return product + linear.bias.to(product.dtype)


def _product_dtype(weight: Tensor) -> torch.dtype:
    """Choose the type of a matrix product: autocast's, if it is on and the weight is fp32."""
    kind = weight.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return (
        torch.get_autocast_dtype(kind)
        if autocast and weight.dtype == torch.float32
        else weight.dtype
    )


def _linear_gradients(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of weight and bias from the output's gradient and the input."""
    rows = grad.flatten(0, -2)
    return rows.mT @ x.flatten(0, -2), rows.sum(0)


def _by_head(qkv: Tensor, heads: int) -> Tensor:
    """Split (B, N, 3 * D) into query (scaled), key and value: (3, B * heads, N, D / heads)."""
    parts: Tensor = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
    parts = parts.contiguous()
    parts[0] *= parts.shape[-1] ** -0.5
    return parts


def _by_token(mixed: Tensor, heads: int) -> Tensor:
    """Join the heads of each token: (B * heads, N, D / heads) -> (B, N, D)."""
    tokens: Tensor = mixed.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
    return tokens


def _attention_weights(
    query: Tensor, key: Tensor, heads: int, scores_bias: Tensor | None
) -> Tensor:
    scores = query @ key.mT
    if scores_bias is not None:
        scores.unflatten(0, (-1, heads)).add_(scores_bias)
    # In bf16 under autocast, too.
    weights: Tensor = torch.ops.aten._softmax(scores, -1, False)
    return weights
