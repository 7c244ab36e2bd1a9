"""A workstation server that schedules concurrent local agents over one GGUF model."""

__version__ = "0.1.0"
