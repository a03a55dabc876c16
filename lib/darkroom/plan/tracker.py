"""The birth and death of every storage on one device, by category, module and phase.

A dispatch mode sees each operator's results; a weak reference to the storage says when it is gone.
What a kernel allocates and frees inside is not seen.
"""

from __future__ import annotations

import bisect
import contextlib
import weakref
from collections.abc import Iterable
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as modules
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .workspace import onednn

BIRTH, MOVE, DEATH = 1, 0, -1
ASKED = torch.ops.prim.device.default  # more than half of all dispatches
OUTSIDE = "losses"  # part of what is computed by no module of the recipe


def arithmetic(func, args: tuple) -> str:
    """Return what an operator computes in: bf16, fp16, tf32 (a float32 convolution) or fp32."""
    dtype = next((a.dtype for a in args if isinstance(a, torch.Tensor)), torch.float32)
    if dtype in (torch.bfloat16, torch.float16):
        return "bf16" if dtype is torch.bfloat16 else "fp16"
    return "tf32" if func.__name__.startswith("convolution") else "fp32"


class Tracker(TorchDispatchMode):
    """Record allocations on devices of one type while active.

    `events` are (kind, storage, bytes, category, path, phase): BIRTH, DEATH or another category
    from here on (MOVE); the last three index `categories`, `paths` and `phases`. `parts` are the
    networks by the name with which their paths begin. With `workspaces` what a CPU's kernels take
    inside is booked, too.
    """

    def __init__(
        self, device_type: str, parts: dict[str, torch.nn.Module], workspaces: bool = False
    ) -> None:
        super().__init__()
        self.device_type, self.workspaces = device_type, workspaces
        self.events: list[tuple[int, int, int, int, int, int]] = []
        self.categories: list[str] = []
        self.paths: list[str] = [""]
        self.phases: list[str] = ["between"]
        self.flops: dict[str, int] = {}
        # (phase, what is computed with, operations, bytes) -> kernels like that
        self.kernels: dict[tuple[int, str, int, int], int] = {}
        self._alive: dict[int, tuple[int, weakref.ref]] = {}  # address -> (number, reference)
        self._count = 0
        self._numbers: dict[str, dict[str, int]] = {
            "categories": {},
            "paths": {"": 0},
            "phases": {"between": 0},
        }
        self._path_of = {
            module: self._number("paths", f"{name}.{path}" if path else name)
            for name, part in parts.items()
            for path, module in part.named_modules()
        }
        self._part_of = {n: path.split(".")[0] for n, path in enumerate(self.paths)}
        self._stack: list[int] = []
        self._sequence: list[int] = [0]  # autograd's count of nodes where a module began or ended
        self._sequence_path: list[int] = [0]
        self._phase, self._forced = 0, None

    # --- where we are ---------------------------------------------------------------------------

    def _number(self, table: str, name: str) -> int:
        known = self._numbers[table]
        if name not in known:
            known[name] = len(known)
            names = getattr(self, table)
            if len(names) < len(known):
                names.append(name)
        return known[name]

    @contextlib.contextmanager
    def phase(self, name: str):
        """Book what follows under this phase; phases may be nested."""
        before, self._phase = self._phase, self._number("phases", name)
        try:
            yield
        finally:
            self._phase = before

    def enter(self, name: str) -> None:
        """Book the rest of the enclosing `phase` under another name."""
        self._phase = self._number("phases", name)

    @contextlib.contextmanager
    def category(self, name: str):
        """Book births under this category instead of the module's."""
        before, self._forced = self._forced, self._number("categories", name)
        try:
            yield
        finally:
            self._forced = before

    def _enter(self, module, inputs) -> None:
        path = self._path_of.get(module)
        if path is None:  # not of the recipe: keep the outer module's name
            path = self._stack[-1] if self._stack else 0
        self._stack.append(path)
        self._mark(path)

    def _leave(self, module, inputs, output) -> None:
        if self._stack:
            self._stack.pop()
        self._mark(self._stack[-1] if self._stack else 0)

    def _mark(self, path: int) -> None:
        self._sequence.append(torch._C._autograd._get_sequence_nr())
        self._sequence_path.append(path)

    def _where(self) -> tuple[int, int]:
        """Return (category, path) of a birth now."""
        node = torch._C._current_autograd_node()
        path = self._stack[-1] if self._stack else 0
        if node is not None and not self._stack:
            found = bisect.bisect_right(self._sequence, node._sequence_nr()) - 1
            path = self._sequence_path[found]
        if self._forced is not None:
            return self._forced, path
        part = self._part_of[path] if path else OUTSIDE
        kind = "backward" if node is not None and not self._stack else "activations"
        return self._number("categories", f"{part} {kind}"), path

    # --- what happens ---------------------------------------------------------------------------

    def __enter__(self):
        self._hooks = (
            modules.register_module_forward_pre_hook(self._enter),
            modules.register_module_forward_hook(self._leave, always_call=True),
        )
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is ASKED and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        flops, count = 0, flop_registry.get(func._overloadpacket)
        if count is not None:
            phase = self.phases[self._phase]
            flops = count(*args, **(kwargs or {}), out_val=out)
            self.flops[phase] = self.flops.get(phase, 0) + flops
        before = self._count
        self._follow(func, args, out)
        if flops or self._count > before or func._schema.is_mutable:  # else a view
            moved = self._moved(args) + self._moved((out,))
            if moved:
                kernel = (self._phase, arithmetic(func, args), flops, moved)
                self.kernels[kernel] = self.kernels.get(kernel, 0) + 1
        return out

    def _follow(self, func, args, out) -> None:
        """Book the storages that an operator made."""
        if self.workspaces:
            self._work(onednn(func, args), out)
        if isinstance(out, torch.Tensor):
            self._see(out)
        elif isinstance(out, (tuple, list)):
            for one in out:
                if isinstance(one, torch.Tensor):
                    self._see(one)

    def _moved(self, values: Iterable) -> int:
        """Return the bytes of the tensors on the device, lists of tensors included."""
        total = 0
        for value in values:
            if isinstance(value, torch.Tensor):
                if value.device.type == self.device_type:
                    total += value.numel() * value.element_size()
            elif isinstance(value, (list, tuple)):
                total += self._moved(value)
        return total

    def _work(self, steps: list[tuple[str, int]], out) -> None:
        """Book what a kernel takes and gives back between its results."""
        taken: dict[int, list[int]] = {}
        for step, size in steps:
            if step == "result":
                self._see(out[size] if isinstance(out, tuple) else out)
            elif step == "take" and size:
                category = self._number("categories", "workspaces")
                event = (BIRTH, self._count, size, category, self._where()[1], self._phase)
                self.events.append(event)
                taken.setdefault(size, []).append(self._count)
                self._count += 1
            elif size:
                self.events.append((DEATH, taken[size].pop(), size, 0, 0, self._phase))

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return
        size = storage.nbytes()
        if not size:
            return
        category, path = self._where()
        number = self._count
        self._count += 1
        gone = weakref.ref(storage, partial(self._gone, address, number, size))
        self._alive[address] = (number, gone)
        self.events.append((BIRTH, number, size, category, path, self._phase))

    def _gone(self, address: int, number: int, size: int, reference) -> None:
        found = self._alive.get(address)
        if found is not None and found[0] == number:
            del self._alive[address]
        self.events.append((DEATH, number, size, 0, 0, self._phase))

    def relabel(self, tensors: Iterable[torch.Tensor], category: str) -> None:
        """Book storages that are alive under another category from now on."""
        number = self._number("categories", category)
        for tensor in tensors:
            if tensor is not None and tensor.device.type == self.device_type:
                found = self._alive.get(tensor.untyped_storage()._cdata)
                if found is not None:
                    self.events.append((MOVE, found[0], 0, number, 0, self._phase))

    def own(self, category: str, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Book storages made before the tracker was active, such as weights, as births."""
        for path, tensor in named:
            self._stack.append(self._number("paths", path))
            self._part_of.setdefault(self._stack[-1], path.split(".")[0])
            with self.category(category):
                self._see(tensor)
            self._stack.pop()
