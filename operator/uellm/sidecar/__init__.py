"""The proxy in front of the engine: accepts, queues by SLO, sends, relays.

process       everything put together                       proxy         one request from end to end
connection    a client's connection and its deadlines       body, routes  what is taken from a client
core          the order and the gate: pure                  dispatch      the core with a clock and waiting coroutines
engine        connections to the engine, its state          relay         the answer, byte for byte
management    the metrics port                              outcome       how a request can end
"""
