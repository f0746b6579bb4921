"""The proxy in front of an engine: it accepts requests, queues them by their targets, and relays the answers.

process       assembles the parts and reloads the configuration
config        the configuration file, and the settings that follow from it
load_stream   the replica's load, for gateways
management    the metrics port: probes, metrics, the placement report, drain
request/      one request from its arrival to its answer
wire/         what requests and answers mean: pure
scheduling/   order, gate and guards: pure
prediction/   output lengths
engine/       the connection to the engine, its metrics, its health
telemetry/    metrics, attainment, access log, spans

What it shares with the gateway is in `uellm.proxying`.
"""
