"""A plan: one model under several recipes, as values, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvant.plan.cache import kv_bytes, state_bytes
from kvant.plan.devices import Device
from kvant.plan.fit import Verdict, fit
from kvant.plan.memory import Use
from kvant.plan.model import Model
from kvant.plan.weights import AS_IS, weights

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DEFAULT_TYPES", "Plan", "make", "print_plan", "size"]

DEFAULT_TYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
_EXPERTS_TYPE = "MXFP4_MOE"
_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Plan:
    """What `make` found out; one verdict for each type."""

    model: Model
    use: Use
    devices: tuple[Device, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know before believing the numbers."""
        made_for, asked = self.model.context, self.use.context
        if made_for and asked > made_for:
            return (*self.model.notes, f"the model was made for {made_for:,} tokens of context")
        return self.model.notes

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes, bandwidths in bytes a second."""
        model = self.model
        used, experts = model.experts
        return {
            "model": {
                "name": model.name,
                "source": model.source,
                "architecture": model.architecture,
                "weights": model.elements,
                "context": model.context,
                "experts": experts,
                "experts_per_token": used,
                "file_bytes": model.file_bytes,
                "layers": dict(Counter(layer.kind for layer in model.layers)),
                "kv_bytes_per_growing_token": _per_token(self),
                "notes": list(self.notes),
            },
            "use": asdict(self.use),
            "devices": [{**asdict(d), "usable": d.usable} for d in self.devices],
            "types": [_row(verdict) for verdict in self.verdicts],
        }


def make(
    model: Model,
    types: Sequence[str] = (),
    use: Use | None = None,
    devices: Sequence[Device] = (),
    *,
    imatrix: bool = False,
    overrides: Sequence[tuple[str, str]] = (),
) -> Plan:
    """Plan one model.

    Parameters
    ----------
    model : Model
    types : sequence of str
        Recipes and formats; default: the file's own formats, or the usual recipes.
    use : Use, optional
        Default: one sequence of 32,768 tokens, or of what the model was made for.
    devices : sequence of Device
        One, or several that share the model.
    imatrix, overrides
        See `weights`.

    Examples
    --------
    >>> from kvant import plan
    >>> found = plan.make(plan.read("gpt-oss 20b"), ["MXFP4_MOE"])
    >>> f"{found.to_json()['types'][0]['weights_bytes'] / 2**30:.2f} GiB"
    '11.27 GiB'
    """
    use = use or Use(min(32768, model.context or 32768))
    types = types or _default_types(model)
    counted = [weights(model, type, imatrix=imatrix, overrides=overrides) for type in types]
    verdicts = tuple(fit(model, use, devices, each) for each in counted)
    return Plan(model, use, tuple(devices), verdicts)


def size(nbytes: float) -> str:
    """Bytes for people.

    >>> size(3 * 2**30), size(150 * 2**20), size(2560)
    ('3.00 GiB', '150.0 MiB', '2.5 KiB')
    """
    if nbytes >= _GIB:
        return f"{nbytes / _GIB:.2f} GiB"
    return f"{nbytes / _MIB:.1f} MiB" if nbytes >= _MIB else f"{nbytes / 1024:.1f} KiB"


def print_plan(plan: Plan, out: Console) -> None:
    """Write a plan as text."""
    for line in _head(plan):
        out.print(line, soft_wrap=True)
    out.print()
    _print_types(plan, out)
    if len(plan.verdicts) == 1:
        _print_parts(plan.verdicts[0], out)
    for line in _foot(plan):
        out.print(line, soft_wrap=True)


def _default_types(model: Model) -> tuple[str, ...]:
    if model.file_bytes:
        return (AS_IS,)
    return (*DEFAULT_TYPES, _EXPERTS_TYPE) if model.experts[1] else DEFAULT_TYPES


def _per_token(plan: Plan) -> int:
    """Bytes that one more token adds, where no window is full."""
    growing = [layer for layer in plan.model.layers if not layer.window]
    return kv_bytes(growing, 1, 1, plan.use.k, plan.use.v)


def _row(verdict: Verdict) -> dict[str, Any]:
    memory = verdict.memory
    counted = memory.weights
    speed = verdict.tokens_per_second
    return {
        "type": counted.type,
        "bits_per_weight": counted.bits_per_weight,
        "weights_bytes": counted.bytes,
        "read_bytes_per_token": counted.read,
        "parts": {name: part._asdict() for name, part in counted.parts.items()},
        "formats": dict(counted.formats),
        "kv_bytes": memory.kv,
        "state_bytes": memory.state,
        "compute_bytes_estimated": memory.compute,
        "total_bytes": memory.total,
        "usable_bytes": verdict.usable,
        "fits": verdict.fits,
        "most_context": verdict.most_context,
        "tokens_per_second_at_most": speed and {"empty": speed[0], "full": speed[1]},
    }


def _head(plan: Plan) -> list[str]:
    model, use = plan.model, plan.use
    lines = [f"{model.name}: {model.elements:,} weights, {model.architecture} ({model.source})"]
    kinds = Counter((layer.kind, layer.window) for layer in model.layers)
    told = [
        f"{count} {kind}" + (f" ({window:,} tokens)" if window else "")
        for (kind, window), count in kinds.items()
    ]
    lines.append(f"{len(model.layers)} layers: {', '.join(told)}")
    if model.experts[1]:
        lines.append("{} of {} experts for each token".format(*model.experts))
    kv = f"keys {use.k}, values {use.v}: {_per_token(plan):,} bytes for each further token"
    state = state_bytes(model.layers)
    if state:
        kv += f", {size(state)} of recurrent state"
    sequences = f"{use.sequences} sequences" if use.sequences > 1 else "one sequence"
    lines.append(f"{sequences} of {use.context:,} tokens; {kv}")
    for device in plan.devices:
        speed = f", {device.bandwidth / 1e9:.0f} GB/s" if device.bandwidth else ""
        lines.append(f"on {device.name}: {size(device.usable)} of {size(device.memory)}{speed}")
    return lines


def _print_types(plan: Plan, out: Console) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("type")
    titles = ["bits", "weights", "read a token", "KV", "state", "buffers ~", "total ~"]
    if plan.devices:
        titles += ["fits", "most context", "tokens/s <"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for verdict in plan.verdicts:
        memory = verdict.memory
        counted = memory.weights
        cells = [counted.type, f"{counted.bits_per_weight:.2f}"]
        cells += [size(counted.bytes), size(counted.read), size(memory.kv)]
        cells += [size(memory.state) if memory.state else "-"]
        cells += [f"~{size(memory.compute)}", f"~{size(memory.total)}"]
        if plan.devices:
            cells += [_yes(verdict), _context(verdict), _speed(verdict)]
        table.add_row(*cells)
    out.print(table)


def _yes(verdict: Verdict) -> str:
    return "yes" if verdict.fits else "no"


def _context(verdict: Verdict) -> str:
    most = verdict.most_context
    return f"~{most:,}" if most is not None and most >= 0 else "-"


def _speed(verdict: Verdict) -> str:
    if verdict.tokens_per_second is None:
        return "-"
    empty, full = verdict.tokens_per_second
    return f"{empty:.1f} .. {full:.1f}"


def _print_parts(verdict: Verdict, out: Console) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("part")
    for title in ("bytes", "share", "read a token"):
        table.add_column(title, justify="right")
    counted = verdict.memory.weights
    for name, part in counted.parts.items():
        share = f"{100 * part.bytes / counted.bytes:.1f}%"
        table.add_row(name, size(part.bytes), share, size(part.read))
    out.print(table)


def _foot(plan: Plan) -> list[str]:
    lines = ["~ estimated: buffers of computing, and what adds them. Everything else is exact."]
    if plan.devices:
        lines.append(
            "most context: for each sequence, up to what the model was made for. tokens/s: an "
            "upper bound, bandwidth over bytes that a token reads, with no context .. all of it."
        )
    if plan.model.file_bytes:
        lines.append(f"the file has {plan.model.file_bytes:,} bytes, metadata included")
    return [*lines, *(f"note: {note}" for note in plan.notes)]
