"""What vLLM's own processes import of ours. This folder, and nothing beside it, is on their PYTHONPATH."""
