"""Figures show what they say."""

import numpy as np

import approx
from approx.choice import plots


def test_error_curve_marks_the_equioscillation():
    p = approx.fit("exp", (-4, 0), degree=6)
    axes = plots.error_curve(p, "exp").axes[0]
    marked = next(line for line in axes.lines if line.get_marker() == "o")
    assert len(np.asarray(marked.get_xdata())) == 8
    assert np.allclose(np.abs(np.asarray(marked.get_ydata())), p.max_error, rtol=1e-3)


def test_outside_reaches_beyond_the_domain():
    p = approx.fit("gelu", (-4, 4), degree=10)
    axes = plots.outside(p, "gelu", fraction=0.25).axes[0]
    x = np.asarray(axes.lines[0].get_xdata())
    assert (x[0], x[-1]) == (-6.0, 6.0)
    assert "gelu" in axes.get_title()


def test_error_against_degree_falls():
    axes = plots.error_against_degree("tanh", (-2, 2), [3, 7, 11]).axes[0]
    minimax, interpolation = (np.asarray(line.get_ydata()) for line in axes.lines)
    assert np.all(np.diff(minimax) < 0)
    assert np.all(minimax < interpolation)


def test_a_composite_can_be_drawn(tmp_path):
    c = approx.composite("relu", (-1, 1), degrees=(7, 7))
    plots.error_curve(c, "relu").savefig(tmp_path / "relu.png")
    assert (tmp_path / "relu.png").stat().st_size > 5000
