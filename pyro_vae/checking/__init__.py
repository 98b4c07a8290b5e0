"""The contract of a program, looked over once before any training."""

from pyro_vae.checking.report import Report, SiteReport, check

__all__ = ["Report", "SiteReport", "check"]
