"""A short training without nerfstudio's trainer."""

from typing import List

import torch


def train(pipeline, steps: int) -> List[float]:
    """Photometric losses of a short training."""
    groups = pipeline.get_param_groups()
    optimizers = [
        torch.optim.Adam(groups["grids"], lr=6e-2, eps=1e-15),
        torch.optim.Adam(groups["networks"], lr=5e-3, eps=1e-15),
    ]
    losses = []
    pipeline.train()
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        _, loss_dict, _ = pipeline.get_train_loss_dict(step)
        sum(loss_dict.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 16 == 15:
            pipeline.model.update_occupancy(step)
        losses.append(float(loss_dict["photometric"]))
    return losses
