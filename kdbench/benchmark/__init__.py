"""Latency of every cell: the plan (`cells`) and the schedule that measures it (`schedule`)."""
