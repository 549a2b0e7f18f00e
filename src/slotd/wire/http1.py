from slotd.exchange.http1 import *  # noqa
from slotd.exchange.http1 import Http1Pool, Http1Response, ConnectFailed, UpstreamBroken
from slotd.exchange.http1_wire import BadResponse
