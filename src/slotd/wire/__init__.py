"""HTTP as it is on the wire: a lean client, and server-sent events. Nothing of slots."""
