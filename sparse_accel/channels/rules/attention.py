"""Channels through products of activations: attention, whose heads are units."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.channels.attributes import REPEATS, known_sizes
from sparse_accel.channels.call import Call, Results, rule
from sparse_accel.channels.rules.elementwise import all_zero, join
from sparse_accel.channels.rules.linear import add_weighted, is_weight_product, times_weight
from sparse_accel.channels.slots import Value, reduce_all, shrink, tie_along

_QUERY_HEADS = "num_heads num_attention_heads n_heads n_head nhead heads num_query_heads"
_KEY_HEADS = "num_key_value_heads num_kv_heads n_kv_heads n_kv_head"
_HEADS_WIDTH = "all_head_size inner_dim inner_size"


class _Operand:
    """Labels of one factor in the letters of a product, size 1 where it has not the letter."""

    def __init__(self, value: Value, letters: str, space: str) -> None:
        labels = value.labels.permute([letters.index(letter) for letter in space if letter in letters])
        sizes = iter(labels.shape)
        self.labels = labels.reshape([next(sizes) if letter in letters else 1 for letter in space])
        self.extent = {letter: value.shape[letters.index(letter)] for letter in letters}

    def varying(self, space: str) -> set[str]:
        """The letters that hold channels."""
        return {space[dim] for dim, size in enumerate(self.labels.shape) if size > 1}


def product(call: Call, left: Value, right: Value, letters: str) -> Value:
    """What is known of a sum of products.

    A letter that both factors have is either summed over, or one of a batch: batch channels of both are tied. Channels
    that are summed over cannot go one by one. At most one factor brings channels in letters of its own.

    Args:
        call: the call.
        left: a factor.
        right: the other.
        letters: as for ``torch.einsum``, ``"bhqd,bhkd->bhqk"``.
    """
    slots = call.graph.slots
    first, rest = letters.split(",")
    second, out = rest.split("->")
    space = out + "".join(dict.fromkeys(c for c in first + second if c not in out))
    factors = [_Operand(left, first, space), _Operand(right, second, space)]
    for factor in factors:
        summed = factor.varying(space) - set(out)
        for letter in summed:
            factor.labels = tie_along(slots, factor.labels, space.index(letter))
        if summed and not factor.varying(space):
            slots.pin(factor.labels)
    shape = torch.Size(max(f.extent.get(letter, 1) for f in factors) for letter in out)
    own = [factor.varying(space) - set(other) for factor, other in zip(factors, (second, first), strict=True)]
    if own[0] and own[1]:
        for factor in factors:
            _keep(call, factor, space)
        return Value.opaque(shape)
    plain, rich = reversed(factors) if own[0] else factors  # only the second can have channels of its own
    labels = rich.labels
    if not plain.varying(space):
        if any(plain.extent.get(letter, 1) > 1 for letter in rich.varying(space)):
            _keep(call, rich, space)
        slots.pin(plain.labels)
    elif any(rich.extent.get(letter, 1) == 1 for letter in plain.varying(space)):  # all of them read one
        slots.pin(rich.labels)
        if any(rich.extent.get(letter, 1) > 1 for letter in plain.varying(space)):
            _keep(call, plain, space)
        labels = plain.labels
    else:
        if not rich.varying(space):
            _keep(call, plain, space)
        slots.unite(plain.labels, rich.labels)
    labels = labels.reshape(labels.shape[: len(out)])
    return Value(shape, labels, torch.zeros([1] * len(out), dtype=torch.bool, device="cpu"))


def _keep(call: Call, factor: _Operand, space: str) -> None:
    """Keep the channels of a factor, because the other one has none to go with them, and say so."""
    if factor.varying(space) and not call.graph.pinned(factor.labels):
        call.graph.note(f"{call.tracer.where()}: {call.name}: the other factor has not these channels, which are kept")
    call.graph.slots.pin(factor.labels)


def _heads(value: Value, dim: int) -> Tensor | None:
    """Labels along the dimension of the heads, [heads], or None if channels lie elsewhere."""
    return value.labels.reshape(-1) if value.varying() == {dim % len(value.shape)} else None


def note_heads(call: Call, query: Value, key: Value, dim: int = -3, key_dim: int = -3) -> None:
    """Remember the units of an attention, and the attributes of its module that count them.

    Args:
        call: the product of queries and keys.
        query: its first factor.
        key: the other.
        dim: of the query's heads.
        key_dim: of the key's heads.
    """
    if min(len(query.shape), len(key.shape)) < 3:
        return
    query_heads, key_heads = _heads(query, dim), _heads(key, key_dim)
    single = key.shape[key_dim] == 1 and key_dim % len(key.shape) not in key.varying()  # for all queries' heads
    if query_heads is None or (key_heads is None and not single) or call.graph.pinned(query_heads):
        return
    if call.graph.heads_known(query_heads):  # the product of weights and values
        return
    name, module = call.tracer.stack[-1]
    counting = " ".join((_QUERY_HEADS, *REPEATS))
    if key_heads is None and not known_sizes(len(query_heads), counting, module):
        return  # any product of channels with a matrix that they share
    call.graph.heads.append((name, query_heads))
    size = query.shape[-1]
    counts = [(_QUERY_HEADS, query_heads), (_HEADS_WIDTH, query_heads.repeat_interleave(size))]
    if single or key_heads is None:
        counts.append((" ".join(REPEATS), query_heads))
    else:  # once each, where they were repeated for their query heads
        counts.append((_KEY_HEADS, key_heads.unique_consecutive()))
    for names, heads in counts:
        for attribute in known_sizes(len(heads), names, module):
            call.graph.count((name, module), attribute, heads)


@rule("scaled_dot_product_attention")
def _attention(call: Call) -> Results:
    # (query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa); [..., positions, features].
    query, key, value = call.value(0, "query"), call.value(1, "key"), call.value(2, "value")
    tensor = call.arg(2, "value").detach()
    zero = reduce_all(value.const & all_zero(tensor, value.const), [len(value.shape) - 2])
    ndim = len(query.shape)
    if not ndim == len(key.shape) == len(value.shape) or ndim > 6:
        return call.give_up("factors of different dimensions")
    heads = key
    if call.arg(7, "enable_gqa", False):
        key, value = (_repeated(one, query) for one in (key, value))
        zero = torch.zeros([1] * ndim, dtype=torch.bool, device="cpu")
    batch = "abcd"[: ndim - 2]
    scores = product(call, query, key, f"{batch}qe,{batch}ke->{batch}qk")
    note_heads(call, query, heads)
    mask = call.arg(3, "attn_mask")
    if mask is not None:
        known = call.tracer.value_of(mask)
        pad = [1] * (ndim - len(known.shape))
        scores.labels = join(
            call,
            scores.labels,
            known.labels.reshape(pad + list(known.labels.shape)),
            list(scores.shape),
            pad + list(known.shape),
        )
        for dim in (ndim - 2, ndim - 1):
            if scores.labels.shape[dim] > 1:
                return call.give_up("the mask holds channels, which are kept")
    result = product(call, scores, value, f"{batch}qk,{batch}ke->{batch}qe")
    return Value(call.result.shape, result.labels, zero)


def _repeated(value: Value, query: Value) -> Value:
    """Keys or values with each head repeated for the query heads that it serves; a single one serves any number."""
    if value.shape[-3] == 1:
        return value
    times = query.shape[-3] // value.shape[-3]
    shape = torch.Size((*value.shape[:-3], query.shape[-3], *value.shape[-2:]))
    labels = value.labels
    return Value(shape, labels.repeat_interleave(times, -3) if labels.shape[-3] > 1 else labels, value.const)


@rule("matmul", "mm", "bmm")
def _matmul(call: Call) -> Results:
    if is_weight_product(call):
        return times_weight(call)
    left = call.value(0, "self" if "self" in call.kwargs else "input")
    right = call.value(1, "other" if call.name == "matmul" else "mat2")
    if min(len(left.shape), len(right.shape)) < 2 or max(len(left.shape), len(right.shape)) > 7:
        return call.give_up("not a product of matrices")
    names = "abcde"
    first = names[len(names) - len(left.shape) + 2 :] + "mk"
    second = names[len(names) - len(right.shape) + 2 :] + "kn"
    longer = first if len(first) >= len(second) else second
    if left.varying() or right.varying():
        for tensor in call.tensors():
            if id(tensor) in call.tracer.names:
                return call.give_up("a product with a whole parameter")
    result = product(call, left, right, f"{first},{second}->{longer[:-2]}mn")
    note_heads(call, left, right)
    result.shape = call.result.shape
    return result


@rule("addmm", "baddbmm")
def _addmm(call: Call) -> Results:
    return add_weighted(call) if call.name == "addmm" else call.give_up("not a product with a weight")


@rule("einsum")
def _einsum(call: Call) -> Results:
    operands = call.arg(1, "operands")
    tensors = call.tensors()
    letters = call.arg(0, "equation").replace(" ", "")
    if not isinstance(letters, str) or "->" not in letters or "." in letters or len(tensors) != 2 or operands is None:
        return call.give_up("has no rule for this equation")
    parts = letters.split("->")[0].split(",")
    if any(len(set(part)) != len(part) for part in parts) or any(id(t) in call.tracer.names for t in tensors):
        return call.give_up("has no rule for this equation")
    left, right = (call.tracer.value_of(tensor) for tensor in tensors)
    alone = [set(a) - set(b) - set(letters.split("->")[1]) for a, b in (parts, parts[::-1])]
    if any(alone):
        return call.give_up("has no rule for this equation")
    result = product(call, left, right, letters)
    for letter in letters.split("->")[1]:
        if letter in parts[0] and letter in parts[1]:
            note_heads(call, left, right, parts[0].index(letter), parts[1].index(letter))
    return Value(call.result.shape, shrink(result.labels), result.const)


@rule("multi_head_attention_forward", "_native_multi_head_attention", "_transformer_encoder_layer_fwd")
def _fused_attention(call: Call) -> Results:
    return call.give_up("splits the width of its input into heads, which stay (prune.open_attention makes them units)")
