"""Empirical tangent kernels: of any method on any backbone and task, compared with full fine-tuning's.

The kernel of a set of parameters is `K[i, o, j, p] = <d f_o(x_i) / d theta, d f_p(x_j) / d theta>`, with f the logits
in evaluation mode. Everything here is exact: no row, output or parameter is sampled, but for the controls.
"""
