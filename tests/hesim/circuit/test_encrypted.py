"""Every kernel once under Pyfhel: what the slot machine computes, SEAL computes too."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np

import approx
import he_backend
import hesim
from hesim.circuit.compile import compile as compile_program
from hesim.params import InsecureParametersWarning


def test_every_kernel_runs_encrypted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        params = hesim.CKKSParams(
            log_n=11, levels=4, scale_bits=40, first_bits=50, special_bits=60, security=None
        )
    square = approx.fit("exp", (-2, 2), degree=7)

    def kernels(x, w, m, flag):
        narrow = x[:, :1]
        return {
            "matmul by diagonals": x @ w,
            "matmul over the other axis": w.T[:3] @ x.T,
            "few results, summed over slots": x @ w[:, :2],
            "product in a skewed layout": x @ x.T,
            "product and sum": jnp.sum(x * x, axis=1),
            "rotations and sums": jnp.sum(x, axis=0) - jnp.sum(x, axis=1)[0],
            "copies of a narrow operand": (narrow + x[0, 0]) * x,
            "transposed sum": x.T[:4, :4] + x[:4, :4],
            "scaled by a vector": x * m,
            "plus a vector": x + m,
            "run-time selection": jnp.where(m > 0, x, 0.25),
            "known selection": jnp.tril(x),
            "running sum": jnp.cumsum(x, axis=1),
            "product over an axis": jnp.prod(x[:, :3], axis=1),
            "polynomial": square(x),
            "unequal gains": x / 3 - x * 0.7,
            "zeros and constants": jnp.pad(x, ((1, 0), (0, 2)), constant_values=0.5),
            "scatter with collisions": x.at[jnp.array([0, 0, 1])].add(x[:3]),
            "convolution": jax.lax.conv_general_dilated(
                x[None, None], w[None, None, :2, :3], (1, 2), "SAME"
            ),
            "refresh": hesim.refresh(x) * 2.0,
            "conditional": jax.lax.cond(flag > 0, lambda a: a * a, lambda a: -a, x),
            "run-time place": jax.lax.dynamic_slice(x, (flag, flag), (2, 3)),
            "zero operand": x * jnp.zeros_like(m) + x,
        }

    rng = np.random.default_rng(5)
    x = rng.uniform(-1, 1, (4, 8)).astype("f")
    w = rng.uniform(-1, 1, (8, 8)).astype("f")
    m = rng.uniform(-1, 1, (4, 8)).astype("f")
    args = (x, w, m, np.int32(1))
    program = hesim.trace(kernels, *args, encrypted=(0,))
    # Both axes on slots: rotations, masks and diagonals are needed nearly everywhere.
    circuit = compile_program(program, params, batch=False, layouts=[(1, 0)])
    report = he_backend.run(program, *args, circuit=circuit, backend="pyfhel")
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, w, m)]
        exact = kernels(wide[0], wide[1], wide[2], args[3])
    for name, value in exact.items():
        error = np.max(np.abs(np.asarray(report.outputs[name]) - np.asarray(value)))
        assert error < 1e-5, f"{name}: {error:.1e}"
    assert report.counts == circuit.ledger.counts()
    assert circuit.ledger.refreshes > 0 and circuit.ledger.rotation_keys > 4
