"""The proxy in front of the engine: accepts, queues by SLO, sends, relays.

process       everything put together                       management    the metrics port
http/         HTTP/1.1: server and client                   routes        which way a request goes, and its headers
proxy         one request from end to end                   exchange      the same for a scheduled one
wire/         what requests and answers mean: pure          answer        an answer's bytes on their way, counted
scheduling/   order, gate and guards: pure                  dispatch      the scheduler, a clock and waiting coroutines
prediction/   output lengths                                predictor     the same at work, kept over restarts
engine        the engine and its state                      vitals        its figures, and whether it moves
relay         the answer to the client                      drain         letting go of a pod
outcome       how a request can end                         record        what is known of it then
figures       the sidecar's own metrics                     attainment    who met the targets, over the last minutes
metrics       Prometheus' text form                         tracing       spans, where they are asked for
config        the configuration file                        secrets       API keys from a mounted directory
"""
