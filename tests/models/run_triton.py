"""Compare the Triton kernel with the dense twin, forward and backward; run with TRITON_INTERPRET=1.

Prints the name of each form that agrees to 2e-5 in float32; the rows are empty, one event, one event
longer than a tile.
"""

from __future__ import annotations

import torch

from dynamix.models.kernels.dispatch import attention, attention_with_lse
from dynamix.models.kernels.form import Form, Keys


def main() -> None:
    """AssertionError at the first tensor that differs."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, 0, 1, 34, 34])
    for form in (Form(), Form(causal=True), Form(activation="silu", norm=3.0)):
        for keys in (Keys(), Keys(torch.randn(34, 1).requires_grad_(), torch.rand(34) < 0.6)):
            q, k, v = (torch.randn(34, 1, width).requires_grad_() for width in (4, 4, 3))
            inputs = [x for x in (q, k, v, keys.bias) if x is not None]
            above = torch.randn(34, 1, 3)
            runs = []
            for backend in ("triton", "dense"):
                if form.activation == "softmax":
                    out, lse = attention_with_lse(q, k, v, offsets, keys=keys, form=form, backend=backend)
                else:
                    out = attention(q, k, v, offsets, keys=keys, form=form, backend=backend)
                    lse = torch.zeros(1)
                runs.append([out.detach(), lse, *torch.autograd.grad((out * above).sum(), inputs)])
            for ours, twin in zip(*runs, strict=True):
                torch.testing.assert_close(ours, twin, atol=2e-5, rtol=0)
        print(form.activation + ("-causal" if form.causal else ""))
    nothing = torch.zeros(0, 2, 4)
    assert attention(nothing, nothing, nothing, torch.tensor([0, 0]), backend="triton").shape == (0, 2, 4)


if __name__ == "__main__":
    main()
