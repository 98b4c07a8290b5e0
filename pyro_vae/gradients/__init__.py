"""The gradient laboratory: what an objective's gradient is made of, measured at one point."""

from pyro_vae.gradients.report import GradientReport, gradient_report

__all__ = ["GradientReport", "gradient_report"]
