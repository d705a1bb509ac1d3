"""The batched Muon does what torch.optim.Muon does."""

import torch
from torch import nn

from nano.optimization import BatchedMuon


def test_batched_muon_follows_the_one_in_torch() -> None:
    """Three steps on tall, wide and square matrices end at the same weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (32, 16), (16, 48), (16, 16)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    batched = BatchedMuon(ours)
    reference = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.clone()
        batched.step(0.01)
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=0)
