"""Rewriter: the one way to change the graph of a Program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn
from torch._ops import OpOverload

from sparsefx.errors import ProgramError
from sparsefx.graph.callables import callable_name
from sparsefx.graph.ops import MODE, Mode
from sparsefx.graph.shapes import is_wired_as, wiring
from sparsefx.inputs.signature import InputSpec

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Rewriter"]


class Rewriter:
    """Edits one Program and keeps what FX forgets: shapes, origin and the pass that did it.

    Every node that it makes carries ``meta["val"]`` (shape and dtype), ``meta["by"]`` (the author)
    and ``meta["module"]`` (from the node it stands for). Call :meth:`finish` when done; the
    pipeline does so after each pass.

    Args:
        program: The Program to edit in place.
        author: Name of the pass.
    """

    def __init__(self, program: Program, author: str = "") -> None:
        self.program = program
        self.author = author
        self._anchor: fx.Node | None = None
        self._last_tensor: fx.Node | None = None
        self._reads: dict[str, fx.Node] | None = None
        self._shapes = program.shapes
        self.wired: dict[fx.Node, tuple[object, ...]] = {}
        """What values were inferred from; the verifier looks at nodes that are wired otherwise."""

    # -- nodes -----------------------------------------------------------------------------------

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """Make new nodes stand just before ``node``."""
        with self._at(node), self.program.graph.inserting_before(node):
            yield

    @contextmanager
    def after(self, node: fx.Node) -> Iterator[None]:
        """Make new nodes stand just after ``node``, in the order in which they are made."""
        with self._at(node), self.program.graph.inserting_before(node.next):
            yield

    @contextmanager
    def _at(self, node: fx.Node) -> Iterator[None]:
        outer, self._anchor = self._anchor, node
        try:
            yield
        finally:
            self._anchor = outer

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call at the current place (see :meth:`before`) and return its node.

        Raises:
            ProgramError: When no place is set, or the operator refuses these inputs.
            ArtifactError: The function is none that a Program can hold, such as a custom operator.
        """
        callable_name(target)
        if self._anchor is None:
            raise ProgramError(
                "no place for the new node",
                who=self.author,
                hint="wrap the call in 'with rewriter.before(node):'",
            )
        name = target._opname if isinstance(target, OpOverload) else target.__name__
        node = self.program.graph.create_node("call_function", target, args, kwargs, name)
        return self._adopt(node, self._anchor)

    def _adopt(self, node: fx.Node, origin: fx.Node) -> fx.Node:
        node.meta = {key: origin.meta[key] for key in ("module",) if key in origin.meta}
        if self.author:
            node.meta["by"] = self.author
        self._shapes.infer_node(self.program._module, node)
        self.wired[node] = wiring(node)
        return node

    def replace(
        self, old: fx.Node, new: fx.Node, *, erase: bool = True, same_type: bool = True
    ) -> None:
        """Let every user of ``old`` use ``new`` instead, but not ``new``'s own inputs.

        Args:
            old: What is replaced.
            new: What stands for it.
            erase: Whether ``old`` goes when nothing uses it any more.
            same_type: False where every user gives the same from another dtype or shape too, as an
                expand does; the verifier then looks at the users after the pass.

        Raises:
            ProgramError: When the two differ in dtype or shape, for any size of the dynamic
                dimensions.
        """
        users = [user for user in old.users if user is not new]
        with self._same_values(old, new, users if same_type else ()):
            old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        if erase and not old.users:
            self.erase(old)

    def replace_input(self, user: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """Let ``user`` alone use ``new`` instead of ``old``; errors as in :meth:`replace`."""
        with self._same_values(old, new, (user,)):
            user.replace_input_with(old, new)

    @contextmanager
    def _same_values(self, old: fx.Node, new: fx.Node, users: Sequence[fx.Node]) -> Iterator[None]:
        """Hold the two to one type; then what the users give stays known."""
        if users:
            self._check_same_type(old, new)
        known = [user for user in users if is_wired_as(user, self.wired.get(user))]
        yield
        self.wired.update((user, wiring(user)) for user in known)

    def _check_same_type(self, old: fx.Node, new: fx.Node) -> None:
        before, after = old.meta.get("val"), new.meta.get("val")
        if self._shapes.agree(before, after):
            return
        raise ProgramError(
            f"its replacement %{new.name} is {self._shapes.describe(after)}, it is "
            f"{self._shapes.describe(before)}",
            who=self.author,
            where=f"%{old.name}",
            hint="a replacement has the dtype and the shape of what it replaces, for every size of "
            "the dynamic dimensions; users that want another type are given it with set_args",
        )

    def set_args(self, node: fx.Node, *args: Any, **kwargs: Any) -> None:
        """Give ``node`` new arguments and infer its shape again."""
        node.args = args
        node.kwargs = kwargs
        self._shapes.infer_node(self.program._module, node)
        self.wired[node] = wiring(node)

    def erase(self, node: fx.Node) -> None:
        """Remove a node.

        Raises:
            ProgramError: When something still uses it.
        """
        if node.users:
            users = ", ".join(f"%{user.name}" for user in node.users)
            raise ProgramError(
                f"it is still used by {users}", who=self.author, where=f"%{node.name}"
            )
        self.program.graph.erase_node(node)

    def erase_unused(self, ends: Iterable[fx.Node]) -> int:
        """Erase what nothing uses any more of ``ends`` and of all they were computed from.

        Tensors that only erased nodes read are removed from the Program; inputs stay.

        Returns:
            The number of nodes erased.
        """
        order = {node: index for index, node in enumerate(self.program.graph.nodes)}
        behind = set(ends)
        stack = list(behind)
        while stack:
            fresh = set(stack.pop().all_input_nodes) - behind
            behind |= fresh
            stack.extend(fresh)
        count = 0
        for node in sorted(behind, key=order.__getitem__, reverse=True):
            if node.users or node.op == "placeholder":
                continue
            count += 1
            if node.op == "get_attr":
                self.remove_tensor(str(node.target))
            else:
                self.erase(node)
        return count

    def training(self) -> fx.Node:
        """Return the node that says whether the Program trains; a graph without dropout gets it."""
        found: list[fx.Node] = self.program.graph.find_nodes(op="call_module", target=MODE)
        if found:
            return found[0]
        if not hasattr(self.program._module, MODE):
            self.program._module.add_module(MODE, Mode().train(self.program.training))
        calls = (n for n in self.program.graph.nodes if n.op not in ("placeholder", "get_attr"))
        first = next(calls)
        with self.program.graph.inserting_before(first):
            node = self.program.graph.call_module(MODE)
        return self._adopt(node, first)

    # -- tensors ---------------------------------------------------------------------------------

    def get(self, name: str) -> fx.Node:
        """Return the node that reads a tensor; there is one for each tensor, above all calls."""
        name = self.program.canonical(name)
        return self._reader(name) or self._read(name)

    def _reader(self, name: str) -> fx.Node | None:
        """Return the node that reads a tensor; FX would look at all tensors for each one."""
        if self._reads is None:
            nodes = self.program.graph.find_nodes(op="get_attr")
            self._reads = {str(node.target): node for node in nodes}
        node = self._reads.get(name)
        if node is not None and not node._erased:
            return node
        found = self.program.graph.find_nodes(op="get_attr", target=name)
        return found[0] if found else None

    def _read(self, name: str) -> fx.Node:
        self.program.tensor(name)
        last = self._last_tensor
        if last is None or last._erased:  # found once: a search for every tensor is quadratic
            nodes = self.program.graph.nodes
            last = [n for n in nodes if n.op in ("placeholder", "get_attr")][-1]
        with self.program.graph.inserting_after(last):
            node = self.program.graph.get_attr(name)
        self._last_tensor = node
        if self._reads is not None:
            self._reads[name] = node
        return self._adopt(node, self._anchor or last)

    def add_parameter(self, name: str, tensor: Tensor) -> fx.Node:
        """Add a trainable parameter and return the node that reads it.

        Raises:
            ProgramError: The name is taken or is none, or ``tensor`` is none that is trained.
        """
        self._check_tensor(name, tensor)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            hint = "add_buffer takes tensors of every type"
            raise self._refuse(name, f"a tensor of {tensor.dtype} cannot be trained", hint)
        module, leaf = self._new_place(name, tensor)
        module.register_parameter(leaf, nn.Parameter(tensor))
        return self._read(name)

    def add_buffer(self, name: str, tensor: Tensor) -> fx.Node:
        """Add a buffer (saved, not trained) and return the node that reads it; errors as above."""
        module, leaf = self._new_place(name, tensor)
        module.register_buffer(leaf, tensor)
        return self._read(name)

    def set_tensor(self, name: str, tensor: Tensor) -> None:
        """Replace a tensor by another, of any shape or dtype; a parameter stays a parameter.

        Raises:
            ProgramError: There is none of this name, or ``tensor`` is no tensor.
        """
        name = self.program.canonical(name)
        self._check_tensor(name, tensor)
        try:
            old = self.program.tensor(name)
        except ProgramError as error:
            error.hint += "; add_buffer or add_parameter makes a new one"
            raise
        module, leaf = self._place(name)
        if isinstance(old, nn.Parameter) and tensor.is_floating_point():
            setattr(module, leaf, nn.Parameter(tensor.detach(), requires_grad=old.requires_grad))
        else:
            delattr(module, leaf)
            module.register_buffer(leaf, tensor.detach())
        self.program._digests.pop(name, None)
        if (node := self._reader(name)) is not None:
            before = node.meta.get("val")
            self._shapes.infer_node(self.program._module, node)
            same_device = getattr(before, "device", None) == node.meta["val"].device
            if same_device and self._shapes.agree(before, node.meta["val"]):
                node.meta["val"] = before  # so that what reads it counts as unchanged

    def remove_tensor(self, name: str) -> None:
        """Remove a tensor and the node that reads it; nothing may use it."""
        name = self.program.canonical(name)
        self.program.tensor(name)
        if (node := self._reader(name)) is not None:
            self.erase(node)
        module, leaf = self._place(name)
        delattr(module, leaf)
        self.program._digests.pop(name, None)

    def rename_tensor(self, name: str, new: str) -> None:
        """Give a tensor another name; the node that reads it follows.

        Raises:
            ProgramError: There is no tensor ``name``, or there is one called ``new``.
        """
        tensor = self.program.tensor(name)
        old = self.program.canonical(name)
        module, leaf = self._new_place(new, tensor)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(leaf, tensor)
        else:
            module.register_buffer(leaf, tensor)
        former, former_leaf = self._place(old)
        delattr(former, former_leaf)
        self.program._digests.pop(old, None)
        if (node := self._reader(old)) is not None:
            node.target = new
            self._reads = None
        self.program.ties = tuple(
            tuple(new if each == old else each for each in group) for group in self.program.ties
        )

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self.program._module.get_submodule(path), leaf

    def _new_place(self, name: str, tensor: Tensor) -> tuple[nn.Module, str]:
        self._check_tensor(name, tensor)
        *path, leaf = name.split(".")
        if not all((*path, leaf)):
            raise self._refuse(name, f"{name!r} is no name of a tensor", "e.g. 'layer.scale'")
        module: nn.Module = self.program._module
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            found: object = getattr(module, part)
            if not isinstance(found, nn.Module):
                raise self._refuse(name, f"{part!r} is a tensor, or no module", "another name")
            module = found
        if hasattr(module, leaf):
            raise self._refuse(name, f"there is a tensor {name!r} already", "set_tensor sets it")
        return module, leaf

    def _check_tensor(self, name: str, given: object) -> None:
        if not isinstance(given, Tensor):
            raise self._refuse(name, f"expected a tensor, got {given!r}", "torch.tensor(...)")

    def _refuse(self, name: str, why: str, hint: str) -> ProgramError:
        return ProgramError(why, who=self.author, where=name, hint=hint)

    # -- inputs ----------------------------------------------------------------------------------

    def add_input(self, spec: InputSpec) -> fx.Node:
        """Add an input at the end and return its node; its dynamic dimensions must be known ones.

        Raises:
            ProgramError: When there is one of this name, or a dynamic dimension is new.
        """
        signature = self.program.signature
        if spec.name in signature.input_names:
            raise ProgramError(
                f"there is an input {spec.name!r} already", who=self.author, where=spec.name
            )
        self._shapes = self.program._shapes = self._shapes.with_input(spec)
        *_, last = self.program.graph.find_nodes(op="placeholder")
        with self.program.graph.inserting_after(last):
            node = self.program.graph.placeholder(spec.name, default_value=None)
        self.program.signature = replace(signature, inputs=(*signature.inputs, spec))
        return self._adopt(node, last)

    def remove_input(self, name: str) -> None:
        """Remove an input that nothing uses."""
        for node in self.program.graph.find_nodes(op="placeholder", target=name):
            self.erase(node)
        kept = tuple(spec for spec in self.program.signature.inputs if spec.name != name)
        self.program.signature = replace(self.program.signature, inputs=kept)

    # -- outputs ---------------------------------------------------------------------------------

    def set_output(self, name: str, node: fx.Node) -> None:
        """Add an output, or let an existing one come from another node."""
        self._write_outputs({**self.program.outputs(), name: node})

    def drop_output(self, name: str) -> None:
        """Remove an output."""
        kept = {key: node for key, node in self.program.outputs().items() if key != name}
        self._write_outputs(kept)

    def _write_outputs(self, outputs: dict[str, fx.Node]) -> None:
        self.program.graph.output_node().args = (outputs,)
        self.program.signature = replace(self.program.signature, outputs=tuple(outputs))

    def finish(self) -> None:
        """Drop what was cached about the graph: facts and compiled code."""
        self.program.invalidate(shapes=False)
