"""The quality lab: how much a model's predictions change when its weights are quantized.

`sweep` and `evaluate` need the decoder of `kvant.models`, `kv_study` that or a dump of what layers
attend with; all else works on any logits. The names are imported when they are first used, so that
the metrics do not load matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .best_mix import Plan, optimize
    from .collect import collect_imatrix
    from .costs import Sensitivity, sensitivity
    from .divergence import Scores, compare_logits, kl_divergence, row_divergence
    from .evaluation import evaluate
    from .kld import KldFile, write_kld
    from .kv_dump import KVDump, capture
    from .kv_measure import kv_study
    from .kv_plan import KVPlan, kv_optimize
    from .kv_result import KVRow, KVStudy, KVTraits
    from .logit_base import LogitBase
    from .metrics import Comparison, Divergence, log_softmax, perplexity
    from .report import print_table, write_report
    from .result import SweepResult, SweepRow, pareto
    from .saving import save_base
    from .scoring import BaseLogits, LiveBase, Window, sample_windows, score, windows
    from .study import Study, measured
    from .sweep import sweep

_HOMES = {
    "collect_imatrix": "collect",
    "Scores": "divergence",
    "compare_logits": "divergence",
    "kl_divergence": "divergence",
    "row_divergence": "divergence",
    "evaluate": "evaluation",
    "save_base": "saving",
    "KldFile": "kld",
    "write_kld": "kld",
    "KVDump": "kv_dump",
    "capture": "kv_dump",
    "KVPlan": "kv_plan",
    "kv_optimize": "kv_plan",
    "KVRow": "kv_result",
    "KVStudy": "kv_result",
    "KVTraits": "kv_result",
    "kv_study": "kv_measure",
    "LogitBase": "logit_base",
    "Comparison": "metrics",
    "Divergence": "metrics",
    "log_softmax": "metrics",
    "perplexity": "metrics",
    "print_table": "report",
    "write_report": "report",
    "SweepResult": "result",
    "SweepRow": "result",
    "pareto": "result",
    "BaseLogits": "scoring",
    "LiveBase": "scoring",
    "Window": "scoring",
    "sample_windows": "scoring",
    "score": "scoring",
    "windows": "scoring",
    "Plan": "best_mix",
    "optimize": "best_mix",
    "Sensitivity": "costs",
    "sensitivity": "costs",
    "Study": "study",
    "measured": "study",
    "sweep": "sweep",
}

__all__ = [
    "BaseLogits",
    "Comparison",
    "Divergence",
    "KVDump",
    "KVPlan",
    "KVRow",
    "KVStudy",
    "KVTraits",
    "KldFile",
    "LiveBase",
    "LogitBase",
    "Plan",
    "Scores",
    "Sensitivity",
    "Study",
    "SweepResult",
    "SweepRow",
    "Window",
    "capture",
    "collect_imatrix",
    "compare_logits",
    "evaluate",
    "kl_divergence",
    "kv_optimize",
    "kv_study",
    "log_softmax",
    "measured",
    "optimize",
    "pareto",
    "perplexity",
    "print_table",
    "row_divergence",
    "sample_windows",
    "save_base",
    "score",
    "sensitivity",
    "sweep",
    "windows",
    "write_kld",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    # Importing the submodule `sweep` has just put a module under the function's name.
    globals()[name] = value
    return value
