"""Reading a profiler's trace: where the time of a step went, and what to do about it. No torch, no pandas."""
