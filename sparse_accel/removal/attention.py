"""``nn.MultiheadAttention`` written out, so that its heads are units that can go."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel._modes import outside_inference_mode
from sparse_accel.channels.graph import UnsupportedModelError
from sparse_accel.removal.compact import copy_model
from sparse_accel.wrappers import bare_model


class OpenAttention(nn.Module):
    """What an ``nn.MultiheadAttention`` computes, with a linear layer each for queries, keys, values and the output.

    The class of torch takes the number and the size of its heads from the width of its input: it cannot have fewer.
    This one can, and is called alike. :func:`open_attention` makes it.

    Args:
        attention: whose parameters it takes over (those of the output projection are shared, the others copied).

    Attributes:
        num_heads, head_dim: of the attention; the first follows a removal.

    Raises:
        UnsupportedModelError: the attention has ``add_bias_kv``, ``add_zero_attn`` or hooks.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> x = torch.randn(3, 5, 8)
        >>> bool(torch.allclose(OpenAttention(attention)(x, x, x)[0], attention(x, x, x)[0], atol=1e-6))
        True
    """

    in_proj_bias = None  # what nn.TransformerEncoderLayer asks before it takes a path that goes around forward
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        kind = type(attention).__name__
        if attention.bias_k is not None or attention.bias_v is not None or attention.add_zero_attn:
            raise UnsupportedModelError(f"{kind}: add_bias_kv and add_zero_attn are not known here")
        if attention._forward_hooks or attention._forward_pre_hooks:
            raise UnsupportedModelError(f"{kind}: it has forward hooks, which would be lost: remove them first")
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.head_dim, self.dropout = attention.head_dim, attention.dropout
        self.batch_first = attention.batch_first
        together: Tensor | None = attention.in_proj_weight
        if attention._qkv_same_embed_dim and together is not None:
            weights, learns = tuple(together.chunk(3)), [together.requires_grad] * 3
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            learns = [weight.requires_grad for weight in weights]
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases, learns)
        self.out_proj = attention.out_proj
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``, of ``[batch, length, width]`` (``[length, batch, width]`` without batch_first).

        Averages over heads (``need_weights`` with ``average_attn_weights``, both the default) are over those that are
        left; while a model is analysed they keep all heads: call it with ``need_weights=False``.

        Raises:
            ValueError: a mask does not fit, or ``is_causal`` comes without one.
        """
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask: expected one beside is_causal=True, got None")
        batched, first = query.dim() == 3, 0 if self.batch_first else 1
        if not batched:
            query, key, value = (x.unsqueeze(first) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, length, head_dim]
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-1, -2)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            out = weights @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not self.batch_first:
            out = out.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            out, weights = out.squeeze(first), None if weights is None else weights.squeeze(0)
        return out, weights

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores, ``[batch or 1, heads or 1, length or 1, keys]``."""
        masks = []
        if attn_mask is not None:
            mask = _added(attn_mask, q)
            if mask.dim() == 3:
                if mask.shape[0] != q.shape[0] * self.num_heads:
                    raise ValueError(
                        f"attn_mask: expected [{q.shape[0] * self.num_heads}, ...], batch times heads, got "
                        f"{[*mask.shape]}"
                    )
                mask = mask.unflatten(0, (-1, self.num_heads))
            masks.append(mask)
        if padding is not None:
            masks.append(_added(padding, q)[:, None, None])
        return sum(masks[1:], masks[0]) if masks else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)


def _linear(weight: Tensor, bias: Tensor | None, learns: bool) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=learns)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=learns)
    return layer


@outside_inference_mode
def open_attention(model: nn.Module) -> nn.Module:
    """A copy of a model whose ``nn.MultiheadAttention`` modules are :class:`OpenAttention`: their heads are units.

    The copy computes the same, and :class:`~sparse_accel.prune.ISpaSP`, :func:`~sparse_accel.prune.remove_units` and
    :func:`sparse_accel.compact` remove its heads. What they return is saved as any result; to load it, open a fresh
    model likewise: ``sa.load(folder, open_attention(Model()))``. Names of parameters change: ``in_proj_weight`` becomes
    ``q_proj.weight``, ``k_proj.weight`` and ``v_proj.weight``.

    Args:
        model: with such modules; it does not change. Subclasses of the class stay as they are.

    Raises:
        UnsupportedModelError: there is none, or one has ``add_bias_kv``, ``add_zero_attn`` or hooks; the message names
            it.

    Example:
        >>> import sparse_accel as sa
        >>> layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
        >>> for width in sa.prune.find_widths(open_attention(layer), torch.randn(1, 3, 16)):
        ...     print(width.name, width.kind, width.units)
        self_attn heads 4
        linear1 channels 32
    """
    out = copy_model(bare_model(model, UnsupportedModelError))
    made: dict[nn.Module, OpenAttention] = {}
    for name, module in list(out.named_modules(remove_duplicate=False)):
        if type(module) is not nn.MultiheadAttention:
            continue
        if module not in made:
            try:
                made[module] = OpenAttention(module)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"{name or 'model'}: {error}") from error
        if not name:
            return made[module]
        parent, _, key = name.rpartition(".")
        setattr(out.get_submodule(parent), key, made[module])
    if not made:
        raise UnsupportedModelError("model: expected one with nn.MultiheadAttention, got none of these")
    for module in out.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # a path that reads in_proj_weight
    return out
