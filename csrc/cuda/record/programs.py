"""Writes the loops over records of record_conv2d.cuh as PTX: `record_programs.cuh`, made before nvcc runs.

    write_programs(folder)      # then: nvcc -I folder …

A slot's number selects one of many pieces of code, each multiply-adds on fixed registers. C++ has only `switch` for
that, which checks the range and lets threads that took different cases meet again, though all lanes of a warp read the
same record. PTX can say so: `brx.idx.uni`. tests/gpu_checks/test_record_programs.py runs the text, instruction by
instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TILE_W = 2  # csrc/cuda/record/launch.h
FILE = "record_programs.cuh"


@dataclass(frozen=True)
class Program:
    """One loop over records; the template arguments of `record_conv2d`.

    Attributes:
        rows: output channels that a lane sums.
        tile_h: rows of its pixels.
        r: taps of a window, vertically; `s` horizontally.
        s: see there.
        stride: that the window is laid out for; 0 is any, for windows of one tap.
        channels: of a window.
    """

    rows: int
    tile_h: int
    r: int
    s: int
    stride: int
    channels: int

    @property
    def pixels(self) -> int:
        """Pixels of a lane."""
        return self.tile_h * TILE_W

    @property
    def window_h(self) -> int:
        """Rows of a window in one channel."""
        return (self.tile_h - 1) * (self.stride or 1) + self.r

    @property
    def window_w(self) -> int:
        """Columns of a window."""
        return (TILE_W - 1) * (self.stride or 1) + self.s

    @property
    def taps(self) -> int:
        """Inputs of a window that one pixel needs."""
        return self.channels * self.r * self.s

    @property
    def slots(self) -> int:
        """Pairs of an output channel and a tap."""
        return self.rows * self.taps

    def sum(self, row: int, i: int, j: int) -> int:
        """The number of the register of a sum."""
        return (row * self.tile_h + i) * TILE_W + j

    def input(self, channel: int, i: int, j: int) -> int:
        """The number of the register of an input of the window."""
        return (channel * self.window_h + i) * self.window_w + j

    def lines(self) -> Iterator[str]:
        """The program's text.

        Operands: the sums, then the shared addresses of the segment and of the lane's first input, then in bytes a
        channel's plane and `steps`.

        A record has the operation of the next one beside its own argument, so that an operation is there long before
        the jump that it selects, and the table's entry is what a jump waits for.
        """
        count = self.rows * self.pixels
        segment, first, plane, *steps = (f"%{count + i}" for i in range(3 + self.steps))
        yield ".reg .b32 operation, next, at, place, part;"
        yield ".reg .f32 weight;"
        yield f".reg .f32 x<{self.channels * self.window_h * self.window_w}>;"
        # Without values here, the compiler would keep the window's registers while the next chunk is copied.
        yield from (f"mov.f32 x{i}, 0f00000000;" for i in range(self.channels * self.window_h * self.window_w))
        yield f"mov.b32 at, {segment};"
        yield "ld.shared.b32 next, [at];"
        slots = ", ".join(f"SLOT{slot}_%=" for slot in range(self.slots))
        yield f"TABLE_%=: .branchtargets {slots}, LOAD_WINDOW_%=, END_SEGMENT_%=;"
        yield "NEXT_%=:"
        yield "mov.b32 operation, next;"
        yield "add.u32 at, at, 8;"
        yield "ld.shared.v2.b32 {next, weight}, [at];"
        yield "brx.idx.uni operation, TABLE_%=;"
        for slot in range(self.slots):
            yield f"SLOT{slot}_%=:"
            yield from self._multiply_add(slot)
            yield "bra.uni NEXT_%=;"
        yield "LOAD_WINDOW_%=:"
        yield "mov.b32 part, weight;"
        yield "shr.u32 place, part, 16;"
        yield f"mad.lo.u32 place, place, {plane}, {first};"
        if self.stride:
            yield from self._load_lines(plane, *steps)
        else:
            yield from self._load_pixels(*steps)
        yield "bra.uni NEXT_%=;"
        yield "END_SEGMENT_%=:"

    def _multiply_add(self, slot: int) -> Iterator[str]:
        row, tap = divmod(slot, self.taps)
        channel, place = divmod(tap, self.r * self.s)
        tap_h, tap_w = divmod(place, self.s)
        step = self.stride or 1
        for i in range(self.tile_h):
            for j in range(TILE_W):
                total, x = self.sum(row, i, j), self.input(channel, i * step + tap_h, j * step + tap_w)
                yield f"fma.rn.f32 %{total}, weight, x{x}, %{total};"

    @property
    def steps(self) -> int:
        """How many of `RecordConv::steps` it takes, bytes in a tile.

        Windows of one tap take four: between pixels below and beside one another, and between taps likewise. Others
        take two: between parts of a line, of which stride 2 has two, its even and its odd columns; and the same where
        the window leaves the lines of its own lane.
        """
        return 2 if self.stride else 4

    def _load_lines(self, plane: str, step: str, turn: str) -> Iterator[str]:
        for channel in range(self.channels):
            if channel:
                yield f"add.u32 place, part, {plane};"
            yield "mov.b32 part, place;"
            for i in range(self.window_h):
                for parity in range(self.stride):
                    columns = range(parity, self.window_w, self.stride)
                    for at in range(0, len(columns), TILE_W):
                        pair = columns[at : at + TILE_W]
                        registers = ", ".join(f"x{self.input(channel, i, j)}" for j in pair)
                        kind, to = (".v2", f"{{{registers}}}") if len(pair) > 1 else ("", registers)
                        yield f"ld.shared{kind}.f32 {to}, [place+{4 * at}];"
                    if (i, parity) != (self.window_h - 1, self.stride - 1):
                        is_turn = parity == self.stride - 1 and i + 1 == self.tile_h * self.stride
                        yield f"add.u32 place, place, {turn if is_turn else step};"

    def _load_pixels(self, step_h: str, step_w: str, tap_h: str, tap_w: str) -> Iterator[str]:
        yield "bfe.u32 operation, part, 8, 8;"
        yield f"mad.lo.u32 place, operation, {tap_h}, place;"
        yield "and.b32 operation, part, 255;"
        yield f"mad.lo.u32 place, operation, {tap_w}, place;"
        for i in range(self.tile_h):
            yield "mov.b32 part, place;"
            for j in range(TILE_W):
                yield f"ld.shared.f32 x{self.input(0, i, j)}, [part];"
                if j + 1 < TILE_W:
                    yield f"add.u32 part, part, {step_w};"
            if i + 1 < self.tile_h:
                yield f"add.u32 place, place, {step_h};"

    def source(self) -> str:
        """C++ around the text."""
        arguments = f"{self.rows}, {self.tile_h}, {self.r}, {self.s}, {self.stride}, {self.channels}"
        text = "\n".join(f'      "{line}\\n"' for line in ("{", *self.lines(), "}"))
        sums = ", ".join(f'"+f"(sum[{i // self.pixels}][{i % self.pixels}])' for i in range(self.rows * self.pixels))
        steps = ", ".join(f'"r"(conv.steps[{i}])' for i in range(self.steps))
        return f"""
template <>
__device__ __forceinline__ void run_records<{arguments}>(
    const RecordConv& conv, const int2* segment, const float* from, float (&sum)[{self.rows}][{self.pixels}]) {{
  asm volatile(
{text}
      : {sums}
      : "r"(static_cast<unsigned>(__cvta_generic_to_shared(segment))),
        "r"(static_cast<unsigned>(__cvta_generic_to_shared(from))), "r"(conv.plane_bytes), {steps}
      : "memory");
}}
"""


#: visit_record_kernel's.
PROGRAMS = (
    Program(8, 6, 3, 3, 1, 1),
    Program(8, 4, 3, 3, 1, 1),
    Program(8, 4, 3, 3, 2, 1),
    Program(8, 6, 1, 1, 1, 2),
    Program(8, 4, 1, 1, 1, 2),
    Program(8, 4, 1, 1, 0, 1),
)


def write_programs(folder: Path) -> None:
    """Write the header that record_conv2d.cuh includes into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    head = "// Written by csrc/cuda/record/programs.py.\n#pragma once\n\nnamespace prunekit {\n"
    (folder / FILE).write_text(head + "".join(p.source() for p in PROGRAMS) + "\n}  // namespace prunekit\n")
