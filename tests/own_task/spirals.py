"""Two spirals, told apart by a small network: a training loop of one's own."""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel


def train(session):
    """Train as ``session.config`` says, from the last checkpoint where there is one."""
    config, world = session.config, session.world
    torch.manual_seed(config.seed)
    layers = nn.Linear(2, config.width), nn.Tanh(), nn.Dropout(config.dropout), nn.Linear(config.width, 1)
    model = nn.Sequential(*layers).to(world.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
    wrapped = DistributedDataParallel(model) if world.size > 1 else model
    session.expect(config.steps)
    saved = session.restore() or {"step": 0}
    if saved["step"]:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(saved["step"] + 1, config.steps + 1):
        points, sides = points_of(step, config)
        logits = wrapped(points[world.rank :: world.size].to(world.device)).squeeze(1)
        loss = binary_cross_entropy_with_logits(logits, sides[world.rank :: world.size].to(world.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % config.log_every == 0:
            session.log({"train/loss": loss.item()}, step)
        stop = session.should_stop()
        session.save({"step": step, "model": model, "optimizer": optimizer})
        if stop:
            return None
    points, sides = points_of(0, config)
    right = (model.eval()(points.to(world.device)).squeeze(1).cpu() > 0) == (sides > 0)
    return {"accuracy": right.float().mean().item()}


def points_of(step, config):
    """The points of a step, (batch, 2), and their sides: a function of the seed and the step alone."""
    drawn = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    radius = torch.rand(config.batch_size, generator=drawn)
    sides = torch.randint(2, (config.batch_size,), generator=drawn).float()
    angle = torch.pi * (2 * radius + sides)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1), sides
