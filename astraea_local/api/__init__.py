"""The HTTP side: OpenAI-compatible endpoints, and the server's own state."""
