"""The express lane: plain HTTP/1.1 POSTs to relayed paths, straight from the socket to the exchange.

Everything else (management, upgrades, what is unusual or broken) is handed,
with the bytes already read, to hypercorn and Quart for the rest of the
connection. Both lanes admit by :mod:`slotd.gateway.intake` and answer through
the same exchange, so a client cannot tell them apart but by the time it takes.
"""
