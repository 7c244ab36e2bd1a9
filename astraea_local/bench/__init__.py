"""Workloads and their replay over HTTP; nothing here reaches into the engine."""
