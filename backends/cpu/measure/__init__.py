"""What is timed or checked on this machine before code is chosen."""
