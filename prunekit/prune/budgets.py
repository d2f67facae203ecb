"""What a pruned model may cost: `90%`, `parameters=10%`, `macs=0.8G`, `macs=50%`, `latency=20ms`, `latency=40%`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunekit.errors import InputError

EXAMPLES = "90%, parameters=10%, macs=0.8G, macs=50%, latency=20ms or latency=40%"
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_UNITS = {"": ("%",), "parameters": ("%", *_FACTORS), "macs": ("%", *_FACTORS), "latency": ("%", "ms")}
_AMOUNT = re.compile(r"(\d+\.?\d*|\.\d+) ?(\D*)")


@dataclass(frozen=True)
class Budget:
    """What a pruned model may cost.

    Attributes:
        kind: "ratio", "parameters", "macs" or "latency".
        amount: A pruning ratio in percent, or what may be left: weights of convolutions and linear layers,
            multiply-accumulates for one image, or milliseconds.
        is_share: Whether the amount is in percent of what the dense model costs.
    """

    kind: str
    amount: float
    is_share: bool = False

    def of(self, dense: float) -> float:
        """Return what may be left of a model that costs `dense`.

        Raises:
            InputError: When that is no less than the model has.
        """
        allowed = dense * self.amount / 100 if self.is_share else self.amount
        if allowed >= dense:
            whole, found = show(self.kind, dense), show(self.kind, allowed)
            raise InputError(f"Expected a budget below the {whole} of the dense model, got {found}.")
        return allowed


def parse_budget(text: str) -> Budget:
    """Read a budget as it is typed.

    Raises:
        InputError: For anything else, no budget at all (100 percent), or nothing that could be left.
    """
    kind, _, amount = text.strip().rpartition("=")
    found = _AMOUNT.fullmatch(amount)
    number, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if found is None or unit not in _UNITS.get(kind, ()):
        raise InputError(f"Expected a budget such as {EXAMPLES}, got {text!r}.")
    if unit == "%" and number >= 100:
        wanted = "below 100 %, as that is the whole model" if kind else "that leaves something, a ratio below 100 %"
        raise InputError(f"Expected a budget {wanted}, got {text!r}.")
    if kind and number == 0:
        raise InputError(f"Expected a budget that leaves something, got {text!r}.")
    return Budget(kind or "ratio", number * _FACTORS.get(unit, 1.0), is_share=unit == "%")


def show(kind: str, amount: float) -> str:
    """Return an amount for people: 800 M multiply-accumulates."""
    if kind == "latency":
        return f"{amount:.3g} ms"
    name, factor = next((item for item in reversed(_FACTORS.items()) if amount >= item[1]), ("", 1.0))
    return f"{amount / factor:.4g} {name} {_NAMES[kind]}".replace("  ", " ")


_NAMES = {"parameters": "parameters", "macs": "multiply-accumulates"}
