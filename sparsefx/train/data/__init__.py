"""Texts on their way into a session: files, tables, labels, tasks, batches of tokens."""
