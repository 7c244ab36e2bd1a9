"""Anthropic's Messages API: requests become conversations, answers become content blocks and events."""
