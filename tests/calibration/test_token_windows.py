"""Token sequences cut into windows: nothing of the text is lost but the rest, and every window has its marks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.prune import token_windows


@given(rows=st.integers(0, 3), tokens=st.integers(0, 40), first=st.integers(0, 2), last=st.integers(0, 2),
       body=st.integers(1, 9))  # fmt: skip
def test_windows_hold_the_text_in_order(rows: int, tokens: int, first: int, last: int, body: int) -> None:
    whole = torch.arange(rows * tokens).view(rows, tokens)
    whole[:, :first], whole[:, max(tokens - last, 0) :] = -1, -2
    length = first + body + last
    (windows,) = token_windows(whole, length, marks=(first, last))
    if tokens <= length:
        assert torch.equal(windows, whole)
        return
    number = (tokens - first - last) // body
    assert windows.shape == (rows * number, length)
    for row, own in zip(whole, windows.view(rows, number, length), strict=True):
        text = row[first : tokens - last]
        assert torch.equal(own[:, first : first + body].flatten(), text[: number * body])
        assert len(text) - number * body < body
        assert (own[:, :first] == row[:first]).all()
        assert (own[:, first + body :] == row[tokens - last :]).all()


def test_mappings_are_cut_alike_and_batches_stay_apart() -> None:
    ids = torch.arange(24).view(2, 12)
    ids[:, 0], ids[:, -1] = 100, 102
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids % 2}
    one, two = token_windows([batch, {"input_ids": ids[:1]}], 7)
    assert one["input_ids"].tolist() == [
        [100, 1, 2, 3, 4, 5, 102],
        [100, 6, 7, 8, 9, 10, 102],
        [100, 13, 14, 15, 16, 17, 102],
        [100, 18, 19, 20, 21, 22, 102],
    ]
    assert torch.equal(one["token_type_ids"], one["input_ids"] % 2)
    assert one["attention_mask"].all()
    assert torch.equal(two["input_ids"], one["input_ids"][:2])
    (single,) = token_windows(batch, 7)
    assert torch.equal(single["input_ids"], one["input_ids"])


IDS = torch.ones(2, 8, dtype=torch.long)


@pytest.mark.parametrize(
    "sequences, length, error, message",
    [
        (IDS, 2, ValueError, r"length: expected more than the 1 \+ 1 marks of a window, got 2"),
        (IDS.float(), 4, TypeError, r"expected integer tokens \[N, L\].*got torch.float32 \[2, 8\]"),
        (IDS[0], 4, TypeError, r"got torch.int64 \[8\]"),
        ([["a", "b"]], 4, TypeError, "got list"),
        ({"input_ids": IDS, "attention_mask": IDS.tril()}, 4, ValueError, "expected no padding"),
        (torch.arange(16).view(2, 8), 4, ValueError, "marks: expected the same 1 first and 1 last tokens"),
        ({"attention_mask": IDS}, 4, ValueError, "expected input_ids, got attention_mask"),
        ({"input_ids": IDS, "position_ids": IDS}, 4, ValueError, "token_type_ids alone, got position_ids"),
    ],
)
def test_what_cannot_be_cut_is_refused(sequences: Any, length: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        token_windows(sequences, length)
    with pytest.raises(ValueError, match="length"):
        token_windows(IDS, 9, marks=(-1, 1))
