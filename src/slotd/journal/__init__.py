"""What happened, kept on disk: events and decision records, and which slots were up.

Nothing in here is needed to serve: a disk that fails costs history, never a
request and never a start.
"""
