"""HTTP as it is on the wire: a lean client, server-sent events, forms. Nothing of slots."""
