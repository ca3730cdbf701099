"""Structured sparsity: patterns and importance (patterns.py), which weights there are and how they are stored
(weights.py), whole channels (channels.py, surgery.py), and the schedule with fine-tuning (schedule.py)."""
