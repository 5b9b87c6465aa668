"""Processes: ranks, the watchdog over them, signals, and exit codes."""
