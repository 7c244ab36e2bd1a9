"""How families of models write tool calls, and how an answer is taken apart."""
