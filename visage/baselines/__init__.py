"""The two-stage baselines of DLDL-v2 section 4.5.3: fixed features first, a linear estimator on
them after."""
