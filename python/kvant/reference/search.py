"""The searches for scales: one column of the input is one sub-block, all columns at once.

Axis 0 runs over the elements of a sub-block and is walked in order, since sums are defined as
f32 sums from the first element to the last; axis 1 runs over sub-blocks. All comparisons are
strict: the first of equal candidates stays. Ideas: the "K-quants" and importance-weighted
searches of ggml.
"""

from __future__ import annotations

import numpy as np

from .numeric import F32, I32, SMALLEST_GROUP, Ints, f32, low_byte, nearest_int, ordered_sum, peak

_ZERO = np.float32(0.0)
_TENTH = np.float32(0.1)


def _ratio(above: F32, below: F32) -> F32:
    return f32(np.where(below > 0, above / below, _ZERO))


def make_qx(x: F32, nmax: int, weights: F32 | None) -> tuple[F32, I32]:
    """Symmetric search: codes l in [-nmax, nmax) and a scale with w = scale * l.

    Tries nineteen grids around the one that puts the largest magnitude on -nmax and keeps the
    one with the largest (sum w x l)^2 / (sum w l l). Returns (scale, l + nmax).
    """
    amax, signed = peak(x)
    w = x * x if weights is None else weights
    wx = w * x

    def grid(inverse: F32) -> tuple[I32, F32, F32]:
        codes = np.clip(nearest_int(inverse * x), -nmax, nmax - 1)
        levels = f32(codes)
        return codes, ordered_sum(wx * levels), ordered_sum(w * levels * levels)

    best_codes, sumlx, suml2 = grid(np.float32(-nmax) / signed)
    scale = f32(np.where(suml2 != 0, sumlx / suml2, _ZERO))
    best = scale * sumlx
    for step in range(-9, 10):
        if step == 0:
            continue
        top = np.float32(nmax) + _TENTH * np.float32(step)
        codes, sumlx, suml2 = grid(-top / signed)
        better = (suml2 > 0) & (sumlx * sumlx > best * suml2)
        best_codes = np.where(better, codes, best_codes)
        scale = f32(np.where(better, sumlx / suml2, scale))
        best = f32(np.where(better, scale * sumlx, best))
    flat = amax < SMALLEST_GROUP
    return f32(np.where(flat, _ZERO, scale)), np.where(flat, 0, best_codes + nmax)


def make_q3(x: F32, nmax: int) -> tuple[F32, I32]:
    """Symmetric search by coordinate descent, weights x^2: up to five passes, one code at a time.

    Returns (scale, l + nmax).
    """
    amax, signed = peak(x)
    w = x * x
    wx = w * x
    codes = np.clip(nearest_int(np.float32(-nmax) / signed * x), -nmax, nmax - 1)
    levels = f32(codes)
    sumlx, suml2 = ordered_sum(wx * levels), ordered_sum(w * levels * levels)
    for _ in range(5):
        changed = False
        for i in range(x.shape[0]):
            slx = sumlx - wx[i] * levels[i]
            sl2 = suml2 - w[i] * levels[i] * levels[i]
            new = np.clip(nearest_int(x[i] * sl2 / slx), -nmax, nmax - 1)
            level = f32(new)
            try_ = (slx > 0) & (level != levels[i])
            slx = slx + wx[i] * level
            sl2 = sl2 + w[i] * level * level
            try_ &= (sl2 > 0) & (slx * slx * suml2 > sumlx * sumlx * sl2)
            if not try_.any():
                continue
            changed = True
            levels[i] = np.where(try_, level, levels[i])
            sumlx = f32(np.where(try_, slx, sumlx))
            suml2 = f32(np.where(try_, sl2, suml2))
        if not changed:
            break
    flat = amax < SMALLEST_GROUP
    codes = levels.astype(np.int32) + nmax
    return f32(np.where(flat, _ZERO, _ratio(sumlx, suml2))), np.where(flat, 0, codes)


def make_qkx(
    x: F32,
    nmax: int,
    weights: F32,
    first: np.float32,
    step: np.float32,
    steps: int,
    absolute: bool = False,
) -> tuple[F32, F32, I32]:
    """Asymmetric search: codes l in [0, nmax], a scale and a minimum, w = scale * l - minus.

    For each of steps + 1 grids, scale and minimum are the least-squares solution; the minimum
    never rises above zero. A solution that is taken also moves the lower end of the grids still
    to come. The error is a weighted sum of squares, or of magnitudes where `absolute`.
    Returns (scale, minus, l).
    """
    low, high = x[0], x[0]
    for value in x[1:]:
        low = f32(np.where(value < low, value, low))
        high = f32(np.where(value > high, value, high))
    low = f32(np.where(low > 0, _ZERO, low))
    wx = weights * x
    sum_w, sum_x = weights[0], wx[0]
    for i in range(1, x.shape[0]):
        sum_w = sum_w + weights[i]
        sum_x = sum_x + wx[i]

    def error(scale: F32, minimum: F32, levels: F32) -> F32:
        miss = scale * levels + minimum - x
        return ordered_sum(weights * (np.abs(miss) if absolute else miss * miss))

    def grid(inverse: F32) -> I32:
        return np.clip(nearest_int(inverse * (x - minimum)), 0, nmax)

    minimum = low
    inverse = np.float32(nmax) / (high - low)
    scale = np.float32(1.0) / inverse
    best_codes = grid(inverse)
    best = error(scale, minimum, f32(best_codes))
    for i in range(steps + 1):
        codes = grid((first + step * np.float32(i) + np.float32(nmax)) / (high - minimum))
        levels = f32(codes)
        wl = weights * levels
        sum_l, sum_l2, sum_xl = ordered_sum(wl), ordered_sum(wl * levels), ordered_sum(wl * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det
        positive = new_min > 0
        new_scale = f32(np.where(positive, sum_xl / sum_l2, new_scale))
        new_min = f32(np.where(positive, _ZERO, new_min))
        miss = error(new_scale, new_min, levels)
        better = (det > 0) & (miss < best)
        best_codes = np.where(better, codes, best_codes)
        best = f32(np.where(better, miss, best))
        scale = f32(np.where(better, new_scale, scale))
        minimum = f32(np.where(better, new_min, minimum))
    flat = high == low
    minus = -f32(np.where(flat, low, minimum))
    return f32(np.where(flat, _ZERO, scale)), minus, np.where(flat, 0, best_codes)


def make_qp(x: F32, nmax: int, weights: F32) -> tuple[F32, I32]:
    """Search for non-negative x (scales and minima): codes l in [0, nmax], x = scale * l.

    Nine grids are compared by weighted squares, then up to five passes of coordinate descent.
    The codes are bytes: a value that leaves the byte wraps.
    """
    top = np.zeros(x.shape[1], np.float32)
    for value in x:
        top = f32(np.where(top > value, top, value))
    inverse = np.float32(nmax) / top
    best = _grid_error(x, weights, np.float32(1.0) / inverse, low_byte(nearest_int(inverse * x)))
    for step in range(-4, 5):
        if step == 0:
            continue
        other = (_TENTH * np.float32(step) + np.float32(nmax)) / top
        codes = np.minimum(nearest_int(other * x), nmax)
        miss = _grid_error(x, weights, np.float32(1.0) / other, codes)
        better = miss < best
        best = f32(np.where(better, miss, best))
        inverse = f32(np.where(better, other, inverse))
    wx = weights * x
    found = np.minimum(nearest_int(inverse * x), nmax)
    levels = f32(found)
    sumlx, suml2 = ordered_sum(wx * levels), ordered_sum(weights * levels * levels)
    levels = f32(low_byte(found))
    for _ in range(5):
        changed = False
        for i in range(x.shape[0]):
            slx = sumlx - wx[i] * levels[i]
            sl2 = suml2 - weights[i] * levels[i] * levels[i]
            try_ = (slx > 0) & (sl2 > 0)
            new = np.minimum(nearest_int(x[i] * sl2 / slx), nmax)
            level = f32(new)
            try_ &= level != levels[i]
            slx = slx + wx[i] * level
            sl2 = sl2 + weights[i] * level * level
            try_ &= slx * slx * suml2 > sumlx * sumlx * sl2
            if not try_.any():
                continue
            changed = True
            levels[i] = np.where(try_, f32(low_byte(new)), levels[i])
            sumlx = f32(np.where(try_, slx, sumlx))
            suml2 = f32(np.where(try_, sl2, suml2))
        if not changed:
            break
    flat = top < SMALLEST_GROUP
    codes = np.where(flat, 0, levels.astype(np.int32))
    return f32(np.where(flat, _ZERO, _ratio(sumlx, suml2))), codes


def _grid_error(x: F32, weights: F32, scale: F32, codes: Ints) -> F32:
    miss = x - scale * f32(codes)
    return ordered_sum(weights * miss * miss)
