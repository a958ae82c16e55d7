"""A session at a desk of its own: in a folder, with a saver that really saves and trackers that remember."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from launcher.runtime.console import Meter
from launcher.runtime.profiler import StepProfiler
from launcher.runtime.resume import find
from launcher.runtime.rundir import RunDir
from launcher.runtime.session import Session
from launcher.runtime.settings import ProfilerSettings, Settings, TrackerSettings
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World
from tests.launcher.runtime.saving import RUN_ID, cadence, make_saver, steps


class Notebook:
    """A tracker that remembers what it was told."""

    def __init__(self, step: int) -> None:
        self.opened_at = step
        self.logged: list[tuple[int, dict]] = []
        self.summary = None

    def log(self, values, step):
        self.logged.append((step, dict(values)))

    def finish(self, summary):
        assert self.summary is None, "finished twice"
        self.summary = dict(summary)


class Desk:
    """A session in a folder that has looked for what to go on from, its saver, and the trackers that it opened."""

    def __init__(self, folder, attempt=1, world=None, fresh=True, profiler=None, **checkpoint) -> None:
        self.opened: list[Notebook] = []
        self.stop = StopFlag()
        self.rundir = RunDir(folder)
        world = world or World()
        self.found = find(self.rundir, RUN_ID, World(), restart_if_damaged=False)
        restored = self.found.restored
        path = restored.path if restored else None
        self.saver = make_saver(folder, attempt, world=world, restored=path, **checkpoint)
        self.beats: list[str] = []
        self.session = Session(
            {"lr": 0.1},
            world,
            self.rundir,
            Settings(checkpoint=cadence(**checkpoint), tracker=TrackerSettings()),
            restored=restored,
            saver=self.saver,
            stop=self.stop,
            meter=Meter(Console(file=io.StringIO()), visible=False),
            open_trackers=self._open,
            hosts=["here"] * world.size,
            beat=self.beats.append,
            profiler=StepProfiler(profiler or ProfilerSettings(), self.rundir, world, attempt),
        )
        self.restored = self.session.restore() if fresh else None

    def save(self, step, model=None, metric=None, **more):
        """Offer a state, and wait for what is written of it."""
        self.session.save({"step": step, "model": toy()[0] if model is None else model, **more}, metric)
        self.saver.wait()

    def _open(self, step):
        self.opened.append(Notebook(step))
        return [self.opened[-1]]

    def steps(self, kind="step"):
        """Steps of the checkpoints that are there, oldest first."""
        return steps(self.rundir.path, kind)[::-1]


def toy() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and an optimizer that has a state."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer
