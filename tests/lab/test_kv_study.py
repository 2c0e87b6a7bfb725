"""What a study of a cache measures, on keys that are hard in known ways."""

from __future__ import annotations

import json
import math
from pathlib import Path

import kv_dumps
import numpy as np
import pytest

from kvant import KVSide, models
from kvant.errors import FormatError, ShapeError
from kvant.kv import KVCalibration, calibrate
from kvant.lab import KVDump, KVStudy, capture, kv_study
from kvant.lab.kv_error import Rows, Try, moved

PLAIN = KVSide("q4_0", rotate="auto")
COMPACT = KVSide("iq4_nl", rotate="auto", center=True, equalize=True)


def kl(dump: KVDump, *codecs: str | KVSide) -> list[float]:
    """Mean KL divergence of keys in each codec."""
    study = kv_study(dump, codecs, v_codecs=["f32"])
    return [row.kl_mean for row in study.rows if row.side == "k"]


@pytest.mark.parametrize("seed", range(3))
def test_transforms_take_four_fifths_of_the_divergence_that_biases_cause(seed: int) -> None:
    plain, compact = kl(kv_dumps.bias(seed), PLAIN, COMPACT)
    print(
        f"bias, seed {seed}: q4_0+rot {plain:.4g}, compact {compact:.4g}: 1/{plain / compact:.1f}"
    )
    assert compact < plain / 5


@pytest.mark.parametrize(("suite", "least"), [("outliers", 2.5), ("drifting", 10), ("normal", 1.2)])
def test_transforms_help_where_else_channels_differ(suite: str, least: float) -> None:
    bare, plain, compact = kl(getattr(kv_dumps, suite)(), "q4_0", PLAIN, COMPACT)
    print(f"{suite}: q4_0 {bare:.4g}, q4_0+rot {plain:.4g}, compact {compact:.4g}")
    assert compact < plain / least


@pytest.mark.parametrize(("suite", "least"), [("bias", 5), ("outliers", 3), ("drifting", 50)])
def test_scales_by_channel_need_no_calibration(suite: str, least: float) -> None:
    rotated, by_channel, both = kl(
        getattr(kv_dumps, suite)(), "q4_1+rot", "kivi4", "q4_1+rot+mean+eq"
    )
    print(f"{suite}: q4_1+rot {rotated:.4g}, kivi4 {by_channel:.4g}, q4_1+rot+mean+eq {both:.4g}")
    assert by_channel < rotated / least and by_channel < 1.05 * both


def test_codebooks_want_signs_for_rows_of_a_hadamard_matrix() -> None:
    without = KVSide("lm4", rotate="auto")
    found = kl(kv_dumps.walsh(), without, KVSide.of("lm4"), PLAIN, "q4_0+rot+signs")
    print("walsh: lm4 {:.4g}, signs {:.4g}; q4_0+rot {:.4g}, signs {:.4g}".format(*found))
    assert found[0] > 20 * found[1]
    # A block that is scaled by its largest number has one large number right.
    assert found[2] < found[3]


def naive(dump: KVDump, k: np.ndarray, v: np.ndarray, rows: Rows) -> dict[str, float]:
    """The figures of one layer by loops over positions and heads."""
    kls, over, errors, spreads, wrong, right = [], [], [], [], [], []
    heads, group = dump.q[0].shape[1], dump.q[0].shape[1] // k.shape[1]

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max())
        return e / e.sum()

    def scores(q: np.ndarray, keys: np.ndarray) -> np.ndarray:
        s = keys @ q * dump.scale[0]
        return dump.softcap * np.tanh(s / dump.softcap) if dump.softcap else s

    for at in rows.positions:
        for head in range(heads):
            first = 0 if dump.window[0] is None else max(0, at + 1 - dump.window[0])
            seen = np.arange(first, at + 1)
            near = (seen < rows.sink) | (seen > at - rows.tail)
            exact = [x[0][seen, head // group].astype(np.float64) for x in (dump.k, dump.v)]
            coded = [x[seen, head // group].astype(np.float64) for x in (k, v)]
            for own, other in zip(coded, exact, strict=True):
                own[near] = other[near].astype(np.float16)
            q = dump.q[0][at, head].astype(np.float64)
            a, b = scores(q, exact[0]), scores(q, coded[0])
            sink = [] if dump.sinks[0] is None else [dump.sinks[0][head]]
            p, r = softmax(np.append(a, sink)), softmax(np.append(b, sink))
            kls.append((p * np.log(p / r)).sum())
            errors += list((b - a) - (b - a).mean())
            spreads += list(a - a.mean())
            if len(seen) > rows.top:
                best = [set(np.argsort(x)[-rows.top :]) for x in (a, b)]
                over.append(len(best[0] & best[1]) / rows.top)
            right.append(p[: len(seen)] @ exact[1])
            wrong.append(
                [r[: len(seen)] @ exact[1] - right[-1], p[: len(seen)] @ (coded[1] - exact[1])]
            )
    size = np.linalg.norm(right)
    return {
        "logit_error": float(np.linalg.norm(errors) / np.linalg.norm(spreads)),
        "kl_mean": float(np.mean(kls)),
        "kl_p99": float(np.quantile(kls, 0.99)),
        "kl_max": float(np.max(kls)),
        "top_overlap": float(np.mean(over)),
        "output_error": float(np.linalg.norm([w[0] for w in wrong]) / size),
        "of_values": float(np.linalg.norm([w[1] for w in wrong]) / size),
    }


@pytest.mark.parametrize(
    ("window", "sinks", "softcap", "sink", "tail"),
    [
        (None, False, 0.0, 0, 0),
        (30, True, 0.0, 0, 0),
        (None, True, 4.0, 3, 9),
        (11, False, 2.0, 4, 2),
    ],
)
def test_figures_are_those_of_loops(
    window: int | None, sinks: bool, softcap: float, sink: int, tail: int
) -> None:
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((60, heads, 32), dtype=np.float32) for heads in (4, 2, 2))
    extra = np.float32([0, 1, 2, 3]) if sinks else None
    dump = KVDump([2 * q], [k + 1], [v], [window], [0.2], [extra], softcap)
    k_other = dump.k[0] + rng.standard_normal(k.shape, dtype=np.float32) / 4
    v_other = v + rng.standard_normal(v.shape, dtype=np.float32) / 4
    rows = Rows(np.array([1, 7, 30, 59]), sink, tail, 5)
    found = moved(dump, 0, [Try(False, k_other), Try(True, v_other), Try(False, dump.k[0])], rows)
    wanted = naive(dump, k_other, v_other, rows)
    values = wanted.pop("of_values")
    assert found[0]._asdict() == pytest.approx(wanted, rel=1e-9)
    assert found[1].output_error == pytest.approx(values, rel=1e-9)
    # Exact tokens are f16.
    assert found[2].output_error < (1e-3 if sink else 1e-12)


def test_costs_of_keys_and_values_are_of_one_kind() -> None:
    """Small errors of scores with variance s^2 cost s^2 / 2, and move the output by s."""
    study = kv_study(kv_dumps.normal(), ["q5_0", "q8_0"])
    for codec in ("q5_0", "q8_0"):
        row = study.row(0, "k", codec)
        assert row.cost == row.kl_mean == pytest.approx(row.output_error**2 / 2, rel=0.1)
        values = study.row(0, "v", codec)
        assert values.cost == pytest.approx(row.cost, rel=0.3)
        assert (values.kl_mean, values.logit_error, values.top_overlap) == (0, 0, 1)


def test_exact_tokens_take_the_error_away() -> None:
    dump = kv_dumps.normal()
    found = [
        kv_study(dump, ["q4_0"], sink=sink, tail=tail).row(0, side, "q4_0").output_error
        for side in "kv"
        for sink, tail in ((0, 0), (4, 64), (0, 512))
    ]
    assert found[0] > found[1] > 100 * found[2]
    assert found[3] > found[4] > 100 * found[5]
    # Floats are as they are.
    rows = kv_study(dump, ["f32"], sink=4, tail=64).rows
    assert [row.output_error for row in rows] == [0, 0]


def test_traits_say_what_makes_a_layer_hard() -> None:
    biased, large = kv_dumps.bias(), kv_dumps.outliers()
    v = [*biased.v, large.v[0] / 100]
    study = kv_study(KVDump([*biased.q, *large.q], [*biased.k, *large.k], v), ["q8_0"])
    channels = sorted(kv_dumps.some_channels(0).tolist())
    every = tuple((head, channel) for head in range(2) for channel in channels)
    assert [traits.k_outliers for traits in study.traits] == [every, every]
    assert study.traits[0].k_mean_share > 0.8
    assert study.traits[1].k_mean_share < 0.02
    assert study.traits[0].norm_ratio < 50 < study.traits[1].norm_ratio
    shown = study.warnings()
    assert len(shown) == 3
    assert "layer 1: keys are" in shown[1]
    assert f"(head:channel) 0:{channels[0]}, " in shown[0]


def test_numbers_out_of_reach_are_infinite_errors() -> None:
    dump = kv_dumps.normal()
    study = kv_study(KVDump(dump.q, [dump.k[0] * 1e6], dump.v), ["f16", "f32"])
    assert study.row(0, "k", "f16").cost == math.inf
    assert study.row(0, "k", "f32").cost == 0
    record = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert record["rows"][0]["kl_mean"] is None
    assert "inf" in study.text()


@pytest.fixture(scope="module")
def study() -> KVStudy:
    one, two = kv_dumps.bias(), kv_dumps.normal()
    return kv_study(KVDump([*one.q, *two.q], [*one.k, *two.k], [*one.v, *two.v]), rows=16, name="x")


def test_everything_shows_in_json_text_and_picture(study: KVStudy, tmp_path: Path) -> None:
    record = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert (record["kind"], record["name"], record["queries"]) == ("kvant.kv.study", "x", 16)
    assert len(record["rows"]) == len(study.rows)
    assert record["rows"][3]["stored"]["codec"] == study.rows[3].stored.codec
    wide, narrow = study.text(), study.text(width=80, layers=True)
    for row in study.rows:
        assert f" {row.codec} " in wide
    for text, width in ((wide, 120), (narrow, 80)):
        tables = [line for line in text.splitlines() if "layer 0:" not in line]
        assert max(len(line) for line in tables) <= width
        assert "..." not in text
        assert "\u2026" not in text
    assert "by layer" in narrow
    study.plot(tmp_path / "a.png")
    study.plot(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    kv_study(kv_dumps.normal(), ["f32"]).plot(tmp_path / "empty.png")


def test_a_study_is_the_same_twice(study: KVStudy) -> None:
    one, two = kv_dumps.bias(), kv_dumps.normal()
    dump = KVDump([*one.q, *two.q], [*one.k, *two.k], [*one.v, *two.v])
    assert kv_study(dump, rows=16, name="x") == study


def test_a_calibration_may_be_brought_along() -> None:
    dump = kv_dumps.bias()
    own = calibrate(dump.k, dump.q)
    study = kv_study(dump, [COMPACT], calibration=own)
    assert study.calibration is own
    assert study.rows != kv_study(dump, [COMPACT]).rows
    with pytest.raises(ShapeError, match="1 layers"):
        kv_study(dump, calibration=KVCalibration([], []))


def test_dumps_go_through_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((8, heads, 16), dtype=np.float32) for heads in (4, 2, 2))
    sinks = np.arange(4, dtype=np.float32)
    dump = KVDump([q, q], [k, k], [v, 2 * v], [None, 5], [0.5, 0.25], [sinks, None], 30.0)
    dump.save(tmp_path / "dump.npz")
    back = KVDump.load(tmp_path / "dump.npz")
    assert (back.window, back.scale, back.softcap) == ((None, 5), (0.5, 0.25), 30.0)
    for name in "qkv":
        assert all(map(np.array_equal, getattr(back, name), getattr(dump, name)))
    assert np.array_equal(back.sinks[0], sinks)
    assert back.sinks[1] is None
    assert kv_study(tmp_path / "dump.npz", ["q8_0"]).rows == kv_study(dump, ["q8_0"]).rows
    half = back.part(2, 6)
    assert (half.tokens, half.layers) == (4, 2)
    assert np.array_equal(half.v[1], 2 * v[2:6])


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    for content in (b"", b"PK\x03\x04", b"nonsense" * 9):
        bad.write_bytes(content)
        with pytest.raises(FormatError):
            KVDump.load(bad)
    np.savez(bad, window=np.array([0]), q=np.array([{}], object))
    with pytest.raises(FormatError):
        KVDump.load(bad)
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(bad)
    with pytest.raises(FormatError):
        KVDump.load(bad)
    x = np.ones((4, 2, 16), np.float32)
    for wrong in (
        {"q": []},
        {"q": [x[:3]]},
        {"q": [x[:, :, :8]]},
        {"q": [np.ones((4, 3, 16), np.float32)]},
        {"v": [x[:, :1]]},
        {"v": [x[0]]},
        {"k": [x * np.float32(np.nan)]},
        {"window": [0]},
        {"window": [4, 4]},
        {"sinks": [np.ones(3, np.float32)]},
        {"scale": [math.inf]},
    ):
        with pytest.raises(ShapeError):
            KVDump(**{"q": [x], "k": [x], "v": [x]} | wrong)


def test_what_a_study_cannot_do_is_refused() -> None:
    dump = kv_dumps.normal()
    for codec in ("q9_9", "q4_0+what"):
        with pytest.raises(FormatError):
            kv_study(dump, [codec])
    for wrong in ({"rows": 0}, {"top": 0}, {"sink": -1}):
        with pytest.raises(ShapeError):
            kv_study(dump, ["q8_0"], **wrong)
    with pytest.raises(ShapeError, match="4 tokens"):
        kv_study(dump.part(0, 3))


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_model_is_captured_as_it_attends(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    tokens = np.random.default_rng(0).integers(1, 258, 40)
    model = models.load(path, act="f32")
    dump = capture(model, tokens)
    assert (dump.layers, dump.tokens) == (2, 40)
    assert dump.q[0].shape == (40, 4, 64)
    session = model.start()
    hidden = session.feed(tokens)
    for layer in range(2):
        for head in range(2):
            stored = session.sequence.keys(layer, head), session.sequence.values(layer, head)
            assert np.array_equal(stored[0], dump.k[layer][:, head])
            assert np.array_equal(stored[1], dump.v[layer][:, head])
    # Being watched changes nothing, and tokens may come one by one.
    watched, seen = model.start(), []
    watched.on_attend = lambda layer, q, k, v, scale, sinks: seen.append((layer, q.copy(), scale))
    parts = [watched.feed(tokens[:37]), *(watched.feed(tokens[at : at + 1]) for at in (37, 38, 39))]
    assert np.array_equal(np.concatenate(parts), hidden)
    assert [layer for layer, _, _ in seen] == [0, 1] * 4
    assert np.array_equal(np.concatenate([q for layer, q, _ in seen if layer == 1]), dump.q[1])
    assert {scale for _, _, scale in seen} == set(dump.scale)
    by_path = kv_study(path, ["q8_0"], tokens=tokens)
    assert by_path.name == path.name
    assert by_path.rows == kv_study(models.load(path), ["q8_0"], tokens=tokens).rows
    with pytest.raises(ShapeError, match="tokens"):
        kv_study(path)
