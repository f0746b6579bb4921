"""What a proxy needs above the transport, for the sidecar and the gateway alike.

outcome    how a request can end, and our own answers in OpenAI's error form
routes     the path of a request, its id, and the headers that are passed on
targets    targets that a request brings itself
record     what is known of a request
handler    the frame of a request handler: one answer, one outcome, one record
relay      an answer on its way to the client
drain      how a process stops taking requests and finishes those it has
keys       API keys, as hashes
secrets    API keys from a mounted directory
metrics    Prometheus' text format
faults     faults of the bookkeeping, which lose no answer
serving    the sockets of a proxy, from its start to its end
process    addresses, the garbage collector, file descriptors, signals, logs
"""
