"""What the weights of a module were when a program was made of them, and whether they still are: asked before every call."""

import functools
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from leanlm.model.linear import Matrix

_version = attrgetter("_version")


class Registrations:
    """How many parameters, buffers and modules were given to modules of this process since this was made."""

    def __init__(self):
        self.count = 0
        for register in (
            torch_module.register_module_parameter_registration_hook,
            torch_module.register_module_buffer_registration_hook,
            torch_module.register_module_module_registration_hook,
        ):
            register(self._add)

    def _add(self, *registered: object) -> None:
        self.count += 1


@functools.cache
def registrations() -> Registrations:
    """The process's own; counts from the first call on."""
    return Registrations()


class Memory:
    """Which objects a few dicts hold, and where the tensors among them lie. All are kept alive, so that none comes back as
    another."""

    def __init__(self, tables: Sequence[dict[str, object]]):
        self.tables = tables
        self.held = self._objects()
        self.tensors = [one for one in self.held if isinstance(one, Tensor)]
        self.kept = [tensor.detach() for tensor in self.tensors]  # of its own, where `.data` of the tensor is replaced
        self.addresses = self._addresses()

    def same(self, closely: bool = True) -> bool:
        """Whether they are the same objects and, looked at closely, lie where they did."""
        now = self._objects()
        same = len(now) == len(self.held) and all(map(is_, now, self.held))
        return same and not (closely and self._addresses() != self.addresses)

    def _objects(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self.tables)))

    def _addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self.tensors))


class Versions:
    """How often torch has counted that tensors were written to; it does not for inference tensors."""

    def __init__(self, tensors: Iterable[Tensor]):
        self.tensors = [tensor for tensor in tensors if not tensor.is_inference()]
        self.counts = self._counts()

    def same(self) -> bool:
        return self._counts() == self.counts

    def _counts(self) -> list[int]:
        return list(map(_version, self.tensors))


def tables(module: nn.Module) -> list[dict[str, object]]:
    """Where a module and those inside it keep parameters, buffers and modules."""
    return [table for one in module.modules() for table in (one._parameters, one._buffers, one._modules) if table]


class Placement:
    """Where the weights of a module lie, whatever is written there."""

    def __init__(self, module: nn.Module):
        self.registrations = registrations()
        self.registered = self.registrations.count
        self.memory = Memory(tables(module))

    def same(self, closely: bool) -> bool:
        """Whether they still do. At a glance only what is given to modules as attributes is seen, closely also other tables
        and what `.data` is."""
        registered = self.registrations.count
        if not closely and registered == self.registered:
            return True
        self.registered = registered
        return self.memory.same()


class Snapshot:
    """The weights of a module, which it does not keep alive.

    `same` sees every change: also of layers, of what `.data` is, inside packed matrices, and what torch does not count as
    writing (through `.data`, by fused optimisers, to inference tensors), this not in the matrices, of which there are no
    copies. `same_at_a_glance` sees weights that are replaced as attributes or written to. It touches little memory, since the
    weights of a token leave none of it in a cache: for every new token of a text the whole would take a noticeable part of
    its time.
    """

    def __init__(self, module: nn.Module):
        self.registrations = registrations()
        self.registered = self.registrations.count
        self.versions = Versions(module.parameters())
        self.everything = Memory(tables(module))
        self.buffers = Versions(module.buffers())
        matrices = {id(one.weight) for one in module.modules() if isinstance(one, Matrix)}
        self.small = [weight.detach() for weight in module.parameters() if id(weight) not in matrices]
        self.values = [weight.clone() for weight in self.small]

    def same_at_a_glance(self) -> bool:
        if self.registered != self.registrations.count:
            return self.same()
        return self.versions.same()

    def same(self) -> bool:
        registered = self.registrations.count
        kept = self.everything.same() and self.versions.same() and self.buffers.same()
        if kept and all(map(Tensor.equal, self.small, self.values)):
            self.registered = registered  # elsewhere
            return True
        return False
