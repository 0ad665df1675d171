"""Brush strokes: smooth shapes around points and along curves, as coverage between 0 and 1 on a
window of the canvas.

Curves are parabolas in the frame of their own part, so that a part costs a handful of operations on
a small window.
"""

from __future__ import annotations

import math

import numpy as np

from visage.synthetic.shape import Grid, Window

# The picture's left and right.
SIDES = (-1.0, 1.0)


def spot(window: Window, u: float, v: float, half_u: float, half_v: float) -> Grid:
    """A smooth bump of height 1 around (u, v)."""
    z, down = window.u - u, window.v - v
    z *= z
    z *= -1.0 / (half_u * half_u)
    down *= down
    down *= 1.0 / (half_v * half_v)
    z -= down
    return np.exp(z, out=z)


def stroke(
    window: Window, start: tuple[float, float], end: tuple[float, float], bend: float, width: float
) -> Grid:
    """A line from start to end, bent sideways by `bend` at its middle, fading out at both ends: 1
    on the line."""
    du, dv = end[0] - start[0], end[1] - start[1]
    half = 0.5 * math.hypot(du, dv)
    along_u, along_v = du / (2.0 * half), dv / (2.0 * half)
    u, v = window.u - 0.5 * (start[0] + end[0]), window.v - 0.5 * (start[1] + end[1])
    along = ((u * along_u + v * along_v) / half) ** 2
    across = (v * along_u - u * along_v - bend * (1.0 - along)) / width
    return np.exp(-across * across - along * along * along)


def fourth(values: Grid) -> Grid:
    """values^4 in two multiplications."""
    square = values * values
    return square * square
