"""Liveness: probes, and the decision what their outcomes mean."""
