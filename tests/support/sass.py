"""Reads disassembled GPU code: what a record costs in instructions, counted along the path that a warp takes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+((?:@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)(.*)")
_FUNCTION = re.compile(r"^\.text\.(\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_REGISTER = re.compile(r"\bR(\d+)\b")
_WIDTHS = {"64": 2, "128": 4}


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly."""

    predicate: str
    name: str
    rest: str

    @property
    def base(self) -> str:
        return self.name.split(".")[0]


class Function:
    """One kernel's instructions and the places that its labels name."""

    def __init__(self, lines: list[str]) -> None:
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        for line in lines:
            label, instruction = _LABEL.match(line), _INSTRUCTION.match(line)
            if label:
                self.labels[label[1]] = len(self.instructions)
            elif instruction:
                self.instructions.append(Instruction((instruction[1] or "").strip(), instruction[2], instruction[3]))

    def count(self) -> Counter[str]:
        return Counter(i.base for i in self.instructions)

    def jump_targets(self) -> list[str]:
        """The labels of the one jump through a table."""
        jumps = [i for i in self.instructions if i.base == "BRX"]
        assert len(jumps) == 1, f"{len(jumps)} jumps through a table"
        found = re.search(r'BRANCH_TARGETS ([^"]*)', jumps[0].rest)
        assert found is not None
        return found[1].split(",")

    def innermost_loop(self, base: str) -> Counter[str]:
        """Instructions of the one loop that holds `base` and no other loop: from its label to its jump back."""
        first = next(i for i, instruction in enumerate(self.instructions) if instruction.base == base)
        for at, instruction in enumerate(self.instructions[first:], first):
            target = _TARGET.search(instruction.rest)
            if instruction.base == "BRA" and target and self.labels[target[1]] <= first:
                return Counter(i.base for i in self.instructions[self.labels[target[1]] : at + 1])
        raise AssertionError(f"no loop around {base}")

    def round_from(self, label: str) -> Counter[str] | None:
        """Instructions from a label up to and with the next jump through the table; None where the loop is left."""
        found = self.path_from(label)
        return None if found is None else Counter(i.base for i in found)

    def path_from(self, label: str) -> list[Instruction] | None:
        """Those instructions in order.

        Conditional branches are not taken: they are the ends of loops and the check of the table's range.
        """
        found: list[Instruction] = []
        at = self.labels[label]
        for _ in range(500):
            instruction = self.instructions[at]
            found.append(instruction)
            if instruction.base == "BRX":
                return found
            if instruction.base in ("EXIT", "BAR", "RET"):
                return None
            target = _TARGET.search(instruction.rest)
            is_jump = instruction.base == "BRA" and not instruction.predicate
            at = self.labels[target[1]] if is_jump and target else at + 1
        return None


def cycles_of_round(path: list[Instruction], latencies: dict[str, int], fma_cycles: int) -> int:
    """Cycles from a round of a loop to the next of the same warp, were it alone on its scheduler.

    Instructions issue in order, one a cycle and multiply-adds one in `fma_cycles`, each when its operands are there.

    Args:
        path: one round, ending with the jump to the next.
        latencies: from issue to result: of "LDS", "LDC", "jump" (until the target's first instruction) and "other".
        fma_cycles: between multiply-adds.
    """
    ready: dict[int, int] = {}
    ends, now = [], 0
    for _ in range(4):  # until the rounds are alike
        for instruction in path:
            base = instruction.base
            registers = [int(n) for n in _REGISTER.findall(instruction.rest)]
            width = next((w for part, w in _WIDTHS.items() if part in instruction.name.split(".")), 1)
            written = [registers[0] + i for i in range(width)] if base not in ("BRX", "BRA") and registers else []
            read = registers[1:] if written else [r + i for r in registers for i in range(2)]  # BRX reads a pair
            now = max([now, *(ready.get(register, 0) for register in read)])
            kind = base if base in latencies else "jump" if base in ("BRX", "BRA") else "other"
            ready |= dict.fromkeys(written, now + latencies[kind])
            now += latencies["jump"] if kind == "jump" else fma_cycles if base == "FFMA" else 1
        ends.append(now)
    return ends[-1] - ends[-2]


def read_functions(disassembly: str) -> dict[str, Function]:
    """Split what nvdisasm prints into kernels by their mangled names."""
    functions: dict[str, list[str]] = {}
    name = ""
    for line in disassembly.splitlines():
        start = _FUNCTION.match(line)
        if start:
            name = start[1]
            functions[name] = []
        elif name:
            functions[name].append(line)
    return {name: Function(lines) for name, lines in functions.items()}
