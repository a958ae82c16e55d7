"""A copy of the state at one step: all that the training loop waits for when it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.runtime.checkpoint.copying import Copier
from launcher.runtime.checkpoint.image import Image
from launcher.runtime.checkpoint.tree import take_apart


@dataclass(frozen=True)
class Snapshot:
    """Entries of a state, each as plain values and, where it has tensors, their image."""

    trees: Mapping[str, Any]
    images: Mapping[str, Image]
    parameters: frozenset[str]
    """Names in the image of ``model`` that must be finite."""

    def only(self, names: set[str]) -> Snapshot:
        """The entries ``names`` of it."""
        trees = {name: tree for name, tree in self.trees.items() if name in names}
        return Snapshot(trees, {n: image for n, image in self.images.items() if n in names}, self.parameters)

    def wait(self) -> None:
        """Until all of it has arrived from the GPU."""
        for image in self.images.values():
            image.wait()

    @property
    def n_bytes(self) -> int:
        """Size of its tensors on disk."""
        return sum(len(image.memory) for image in self.images.values())

    def first_not_finite(self) -> str | None:
        """Name of a parameter of the model with a value that is not finite."""
        image = self.images.get("model")
        return image.first_not_finite(self.parameters) if image else None


class Camera:
    """Takes snapshots into memory that it uses again: one at a time."""

    def __init__(self) -> None:
        self._images: dict[str, Image] = {}
        self._copier = Copier()

    def take(self, state: Mapping[str, Any]) -> Snapshot:
        """Copy ``state``: tensors, plain values, containers of them, objects with ``state_dict()``.

        Raises:
            TypeError: something in it cannot be saved; says where.
        """
        trees: dict[str, Any] = {}
        images: dict[str, Image] = {}
        for name, value in state.items():
            if not name.isidentifier():  # it names a file
                raise TypeError(f"state {name!r}: the name of an entry should be letters, digits and underscores")
            trees[name], tensors = take_apart(state_of(value), name)
            if tensors:
                images[name] = self._image(name, tensors)
                images[name].copy(tensors, self._copier)
        return Snapshot(trees, images, _parameters(state.get("model")))

    def _image(self, name: str, tensors: Mapping[str, Any]) -> Image:
        image = self._images.get(name)
        if image is None or not image.fits(tensors):
            image = self._images[name] = Image(tensors)
        return image


def state_of(value: Any) -> Any:
    """What of ``value`` is saved."""
    return value.state_dict() if hasattr(value, "state_dict") else value


def _parameters(model: Any) -> frozenset[str]:
    """Buffers may hold what they like, an attention mask its infinities; parameters may not."""
    named = getattr(model, "named_parameters", None)
    return frozenset(name for name, _ in named()) if named else frozenset()
