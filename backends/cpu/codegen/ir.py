"""A small builder of LLVM IR: kernels are Python functions that emit one IR function each.

Values know their type and overload arithmetic, so emitters read like the formula. Mutable state
(accumulators, pointers) lives in `Var`s, stack slots that LLVM's SROA turns back into registers;
therefore no emitter ever writes a phi by hand. Loops are generators:

    for row in f.loop(0, rows):          # the body is emitted once, `row` is an i64 Value
        acc.set(acc.get() + row)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Function", "Value", "Var", "lane_count", "lane_type", "vector"]

_FLOATS = ("float", "half", "bfloat", "double")
_SIGNED_COMPARE = {"==": "eq", "!=": "ne", "<": "slt", "<=": "sle", ">": "sgt", ">=": "sge"}
_FLOAT_COMPARE = {"==": "oeq", "!=": "one", "<": "olt", "<=": "ole", ">": "ogt", ">=": "oge"}


def vector(lanes: int, element: str) -> str:
    """The LLVM type of a vector: `vector(16, "float")` is `<16 x float>`."""
    return f"<{lanes} x {element}>"


def lane_type(type_: str) -> str:
    """Element type of a vector type; a scalar type is its own."""
    return type_[1:-1].split(" x ")[1] if type_.startswith("<") else type_


def lane_count(type_: str) -> int:
    """Lanes of a vector type; 1 for a scalar."""
    return int(type_[1:-1].split(" x ")[0]) if type_.startswith("<") else 1


def _literal(type_: str, number: float) -> str:
    if type_ in _FLOATS:
        single = struct.unpack("<f", struct.pack("<f", number))[0]
        return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016x}"
    return str(int(number))


@dataclass(frozen=True)
class Value:
    """An SSA value or constant: its text, its LLVM type and the function it belongs to."""

    text: str
    type: str
    owner: Function

    def __add__(self, other: Value | float) -> Value:
        return self._binary("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._binary("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._binary("mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._binary("div", other)

    def __floordiv__(self, other: Value | float) -> Value:
        return self.owner.operate("udiv", self, self.owner.like(self, other))

    def __and__(self, other: Value | float) -> Value:
        return self.owner.operate("and", self, self.owner.like(self, other))

    def __or__(self, other: Value | float) -> Value:
        return self.owner.operate("or", self, self.owner.like(self, other))

    def __lshift__(self, other: Value | float) -> Value:
        return self.owner.operate("shl", self, self.owner.like(self, other))

    def __rshift__(self, other: Value | float) -> Value:
        return self.owner.operate("lshr", self, self.owner.like(self, other))

    def _binary(self, name: str, other: Value | float) -> Value:
        if lane_type(self.type) in _FLOATS:
            name = f"f{name} contract"
        return self.owner.operate(name, self, self.owner.like(self, other))


@dataclass(frozen=True)
class Var:
    """A mutable slot of one type."""

    pointer: Value
    type: str

    def get(self) -> Value:
        """Its current value."""
        return self.pointer.owner.load(self.type, self.pointer, _plain=True)

    def set(self, value: Value) -> None:
        """Give it a new value."""
        self.pointer.owner.store(value, self.pointer, _plain=True)


class Function:
    """One LLVM function under construction.

    Args:
        name: Symbol of the function.
        arguments: Names of its arguments, every one a pointer to memory that the function only
            reads and that none of its stores touch.
    """

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._arguments = tuple(arguments)
        self._lines: list[str] = []
        self._slots: list[str] = []
        self._declared: dict[str, str] = {}
        self._count = 0

    def argument(self, name: str) -> Value:
        """The pointer argument called `name`."""
        if name not in self._arguments:
            raise KeyError(name)
        return Value(f"%{name}", "ptr", self)

    # values

    def const(self, type_: str, number: float) -> Value:
        """A constant; a vector type gives a splat."""
        element = lane_type(type_)
        literal = _literal(element, number)
        if type_ == element:
            return Value(literal, type_, self)
        if number == 0:
            return Value("zeroinitializer", type_, self)
        return Value(f"<{', '.join([f'{element} {literal}'] * lane_count(type_))}>", type_, self)

    def i64(self, number: int) -> Value:
        """A 64-bit integer constant."""
        return self.const("i64", number)

    def like(self, value: Value, other: Value | float) -> Value:
        """`other` as a value of the type of `value`."""
        return other if isinstance(other, Value) else self.const(value.type, other)

    def operate(self, name: str, a: Value, b: Value) -> Value:
        """A binary instruction."""
        if a.type != b.type:
            raise TypeError(f"{name}: {a.type} with {b.type}")
        return self._emit(f"{name} {a.type} {a.text}, {b.text}", a.type)

    def compare(self, a: Value, relation: str, b: Value | float) -> Value:
        """A comparison; integers are signed, floats ordered."""
        floating = lane_type(a.type) in _FLOATS
        table, name = (_FLOAT_COMPARE, "fcmp") if floating else (_SIGNED_COMPARE, "icmp")
        right = self.like(a, b)
        lanes = lane_count(a.type)
        type_ = "i1" if lanes == 1 else vector(lanes, "i1")
        return self._emit(f"{name} {table[relation]} {a.type} {a.text}, {right.text}", type_)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """`a` where `condition`, else `b`."""
        return self._emit(
            f"select {condition.type} {condition.text}, {a.type} {a.text}, {b.type} {b.text}",
            a.type,
        )

    def convert(self, how: str, value: Value, type_: str) -> Value:
        """A conversion instruction: zext, sext, trunc, sitofp, bitcast, ..."""
        if value.type == type_:
            return value
        return self._emit(f"{how} {value.type} {value.text} to {type_}", type_)

    def splat(self, scalar: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        type_ = vector(lanes, scalar.type)
        first = self._emit(
            f"insertelement {type_} poison, {scalar.type} {scalar.text}, i64 0", type_
        )
        return self.shuffle(first, first, [0] * lanes)

    def shuffle(self, a: Value, b: Value, order: Sequence[int]) -> Value:
        """Lanes `order` of the concatenation of `a` and `b`."""
        mask = ", ".join(f"i32 {n}" for n in order)
        type_ = vector(len(order), lane_type(a.type))
        return self._emit(
            f"shufflevector {a.type} {a.text}, {b.type} {b.text}, <{len(order)} x i32> <{mask}>",
            type_,
        )

    def intrinsic(self, name: str, result: str, *arguments: Value, immediate: int = -1) -> Value:
        """Call an LLVM intrinsic; `immediate` is the index of an `immarg` argument."""
        types = [a.type + (" immarg" if i == immediate else "") for i, a in enumerate(arguments)]
        self._declared[name] = f"declare {result} @{name}({', '.join(types)})"
        passed = ", ".join(f"{a.type} {a.text}" for a in arguments)
        call = f"call {result} @{name}({passed})"
        if result == "void":
            self._lines.append(f"  {call}")
            return Value("", "void", self)
        return self._emit(call, result)

    def fma(self, a: Value, b: Value, c: Value | float) -> Value:
        """`a * b + c` with one rounding."""
        suffix = _suffix(a.type)
        return self.intrinsic(f"llvm.fma.{suffix}", a.type, a, b, self.like(a, c))

    # memory

    def offset(self, pointer: Value, amount: Value | int) -> Value:
        """`pointer` plus a number of bytes."""
        if isinstance(amount, int):
            if amount == 0:
                return pointer
            amount = self.i64(amount)
        return self._emit(f"getelementptr i8, ptr {pointer.text}, i64 {amount.text}", "ptr")

    def load(
        self, type_: str, pointer: Value, align: int | None = None, *, _plain: bool = False
    ) -> Value:
        """Load a value; `align` defaults to the size of one element."""
        suffix = "" if _plain else f", align {align or _size(lane_type(type_))}"
        return self._emit(f"load {type_}, ptr {pointer.text}{suffix}", type_)

    def store(
        self, value: Value, pointer: Value, align: int | None = None, *, _plain: bool = False
    ) -> None:
        """Store a value; `align` defaults to the size of one element."""
        suffix = "" if _plain else f", align {align or _size(lane_type(value.type))}"
        self._lines.append(f"  store {value.type} {value.text}, ptr {pointer.text}{suffix}")

    def index(self, type_: str, pointer: Value, element: int) -> Value:
        """Load element number `element` of an array of `type_`."""
        return self.load(type_, self.offset(pointer, element * _size(type_)))

    def var(self, initial: Value) -> Var:
        """A new mutable slot that starts as `initial`."""
        name = self._fresh()
        self._slots.append(f"  {name} = alloca {initial.type}")
        slot = Var(Value(name, "ptr", self), initial.type)
        slot.set(initial)
        return slot

    def room(self, size: int) -> Value:
        """Uninitialised memory of the function's own, `size` bytes from a cache line on."""
        name = self._fresh()
        self._slots.append(f"  {name} = alloca [{size} x i8], align 64")
        return Value(name, "ptr", self)

    def constant_bytes(self, name: str, content: bytes) -> Value:
        """The address of constant bytes that start at a cache line."""
        octets = ", ".join(f"i8 {octet}" for octet in content)
        type_ = f"[{len(content)} x i8]"
        self.declare(name, f"@{name} = internal constant {type_} [{octets}], align 64")
        return Value(f"@{name}", "ptr", self)

    def prefetch(self, pointer: Value) -> None:
        """Ask for the cache line of `pointer`, to be read, at every cache level."""
        self._declared["llvm.prefetch.p0"] = (
            "declare void @llvm.prefetch.p0(ptr, i32 immarg, i32 immarg, i32 immarg)"
        )
        self._lines.append(
            f"  call void @llvm.prefetch.p0(ptr {pointer.text}, i32 0, i32 3, i32 1)"
        )

    def raw(self, line: str) -> None:
        """One line of IR as it is (atomics, fences, inline assembly)."""
        self._lines.append(f"  {line}")

    def declare(self, name: str, line: str) -> None:
        """Declare an external function."""
        self._declared[name] = line

    # control flow

    def loop(self, start: Value | int, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """Emit a counted loop; yields its counter once, for the body to be emitted."""
        first = start if isinstance(start, Value) else self.i64(start)
        last = stop if isinstance(stop, Value) else self.i64(stop)
        counter = self.var(first)
        head, body, end = self._label("head"), self._label("body"), self._label("end")
        self._lines += [f"  br label %{head}", f"{head}:"]
        condition = self.compare(counter.get(), "<", last)
        self._lines += [f"  br i1 {condition.text}, label %{body}, label %{end}", f"{body}:"]
        yield counter.get()
        counter.set(counter.get() + step)
        self._lines += [f"  br label %{head}", f"{end}:"]

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Emit a block that runs only if `condition` (an i1) holds."""
        then, end = self._label("then"), self._label("end")
        self._lines += [f"  br i1 {condition.text}, label %{then}, label %{end}", f"{then}:"]
        yield
        self._lines += [f"  br label %{end}", f"{end}:"]

    def text(self) -> str:
        """The module text that holds this function."""
        arguments = ", ".join(f"ptr noalias readonly %{name}" for name in self._arguments)
        declares = "\n".join(self._declared[name] for name in sorted(self._declared))
        body = "\n".join([*self._slots, "  br label %start", "start:", *self._lines])
        return (
            f"{declares}\n\ndefine void @{self.name}({arguments}) nounwind {{\n"
            f"entry:\n{body}\n  ret void\n}}\n"
        )

    def _emit(self, instruction: str, type_: str) -> Value:
        name = self._fresh()
        self._lines.append(f"  {name} = {instruction}")
        return Value(name, type_, self)

    def _fresh(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def _label(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"


def _size(type_: str) -> int:
    return {"i8": 1, "i16": 2, "half": 2, "bfloat": 2, "i32": 4, "float": 4}.get(type_, 8)


def _suffix(type_: str) -> str:
    element = {"float": "f32", "half": "f16", "double": "f64"}.get(
        lane_type(type_), lane_type(type_)
    )
    lanes = lane_count(type_)
    return element if lanes == 1 else f"v{lanes}{element}"
