"""OpenAI's Responses API: requests become conversations, answers become items and events."""
