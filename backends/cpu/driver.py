"""The generated code that walks through a plan, and the threads that walk along.

One call of `dispatch` runs a whole forward pass: it wakes the workers (a futex, if they sleep),
runs the steps with a barrier after each, and waits until all are done. Workers are Python threads
that enter `worker` once and stay there, outside the interpreter; they spin for a short while, then
sleep. Every thread flushes denormal numbers to zero while it computes: one denormal operand makes
an FMA a hundred times slower.
"""

from __future__ import annotations

from sparsefx.backends.cpu.frame import JOB_FIELDS

__all__ = ["CONTEXT_WORDS", "driver_text"]

CONTEXT_WORDS = {
    "go": 0,  # counts dispatches
    "stop": 8,  # 1: workers leave
    "done": 16,  # workers that finished this dispatch
    "arrived": 24,  # threads at the barrier
    "turn": 32,  # counts barriers
    "steps": 40,  # array of pointers to steps
    "step_count": 41,
    "jobs": 42,  # array of pointers to jobs, one per thread
    "shared": 43,  # 1: all threads work on every step together; 0: each has its own job
}
"""Words (int64) of a context; those that threads write are a cache line apart."""

_SPINS = 4000
_SYS_FUTEX, _SYS_YIELD = 202, 24
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # the private forms
_MXCSR_FLUSH = 0x8040  # flush to zero, denormals are zero

_TEXT = """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare i64 @syscall(i64, ...)

define internal void @wait_turn(ptr %context, i64 %team) nounwind {{
entry:
  %turn.at = getelementptr i64, ptr %context, i64 {turn}
  %arrived.at = getelementptr i64, ptr %context, i64 {arrived}
  %turn = load atomic i64, ptr %turn.at acquire, align 8
  %before = atomicrmw add ptr %arrived.at, i64 1 acq_rel
  %now = add i64 %before, 1
  %last = icmp eq i64 %now, %team
  br i1 %last, label %release, label %spin
release:
  store atomic i64 0, ptr %arrived.at monotonic, align 8
  %next = add i64 %turn, 1
  store atomic i64 %next, ptr %turn.at release, align 8
  ret void
spin:
  %count = phi i64 [ 0, %entry ], [ %count.next, %again ]
  %seen = load atomic i64, ptr %turn.at acquire, align 8
  %moved = icmp ne i64 %seen, %turn
  br i1 %moved, label %out, label %rest
rest:
  call void @llvm.x86.sse2.pause()
  %count.next = add i64 %count, 1
  %long = icmp ugt i64 %count.next, {spins}
  br i1 %long, label %yield, label %again
yield:
  %ignored = call i64 (i64, ...) @syscall(i64 {sys_yield})
  br label %again
again:
  br label %spin
out:
  ret void
}}

define internal void @walk(ptr %context, i64 %thread) nounwind {{
entry:
  %saved = alloca i32
  %flush = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %saved)
  %old = load i32, ptr %saved
  %new = or i32 %old, {mxcsr}
  store i32 %new, ptr %flush
  call void @llvm.x86.sse.ldmxcsr(ptr %flush)
  %steps.at = getelementptr i64, ptr %context, i64 {steps}
  %steps = load ptr, ptr %steps.at
  %count.at = getelementptr i64, ptr %context, i64 {step_count}
  %count = load i64, ptr %count.at
  %jobs.at = getelementptr i64, ptr %context, i64 {jobs}
  %jobs = load ptr, ptr %jobs.at
  %job.at = getelementptr ptr, ptr %jobs, i64 %thread
  %job = load ptr, ptr %job.at
  %team.at = getelementptr i64, ptr %job, i64 {team}
  %team = load i64, ptr %team.at
  %alone = icmp eq i64 %team, 1
  %idle = icmp eq i64 %team, 0
  br i1 %idle, label %end, label %head
head:
  %i = phi i64 [ 0, %entry ], [ %i.next, %tail ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %body, label %end
body:
  %step.at = getelementptr ptr, ptr %steps, i64 %i
  %step = load ptr, ptr %step.at
  %kernel = load ptr, ptr %step
  call void %kernel(ptr %step, ptr %job)
  br i1 %alone, label %tail, label %barrier
barrier:
  call void @wait_turn(ptr %context, i64 %team)
  br label %tail
tail:
  %i.next = add i64 %i, 1
  br label %head
end:
  call void @llvm.x86.sse.ldmxcsr(ptr %saved)
  ret void
}}

define void @dispatch(ptr %context, i64 %threads) nounwind {{
entry:
  %done.at = getelementptr i64, ptr %context, i64 {done}
  %go.at = getelementptr i64, ptr %context, i64 {go}
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %single, label %many
single:
  call void @walk(ptr %context, i64 0)
  ret void
many:
  store atomic i64 0, ptr %done.at monotonic, align 8
  %ignored = atomicrmw add ptr %go.at, i64 1 release
  %woken = call i64 (i64, ...) @syscall(i64 {sys_futex}, ptr %go.at, i64 {wake}, i64 1024)
  call void @walk(ptr %context, i64 0)
  %others = sub i64 %threads, 1
  br label %spin
spin:
  %count = phi i64 [ 0, %many ], [ %count.next, %again ]
  %done = load atomic i64, ptr %done.at acquire, align 8
  %all = icmp eq i64 %done, %others
  br i1 %all, label %out, label %rest
rest:
  call void @llvm.x86.sse2.pause()
  %count.next = add i64 %count, 1
  %long = icmp ugt i64 %count.next, {spins}
  br i1 %long, label %yield, label %again
yield:
  %ignored.2 = call i64 (i64, ...) @syscall(i64 {sys_yield})
  br label %again
again:
  br label %spin
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
  %done.at = getelementptr i64, ptr %context, i64 {done}
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
  call void @llvm.x86.sse2.pause()
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
  call void @walk(ptr %context, i64 %thread)
  br label %finish
finish:
  %before = atomicrmw add ptr %done.at, i64 1 release
  br label %next
out:
  ret void
}}
"""


def driver_text() -> str:
    """IR of `dispatch(context, threads)`, `worker(context, thread)`, `leave(context, 0)`."""
    return _TEXT.format(
        **CONTEXT_WORDS,
        team=JOB_FIELDS.index("team"),
        spins=_SPINS,
        sys_futex=_SYS_FUTEX,
        sys_yield=_SYS_YIELD,
        wait=_FUTEX_WAIT,
        wake=_FUTEX_WAKE,
        mxcsr=_MXCSR_FLUSH,
    )
