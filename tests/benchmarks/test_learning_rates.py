"""The head that is trained alone to find learning rates: its gradients are those of DP-SGD."""

import torch
from torch.nn import functional

from learning_rates import clipped_sum


def test_each_record_s_gradient_is_clipped_before_they_are_summed():
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.rand(8, 5, generator=generator)
    y = functional.one_hot(torch.arange(8) % 3).float()
    head = torch.randn(3, 5, generator=generator)
    expected, cut = torch.zeros_like(head), 0
    for record, label in zip(x, y, strict=True):
        weight = head.clone().requires_grad_()
        functional.cross_entropy((weight @ record)[None], label[None]).backward()
        norm = float(weight.grad.norm())
        expected += weight.grad / max(norm, 1.0)
        cut += norm > 1
    assert 0 < cut < 8
    torch.testing.assert_close(clipped_sum(x, y, head.numpy()), expected)
