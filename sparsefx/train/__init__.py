"""Training: session, schedules, tasks."""
