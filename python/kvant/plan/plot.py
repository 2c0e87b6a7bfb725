"""Where the bytes go, as a picture: one bar for each type, and what the devices give."""

from __future__ import annotations

from typing import Any

from kvant.picture import FAINT, INK, frame, picture, png
from kvant.plan.report import Plan, size

__all__ = ["bars", "plan_png"]

_GIB = 1 << 30
_COLORS = {
    "embedding": "#a9c4ec",
    "per-layer embedding": "#cfe0f7",
    "attention": "#0f6fde",
    "feed-forward": "#0b4f9e",
    "experts": "#5b3fa8",
    "output": "#6aa2ea",
    "other": "#b8c0cc",
    "KV cache": "#d9480f",
    "recurrent state": "#f2a26b",
    "buffers, estimated": "#ffffff",
}
_ESTIMATED = "buffers, estimated"
_LIMIT = "#c2255c"


def bars(plan: Plan) -> dict[str, dict[str, int]]:
    """Type -> what the bytes are for -> bytes; the lengths that are drawn."""
    found = {}
    for verdict in plan.verdicts:
        memory = verdict.memory
        parts = {name: part.bytes for name, part in memory.weights.parts.items()}
        parts |= {"KV cache": memory.kv, "recurrent state": memory.state}
        parts[_ESTIMATED] = memory.compute
        found[memory.weights.type] = {name: value for name, value in parts.items() if value}
    return found


def plan_png(plan: Plan, width: float = 9.6, dpi: int = 160) -> bytes:
    """Draw a plan and return the PNG."""
    lengths = bars(plan)
    with picture(width, 2.3 + 0.42 * len(lengths), dpi) as (axes, canvas):
        frame(axes)
        axes.grid(False, axis="y")
        _draw(axes, lengths)
        _limit(axes, plan, max(sum(parts.values()) for parts in lengths.values()))
        _title(axes, plan)
        return png(canvas)


def _draw(axes: Any, lengths: dict[str, dict[str, int]]) -> None:
    longest = max(sum(parts.values()) for parts in lengths.values()) / _GIB
    for y, parts in enumerate(lengths.values()):
        left = 0.0
        for name, value in parts.items():
            estimated = name == _ESTIMATED
            axes.barh(
                y, value / _GIB, left=left, height=0.62, color=_COLORS[name],
                edgecolor=FAINT if estimated else "white", lw=0.6,
                hatch="////" if estimated else None,
            )  # fmt: skip
            left += value / _GIB
        text = f"~{size(sum(parts.values()))}"
        axes.text(
            left + 0.008 * longest, y, text, va="center", fontsize=9, color=INK,
            bbox={"color": "white", "pad": 1.0},
        )  # fmt: skip
    axes.set_yticks(range(len(lengths)), list(lengths), color=INK, fontsize=9.5)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("GiB", color=INK)
    shown = [name for name in _COLORS if any(name in parts for parts in lengths.values())]
    for name in shown:
        estimated = name == _ESTIMATED
        axes.barh(
            0, 0, color=_COLORS[name], label=name, edgecolor=FAINT if estimated else "white",
            lw=0.6, hatch="////" if estimated else None,
        )  # fmt: skip
    axes.figure.legend(loc="outside lower left", fontsize=8.5, frameon=False, ncols=5)


def _limit(axes: Any, plan: Plan, longest: int) -> None:
    """Where memory ends, if that is anywhere near the bars."""
    usable = plan.verdicts[0].usable
    room = longest
    if usable and usable < 1.6 * longest:
        axes.axvline(usable / _GIB, color=_LIMIT, lw=1.6, ls="--", zorder=2.5)
        axes.text(
            usable / _GIB, 1.0, f" {size(usable)} usable", color=_LIMIT, fontsize=9, va="bottom",
            ha="center", transform=axes.get_xaxis_transform(),
        )  # fmt: skip
        room = max(longest, usable)
    axes.set_xlim(0, 1.13 * room / _GIB)


def _title(axes: Any, plan: Plan) -> None:
    use = plan.use
    about = f"{use.context:,} tokens"
    about += f" for each of {use.sequences} sequences" if use.sequences > 1 else ""
    about += f", keys {use.k}, values {use.v}"
    about += "".join(f", {device.name}" for device in plan.devices)
    axes.set_title(f"{plan.model.name}: where the bytes go\n\n", loc="left", color=INK,
                   fontsize=13, fontweight="bold")  # fmt: skip
    axes.annotate(
        about, (0, 1), (0, 16), xycoords="axes fraction", textcoords="offset points",
        fontsize=9, color=FAINT,
    )  # fmt: skip
