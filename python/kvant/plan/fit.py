"""What fits into which memory, with how much context, and how fast a token can come at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvant.plan.cache import kv_bytes, state_bytes
from kvant.plan.devices import Device
from kvant.plan.memory import Memory, Use, memory
from kvant.plan.model import Model
from kvant.plan.weights import AS_IS, Part, Weights, weights

__all__ = ["Verdict", "fit", "most_context", "seconds_per_token"]

# Where a model does not say what it was made for.
_ENDLESS = 1 << 24


@dataclass(frozen=True)
class Verdict:
    """What becomes of one recipe on the devices.

    Attributes
    ----------
    memory
        Bytes in the use that was asked for.
    usable
        Bytes that the devices give.
    fits
        Whether they suffice; None without devices.
    most_context
        Tokens for each sequence that would fit, up to what the model was made for; -1 if not even
        the weights fit, None without devices.
    tokens_per_second
        Upper bounds for one sequence, with no token before and with the context full; None where it
        does not fit or no bandwidth is known.
    """

    memory: Memory
    usable: int
    fits: bool | None
    most_context: int | None
    tokens_per_second: tuple[float, float] | None


def fit(model: Model, use: Use, devices: Sequence[Device], type: str | Weights = AS_IS) -> Verdict:
    """Judge one recipe.

    Parameters
    ----------
    model : Model
    use : Use
    devices : sequence of Device
        One, or several that share the model; with none only bytes are counted.
    type : str or Weights
        A recipe or format, `AS_IS`, or weights that have been counted already.

    Examples
    --------
    >>> from kvant import plan
    >>> v = plan.fit(plan.read("Qwen3.5 27B"), plan.Use(32768), [plan.device("RTX 4090")], "Q4_K_M")
    >>> v.fits, v.most_context > 65536, round(v.tokens_per_second[0])
    (True, True, 63)
    """
    counted = weights(model, type) if isinstance(type, str) else type
    needed = _needed(model, use, devices, counted)
    if not devices:
        return Verdict(needed, 0, None, None, None)
    usable = sum(device.usable for device in devices)
    fits = needed.total <= usable
    speed = None
    if fits and counted.read and all(device.bandwidth > 0 for device in devices):
        empty = seconds_per_token(model, counted, replace(use, context=0), devices)
        speed = (1 / empty, 1 / seconds_per_token(model, counted, use, devices))
    return Verdict(needed, usable, fits, most_context(model, use, devices, counted), speed)


def most_context(
    model: Model, use: Use, devices: Sequence[Device], type: str | Weights = AS_IS
) -> int:
    """Tokens for each sequence that fit; -1 if none do.

    The result is exact: one token more would not fit, or is more than the model was made for.
    """
    counted = weights(model, type) if isinstance(type, str) else type
    usable = sum(device.usable for device in devices)

    def fits(context: int) -> bool:
        return _needed(model, replace(use, context=context), devices, counted).total <= usable

    if not fits(0):
        return -1
    low, high = 0, (model.context or _ENDLESS) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def seconds_per_token(model: Model, counted: Weights, use: Use, devices: Sequence[Device]) -> float:
    """Lower bound of the time of one token: the bytes that it reads over the bandwidth there.

    What is read most densely lies on the fastest device: caches and the weights that every token
    needs before experts, and those before tables of which a token reads a row. The bound counts
    one sequence with its context full, and no writing, computing or moving.
    """
    kv = kv_bytes(model.layers, use.context, 1, use.k, use.v)
    state = state_bytes(model.layers)
    parts = [Part(kv, kv), Part(state, state), *counted.parts.values()]
    parts.sort(key=lambda part: part.read / part.bytes if part.bytes else 0.0, reverse=True)
    free = [[device.bandwidth, float(device.usable)] for device in devices]
    free.sort(reverse=True)
    seconds = 0.0
    for part in parts:
        left = float(part.bytes)
        for place in free:
            here = min(left, place[1])
            place[1] -= here
            left -= here
            seconds += here / max(1, part.bytes) * part.read / place[0]
        # Sequences beside this one may have taken the room; the slowest device is left.
        seconds += left / max(1, part.bytes) * part.read / free[-1][0]
    return seconds


def _needed(model: Model, use: Use, devices: Sequence[Device], counted: Weights) -> Memory:
    """Bytes on all devices together; each has buffers of its own."""
    found = memory(model, use, counted)
    return replace(found, compute=found.compute * max(1, len(devices)))
