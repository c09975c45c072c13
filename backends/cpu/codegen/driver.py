"""The generated code that walks through a plan, and the threads that walk along.

One call of `dispatch` runs a whole forward pass: it wakes the workers (a futex, if they sleep),
takes part in the steps, and waits until all are done. A step starts when all parts of the step
before are done. A thread takes the same parts of every step, so that what it wrote is in its own
cache; then it takes what is left. So nobody waits for a worker that did not get a core in time:
the others take its parts, and it finds the gate closed. Jobs that go through all steps are taken
by ticket.

Workers are Python threads that enter `worker` once and stay there, outside the interpreter; they
spin for a short while, then sleep. Every thread flushes denormal numbers to zero while it computes:
one denormal operand makes an FMA a hundred times slower.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.frame import JOB_FIELDS
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["CLOSED", "CONTEXT_WORDS", "MEMORIES", "driver_text"]

CONTEXT_WORDS = {
    "go": 0,  # counts dispatches
    "stop": 8,  # 1: workers leave
    "gate": 16,  # workers inside a dispatch, plus CLOSED between dispatches
    "claimed": 24,  # tickets taken: one for each job
    "finished": 32,  # parts of steps, or jobs, that are done
    "steps": 40,  # array of pointers to steps
    "step_count": 41,
    "jobs": 42,  # array of pointers to jobs
    "job_count": 43,
    "shared": 44,  # 1: the jobs are parts of every step; 0: each job goes through all steps
    "claims": 46,  # if shared: a word for each step, a bit for each part that was taken
    "threads": 47,  # threads that may come
    "memories": 45,  # if not shared: pointers, for each thread those of MEMORIES
}
"""Words (int64) of a context; those that threads write are a cache line apart."""

MEMORIES = ("scratch", "arena", "arena_1")
"""Words of a job that the thread which takes it fills in with memory of its own."""

CLOSED = 1 << 32
_SPINS = 4000
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # the private forms

_X86 = """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)

define internal void @relax() alwaysinline nounwind {
  call void @llvm.x86.sse2.pause()
  ret void
}

define internal i64 @float.mode() alwaysinline nounwind {
  %place = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %place)
  %mode = load i32, ptr %place
  %wide = zext i32 %mode to i64
  ret i64 %wide
}

define internal void @float.set(i64 %wide) alwaysinline nounwind {
  %place = alloca i32
  %mode = trunc i64 %wide to i32
  store i32 %mode, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
  ret void
}
"""

_ARM = """
declare void @llvm.aarch64.hint(i32 immarg)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)

define internal void @relax() alwaysinline nounwind {
  call void @llvm.aarch64.hint(i32 1)
  ret void
}

define internal i64 @float.mode() alwaysinline nounwind {
  %mode = call i64 @llvm.aarch64.get.fpcr()
  ret i64 %mode
}

define internal void @float.set(i64 %mode) alwaysinline nounwind {
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  ret void
}
"""


@dataclass(frozen=True)
class _Machine:
    """What differs: wait a moment, read and set how floats behave, system calls of Linux.

    Attributes:
        flush: Bits of the mode that make denormal numbers zero.
    """

    text: str
    flush: int
    futex: int
    sched_yield: int


_MACHINES = {
    "x86_64": _Machine(_X86, 0x8040, 202, 24),  # MXCSR: FTZ, DAZ
    "aarch64": _Machine(_ARM, 1 << 24, 98, 124),  # FPCR: FZ
}

_REST = """
rest:
  call void @relax()
  %count.next = add i64 %count, 1
  %long = icmp ugt i64 %count.next, {spins}
  br i1 %long, label %yield, label %again
yield:
  %yielded = call i64 (i64, ...) @syscall(i64 {sys_yield})
  br label %again
again:
  br label %spin
"""
"""IR of what a loop `spin` does at `rest`: wait a moment, after many rounds let others run."""

_TEXT = """
{machine}
declare i64 @syscall(i64, ...)

define internal void @walk(ptr %context, i64 %thread) nounwind {{
entry:
  %saved = call i64 @float.mode()
  %flush = or i64 %saved, {flush}
  call void @float.set(i64 %flush)
  %claimed.at = getelementptr i64, ptr %context, i64 {claimed}
  %finished.at = getelementptr i64, ptr %context, i64 {finished}
  %steps.at = getelementptr i64, ptr %context, i64 {steps}
  %steps = load ptr, ptr %steps.at
  %count.at = getelementptr i64, ptr %context, i64 {step_count}
  %count = load i64, ptr %count.at
  %jobs.at = getelementptr i64, ptr %context, i64 {jobs}
  %jobs = load ptr, ptr %jobs.at
  %job_count.at = getelementptr i64, ptr %context, i64 {job_count}
  %job_count = load i64, ptr %job_count.at
  %shared.at = getelementptr i64, ptr %context, i64 {shared}
  %shared = load i64, ptr %shared.at
  %together = icmp ne i64 %shared, 0
  %product = mul i64 %count, %job_count
  %total = select i1 %together, i64 %product, i64 %job_count
  %memories.at = getelementptr i64, ptr %context, i64 {memories}
  %memories = load ptr, ptr %memories.at
  %place = mul i64 %thread, {memory_count}
  %mine = getelementptr i64, ptr %memories, i64 %place
  %claims.at = getelementptr i64, ptr %context, i64 {claims}
  %claims = load ptr, ptr %claims.at
  %threads.at = getelementptr i64, ptr %context, i64 {threads}
  %threads = load i64, ptr %threads.at
  %spread = mul i64 %thread, %job_count
  %own.first = udiv i64 %spread, %threads
  br i1 %together, label %step, label %claim
step:
  %number = phi i64 [ 0, %entry ], [ %number.next, %step.end ]
  %left = icmp slt i64 %number, %count
  br i1 %left, label %before, label %end
before:
  %needed = mul i64 %number, %job_count
  call void @await(ptr %finished.at, i64 %needed)
  %step.at = getelementptr ptr, ptr %steps, i64 %number
  %step.words = load ptr, ptr %step.at
  %kernel = load ptr, ptr %step.words
  %claim.at = getelementptr i64, ptr %claims, i64 %number
  br label %part
part:
  %tried = phi i64 [ 0, %before ], [ %tried.next, %part.end ]
  %some = icmp slt i64 %tried, %job_count
  br i1 %some, label %try, label %step.end
try:
  %turned = add i64 %own.first, %tried
  %part.number = urem i64 %turned, %job_count
  %bit = shl i64 1, %part.number
  %seen = load atomic i64, ptr %claim.at monotonic, align 8
  %known = and i64 %seen, %bit
  %open = icmp eq i64 %known, 0
  br i1 %open, label %reach, label %part.end
reach:
  %old.bits = atomicrmw or ptr %claim.at, i64 %bit acq_rel
  %old.bit = and i64 %old.bits, %bit
  %mine.now = icmp eq i64 %old.bit, 0
  br i1 %mine.now, label %compute, label %part.end
compute:
  %part.at = getelementptr ptr, ptr %jobs, i64 %part.number
  %part.job = load ptr, ptr %part.at
  call void %kernel(ptr %step.words, ptr %part.job)
  %ignored.1 = atomicrmw add ptr %finished.at, i64 1 acq_rel
  br label %part.end
part.end:
  %tried.next = add i64 %tried, 1
  br label %part
step.end:
  %number.next = add i64 %number, 1
  br label %step
claim:
  %ticket = atomicrmw add ptr %claimed.at, i64 1 acq_rel
  %more = icmp slt i64 %ticket, %job_count
  br i1 %more, label %fill, label %end
fill:
  %job.at = getelementptr ptr, ptr %jobs, i64 %ticket
  %job = load ptr, ptr %job.at
{fill}
  br label %alone
alone:
  %i = phi i64 [ 0, %fill ], [ %i.next, %alone.step ]
  %rest = icmp slt i64 %i, %count
  br i1 %rest, label %alone.step, label %finish
alone.step:
  %own.at = getelementptr ptr, ptr %steps, i64 %i
  %own = load ptr, ptr %own.at
  %own.kernel = load ptr, ptr %own
  call void %own.kernel(ptr %own, ptr %job)
  %i.next = add i64 %i, 1
  br label %alone
finish:
  %ignored = atomicrmw add ptr %finished.at, i64 1 acq_rel
  br label %claim
end:
  call void @await(ptr %finished.at, i64 %total)
  call void @float.set(i64 %saved)
  ret void
}}

define internal void @await(ptr %word, i64 %least) nounwind {{
entry:
  br label %spin
spin:
  %count = phi i64 [ 0, %entry ], [ %count.next, %again ]
  %seen = load atomic i64, ptr %word acquire, align 8
  %enough = icmp sge i64 %seen, %least
  br i1 %enough, label %out, label %rest
{rest}
out:
  ret void
}}

define void @dispatch(ptr %context, i64 %threads) nounwind {{
entry:
  %gate.at = getelementptr i64, ptr %context, i64 {gate}
  %go.at = getelementptr i64, ptr %context, i64 {go}
  %claimed.at = getelementptr i64, ptr %context, i64 {claimed}
  %finished.at = getelementptr i64, ptr %context, i64 {finished}
  store atomic i64 0, ptr %claimed.at monotonic, align 8
  store atomic i64 0, ptr %finished.at monotonic, align 8
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %single, label %many
single:
  call void @walk(ptr %context, i64 0)
  ret void
many:
  %opened = atomicrmw sub ptr %gate.at, i64 {closed} acq_rel
  %ignored = atomicrmw add ptr %go.at, i64 1 acq_rel
  %woken = call i64 (i64, ...) @syscall(i64 {sys_futex}, ptr %go.at, i64 {wake}, i64 1024)
  call void @walk(ptr %context, i64 0)
  %shut = atomicrmw add ptr %gate.at, i64 {closed} acq_rel
  br label %spin
spin:
  %count = phi i64 [ 0, %many ], [ %count.next, %again ]
  %inside = load atomic i64, ptr %gate.at acquire, align 8
  %empty = icmp eq i64 %inside, {closed}
  br i1 %empty, label %out, label %rest
{rest}
out:
  ret void
}}

define void @leave(ptr %context, i64 %unused) nounwind {{
  %go.at = getelementptr i64, ptr %context, i64 {go}
  %stop.at = getelementptr i64, ptr %context, i64 {stop}
  store atomic i64 1, ptr %stop.at release, align 8
  %ignored = atomicrmw add ptr %go.at, i64 1 release
  %woken = call i64 (i64, ...) @syscall(i64 {sys_futex}, ptr %go.at, i64 {wake}, i64 1024)
  ret void
}}

define void @worker(ptr %context, i64 %thread) nounwind {{
entry:
  %gate.at = getelementptr i64, ptr %context, i64 {gate}
  %go.at = getelementptr i64, ptr %context, i64 {go}
  %stop.at = getelementptr i64, ptr %context, i64 {stop}
  br label %next
next:
  %known = phi i64 [ 0, %entry ], [ %seen, %finish ]
  br label %spin
spin:
  %count = phi i64 [ 0, %next ], [ %count.next, %rest ], [ %count.next, %sleep ]
  %seen = load atomic i64, ptr %go.at acquire, align 8
  %moved = icmp ne i64 %seen, %known
  br i1 %moved, label %run, label %wait
wait:
  %count.next = add i64 %count, 1
  %long = icmp ugt i64 %count.next, {spins}
  br i1 %long, label %sleep, label %rest
rest:
  call void @relax()
  br label %spin
sleep:
  %low = trunc i64 %known to i32
  %r = call i64 (i64, ...) @syscall(i64 {sys_futex}, ptr %go.at, i64 {wait}, i32 %low, ptr null)
  br label %spin
run:
  %stop = load atomic i64, ptr %stop.at acquire, align 8
  %leave = icmp ne i64 %stop, 0
  br i1 %leave, label %out, label %work
work:
  %before = atomicrmw add ptr %gate.at, i64 1 acq_rel
  %late = icmp sge i64 %before, {closed}
  br i1 %late, label %finish, label %enter
enter:
  call void @walk(ptr %context, i64 %thread)
  br label %finish
finish:
  %ignored = atomicrmw sub ptr %gate.at, i64 1 acq_rel
  br label %next
out:
  ret void
}}
"""


def _fill() -> str:
    """IR that writes the thread's own memories into its job."""
    return "\n".join(
        f"  %memory.{n}.at = getelementptr i64, ptr %mine, i64 {n}\n"
        f"  %memory.{n} = load i64, ptr %memory.{n}.at\n"
        f"  %slot.{n} = getelementptr i64, ptr %job, i64 {JOB_FIELDS.index(name)}\n"
        f"  store i64 %memory.{n}, ptr %slot.{n}"
        for n, name in enumerate(MEMORIES)
    )


def driver_text(isa: Isa) -> str:
    """IR of `dispatch(context, threads)`, `worker(context, thread)`, `leave(context, 0)`."""
    machine = _MACHINES[isa.triple.split("-")[0]]
    return _TEXT.format(
        **CONTEXT_WORDS,
        closed=CLOSED,
        fill=_fill(),
        rest=_REST.strip().format(spins=_SPINS, sys_yield=machine.sched_yield),
        memory_count=len(MEMORIES),
        spins=_SPINS,
        machine=machine.text,
        flush=machine.flush,
        sys_futex=machine.futex,
        wait=_FUTEX_WAIT,
        wake=_FUTEX_WAKE,
    )
