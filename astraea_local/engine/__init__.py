"""Everything that touches llama.cpp: bindings, the step loop, KV stores and the child process."""
